"""``paretomerge explore``: a front in the browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from paretomerge.cli.terminal import say, show
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
