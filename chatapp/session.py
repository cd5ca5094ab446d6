"""A turn of a kept conversation: the question goes to disk first, the reply as it streams."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from knowledge import KnowledgeBase, KnowledgeBaseError, Passage, Several
from models import End, Read, Token

from .answering import Found, Opening, Question, Quoted, answer, passage_data, quote_data
from .checkpoints import FetchError
from .choices import Chosen
from .citing import Citing, Evidence
from .conversation import Plan, QuestionTooLong, Turn
from .digest import DigestError, Part
from .engine import Cancelled, Engine, EngineError, Loading, Summarising, Waiting
from .ledger import Ledger
from .library import Library, LibraryError
from .preferences import Asked, Preferences, Retrieving, asking, names_of
from .rewriting import Rewriting
from .store import Store, StoredMessage, StoreError
from .summary import Summary
from .tree import Tree, TreeError
from .words import whole_characters

#: Seconds between two writes of a growing reply: what a kill can cost.
SAVE_EVERY = 0.5

#: What ends a turn with a sentence.
FAILURES = (
    EngineError,
    QuestionTooLong,
    LibraryError,
    KnowledgeBaseError,
    DigestError,
    FetchError,
    StoreError,
    TreeError,
    OSError,
    MemoryError,
)
FINAL = ("done", "stopped", "failed")

#: A reply of which nothing has come yet.
ASKED = StoredMessage("assistant", "", state="writing")


@dataclass
class Reply:
    """A reply as far as it has come.

    `state` is "waiting", "loading", "opening", "rewriting", "summarising", "digesting", "reading", "writing", "done",
    "stopped" or "failed".
    """

    text: str = ""
    ids: list[int] = field(default_factory=list)
    sources: list[Mapping[str, Any]] = field(default_factory=list)
    searched: bool = False  #: documents were asked
    unanswered: bool = False  #: and do not say; the sources are the nearest there are
    state: str = "waiting"
    opening: Opening | None = None  #: files beside the question that are being read
    ahead: int = 0
    loading: str = ""  #: the model that is loaded again for it
    part: Part | None = None  #: of a document that is summed up
    read: Read | None = None
    plan: Plan | None = None
    end: End | None = None
    failure: str = ""
    error: Exception | None = None  #: what `failure` says
    number: int | None = None  #: of the message on disk, once it is there
    model: str | None = None
    chat_format: str | None = None
    ledger: Mapping[str, Any] | None = None  #: as it was kept, until there is another plan
    evidence: Evidence = field(default_factory=Evidence)  #: what its sentences draw on, as far as they are cited
    citing: Citing | None = None

    @property
    def nothing_found(self) -> bool:
        return (
            self.searched and not (self.evidence.chat or self.evidence.whole) and (self.unanswered or not self.sources)
        )

    def take_up(self, kept: StoredMessage) -> None:
        """Goes on from what is on disk."""
        self.text, self.ids, self.sources = kept.content, list(kept.ids or ()), list(kept.sources)
        self.model, self.chat_format, self.ledger = kept.model, kept.chat_format, kept.ledger
        self.evidence = Evidence.from_json(kept.evidence)

    def kept(self) -> StoredMessage:
        """The reply as it goes to disk."""
        state = self.state if self.state in FINAL else "writing"
        return StoredMessage(
            "assistant",
            self.text,
            tuple(self.ids) or None,
            self.model,
            tuple(self.sources),
            self.chat_format,
            "nothing_found" if state == "done" and self.nothing_found else state,
            self.failure,
            self.end.reason if self.end else None,
            self.plan.ledger.as_json() if self.plan else self.ledger,
            self.evidence.as_json(),
        )

    def cite(self, base: KnowledgeBase | Several | None, passages: Sequence[Passage]) -> None:
        """From now on the reply's sentences are held against these passages, with the embeddings of `base`."""
        self.end_citing()
        self.evidence.cited = []
        if passages:
            self.citing = Citing(base, passages)

    def end_citing(self) -> None:
        """Waits for the citations that are not found yet."""
        if self.citing is not None:
            cut = self.end is None or self.end.reason != "stop"
            self.evidence.cited = list(self.citing.end(cut))
            self.citing = None


@dataclass(frozen=True)
class Beside:
    """A document of a knowledge base that is put beside a question, which is answered from it if it can be."""

    base: str
    id: str
    name: str


@dataclass(frozen=True)
class Chat:
    """Where turns take place: the model, the documents and the conversations on disk.

    What goes wrong in a turn is a sentence in its reply, never raised. `base` names the knowledge base to ask, or
    several, which become the conversation's.
    """

    engine: Engine
    library: Library
    store: Store
    chosen: Chosen = field(default_factory=Chosen)  #: what goes for all conversations

    def begin(self) -> str:
        """A new conversation, with the preferences that were chosen for new ones; its id."""
        return self.store.create(self.chosen.now.defaults).id

    def preferences(self, conversation: str | None) -> Preferences:
        """A conversation's, or what a new one would begin with."""
        return self.store.conversation(conversation).preferences if conversation else self.chosen.now.defaults

    def prefer(self, conversation: str | None, **changes: Any) -> str:
        """Changes preferences of a conversation, or of a new one; its id."""
        id = conversation or self.begin()
        self.store.prefer(id, self.store.conversation(id).preferences.model_copy(update=changes))
        return id

    def choose_for_all(self, **changes: Any) -> None:
        """Changes what goes for all conversations, from the next turn on. Raises as Chosen.change does."""
        self.chosen.change(**changes)
        self.engine.reading, self.engine.window = self.chosen.policy.reading, self.chosen.policy.window

    def send(
        self, conversation: str, text: str, base: Asked, cancel: threading.Event, beside: Sequence[Beside] = ()
    ) -> Iterator[Reply]:
        """The reply to a user's message, again and again as it grows."""
        asked = question_beside(text, beside)
        base = asking([*names_of(base), *(each.base for each in beside)])
        return self._turn(conversation, lambda: self.store.add(conversation, asked, ASKED), base, cancel)

    def sum_up(
        self, conversation: str, document: str, text: str, base: Asked, cancel: threading.Event
    ) -> Iterator[Reply]:
        """The summary of a document, by its id, of a knowledge base; `text` is how the user's message puts it."""
        wanted = Evidence(base, [document], whole=True)
        asked = StoredMessage("user", whole_characters(text), evidence=wanted.as_json())
        return self._turn(conversation, lambda: self.store.add(conversation, asked, ASKED), base, cancel)

    def regenerate(
        self, conversation: str, message: int | None, base: Asked, cancel: threading.Event
    ) -> Iterator[Reply]:
        """Another reply to the question to which a message belongs; by default the last one."""

        def place() -> int:
            tree = self.store.tree(conversation)
            question = tree.question(tree.leaf if message is None else message)
            return self.store.branch(conversation, question.id, ASKED)

        return self._turn(conversation, place, base, cancel)

    def edit(self, conversation: str, message: int, text: str, base: Asked, cancel: threading.Event) -> Iterator[Reply]:
        """The reply to another version of a user's message; what was put beside it stays there."""

        def place() -> int:
            edited = self.store.tree(conversation).editable(message)
            asked = StoredMessage("user", whole_characters(text))
            if not _told_of(edited.message).whole:
                asked = replace(asked, sources=edited.message.sources, evidence=edited.message.evidence)
            return self.store.branch(conversation, edited.parent, asked, ASKED)

        return self._turn(conversation, place, base, cancel)

    def continue_(self, conversation: str, cancel: threading.Event) -> Iterator[Reply]:
        """The last reply, going on where it was cut off, with the passages that it was given."""
        return self._turn(conversation, lambda: self.store.resume(conversation), None, cancel)

    def undo(self, conversation: str) -> Tree:
        """Goes back to before the last question. Raises TreeError where there is none."""
        return self._show(conversation, self.store.tree(conversation).undone())

    def choose(self, conversation: str, message: int) -> Tree:
        """Shows the newest branch through a message. Raises TreeError where it is not there."""
        return self._show(conversation, self.store.tree(conversation).chosen(message))

    def _show(self, conversation: str, tree: Tree) -> Tree:
        self.store.show(conversation, tree.leaf)
        return tree

    def _turn(
        self, conversation: str, place: Callable[[], int], base: Asked, cancel: threading.Event
    ) -> Iterator[Reply]:
        """A reply as it grows. `place` makes its message, or finds it, and returns its number."""
        reply = Reply(searched=bool(base))
        save = _Saver(self.store, reply)
        try:
            number = place()
            path = [node.message for node in self.store.tree(conversation).path_to(number)]
            reply.take_up(path[-1])
            reply.number = number  # from here on it is written, with what it had said before
            question = self._question(conversation, path, base)
            reply.evidence.whole = question.document is not None
            reply.evidence.base = _told_of(path[-2]).base or base or reply.evidence.base
            reply.searched = bool(base) and question.mode != "chat"
            with closing(answer(self.engine, question, cancel)) as events:
                for event in events:
                    if isinstance(event, Plan):  # known now: no other model can be loaded before the end
                        reply.model, reply.chat_format = self.engine.status.writer, self.engine.status.chat_format
                        passages = () if reply.evidence.whole else event.passages
                        reply.cite(question.base or self._base_of(reply), passages)
                    _note(reply, event)
                    save.soon()
                    yield reply
            reply.state = "done"
        except Cancelled:
            reply.state = "stopped"
        except FAILURES as error:
            reply.state, reply.error = "failed", error
            reply.failure = str(error) or "Memory ran out; ask a shorter question."
        finally:
            if reply.state not in FINAL:
                reply.state = "stopped"  # nobody listens any more
            reply.end_citing()
            save.now()
        yield reply

    def _base_of(self, reply: Reply) -> KnowledgeBase | Several | None:
        """The knowledge bases that a reply which goes on was given its passages from, if they are still there."""
        try:
            return self.library.ask(reply.evidence.base)
        except (LibraryError, KnowledgeBaseError, FetchError):
            return None

    def _question(self, conversation: str, path: Sequence[StoredMessage], base: Asked) -> Question:
        """What is to be answered, at the end of the path; its last message is the reply, which may have begun."""
        *earlier, asked, begun = path
        wanted, policy = self.store.conversation(conversation).preferences, self.chosen.policy
        whole = _told_of(asked)
        beside = () if whole.whole else tuple(whole.documents)
        if whole.whole:
            if begun.content:
                raise DigestError("A summary of a document can't go on where it ended; regenerate it.")
            opened = self.library.ask(whole.base)
            reply = wanted.max_tokens or policy.reply
            document = whole.documents[0]
            options = wanted.options()
            return Question(asked.content, (), opened, None, options, reply, document=document, beside=(document,))
        question = Question(
            asked.content,
            _history(earlier),
            self.library.ask(base),
            wanted.system,
            wanted.options(),
            wanted.max_tokens or policy.reply,
            summarise=policy.summarise,
            summary=_summary(earlier),
            mode="documents" if beside and wanted.mode == "chat" else wanted.mode or "documents",
            followups=wanted.followups or "rule",
            retrieving=wanted.retrieval or Retrieving(),
            beside=beside,
            cited=_cited([*earlier, asked]),
        )
        if not begun.content:
            if base != wanted.knowledge_base:  # the next turn asks the same, also after a restart
                self.store.prefer(conversation, wanted.model_copy(update={"knowledge_base": base}))
            return question
        return replace(
            question,
            begun=Turn("assistant", begun.content, begun.ids, begun.model),
            passages=_passages(begun),
        )


def _history(messages: Sequence[StoredMessage]) -> list[Turn]:
    """What the model gets to see: exchanges that were answered, replies with the ids that their model wrote."""
    turns = []
    for asked, replied in pairwise(messages):
        if (asked.role, replied.role) == ("user", "assistant") and replied.content:
            turns.append(Turn("user", asked.content, passages=_passages(replied)))
            turns.append(Turn("assistant", replied.content, replied.ids, replied.model))
    return turns


def question_beside(text: str, beside: Sequence[Beside]) -> StoredMessage:
    """A user's message with the documents that are put beside it: their ids, and their names for those who read it."""
    names = tuple({"name": each.name, "page": None, "score": 1.0, "text": ""} for each in beside)
    told = Evidence(documents=[each.id for each in beside]).as_json()
    return StoredMessage("user", whole_characters(text), sources=names, evidence=told)


def _told_of(asked: StoredMessage) -> Evidence:
    """What stands beside a question: the document that is to be summed up, or those that it is about."""
    return Evidence.from_json(asked.evidence)


def _passages(reply: StoredMessage) -> tuple[Passage, ...]:
    """What a reply was given; a document that was summed up is none of them."""
    if Evidence.from_json(reply.evidence).whole:
        return ()
    return tuple(Passage(**source, document="") for source in reply.sources)


def _cited(messages: Sequence[StoredMessage]) -> tuple[str, ...]:
    """The names of the files that the last reply with sources was given, best first; or that a question was put to."""
    sources = next((message.sources for message in reversed(messages) if message.sources), ())
    return tuple(dict.fromkeys(source["name"] for source in sources))


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

    def soon(self) -> None:
        if time.monotonic() - self._last >= SAVE_EVERY:
            self._write()

    def now(self) -> None:
        """The last write. If the disk refuses it, that is said in the reply: nobody is left to catch an error."""
        try:
            self._write()
        except StoreError as error:
            self._reply.state, self._reply.failure, self._reply.error = "failed", str(error), error

    def _write(self) -> None:
        if self._reply.number is None:
            return
        self._store.update(self._reply.number, self._reply.kept())
        self._last = time.monotonic()


def _note(reply: Reply, event: Any) -> None:
    match event:
        case Found(passages=passages) | Plan(passages=passages):
            reply.state = "waiting" if reply.state in ("loading", "opening") else reply.state
            reply.sources, reply.ahead = [passage_data(passage) for passage in passages], 0
            reply.unanswered = isinstance(event, Found) and not event.answered
            if any(passage.document for passage in passages):  # those of a reply that goes on are known by their texts
                reply.evidence.documents = [passage.document for passage in passages]
            if isinstance(event, Plan):
                reply.plan, reply.ids = event, list(event.prompt.begun)
            else:
                reply.state = "waiting"
                reply.evidence.searched_for, reply.evidence.chat = event.searched_for, event.chat
        case Quoted():
            reply.evidence.quote = quote_data(event)
        case Opening():
            reply.state, reply.opening = "opening", event
        case Waiting(ahead=ahead):
            reply.ahead = ahead
        case Rewriting():
            reply.state = "rewriting"
        case Loading(name=name):
            reply.state, reply.ahead, reply.loading = "loading", 0, name
        case Summarising():
            reply.state = "summarising"
        case Part():
            reply.state, reply.part = "digesting", event
        case Read():
            reply.state, reply.read = "reading", event
        case Token(id=token, text=text):
            if reply.state != "writing":
                reply.text = ""  # the first token of a reply that goes on tells its text from the start
            reply.state = "writing"
            reply.text += text
            if reply.citing is not None:
                reply.citing.feed(text)
                reply.evidence.cited = list(reply.citing.so_far())
            if token is not None:
                reply.ids.append(token)
        case End():
            reply.end = event
