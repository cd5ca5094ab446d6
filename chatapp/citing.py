"""The citations of a reply, found behind its tokens, and how they are kept."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from knowledge import KnowledgeBase, Passage, Several
from knowledge.cite import Citation, Cited, Citer, Problem, Span
from knowledge.sentences import is_ended
from models.tokenizer import REPLACEMENT

from .preferences import Asked

#: What can go wrong with an embedding model; a reply then has no more citations.
FAILURES = (OSError, RuntimeError, MemoryError)


@dataclass
class Evidence:
    """What stands beside a reply, so that it can be checked, and what its sentences draw on.

    base: the knowledge base that was asked, or several; a source then tells its own. documents: the ids of the
    documents in which the reply's sources stand, by their order; beside a question, those that were put there with it.
    quote: what was quoted before the reply, as answering.quote_data gives it. searched_for: the question
    as it was searched for, where it is not as it was asked. chat: the reply is one without documents, for they do not
    say. whole: the only document was summed up, or is to be, where this stands beside a question.
    """

    base: Asked = None
    documents: list[str] = field(default_factory=list)
    cited: list[Cited] = field(default_factory=list)
    quote: Mapping[str, Any] | None = None
    searched_for: str | None = None
    chat: bool = False
    whole: bool = False

    def as_json(self) -> dict[str, Any] | None:
        """None where there is nothing."""
        if not (self.documents or self.quote or self.searched_for or self.chat):
            return None
        return {
            "base": self.base,
            "documents": self.documents,
            "cited": [_as_json(each) for each in self.cited],
            "quote": self.quote,
            "searched_for": self.searched_for,
            "chat": self.chat,
            "whole": self.whole,
        }

    @classmethod
    def from_json(cls, kept: Mapping[str, Any] | None) -> Evidence:
        """What `as_json` gave; what it did not know is as where there is nothing."""
        return cls(**{**(kept or {}), "cited": [_from_json(each) for each in (kept or {}).get("cited", ())]})

    @property
    def citations(self) -> list[tuple[int, Span]]:
        """Of each supported sentence its place in `cited`, and what it draws on."""
        supported = [(at, each.citation) for at, each in enumerate(self.cited) if each.citation.supported]
        return [(at, span) for at, citation in supported for span in citation.spans]


def _as_json(cited: Cited) -> dict[str, Any]:
    citation = cited.citation
    return {
        "start": cited.start,
        "end": cited.end,
        "spans": [[span.passage, span.start, span.end] for span in citation.spans],
        "supported": citation.supported,
        "problems": [[problem.kind, problem.text] for problem in citation.problems],
        "chatter": citation.chatter,
    }


def _from_json(kept: Mapping[str, Any]) -> Cited:
    spans = tuple(Span(*span) for span in kept["spans"])
    problems = tuple(Problem(*problem) for problem in kept["problems"])
    return Cited(kept["start"], kept["end"], Citation(spans, kept["supported"], problems, kept["chatter"]))


class Citing:
    """Cites a reply in a thread of its own, so that no token waits for it. Damaged sentences are left out."""

    def __init__(self, base: KnowledgeBase | Several | None, passages: Sequence[Passage]) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="citing")
        self._citer = self._pool.submit(_ready, lambda: _citer(base, passages))
        self._pending: list[Future[list[Cited]]] = []
        self._cited: list[Cited] = []
        self._text = ""

    def feed(self, text: str) -> None:
        self._text += text
        self._pending.append(self._pool.submit(lambda: self._citer.result().feed(text)))

    def so_far(self) -> list[Cited]:
        """The sentences that are cited by now."""
        while self._pending and self._pending[0].done():
            self._take(self._pending.pop(0))
        return self._cited

    def end(self, cut: bool = False) -> list[Cited]:
        """All sentences; waits for them. Where the reply was cut off, without the one that has no end."""
        self._pending.append(self._pool.submit(lambda: self._citer.result().end()))
        for future in self._pending:
            self._take(future)
        self._pending = []
        self._pool.shutdown()
        if cut and self._cited and self._is_open(self._cited[-1]):
            self._cited.pop()
        return self._cited

    def _take(self, future: Future[list[Cited]]) -> None:
        try:
            self._cited += [cited for cited in future.result() if REPLACEMENT not in self._said(cited)]
        except FAILURES:
            logging.exception("A sentence of a reply could not be cited")

    def _is_open(self, last: Cited) -> bool:
        """Whether the text breaks off within a sentence."""
        rest = self._text[last.end :]
        return not rest.strip() and "\n" not in rest and not is_ended(self._said(last))

    def _said(self, cited: Cited) -> str:
        return self._text[cited.start : cited.end]


def _citer(base: KnowledgeBase | Several | None, passages: Sequence[Passage]) -> Citer:
    return Citer([passage.text for passage in passages]) if base is None else base.citer(passages)


def _ready(make: Callable[[], Citer]) -> Citer:
    citer = make()
    citer.prepare()
    return citer
