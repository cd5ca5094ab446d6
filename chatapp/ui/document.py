"""The HTML document around the page: its language and theme from the first paint on, and what makes it installable.

Gradio writes one document for everybody. It is changed on its way out, so that there is no flash of another theme, and
the texts that Gradio translates in the browser are in the language that the server speaks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fastapi import FastAPI, Request, Response
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import FileResponse, JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..texts import say
from . import icons

WEB = Path(__file__).with_name("web")
#: The form of Chinese characters follows from it where no font is named.
TAGS = {"en": "en", "zh": "zh-CN"}
#: Background and text before the style sheets are there: variables of Gradio's document.
PAINT = {
    "light": "background: var(--bg); color: var(--col)",
    "dark": "background: var(--bg-dark); color: var(--col-dark)",
}
COLOURS = {"light": "#ffffff", "dark": "#0a0f1e"}
SIZES = (192, 512)


@dataclass(frozen=True)
class Look:
    """`language` is one of the catalogue, `theme` "auto", "light" or "dark"."""

    language: str
    theme: str


class Document:
    """Passes on everything but the document, which gets its look; `look` is given the Accept-Language header."""

    def __init__(self, app: ASGIApp, look: Callable[[str], Look]) -> None:
        self._app = app
        self._look = look

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or (scope["method"], scope["path"]) != ("GET", "/"):
            await self._app(scope, receive, send)
            return
        look = self._look(Headers(scope=scope).get("accept-language", ""))
        # Not compressed: it is to be read here.
        headers = [(name, value) for name, value in scope["headers"] if name != b"accept-encoding"]
        await self._app({**scope, "headers": headers}, receive, _dressing(send, look))


def _dressing(send: Send, look: Look) -> Send:
    start: Message = {}
    body = bytearray()

    async def sending(message: Message) -> None:
        nonlocal start
        if message["type"] == "http.response.start":
            start = message
            return
        if message["type"] != "http.response.body":  # of an extension that the server has
            await send(message)
            return
        body.extend(message.get("body", b""))
        if message.get("more_body"):
            return
        headers = MutableHeaders(scope=start)
        html = headers.get("content-type", "").startswith("text/html")
        changed = dressed(body.decode(), look).encode() if html else bytes(body)
        headers["content-length"] = str(len(changed))
        headers["cache-control"] = "no-cache"
        await send(start)
        await send({"type": "http.response.body", "body": changed})

    return sending


def dressed(html: str, look: Look) -> str:
    """Gradio's document with its look."""
    html = re.sub(r'<html(\s+)lang="[^"]*"', rf'<html\1lang="{TAGS[look.language]}"', html, count=1)
    html = html.replace("</head>", f"{_head(look)}</head>", 1)
    if look.theme != "auto":
        html = html.replace("<gradio-app", f'<gradio-app theme_mode="{look.theme}"', 1)
    return html.replace("<body", '<body class="dark"', 1) if look.theme == "dark" else html


def _head(look: Look) -> str:
    tag = json.dumps(TAGS[look.language])
    speaking = (
        f'Object.defineProperty(navigator, "language", {{ get: () => {tag} }});'
        f'Object.defineProperty(navigator, "languages", {{ get: () => [{tag}] }});'
    )
    # Once the page is there: what it needs itself comes first.
    registering = 'addEventListener("load", () => navigator.serviceWorker?.register("/sw.js").catch(() => {}));'
    return (
        f"<title>Quatrain</title><script>{speaking}{registering}</script>{_paint(look.theme)}"
        '<link rel="icon" href="/icons/quatrain.svg" type="image/svg+xml">'
        '<link rel="apple-touch-icon" href="/icons/full-192.png">'
    )


def _paint(theme: str) -> str:
    if theme != "auto":
        style = f":root {{ color-scheme: {theme} }} body {{ {PAINT[theme]} }}"
        return f'<style>{style}</style><meta name="theme-color" content="{COLOURS[theme]}">'
    colours = "".join(
        f'<meta name="theme-color" content="{colour}" media="(prefers-color-scheme: {name})">'
        for name, colour in COLOURS.items()
    )
    return f"<style>:root {{ color-scheme: light dark }}</style>{colours}"


def add_document_routes(app: FastAPI, look: Callable[[str], Look]) -> None:
    """Adds the manifest, the icons, and the service worker with the page that it shows when the app is not running."""

    @app.get("/manifest.json")
    def manifest(request: Request) -> JSONResponse:
        language = look(request.headers.get("accept-language", "")).language
        return JSONResponse(manifest_of(language), media_type="application/manifest+json")

    @app.get("/icons/quatrain.svg")
    def drawing() -> Response:
        return Response(icons.svg(), media_type="image/svg+xml")

    @app.get("/favicon.ico")
    def favicon() -> Response:
        return Response(icons.png(48), media_type="image/png")

    for size in SIZES:
        for name, rounded in (("icon", True), ("full", False)):
            app.add_api_route(f"/icons/{name}-{size}.png", _picture(size, rounded))

    @app.get("/sw.js")
    def worker() -> FileResponse:
        return FileResponse(WEB / "sw.js", media_type="text/javascript", headers={"cache-control": "no-cache"})

    @app.get("/offline.html")
    def offline() -> FileResponse:
        return FileResponse(WEB / "offline.html", media_type="text/html")


def manifest_of(language: str) -> dict[str, object]:
    """The web app manifest (W3C)."""
    pictures = [
        {"src": f"/icons/{name}-{size}.png", "sizes": f"{size}x{size}", "type": "image/png", "purpose": purpose}
        for name, purpose in (("icon", "any"), ("full", "maskable"))
        for size in SIZES
    ]
    drawing = {"src": "/icons/quatrain.svg", "sizes": "any", "type": "image/svg+xml", "purpose": "any"}
    return {
        "id": "/",
        "name": "Quatrain",
        "short_name": "Quatrain",
        "description": say(language, "app_description"),
        "lang": TAGS[language],
        "start_url": "/",
        "scope": "/",
        "display": "standalone",
        "theme_color": icons.GROUND,
        "background_color": COLOURS["light"],
        "icons": [*pictures, drawing],
    }


def _picture(size: int, rounded: bool) -> Callable[[], Response]:
    def picture() -> Response:
        return Response(icons.png(size, rounded), media_type="image/png")

    return picture
