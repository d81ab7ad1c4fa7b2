"""``paretomerge methods``: the methods and their options."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from paretomerge.cli.flags import (
    Json,
)
from paretomerge.cli.terminal import console, show_json


def methods(
    name: Annotated[str | None, typer.Argument(help="One method, with its options.")] = None, as_json: Json = False
) -> None:
    """List the methods: what each needs and stores, and its paper; or one with its options, their defaults and meanings."""
    from paretomerge.methods import describe_methods

    rows = describe_methods(name)
    if as_json:
        show_json(rows)
        return
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    to = console(width=None if sys.stdout.isatty() else 160)
    if name is None:
        table = Table("method", "command", "needs, beside the models", "stores", "paper", box=SIMPLE_HEAD, pad_edge=False)
        for row in rows:
            table.add_row(*(row[key] for key in ("name", "command", "needs", "stores", "paper")))
        to.print(table)
        to.print("Options of one: paretomerge methods NAME")
        return
    for row in rows:
        command, *rest = row["command"].split(" ", 1)
        with_data = {"--data": " --data TASK=PATH …", "by evaluations": " (--data TASK=PATH … | --evaluator COMMAND)"}
        to.print(f"paretomerge {command} --method {row['name']}{with_data[rest[0]] if rest else ''}", style="bold")
        to.print(row["summary"])
        table = Table.grid(padding=(0, 2))
        for key in ("needs", "stores", "paper"):
            table.add_row(key, row[key])
        to.print(table)
        for heading, options in {"": row["options"], **row.get("evaluators", {})}.items():
            if heading:
                to.print(f"and with {heading}")
            table = Table.grid(padding=(0, 2))
            for option, facts in options.items():
                table.add_row(f"  {option}", str(facts["default"]), facts["meaning"])
            to.print(table)
        to.print()
