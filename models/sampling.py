"""Choosing the next token from its logits."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. temperature 0 is greedy; top_k 0, top_p 1 and repetition_penalty 1 change nothing.

    end_loops: end a reply that only repeats itself.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int | None = None
    max_tokens: int = 512
    end_loops: bool = False

    def __post_init__(self) -> None:
        bounds = {
            "temperature": self.temperature >= 0,
            "top_p": 0 < self.top_p <= 1,
            "top_k": self.top_k >= 0,
            "repetition_penalty": self.repetition_penalty > 0,
            "max_tokens": self.max_tokens >= 1,
        }
        for name, holds in bounds.items():
            if not holds:
                raise ValueError(f"{name} can't be {getattr(self, name)}")


class BadLogitsError(RuntimeError):
    """The model gave NaN or only infinities: nothing can be chosen."""


Sampler = Callable[[torch.Tensor, Sequence[int]], int]


def make_sampler(sampling: Sampling) -> Sampler:
    """A function (logits [vocab], the ids so far) -> next id."""
    generator = torch.Generator()
    generator.manual_seed(sampling.seed) if sampling.seed is not None else generator.seed()
    penalise = _Penalty(sampling.repetition_penalty)

    def sample(logits: torch.Tensor, seen: Sequence[int]) -> int:
        logits = logits.float().cpu()
        best = _best(logits)
        if not math.isfinite(logits[best]):  # the first that is not a number is the best one
            raise BadLogitsError("The model produced values that are not numbers; try another tier of this checkpoint.")
        changed = penalise(logits, seen)
        if sampling.temperature == 0:
            return best if changed is logits else _best(changed)
        probabilities, tokens = candidates(changed, sampling)
        chosen = _drawn(probabilities, torch.rand(1, generator=generator, dtype=torch.float64).item())
        return chosen if tokens is None else int(tokens[chosen])

    return sample


def _best(logits: torch.Tensor) -> int:
    """The token with the highest logit. NumPy's, because PyTorch wakes its threads for so few numbers."""
    return int(logits.numpy().argmax())


def _drawn(probabilities: torch.Tensor, number: float) -> int:
    """Which one a random number from 0 to below 1 falls upon where each takes its share of that length."""
    ends = probabilities.numpy().cumsum(dtype=float)
    return min(int(ends.searchsorted(number * ends[-1], side="right")), len(ends) - 1)  # the product may be rounded up


def penalised(logits: torch.Tensor, seen: Sequence[int], penalty: float) -> torch.Tensor:
    """Logits of ids already seen are divided by the penalty, or multiplied where negative (Keskar et al., 2019)."""
    return _Penalty(penalty)(logits, seen)


class _Penalty:
    """`penalised` for one reply: of a list that grows from token to token only what is new is looked at."""

    def __init__(self, penalty: float) -> None:
        self._penalty = penalty
        self._seen: Sequence[int] = ()
        self._count = 0
        self._ids: dict[int, None] = {}

    def __call__(self, logits: torch.Tensor, seen: Sequence[int]) -> torch.Tensor:
        if self._penalty == 1 or not seen:
            return logits
        if seen is not self._seen or len(seen) < self._count:
            self._seen, self._count, self._ids = seen, 0, {}
        self._ids.update(dict.fromkeys(seen[self._count :]))
        self._count = len(seen)
        ids = list(self._ids)
        values = logits.numpy().copy()
        chosen = values[ids]
        chosen[chosen > 0] /= self._penalty
        chosen[chosen < 0] *= self._penalty
        values[ids] = chosen
        return torch.from_numpy(values)


def distribution(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Probabilities [vocab] after temperature, then top-k, then top-p; the best token is always kept."""
    probabilities, tokens = candidates(logits, sampling)
    return probabilities if tokens is None else torch.zeros_like(logits).index_copy(0, tokens, probabilities)


def candidates(logits: torch.Tensor, sampling: Sampling) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The probabilities above zero of `distribution` [n], and the tokens that they belong to (None: all, in order)."""
    logits = torch.from_numpy(logits.numpy() / sampling.temperature)
    tokens = None
    if 0 < sampling.top_k < logits.numel():
        least = logits.topk(sampling.top_k).values[-1].item()
        (tokens,) = (torch.from_numpy(found) for found in (logits.numpy() >= least).nonzero())
        logits = logits[tokens]
    probabilities = logits.softmax(-1)
    if sampling.top_p < 1:
        probabilities, order = _nucleus(probabilities, sampling.top_p)
        tokens = order if tokens is None else tokens[order]
    return probabilities, tokens


#: How many of the best tokens are put in order at first: rarely more are needed to reach top_p.
FIRST = 128


def _nucleus(probabilities: torch.Tensor, top_p: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The fewest best whose sum reaches top_p, as shares of it, and where they are. Not all need to be sorted."""
    count = FIRST
    while True:
        ordered, order = probabilities.topk(min(count, probabilities.numel()))
        reached = ordered.cumsum(-1)
        if count >= probabilities.numel() or reached[-1] >= top_p:
            kept = reached - ordered < top_p
            return ordered[kept] / ordered[kept].sum(), order[kept]
        count *= 8
