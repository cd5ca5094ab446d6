"""Prompt tokens read a second, the choice of the next one included, beside llama.cpp and transformers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

from . import subjects
from .engines.child import Child, find_peer
from .results import Result
from .settings import Settings
from .subjects import Subject
from .turns import LLAMA_CPP, OURS, ROUNDS, TRANSFORMERS, engines, medians, prompt


@dataclass(frozen=True)
class Case:
    """`targets` by peer."""

    subject: Subject
    tokens: int
    targets: Mapping[str, str] = field(default_factory=dict)


CASES = (
    Case(subjects.SMOLLM2, 1024, {LLAMA_CPP: "goal 2.5, floor 2", TRANSFORMERS: "floor 1.3"}),
    Case(subjects.LLAMA_INT4, 512, {LLAMA_CPP: "goal 1.6, floor 1.2"}),
)


def run(settings: Settings) -> Iterator[Result]:
    peer = find_peer()
    for case in CASES:
        if settings.only in case.subject.name:
            yield from compare(case, settings, peer)


def compare(case: Case, settings: Settings, peer: str | None, rounds: int = ROUNDS) -> Iterator[Result]:
    with engines(case.subject, settings, peer, case.tokens + 1) as loaded:
        found = medians({name: partial(rate, each, case.tokens) for name, each in loaded.children.items()}, rounds)
    name = f"{case.subject.name}, prefill of {case.tokens:,} tokens"
    for side, target in case.targets.items():
        yield Result.more_is_better(name, found[OURS], found.get(side), side, "tok/s", target)


def rate(child: Child, tokens: int) -> float:
    return tokens / child.ask("prefill", ids=prompt(tokens))
