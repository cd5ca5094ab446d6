"""Choosing the next token."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from models.sampling import BadLogitsError, Sampling, distribution, make_sampler, penalised

CASES = [
    {"temperature": 1.0},
    {"temperature": 0.3},
    {"temperature": 2.5, "top_k": 3},
    {"temperature": 0.7, "top_p": 0.5},
    {"temperature": 1.3, "top_p": 0.9, "top_k": 20},
    {"temperature": 1.0, "top_p": 1e-6},
    {"temperature": 1.0, "top_k": 1},
    {"temperature": 1.0, "top_k": 1000},
]


def random_logits(size: int = 50, seed: int = 0) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)) * 3


def plain_distribution(logits: list[float], temperature: float, top_k: int, top_p: float) -> list[float]:
    """The definition, token by token: temperature, the k best, then the fewest best that reach p."""
    best_first = sorted(range(len(logits)), key=lambda token: -logits[token])
    kept = best_first[:top_k] if top_k else best_first
    weights = {token: math.exp((logits[token] - logits[best_first[0]]) / temperature) for token in kept}
    total = sum(weights.values())
    nucleus, reached = [], 0.0
    for token in kept:
        nucleus.append(token)
        reached += weights[token] / total
        if reached >= top_p and top_p < 1:
            break
    share = sum(weights[token] for token in nucleus)
    return [weights[token] / share if token in nucleus else 0.0 for token in range(len(logits))]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("seed", [0, 1])
def test_distribution_follows_its_definition(case: dict, seed: int) -> None:
    sampling = Sampling(**case)
    logits = random_logits(seed=seed)
    ours = distribution(logits, sampling)
    plain = plain_distribution(logits.tolist(), sampling.temperature, sampling.top_k, sampling.top_p)
    torch.testing.assert_close(ours, torch.tensor(plain), atol=1e-6, rtol=0)


@pytest.mark.parametrize("top_p", [0.1, 0.9, 0.99999])
@pytest.mark.parametrize("spread", [0.01, 1.0, 5.0])
def test_large_vocabularies_follow_the_definition(spread: float, top_p: float) -> None:
    """Where few tokens reach top_p, and where nearly all are needed."""
    logits = random_logits(3000).double() * spread
    ours = distribution(logits, Sampling(temperature=1.0, top_p=top_p))
    plain = torch.tensor(plain_distribution(logits.tolist(), 1.0, 0, top_p), dtype=torch.float64)
    torch.testing.assert_close(ours, plain, atol=1e-6, rtol=0)


def test_samples_follow_the_distribution() -> None:
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log()
    sample = make_sampler(Sampling(temperature=1.0, seed=5))
    counts = Counter(sample(logits, []) for _ in range(4000))
    for token, probability in enumerate([0.1, 0.2, 0.3, 0.4]):
        assert abs(counts[token] / 4000 - probability) < 0.03  # four standard deviations


def draw(sampling: Sampling, count: int = 30) -> list[int]:
    sample = make_sampler(sampling)
    return [sample(random_logits(seed=step), []) for step in range(count)]


def test_a_seed_repeats_itself_and_none_does_not() -> None:
    seeded = Sampling(temperature=1.5, seed=7)
    assert draw(seeded) == draw(seeded)
    assert draw(seeded) != draw(Sampling(temperature=1.5, seed=8))
    free = Sampling(temperature=1.5)
    assert draw(free) != draw(free)


def test_sampling_leaves_torch_global_state_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    draw(Sampling(temperature=1.0, seed=1))
    assert torch.equal(torch.rand(1), expected)


def test_greedy_takes_the_best() -> None:
    logits = random_logits()
    assert make_sampler(Sampling())(logits, []) == int(logits.argmax())


def test_repetition_penalty() -> None:
    logits = torch.tensor([2.0, -1.0, 0.5, 3.0])
    assert penalised(logits, [0, 1, 1, 0], 2.0).tolist() == [1.0, -2.0, 0.5, 3.0]
    assert logits.tolist() == [2.0, -1.0, 0.5, 3.0]
    assert penalised(logits, [], 2.0) is logits
    sample = make_sampler(Sampling(repetition_penalty=2.0))
    assert sample(logits, [3]) == 0


def test_repetition_penalty_of_a_reply_that_grows() -> None:
    sample, seen = make_sampler(Sampling(repetition_penalty=3.0)), []
    logits = random_logits() + 9
    for _ in range(30):
        assert sample(logits, seen) == int(penalised(logits, list(seen), 3.0).argmax())
        seen.append(int(logits.argsort(descending=True)[len(seen)]))
    other = seen[:5]
    assert sample(logits, other) == int(penalised(logits, list(other), 3.0).argmax())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("top_k", -1),
        ("repetition_penalty", 0.0),
        ("max_tokens", 0),
    ],
)
def test_impossible_values_are_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} can't be {value}"):
        Sampling(**{name: value})


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers(bad: float, temperature: float) -> None:
    logits = random_logits()
    logits[10:] = bad
    logits[:10] = bad if bad < 0 else 0
    with pytest.raises(BadLogitsError, match="not numbers"):
        make_sampler(Sampling(temperature=temperature))(logits, [])


def test_forbidden_tokens_may_be_minus_infinity() -> None:
    logits = torch.full((5,), -math.inf)
    logits[3] = -2.0
    assert draw_one(logits, 0.0) == draw_one(logits, 1.0) == 3


def draw_one(logits: torch.Tensor, temperature: float) -> int:
    return make_sampler(Sampling(temperature=temperature, top_p=0.5))(logits, [])
