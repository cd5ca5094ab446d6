"""Generation as two generators: ids, then text. Closing one stops the work."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from . import fused
from .base import BaseModel
from .cache import KVCache
from .drafting import Lookup
from .prompts import overlap
from .repetition import Repetition
from .sampling import Sampler, Sampling, make_sampler
from .tokenizer import StreamDecoder

if TYPE_CHECKING:
    from .loader import LoadedModel

#: Prompt tokens per forward, where memory is not short: long enough for the matrix products, short enough for Stop to
#: act soon.
CHUNK = 256


@dataclass(frozen=True)
class Read:
    """`done` of `total` prompt tokens have been read; `reused` of them were already in the cache."""

    done: int
    total: int
    reused: int = 0


@dataclass(frozen=True)
class Token:
    """One generated id and the text that became certain with it; id None carries text held back until the end."""

    id: int | None
    text: str


@dataclass(frozen=True)
class Timings:
    """Counts and seconds of one generation; `reused` prompt tokens were already in the cache."""

    prompt_tokens: int
    reused: int
    read_seconds: float
    tokens: int
    write_seconds: float


@dataclass(frozen=True)
class End:
    """Why it ended: "stop" (the model), "length" (max_tokens), "window" (no room left) or "loop" (it repeats itself).

    `acceptance` is the share of guessed tokens that were right, None where none was guessed.
    """

    reason: str
    timings: Timings
    acceptance: float | None = None


Event = Read | Token | End


@torch.inference_mode()
def prefill(model: BaseModel, ids: Sequence[int], cache: KVCache, chunk: int = CHUNK) -> Iterator[Read | torch.Tensor]:
    """Reads ids that follow the cache, a chunk at a time; last comes the logits row [vocab] of the final id."""
    done, total = cache.length, cache.length + len(ids)
    chunk = chunk if model.causal_prompt else len(ids)
    device = cache.keys.device
    yield Read(done, total, done)
    for start in range(0, len(ids), chunk):
        part = torch.tensor([ids[start : start + chunk]], device=device)
        logits = model(part, cache, last=True)
        yield Read(done + start + part.shape[1], total, done)
    yield logits[0, -1]


@torch.inference_mode()
def generate_tokens(
    model: BaseModel,
    prompt_ids: Sequence[int],
    sampling: Sampling,
    cache: KVCache,
    stop_ids: Collection[int],
    chunk: int = CHUNK,
    draft: Lookup | None = None,
    loops: Callable[[int], bool] | None = None,
) -> Iterator[Read | int | str]:
    """Read events, then ids, then the reason of the end. What the cache holds counts as read from prompt_ids.

    A draft is asked only where each row of a pass is bitwise what it would be alone. `loops` says of each id whether
    the reply repeats itself with it, and ends then.
    """
    sample = make_sampler(sampling)
    seen = list(prompt_ids)
    for step in prefill(model, prompt_ids[cache.length :], cache, chunk):
        if isinstance(step, Read):
            yield step
    rows, guesses, seconds = step[None], [], None
    if draft is not None and not fused.runs(model, cache):
        draft = None
    if draft is not None:
        draft.begin()
    left = sampling.max_tokens
    while True:
        chosen, reason = _chosen(sample, rows, guesses, seen, stop_ids, left, loops)
        right = sum(token == guess for token, guess in zip(chosen, guesses, strict=False))
        cache.truncate(cache.length - len(guesses) + right)
        if draft is not None and seconds is not None:  # there was a pass: the first row came with the prompt
            draft.checked(len(guesses), right, seconds)
        yield from chosen
        left -= len(chosen)
        if reason is not None:
            yield reason
            return
        if cache.length == cache.capacity:
            yield "window"
            return
        guesses = [] if draft is None else draft.propose(seen, min(left, cache.capacity - cache.length) - 1)
        started = time.perf_counter()
        ids = torch.tensor([[seen[-1], *guesses]], device=cache.keys.device)
        rows = model(ids, cache, last=not guesses)[0]
        seconds = time.perf_counter() - started


def _chosen(
    sample: Sampler,
    rows: torch.Tensor,
    guesses: Sequence[int],
    seen: list[int],
    stop_ids: Collection[int],
    left: int,
    loops: Callable[[int], bool] | None,
) -> tuple[list[int], str | None]:
    """The tokens that are chosen from rows [count, vocab], as long as they are as guessed, and why they are the last.

    A row is right if all guesses before it are; the last one needs none. The tokens are added to `seen`.
    """
    chosen: list[int] = []
    for row, guess in zip(rows, (*guesses, None), strict=True):
        token = sample(row, seen)
        if token in stop_ids:
            return chosen, "stop"
        seen.append(token)
        chosen.append(token)
        if loops is not None and loops(token):
            return chosen, "loop"
        if len(chosen) == left:
            return chosen, "length"
        if token != guess:
            break
    return chosen, None


def generate(
    loaded: LoadedModel,
    prompt_ids: Sequence[int],
    sampling: Sampling | None = None,
    cache: KVCache | None = None,
    draft: Lookup | None = None,
    *,
    stop_ids: Collection[int] | None = None,
    stop_texts: Sequence[str] = (),
    begun: Sequence[int] = (),
    chunk: int = CHUNK,
) -> Iterator[Event]:
    """Events of one reply. `cache` may hold the first part of prompt_ids, which is then not read again.

    `begun` are ids at the end of prompt_ids that are the reply's own; their text comes again with the first token's,
    since the two may share a character. `draft` guesses tokens that one pass then checks; the reply is the same without
    it. stop_ids default to the checkpoint's own. Raises ValueError for a prompt that
    leaves no room in the window.
    """
    sampling = sampling or Sampling()
    if not prompt_ids:
        raise ValueError("there is no prompt to continue")
    if cache is None:
        cache = loaded.new_cache(min(loaded.context, len(prompt_ids) + sampling.max_tokens))
    if len(prompt_ids) > cache.capacity:
        raise ValueError(f"the prompt has {len(prompt_ids)} tokens, the window {cache.capacity}")
    # The last id must be read to know what follows it; a prompt that attends both ways is read whole.
    cache.truncate(min(cache.length, len(prompt_ids) - 1) if loaded.model.causal_prompt else 0)
    clock = _Clock(prompt_tokens=len(prompt_ids), reused=cache.length)
    text = _StoppableText(StreamDecoder(loaded.tokenizer), stop_texts)
    told = "".join(text.push(token) for token in begun)
    stops = loaded.stop_ids if stop_ids is None else stop_ids
    loops = Repetition(loaded.tokenizer.decode).push if sampling.end_loops else None
    for step in generate_tokens(loaded.model, prompt_ids, sampling, cache, stops, chunk, draft, loops):
        if isinstance(step, Read):
            yield step
        elif isinstance(step, int):
            clock.token()
            yield Token(step, told + text.push(step))
            told = ""
        if text.stopped:
            step = "stop"
        if isinstance(step, str):
            if tail := told + text.flush():
                yield Token(None, tail)
            yield End(step, clock.timings(), None if draft is None else draft.acceptance)
            return


@dataclass
class _Clock:
    prompt_tokens: int
    reused: int
    tokens: int = 0
    started: float = field(default_factory=time.perf_counter)
    first: float | None = None

    def token(self) -> None:
        self.tokens += 1
        self.first = self.first or time.perf_counter()

    def timings(self) -> Timings:
        now = time.perf_counter()
        first = self.first or now
        return Timings(self.prompt_tokens, self.reused, first - self.started, self.tokens, now - first)


class _StoppableText:
    """Streamed text up to the first stop text, of which no beginning is ever shown."""

    def __init__(self, decoder: StreamDecoder, stop_texts: Sequence[str]) -> None:
        self._decoder = decoder
        self._stop_texts = [stop for stop in stop_texts if stop]
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        return self._release(self._decoder.push(token))

    def flush(self) -> str:
        if self.stopped:
            return ""
        text = self._release(self._decoder.flush())
        return text if self.stopped else text + self._held

    def _release(self, piece: str) -> str:
        text = self._held + piece
        found = [at for stop in self._stop_texts if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = max((overlap(text, stop) for stop in self._stop_texts), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]
