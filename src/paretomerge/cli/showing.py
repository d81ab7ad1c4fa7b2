"""The commands that show a front to people; cli.py registers them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from paretomerge.cli.flags import Json, Quiet
from paretomerge.cli.terminal import say, show, show_json
from paretomerge.errors import UserError


def explore(
    front: Annotated[Path, typer.Argument(help="A front's folder.")],
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any free one.")] = 7860,
    host: Annotated[
        str, typer.Option("--host", help="The address to listen at; any but a local one lets others in, without a password.")
    ] = "127.0.0.1",
    device: Annotated[str, typer.Option("--device", help="Where the live model runs.")] = "auto",
    browser: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in a browser.")] = False,
) -> None:
    """Look at a front in the browser: move the preference, see what it costs, try the model, export it."""
    from importlib.util import find_spec

    if find_spec("gradio") is None:
        raise UserError("explore needs gradio: pip install 'paretomerge[app]'")
    from paretomerge.app.guard import LOCAL
    from paretomerge.app.serve import serve
    from paretomerge.front.folder import load_front

    opened = load_front(front)

    def ready(address: str) -> None:
        if host not in LOCAL:
            say(f"warning: {host} is not local: whoever reaches this machine can use the page and export")
        show(f"{address}    (Ctrl-C ends it)")
        if browser:
            import webbrowser

            webbrowser.open(address)

    serve(opened, host=host, port=port, device=device, ready=ready)


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
    from paretomerge.recipes.recipe import parse_numbers
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
