"""Caches of earlier prompts: what is shared is not read again, and nothing else is ever taken for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

import models
from models import CachePool, LoadedModel
from models.cache import KVCache
from models.reuse import FEWEST, STEP
from tests.test_contract import BOUNDS, VARIANTS, difference
from tests.tiny import LLAMA, save_folder

CONFIG = LLAMA | {"max_position_embeddings": 4096}
LONG = 10 * FEWEST


def ids_of(seed: int, count: int = LONG) -> list[int]:
    return torch.randint(3, 300, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


@torch.inference_mode()
def read(loaded: LoadedModel, cache: KVCache, ids: Sequence[int], chunk: int = 64) -> torch.Tensor:
    """Reads what the cache does not hold; returns the last row of logits."""
    while cache.length < len(ids):
        logits = loaded.model(torch.tensor([ids[cache.length : cache.length + chunk]]), cache, last=True)
    return logits[0, -1]


def use(pool: CachePool, loaded: LoadedModel, ids: Sequence[int], room: int | None = None) -> tuple[int, torch.Tensor]:
    """One prompt: how many of its ids were there already, and its last row of logits."""
    with pool.lend(ids, room or len(ids)) as loan:
        return loan.cache.length, read(loaded, loan.cache, ids)


def found(pool: CachePool, ids: Sequence[int]) -> int:
    """How many of a prompt's ids would not be read."""
    return pool.reusable(ids, len(ids))


def fresh(loaded: LoadedModel, ids: Sequence[int]) -> torch.Tensor:
    return read(loaded, loaded.new_cache(len(ids)), ids)


def cost(loaded: LoadedModel, positions: int) -> int:
    return loaded.needs.cache(loaded.tier, positions)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = tmp_path_factory.mktemp("reuse")
    save_folder(folder, CONFIG)
    return models.load(folder, tier="fp32")


@pytest.fixture
def pool(loaded: LoadedModel) -> CachePool:
    return CachePool(loaded, cost(loaded, 8 * STEP))


# The same logits, by architecture and tier


@pytest.mark.parametrize("tier", ["fp32", *BOUNDS])
@pytest.mark.parametrize(
    "variant", [name for name in VARIANTS if not name.startswith("chatglm-") and name != "chatglm"]
)
def test_a_reused_beginning_gives_the_logits_of_a_fresh_run(tmp_path: Path, variant: str, tier: str) -> None:
    """Within what chunks of another size change (test_contract's `steps`); copied, cut and grown alike."""
    save_folder(tmp_path / "tiny", VARIANTS[variant] | {"max_sequence_length": 4096})
    loaded = models.load(tmp_path / "tiny", tier=tier)
    pool = CachePool(loaded, 2**30)
    start, other, more = ids_of(1), ids_of(2), ids_of(3)
    bound = 1e-4 if tier == "fp32" else BOUNDS[tier].steps
    use(pool, loaded, [*start, *other])
    for end in (more, other[:3], [*other, *more]):  # a copy, a copy again, and what continues the first
        ids = [*start, *end]
        reused, logits = use(pool, loaded, ids)
        assert reused >= len(start)
        with torch.inference_mode():
            cache = loaded.new_cache(pool._capacity(len(ids)))  # dynamic scaling takes its base from there
            assert difference(logits, read(loaded, cache, ids)) < bound


def test_a_prompt_that_attends_both_ways_is_never_reused(tmp_path: Path) -> None:
    save_folder(tmp_path / "tiny", VARIANTS["chatglm"])
    loaded = models.load(tmp_path / "tiny", tier="fp32")
    assert not loaded.model.causal_prompt
    pool = CachePool(loaded, 2**30)
    prompt = [*ids_of(1), 311, 314]
    with pool.lend(prompt, 300) as loan:
        loaded.model(torch.tensor([prompt]), loan.cache)
    assert len(pool) == 0 and found(pool, [*prompt, 5]) == 0


def test_positions_scaled_by_another_length_are_not_continued(tmp_path: Path) -> None:
    """Dynamic NTK: keys of a short prompt are as trained, those of a long one are rotated otherwise."""
    trained = 64
    config = LLAMA | {"max_position_embeddings": trained, "max_sequence_length": 1024}
    save_folder(tmp_path / "tiny", config | {"rope_scaling": {"type": "dynamic", "factor": 2.0}})
    loaded = models.load(tmp_path / "tiny", tier="fp32")
    pool, short = CachePool(loaded, 2**30), ids_of(1, trained - 8)
    assert use(pool, loaded, short)[0] == 0
    assert use(pool, loaded, [*short[:-1], 7])[0] == len(short) - 1
    long = [*short, *ids_of(2)]
    reused, logits = use(pool, loaded, long)
    assert reused == 0
    torch.testing.assert_close(logits, read(loaded, loaded.new_cache(1024), long), atol=1e-4, rtol=0)
    assert use(pool, loaded, [*long, 5])[0] == len(long)


# What is found


def test_a_follow_up_reads_what_is_new(pool: CachePool, loaded: LoadedModel) -> None:
    first = ids_of(1)
    assert use(pool, loaded, first)[0] == 0
    assert use(pool, loaded, [*first, *ids_of(2)])[0] == len(first)
    assert len(pool) == 1  # it goes on in the same cache


def test_an_edit_is_read_from_the_change_on_and_the_former_version_stays(pool: CachePool, loaded: LoadedModel) -> None:
    start, old, new = ids_of(1), ids_of(2), ids_of(3)
    use(pool, loaded, [*start, *old])
    assert use(pool, loaded, [*start, *new])[0] == len(start)
    assert found(pool, [*start, *old, 5]) == len(start) + len(old)
    assert found(pool, [*start, *new, 5]) == len(start) + len(new)


def test_the_same_prompt_again_reads_its_last_id(pool: CachePool, loaded: LoadedModel) -> None:
    use(pool, loaded, ids_of(1))
    assert use(pool, loaded, ids_of(1))[0] == LONG - 1


def test_two_conversations_take_turns_and_lose_nothing(pool: CachePool, loaded: LoadedModel) -> None:
    one, two = ids_of(1), ids_of(2)
    use(pool, loaded, one)
    use(pool, loaded, two)
    for turn in range(3, 8):
        for conversation in (one, two):
            before = len(conversation)
            conversation += ids_of(turn)
            assert use(pool, loaded, conversation)[0] == before


def test_a_beginning_of_a_few_ids_is_not_worth_it(pool: CachePool, loaded: LoadedModel) -> None:
    use(pool, loaded, ids_of(1))
    assert found(pool, [*ids_of(1)[: FEWEST - 1], *ids_of(2)]) == 0
    assert found(pool, [*ids_of(1)[:FEWEST], *ids_of(2)]) == FEWEST


def test_what_was_written_is_kept_with_what_was_read(pool: CachePool, loaded: LoadedModel) -> None:
    prompt = ids_of(1)
    with pool.lend(prompt, 400) as loan:
        events = models.generate(loaded, prompt, models.Sampling(max_tokens=20), loan.cache, stop_ids=())
        # The tokenizer is missing here: only ids are asked for.
        events.close()
        for id in (7, 8, 9):
            read(loaded, loan.cache, loan.ids)
            loan.ids.append(id)
    assert found(pool, [*prompt, 7, 8, 9, 10]) == len(prompt) + 2  # the last one was chosen, not read


def test_what_a_draft_read_too_much_is_forgotten(pool: CachePool, loaded: LoadedModel) -> None:
    prompt = ids_of(1)
    with pool.lend(prompt, 400) as loan:
        read(loaded, loan.cache, [*prompt, 7, 8, 9])
        loan.ids.append(7)
    assert found(pool, [*prompt, 7, 8, 9, 10]) == len(prompt) + 1


def test_work_that_failed_leaves_no_cache_and_work_that_was_stopped_does(loaded: LoadedModel) -> None:
    pool = CachePool(loaded, 2**30, stopping=(KeyError,))
    for error, kept in ((ValueError, 0), (KeyError, 1)):
        with pytest.raises(error), pool.lend(ids_of(1), LONG) as loan:
            read(loaded, loan.cache, ids_of(1)[:100])
            raise error
        assert len(pool) == kept
    assert found(pool, ids_of(1)) == 100


# The budget


def test_two_hundred_turns_of_ten_conversations_stay_within_the_budget(loaded: LoadedModel) -> None:
    budget = cost(loaded, 6 * STEP)
    pool, generator = CachePool(loaded, budget), torch.Generator().manual_seed(0)
    conversations = [ids_of(number) for number in range(10)]
    most, reused = 0, 0
    for turn in range(200):
        number = int(torch.randint(10, (1,), generator=generator))
        if len(conversations[number]) > 1500:
            conversations[number] = ids_of(number)
        conversations[number] += ids_of(1000 + turn, 40)
        with pool.lend(conversations[number], len(conversations[number])) as loan:
            most, reused = max(most, pool.nbytes), reused + loan.cache.length
            expected = pool.nbytes
            read(loaded, loan.cache, conversations[number], 512)
        assert pool.nbytes <= expected <= budget
    assert budget / 2 < most and reused > 0 and 1 < len(pool) < 10


def test_the_cache_that_was_used_longest_ago_goes_first(loaded: LoadedModel) -> None:
    pool = CachePool(loaded, cost(loaded, 2 * STEP))
    for seed in (1, 2, 1, 3):
        use(pool, loaded, ids_of(seed))
    assert [found(pool, [*ids_of(seed), 5]) for seed in (1, 2, 3)] == [LONG, 0, LONG]


def test_where_nothing_else_is_old_enough_to_go_the_cache_is_cut(loaded: LoadedModel) -> None:
    pool = CachePool(loaded, cost(loaded, STEP))
    use(pool, loaded, [*ids_of(1), *ids_of(2)])
    assert use(pool, loaded, [*ids_of(1), *ids_of(3)])[0] == LONG
    assert len(pool) == 1 and found(pool, [*ids_of(1), *ids_of(2)]) == LONG


def test_a_window_larger_than_the_budget_is_given_out_and_not_kept(loaded: LoadedModel) -> None:
    pool = CachePool(loaded, cost(loaded, STEP))
    use(pool, loaded, ids_of(1, 100))
    with pool.lend(ids_of(2), 2 * STEP) as loan:
        assert loan.cache.capacity == 2 * STEP and len(pool) == 0
    assert len(pool) == 0 and pool.nbytes == 0


def test_caches_go_where_memory_is_short(pool: CachePool, loaded: LoadedModel) -> None:
    for seed in (1, 2, 3):
        use(pool, loaded, ids_of(seed))
    each = pool.nbytes // 3
    assert pool.free(2 * each, lambda: 3 * each - pool.nbytes) == 2 * each
    assert found(pool, [*ids_of(3), 5]) == LONG and len(pool) == 1


def test_memory_is_asked_for_before_a_cache_is_made(loaded: LoadedModel) -> None:
    asked: list[int] = []
    pool = CachePool(loaded, 2**30, asked.append)
    use(pool, loaded, ids_of(1))
    use(pool, loaded, [*ids_of(1), 5])
    assert asked == [cost(loaded, STEP)]
    use(pool, loaded, [*ids_of(1), 5], 2 * STEP)
    assert asked[1:] == [cost(loaded, 2 * STEP) // 2]  # it grows, the keys first
