"""Whether the quote that is shown before the reply holds the answer, and how soon it is there."""

from __future__ import annotations

import os
import statistics
import time
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from chatapp import checkpoints
from chatapp.preferences import PASSAGES
from knowledge import Findings, KnowledgeBase
from knowledge.embedder import LocalEmbeddings
from knowledge.quote import Quote, quote

from . import question_sets
from .results import Result
from .settings import Settings

FREE_FORM = "dureader"  #: whole paragraphs answer its questions
YES_OR_NO = {"yes", "no", "是", "否", "不是"}
TARGETS: Mapping[str, str] = {"zh": "at least .88", "en": "at least .82"}


class Case(NamedTuple):
    """A question as it was answered. right: the quote holds a gold answer. seconds: the search and the quote."""

    source: str
    findings: Findings
    right: bool
    seconds: float


def run(settings: Settings) -> Iterator[Result]:
    embeddings = LocalEmbeddings(checkpoints.ensure_embedder(settings.data))
    sets = Path(os.environ["QUATRAIN_TEST_ASSETS"]) / "qa"
    bases = question_sets.bases(sets, settings.scratch / "questions", embeddings)
    for language, target in TARGETS.items():
        asked = [question for question in question_sets.read(sets, language).questions if has_short_answer(question)]
        yield from _told(language, [_case(bases[language], question, embeddings) for question in asked], target)


def has_short_answer(question: Mapping[str, Any]) -> bool:
    answers = set(map(plain, question["answers"]))
    return question["source"] != FREE_FORM and not answers <= YES_OR_NO


def plain(text: str) -> str:
    """The letters and digits of a text; width and capitals do not matter."""
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKC", text).casefold()))


def holds(text: str, answers: Sequence[str]) -> bool:
    return any(plain(answer) in plain(text) for answer in answers)


def quotes(quote: Quote, answers: Sequence[str]) -> bool:
    """Whether one of its parts holds an answer: what only stands across two does not count."""
    return any(holds(part.text, answers) for part in quote.parts)


def _case(base: KnowledgeBase, question: Mapping[str, Any], embeddings: LocalEmbeddings) -> Case:
    start = time.perf_counter()
    findings = base.find(question["question"], PASSAGES)
    found = quote(question["question"], findings.passages, embeddings)
    seconds = time.perf_counter() - start
    return Case(question["source"], findings, found is not None and quotes(found, question["answers"]), seconds)


def _told(language: str, cases: Sequence[Case], target: str) -> Iterator[Result]:
    shown = [case.right and case.findings.answered for case in cases]
    yield _share(f"{language} all, the quote holds the answer", [case.right for case in cases], target)
    yield _share(f"{language} all, and is shown: the documents are said to answer", shown)
    sources: dict[str, list[bool]] = defaultdict(list)
    for case in cases:
        sources[case.source].append(case.right)
    for source, right in sources.items():
        yield _share(f"{language} {source}, the quote holds the answer", right)
    for percent in (50, 95):
        seconds = float(np.percentile([case.seconds for case in cases], percent))
        yield Result.less_is_better(
            f"{language} quote after the question, p{percent}", seconds, None, "", "s", "at most .5"
        )


def _share(name: str, right: Sequence[bool], target: str = "") -> Result:
    return Result.more_is_better(f"{name} ({len(right)})", statistics.mean(right), None, "", "of questions", target)
