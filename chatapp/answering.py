"""One turn, plain chat or a question about documents, as a stream of events."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypeVar

from knowledge import Findings, KnowledgeBase, KnowledgeBaseError, Passage, Several, Where
from knowledge.followup import Standalone, standalone
from knowledge.quote import Quote
from knowledge.retrieval import EVERYWHERE
from models import Event, LoadedModel, once_more

from .conversation import REPLY, Plan, Turn, Wording, continuing, plan, summarising
from .digest import Part, digest, document_of
from .effort import Effort
from .engine import Cancelled, Engine, Loading, Summarising, Waiting
from .preferences import Followups, Retrieving
from .rewriting import Rewriting, rewritten
from .summary import Summary
from .words import in_chinese

#: Parameters below which a model's text is called a draft, and the quote the answer. The embedded one (135 million),
#: with the right passage in front of it, answered 9 of 30 English questions and none in Chinese; of the four families'
#: chat models none is between it and 1.1 billion.
SMALL = 1_000_000_000
#: How a question is answered where a knowledge base is named: from its documents or not at all; by the model alone; or
#: from the documents where they are likely to say, and by the model alone where they are not.
Mode = Literal["documents", "chat", "auto"]
#: How many earlier questions a follow-up may lean on.
REMEMBERED = 6
#: Seconds between two looks whether a file beside a question is read.
OPENING = 0.2

T = TypeVar("T")


@dataclass(frozen=True)
class Opening:
    """Files that were put beside the question are being read; the first of `left` is this one."""

    name: str
    left: int


@dataclass(frozen=True)
class Found:
    """The passages that the documents hold on the question, best first; the nearest there are if they do not say."""

    passages: tuple[Passage, ...]
    answered: bool = True  #: whether they are likely to say
    searched_for: str | None = None  #: what was searched for, where that is not the question as it was asked
    chat: bool = False  #: they do not say, and the model answers without them


@dataclass(frozen=True)
class Quoted:
    """The sentences of the passages that answer best, word for word, which no model had a part in."""

    quote: Quote
    draft: bool  #: the model is small: the quote is the answer, and the text that follows a draft
    nearest: bool = False  #: the documents are not likely to say: this is the nearest that they have


@dataclass(frozen=True)
class Question:
    """A turn to be answered. `base` is the knowledge base that is asked, or several, if any is."""

    text: str
    history: Sequence[Turn] = ()
    base: KnowledgeBase | Several | None = None
    system: str | None = None
    options: Mapping[str, Any] | None = None
    reply: int = REPLY
    begun: Turn | None = None  #: a reply that is to go on where it ended
    passages: tuple[Passage, ...] = ()  #: what that reply was given; nothing is searched again
    summarise: bool = False  #: the oldest exchanges, where they have no room
    summary: Summary | None = None  #: one that was kept
    mode: Mode = "documents"
    followups: Followups = "rule"  #: how it is made to stand alone before the search
    retrieving: Retrieving = Retrieving()
    document: str | None = None  #: the id of a document of `base` that is to be summed up; nothing is searched
    beside: tuple[str, ...] = ()  #: ids of documents of `base` that were put beside it: what they say comes first
    cited: tuple[str, ...] = ()  #: names of the files that the reply before it was given, best first


def answer(
    engine: Engine, question: Question, cancel: threading.Event
) -> Iterator[Opening | Rewriting | Found | Quoted | Waiting | Loading | Summarising | Part | Plan | Event]:
    """Opening (while files beside the question are read), Rewriting (where the model is asked to), Found and Quoted
    (for a question about documents), Waiting, Summarising, the Plan, the events of generation.

    A model that was unloaded is loaded first, and Loading says so.

    Where the documents do not say, the model is not asked: it would only invent. What is near is quoted all the
    same, for the judgement may be wrong. In the mode "auto" the model answers without them, and nothing is quoted. A
    document that is summed up is what was found, and its Parts follow. Raises EngineError, QuestionTooLong,
    DigestError, KnowledgeBaseError and Cancelled.
    """
    yield from engine.wake(cancel)
    if question.beside:
        yield from opened(question.base, question.beside, cancel)
    if question.document is not None:
        document = _searching(lambda: document_of(question.base, question.document))
        yield Found((document.source,))
        yield from digest(engine, document, question.options or {}, question.reply, cancel)
        return
    passages = question.passages
    if question.base is not None and question.begun is None and question.mode != "chat":
        asked = yield from asked_alone(engine, question, cancel)
        searched, findings = search(question.base, asked, question.retrieving, question.beside)
        passages, answered = findings.passages, findings.relevance >= question.retrieving.threshold
        chat = question.mode == "auto" and not answered
        yield Found(passages, answered, searched if searched != question.text else None, chat)
        passages = () if chat else passages
        quoted = passages if answered or findings.near else ()
        quote = _searching(lambda: question.base.quote(searched, quoted))
        if quote is not None:
            yield Quoted(quote, answered and is_small(engine), nearest=not answered)
        if not (answered or chat):
            return

    make_plan = partial(planned, engine, question, passages, partial(wording, question.text))

    def make_continuing(loaded: LoadedModel, effort: Effort) -> Plan:
        begun = question.begun.seen_by(engine.status.writer, len(loaded.tokenizer))
        return continuing(loaded, begun, partial(make_plan, effort=effort))

    yield from engine.stream(make_continuing if question.begun else make_plan, question.options or {}, cancel)


def planned(
    engine: Engine, question: Question, passages: Sequence[Passage], words: Wording, loaded: LoadedModel, effort: Effort
) -> Plan:
    """The plan of a message, with passages, behind what was said before the question."""
    history = [turn.seen_by(engine.status.writer, len(loaded.tokenizer)) for turn in question.history]
    make = partial(plan, loaded, history, words, passages, question.system, question.reply, effort, quoting=wording)
    return summarising(loaded, history, make, question.summary) if question.summarise else make()


def asked_alone(
    engine: Engine, question: Question, cancel: threading.Event
) -> Generator[Rewriting | Waiting, None, Standalone]:
    """Returns the question as it is searched for, with what it takes from earlier ones. Raises Cancelled.

    The model's form has to be only where the rule is certain that the question leans on earlier ones; elsewhere it may
    have changed what was no follow-up, and the documents decide.
    """
    if question.followups == "off":
        return Standalone(question.text, changed=False)
    earlier = [turn.content for turn in question.history if turn.role == "user"][-REMEMBERED:]
    ruled = standalone(question.text, earlier, question.cited)
    if question.followups == "rule" or not earlier:
        return ruled
    text = yield from rewritten(engine, question.text, partial(_planned_apart, engine, question), cancel)
    if text is None:
        return ruled
    return replace(ruled, text=text, changed=True, certain=ruled.changed and ruled.certain)


def _planned_apart(engine: Engine, question: Question, words: Wording, loaded: LoadedModel, effort: Effort) -> Plan:
    """The plan of a message that is not of the conversation. Of a model that reads every prompt anew it is without the
    passages of earlier turns."""
    if not loaded.model.causal_prompt:
        question = replace(question, history=[replace(turn, passages=()) for turn in question.history])
    return planned(engine, question, (), words, loaded, effort)


def is_small(engine: Engine) -> bool:
    """Whether the loaded model is; so is none at all."""
    return engine.status.state != "ready" or engine.loaded.needs.parameters < SMALL


def opened(base: KnowledgeBase | Several, ids: Sequence[str], cancel: threading.Event) -> Iterator[Opening]:
    """Waits until these files are read, not until they are embedded: their words find them.

    Raises Cancelled, and KnowledgeBaseError where none of them could be read.
    """
    while unread := [file for file in base.files(ids) if file.state in ("waiting", "reading") and not file.chunks]:
        yield Opening(unread[0].name, len(unread))
        if cancel.wait(OPENING):
            raise Cancelled
    files = base.files(ids)
    if files and not any(file.chunks for file in files):
        stopped = f"{files[0].name} was stopped before it was read; let it be read again in the list of documents."
        raise KnowledgeBaseError(files[0].reason or stopped)


def search(
    base: KnowledgeBase | Several, asked: Standalone, how: Retrieving, beside: Sequence[str] = ()
) -> tuple[str, Findings]:
    """What was searched for, and what that found: in the documents with the ids `beside` if they are likely to say, or
    if nothing is; else in all.

    Raises KnowledgeBaseError.
    """
    if not beside:
        return _search(base, asked, how, EVERYWHERE)
    first = _search(base, asked, how, Where(documents=beside))
    if first[1].relevance >= how.threshold:
        return first
    found = _search(base, asked, how, EVERYWHERE)
    return first if first[1].passages and found[1].relevance < how.threshold else found


def _search(base: KnowledgeBase | Several, asked: Standalone, how: Retrieving, where: Where) -> tuple[str, Findings]:
    """Where the rule that makes a question stand alone is not certain, the documents decide."""
    found = _searching(lambda: base.find(asked.text, how.passages, where, how.method))
    if asked.certain:
        return asked.text, found
    as_asked = _searching(lambda: base.find(asked.asked, how.passages, where, how.method))
    return (asked.text, found) if found.relevance > as_asked.relevance else (asked.asked, as_asked)


def _searching(search: Callable[[], T]) -> T:
    try:
        return once_more(search)
    except (sqlite3.Error, OSError, MemoryError, RuntimeError) as error:
        reason = str(error) or "memory ran out"
        raise KnowledgeBaseError(f"The documents can't be searched ({reason}); start again.") from error


def wording(question: str, passages: Sequence[Passage]) -> list[str]:
    """The user's message for the model, in the question's language, in parts: an instruction, each passage with its
    number, the question. Of a passage without text, which stands further up, only the place is told."""
    if not passages:
        return [question]
    words = CHINESE if in_chinese(question) else ENGLISH
    cited = [words.passage(number, passage) for number, passage in enumerate(passages, start=1)]
    return [*(f"{part}\n\n" for part in (words.instruction, *cited)), words.question.format(question)]


@dataclass(frozen=True)
class Words:
    instruction: str
    place: str
    place_with_page: str
    question: str
    above: str  #: in place of a passage that the model has read already: short, for it is told at every turn
    above_with_page: str

    def passage(self, number: int, passage: Passage) -> str:
        with_page, without = (
            (f"{self.place_with_page}\n{{text}}", f"{self.place}\n{{text}}")
            if passage.text
            else (self.above_with_page, self.above)
        )
        return f"[{number}] " + (without if passage.page is None else with_page).format_map(vars(passage))


ENGLISH = Words(
    instruction="Answer the question from these passages only. If they do not answer it, say so.",
    place="({name})",
    place_with_page="({name}, page {page})",
    question="Question: {}",
    above="({name}, above)",
    above_with_page="(page {page}, above)",
)
CHINESE = Words(
    instruction="请只根据下面的段落回答问题；段落里没有答案时，请直接说明。",
    place="（{name}）",
    place_with_page="（{name}，第{page}页）",
    question="问题：{}",
    above="（{name}，见上文）",
    above_with_page="（第{page}页，见上文）",
)


def passage_data(passage: Passage) -> dict[str, Any]:
    """A passage as JSON, as citations are told to clients and kept on disk; with its base where several were asked."""
    place = {"name": passage.name, "page": passage.page, "score": round(passage.score, 4), "text": passage.text}
    return {**place, **_base_of(passage)}


def _base_of(passage: Passage) -> dict[str, str]:
    return {} if passage.base is None else {"base": passage.base}


def quote_data(quoted: Quoted) -> dict[str, Any]:
    """A quote as JSON: its parts, and beside its whole text the place of the first part. `start` and `end` are
    characters in the text of the part's passage, `document` is the id of that one's document; its sentence may go on
    behind it."""
    parts = [
        {
            "name": part.passage.name,
            "page": part.passage.page,
            "document": part.passage.document,
            "start": part.start,
            "end": part.end,
            "text": part.text,
            "goes_on": part.goes_on,
            **_base_of(part.passage),
        }
        for part in quoted.quote.parts
    ]
    return {**parts[0], "text": quoted.quote.text, "draft": quoted.draft, "nearest": quoted.nearest, "parts": parts}
