"""Choosing the next token from its logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. temperature 0 is greedy; top_k 0, top_p 1 and repetition_penalty 1 change nothing."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int | None = None
    max_tokens: int = 512

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

    def sample(logits: torch.Tensor, seen: Sequence[int]) -> int:
        logits = logits.float().cpu()
        if not torch.isfinite(logits.max()):
            raise BadLogitsError("The model produced values that are not numbers; try another tier of this checkpoint.")
        logits = penalised(logits, seen, sampling.repetition_penalty)
        if sampling.temperature == 0:
            return int(logits.argmax())
        return int(torch.multinomial(distribution(logits, sampling), 1, generator=generator))

    return sample


def penalised(logits: torch.Tensor, seen: Sequence[int], penalty: float) -> torch.Tensor:
    """Logits of ids already seen are divided by the penalty, or multiplied where negative (Keskar et al., 2019)."""
    if penalty == 1 or not seen:
        return logits
    ids = torch.tensor(sorted(set(seen)))
    chosen = logits[ids]
    return logits.index_copy(0, ids, torch.where(chosen > 0, chosen / penalty, chosen * penalty))


def distribution(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Probabilities [vocab] after temperature, then top-k, then top-p; the best token is always kept."""
    logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.numel():
        logits = logits.masked_fill(logits < logits.topk(sampling.top_k).values[-1], float("-inf"))
    probabilities = logits.softmax(-1)
    if sampling.top_p < 1:
        ordered, order = probabilities.sort(descending=True)
        beyond = ordered.cumsum(-1) - ordered >= sampling.top_p
        probabilities[order[beyond]] = 0
        probabilities /= probabilities.sum()
    return probabilities
