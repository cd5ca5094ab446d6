"""A turn of a kept conversation: the question goes to disk first, the reply as it streams."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from models import BadLogitsError, End, Read, Token

from .answering import Found, Question, answer, passage_data
from .checkpoints import FetchError
from .conversation import Plan, QuestionTooLong, Turn
from .engine import Cancelled, Engine, EngineError, Waiting
from .library import Library, LibraryError
from .store import Store, StoredMessage

#: Seconds between two writes of a growing reply: what a kill can cost.
SAVE_EVERY = 0.5


@dataclass
class Reply:
    """A reply as far as it has come. `state` is "waiting", "reading", "writing", "done", "stopped" or "failed"."""

    text: str = ""
    ids: list[int] = field(default_factory=list)
    sources: list[Mapping[str, Any]] = field(default_factory=list)
    searched: bool = False  #: documents were asked
    state: str = "waiting"
    ahead: int = 0
    read: Read | None = None
    plan: Plan | None = None
    end: End | None = None
    failure: str = ""

    @property
    def nothing_found(self) -> bool:
        return self.searched and not self.sources


@dataclass(frozen=True)
class Chat:
    """Where turns take place: the model, the documents and the conversations on disk."""

    engine: Engine
    library: Library
    store: Store

    def send(self, conversation: str, text: str, base: str | None, cancel: threading.Event) -> Iterator[Reply]:
        """The reply to a user's message, again and again as it grows.

        What goes wrong is a sentence in the reply, never raised. `base` names the knowledge base to ask.
        """
        model = self.engine.status.name
        history = _history(self.store.messages(conversation), model)
        self.store.add(conversation, StoredMessage("user", text))
        save = _saver(self.store, self.store.add(conversation, StoredMessage("assistant", "")), model)
        reply = Reply(searched=bool(base))
        try:
            question = Question(text, history, self.library.open(base) if base else None)
            with closing(answer(self.engine, question, cancel)) as events:
                for event in events:
                    _note(reply, event)
                    save(reply, False)
                    yield reply
            reply.state = "done"
        except Cancelled:
            reply.state = "stopped"
        except (EngineError, QuestionTooLong, LibraryError, FetchError, BadLogitsError, MemoryError) as error:
            reply.state, reply.failure = "failed", str(error) or "Memory ran out; ask a shorter question."
        finally:
            save(reply, True)
        yield reply


def _history(messages: Sequence[StoredMessage], model: str) -> list[Turn]:
    """What the model gets to see: exchanges that were answered, a reply's own ids where this model wrote it."""
    turns = []
    for asked, replied in zip(messages[::2], messages[1::2], strict=False):
        if replied.content:
            turns.append(Turn("user", asked.content))
            turns.append(Turn("assistant", replied.content, replied.ids if replied.model == model else None))
    return turns


def _saver(store: Store, number: int, model: str) -> Callable[[Reply, bool], None]:
    last = time.monotonic()

    def save(reply: Reply, now: bool) -> None:
        nonlocal last
        if now or time.monotonic() - last >= SAVE_EVERY:
            ids = tuple(reply.ids) or None
            store.update(number, StoredMessage("assistant", reply.text, ids, model, tuple(reply.sources)))
            last = time.monotonic()

    return save


def _note(reply: Reply, event: Any) -> None:
    match event:
        case Found(passages=passages) | Plan(passages=passages):
            reply.sources = [passage_data(passage) for passage in passages]
            reply.plan = event if isinstance(event, Plan) else None
        case Waiting(ahead=ahead):
            reply.ahead = ahead
        case Read():
            reply.state, reply.read = "reading", event
        case Token(id=token, text=text):
            reply.state = "writing"
            reply.text += text
            if token is not None:
                reply.ids.append(token)
        case End():
            reply.end = event
