"""What every architecture promises, on tiny random weights: one contract, one test file."""

from __future__ import annotations

import pytest
import torch

from models.base import BaseModel
from models.cache import KVCache
from tests.tiny import LLAMA, build

VARIANTS = {
    "llama-mha": LLAMA | {"num_key_value_heads": 8},
    "llama-gqa": LLAMA | {"num_key_value_heads": 2, "tie_word_embeddings": True},
    "llama-dynamic": LLAMA | {"max_position_embeddings": 16, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
}
TIME = 40
#: Rounding of float32 in another order of adding.
TOLERANCE = {"atol": 1e-4, "rtol": 0}


@pytest.fixture(params=VARIANTS)
def model(request: pytest.FixtureRequest) -> BaseModel:
    return build(VARIANTS[request.param])


def ids_for(model: BaseModel, time: int = TIME, seed: int = 3) -> torch.Tensor:
    return torch.randint(model.args.vocab_size, (1, time), generator=torch.Generator().manual_seed(seed))


def new_cache(model: BaseModel, length: int = TIME, dtype: torch.dtype = torch.float32) -> KVCache:
    return model.new_cache(length, dtype, "cpu")


def whole(model: BaseModel, ids: torch.Tensor) -> torch.Tensor:
    return model(ids, new_cache(model))


def read(model: BaseModel, ids: torch.Tensor, cache: KVCache, chunk: int) -> torch.Tensor:
    return torch.cat([model(part, cache) for part in ids.split(chunk, dim=1)], dim=1)


def test_logits_shape_and_dtype(model: BaseModel) -> None:
    logits = whole(model, ids_for(model))
    assert logits.shape == (1, TIME, model.args.vocab_size)
    assert logits.dtype == torch.float32
    assert torch.isfinite(logits).all()
    assert logits.std() > 0.1


def test_later_tokens_change_nothing_before(model: BaseModel) -> None:
    ids = ids_for(model)
    changed = ids.clone()
    changed[0, -1] = (ids[0, -1] + 1) % model.args.vocab_size
    before, after = whole(model, ids), whole(model, changed)
    assert torch.equal(before[:, :-1], after[:, :-1])
    assert not torch.allclose(before[:, -1], after[:, -1])


def test_order_of_the_prompt_matters(model: BaseModel) -> None:
    """Without positions, attention would not see that two earlier tokens changed places."""
    ids = ids_for(model)
    swapped = ids[:, [1, 0, *range(2, TIME)]]
    assert (whole(model, ids)[0, -1] - whole(model, swapped)[0, -1]).abs().max() > 1e-3


@pytest.mark.parametrize("chunk", [1, 7, 39])
def test_steps_and_chunks_equal_prefill(model: BaseModel, chunk: int) -> None:
    ids = ids_for(model)
    torch.testing.assert_close(read(model, ids, new_cache(model), chunk), whole(model, ids), **TOLERANCE)


def test_last_is_the_final_row(model: BaseModel) -> None:
    ids = ids_for(model)
    final = model(ids, new_cache(model), last=True)
    assert final.shape == (1, 1, model.args.vocab_size)
    torch.testing.assert_close(final, whole(model, ids)[:, -1:], **TOLERANCE)


def test_cache_length(model: BaseModel) -> None:
    cache = new_cache(model)
    model(ids_for(model, 11), cache)
    assert cache.length == 11
    model(ids_for(model, 1), cache)
    assert cache.length == 12
    shape = model.args.cache_shape
    assert cache.keys.shape == (shape.layers, 1, shape.kv_heads, TIME, shape.head_dim)
    assert cache.nbytes == 2 * cache.keys.numel() * 4
    with pytest.raises(ValueError, match="holds 40 positions, 41 are needed"):
        model(ids_for(model, 29), cache)
    assert cache.length == 12


def test_truncate_and_continue(model: BaseModel) -> None:
    ids, others = ids_for(model), ids_for(model, seed=4)
    cache = new_cache(model)
    model(ids[:, :20], cache)
    model(others[:, :15], cache)
    cache.truncate(20)
    torch.testing.assert_close(model(ids[:, 20:], cache), whole(model, ids)[:, 20:], **TOLERANCE)


def test_emptied_cache_starts_anew(model: BaseModel) -> None:
    ids, cache = ids_for(model), new_cache(model)
    model(ids_for(model, seed=4), cache)
    cache.truncate(0)
    assert torch.equal(model(ids, cache), whole(model, ids))
    with pytest.raises(ValueError, match="can't truncate"):
        cache.truncate(TIME + 1)


def test_two_conversations_do_not_meet(model: BaseModel) -> None:
    first, second = ids_for(model), ids_for(model, seed=4)
    caches = new_cache(model), new_cache(model)
    for cache, ids in zip(caches, (first, second), strict=True):
        model(ids[:, :20], cache)
    for cache, ids in zip(caches, (first, second), strict=True):
        torch.testing.assert_close(model(ids[:, 20:], cache), whole(model, ids)[:, 20:], **TOLERANCE)


def test_interrupted_forward_leaves_the_cache_usable(model: BaseModel) -> None:
    ids, cache = ids_for(model), new_cache(model)
    model(ids[:, :20], cache)
    layers = []

    def stop(layer: int) -> None:
        layers.append(layer)
        if layer == 1:
            raise InterruptedError

    cache.on_layer = stop
    with pytest.raises(InterruptedError):
        model(ids_for(model, 10, seed=5), cache)
    assert (layers, cache.length) == ([0, 1], 20)
    cache.on_layer = None
    torch.testing.assert_close(model(ids[:, 20:], cache), whole(model, ids)[:, 20:], **TOLERANCE)


def test_half_precision_cache(model: BaseModel) -> None:
    ids = ids_for(model)
    logits = read(model, ids, new_cache(model, dtype=torch.float16), 7)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, whole(model, ids), atol=3e-2, rtol=0)


@pytest.mark.parametrize("capacity", [0, -1])
def test_impossible_cache(model: BaseModel, capacity: int) -> None:
    with pytest.raises(ValueError, match="at least one position"):
        new_cache(model, capacity)
