"""HTTP routes for kept conversations: list, search, change, move, and the turns themselves."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import asdict
from functools import partial
from typing import Any, Literal

from fastapi import APIRouter, BackgroundTasks, FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict
from starlette.concurrency import run_in_threadpool

from .api import NOTHING_FOUND, STATUS, Completion, error_body, line, refused, while_connected
from .digest import document_named
from .library import LibraryError
from .preferences import Asked, Bases, Preferences, Text
from .session import Chat, Reply
from .store import Conversation, StoreError
from .texts import say
from .transfer import LARGEST, TransferError, import_file, to_json, to_markdown
from .tree import NotThere, Tree, TreeError
from .words import in_chinese, whole_characters

#: The HTTP status of what can go wrong here, beside what can anywhere.
REFUSALS = {NotThere: 404, TreeError: 409, TransferError: 400, StoreError: 503}
MEDIA_TYPES = {"json": "application/json", "markdown": "text/markdown; charset=utf-8"}
SUFFIXES = {"json": "json", "markdown": "md"}

Body = ConfigDict(extra="forbid")


class NewConversation(BaseModel):
    model_config = Body
    title: Text = ""
    preferences: Preferences = Preferences()


class Changes(BaseModel):
    model_config = Body
    title: Text | None = None
    preferences: Preferences | None = None


class Choice(BaseModel):
    model_config = Body
    message: int


class Turn(BaseModel):
    """Fields of every turn; the knowledge bases are by default the conversation's."""

    model_config = Body
    stream: bool = False
    knowledge_base: Bases = None


class Send(Turn):
    text: Text


class SumUp(Turn):
    document: Text


class Regenerate(Turn):
    message: int | None = None


class Edit(Turn):
    message: int
    text: Text


class Continue(BaseModel):
    model_config = Body
    stream: bool = False


def add_conversation_routes(app: FastAPI, chat: Chat) -> None:
    """Adds what is under /v1/conversations."""
    routes = APIRouter(prefix="/v1/conversations")
    _add_list(routes, chat)
    _add_one(routes, chat)
    _add_moves(routes, chat)
    _add_turns(routes, chat)
    app.include_router(routes)
    for failure, status in REFUSALS.items():
        app.add_exception_handler(failure, partial(refused, status))


def _add_list(routes: APIRouter, chat: Chat) -> None:
    @routes.get("")
    def list_or_search(q: str = "") -> dict[str, Any]:
        store = chat.store
        if q.strip():
            return {"object": "list", "data": [asdict(hit) for hit in store.search(whole_characters(q))]}
        return {"object": "list", "data": [_head(row) for row in store.conversations()]}

    @routes.post("", status_code=201)
    def create(body: NewConversation) -> dict[str, Any]:
        return _head(chat.store.insert(body.title, body.preferences, Tree()))

    @routes.post("/import", status_code=201)
    async def import_(request: Request) -> dict[str, Any]:
        data = bytearray()
        async for part in request.stream():
            data += part
            if len(data) > LARGEST:
                break  # import_file says it
        return _head(await run_in_threadpool(import_file, chat.store, bytes(data)))


def _add_one(routes: APIRouter, chat: Chat) -> None:
    @routes.get("/{id}")
    def show(id: str) -> dict[str, Any]:
        return {**_head(chat.store.conversation(id)), **_branches(chat.store.tree(id))}

    @routes.patch("/{id}")
    def change(id: str, body: Changes) -> dict[str, Any]:
        chat.store.conversation(id)
        if body.title is not None:
            chat.store.rename(id, body.title)
        if body.preferences is not None:
            chat.store.prefer(id, body.preferences)
        return _head(chat.store.conversation(id))

    @routes.delete("/{id}", status_code=204)
    def delete(id: str) -> None:
        chat.store.conversation(id)
        chat.store.delete(id)

    @routes.post("/{id}/restore")
    def restore(id: str) -> dict[str, Any]:
        chat.store.restore(id)
        return _head(chat.store.conversation(id))

    @routes.get("/{id}/export")
    def export(id: str, format: Literal["json", "markdown"] = "json") -> Response:
        write = {"json": to_json, "markdown": to_markdown}[format]
        content = write(chat.store.conversation(id), chat.store.tree(id))
        named = {"content-disposition": f'attachment; filename="conversation-{id[:8]}.{SUFFIXES[format]}"'}
        return Response(content, media_type=MEDIA_TYPES[format], headers=named)


def _add_moves(routes: APIRouter, chat: Chat) -> None:
    @routes.post("/{id}/undo")
    def undo(id: str) -> dict[str, Any]:
        chat.store.conversation(id)
        return _branches(chat.undo(id))

    @routes.post("/{id}/choose")
    def choose(id: str, body: Choice) -> dict[str, Any]:
        chat.store.conversation(id)
        return _branches(chat.choose(id, body.message))

    @routes.delete("/{id}/messages/{message}")
    def remove(id: str, message: int, behind: BackgroundTasks) -> dict[str, Any]:
        chat.store.conversation(id)
        behind.add_task(chat.engine.forget)  # it waits for a running reply, which this answer need not do
        return _branches(chat.store.remove(id, message))


def _add_turns(routes: APIRouter, chat: Chat) -> None:
    async def turn(
        id: str,
        body: Turn | Continue,
        connection: Request,
        check: Callable[[Tree], object],
        start: Callable[[Asked, threading.Event], Iterator[Reply]],
    ) -> Response:
        base = await run_in_threadpool(_checked, chat, id, getattr(body, "knowledge_base", None), check)
        answer = _Answer(id, chat.engine.status.name)
        replies = start(base, answer.cancel)
        if body.stream:
            lines = while_connected(connection, answer.cancel, answer.lines(replies))
            return StreamingResponse(lines, media_type="text/event-stream")
        async for _ in while_connected(connection, answer.cancel, answer.texts(replies)):
            pass
        return answer.whole()

    @routes.post("/{id}/send", response_model=None)
    async def send(id: str, body: Send, connection: Request) -> Response:
        return await turn(id, body, connection, lambda tree: None, partial(chat.send, id, body.text))

    @routes.post("/{id}/summarise", response_model=None)
    async def sum_up(id: str, body: SumUp, connection: Request) -> Response:
        document = await run_in_threadpool(_document, chat, id, body)
        language = "zh" if in_chinese(body.document) else "en"
        text = say(language, "summarise_asked", name=body.document)
        return await turn(id, body, connection, lambda tree: None, partial(chat.sum_up, id, document, text))

    @routes.post("/{id}/regenerate", response_model=None)
    async def regenerate(id: str, body: Regenerate, connection: Request) -> Response:
        def check(tree: Tree) -> object:
            return tree.question(tree.leaf if body.message is None else body.message)

        return await turn(id, body, connection, check, partial(chat.regenerate, id, body.message))

    @routes.post("/{id}/edit", response_model=None)
    async def edit(id: str, body: Edit, connection: Request) -> Response:
        def check(tree: Tree) -> object:
            return tree.editable(body.message)

        return await turn(id, body, connection, check, partial(chat.edit, id, body.message, body.text))

    @routes.post("/{id}/continue", response_model=None)
    async def continue_(id: str, body: Continue, connection: Request) -> Response:
        return await turn(id, body, connection, Tree.continuable, lambda base, cancel: chat.continue_(id, cancel))


def _checked(chat: Chat, id: str, base: Asked, check: Callable[[Tree], object]) -> Asked:
    """The knowledge bases of a turn. Raises what must be said before a reply begins, while there is a status line."""
    if chat.engine.status.state in ("empty", "failed"):
        chat.engine.loaded  # noqa: B018 - raises, saying why
    base = base or chat.store.conversation(id).preferences.knowledge_base
    check(chat.store.tree(id))
    chat.library.ask(base)
    return base


def _document(chat: Chat, id: str, body: SumUp) -> str:
    """The id of the document that is to be summed up. Raises LibraryError and DigestError."""
    base = body.knowledge_base or chat.store.conversation(id).preferences.knowledge_base
    if not base:
        raise LibraryError("Name the knowledge_base of the document.")
    return document_named(chat.library.ask(base), body.document).id


def _head(conversation: Conversation) -> dict[str, Any]:
    preferences = conversation.preferences.model_dump(exclude_none=True)
    return {**vars(conversation), "preferences": preferences}


def _branches(tree: Tree) -> dict[str, Any]:
    messages = [{"id": node.id, "parent": node.parent, **asdict(node.message)} for node in tree.nodes.values()]
    return {"leaf": tree.leaf, "path": [node.id for node in tree.path], "messages": messages}


class _Answer:
    """What is said of a turn's reply, whole or chunk by chunk, in the form of /v1/chat/completions."""

    def __init__(self, conversation: str, model: str) -> None:
        self.cancel = threading.Event()
        self._form = Completion(model, conversation=conversation)
        self._reply = Reply()

    def texts(self, replies: Iterator[Reply]) -> Generator[str, None, None]:
        """The text that each state of the reply adds. What it had said before it was continued does not come again."""
        given = None
        with closing(replies):
            for self._reply in replies:
                text = self._text()
                given = len(text) if given is None else given
                yield text[given:]
                given = max(given, len(text))

    def _text(self) -> str:
        reply = self._reply
        return NOTHING_FOUND if reply.state == "done" and reply.nothing_found else reply.text

    def whole(self) -> JSONResponse:
        if self._reply.error is not None:
            status = {**STATUS, **REFUSALS}.get(type(self._reply.error), 503)
            return JSONResponse(error_body(self._reply.failure, status), status)
        return JSONResponse(self._form.whole(self._text(), self._reply.end, **self._rest()))

    def lines(self, replies: Iterator[Reply]) -> Generator[str, None, None]:
        """Server-sent events; a failure after the start becomes one too, since the status line is gone by then."""
        yield self._form.first()
        for text in self.texts(replies):
            if text:
                yield self._form.piece(text)
        if self._reply.error is None:
            yield self._form.last(self._reply.end, **self._rest())
        else:
            yield line(error_body(self._reply.failure, 503))
        yield "data: [DONE]\n\n"

    def _rest(self) -> dict[str, Any]:
        return {"message": self._reply.number, "citations": self._reply.sources}
