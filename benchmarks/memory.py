"""Memory and load time: what models.footprint predicts beside what a process takes that loads a tier and answers.

Each measurement is a fresh process. Counted is its resident memory above what it held after a tiny model had been
loaded and had answered, so that neither imports nor kernels count: its own pages, and pages of mapped files that it has
touched. The peak is Linux's high-water mark of the two together, once while loading and once while a prompt of nearly
the whole window is read and answered.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import models
from chatapp import planner
from models import Sampling
from models.generate import generate_tokens
from tests import stories260k

from . import subjects
from .process import Memory, forget_files, in_child, memory, reset_peak
from .results import Result
from .settings import Settings

MB = 1e6
REPLY = 8  #: tokens
LOADING = 1.15  #: finished models: what loading may take at its peak


@dataclass(frozen=True)
class Case:
    """A checkpoint, the tiers that are measured, and the window in tokens."""

    name: str
    find: subjects.Find
    tiers: tuple[str, ...]
    window: int = 512


@dataclass(frozen=True)
class Measured:
    """A load and a reply. Bytes are above what the process held before; `held` is taken between the two."""

    seconds: float
    loading: int
    held: Memory
    answering: int


def _shape(name: str, checkpoint: str, tiers: tuple[str, ...], **changes: int) -> Case:
    return Case(name, subjects.shape(name, checkpoint, **changes), tiers)


CASES = (
    Case("SmolLM2-135M", subjects.default_model, ("fp32", "fp16", "int4")),
    _shape("ChatGLM2-6B-8-layers", "THUDM/chatglm2-6b", ("fp16", "int8", "int4"), num_layers=8),
    _shape("Baichuan-13B-4-layers", "baichuan-inc/Baichuan-13B-Chat", ("int8", "int4"), num_hidden_layers=4),
    _shape("LLaMA-7B", "huggyllama/llama-7b", ("int8", "int4")),
)


def run(settings: Settings) -> Iterator[Result]:
    for case in CASES:
        if settings.only in case.name:
            path = case.find(settings)
            for tier in case.tiers:
                yield from compare(case.name, path, tier, case.window, settings.scratch / "quantized")


def compare(name: str, path: Path, tier: str, window: int, store: Path) -> Iterator[Result]:
    """The rows of one tier: made from the checkpoint, and where it was kept, mapped at the next starts."""
    shutil.rmtree(store, ignore_errors=True)
    needs = planner.footprint_of(path)
    weights = needs.weights(tier)
    predicted = weights, weights + needs.cache(tier, window) + needs.scratch(tier, "cpu", window)
    forget_files(path)
    first = in_child(measure, path, tier, window, store)
    yield from _rows(f"{name} {tier}, first start", first, *predicted)
    if not store.exists():
        return
    forget_files(store)
    again = in_child(measure, path, tier, window, store)
    yield from _rows(f"{name} {tier}, next start", again, *predicted)
    cached = in_child(measure, path, tier, window, store)
    for kind, found in (("disk", again), ("page cache", cached)):
        row = f"{name} {tier}, next start from the {kind}"
        yield Result.less_is_better(row, found.seconds, first.seconds, "first start", "s")
    shutil.rmtree(store)


def _rows(name: str, measured: Measured, weights: int, whole: int) -> Iterator[Result]:
    """What is held is shown as a whole and by its larger kind, own or mapped pages: they weigh differently."""
    held = measured.held
    kind, pages = max(("own", held.own), ("mapped", held.files), key=lambda pair: pair[1])
    rows = (
        ("weights", held.own + held.files, weights, "predicted"),
        (f"weights, {kind} pages alone", pages, weights, "predicted"),
        ("peak of loading", measured.loading, LOADING * weights, f"{LOADING} x predicted weights"),
        ("peak of answering", measured.answering, whole, "predicted"),
    )
    for row, ours, peer, peer_name in rows:
        yield Result.less_is_better(f"{name}: {row}", ours / MB, peer / MB, peer_name, "MB")


def measure(path: Path, tier: str, window: int, store: Path) -> Measured:
    """Loads, then answers a prompt that fills the window but for the reply; to be called in a fresh process."""
    _warm_up(tier)
    before = memory()
    reset_peak()
    started = time.perf_counter()
    loaded = models.load(path, tier, context=window, store=store)
    seconds = time.perf_counter() - started
    loading, held = memory().peak - before.own - before.files, memory() - before
    reset_peak()
    answer(loaded)
    return Measured(seconds, loading, held, memory().peak - before.own - before.files)


def answer(loaded: models.LoadedModel) -> list[int]:
    """A reply's ids. Raises BadLogitsError where the model computes values that are not numbers."""
    prompt = [5 + i % 97 for i in range(loaded.context - REPLY)]
    cache = loaded.new_cache()
    steps = generate_tokens(loaded.model, prompt, Sampling(temperature=0, max_tokens=REPLY), cache, ())
    return [step for step in steps if type(step) is int]


def _warm_up(tier: str) -> None:
    """What every process pays once, whatever it loads: code that is read, kernels, threads."""
    with tempfile.TemporaryDirectory() as scratch:
        answer(models.load(stories260k.save_folder(Path(scratch)), tier))
