"""A summary of a whole document: of its parts one by one, then of these summaries, until one prompt holds them all."""

from __future__ import annotations

import re
import threading
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from knowledge import KnowledgeBase, Passage, Several
from knowledge.database import StoredDocument
from models import Event, LoadedModel, Read, Token

from .conversation import Plan, QuestionTooLong, plan, reply_budget
from .effort import Effort
from .engine import Engine, EngineError, Waiting
from .words import HAN

#: Tokens that the summary of a part may take, or an eighth of a window that is smaller.
LONGEST = 256
#: Where a text is cut best: behind a sentence or a line, whose spaces stay with it.
SENTENCE = re.compile(r".+?(?:[。！？；\n]\s*|[.!?;]\s+|\Z)", re.DOTALL)
#: The share of Chinese characters from which on a document is summed up in Chinese.
CHINESE_FROM = 0.1


#: What asks for a summary of the one file that was put beside it.
SUMMARY = re.compile(
    r"^\W*(?:please |can you |could you |briefly )*"
    r"(?:summari[sz]e|sum up|(?:give (?:me )?)?an? (?:short |brief )?(?:summary|overview)"
    r"|what(?:'s|’s| is) (?:this|it|that|the)(?: (?:document|file|paper|pdf|text|report))?(?: all)? about)\b.{0,40}$"
    r"|^.{0,12}(?:总结|概括|概述|归纳|摘要|讲了什么|讲的是什么|说了什么|主要内容|大意).{0,12}$",
    re.IGNORECASE,
)


def asks_for_summary(text: str) -> bool:
    """Whether a question about a single file asks for all of it, so that no passage answers."""
    return SUMMARY.match(text.strip()) is not None


class DigestError(ValueError):
    """A document can't be summed up; the text is one sentence for the user."""


@dataclass(frozen=True)
class Part:
    """The model reads and sums up part `number` of `count`; of the `tokens` of all these it has read `read`."""

    number: int
    count: int
    tokens: int
    read: int = 0


@dataclass(frozen=True)
class Words:
    """What the model is told in front of a text."""

    part: str
    summaries: str
    document: str
    whole: str
    page: str
    pages: str


ENGLISH = Words(
    part="Summarise this part of a document in at most 150 words. Keep names, numbers and what was decided.",
    summaries="These are summaries of a document's parts, in order. Join them into one summary of at most 150 words.",
    document="Summarise this document in at most 300 words. Keep names, numbers and what was decided.",
    whole="These are summaries of a document's parts, in order. Summarise the whole document in at most 300 words.",
    page="Page {}",
    pages="Pages {} to {}",
)
CHINESE = Words(
    part="请用不超过两百字概括文档的这一部分，保留人名、数字和结论。",
    summaries="下面依次是一份文档各部分的摘要，请把它们合并成一份不超过两百字的摘要。",
    document="请用不超过四百字概括这份文档，保留人名、数字和结论。",
    whole="下面依次是一份文档各部分的摘要，请用不超过四百字概括整份文档。",
    page="第 {} 页",
    pages="第 {} 至 {} 页",
)


@dataclass(frozen=True)
class Document:
    """What was read of a document, and the numbers of its pages, if they have any."""

    name: str
    id: str
    text: str
    pages: tuple[int, ...] = ()

    @property
    def words(self) -> Words:
        """Those of its language."""
        letters = sum(not letter.isspace() for letter in self.text)
        return CHINESE if len(HAN.findall(self.text)) >= CHINESE_FROM * letters else ENGLISH

    @property
    def source(self) -> Passage:
        """The document as what a reply is from: its name and its pages."""
        first, last = (self.pages[0], self.pages[-1]) if self.pages else (None, None)
        form = self.words.page if first == last else self.words.pages
        return Passage(self.name, first, 1.0, form.format(first, last) if self.pages else "", self.id)


def document_named(base: KnowledgeBase | Several, name: str) -> StoredDocument:
    """The newest document of that name. Raises DigestError."""
    named = [document for document in base.documents() if document.name == name]
    if not named:
        raise DigestError(f"There is no document named {name} to be summed up; it may have been removed.")
    return max(named, key=lambda document: document.version)


def still_there(files: Iterable[StoredDocument], id: str) -> StoredDocument:
    """The one with that id. Raises DigestError where it is not among them."""
    for file in files:
        if file.id == id:
            return file
    raise DigestError("The document is not in its knowledge base any more, so it can't be summed up.")


def document_of(base: KnowledgeBase | Several, id: str) -> Document:
    """A document with all its text. Raises DigestError."""
    named = still_there(base.documents(), id)
    pages = base.pages(id)
    text = "\n\n".join(page.text for page in pages if page.text.strip()).strip()
    if not text:
        raise DigestError(f"{named.name} holds no text that could be summed up.")
    return Document(named.name, id, text, tuple(page.number for page in pages if page.number is not None))


def digest(
    engine: Engine, document: Document, options: Mapping[str, Any], reply: int, cancel: threading.Event
) -> Iterator[Waiting | Part | Plan | Event]:
    """Parts as they are summed up, then the Plan and the events of the summary of all.

    `options` are for that one; the parts' are the likeliest words. Raises what engine.stream does, and QuestionTooLong
    where the window is too small.
    """
    digesting = _Digesting(engine, engine.loaded, cancel)
    context, words, text = digesting.loaded.context, document.words, document.text
    longest = min(LONGEST, max(context // 8, 1))
    telling, last = words.part, words.document
    while digesting.size(last, text) > context - reply_budget(context, reply):
        summed = yield from digesting.summaries(telling, text, longest)
        if digesting.size("", summed) >= digesting.size("", text):
            raise _too_small(context)
        if not summed:
            raise EngineError("The model has written nothing about the document; choose another model.")
        text, telling, last = summed, words.summaries, words.whole
    for event in digesting.asked(last, text, reply, options):
        yield replace(event, passages=(document.source,)) if isinstance(event, Plan) else event


@dataclass(frozen=True)
class _Digesting:
    """The work of one model on one document."""

    engine: Engine
    loaded: LoadedModel
    cancel: threading.Event

    def size(self, telling: str, text: str) -> int:
        """Tokens of the prompt that tells the model this, with the text."""
        return len(self.loaded.chat_prompt([{"role": "user", "content": _message(telling, text)}]).ids)

    def asked(self, telling: str, text: str, reply: int, options: Mapping[str, Any]) -> Iterator[Any]:
        return self.engine.stream(partial(self._plan, telling, text, reply), options, self.cancel)

    def summaries(self, telling: str, text: str, longest: int) -> Generator[Waiting | Part, None, str]:
        """Sums up a text part by part; returns the summaries, joined."""
        parts = cut(text, self, telling, self.loaded.context - longest)
        sizes = [self.size(telling, part) for part in parts]
        written = []
        for number, part in enumerate(parts):
            told = Part(number + 1, len(parts), sum(sizes), sum(sizes[:number]))
            written.append((yield from self._summary(told, telling, part, longest)))
        return "\n\n".join(filter(None, written))

    def _summary(self, told: Part, telling: str, text: str, longest: int) -> Generator[Waiting | Part, None, str]:
        yield told
        written = ""
        with closing(self.asked(telling, text, longest, {"temperature": 0.0})) as events:
            for event in events:
                match event:
                    case Waiting():
                        yield event
                    case Read(done=done):
                        yield replace(told, read=told.read + done)
                    case Token(text=piece):
                        written += piece
        return written.strip()

    def _plan(self, telling: str, text: str, reply: int, loaded: LoadedModel, effort: Effort) -> Plan:
        if loaded is not self.loaded:  # the parts were made for another window
            raise EngineError("The model was changed while it summed up the document; ask again.")
        return plan(loaded, (), lambda passages: [_message(telling, text)], reply=reply, effort=effort)


def _message(telling: str, text: str) -> str:
    return f"{telling}\n\n{text}"


def cut(text: str, digesting: _Digesting, telling: str, room: int) -> list[str]:
    """The text in parts that make prompts of at most `room` tokens, cut between sentences where that is possible.

    Put together again they are the text. Raises QuestionTooLong where not even a character has room.
    """
    count = digesting.loaded.tokenizer.encode
    pieces = [(piece, len(count(piece, "text"))) for piece in SENTENCE.findall(text)]
    parts: list[str] = []
    start, frame = 0, digesting.size(telling, "")
    while start < len(pieces):
        stop = _filled(pieces, start, room - frame)
        while stop > start + 1 and digesting.size(telling, _joined(pieces[start:stop])) > room:
            stop -= 1  # tokens may fall otherwise where pieces meet
        part = _joined(pieces[start:stop])
        if stop == start + 1 and digesting.size(telling, part) > room:
            if len(part) == 1:
                raise _too_small(digesting.loaded.context)
            halves = part[: len(part) // 2], part[len(part) // 2 :]
            pieces[start:stop] = [(half, len(count(half, "text"))) for half in halves]
        else:
            parts.append(part)
            start = stop
    return parts


def _filled(pieces: Sequence[tuple[str, int]], start: int, room: int) -> int:
    """Behind how many pieces a part ends that begins with one and has room for so many tokens; it has one at least."""
    stop, used = start, 0
    while stop < len(pieces) and used + pieces[stop][1] <= room:
        used += pieces[stop][1]
        stop += 1
    return max(stop, start + 1)


def _joined(pieces: Sequence[tuple[str, int]]) -> str:
    return "".join(piece for piece, _ in pieces)


def _too_small(context: int) -> QuestionTooLong:
    return QuestionTooLong(
        f"The window of {context} tokens is too small to sum up a document; give the model a longer one."
    )
