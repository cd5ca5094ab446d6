"""Our forward passes against implementations that share no code with them: float32, at most 1e-4 apart.

Every case writes a small random checkpoint in its published form, which models.load reads like any other, and gives a
reference for it: transformers where it has the architecture or one that can be mapped, else tests/reference.py.
`pytest tests/test_parity.py -s` prints the measured differences.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import models
from models.baichuan import unit_rows
from models.generate import prefill
from tests import reference
from tests.tiny import BAICHUAN_7B, BAICHUAN_13B, BLOOM, CHATGLM, CHATGLM2, LLAMA, randomize

TOLERANCE = 1e-4
#: A function (ids [1, time], how many of the last rows) -> logits [1, rows, vocabulary].
Reference = Callable[[torch.Tensor, int], torch.Tensor]


@dataclass(frozen=True)
class Case:
    """`write` puts a checkpoint into a folder; `ids` makes a sequence; `long` is the length tried beside 64."""

    write: Callable[[Path], Reference]
    ids: Callable[[int], torch.Tensor]
    long: int = 1500


def random_ids(time: int, vocabulary: int = 300) -> torch.Tensor:
    return torch.randint(vocabulary, (1, time), generator=torch.Generator().manual_seed(1))


def save(folder: Path, config: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "model.safetensors")


def transformers_reference(model: transformers.PreTrainedModel) -> Reference:
    return lambda ids, rows: model(ids, logits_to_keep=rows).logits


# LLaMA

LLAMA_RULES = {
    "mha": {"num_key_value_heads": 8},
    "gqa": {"num_key_value_heads": 2},
    "tied": {"tie_word_embeddings": True},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "head_dim": {"head_dim": 24},
    "theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
    "linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
    "dynamic": {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}},
    "llama3": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    },
}


def llama(**changes: Any) -> transformers.LlamaForCausalLM:
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**LLAMA, **changes})).eval()
    randomize(model)
    model.tie_weights()
    return model


def write_llama(changes: dict[str, Any]) -> Callable[[Path], Reference]:
    def write(folder: Path) -> Reference:
        model = llama(**changes)
        model.save_pretrained(folder)
        return transformers_reference(model)

    return write


# BLOOM


def write_bloom(heads: int = 8, prefix: bool = True) -> Callable[[Path], Reference]:
    def write(folder: Path) -> Reference:
        config = BLOOM | {"n_head": heads, "hidden_size": 8 * heads}
        model = transformers.BloomForCausalLM(transformers.BloomConfig(**config)).eval()
        randomize(model)
        model.tie_weights()
        model.save_pretrained(folder)
        if not prefix:
            weights = load_file(folder / "model.safetensors")
            bare = {name.removeprefix("transformer."): tensor for name, tensor in weights.items()}
            assert bare.keys().isdisjoint(weights)
            save(folder, config, bare | {"lm_head.weight": bare["word_embeddings.weight"].clone()})
        return transformers_reference(model)

    return write


# ChatGLM2, ChatGLM3, GLM-4: transformers' Glm, whose tensors go by other names

GLM_NAMES = {
    "model.embed_tokens": "transformer.embedding.word_embeddings",
    "model.norm": "transformer.encoder.final_layernorm",
    "lm_head": "transformer.output_layer",
    "input_layernorm": "input_layernorm",
    "post_attention_layernorm": "post_attention_layernorm",
    "self_attn.o_proj": "self_attention.dense",
    "mlp.gate_up_proj": "mlp.dense_h_to_4h",
    "mlp.down_proj": "mlp.dense_4h_to_h",
}


def glm(theta: float, eps: float, rope_type: str = "default", factor: float = 1.0) -> transformers.GlmForCausalLM:
    """128 dimensions a head, as published: 32 frequencies, of which the slowest hardly turn."""
    config = transformers.GlmConfig(
        hidden_size=256,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=128,
        vocab_size=320,
        max_position_embeddings=2048,
        rms_norm_eps=eps,
        attention_bias=True,
        tie_word_embeddings=False,
        pad_token_id=0,
        rope_parameters={
            "rope_type": rope_type,
            "rope_theta": theta,
            "partial_rotary_factor": 0.5,
            "factor": factor,
        },
    )
    model = transformers.GlmForCausalLM(config).eval()
    randomize(model)
    return model


def write_glm(folder: Path) -> Reference:
    model = glm(10000.0, 1.5625e-7)
    model.save_pretrained(folder)
    return transformers_reference(model)


def write_chatglm2(theta: float = 10000.0, factor: float = 1.0, **changes: Any) -> Callable[[Path], Reference]:
    config = CHATGLM2 | {"hidden_size": 256, "num_attention_heads": 4, "kv_channels": 128, "seq_length": 2048} | changes

    def write(folder: Path) -> Reference:
        model = glm(theta, config["layernorm_epsilon"], "linear" if factor > 1 else "default", factor)
        weights = dict(published_glm(model.state_dict()))
        save(folder, config, weights | {"transformer.rotary_pos_emb.inv_freq": torch.ones(32)})
        return transformers_reference(model)

    return write


def published_glm(state: dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in state.items():
        layer, part, kind = re.fullmatch(r"(?:model\.layers\.(\d+)\.)?(.+)\.(weight|bias)", name).groups()
        block = "" if layer is None else f"transformer.encoder.layers.{layer}."
        if part == "self_attn.q_proj":
            packed = [state[name.replace("q_proj", f"{which}_proj")] for which in "qkv"]
            yield f"{block}self_attention.query_key_value.{kind}", torch.cat(packed)
        elif part in GLM_NAMES:
            yield f"{block}{GLM_NAMES[part]}.{kind}", tensor


# Baichuan: the 7Bs are LLaMA with packed rows, the 13Bs have a plain reference


def write_baichuan_7b(vocabulary: int) -> Callable[[Path], Reference]:
    """Baichuan2 where the vocabulary is its own: then the reference gets a head of unit rows."""
    config = BAICHUAN_7B | {"vocab_size": vocabulary, "max_position_embeddings": 2048}

    def write(folder: Path) -> Reference:
        weights = reference.random_weights(reference.baichuan_shapes(config))
        frequencies = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
        save(folder, config, weights | frequencies)
        model = llama(
            vocab_size=vocabulary,
            num_key_value_heads=config["num_attention_heads"],
            rms_norm_eps=config["rms_norm_eps"],
            max_position_embeddings=2048,
        )
        state = dict(llama_names(weights))
        if vocabulary == 125696:
            state["lm_head.weight"] /= state["lm_head.weight"].norm(dim=1, keepdim=True)
        model.load_state_dict(state, strict=True)
        return transformers_reference(model)

    return write


def llama_names(weights: dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in weights.items():
        if "W_pack" in name:
            for part, rows in zip("qkv", tensor.chunk(3), strict=True):
                yield name.replace("W_pack", f"{part}_proj"), rows
        else:
            yield name, tensor.clone()


def write_baichuan_13b(vocabulary: int, heads: int = 40) -> Callable[[Path], Reference]:
    config = BAICHUAN_13B | {"vocab_size": vocabulary, "num_attention_heads": heads, "hidden_size": 4 * heads}

    def write(folder: Path) -> Reference:
        weights = reference.random_weights(reference.baichuan_shapes(config))
        save(folder, config, weights)

        def logits(ids: torch.Tensor, rows: int) -> torch.Tensor:
            whole = reference.baichuan_alibi(weights, config, ids[0].tolist(), rows, norm_head=vocabulary == 125696)
            return torch.from_numpy(whole)[None]

        return logits

    return write


# ChatGLM-6B

CHATGLM_WIDE = CHATGLM | {"hidden_size": 256, "num_attention_heads": 2, "max_sequence_length": 2048}


def write_chatglm(folder: Path) -> Reference:
    """128 dimensions a head, as published, so that rounding the frequencies to half precision shows."""
    weights = reference.random_weights(reference.chatglm_shapes(CHATGLM_WIDE))
    weights["lm_head.weight"] = weights["transformer.word_embeddings.weight"].clone()
    save(folder, CHATGLM_WIDE, weights)
    return lambda ids, rows: torch.from_numpy(reference.chatglm(weights, CHATGLM_WIDE, ids[0].tolist(), rows))[None]


def chat_ids(time: int) -> torch.Tensor:
    """A prompt that ends with [gMASK] and <sop>, and a reply of 26 tokens."""
    ids = random_ids(time)
    ids[0, -28], ids[0, -27] = CHATGLM["gmask_token_id"], CHATGLM["bos_token_id"]
    return ids


def blank_ids(time: int) -> torch.Tensor:
    """A text with two [MASK] in it; the first is filled behind <sop>."""
    ids = random_ids(time)
    ids[0, time // 4] = ids[0, time // 3] = CHATGLM["mask_token_id"]
    ids[0, -27] = CHATGLM["bos_token_id"]
    return ids


CASES = {
    **{f"llama {name}": Case(write_llama(changes), random_ids) for name, changes in LLAMA_RULES.items()},
    "bloom": Case(write_bloom(), random_ids),
    "bloom without prefix": Case(write_bloom(prefix=False), random_ids),
    "bloom 40 heads": Case(write_bloom(40), random_ids),
    "bloom 112 heads": Case(write_bloom(112), random_ids, long=400),
    "glm": Case(write_glm, random_ids),
    "chatglm2": Case(write_chatglm2(), random_ids),
    "chatglm2-32k": Case(write_chatglm2(factor=16.0, rope_ratio=16), random_ids),
    "chatglm3-32k": Case(write_chatglm2(theta=500000.0, rope_ratio=50), random_ids),
    "glm-4": Case(write_chatglm2(theta=5e6, rope_ratio=500, layernorm_epsilon=1.5625e-7), random_ids),
    "baichuan-7b": Case(write_baichuan_7b(320), random_ids),
    "baichuan2-7b": Case(write_baichuan_7b(125696), random_ids),
    "baichuan-13b": Case(write_baichuan_13b(320), random_ids),
    "baichuan2-13b": Case(write_baichuan_13b(125696), random_ids),
    "chatglm-6b chat": Case(write_chatglm, chat_ids),
    "chatglm-6b blank": Case(write_chatglm, blank_ids),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def compare(ours: torch.Tensor, theirs: torch.Tensor, record: Callable[[str, Any], None], what: str) -> None:
    difference = (ours.double() - theirs.double()).abs().max().item()
    record("largest difference", difference)
    print(f" {what}: {difference:.1e} (logits up to {theirs.abs().max().item():.1f})")
    assert theirs.std() > 0.01
    assert difference <= TOLERANCE


@torch.inference_mode()
def test_whole_sequence(case: Case, tmp_path: Path, record_property) -> None:
    theirs = case.write(tmp_path)
    ids = case.ids(64)
    ours = models.load(tmp_path, tier="fp32").model(ids)
    compare(ours, theirs(ids, 64), record_property, "64 tokens")


@torch.inference_mode()
def test_long_prompt_and_cached_continuation(case: Case, tmp_path: Path, record_property) -> None:
    """The prompt as generation reads it, then a few tokens at once, then one at a time."""
    theirs, loaded = case.write(tmp_path), models.load(tmp_path, tier="fp32")
    ids = case.ids(case.long)
    cache = loaded.model.new_cache(case.long, torch.float32, "cpu")
    *_, row = prefill(loaded.model, ids[0, :-24].tolist(), cache)
    pieces = [ids[:, -24:-10], *ids[:, -10:].split(1, dim=1)]
    ours = torch.cat([row[None, None], *(loaded.model(piece, cache) for piece in pieces)], dim=1)
    compare(ours, theirs(ids, 25), record_property, f"{case.long} tokens")


@torch.inference_mode()
def test_rounded_frequencies_show_in_a_long_prompt() -> None:
    """Without them ChatGLM-6B's test above would fail, so it does prove that they are used."""
    weights = reference.random_weights(reference.chatglm_shapes(CHATGLM_WIDE))
    ids = chat_ids(1500)[0].tolist()
    rounded, exact = (
        reference.chatglm(weights, CHATGLM_WIDE, ids, 24, half_frequencies=rounds) for rounds in (True, False)
    )
    assert abs(rounded - exact).max() > 5 * TOLERANCE


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_baichuan2_head_is_normalised_in_float32(dtype: torch.dtype) -> None:
    """Published heads are bfloat16, whose own rounding would be ten times that of the tier."""
    head = (torch.randn(5000, 64, generator=torch.Generator().manual_seed(0)) * 30).to(dtype)
    exact = head.double() / head.double().norm(dim=1, keepdim=True)
    ours = unit_rows(head)
    assert ours.dtype == (torch.float32 if dtype == torch.float32 else torch.float16)
    torch.testing.assert_close(ours.double(), exact, atol=1e-7 if dtype == torch.float32 else 3e-4, rtol=0)


@torch.inference_mode()
def test_sharded_checkpoint(tmp_path: Path) -> None:
    model = llama()
    model.save_pretrained(tmp_path, max_shard_size="200KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    ids = random_ids(32)
    torch.testing.assert_close(models.load(tmp_path, tier="fp32").model(ids), model(ids).logits, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(
    ("newer", "older"),
    [
        ({"rope_type": "default", "rope_theta": 500000.0}, {"rope_theta": 500000.0}),
        (
            {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
            {"rope_scaling": {"type": "linear", "factor": 4.0}},
        ),
    ],
    ids=["theta", "linear"],
)
@torch.inference_mode()
def test_config_before_transformers_5(tmp_path: Path, newer: dict, older: dict) -> None:
    """Older files say rope_theta and rope_scaling {"type": ...} where newer ones say rope_parameters."""
    model = llama(rope_parameters=newer)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["rope_parameters"], config["head_dim"]
    (tmp_path / "config.json").write_text(json.dumps(config | older))
    ids = random_ids(64)
    torch.testing.assert_close(models.load(tmp_path, tier="fp32").model(ids), model(ids).logits, atol=TOLERANCE, rtol=0)


@torch.inference_mode()
def test_half_precision_stays_close(tmp_path: Path) -> None:
    """fp16 weights and cache with float32 arithmetic: rounding shows, and no more than rounding."""
    model = llama()
    model.save_pretrained(tmp_path)
    loaded = models.load(tmp_path, tier="fp16")
    ids = random_ids(64)
    cache = loaded.new_cache(64)
    assert cache.keys.dtype == torch.float16
    assert loaded.model.model.layers[0].self_attn.q_proj.weight.dtype == torch.float16
    ours = loaded.model(ids, cache)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, model(ids).logits, atol=2e-2, rtol=0)
