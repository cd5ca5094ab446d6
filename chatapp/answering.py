"""One turn, plain chat or a question about documents, as a stream of events."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from knowledge import Findings, KnowledgeBase, KnowledgeBaseError, Passage
from models import Event, LoadedModel, once_more

from .conversation import REPLY, Plan, Turn, continuing, plan, summarising
from .effort import Effort
from .engine import Engine, Summarising, Waiting
from .summary import Summary
from .words import in_chinese

#: How many passages a question brings along when they fit.
PASSAGES = 4


@dataclass(frozen=True)
class Found:
    """The passages that the documents hold on the question, best first; the nearest there are if they do not say."""

    passages: tuple[Passage, ...]
    answered: bool = True  #: whether they are likely to say


@dataclass(frozen=True)
class Question:
    """A turn to be answered. `base` is the knowledge base that is asked, if one is."""

    text: str
    history: Sequence[Turn] = ()
    base: KnowledgeBase | None = None
    system: str | None = None
    options: Mapping[str, Any] | None = None
    reply: int = REPLY
    begun: Turn | None = None  #: a reply that is to go on where it ended
    passages: tuple[Passage, ...] = ()  #: what that reply was given; nothing is searched again
    summarise: bool = False  #: the oldest exchanges, where they have no room
    summary: Summary | None = None  #: one that was kept


def answer(
    engine: Engine, question: Question, cancel: threading.Event
) -> Iterator[Found | Waiting | Summarising | Plan | Event]:
    """Found (for a question about documents), Waiting, Summarising, the Plan, then the events of generation.

    Where the documents do not say, nothing follows upon Found: the model would only invent. Raises EngineError,
    QuestionTooLong, KnowledgeBaseError and Cancelled.
    """
    passages = question.passages
    if question.base is not None and question.begun is None:
        findings = _search(question.base, question.text)
        passages = findings.passages
        yield Found(passages, findings.answered)
        if not findings.answered:
            return

    def make_plan(loaded: LoadedModel, effort: Effort) -> Plan:
        history = [turn.seen_by(engine.status.writer, len(loaded.tokenizer)) for turn in question.history]
        words = partial(wording, question.text)
        make = partial(plan, loaded, history, words, passages, question.system, question.reply, effort, quoting=wording)
        return summarising(loaded, history, make, question.summary) if question.summarise else make()

    def make_continuing(loaded: LoadedModel, effort: Effort) -> Plan:
        begun = question.begun.seen_by(engine.status.writer, len(loaded.tokenizer))
        return continuing(loaded, begun, partial(make_plan, effort=effort))

    yield from engine.stream(make_continuing if question.begun else make_plan, question.options or {}, cancel)


def _search(base: KnowledgeBase, question: str) -> Findings:
    try:
        return once_more(lambda: base.find(question, PASSAGES))
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
    """A passage as JSON, as citations are told to clients and kept on disk."""
    return {"name": passage.name, "page": passage.page, "score": round(passage.score, 4), "text": passage.text}
