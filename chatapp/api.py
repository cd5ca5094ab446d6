"""HTTP routes beside the page: health, and chat in the form of OpenAI's API."""

from __future__ import annotations

import asyncio
import json
import math
import threading
import time
import uuid
from collections.abc import AsyncIterator, Generator, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import Any, Literal

import anyio
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import AliasChoices, BaseModel, Field
from starlette.concurrency import run_in_threadpool

from knowledge import KnowledgeBaseError, Passage
from models import End, Timings, Token

from .answering import Found, Mode, Question, Quoted, answer, passage_data, quote_data
from .checkpoints import FetchError
from .conversation import REPLY, Plan, QuestionTooLong, Turn
from .digest import DigestError, document_named
from .engine import Cancelled, Engine, EngineError
from .library import Library, LibraryError
from .preferences import Bases, Followups, SamplingChoice, Text
from .recall import Recall

NOTHING_FOUND = "The documents do not say."


#: The HTTP status of what can go wrong.
STATUS: Mapping[type[Exception], int] = {
    QuestionTooLong: 400,
    LibraryError: 404,
    DigestError: 404,
    EngineError: 503,
    FetchError: 503,
    KnowledgeBaseError: 503,
}
FAILURES = tuple(STATUS)
CLIENT_GONE = 499


class ChatMessage(BaseModel):
    role: Literal["system", "user", "assistant"]
    content: Text


class ChatRequest(SamplingChoice):
    """The part of OpenAI's request that is understood; other fields are ignored."""

    messages: list[ChatMessage] = Field(min_length=1)
    stream: bool = False
    knowledge_base: Bases = None
    mode: Mode = "documents"
    followups: Followups = "rule"
    summarise: Text | None = None  #: a document of the knowledge base, by its name: the messages are not told then
    max_tokens: int | None = Field(None, ge=1, validation_alias=AliasChoices("max_tokens", "max_completion_tokens"))


def add_routes(app: FastAPI, engine: Engine, library: Library) -> None:
    """Adds GET /health and POST /v1/chat/completions."""
    recall = Recall()

    @app.get("/health")
    async def health() -> dict[str, Any]:
        status = engine.status
        return {"status": "ok", "model": {"name": status.name, "state": status.state, "message": status.message}}

    @app.post("/v1/chat/completions", response_model=None)
    async def chat(request: ChatRequest, connection: Request) -> StreamingResponse | JSONResponse:
        if engine.status.state in ("empty", "failed"):
            engine.loaded  # noqa: B018 - raises, saying why
        question = await run_in_threadpool(_question, request, library, recall)  # may open a knowledge base
        reply = _Reply(engine, question, recall)
        events = answer(engine, question, reply.cancel)
        if request.stream:
            lines = while_connected(connection, reply.cancel, reply.lines(events))
            return StreamingResponse(lines, media_type="text/event-stream")
        async for _ in while_connected(connection, reply.cancel, reply.texts(events)):
            pass
        return JSONResponse(reply.whole())

    for failure, status in STATUS.items():
        app.add_exception_handler(failure, partial(refused, status))
    app.add_exception_handler(Cancelled, partial(refused, CLIENT_GONE))
    app.add_exception_handler(RequestValidationError, _invalid)


async def refused(status: int, _: Request, error: Exception) -> JSONResponse:
    return JSONResponse(error_body(str(error), status), status)


async def _invalid(_: Request, error: RequestValidationError) -> JSONResponse:
    first, *_ = error.errors()
    place = ".".join(str(part) for part in first["loc"][1:])
    return JSONResponse(error_body(f"{place}: {first['msg']}" if place else first["msg"], 422), 422)


def _question(request: ChatRequest, library: Library, recall: Recall) -> Question:
    *earlier, last = request.messages
    if last.role != "user":
        raise RequestValidationError([{"loc": ("body", "messages"), "msg": "The last message must be the user's."}])
    system = "\n\n".join(message.content for message in earlier if message.role == "system") or None
    said = [Turn(message.role, message.content) for message in earlier if message.role != "system"]
    history = recall.completed(said)
    given = next((turn.passages for turn in reversed(history) if turn.passages), ())
    base = library.ask(request.knowledge_base)
    if request.summarise is not None and base is None:
        raise RequestValidationError([{"loc": ("body", "summarise"), "msg": "Name its knowledge_base as well."}])
    return Question(
        last.content,
        history,
        base,
        system,
        request.options(),
        request.max_tokens or REPLY,
        mode=request.mode,
        followups=request.followups,
        document=None if request.summarise is None else document_named(base, request.summarise).id,
        cited=tuple(dict.fromkeys(passage.name for passage in given)),
    )


def error_body(message: str, status: int) -> dict[str, Any]:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


async def while_connected(
    connection: Request, cancel: threading.Event, steps: Generator[str, None, None]
) -> AsyncIterator[str]:
    """Blocking steps, cancelled as soon as the client goes away: a model may read for minutes and send nothing."""
    # A thread for each request: of a bounded number those that wait would take all, and the running one had none.
    threads = anyio.CapacityLimiter(math.inf)
    watcher = asyncio.create_task(_cancel_when_gone(connection, cancel))
    try:
        while (step := await anyio.to_thread.run_sync(next, steps, None, limiter=threads)) is not None:
            yield step
    finally:
        watcher.cancel()
        cancel.set()
        steps.close()


async def _cancel_when_gone(connection: Request, cancel: threading.Event) -> None:
    while (await connection.receive())["type"] != "http.disconnect":
        pass
    cancel.set()


class Completion:
    """The form of OpenAI's answers; `more` are fields of ours. `end` is how generation ended; None if never begun."""

    def __init__(self, model: str, **more: Any) -> None:
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model, **more}

    def whole(self, text: str, end: End | None, **more: Any) -> dict[str, Any]:
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": _finish_reason(end)}
        return {**self._head, "object": "chat.completion", "choices": [choice], "usage": _usage(end), **more}

    def first(self) -> str:
        return self._chunk({"role": "assistant", "content": ""})

    def piece(self, text: str) -> str:
        return self._chunk({"content": text})

    def last(self, end: End | None, **more: Any) -> str:
        return self._chunk({}, _finish_reason(end), usage=_usage(end), **more)

    def _chunk(self, delta: dict[str, str], reason: str | None = None, **more: Any) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        return line({**self._head, "object": "chat.completion.chunk", "choices": [choice], **more})


def _finish_reason(end: End | None) -> str:
    return "stop" if end is None or end.reason in ("stop", "loop") else "length"


def _usage(end: End | None) -> dict[str, Any]:
    timings = end.timings if end else Timings(0, 0, 0.0, 0, 0.0)
    return {
        "prompt_tokens": timings.prompt_tokens,
        "completion_tokens": timings.tokens,
        "total_tokens": timings.prompt_tokens + timings.tokens,
        "prompt_tokens_details": {"cached_tokens": timings.reused},
    }


class _Reply:
    """What is said of one reply, whole or chunk by chunk."""

    def __init__(self, engine: Engine, question: Question, recall: Recall) -> None:
        self.cancel = threading.Event()
        self._engine, self._question, self._recall = engine, question, recall
        self._form = Completion(engine.status.name)
        self._writer = ""
        self._ids: list[int] = []
        self._text: list[str] = []
        self._passages: Sequence[Passage] = ()
        self._ledger: dict[str, Any] | None = None
        self._quote: dict[str, Any] | None = None
        self._searched_for: str | None = None
        self._from_documents = False
        self._end: End | None = None

    def texts(self, events: Generator[Any, None, None]) -> Generator[str, None, None]:
        """The text that each event adds, which is remembered too."""
        with closing(events):
            for event in events:
                self._text.append(self._note(event))
                yield self._text[-1]

    def whole(self) -> dict[str, Any]:
        return self._form.whole("".join(self._text), self._end, **self._evidence())

    def lines(self, events: Generator[Any, None, None]) -> Generator[str, None, None]:
        """Server-sent events; an error after the start becomes one too, since the status line is gone by then."""
        try:
            yield self._form.first()
            for text in self.texts(events):
                if text:
                    yield self._form.piece(text)
            yield self._form.last(self._end, **self._evidence())
        except FAILURES as error:
            yield line(error_body(str(error), STATUS[type(error)]))
        except Cancelled:
            return  # nobody is there to be told
        yield "data: [DONE]\n\n"

    def _note(self, event: Any) -> str:
        """Remembers what an event says and returns the text that it adds."""
        match event:
            case Found(passages=passages, answered=answered, searched_for=searched_for, chat=chat):
                self._passages, self._searched_for = passages, searched_for
                self._from_documents = not chat
                return "" if answered or chat else NOTHING_FOUND
            case Quoted():
                self._quote = quote_data(event)
            case Plan(passages=passages, ledger=ledger):
                self._passages, self._ledger = passages, ledger.as_json()
                self._writer, self._ids = self._engine.status.writer, list(event.prompt.begun)
            case Token(id=token, text=text):
                self._ids += [] if token is None else [token]
                return text
            case End():
                self._end = event
                self._remember()
        return ""

    def _remember(self) -> None:
        """What was summed up as a whole is no passage that an exchange could stand with."""
        if self._question.document is None:
            asked = Turn("user", self._question.text, passages=tuple(self._passages))
            replied = Turn("assistant", "".join(self._text), tuple(self._ids), self._writer)
            self._recall.keep(self._question.history, asked, replied)

    def _evidence(self) -> dict[str, Any]:
        """Where the answer is from, what was searched for, the quote, the passages that the model was given, and what
        its window was spent on; None where that is the question itself, where nothing was quoted, and where the model
        was not asked."""
        return {
            "answered_from": "documents" if self._from_documents else "chat",
            "searched_for": self._searched_for,
            "quote": self._quote,
            "citations": [passage_data(passage) for passage in self._passages],
            "ledger": self._ledger,
        }


def line(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"
