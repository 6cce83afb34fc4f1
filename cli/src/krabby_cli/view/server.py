"""The page and its WebSocket over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from krabby_cli.view.access import Tokens, host_allowed, origin_allowed
from krabby_cli.view.hub import Client, Hub
from krabby_cli.view.messages import MAX_BYTES, Token, parse

__all__ = ["PageServer", "application", "listening"]

log = structlog.get_logger(__name__)

_PAGE: Final = Path(__file__).with_name("page")
_TYPES: Final = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
    ".txt": "text/plain",
}
_FILES: Final = {
    str(path.relative_to(_PAGE)): path
    for path in _PAGE.rglob("*")
    if path.name.removesuffix(".gz").endswith(tuple(_TYPES))
}
_HEADERS: Final = {
    # Scripts and connections of this server only, in no other page's frame, without a referrer.
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; "
    "style-src 'self' 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
_TOKEN_S: Final = 10.0
"""A page has this long to show its secret."""
_MOST_PAGES: Final = 16
_MOST_PER_S: Final = 200
"""Messages of a page; more end its connection."""
_BAD_TOKEN, _TOO_LATE, _TOO_MANY, _BAD_MESSAGE = 4401, 4408, 4429, 4400
"""Why a connection is closed. The page connects again, except after `_BAD_TOKEN`."""
_POLL_S: Final = 0.1


def listening(address: str, port: int) -> socket.socket:
    """A socket on a port; raises OSError. Port 0: any free one."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen()  # a browser that opens the address before the server runs waits a moment
    except OSError:
        listener.close()
        raise
    return listener


class _HostCheck:
    """Answers requests only that name this server, pages of other origins not at all."""

    def __init__(self, app: ASGIApp, *, loopback: bool, names: frozenset[str]) -> None:
        self._app = app
        self._loopback = loopback
        self._names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        host, origin = headers.get("host"), headers.get("origin")
        if host_allowed(host, loopback=self._loopback, names=self._names) and origin_allowed(
            origin, host
        ):
            await self._app(scope, receive, send)
            return
        log.warning("request refused", host=host, origin=origin)
        refusal = PlainTextResponse(
            "This server is not called so, or another site's page asked. Open the address that "
            "`krabby view` printed; a name of this machine has to be given with --host-name.\n",
            status_code=403,
        )
        if scope["type"] == "http":
            await refusal(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008, "reason": "refused"})


def application(
    hub: Hub, tokens: Tokens, *, loopback: bool, names: frozenset[str], failed: Callable[[], None]
) -> ASGIApp:
    """The ASGI application.

    Args:
        hub: What the pages show.
        tokens: What they have to know.
        loopback: Whether the server listens on the loopback interface only.
        names: Further names of the server.
        failed: Called when a loop of the hub has ended, which is a fault.
    """

    @contextlib.asynccontextmanager
    async def running(_: Starlette) -> AsyncIterator[None]:
        def ended(task: asyncio.Task[None]) -> None:
            if not task.cancelled():
                log.error("a loop of the view has ended", exc_info=task.exception())
                failed()

        tasks = [asyncio.create_task(loop) for loop in (hub.show(), hub.drive())]
        for task in tasks[: 1 if hub.source.recorded else 2]:
            task.add_done_callback(ended)
        yield
        for task in tasks:
            task.cancel()

    async def talk(websocket: WebSocket) -> None:
        await _talk(websocket, hub, tokens)

    routes = [
        Route("/", _file),
        Route("/{name:path}", _file),
        WebSocketRoute("/socket", talk),
    ]
    app = Starlette(routes=routes, lifespan=running)
    return _HostCheck(app, loopback=loopback, names=names)


async def _file(request: Request) -> Response:
    """A file of the page; what is stored compressed is sent so: every browser unpacks it."""
    name = request.path_params.get("name") or "index.html"
    path = _FILES.get(name) or _FILES.get(f"{name}.gz")
    if path is None:
        return PlainTextResponse("there is no such page\n", status_code=404, headers=_HEADERS)
    packed = {"Content-Encoding": "gzip"} if path.suffix == ".gz" else {}
    media_type = _TYPES[Path(name).suffix]
    return FileResponse(path, headers={**_HEADERS, **packed}, media_type=media_type)


async def _talk(websocket: WebSocket, hub: Hub, tokens: Tokens) -> None:
    """One page from its secret to its end."""
    if len(hub.clients) >= _MOST_PAGES:
        await websocket.close(1013)
        return
    await websocket.accept()
    client: Client | None = None
    sending: asyncio.Task[None] | None = None
    try:
        async with asyncio.timeout(_TOKEN_S):
            first = parse(await websocket.receive_text())
        role = tokens.role(first.token) if isinstance(first, Token) else None
        if role is None:
            log.warning("a page without a valid secret was refused")
            await websocket.close(_BAD_TOKEN)
            return
        client = hub.join(role, websocket)
        sending = asyncio.create_task(client.send())
        await _listen(websocket, hub, client)
    except TimeoutError:
        await websocket.close(_TOO_LATE)
    except (msgspec.DecodeError, KeyError):  # a KeyError: bytes in place of text
        await websocket.close(_BAD_MESSAGE)
    except WebSocketDisconnect:
        pass
    finally:
        if sending is not None:
            sending.cancel()
            # A connection that breaks while something is sent ends the task with that error.
            await asyncio.gather(sending, return_exceptions=True)
        if client is not None:
            hub.leave(client)


async def _listen(websocket: WebSocket, hub: Hub, client: Client) -> None:
    clock = asyncio.get_running_loop().time
    began_s, count = clock(), 0
    while True:
        text = await websocket.receive_text()
        now_s = clock()
        if now_s - began_s > 1.0:
            began_s, count = now_s, 0
        count += 1
        if count > _MOST_PER_S:
            await websocket.close(_TOO_MANY)
            return
        hub.hear(client, parse(text))


class PageServer(uvicorn.Server):
    """Serves until it is told to stop; signals are the caller's."""

    def __init__(self, app: ASGIApp, stopping: Callable[[], bool]) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                lifespan="on",
                ws="websockets-sansio",
                ws_max_size=MAX_BYTES,
                ws_ping_interval=5.0,
                ws_ping_timeout=15.0,
                ws_per_message_deflate=False,
                limit_concurrency=4 * _MOST_PAGES,
                timeout_keep_alive=5,
                timeout_graceful_shutdown=1,
            )
        )
        self._stopping = stopping

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        """Leave signals to `krabby_cli.signals`."""
        yield

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: whether to end."""
        self.should_exit = self.should_exit or self._stopping()
        return await super().on_tick(counter)
