"""``paretomerge info``: what a front holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from paretomerge.cli.flags import (
    Json,
)
from paretomerge.cli.terminal import cell, console, show_json


def info(
    front: Annotated[Path, typer.Argument(help="A front's folder.")],
    routing: Annotated[
        Path | None,
        typer.Option(
            "--routing", metavar="FILE", help="Of pwe-moe and steered: draw their coefficients over depth; .json: the numbers."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what a front holds: tasks, method, settings, what it stores, where it comes from."""
    from paretomerge.front.folder import load_front

    opened = load_front(front)
    facts = opened.summary()
    if routing:
        from paretomerge.report.plots import routing_figure
        from paretomerge.report.routing import routing as routing_of
        from paretomerge.weights.writing import write_json

        found = routing_of(opened.pareto_set)
        if routing.suffix == ".json":
            write_json(routing, {**found._asdict(), "weights": found.weights.tolist()})
        else:
            routing_figure(routing, found)
    if as_json:
        show_json(facts)
        return
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    for key, value in facts.items():
        for number, line in enumerate(value.items() if isinstance(value, dict) else [("", value)]):
            name, shown = line
            text = ", ".join(map(str, shown)) or "none" if isinstance(shown, list) else str(shown)
            table.add_row(cell(key.replace("_", " ") if number == 0 else ""), cell(name), cell(text))
    console().print(table)
