"""Engines that take turns: each has a process of its own and stays loaded, and only one of them works at a time.

A round takes one figure of each, so that what slows the machine down meets them all; of the rounds the median counts.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch

from .engines.child import Child
from .settings import Settings
from .subjects import Subject

ROUNDS = 5
OURS, LLAMA_CPP, TRANSFORMERS = "ours", "llama.cpp", "transformers fp32"
BANDWIDTH = "memory bandwidth"


def medians(measures: Mapping[str, Callable[[], float]], rounds: int = ROUNDS) -> dict[str, float]:
    """By the measures' names; a first round, in which pages and threads are fetched, does not count."""
    found: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(1 + rounds):
        for name, measure in measures.items():
            found[name].append(measure())
    return {name: statistics.median(figures[1:]) for name, figures in found.items()}


def prompt(length: int) -> list[int]:
    """Ids that every vocabulary has."""
    return [5 + i % 97 for i in range(length)]


def threads() -> int:
    """What every engine gets: as many as PyTorch would take (OMP_NUM_THREADS says otherwise)."""
    return torch.get_num_threads()


@dataclass(frozen=True)
class Engines:
    """Loaded with one subject, by name; `bytes` of weights are what a token reads in ours."""

    children: Mapping[str, Child]
    bytes: int


@contextlib.contextmanager
def engines(subject: Subject, settings: Settings, peer: str | None, length: int) -> Iterator[Engines]:
    """Ours, and the peers that are here and can run the subject; each with room for `length` positions.

    `peer` is a Python that has llama-cpp-python.
    """
    shared = {"threads": threads(), "length": length}
    with contextlib.ExitStack() as stack:

        def start(module: str, *python: str) -> Child:
            return stack.enter_context(Child(module, threads(), *python))

        store = str(settings.scratch / "quantized")
        own = {"tier": subject.tier, "store": store, "text": subject.text}
        children = {OURS: start("ours")}
        read = children[OURS].ask("open", path=str(subject.find(settings)), **own, **shared)
        if peer is not None and subject.gguf is not None:
            children[LLAMA_CPP] = start("llama_cpp", peer)
            children[LLAMA_CPP].ask("open", path=str(subject.gguf(settings)), **shared)
        if subject.floats is not None:
            children[TRANSFORMERS] = start("transformers")
            children[TRANSFORMERS].ask("open", path=str(subject.floats(settings)), **shared)
        yield Engines(children, read)
