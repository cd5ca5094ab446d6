"""A turn of a kept conversation: the question goes to disk first, the reply as it streams."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from knowledge import KnowledgeBaseError
from models import End, Read, Token

from .answering import Found, Question, answer, passage_data
from .checkpoints import FetchError
from .conversation import Plan, QuestionTooLong, Turn, whole_characters
from .engine import Cancelled, Engine, EngineError, Summarising, Waiting
from .ledger import Ledger
from .library import Library, LibraryError
from .store import Store, StoredMessage, StoreError
from .summary import Summary

#: Seconds between two writes of a growing reply: what a kill can cost.
SAVE_EVERY = 0.5

#: What ends a turn with a sentence.
FAILURES = (
    EngineError,
    QuestionTooLong,
    LibraryError,
    KnowledgeBaseError,
    FetchError,
    StoreError,
    OSError,
    MemoryError,
)


@dataclass
class Reply:
    """A reply as far as it has come.

    `state` is "waiting", "summarising", "reading", "writing", "done", "stopped" or "failed".
    """

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
    summarise: bool = False  #: whether a summary stands for the oldest exchanges where they have no room

    def send(self, conversation: str, text: str, base: str | None, cancel: threading.Event) -> Iterator[Reply]:
        """The reply to a user's message, again and again as it grows.

        What goes wrong is a sentence in the reply, never raised. `base` names the knowledge base to ask.
        """
        reply = Reply(searched=bool(base))
        save = _Saver(self.store, reply)
        try:
            text = whole_characters(text)
            stored = self.store.messages(conversation)
            save.number = self.store.add(conversation, StoredMessage("user", text), StoredMessage("assistant", ""))
            question = Question(
                text,
                _history(stored),
                self.library.open(base) if base else None,
                summarise=self.summarise,
                summary=_summary(stored),
            )
            with closing(answer(self.engine, question, cancel)) as events:
                for event in events:
                    if isinstance(event, Plan):
                        save.model = self.engine.status.name  # known now: no other can be loaded before the end
                    _note(reply, event)
                    save.soon()
                    yield reply
            reply.state = "done"
        except Cancelled:
            reply.state = "stopped"
        except FAILURES as error:
            reply.state, reply.failure = "failed", str(error) or "Memory ran out; ask a shorter question."
        finally:
            save.now()
        yield reply


def _history(messages: Sequence[StoredMessage]) -> list[Turn]:
    """What the model gets to see: exchanges that were answered, replies with the ids that their model wrote."""
    turns = []
    for asked, replied in pairwise(messages):
        if (asked.role, replied.role) == ("user", "assistant") and replied.content:
            turns.append(Turn("user", asked.content))
            turns.append(Turn("assistant", replied.content, replied.ids, replied.model))
    return turns


def _summary(messages: Sequence[StoredMessage]) -> Summary | None:
    """The last one that was made for a reply of this conversation."""
    ledgers = [message.ledger for message in messages if message.ledger is not None]
    summaries = [ledger.summary for ledger in map(Ledger.from_json, ledgers) if ledger.summary is not None]
    return summaries[-1] if summaries else None


class _Saver:
    """Writes a reply behind its question, now and then while it grows and once at its end."""

    def __init__(self, store: Store, reply: Reply) -> None:
        self._store = store
        self._reply = reply
        self._last = time.monotonic()
        self.number: int | None = None  #: of the message, once it has been added
        self.model: str | None = None

    def soon(self) -> None:
        if time.monotonic() - self._last >= SAVE_EVERY:
            self._write()

    def now(self) -> None:
        """The last write. If the disk refuses it, that is said in the reply: nobody is left to catch an error."""
        try:
            self._write()
        except StoreError as error:
            self._reply.state, self._reply.failure = "failed", str(error)

    def _write(self) -> None:
        if self.number is None:
            return
        reply = self._reply
        ids = tuple(reply.ids) or None
        ledger = reply.plan.ledger.as_json() if reply.plan else None
        message = StoredMessage("assistant", reply.text, ids, self.model, tuple(reply.sources), ledger)
        self._store.update(self.number, message)
        self._last = time.monotonic()


def _note(reply: Reply, event: Any) -> None:
    match event:
        case Found(passages=passages) | Plan(passages=passages):
            reply.sources, reply.ahead = [passage_data(passage) for passage in passages], 0
            reply.plan = event if isinstance(event, Plan) else None
        case Waiting(ahead=ahead):
            reply.ahead = ahead
        case Summarising():
            reply.state = "summarising"
        case Read():
            reply.state, reply.read = "reading", event
        case Token(id=token, text=text):
            reply.state = "writing"
            reply.text += text
            if token is not None:
                reply.ids.append(token)
        case End():
            reply.end = event
