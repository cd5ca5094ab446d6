"""What every architecture promises, on tiny random weights: one contract, one test file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType as Kind

import models
from models import registry
from models.base import BaseModel
from models.cache import KVCache
from models.loader import LoadedModel
from models.quantize import QuantizedEmbedding, QuantizedLinear
from tests.tiny import BAICHUAN_7B, BAICHUAN_13B, BLOOM, CHATGLM, CHATGLM2, LLAMA, build, save_folder, write_gguf

VARIANTS = {
    "chatglm": CHATGLM,
    "chatglm-untied": CHATGLM | {"tie_word_embeddings": False},
    "chatglm2": CHATGLM2,
    "chatglm2-32k": CHATGLM2 | {"rope_ratio": 16},
    "chatglm3-32k": CHATGLM2 | {"rope_ratio": 50},
    "chatglm2-mha": CHATGLM2 | {"multi_query_attention": False, "add_bias_linear": True},
    "glm-tied": CHATGLM2 | {"tie_word_embeddings": True, "partial_rotary_factor": 1.0},
    "llama-mha": LLAMA | {"num_key_value_heads": 8},
    "llama-gqa": LLAMA | {"num_key_value_heads": 2, "tie_word_embeddings": True},
    "llama-dynamic": LLAMA | {"max_position_embeddings": 16, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
    "bloom": BLOOM,
    "bloom-6-heads": BLOOM | {"n_head": 6, "hidden_size": 48, "tie_word_embeddings": False},
    "baichuan-7b": BAICHUAN_7B,
    "baichuan-13b": BAICHUAN_13B,
    "baichuan-13b-40-heads": BAICHUAN_13B | {"num_attention_heads": 40, "hidden_size": 160},
}
TIME, VOCABULARY = 40, 320
#: Where an architecture reads its prompt whole, this much is prompt; longer pieces are cut behind it.
PROMPT = 9
#: Rounding of float32 in another order of adding.
TOLERANCE = {"atol": 1e-4, "rtol": 0}


@pytest.fixture(params=VARIANTS)
def model(request: pytest.FixtureRequest) -> BaseModel:
    return build(VARIANTS[request.param])


def ids_for(model: BaseModel, time: int = TIME, seed: int = 3) -> torch.Tensor:
    """Random ids; ChatGLM-6B's begin with a prompt."""
    ids = torch.randint(300, (1, time), generator=torch.Generator().manual_seed(seed))
    if not model.causal_prompt:
        ids[0, PROMPT - 2], ids[0, PROMPT - 1] = CHATGLM["gmask_token_id"], CHATGLM["bos_token_id"]
    return ids


def new_cache(model: BaseModel, length: int = TIME, dtype: torch.dtype = torch.float32) -> KVCache:
    return model.new_cache(length, dtype, "cpu")


def whole(model: BaseModel, ids: torch.Tensor) -> torch.Tensor:
    return model(ids, new_cache(model))


def read(model: BaseModel, ids: torch.Tensor, cache: KVCache, chunk: int) -> torch.Tensor:
    """Logits of ids in pieces of `chunk`; a prompt that attends both ways stays in one."""
    first = 0 if model.causal_prompt else PROMPT
    pieces = [ids[:, :first], *ids[:, first:].split(chunk, dim=1)]
    return torch.cat([model(piece, cache) for piece in pieces if piece.numel()], dim=1)


def test_every_architecture_is_here() -> None:
    """A new family can't be forgotten: its row in the registry asks for a variant."""
    tested = {registry.resolve(config).name for config in VARIANTS.values()}
    assert tested == {architecture.name for architecture in registry.ARCHITECTURES}


def test_logits_shape_and_dtype(model: BaseModel) -> None:
    logits = whole(model, ids_for(model))
    assert logits.shape == (1, TIME, VOCABULARY)
    assert logits.dtype == torch.float32
    assert torch.isfinite(logits).all()
    assert logits.std() > 0.1


def test_a_cache_changes_nothing(model: BaseModel) -> None:
    ids = ids_for(model)
    # Dynamic scaling takes the cache's room for the length: both are TIME here.
    torch.testing.assert_close(model(ids), whole(model, ids), **TOLERANCE)


def test_later_tokens_change_nothing_before(model: BaseModel) -> None:
    ids = ids_for(model)
    changed = ids.clone()
    changed[0, -1] += 1
    before, after = whole(model, ids), whole(model, changed)
    assert torch.equal(before[:, :-1], after[:, :-1])
    assert not torch.allclose(before[:, -1], after[:, -1])


def test_order_of_the_prompt_matters(model: BaseModel) -> None:
    """Without positions, attention would not see that two earlier tokens changed places."""
    ids = ids_for(model)
    swapped = ids[:, [1, 0, *range(2, TIME)]]
    assert (whole(model, ids)[0, PROMPT] - whole(model, swapped)[0, PROMPT]).abs().max() > 1e-3


@pytest.mark.parametrize("chunk", [1, 7, 30])
def test_steps_and_chunks_equal_prefill(model: BaseModel, chunk: int) -> None:
    ids = ids_for(model)
    torch.testing.assert_close(read(model, ids, new_cache(model), chunk), whole(model, ids), **TOLERANCE)


def test_last_is_the_final_row(model: BaseModel) -> None:
    ids = ids_for(model)
    final = model(ids, new_cache(model), last=True)
    assert final.shape == (1, 1, VOCABULARY)
    torch.testing.assert_close(final, whole(model, ids)[:, -1:], **TOLERANCE)


def test_cache_length(model: BaseModel) -> None:
    ids, cache = ids_for(model, TIME + 1), new_cache(model)
    model(ids[:, :11], cache)
    assert cache.length == 11
    model(ids[:, 11:12], cache)
    assert cache.length == 12
    shape = model.args.cache_shape
    assert cache.keys.shape == (shape.layers, 1, shape.kv_heads, TIME, shape.head_dim)
    assert cache.nbytes == 2 * cache.keys.numel() * 4
    with pytest.raises(ValueError, match="holds 40 positions, 41 are needed"):
        model(ids[:, 12:], cache)
    assert cache.length == 12


def test_truncate_and_continue(model: BaseModel) -> None:
    ids, others = ids_for(model), ids_for(model, seed=4)
    cache = new_cache(model)
    model(ids[:, :20], cache)
    model(others[:, 20:35], cache)
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
        model(ids_for(model, seed=5)[:, 20:30], cache)
    assert (layers, cache.length) == ([0, 1], 20)
    cache.on_layer = None
    torch.testing.assert_close(model(ids[:, 20:], cache), whole(model, ids)[:, 20:], **TOLERANCE)


def test_interrupted_prompt_can_be_read_again(model: BaseModel) -> None:
    cache = new_cache(model)

    def stop(layer: int) -> None:
        raise InterruptedError

    cache.on_layer = stop
    with pytest.raises(InterruptedError):
        model(ids_for(model, seed=5), cache)
    cache.on_layer = None
    ids = ids_for(model)
    assert torch.equal(model(ids, cache), whole(model, ids))


def test_half_precision_cache(model: BaseModel) -> None:
    ids = ids_for(model)
    logits = read(model, ids, new_cache(model, dtype=torch.float16), 7)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, whole(model, ids), atol=3e-2, rtol=0)


def test_weights_go_by_their_published_names(model: BaseModel) -> None:
    """What a model writes, it would read: sanitize keeps the names of its own attributes."""
    for name, tensor in model.state_dict().items():
        assert model.sanitize(name, tensor)[0] == name


def test_leftover_frequencies_are_ignored(model: BaseModel) -> None:
    for name in ("model.layers.0.self_attn.rotary_emb.inv_freq", "transformer.rotary_pos_emb.inv_freq"):
        assert model.sanitize(name, torch.ones(4)) is None


@pytest.mark.parametrize("capacity", [0, -1])
def test_impossible_cache(model: BaseModel, capacity: int) -> None:
    with pytest.raises(ValueError, match="at least one position"):
        new_cache(model, capacity)


@dataclass(frozen=True)
class Bounds:
    """Root mean squares of a difference of logits, relative to their deviation.

    `error` is against float32, from lowest to highest: every matrix adds the rounding of its weights (2e-4 FP16, .0057
    INT8, .073 INT4) and, quantized, that of its activations (.005), and some twenty of them lie behind one another with
    nothing in random weights to hold on to. The highest measured is .0011, .041 and .30.

    `steps` is against the whole in one call. Tensors are rounded to bytes inside, so that a difference in the last bit
    of float32 can move a number that lies between two bytes: mostly none does (1e-7), at most .0073 was measured.
    """

    error: tuple[float, float]
    steps: float


BOUNDS = {
    "fp16": Bounds((1e-4, 0.002), 1e-5),
    "int8": Bounds((0.004, 0.06), 0.02),
    "int4": Bounds((0.01, 0.4), 0.02),
}


@pytest.fixture(scope="module", params=VARIANTS)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, BaseModel]:
    """A checkpoint on disk, and the model that it holds."""
    folder = tmp_path_factory.mktemp("saved") / "tiny"
    return folder, save_folder(folder, VARIANTS[request.param])


@pytest.fixture(scope="module", params=BOUNDS)
def tier(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def loaded(saved: tuple[Path, BaseModel], tier: str) -> LoadedModel:
    return models.load(saved[0], tier=tier)


def difference(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((found - wanted).pow(2).mean().sqrt() / wanted.std()).item()


def quantized(model: BaseModel) -> Iterator[tuple[str, QuantizedLinear | QuantizedEmbedding]]:
    return (
        (n, module) for n, module in model.named_modules() if isinstance(module, QuantizedLinear | QuantizedEmbedding)
    )


def test_error_of_a_tier(loaded: LoadedModel, saved: tuple[Path, BaseModel], tier: str) -> None:
    ids = ids_for(saved[1])
    lowest, highest = BOUNDS[tier].error
    assert lowest < difference(whole(loaded.model, ids), whole(saved[1], ids)) < highest


@pytest.mark.parametrize("chunk", [1, 7, 30])
def test_steps_and_chunks_equal_prefill_at_every_tier(loaded: LoadedModel, tier: str, chunk: int) -> None:
    ids = ids_for(loaded.model)
    found = read(loaded.model, ids, new_cache(loaded.model), chunk)
    assert difference(found, whole(loaded.model, ids)) < BOUNDS[tier].steps


def test_every_matrix_is_stored_as_the_tier_says(loaded: LoadedModel, tier: str) -> None:
    """Embedding and head stay at INT8; norms and biases in float32."""
    packed = dict(quantized(loaded.model))
    for name, parameter in loaded.model.named_parameters():
        narrow = tier == "fp16" and parameter.ndim > 1
        assert parameter.dtype == (torch.float16 if narrow else torch.float32), name
        assert parameter.ndim == 1 or tier == "fp16", name
    assert bool(packed) == (tier != "fp16")
    for name, module in packed.items():
        vocabulary = module.weight.rows == VOCABULARY
        assert module.weight.bits == (8 if vocabulary or tier == "int8" else 4), name


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    ("kind", "tier"), [(Kind.Q4_0, "int4"), (Kind.Q4_1, "int4"), (Kind.Q4_1, "int8"), (Kind.Q8_0, "int8")]
)
def test_bits_that_a_file_brings_are_kept(tmp_path: Path, kind: Kind, tier: str, tied: bool) -> None:
    """Down to the last bit, at that tier and at a higher one; no second rounding."""
    config = LLAMA | {"tie_word_embeddings": tied}
    write_gguf(tmp_path / "tiny.gguf", build(config), config, kind)
    dense = models.load(tmp_path / "tiny.gguf", tier="fp32").model.state_dict()
    modules = dict(quantized(models.load(tmp_path / "tiny.gguf", tier=tier).model))
    assert modules.keys() == {name.removesuffix(".weight") for name, tensor in dense.items() if tensor.ndim > 1}
    for name, module in modules.items():
        assert module.weight.bits == (8 if kind is Kind.Q8_0 else 4)
        assert torch.equal(module.weight.dequantize(), dense[f"{name}.weight"])
