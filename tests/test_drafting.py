"""Guessed tokens: the reply is the same with them, and they are made where they pay."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

import models
from models import End, LoadedModel, Lookup, Sampling, Token
from models.drafting import FIRST, KEY, LOSS, LOSS_SHARE, MEASURED, MOST
from models.generate import generate_tokens
from models.sampling import distribution, penalised
from tests.test_contract import BOUNDS, VARIANTS
from tests.tiny import CHATGLM, LLAMA, byte_level_tokenizer, save_folder

PROMPT = torch.randint(3, 300, (30,), generator=torch.Generator().manual_seed(0)).tolist()
TOKENS = 60


class Oracle:
    """Guesses what is known to come, with mistakes, in pieces of any length."""

    acceptance = None

    def __init__(self, reply: Sequence[int], prompt: int, seed: int = 0):
        self.whole = [*range(prompt), *reply]
        self.random = random.Random(seed)
        self.passes: list[tuple[int, int]] = []  # guessed, right

    def begin(self) -> None:
        pass

    def propose(self, seen: Sequence[int], most: int) -> list[int]:
        guesses = self.whole[len(seen) : len(seen) + min(self.random.randint(0, 15), max(most, 0))]
        if guesses and self.random.random() < 0.4:
            guesses[self.random.randrange(len(guesses))] = 1
        return guesses

    def checked(self, proposed: int, accepted: int, seconds: float) -> None:
        self.passes.append((proposed, accepted))


def run(
    loaded: LoadedModel, prompt: Sequence[int], draft=None, length: int = 200, stop=(), loops=None, **options
) -> list[int | str]:
    cache = loaded.new_cache(length)
    steps = generate_tokens(
        loaded.model, prompt, Sampling(**{"max_tokens": TOKENS} | options), cache, stop, draft=draft, loops=loops
    )
    return [step for step in steps if isinstance(step, int | str)]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = tmp_path_factory.mktemp("drafting")
    save_folder(folder, LLAMA | {"max_position_embeddings": 1024}, byte_level_tokenizer())
    return models.load(folder, tier="fp16")


# The same reply


@pytest.mark.parametrize("tier", ["fp32", *BOUNDS])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_greedy_reply_is_the_same_token_for_token(tmp_path: Path, variant: str, tier: str) -> None:
    save_folder(tmp_path / "tiny", VARIANTS[variant])
    loaded = models.load(tmp_path / "tiny", tier=tier)
    prompt = PROMPT if loaded.model.causal_prompt else [*PROMPT, CHATGLM["gmask_token_id"], CHATGLM["bos_token_id"]]
    plain = run(loaded, prompt)
    oracle = Oracle(plain[:-1], len(prompt))
    assert run(loaded, prompt, oracle) == plain
    right = [accepted for _, accepted in oracle.passes]
    assert max(right) > 3 and any(accepted < guessed for guessed, accepted in oracle.passes)


@pytest.mark.parametrize("options", [{"temperature": 1.0}, {"temperature": 0.8, "top_k": 20, "top_p": 0.9}, {}])
@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_a_sampled_reply_is_the_same_for_the_same_seed(loaded: LoadedModel, options: dict, penalty: float) -> None:
    for seed in range(5):
        more = options | {"seed": seed, "repetition_penalty": penalty}
        plain = run(loaded, PROMPT, **more)
        oracle = Oracle(plain[:-1], len(PROMPT), seed)
        assert run(loaded, PROMPT, oracle, **more) == plain
        assert sum(accepted for _, accepted in oracle.passes) > 10


@torch.inference_mode()
def test_sampled_tokens_have_the_distribution_of_the_model(loaded: LoadedModel) -> None:
    """Chi-square of pairs of tokens, of which the second is guessed to be the best: 15 degrees, p = .001 at 37.7."""
    options = {"temperature": 1.5, "top_k": 4, "repetition_penalty": 1.2}
    sampling = Sampling(**options, max_tokens=2)

    def following(ids: list[int]) -> torch.Tensor:
        cache = loaded.new_cache(100)
        for piece in filter(None, (ids[: len(PROMPT)], ids[len(PROMPT) :])):  # read and written as a reply is
            logits = loaded.model(torch.tensor([piece]), cache, last=True)[0, -1]
        return distribution(penalised(logits, ids, sampling.repetition_penalty), sampling)

    first = following(PROMPT)
    expected = {
        (one, two): float(first[one] * after[two])
        for one in first.nonzero().flatten().tolist()
        for after in [following([*PROMPT, one])]
        for two in after.nonzero().flatten().tolist()
    }
    best = {one: max((share, two) for (also, two), share in expected.items() if also == one)[1] for one, _ in expected}

    class Best(Oracle):
        def propose(self, seen: Sequence[int], most: int) -> list[int]:
            return [best.get(seen[-1], 1)][:most]

    runs, found = 2000, dict.fromkeys(expected, 0)
    for seed in range(runs):
        found[tuple(run(loaded, PROMPT, Best([], 0), **options, max_tokens=3, seed=seed)[:2])] += 1
    assert (
        sum((found[pair] - runs * share) ** 2 / (runs * share) for pair, share in expected.items()) < 37.7
        and len(expected) == 16
    )


# Ends within what is guessed


@pytest.mark.parametrize("count", [1, 2, 9, 17])
def test_max_tokens_within_a_guess(loaded: LoadedModel, count: int) -> None:
    plain = run(loaded, PROMPT, max_tokens=count)
    assert plain[-1] == "length" and len(plain) == count + 1
    assert run(loaded, PROMPT, Oracle(run(loaded, PROMPT), len(PROMPT)), max_tokens=count) == plain


@pytest.mark.parametrize("room", range(1, 20))
def test_the_end_of_the_window_within_a_guess(loaded: LoadedModel, room: int) -> None:
    plain = run(loaded, PROMPT, length=len(PROMPT) + room)
    assert plain[-1] == "window" and len(plain) == room + 2
    assert run(loaded, PROMPT, Oracle(run(loaded, PROMPT), len(PROMPT)), length=len(PROMPT) + room) == plain


def test_a_stop_id_within_a_guess(loaded: LoadedModel) -> None:
    whole = run(loaded, PROMPT)
    for token in sorted({token for token in whole if isinstance(token, int)}):
        plain = run(loaded, PROMPT, stop={token})
        assert plain[-1] == "stop" and token not in plain
        assert run(loaded, PROMPT, Oracle(whole, len(PROMPT)), stop={token}) == plain


@pytest.mark.parametrize("seed", range(5))
def test_a_repetition_that_ends_within_a_guess(loaded: LoadedModel, seed: int) -> None:
    whole = run(loaded, PROMPT)[:-1]
    looked: list[int] = []

    def loops(token: int) -> bool:
        looked.append(token)
        return len(looked) == 41

    oracle = Oracle(whole, len(PROMPT), seed)
    assert run(loaded, PROMPT, oracle, loops=loops) == [*whole[:41], "loop"] and looked == whole[:41]
    assert max(right for _, right in oracle.passes) > 3


def test_a_stop_text_within_a_guess(loaded: LoadedModel) -> None:
    def reply(draft: Oracle | None, **more: object) -> list[models.Event]:
        return list(models.generate(loaded, PROMPT, Sampling(max_tokens=TOKENS), draft=draft, stop_ids=(), **more))

    def text(events: list[models.Event]) -> str:
        return "".join(event.text for event in events if isinstance(event, Token))

    whole = run(loaded, PROMPT)[:-1]
    stop = text(reply(None))[20:23]
    plain = reply(None, stop_texts=[stop])
    found = reply(Oracle(whole, len(PROMPT)), stop_texts=[stop])
    assert text(found) == text(plain) and stop not in text(found) and found[-1].reason == "stop"


def test_stopping_within_a_guess_leaves_a_cache_that_can_be_continued(loaded: LoadedModel) -> None:
    plain = run(loaded, PROMPT)[:-1]
    pool = models.CachePool(loaded, 2**30)
    with pool.lend(PROMPT, 200) as loan:
        steps = generate_tokens(
            loaded.model, PROMPT, Sampling(max_tokens=TOKENS), loan.cache, (), draft=Oracle(plain, len(PROMPT), 1)
        )
        for step in steps:
            if isinstance(step, int):
                loan.ids.append(step)
            if len(loan.ids) == len(PROMPT) + 10:
                break
        steps.close()
    again = [*PROMPT, *plain[:10], plain[10]]
    with pool.lend(again, 200) as loan:
        assert loan.cache.length >= len(PROMPT) + 9
        rest = generate_tokens(loaded.model, again, Sampling(max_tokens=20), loan.cache, ())
        assert [step for step in rest if type(step) is int] == plain[11:31]


def test_a_model_whose_rows_differ_is_not_guessed_for(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.fused.kernel", lambda: None)
    oracle = Oracle(run(loaded, PROMPT), len(PROMPT))
    run(loaded, PROMPT, oracle)
    assert oracle.passes == []


# What is guessed, and when


def measured(lookup: Lookup, single: float = 1.0, more: float = 0.1) -> Lookup:
    """With so many seconds for a single token, and for each further row of a pass."""
    for _ in range(MEASURED):
        lookup.checked(0, 0, single)
    lookup._seconds |= {rows: single + more * (rows - 1) for rows in range(2, MOST + 2)}
    return lookup


TEXT = list(range(100, 160))


def test_what_followed_the_same_tokens_is_guessed() -> None:
    lookup = measured(Lookup())
    assert lookup.propose([*TEXT, 7, *TEXT[10:25]], MOST) == TEXT[25 : 25 + FIRST]
    lookup.begin()
    assert lookup.propose([*TEXT, 7, *TEXT[10 : 10 + KEY - 1]], MOST) == []
    assert lookup.propose([], MOST) == []


def test_of_several_places_the_one_that_agrees_longest_counts() -> None:
    lookup = measured(Lookup())
    seen = [*TEXT[:20], 1, 2, 3, *TEXT[12:16], 4, 5, 6, *TEXT[4:16]]
    assert lookup.propose(seen, MOST) == TEXT[16 : 16 + FIRST]


def test_guesses_grow_while_they_are_right_and_shrink_when_not() -> None:
    lookup, seen, sizes = measured(Lookup(), more=0.01), [*TEXT, *TEXT[:16]], []
    for _ in range(3):
        guesses = lookup.propose(seen, MOST)
        sizes.append(len(guesses))
        lookup.checked(len(guesses), len(guesses), 1.0)
    assert sizes == [3, 7, 15]
    lookup.checked(15, 2, 1.0)
    assert len(lookup.propose(seen, MOST)) == FIRST
    assert len(lookup.propose(seen, 2)) == 2 and lookup.propose(seen, 0) == lookup.propose(seen, -1) == []
    assert lookup.acceptance == (3 + 7 + 15 + 2) / (3 + 7 + 15 + 15)


def test_nothing_is_guessed_where_a_row_costs_as_much_as_a_pass() -> None:
    assert measured(Lookup(), more=1.0).propose([*TEXT, *TEXT[:16]], MOST) == []


def test_nothing_is_guessed_before_passes_were_measured() -> None:
    lookup = Lookup()
    assert lookup.propose([*TEXT, *TEXT[:16]], MOST) == []
    assert lookup.acceptance is None


def test_wrong_guesses_end_before_they_cost_much() -> None:
    """In the worst case, places that agree for long and always go on otherwise."""
    lookup, seen = measured(Lookup(), more=0.5), [*TEXT, *TEXT[:16]]
    seconds, written = 0.0, 0
    for _ in range(1000):
        guesses = lookup.propose(seen, MOST)
        took = 1.0 + 0.5 * len(guesses)
        lookup.checked(len(guesses), 0, took)
        seconds, written = seconds + took, written + 1
    assert seconds - written <= LOSS + LOSS_SHARE * written + FIRST


def test_a_repetition_is_guessed_beyond_its_end() -> None:
    lookup = measured(Lookup(), more=0.0)
    lookup._longest = MOST
    assert lookup.propose([*[1, 2, 3] * 8], 7) == [1, 2, 3, 1, 2, 3, 1]


def test_the_end_tells_how_many_guesses_were_right(loaded: LoadedModel) -> None:
    known = [*PROMPT, *run(loaded, PROMPT)[:-1]]

    class Knowing(Lookup):
        """Of two guesses one is right."""

        def propose(self, seen: Sequence[int], most: int) -> list[int]:
            return [known[len(seen)], 1] if len(seen) < 40 else []

    def end(draft: Lookup | None) -> End:
        return list(models.generate(loaded, PROMPT, Sampling(max_tokens=20), draft=draft, stop_ids=()))[-1]

    assert (end(measured(Knowing())).acceptance, end(None).acceptance) == (0.5, None)
