"""GGUF files: LLaMA's rows put back, each storage type within its rounding, and clear refusals."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

import gguf
import pytest
import torch
from gguf import GGMLQuantizationType as Kind

import models
from models import CheckpointError
from models.formats import open_checkpoint
from tests.tiny import CHATML_CONTROLS, LINES, LLAMA, build, byte_level_tokenizer, write_gguf


def exact(blocks: torch.Tensor) -> torch.Tensor:
    return torch.zeros(1)


def half(blocks: torch.Tensor) -> torch.Tensor:
    return blocks.abs() * 2**-11


def q8_0(blocks: torch.Tensor) -> torch.Tensor:
    """Half a step of absmax/127, and the fp16 rounding of the scale."""
    largest = blocks.abs().amax(-1, keepdim=True)
    return largest / 127 / 2 + largest * 2**-11


def q4_0(blocks: torch.Tensor) -> torch.Tensor:
    """Steps of absmax/8 from -8 to 7: half a step, or a whole one at the far end of the side without an eighth."""
    largest = blocks.abs().amax(-1, keepdim=True)
    return largest / 8 + largest * 2**-11


def q4_1(blocks: torch.Tensor) -> torch.Tensor:
    """Half of fifteen steps from the smallest to the largest value, scale and minimum rounded to fp16."""
    span = blocks.amax(-1, keepdim=True) - blocks.amin(-1, keepdim=True)
    return span / 15 / 2 + (span + blocks.abs().amax(-1, keepdim=True)) * 2**-11


ROUNDING = {Kind.F32: exact, Kind.F16: half, Kind.Q4_0: q4_0, Kind.Q4_1: q4_1, Kind.Q8_0: q8_0}


@pytest.mark.parametrize("kind", ROUNDING, ids=lambda kind: kind.name)
def test_storage_types(tmp_path: Path, kind: Kind) -> None:
    source = build(LLAMA)
    write_gguf(tmp_path / "tiny.gguf", source, LLAMA, kind)
    read = models.load(tmp_path / "tiny.gguf", tier="fp32").model.state_dict()
    assert read.keys() == source.state_dict().keys()
    for name, tensor in source.state_dict().items():
        if tensor.ndim == 1:
            assert torch.equal(read[name], tensor)
            continue
        blocks = tensor.unflatten(-1, (-1, 32))
        error = (read[name].unflatten(-1, (-1, 32)) - blocks).abs()
        assert (error <= ROUNDING[kind](blocks) + 1e-7).all(), name
        assert kind is Kind.F32 or error.max() > 0


@pytest.mark.parametrize(
    "changes",
    [{}, {"tie_word_embeddings": True}, {"num_key_value_heads": 8, "rope_theta": 500000.0}],
    ids=["gqa", "tied", "mha"],
)
def test_whole_model(tmp_path: Path, changes: dict) -> None:
    """The config comes back too: the same logits as before the file was written."""
    source = build(LLAMA | changes)
    write_gguf(tmp_path / "tiny.gguf", source, LLAMA | changes)
    loaded = models.load(tmp_path / "tiny.gguf", tier="fp32")
    assert (loaded.family, loaded.context) == ("llama", 256)
    ids = torch.randint(320, (1, 50), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(loaded.model(ids), source(ids), atol=1e-5, rtol=0)


def test_llama3_frequency_factors(tmp_path: Path) -> None:
    """Llama 3.1 files carry the scaled frequencies as divisors; the result is that of the config's rule."""
    rule = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    config = LLAMA | {"rope_scaling": rule}
    source = build(config)
    scaled = source.frequencies(torch.zeros(1, 1, dtype=torch.int64), None)
    plain = build(LLAMA).frequencies(torch.zeros(1, 1, dtype=torch.int64), None)
    write_gguf(tmp_path / "tiny.gguf", source, config, extra={"rope_freqs.weight": (plain / scaled).numpy()})
    ids = torch.randint(320, (1, 200), generator=torch.Generator().manual_seed(0))
    ours = models.load(tmp_path / "tiny.gguf", tier="fp32").model(ids)
    torch.testing.assert_close(ours, source(ids), atol=1e-4, rtol=0)


def test_linear_scaling(tmp_path: Path) -> None:
    config = LLAMA | {"rope_scaling": {"type": "linear", "factor": 4.0}}
    source = build(config)
    write_gguf(tmp_path / "tiny.gguf", source, config)
    ids = torch.randint(320, (1, 50), generator=torch.Generator().manual_seed(0))
    ours = models.load(tmp_path / "tiny.gguf", tier="fp32").model(ids)
    torch.testing.assert_close(ours, source(ids), atol=1e-5, rtol=0)


@pytest.mark.parametrize("adds_bos", [False, True])
def test_tokenizer_inside(tmp_path: Path, adds_bos: bool) -> None:
    inner = byte_level_tokenizer()
    write_gguf(tmp_path / "tiny.gguf", build(LLAMA), LLAMA, tokenizer=inner, adds_bos=adds_bos)
    tokenizer = models.load_tokenizer(tmp_path / "tiny.gguf")
    for line in LINES:
        assert tokenizer.encode(line) == inner.encode(line).ids
        assert tokenizer.decode(tokenizer.encode(line)) == line
    assert tokenizer.controls == {name: number for number, name in enumerate(CHATML_CONTROLS)}
    assert tokenizer.prefix_ids == ([0] if adds_bos else [])
    assert not set(tokenizer.encode(" ".join(CHATML_CONTROLS))) & set(tokenizer.controls.values())
    assert tokenizer.eos_id == LLAMA["eos_token_id"]


def test_no_tokenizer_inside(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", build(LLAMA), LLAMA)
    loaded = models.load(tmp_path / "tiny.gguf")
    with pytest.raises(CheckpointError, match="tiny.gguf carries a tokenizer of kind 'none'"):
        loaded.tokenizer.encode("text")


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        models.load(path)
    text = str(caught.value)
    assert "\n" not in text and text.endswith(".") and path.name in text
    return text


def test_unknown_architecture(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", build(LLAMA), LLAMA, architecture="mamba")
    text = refusal(tmp_path / "tiny.gguf")
    assert "'mamba'" in text and "llama" in text


def test_unknown_storage_type(tmp_path: Path) -> None:
    config = LLAMA | {"hidden_size": 256, "intermediate_size": 256, "vocab_size": 64}
    write_gguf(tmp_path / "tiny.gguf", build(config), config, Kind.BF16)
    text = refusal(tmp_path / "tiny.gguf")
    assert "BF16" in text and "Q4_0" in text


@pytest.mark.parametrize("content", [b"", b"GGM", b"<!DOCTYPE html><html>", b"GGUF", b"GGUF\x03\0\0\0" + b"\xff" * 64])
def test_not_a_gguf(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "page.gguf").write_bytes(content)
    refusal(tmp_path / "page.gguf")


@pytest.mark.parametrize("share", [0.001, 0.01, 0.05, 0.3, 0.6, 0.9, 0.9999])
def test_truncated(tmp_path: Path, share: float) -> None:
    whole = tmp_path / "whole.gguf"
    write_gguf(whole, build(LLAMA), LLAMA, tokenizer=byte_level_tokenizer())
    data = whole.read_bytes()
    (tmp_path / "cut.gguf").write_bytes(data[: int(len(data) * share)])
    assert "damaged or incomplete" in refusal(tmp_path / "cut.gguf")


def test_missing_metadata(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "bare.gguf", "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match="lacks"):
        models.load(tmp_path / "bare.gguf")


def test_a_damaged_header_is_refused_or_read(tmp_path: Path) -> None:
    """Whatever a byte of it becomes: never another error."""
    whole = tmp_path / "whole.gguf"
    write_gguf(whole, build(LLAMA), LLAMA, tokenizer=byte_level_tokenizer())
    data = bytearray(whole.read_bytes())
    generator = random.Random(0)
    for _ in range(300):
        place, value = generator.randrange(4, 3000), generator.randrange(256)
        changed = data.copy()
        changed[place] = value
        (tmp_path / "changed.gguf").write_bytes(changed)
        with contextlib.suppress(CheckpointError):
            checkpoint = open_checkpoint(tmp_path / "changed.gguf")
            assert checkpoint.nbytes() > 0


def test_texts_of_the_header_are_read_when_wanted(tmp_path: Path) -> None:
    inner = byte_level_tokenizer()
    write_gguf(tmp_path / "tiny.gguf", build(LLAMA), LLAMA, tokenizer=inner)
    checkpoint = open_checkpoint(tmp_path / "tiny.gguf")
    assert checkpoint.config["vocab_size"] == LLAMA["vocab_size"]
    assert checkpoint.value("tokenizer.ggml.tokens")[:3] == list(CHATML_CONTROLS)
    reader = gguf.GGUFReader(tmp_path / "tiny.gguf")
    for key, field in reader.fields.items():
        if not key.startswith("GGUF."):
            assert checkpoint.value(key) == field.contents()
