"""Follow-up questions: whether the passage that answers them is found, by what is searched for.

`--model PATH` names the model whose own rewriting is measured; without it that is the embedded one. Its conversation
has the earlier questions, each with its quote as the reply.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from chatapp import checkpoints
from chatapp.answering import Question, asked_alone, search
from chatapp.conversation import Turn
from chatapp.engine import Engine
from chatapp.preferences import Retrieving
from chatapp.settings import parse
from chatapp.startup import Startup
from knowledge import Findings, KnowledgeBase
from knowledge.embedder import LocalEmbeddings
from knowledge.followup import Standalone, standalone

from . import question_sets
from .results import Result
from .settings import Settings

CASES = Path(__file__).parents[1] / "tests" / "data" / "followups.jsonl"
DEPTH = 5
BY_HAND = "stand-alone, written by hand"

Case = Mapping[str, Any]
"""A line of CASES: language, kind, split, turns, gold (names of passages), standalone."""

FORMS: Mapping[str, Callable[[Case], Standalone]] = {
    "last message alone": lambda case: _as_it_is(case["turns"][-1]),
    "all questions joined": lambda case: _as_it_is(" ".join(case["turns"])),
    "the rule": lambda case: standalone(case["turns"][-1], case["turns"][:-1]),
    BY_HAND: lambda case: _as_it_is(case["standalone"]),
}


def _as_it_is(text: str) -> Standalone:
    return Standalone(text, changed=False)


def run(settings: Settings) -> Iterator[Result]:
    embeddings = LocalEmbeddings(checkpoints.ensure_embedder(settings.data))
    sets = Path(os.environ["QUATRAIN_TEST_ASSETS"]) / "qa"
    bases = question_sets.bases(sets, settings.scratch / "questions", embeddings)
    engine = _engine(settings)
    forms = {
        **FORMS,
        f"rewritten by {engine.status.name}": lambda case: by_model(engine, bases[case["language"]], case),
    }
    cases = [json.loads(line) for line in CASES.read_text(encoding="utf-8").splitlines()]
    ranks = {
        name: np.array([rank(bases[case["language"]], form(case), case["gold"]) for case in cases])
        for name, form in forms.items()
    }
    for group, chosen in _groups(cases).items():
        for name in forms:
            for depth in (1, DEPTH):
                mine, best = (float(np.mean(ranks[which][chosen] < depth)) for which in (name, BY_HAND))
                title = f"{group} ({chosen.sum()}), {name}, hit@{depth}"
                yield Result.more_is_better(title, mine, best, BY_HAND, "of questions")


def _engine(settings: Settings) -> Engine:
    """The model, as the app would load it on this machine."""
    path = settings.model or checkpoints.ensure_default_model(settings.data)
    engine = Engine()
    startup = Startup(parse(["--data", str(settings.data)], {}), engine)
    engine.load(startup.source(path, checkpoints.name_of(path)))
    return engine


def by_model(engine: Engine, base: KnowledgeBase, case: Case) -> Standalone:
    """What is searched for where the loaded model makes the last question stand alone."""
    *earlier, last = case["turns"]
    history = [turn for at, text in enumerate(earlier) for turn in _exchange(base, text, earlier[:at])]
    asking = asked_alone(engine, Question(last, history, followups="model"), threading.Event())
    while True:
        try:
            next(asking)
        except StopIteration as ended:
            return ended.value


def _exchange(base: KnowledgeBase, text: str, earlier: Sequence[str]) -> tuple[Turn, Turn]:
    """An earlier question, and what is quoted for it."""
    searched, findings = search(base, standalone(text, earlier), Retrieving())
    quote = base.quote(searched, findings.passages)
    return Turn("user", text), Turn("assistant", "…" if quote is None else quote.text)


def rank(base: KnowledgeBase, asked: Standalone, gold: Sequence[str]) -> int:
    """At which place of what is found the first right passage is, from 0; DEPTH if it is not among the first."""
    _, findings = search(base, asked, Retrieving(passages=DEPTH))
    return next((place for place, name in enumerate(_names(findings)) if name in gold), DEPTH)


def _names(findings: Findings) -> list[str]:
    return [Path(passage.name).stem for passage in findings.passages]


def _groups(cases: Sequence[Case]) -> dict[str, np.ndarray]:
    """The rows of all cases, and of each value of what tells them apart, bool [cases]."""
    groups = {"all": np.ones(len(cases), bool)}
    for column in ("kind", "split", "language"):
        for value in dict.fromkeys(case[column] for case in cases):
            groups[value] = np.array([case[column] == value for case in cases])
    return groups
