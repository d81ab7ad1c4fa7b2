"""``paretomerge report``: a front in one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from paretomerge.cli.flags import Json, Quiet
from paretomerge.cli.terminal import show, show_json
from paretomerge.errors import UserError


def report(
    front: Annotated[Path, typer.Argument(help="A front's folder.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The HTML file to write.")] = Path("report.html"),
    run_folder: Annotated[
        Path | None, typer.Option("--run", help="The folder of the fit's log (default: FRONT.run, if there is one).")
    ] = None,
    reference: Annotated[
        list[str] | None,
        typer.Option("--reference", metavar="TASK=VALUE", help="Of the hypervolume (default: accuracy 0, else the worst)."),
    ] = None,
    paper: Annotated[
        str | None,
        typer.Option("--paper", metavar="TABLE", help="A published table to show beside, such as pareto-merging/table-2."),
    ] = None,
    figures: Annotated[
        Path | None, typer.Option("--figures", metavar="DIR", help="Write the figures as PNG and PDF, too, for papers.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write one HTML file that says all about a front: tables, figures, provenance; it opens without a network."""
    from paretomerge.front.folder import load_front
    from paretomerge.recipes.flag_values import parse_numbers
    from paretomerge.report.page import gather, html
    from paretomerge.weights.writing import write_text

    if output.exists() and not overwrite:
        raise UserError(f"{output}: exists already: choose another name or add --overwrite")
    numbers = parse_numbers(reference or [], "--reference")
    content = gather(load_front(front), run=run_folder, reference=numbers, paper=paper)
    write_text(output, html(content))
    written = [output]
    if figures:
        from paretomerge.report.paper import write_figures

        written += write_figures(content, figures)
    sizes = {str(file): file.stat().st_size for file in written}
    if as_json:
        show_json({"output": str(output), "bytes": sizes})
    elif not quiet:
        for file, size in sizes.items():
            show(f"{file}: {size / 1e6:.2f} MB")
