"""The web server: our routes, the page, and the checks that keep other sites out."""

from __future__ import annotations

import asyncio
import errno
import math
import re
import socket
from collections.abc import Callable
from http import HTTPStatus
from urllib.parse import SplitResult, urlsplit

from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .api import add_routes
from .conversations_api import add_conversation_routes
from .pages_api import add_page_routes
from .session import Chat
from .settings import Settings, SettingsError, is_loopback

PORTS_TRIED = 20
STREAM_END = 0.15  #: seconds in which a page surely hears that its stream of results has ended

#: A reply is written after reading the user's documents, and these may hold orders. An image at another site, or a form
#: to it, would carry what it says away; so the page loads from here only, and no other page may frame it.
POLICY = "; ".join(
    [
        "img-src 'self' data: blob:",
        "media-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self'",
        "frame-src 'self'",
        "form-action 'self'",
        "object-src 'none'",
        "base-uri 'self'",
        "frame-ancestors 'none'",
    ]
)


#: A file with a hash of its content in its name.
HASHED = re.compile(r"/assets/[\w.-]+-[\w-]{8,9}\.(js|css|woff2?|ttf)$")


class ThisMachineOnly:
    """Lets in what was sent to a name of this machine, and no page of another site.

    A page elsewhere that made its own name point here (DNS rebinding) sends a foreign Host, and one that posts here
    (CSRF) a foreign Origin: together the checks keep such pages from reading or uploading anything.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = _refusal(Headers(scope=scope)) if scope["type"] in ("http", "websocket") else None
        await (refusal or self._app)(scope, receive, _with_policy(send))


class UnhurriedEvents:
    """Answers a new event of the page only when the page knows that its stream of results has ended.

    Gradio's client opens a stream where none is open, and the server ends it when no event is pending. An event that
    arrives just then would find the stream open for the client and closed for the server, and never show its result.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._closed = -math.inf  # when the last stream ended, in the event loop's time

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        wrapper = {"/gradio_api/queue/data": self._noting, "/gradio_api/queue/join": self._waiting}.get(
            scope.get("path", "")
        )
        await self._app(scope, receive, wrapper(send) if wrapper else send)

    def _noting(self, send: Send) -> Send:
        async def sending(message: Message) -> None:
            if b'"close_stream"' in message.get("body", b""):
                self._closed = asyncio.get_running_loop().time()
            await send(message)

        return sending

    def _waiting(self, send: Send) -> Send:
        async def sending(message: Message) -> None:
            await asyncio.sleep(self._closed + STREAM_END - asyncio.get_running_loop().time())
            await send(message)

        return sending


class KeptAssets:
    """Lets browsers keep the files that the page is made of, about a hundred: their names change with their content."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == HTTPStatus.OK:
                MutableHeaders(scope=message)["cache-control"] = "private, max-age=31536000, immutable"
            await send(message)

        await self._app(scope, receive, sending if HASHED.match(scope.get("path", "")) else send)


def _with_policy(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            stricter = headers.get("content-security-policy")
            headers["content-security-policy"] = f"{stricter}; {POLICY}" if stricter else POLICY
        await send(message)

    return sending


def _refusal(headers: Headers) -> PlainTextResponse | None:
    host, origins = headers.get("host", ""), headers.getlist("origin")
    if not is_loopback(_split(host).hostname or ""):
        return PlainTextResponse("Quatrain answers to the names of this machine only.", status_code=400)
    if any(_split(origin).netloc != host for origin in origins):
        return PlainTextResponse("This page may not talk to Quatrain.", status_code=403)
    return None


def _split(address: str) -> SplitResult:
    """The parts of an origin or a host; empty ones for what is neither."""
    try:
        return urlsplit(address if "://" in address else f"//{address}")
    except ValueError:
        return urlsplit("")


def build(chat: Chat, mount_page: Callable[[FastAPI], FastAPI]) -> FastAPI:
    """The whole application; `mount_page` adds the interface, behind the same checks."""
    app = FastAPI(title="Quatrain", docs_url=None, redoc_url=None, openapi_url=None)
    add_routes(app, chat.engine, chat.library)
    add_conversation_routes(app, chat)
    add_page_routes(app, chat.library)
    app = mount_page(app)
    app.add_middleware(UnhurriedEvents)
    app.add_middleware(KeptAssets)
    app.add_middleware(ThisMachineOnly)
    return app


def listen(settings: Settings) -> socket.socket:
    """A listening socket on the port asked for, or on the next one that is free. Raises SettingsError if none is.

    The socket is kept: a port that was only looked at could be taken while the page is being built.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    for port in range(settings.port, min(settings.port + PORTS_TRIED, 65536)):
        try:
            return socket.create_server((settings.host, port), family=family)
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL or isinstance(error, socket.gaierror):
                raise SettingsError(f"--host {settings.host} is no address of this machine; use 127.0.0.1.") from error
    raise SettingsError(
        f"Port {settings.port} and the {PORTS_TRIED - 1} after it can't be had; give another with --port."
    )


def address(host: str, port: int) -> str:
    """What to open in a browser."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
