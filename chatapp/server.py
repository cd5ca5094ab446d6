"""The web server: our routes, the page, and the checks that keep other sites out."""

from __future__ import annotations

import socket
from collections.abc import Callable
from urllib.parse import urlsplit

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from .api import add_routes
from .session import Chat
from .settings import Settings, SettingsError

LOOPBACK = ["127.0.0.1", "localhost", "[::1]"]
PORTS_TRIED = 20


class SameOrigin:
    """Refuses requests that a page of another site made: their Origin is not the host that they were sent to.

    Together with the check of Host this keeps foreign pages from reading or uploading anything (DNS rebinding, CSRF).
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope) if scope["type"] in ("http", "websocket") else Headers()
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != headers.get("host"):
            await PlainTextResponse("This page may not talk to Quatrain.", status_code=403)(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def build(chat: Chat, mount_page: Callable[[FastAPI], FastAPI]) -> FastAPI:
    """The whole application; `mount_page` adds the interface, behind the same checks."""
    app = FastAPI(title="Quatrain", docs_url=None, redoc_url=None, openapi_url=None)
    add_routes(app, chat.engine, chat.library)
    app = mount_page(app)
    app.add_middleware(SameOrigin)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=LOOPBACK)
    return app


def free_port(settings: Settings) -> int:
    """The port asked for, or the next one that is free. Raises SettingsError if none near it is."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    for port in range(settings.port, min(settings.port + PORTS_TRIED, 65536)):
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((settings.host, port))
            except OSError:
                continue
        return port
    raise SettingsError(f"Port {settings.port} and the {PORTS_TRIED - 1} after it are busy; give another with --port.")
