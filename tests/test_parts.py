"""The ChatGLM authors' own INT8 and INT4 files: taken over bit by bit, whatever tier is asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

import models
from models import CheckpointError, footprint
from models.formats.parts import join
from models.quantize import PackedMatrix, QuantizedEmbedding, QuantizedLinear, Quants
from tests.tiny import CHATGLM, CHATGLM2, build

IDS = {"chatglm": [[5, 9, 17, 311, 314, 33]], "chatglm2": [[5, 9, 17, 33, 64]]}
CONFIGS = {"chatglm": CHATGLM, "chatglm2": CHATGLM2}
EMBEDDINGS = ("word_embeddings.weight", "lm_head.weight", "output_layer.weight")


def published(weight: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Stored integers, scales, and the matrix that they stand for, by the published arithmetic, byte after byte."""
    largest = 2 ** (bits - 1) - 1
    scales = (weight.abs().amax(1) / largest).half()
    integers = (weight / scales.float()[:, None]).round().clamp(-largest, largest).to(torch.int8).numpy()
    means = torch.from_numpy(integers.astype(np.float32)) * scales.float()[:, None]
    if bits == 4:
        nibbles = integers.astype(np.uint8) & 15
        integers = (nibbles[:, 0::2] * 16 + nibbles[:, 1::2]).view(np.int8)
    return torch.from_numpy(integers), scales, means


def save(folder: Path, config: Mapping, bits: int, embeddings: bool = False) -> tuple[dict, torch.nn.Module]:
    """Writes a checkpoint as THUDM's quantized ones are, in one .bin; returns its tensors and the model they stand for.

    The head of ChatGLM-6B is a second name of the embedding.
    """
    model = build(config)
    state, stands_for = {}, {}
    for name, tensor in model.state_dict().items():
        whole = tensor.half()
        state[name], stands_for[name] = whole, whole.float()
        if tensor.ndim == 2 and (embeddings or not name.endswith(EMBEDDINGS)):
            state[name], state[f"{name}_scale"], stands_for[name] = published(whole.float(), bits)
    if config is CHATGLM:
        for end in ("weight", "weight_scale") if embeddings else ("weight",):
            state[f"lm_head.{end}"] = state[f"transformer.word_embeddings.{end}"]
    model.load_state_dict(stands_for)
    about = {"quantization_bit": bits, "quantization_embeddings": embeddings}
    (folder / "config.json").write_text(json.dumps({**config, **about}))
    torch.save(state, folder / "pytorch_model.bin")
    return state, model


@pytest.mark.parametrize("embeddings", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", CONFIGS)
def test_bit_for_bit_in_every_tier(name: str, bits: int, embeddings: bool, tmp_path: Path) -> None:
    _, model = save(tmp_path, CONFIGS[name], bits, embeddings)
    ids = torch.tensor(IDS[name])
    expected = model(ids)
    whole = models.load(tmp_path, tier="fp32")
    assert (whole.model(ids) - expected).abs().max() <= 1e-5
    loaded = models.load(tmp_path, tier=f"int{bits}")
    kept = [module.weight for module in loaded.model.modules() if isinstance(module, QuantizedLinear)]
    assert len(kept) == 12 + (embeddings and name == "chatglm2") and all(weight.bits == bits for weight in kept)
    for path, module in loaded.model.named_modules():
        if isinstance(module, QuantizedLinear | QuantizedEmbedding):
            assert torch.equal(module.weight.dequantize(), model.get_submodule(path).weight)
    # The kernels round activations to eight bits.
    assert (loaded.model(ids) - expected).norm() / expected.norm() < 0.03


@pytest.mark.parametrize("embeddings", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", CONFIGS)
def test_planned_memory_is_what_is_taken(name: str, bits: int, embeddings: bool, tmp_path: Path) -> None:
    save(tmp_path, CONFIGS[name], bits, embeddings)
    needs = footprint(json.loads((tmp_path / "config.json").read_text()))
    assert needs.kept == f"int{bits}"
    for tier in ("fp32", "fp16", "int8", "int4"):
        assert models.load(tmp_path, tier=tier).nbytes == needs.weights(tier)


def test_int4_stays_int4_where_int8_is_asked_for(tmp_path: Path) -> None:
    _, model = save(tmp_path, CHATGLM2, 4)
    loaded = models.load(tmp_path, tier="int8", store=tmp_path / "store")
    packed = loaded.model.transformer.encoder.layers[0].mlp.dense_h_to_4h.weight
    assert packed.bits == 4 and not (tmp_path / "store").exists()
    assert loaded.model.transformer.output_layer.weight.dtype == torch.float16


def matrices(bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    every = torch.arange(-128, 128, dtype=torch.int8).repeat(3, 1)
    return every, torch.tensor([1.0, 2**-24, 8188.0 if bits == 4 else 500.0]).half()


@pytest.mark.parametrize("bits", [4, 8])
def test_every_byte_at_the_edges_of_half_precision(bits: int) -> None:
    integers, scales = matrices(bits)
    pair = [("a.weight_scale", scales), ("b", scales), ("a.weight", integers)]
    (_, between), (name, quants) = join(pair, bits, Path("x"))
    assert name == "a.weight" and between is scales and isinstance(quants, Quants)
    if bits == 8:
        expected = integers.double()
    else:
        high = [(byte >> 4) - 16 * (byte >= 128) for byte in range(256)]
        low = [(byte & 15) - 16 * (byte & 15 >= 8) for byte in range(256)]
        order = [*range(128, 256), *range(128)]
        columns = [each for byte in order for each in (high[byte], low[byte])]
        expected = torch.tensor(columns, dtype=torch.float64).repeat(3, 1)
    packed = quants.pack()
    assert isinstance(packed, PackedMatrix)
    assert torch.equal(packed.dequantize().double(), expected * scales.double()[:, None])


def refusal(tensors: Mapping[str, torch.Tensor], bits: int | None = 4) -> str:
    with pytest.raises(CheckpointError) as caught:
        list(join(tensors.items(), bits, Path("chatglm")))
    text = str(caught.value)
    assert "chatglm" in text and "\n" not in text and text.endswith(".")
    return text


def test_damaged_parts_are_named() -> None:
    integers, scales = torch.ones(4, 32, dtype=torch.int8), torch.ones(4, dtype=torch.float16)
    assert "a.weight_scale is missing" in refusal({"a.weight": integers})
    assert "a.weight is missing" in refusal({"a.weight_scale": scales})
    assert "quantization_bit" in refusal({"a.weight": integers, "a.weight_scale": scales}, bits=None)
    assert "quantization_bit" in refusal({"a.weight": integers, "a.weight_scale": scales}, bits=3)
    assert "a.weight_scale" in refusal({"a.weight": integers, "a.weight_scale": scales[:3]})
    assert "a.weight_scale" in refusal({"a.weight": integers[0], "a.weight_scale": scales[:1]})
    for value in (torch.inf, torch.nan, 8192.0):
        assert "no scales" in refusal({"a.weight": integers, "a.weight_scale": scales * value})
    assert "no scales" in refusal({"a.weight": integers, "a.weight_scale": scales.to(torch.int8)})
