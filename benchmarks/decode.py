"""Tokens a second after a prompt, greedily, beside llama.cpp and transformers; and how near to the memory's own speed.

What a token costs at least is one read of the weights: `weights read` is their bytes times the tokens a second, beside
what reading a large buffer reached between the same rounds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import models

from . import accuracy, subjects
from .engines.child import Child, find_peer
from .process import in_child
from .results import Result
from .settings import Settings
from .subjects import Subject
from .turns import BANDWIDTH, LLAMA_CPP, OURS, ROUNDS, TRANSFORMERS, engines, medians, prompt, threads

GB = 1e9
START, LATER = 16, 1000  #: tokens of context
SECONDS = 1.0  #: that one figure of one engine should take
FEWEST, MOST = 8, 64  #: tokens that it writes meanwhile
BUFFER, READING = 2**30, 0.25  #: bytes that are read to measure the memory, many times what caches hold; seconds
STORIES, STORY = 6, 128  #: texts that the default model is judged on, and their length in tokens


@dataclass(frozen=True)
class Case:
    """`ahead` and `share` are the targets beside llama.cpp and beside the memory bandwidth."""

    subject: Subject
    contexts: tuple[int, ...] = (START,)
    ahead: str = ""
    share: str = ""


CASES = (
    Case(subjects.SMOLLM2, (START, LATER), ahead="goal 2, floor 1.6"),
    Case(subjects.SMOLLM2_INT4, (START, LATER)),
    Case(subjects.LLAMA_INT4, ahead="goal 1.4, floor 1.25", share="floor 0.85"),
    Case(subjects.LLAMA_INT8, share="floor 0.85"),
    Case(subjects.LLAMA_FP16, share="floor 0.85"),
    Case(subjects.CHATGLM2, share="floor 0.8"),
    Case(subjects.BLOOM, share="floor 0.8"),
    Case(subjects.BAICHUAN, share="floor 0.8"),
)


def run(settings: Settings) -> Iterator[Result]:
    peer = find_peer()
    for case in CASES:
        if settings.only in case.subject.name:
            yield from compare(case, settings, peer)
            if case.subject is subjects.SMOLLM2_INT4:
                yield from losses(case.subject.name, subjects.default_model(settings), case.subject.find(settings))


def compare(case: Case, settings: Settings, peer: str | None, rounds: int = ROUNDS) -> Iterator[Result]:
    length = max(case.contexts) + MOST
    with engines(case.subject, settings, peer, length) as loaded, Child("bandwidth", threads()) as memory:
        memory.ask("open", threads=threads(), nbytes=BUFFER)
        for context in case.contexts:
            measures = {name: _rate(child, context) for name, child in loaded.children.items()}
            found = medians(measures | {BANDWIDTH: partial(memory.ask, "read", seconds=READING)}, rounds)
            yield from rows(case, context, found, loaded.bytes)


def _rate(child: Child, context: int) -> partial[float]:
    """A measure that writes as many tokens as take about SECONDS."""
    first = rate(child, context, FEWEST)
    return partial(rate, child, context, max(FEWEST, min(MOST, int(first * SECONDS))))


def rate(child: Child, context: int, new: int) -> float:
    """Tokens a second, without the first, which waits for the prompt."""
    answer = child.ask("decode", ids=prompt(context), new=new)
    return (len(answer["ids"]) - 1) / answer["seconds"]


def rows(case: Case, context: int, found: dict[str, float], nbytes: int) -> Iterator[Result]:
    """`found`: tokens a second by engine, and the memory bandwidth in bytes a second; a token reads `nbytes`."""
    name = f"{case.subject.name}, decode after {context:,} tokens"
    peers = {LLAMA_CPP: (case.subject.gguf, case.ahead), TRANSFORMERS: (case.subject.floats, "")}
    for peer, (runs, target) in peers.items():
        if runs is not None:
            yield Result.more_is_better(name, found[OURS], found.get(peer), peer, "tok/s", target)
    read, bandwidth = found[OURS] * nbytes / GB, found[BANDWIDTH] / GB
    yield Result.more_is_better(f"{name}: weights read", read, bandwidth, BANDWIDTH, "GB/s", case.share)


# -- What it costs to quantize again


def losses(name: str, own: Path, floats: Path) -> Iterator[Result]:
    """Our INT4 made from the weights as floats, beside the file's own bits."""
    again, kept = in_child(measure_losses, own, floats)
    for what in ("perplexity", "divergence"):
        yield Result.less_is_better(
            f"{name}: {what}", getattr(again, what), getattr(kept, what), "the file's own bits", what
        )


def measure_losses(
    own: Path, floats: Path, stories: int = STORIES, tokens: int = STORY
) -> tuple[accuracy.Loss, accuracy.Loss]:
    """Of INT4 made anew and of the file's own bits, on what the model itself writes; they diverge from the floats."""
    kept, whole, again = models.load(own, "int4"), models.load(floats, "fp32"), models.load(floats, "int4")
    start = kept.chat_prompt([{"role": "user", "content": "Tell me a story."}]).ids
    texts = [accuracy.write_story(kept, seed, tokens, start) for seed in range(stories)]
    expected = [accuracy.log_probabilities(whole, ids) for ids in texts]
    return accuracy.measure(again, texts, expected), accuracy.measure(kept, texts, expected)
