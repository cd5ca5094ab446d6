"""From a checkpoint on the disk to the first word of a reply, beside llama-cpp-python, each time in a fresh process.

The clock starts when everything is imported. A first start, which does not count, has built what is kept and left the
files in the page cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from . import subjects
from .engines.child import Child, find_peer
from .results import Result
from .settings import Settings
from .turns import LLAMA_CPP, OURS, ROUNDS, medians, threads

TEXT = "Why is the sky blue?"
ALLOWED = 1.5  #: seconds
BEHIND = 1.5  #: llama.cpp's times that ours may take


def run(settings: Settings) -> Iterator[Result]:
    peer = find_peer()
    if settings.only in subjects.SMOLLM2.name:
        yield from compare("SmolLM2-135M", subjects.default_model(settings), settings, peer)


def compare(name: str, path: Path, settings: Settings, peer: str | None, rounds: int = ROUNDS) -> Iterator[Result]:
    own = {"tier": subjects.SMOLLM2.tier, "store": str(settings.scratch / "quantized")}
    measures = {OURS: partial(seconds, path, "ours", **own)}
    if peer is not None:
        measures[LLAMA_CPP] = partial(seconds, path, "llama_cpp", peer)
    found = medians(measures, rounds)
    row = f"{name}, load to first token, next start"
    yield Result.less_is_better(row, found[OURS], found.get(LLAMA_CPP), LLAMA_CPP, "s", f"floor {1 / BEHIND:.2g}")
    yield Result.less_is_better(row, found[OURS], ALLOWED, "allowed", "s", "floor 1")


def seconds(path: Path, module: str, *python: str, **options: Any) -> float:
    with Child(module, threads(), *python) as child:
        return child.ask("first", path=str(path), threads=threads(), text=TEXT, **options)
