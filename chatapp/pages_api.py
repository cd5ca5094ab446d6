"""HTTP routes for what citations point at: pages of documents as pictures, boxes on them, and the original files."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, FastAPI, Query
from fastapi.responses import FileResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from knowledge import DocumentError, KnowledgeBase, PasswordError
from knowledge.context import Context

from .api import refused
from .library import Library

SCALES = {"ge": 0.25, "le": 4.0}  #: dots a point
LONGEST_PASSAGE = 20_000  #: characters
#: Documents are data: nothing in them runs, whatever they are, and nobody guesses what they are.
HARMLESS = {"x-content-type-options": "nosniff", "cache-control": "private, max-age=3600"}
SANDBOX = {"content-security-policy": "sandbox; default-src 'none'"}
PDF = "application/pdf"


class NoSuchDocument(LookupError):
    """The text is one sentence for the user."""


#: The HTTP status of what can go wrong here, beside what can anywhere.
REFUSALS = {NoSuchDocument: 404, PasswordError: 403, DocumentError: 422}


class Where(BaseModel):
    """A passage whose place is asked for."""

    model_config = ConfigDict(extra="forbid")
    text: Annotated[str, Field(max_length=LONGEST_PASSAGE)]


def add_page_routes(app: FastAPI, library: Library) -> None:
    """Adds what is under /documents. A knowledge base is named by its name, which may hold slashes."""
    routes = APIRouter(prefix="/documents")

    @routes.get("/{base:path}/{document}/pages/{page}.png")
    def picture(base: str, document: str, page: int, scale: Annotated[float, Query(**SCALES)] = 2.0) -> Response:
        drawn = found(library, base, document).draw(document, page, scale)
        return Response(drawn, media_type="image/png", headers=HARMLESS)

    @routes.post("/{base:path}/{document}/pages/{page}/boxes")
    def boxes(base: str, document: str, page: int, body: Where) -> dict[str, Any]:
        return {"page": page, "boxes": found(library, base, document).boxes(document, page, body.text)}

    @routes.get("/{base:path}/{document}/original")
    def original(base: str, document: str) -> Response:
        path = found(library, base, document).original(document)
        with path.open("rb") as file:
            is_pdf = file.read(5) == b"%PDF-"
        if is_pdf:
            return FileResponse(path, media_type=PDF, headers={**HARMLESS, "content-disposition": "inline"})
        name = next(each.name for each in library.open(base).documents() if each.id == document)
        named = {"content-disposition": f"attachment; filename*=utf-8''{quote(name, safe='')}"}
        return FileResponse(path, media_type="application/octet-stream", headers={**HARMLESS, **SANDBOX, **named})

    @routes.post("/{base:path}/{document}/context")
    def surroundings(base: str, document: str, body: Where, page: int | None = None) -> Context | None:
        return found(library, base, document).context(document, page, body.text)

    app.include_router(routes)
    for failure, status in REFUSALS.items():
        app.add_exception_handler(failure, partial(refused, status))


def found(library: Library, base: str, document: str) -> KnowledgeBase:
    """The knowledge base, if it has that document. Raises LibraryError and NoSuchDocument."""
    opened = library.open(base)
    if not any(each.id == document for each in opened.documents()):
        raise NoSuchDocument(f"{base} has no such document any more; it may have been removed.")
    return opened
