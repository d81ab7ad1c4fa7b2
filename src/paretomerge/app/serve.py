"""Serving the page: on this machine only, by itself, telling nobody."""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paretomerge.app.guard import LARGEST_FILE, Guard
from paretomerge.errors import UserError
from paretomerge.front.front import Front
from paretomerge.io.signals import handled

if TYPE_CHECKING:
    from fastapi import FastAPI

_QUIET = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
}
# The browser itself then refuses whatever is elsewhere; gradio's pages hold inline scripts and styles, and workers as blobs.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
_HEADERS = (
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


class _OnlyHere:
    """ASGI middleware that adds the headers to every answer; streams pass through untouched."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def sending(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), *_HEADERS]}
            await send(message)

        await self.app(scope, receive, sending if scope["type"] == "http" else send)


def application(front: Front, *, host: str = "127.0.0.1", device: str = "auto", uploads: Path | None = None) -> FastAPI:
    """The page as an ASGI application.

    Args:
        front: the set, with its folder and measured rows.
        host: the address that it will be bound to (see ``guard``).
        device: where the live model runs.
        uploads: the folder for images that are tried; None: gradio's.

    Raises:
        UserError: gradio is not installed.
    """
    if uploads is not None:
        os.environ["GRADIO_TEMP_DIR"] = str(uploads)
    os.environ.update(_QUIET)  # before gradio and huggingface_hub are imported
    try:
        import gradio as gr
    except ImportError as error:
        raise UserError("the page needs gradio: pip install 'paretomerge[app]'") from error
    from fastapi import FastAPI

    from paretomerge.app.live import Live
    from paretomerge.app.page import page
    from paretomerge.app.view import View

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard, host=host)
    app.add_middleware(_OnlyHere)
    system = ["system-ui", "-apple-system", "Segoe UI", "DejaVu Sans", "sans-serif"]
    mono = ["ui-monospace", "DejaVu Sans Mono", "monospace"]
    theme = gr.themes.Default(primary_hue="blue", neutral_hue="slate", font=system, font_mono=mono)  # no fonts of the web
    return gr.mount_gradio_app(
        app, page(View(front), Live(front, device=device)), path="/", server_name=host, footer_links=[], run_history=False,
        ssr_mode=False, enable_monitoring=False, pwa=False, mcp_server=False, show_error=True, max_file_size=LARGEST_FILE,
        theme=theme, css=files("paretomerge.app").joinpath("page.css").read_text(encoding="utf-8"),
        # figures and tables are drawn on white
        js="() => { document.body.classList.remove('dark') }",
    )  # fmt: skip


def free_socket(host: str, port: int) -> socket.socket:
    """A socket that is bound there; port 0: any free one.

    Raises:
        UserError: the port is taken, or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except (OSError, OverflowError) as error:
        bound.close()
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{host}:{port}: cannot listen there ({reason}): choose another --port") from error
    return bound


def serve(front: Front, *, host: str, port: int, device: str, ready: Callable[[str], None]) -> None:
    """Serve until Ctrl-C; ``ready`` is told the address."""
    bound = free_socket(host, port)
    uploads = Path(tempfile.mkdtemp(prefix="paretomerge-uploads-", dir=os.environ.get("GRADIO_TEMP_DIR")))
    atexit.register(shutil.rmtree, uploads, ignore_errors=True)
    app = application(front, host=host, device=device, uploads=uploads)
    import uvicorn

    name = f"[{host}]" if ":" in host else host
    address = f"http://{name}:{bound.getsockname()[1]}/"

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets=sockets)
            ready(address)

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            await super().shutdown(sockets=sockets)
            shutil.rmtree(uploads, ignore_errors=True)  # here: the signal that ends the server then ends the program

        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            """SIGHUP (a terminal that is closed) ends the server as SIGTERM does; all are raised again when it has ended."""
            with super().capture_signals(), handled(self.handle_exit):
                yield

    server = Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
    # the streams of pages that are still open are cut off at the end, which is no error
    logging.getLogger("uvicorn.error").addFilter(lambda record: not server.should_exit)
    server.run(sockets=[bound])
