"""Steps of a model in one call of C beside the families' own forward, which says what they must give.

What may differ: the order of adding; with a cache of halves, those that keys and values are rounded to; in INT8 and
INT4 also the bytes that activations are rounded to. A number in the middle between two may go to the other one: a step
of a 127th of its group's largest, as large as the error of the rounding itself. So the bound there is that of the
kernels' rounding, over three layers; most rows are far closer.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch

from models import fused
from models.base import BaseModel
from models.cache import KVCache, Prefix
from models.kernels import Kernel, build
from models.layers import LayerNorm
from models.loader import TIERS, _place, stored
from models.low_rank import AdaptedLinear
from tests import tiny
from tests.threads import at_once
from tests.tiny import BAICHUAN_7B, BAICHUAN_13B, BLOOM, CHATGLM, CHATGLM2, LLAMA

VARIANTS = {
    "chatglm": CHATGLM,
    "chatglm-untied": CHATGLM | {"tie_word_embeddings": False, "hidden_size": 48, "inner_hidden_size": 100},
    "chatglm2": CHATGLM2,
    "chatglm2-32k": CHATGLM2 | {"rope_ratio": 16},
    "chatglm2-mha": CHATGLM2 | {"multi_query_attention": False, "add_bias_linear": True, "add_qkv_bias": False},
    "chatglm2-mqa": CHATGLM2 | {"multi_query_group_num": 1, "kv_channels": 12},
    "glm-4": CHATGLM2 | {"tie_word_embeddings": True, "partial_rotary_factor": 1.0, "ffn_hidden_size": 90},
    "llama-mha": LLAMA | {"num_key_value_heads": 8},
    "llama-gqa": LLAMA | {"num_key_value_heads": 2, "tie_word_embeddings": True},
    "llama-mqa": LLAMA | {"num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 10, "hidden_size": 50},
    "llama-biased": LLAMA | {"attention_bias": True, "mlp_bias": True, "intermediate_size": 33, "vocab_size": 317},
    "llama-dynamic": LLAMA | {"max_position_embeddings": 16, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
    "llama-linear": LLAMA | {"rope_scaling": {"type": "linear", "factor": 4.0}},
    "llama-3": LLAMA
    | {
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    },
    "bloom": BLOOM,
    "bloom-odd": BLOOM | {"n_head": 5, "hidden_size": 45, "tie_word_embeddings": False},
    "baichuan-7b": BAICHUAN_7B,
    "baichuan-13b": BAICHUAN_13B,
    "baichuan-13b-40-heads": BAICHUAN_13B | {"num_attention_heads": 40, "hidden_size": 160},
}
#: The length of the difference beside that of a row of logits, or of a layer's keys or values.
TOLERANCES = {"fp32": 1e-5, "fp16": 1e-3, "int8": 4e-2, "int4": 4e-2}
PROMPT = 9


@cache
def built(variant: str, tier: str) -> BaseModel:
    """A model with the weights of a tier, which must not be changed."""
    model = tiny.build(VARIANTS[variant])
    for name, parameter in list(model.named_parameters()):
        _place(model, name, stored(parameter.data, TIERS[tier]))
    return model


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=TIERS)
def tier(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture
def portable(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Kernel(build(), threads=2, level="portable")
    monkeypatch.setattr(fused, "kernel", lambda: slow)


def dtype_of(model: BaseModel) -> torch.dtype:
    floats = next(parameter for parameter in model.parameters() if parameter.ndim > 1 or parameter.ndim == 1)
    return torch.float32 if floats.ndim > 1 and floats.dtype == torch.float32 else torch.float16


def ids_for(model: BaseModel, time: int, seed: int = 3) -> torch.Tensor:
    ids = torch.randint(300, (1, time), generator=torch.Generator().manual_seed(seed))
    if not model.causal_prompt and time >= PROMPT:
        ids[0, PROMPT - 2], ids[0, PROMPT - 1] = CHATGLM["gmask_token_id"], CHATGLM["bos_token_id"]
    return ids


def filled(model: BaseModel, length: int, room: int, prefix: Prefix | None = None) -> KVCache:
    """A cache that holds random keys and values at `length` positions, as if it had read them."""
    found = model.new_cache(length + room, dtype_of(model), "cpu", prefix)
    start = found.keys.shape[3] - found.capacity
    generator = torch.Generator().manual_seed(length)
    for tensor in (found.keys, found.values):
        held = tensor[:, :, :, start : start + length]
        held.copy_(torch.randn(held.shape, generator=generator))
    found.length = length
    if not model.causal_prompt:
        found.memory.update(mask=min(3, length - 1), sop=min(5, length))
    return found


def step(model: BaseModel, ids: torch.Tensor, held: KVCache, last: bool = False) -> torch.Tensor:
    """Fails where C does not do it."""
    logits = fused.step(model, ids, held, last)
    assert logits is not None
    return logits


def check_equal(model: BaseModel, tier: str, ids: torch.Tensor, ours: KVCache, plain: KVCache) -> None:
    """The same logits, and the same keys and values, from caches that hold the same."""
    found, wanted = step(model, ids, ours), model.forward(ids, plain)
    assert (found.shape, found.dtype, ours.length) == (wanted.shape, wanted.dtype, plain.length)
    for mine, theirs in ((found[0], wanted[0]), (ours.keys, plain.keys), (ours.values, plain.values)):
        mine, theirs = mine.float().flatten(1), theirs.float().flatten(1)
        assert ((mine - theirs).norm(dim=1) <= TOLERANCES[tier] * theirs.norm(dim=1)).all()


# What the forward gives


def check_steps(variant: str, tier: str) -> None:
    model = built(variant, tier)
    ids = ids_for(model, PROMPT + 30)
    ours, plain = (model.new_cache(PROMPT + 30, dtype_of(model), "cpu") for _ in range(2))
    for held in (ours, plain):
        model.forward(ids[:, :PROMPT], held)
    for part in ids[:, PROMPT:].split([1, 1, 5, 16, 1, 6], dim=1):
        check_equal(model, tier, part, ours, plain)


def test_steps_equal_the_forward(variant: str, tier: str) -> None:
    check_steps(variant, tier)


@pytest.mark.parametrize("tier", ["fp32", "int4"])
def test_steps_without_this_machines_instructions(portable: None, variant: str, tier: str) -> None:
    check_steps(variant, tier)


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name not in ("chatglm", "chatglm-untied")])
def test_from_the_first_token(variant: str) -> None:
    model = built(variant, "fp32")
    ours, plain = (model.new_cache(4, torch.float32, "cpu") for _ in range(2))
    for part in ids_for(model, 4).split([1, 3], dim=1):
        check_equal(model, "fp32", part, ours, plain)


@pytest.mark.parametrize("length", [1, 7, 126, 127, 128, 255, 1100])
@pytest.mark.parametrize("variant", ["llama-gqa", "chatglm2-mqa", "chatglm", "bloom-odd", "baichuan-13b-40-heads"])
@pytest.mark.parametrize("tier", ["fp32", "fp16"])
def test_long_caches(variant: str, tier: str, length: int) -> None:
    model = built(variant, tier)
    check_equal(model, tier, ids_for(model, 3), filled(model, length, 3), filled(model, length, 3))


@pytest.mark.parametrize("variant", ["chatglm", "chatglm2"])
@pytest.mark.parametrize("rows", [1, 128])
def test_behind_a_trained_prefix(variant: str, rows: int, tier: str) -> None:
    model = built(variant, tier)
    shape = model.args.cache_shape
    size = (shape.layers, 1, shape.kv_heads, rows, shape.head_dim)
    generator = torch.Generator().manual_seed(1)
    prefix = Prefix(*(torch.randn(size, generator=generator) for _ in range(2)))
    ours, plain = (filled(model, 20, 4, prefix) for _ in range(2))
    check_equal(model, tier, ids_for(model, 4), ours, plain)
    without = step(model, ids_for(model, 4), filled(model, 20, 4))
    with_it = step(model, ids_for(model, 4), filled(model, 20, 4, prefix))
    assert (with_it - without).abs().max() > 0.05


def test_last_is_the_final_row(variant: str) -> None:
    model = built(variant, "int8")
    ids = ids_for(model, 5)
    final, whole = (step(model, ids, filled(model, 20, 5), last) for last in (True, False))
    assert final.shape == (1, 1, whole.shape[2])
    assert torch.equal(final, whole[:, -1:])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("tier", ["fp16", "fp32"])
def test_any_weights_with_any_cache(tier: str, dtype: torch.dtype) -> None:
    model = built("llama-gqa", tier)
    ours, plain = (model.new_cache(12, dtype, "cpu") for _ in range(2))
    check_equal(model, "fp16", ids_for(model, 12), ours, plain)


# Rows


def check_rows(model: BaseModel, length: int) -> None:
    ids = ids_for(model, fused.MOST_ROWS)
    one = filled(model, length, fused.MOST_ROWS)
    single = torch.cat([step(model, part, one) for part in ids.split(1, dim=1)], dim=1)
    for count in range(2, fused.MOST_ROWS + 1):
        together = filled(model, length, fused.MOST_ROWS)
        assert torch.equal(step(model, ids[:, :count], together), single[:, :count])
        end = length + count
        assert torch.equal(together.keys[:, :, :, :end], one.keys[:, :, :, :end])
        assert torch.equal(together.values[:, :, :, :end], one.values[:, :, :, :end])


def test_rows_equal_single_rows(variant: str, tier: str) -> None:
    """Bit for bit, also where some of them reach into the next part of the cache than others."""
    check_rows(built(variant, tier), 120)


def test_rows_equal_single_rows_without_this_machines_instructions(portable: None, tier: str) -> None:
    check_rows(built("llama-gqa", tier), 120)


# Threads

LARGE = LLAMA | {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 2, "vocab_size": 2000}


@cache
def large(tier: str) -> BaseModel:
    """So large that threads share its products."""
    model = tiny.build(LARGE)
    for name, parameter in list(model.named_parameters()):
        _place(model, name, stored(parameter.data, TIERS[tier]))
    return model


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_any_number_of_threads_gives_the_same(monkeypatch: pytest.MonkeyPatch, tier: str, threads: int) -> None:
    model, ids = large(tier), ids_for(large(tier), 4)
    wanted = step(model, ids, filled(model, 700, 4))
    many = Kernel(build(), threads)
    monkeypatch.setattr(fused, "kernel", lambda: many)
    for _ in range(5):
        assert torch.equal(step(model, ids, filled(model, 700, 4)), wanted)
    check_rows(model, 300)


def test_several_callers_at_once() -> None:
    """One of them has the helpers, the others work alone; products of the plain path come between."""
    model, ids = large("int4"), ids_for(large("int4"), 2)
    wanted = step(model, ids, filled(model, 300, 2))
    plain = model.forward(ids, filled(model, 300, 2))
    wrong = []

    @torch.inference_mode()
    def call(number: int) -> None:
        for _ in range(15):
            held = filled(model, 300, 2)
            found = model.forward(ids, held) if number == 0 else step(model, ids, held)
            if not torch.equal(found, wanted if number else plain):
                wrong.append(number)

    at_once(call)
    assert not wrong


# When it is taken, and when not


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each forward of a LLaMA had."""
    seen: list[int] = []
    model = type(built("llama-gqa", "int4"))
    whole = model.forward

    def counting(self: BaseModel, ids: torch.Tensor, *more: Any) -> torch.Tensor:
        seen.append(ids.shape[1])
        return whole(self, ids, *more)

    monkeypatch.setattr(model, "forward", counting)
    return seen


def test_models_take_it(calls: list[int]) -> None:
    model = built("llama-gqa", "int4")
    held = model.new_cache(64, torch.float16, "cpu")
    for count in (17, 16, 1, 1):
        model(ids_for(model, count), held)
    model(ids_for(model, 1), held, last=True)
    assert (calls, held.length) == ([17], 36)


def test_without_a_cache_the_forward_does_it(calls: list[int]) -> None:
    model = built("llama-gqa", "int4")
    model(ids_for(model, 1))
    assert calls == [1]


class OtherCache(KVCache):
    pass


def test_another_cache_is_the_forwards(calls: list[int]) -> None:
    model = built("llama-gqa", "int4")
    model(ids_for(model, 1), OtherCache(model.args.cache_shape, 4, torch.float16, "cpu"))
    assert calls == [1]


def test_without_kernels_the_forward_does_it(calls: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "kernel", lambda: None)
    model = built("llama-gqa", "int4")
    model(ids_for(model, 1), filled(model, 3, 2))
    assert calls == [1]


def test_what_is_wrong_is_said_as_ever() -> None:
    model = built("llama-gqa", "fp16")
    with pytest.raises(ValueError, match="holds 4 positions, 5 are needed"):
        model(ids_for(model, 3), filled(model, 2, 2))
    held = filled(model, 2, 4)
    for wrong in (-1, 320, 2**40):
        with pytest.raises(IndexError):
            model(torch.tensor([[1, wrong]]), held)
    assert held.length == 2


def test_a_prompt_that_attends_both_ways_is_the_forwards() -> None:
    model = built("chatglm", "fp32")
    ids = ids_for(model, PROMPT)
    held = model.new_cache(PROMPT, torch.float32, "cpu")
    assert fused.step(model, ids, held, False) is None
    assert torch.equal(model(ids, held), model.forward(ids, model.new_cache(PROMPT, torch.float32, "cpu")))
    assert held.memory == {"mask": PROMPT - 2, "sop": PROMPT - 1}


@torch.inference_mode(False)
def test_training_is_the_forwards() -> None:
    model = tiny.build(LLAMA).requires_grad_(True)
    with torch.enable_grad():
        assert model(ids_for(model, 1), filled(model, 3, 1)).requires_grad
    with torch.no_grad():
        step(model, ids_for(model, 1), filled(model, 3, 1))


def test_an_adapter_beside_weights_is_the_forwards() -> None:
    model = tiny.build(LLAMA)
    inner = model.model.layers[1].mlp.down_proj
    model(ids_for(model, 1), filled(model, 3, 1))
    model.model.layers[1].mlp.down_proj = AdaptedLinear(inner, torch.ones(64, 2), torch.ones(2, 96))
    found = model(ids_for(model, 1), filled(model, 3, 1))
    assert torch.equal(found, model.forward(ids_for(model, 1), filled(model, 3, 1)))


def test_a_model_that_hooks_wait_for_is_the_forwards() -> None:
    model, seen = tiny.build(LLAMA), []
    step(model, ids_for(model, 1), filled(model, 3, 1))
    handle = model.model.norm.register_forward_hook(lambda *_: seen.append(1))
    model(ids_for(model, 1), filled(model, 3, 1))
    assert seen == [1]
    handle.remove()
    step(model, ids_for(model, 1), filled(model, 3, 1))


def test_what_does_not_fit_is_not_looked_at_for_every_token(monkeypatch: pytest.MonkeyPatch) -> None:
    model, looked = tiny.build(LLAMA).half(), []
    monkeypatch.setattr(fused, "_described", looked.append)
    held = filled(model, 3, 4)
    for _ in range(3):
        assert fused.step(model, ids_for(model, 1), held, False) is None
    assert len(looked) == 1


# Stop


def test_stop_ends_it_before_anything_is_counted() -> None:
    model = built("llama-gqa", "int4")
    held = filled(model, 3, 2)

    def stop(layer: int) -> None:
        raise InterruptedError

    held.on_layer = stop
    with pytest.raises(InterruptedError):
        step(model, ids_for(model, 1), held)
    assert held.length == 3
    held.on_layer = None
    assert torch.equal(step(model, ids_for(model, 1), held), step(model, ids_for(model, 1), filled(model, 3, 2)))


# A model that changes


def replace_weight(model: BaseModel) -> None:
    model.model.layers[2].mlp.up_proj.weight = torch.nn.Parameter(torch.ones(96, 64), requires_grad=False)


def replace_data(model: BaseModel) -> None:
    model.model.embed_tokens.weight.data = model.model.embed_tokens.weight.data.flip(0).contiguous()


def replace_module(model: BaseModel) -> None:
    model.model.layers[1] = tiny.build(LLAMA, seed=5).model.layers[1]


def replace_norm(model: BaseModel) -> None:
    model.model.norm.weight = torch.nn.Parameter(torch.full((64,), 2.0), requires_grad=False)


def add_bias(model: BaseModel) -> None:
    model.lm_head.bias = torch.nn.Parameter(torch.arange(320.0), requires_grad=False)


def change_in_place(model: BaseModel) -> None:
    model.lm_head.weight.mul_(3)


def narrow(model: BaseModel) -> None:
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.half()


CHANGES = [replace_weight, replace_data, replace_module, replace_norm, add_bias, change_in_place, narrow]


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_model_is_seen(change: Any) -> None:
    model = tiny.build(LLAMA)
    before = step(model, ids_for(model, 1), filled(model, 9, 1))
    change(model)
    found = step(model, ids_for(model, 1), filled(model, 9, 1))
    torch.testing.assert_close(found, model.forward(ids_for(model, 1), filled(model, 9, 1)), atol=1e-4, rtol=1e-4)
    assert not torch.equal(found, before)


def test_norms_of_another_kind_are_the_forwards() -> None:
    model = tiny.build(LLAMA)
    step(model, ids_for(model, 1), filled(model, 9, 1))
    model.model.norm = torch.nn.LayerNorm(64)
    assert fused.step(model, ids_for(model, 1), filled(model, 9, 1), False) is None
    model.model.norm = LayerNorm(64, 1e-5)
    ours, plain = (filled(model, 9, 1) for _ in range(2))
    check_equal(model, "fp32", ids_for(model, 1), ours, plain)


def test_a_model_of_halves_is_the_forwards() -> None:
    model = tiny.build(LLAMA)
    step(model, ids_for(model, 1), filled(model, 9, 1))
    model.half()  # norms too
    assert fused.step(model, ids_for(model, 1), filled(model, 9, 1), False) is None


@pytest.mark.parametrize("tier", ["fp16", "int4"])
def test_a_copy_has_its_own_weights(tier: str) -> None:
    model = built("llama-gqa", tier)
    before = step(model, ids_for(model, 1), filled(model, 9, 1))
    other = copy.deepcopy(model)
    other.model.norm.weight.data.mul_(2)
    assert torch.equal(step(model, ids_for(model, 1), filled(model, 9, 1)), before)
    found = step(other, ids_for(model, 1), filled(model, 9, 1))
    assert not torch.equal(found, before)
    torch.testing.assert_close(found, 2 * before, atol=0.1, rtol=0.02)


# Numbers


def test_what_is_not_a_number_stays_in_its_row() -> None:
    model = copy.deepcopy(built("llama-mha", "fp16"))
    ids = torch.tensor([[4, 5, 6]])
    right = step(model, ids, filled(model, 9, 3))
    model.model.embed_tokens.weight.data[6] = torch.nan
    found = step(model, ids, filled(model, 9, 3))
    assert torch.equal(found[:, :2], right[:, :2])
    assert found[:, 2].isnan().all()


def test_values_beyond_half_precision_become_its_largest() -> None:
    model = copy.deepcopy(built("bloom", "fp16"))
    model.transformer.h[0].self_attention.query_key_value.bias.data[:] = 1e6
    held = filled(model, 9, 1)
    assert step(model, ids_for(model, 1), held).isfinite().all()
    assert (held.keys[0, 0, :, 9] == 65504).all()
