"""HTTP routes beside the page: health, and chat in the form of OpenAI's API."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from fastapi import FastAPI, HTTPException
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, Field

from knowledge import Passage
from models import End, Token

from .answering import Found, Question, answer, passage_data
from .conversation import REPLY, Plan, QuestionTooLong, Turn
from .engine import Engine, EngineError
from .library import Library, LibraryError

NOTHING_FOUND = "The documents do not say."


class ChatMessage(BaseModel):
    role: Literal["system", "user", "assistant"]
    content: str


class ChatRequest(BaseModel):
    """The part of OpenAI's request that is understood; other fields are ignored."""

    messages: list[ChatMessage] = Field(min_length=1)
    stream: bool = False
    knowledge_base: str | None = None
    temperature: float | None = Field(None, ge=0)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = None
    max_tokens: int = Field(REPLY, ge=1)

    def options(self) -> dict[str, Any]:
        chosen = {"temperature": self.temperature, "top_p": self.top_p, "seed": self.seed}
        return {name: value for name, value in chosen.items() if value is not None}


def add_routes(app: FastAPI, engine: Engine, library: Library) -> None:
    """Adds GET /health and POST /v1/chat/completions."""

    @app.get("/health")
    def health() -> dict[str, Any]:
        status = engine.status
        return {"status": "ok", "model": {"name": status.name, "state": status.state, "message": status.message}}

    @app.post("/v1/chat/completions", response_model=None)
    def chat(request: ChatRequest) -> StreamingResponse | JSONResponse:
        reply = _Reply(engine.status.name)
        events = answer(engine, _question(request, library), reply.cancel)
        if request.stream:
            return StreamingResponse(reply.lines(events), media_type="text/event-stream")
        try:
            reply.consume(events)
        except (EngineError, QuestionTooLong) as error:
            raise _refusal(error) from error
        return JSONResponse(reply.whole())

    @app.exception_handler(HTTPException)
    async def refused(_: object, error: HTTPException) -> JSONResponse:
        return JSONResponse(_error(error.detail), error.status_code)


def _question(request: ChatRequest, library: Library) -> Question:
    *earlier, last = request.messages
    if last.role != "user":
        raise HTTPException(400, "The last message must be the user's.")
    system = "\n\n".join(message.content for message in earlier if message.role == "system") or None
    history = [Turn(message.role, message.content) for message in earlier if message.role != "system"]
    try:
        base = library.open(request.knowledge_base) if request.knowledge_base else None
    except LibraryError as error:
        raise HTTPException(404, str(error)) from error
    return Question(last.content, history, base, system, request.options(), request.max_tokens)


def _refusal(error: EngineError | QuestionTooLong) -> HTTPException:
    return HTTPException(503 if isinstance(error, EngineError) else 400, str(error))


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error"}}


class _Reply:
    """What is said of one reply, whole or chunk by chunk."""

    def __init__(self, model: str) -> None:
        self.cancel = threading.Event()
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self._text: list[str] = []
        self._passages: Sequence[Passage] = ()
        self._reason = "stop"
        self._usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}

    def consume(self, events: Iterator[Any]) -> None:
        for event in events:
            self._text.append(self._note(event))

    def whole(self) -> dict[str, Any]:
        message = {"role": "assistant", "content": "".join(self._text)}
        choice = {"index": 0, "message": message, "finish_reason": self._reason}
        return {
            **self._head,
            "object": "chat.completion",
            "choices": [choice],
            "usage": self._usage,
            "citations": self._citations(),
        }

    def lines(self, events: Iterator[Any]) -> Iterator[str]:
        """Server-sent events; an error after the start becomes one too, since the status line is gone by then."""
        try:
            yield self._chunk({"role": "assistant", "content": ""})
            for event in events:
                if text := self._note(event):
                    yield self._chunk({"content": text})
            yield self._chunk({}, finish_reason=self._reason, usage=self._usage, citations=self._citations())
        except (EngineError, QuestionTooLong) as error:
            yield _line(_error(str(error)))
        finally:
            self.cancel.set()  # also when the client went away
            events.close()
        yield "data: [DONE]\n\n"

    def _note(self, event: Any) -> str:
        """Remembers what an event says and returns the text that it adds."""
        match event:
            case Found(passages=passages):
                self._passages = passages
                return "" if passages else NOTHING_FOUND
            case Plan(passages=passages):
                self._passages = passages
            case Token(text=text):
                return text
            case End(reason=reason, timings=timings):
                self._reason = "stop" if reason == "stop" else "length"
                self._usage = {
                    "prompt_tokens": timings.prompt_tokens,
                    "completion_tokens": timings.tokens,
                    "total_tokens": timings.prompt_tokens + timings.tokens,
                }
        return ""

    def _citations(self) -> list[dict[str, Any]]:
        return [passage_data(passage) for passage in self._passages]

    def _chunk(self, delta: dict[str, str], finish_reason: str | None = None, **more: Any) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        return _line({**self._head, "object": "chat.completion.chunk", "choices": [choice], **more})


def _line(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"
