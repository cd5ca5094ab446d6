"""Our forward passes against outputs of the published modelling code, as chatglm.cpp's tests keep them (MIT).

A file holds raw float32 weights of one layer, then ids 0, 1, 2 with the final norm's output for them, then 3 and 4, one
cached step each.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from models.base import BaseModel
from models.layers import LayerNorm, RMSNorm
from tests.tiny import BAICHUAN_7B, CHATGLM, CHATGLM2, build

GOLDEN = Path(__file__).parent / "data" / "golden"
TOLERANCE = {"atol": 1e-6, "rtol": 0}

# The prompt of ChatGLM-6B's file has [gMASK] at its second and <sop> at its third place.
CASES = {
    "glm": (
        CHATGLM | {"hidden_size": 32, "inner_hidden_size": 128, "gmask_token_id": 1, "bos_token_id": 2},
        "transformer.",
        ("word_embeddings.weight",),
        (
            "layers.0.input_layernorm.weight",
            "layers.0.input_layernorm.bias",
            "layers.0.attention.query_key_value.weight",
            "layers.0.attention.query_key_value.bias",
            "layers.0.attention.dense.weight",
            "layers.0.attention.dense.bias",
            "layers.0.post_attention_layernorm.weight",
            "layers.0.post_attention_layernorm.bias",
            "layers.0.mlp.dense_h_to_4h.weight",
            "layers.0.mlp.dense_h_to_4h.bias",
            "layers.0.mlp.dense_4h_to_h.weight",
            "layers.0.mlp.dense_4h_to_h.bias",
        ),
        ("final_layernorm.weight", "final_layernorm.bias"),
    ),
    "glm2": (
        CHATGLM2 | {"hidden_size": 32, "ffn_hidden_size": 48, "kv_channels": 4, "padded_vocab_size": 5},
        "transformer.",
        ("embedding.word_embeddings.weight",),
        (
            "encoder.layers.0.input_layernorm.weight",
            "encoder.layers.0.self_attention.query_key_value.weight",
            "encoder.layers.0.self_attention.query_key_value.bias",
            "encoder.layers.0.self_attention.dense.weight",
            "encoder.layers.0.post_attention_layernorm.weight",
            "encoder.layers.0.mlp.dense_h_to_4h.weight",
            "encoder.layers.0.mlp.dense_4h_to_h.weight",
        ),
        ("encoder.final_layernorm.weight",),
    ),
    "baichuan7b": (
        BAICHUAN_7B | {"hidden_size": 32, "intermediate_size": 96},
        "model.",
        ("embed_tokens.weight",),
        (
            "layers.0.input_layernorm.weight",
            "layers.0.self_attn.W_pack.weight",
            "layers.0.self_attn.o_proj.weight",
            "layers.0.post_attention_layernorm.weight",
            "layers.0.mlp.gate_proj.weight",
            "layers.0.mlp.down_proj.weight",
            "layers.0.mlp.up_proj.weight",
        ),
        ("norm.weight",),
    ),
}
SMALL = {"num_attention_heads": 8, "num_layers": 1, "num_hidden_layers": 1, "vocab_size": 5}


class Reader:
    def __init__(self, path: Path) -> None:
        self._data, self._at = path.read_bytes(), 0

    def take(self, *shape: int, dtype: str = "<f4") -> torch.Tensor:
        count = int(np.prod(shape))
        values = np.frombuffer(self._data, dtype, count, self._at)
        self._at += 4 * count
        return torch.from_numpy(values.reshape(shape).copy())

    def done(self) -> bool:
        return self._at == len(self._data)


@pytest.mark.parametrize("name", CASES)
@torch.inference_mode()
def test_published_outputs(name: str) -> None:
    config, prefix, *groups = CASES[name]
    model = build(config | SMALL)
    reader = Reader(GOLDEN / f"{name}_model.data")
    parameters = dict(model.named_parameters())
    names = [prefix + part for group in groups for part in group]
    for parameter in names:
        parameters[parameter].copy_(reader.take(*parameters[parameter].shape))
    assert set(parameters) - set(names) <= {"lm_head.weight", "transformer.output_layer.weight"}
    hidden = watch_final_norm(model, prefix + groups[-1][0].removesuffix(".weight"))
    cache = model.new_cache(5, torch.float32, "cpu")
    for time in (3, 1, 1):
        ids = reader.take(time, dtype="<i4").long()
        model(ids[None], cache)
        torch.testing.assert_close(hidden[-1][0], reader.take(time, 32), **TOLERANCE)
    assert reader.done() and cache.length == 5


def watch_final_norm(model: BaseModel, name: str) -> list[torch.Tensor]:
    """A list that every output of the final norm is added to: the files stop before the head."""
    seen: list[torch.Tensor] = []
    model.get_submodule(name).register_forward_hook(lambda module, inputs, output: seen.append(output))
    return seen


@torch.inference_mode()
def test_rms_norm() -> None:
    reader, norm = Reader(GOLDEN / "rms_norm.data"), RMSNorm(64, 1e-5)
    norm.weight.copy_(reader.take(64))
    torch.testing.assert_close(norm(reader.take(3, 64)), reader.take(3, 64), **TOLERANCE)
    assert reader.done()


@torch.inference_mode()
def test_layer_norm() -> None:
    reader, norm = Reader(GOLDEN / "layer_norm.data"), LayerNorm(64, 1e-5)
    norm.weight.copy_(reader.take(64))
    norm.bias.copy_(reader.take(64))
    torch.testing.assert_close(norm(reader.take(3, 64)), reader.take(3, 64), **TOLERANCE)
    assert reader.done()
