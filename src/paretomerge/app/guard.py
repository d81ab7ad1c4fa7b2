"""Who may ask the page's server for anything: the page itself, in this machine's browser, in requests of a decent size.

Any web page that is open in the same browser can send requests here, and read the answers if it reaches the server by a name
of its own (DNS rebinding). Browsers say where a request comes from (``Origin``, ``Sec-Fetch-Site``) and for which name it is
(``Host``); no page can change these headers.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

LOCAL = ("127.0.0.1", "localhost", "::1")
LARGEST_FILE = 20 * 2**20
"""Bytes of an upload."""
_LARGEST_REQUEST = LARGEST_FILE + 2**20

_TOO_LARGE = 413, f"at most {LARGEST_FILE >> 20} MB"

_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]


class _TooLarge(Exception):
    """More was sent than is taken."""


class Guard:
    """ASGI middleware that answers strangers itself: 400 another host's name, 403 another page, 413 too large a request.

    Args:
        app: what it guards.
        host: the address that the server is bound to. A local one answers to local names only; another to addresses, to this
            machine's names and to the one that was given.
    """

    def __init__(self, app: Callable[[_Message, _Receive, _Send], Awaitable[None]], host: str) -> None:
        self._app = app
        self._local = host in LOCAL
        self._names = {*LOCAL, host.lower(), *(() if self._local else (socket.gethostname().lower(), socket.getfqdn().lower()))}

    async def __call__(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers: dict[str, str] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.decode("latin-1"), value.decode("latin-1"))
        if refused := self._refused(scope, headers):
            await _answer(scope, send, *refused)
            return
        left = _LARGEST_REQUEST
        answered = False

        async def counted() -> _Message:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:  # its length was not said before
                raise _TooLarge
            return message

        async def sending(message: _Message) -> None:
            nonlocal answered
            if left >= 0:  # otherwise it is the news that the application has failed
                answered = True
                await send(message)

        try:
            await self._app(scope, counted, sending)
        except _TooLarge:
            if not answered:
                await _answer(scope, send, *_TOO_LARGE)

    def _refused(self, scope: _Message, headers: dict[str, str]) -> tuple[int, str] | None:
        """Status and reason, if the request is not answered."""
        host = headers.get("host", "")
        if not self._known(_name(host)):
            return 400, "this page has another address"
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "same-origin")
        visit = scope.get("method") == "GET" and headers.get("sec-fetch-mode") == "navigate"  # a link to the page is none
        if site not in ("same-origin", "none") and not visit:
            return 403, "only the page itself may ask"
        # a page without referrers is "null" in some requests to itself, and the browser says so
        itself = origin == "null" and headers.get("sec-fetch-site") == "same-origin"
        if origin is not None and not itself and origin.lower().partition("://")[2] != host.lower():
            return 403, "only the page itself may ask"
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit() and int(length[:20]) <= _LARGEST_REQUEST):
            return _TOO_LARGE
        return None

    def _known(self, name: str) -> bool:
        if name in self._names:
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return address.is_loopback or not self._local  # an address cannot be made to lead elsewhere, as a name can


def _name(host: str) -> str:
    """Of a Host header, without the port and without brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()


async def _answer(scope: _Message, send: _Send, status: int, reason: str) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": reason})
        return
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": f"{reason}\n".encode()})
