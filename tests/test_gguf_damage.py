"""Damaged GGUF files: one sentence that names the file and what is wrong in it, and little memory."""

from __future__ import annotations

import contextlib
import random
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
import torch
from gguf import GGMLQuantizationType as Kind

import models
from models import CheckpointError
from models.formats import open_checkpoint
from tests import gguf_sources
from tests.tiny import LLAMA, build, byte_level_tokenizer, write_gguf


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


# One value or one tensor is wrong

VALUES = [
    ("arch.embedding_length", None, "lacks llama.embedding_length"),
    ("arch.embedding_length", "64", "impossible llama.embedding_length: '64'"),
    ("arch.embedding_length", 0, "impossible llama.embedding_length: 0"),
    ("arch.block_count", 3.0, "impossible llama.block_count: 3.0"),
    ("arch.block_count", True, "impossible llama.block_count: True"),
    ("arch.feed_forward_length", [96, 96], "impossible llama.feed_forward_length: a list of 2"),
    ("arch.attention.head_count", 7, "impossible llama.attention.head_count: 7"),
    ("arch.attention.head_count", 1000, "impossible llama.attention.head_count: 1000"),
    ("arch.attention.head_count_kv", 3, "impossible llama.attention.head_count_kv: 3"),
    ("arch.attention.layer_norm_rms_epsilon", None, "lacks llama.attention.layer_norm_rms_epsilon"),
    ("arch.attention.layer_norm_rms_epsilon", float("nan"), "impossible llama.attention.layer_norm_rms_epsilon: nan"),
    ("arch.rope.freq_base", -1.0, "impossible llama.rope.freq_base: -1.0"),
    ("arch.rope.scaling.type", 4, "impossible llama.rope.scaling.type: 4"),
    ("arch.vocab_size", None, "lacks llama.vocab_size"),
    ("tokenizer.ggml.eos_token_id", 320, "impossible tokenizer.ggml.eos_token_id: 320"),
    ("tokenizer.ggml.eos_token_id", "</s>", "impossible tokenizer.ggml.eos_token_id: '</s>'"),
    ("general.alignment", 0, "general.alignment is 0"),
    ("general.alignment", "32", "general.alignment is '32'"),
    ("arch.context_length", "x" * 1000, "impossible llama.context_length: 'xxxx"),
]


@pytest.mark.parametrize("key, value, said", VALUES)
def test_a_wrong_value(key: str, value: object, said: str, tmp_path: Path) -> None:
    source = gguf_sources.llama()
    if key == "general.alignment":  # the writer itself would use it
        path = gguf_sources.write(tmp_path / "tiny.gguf", source, values={"general.alignmemt": value})
        path.write_bytes(path.read_bytes().replace(b"general.alignmemt", b"general.alignment"))
    else:
        path = gguf_sources.write(tmp_path / "tiny.gguf", source, values={key: value})
    text = refusal(path)
    assert said in text and len(text) < 300


TENSORS = [
    (lambda tensors: tensors.pop("output_norm.weight"), "model.norm.weight"),
    (lambda tensors: tensors.pop("blk.1.attn_q.weight"), "layers.1.self_attn.q_proj.weight"),
    (lambda tensors: tensors.update({"blk.9.attn_v.weight": torch.zeros(32, 64)}), "layers.9.self_attn.v_proj.weight"),
    (lambda tensors: tensors.update({"strange.weight": torch.zeros(3)}), "strange.weight"),
    (lambda tensors: tensors.update({"blk.0.attn_v.weight": torch.zeros(33, 64)}), "layers.0.self_attn.v_proj.weight"),
    (lambda tensors: tensors.update({"blk.0.attn_k.weight": torch.zeros(33, 64)}), "blk.0.attn_k.weight"),
    (lambda tensors: tensors.update({"output.weight": torch.full((320, 64), torch.nan)}), "lm_head.weight"),
]


@pytest.mark.parametrize("change, said", TENSORS)
def test_a_wrong_tensor(change: Callable[[dict], None], said: str, tmp_path: Path) -> None:
    source = gguf_sources.llama()
    change(source.tensors)
    assert said in refusal(gguf_sources.write(tmp_path / "tiny.gguf", source))


def test_a_part_of_a_joined_tensor_is_missing(tmp_path: Path) -> None:
    source = gguf_sources.baichuan_7b()
    del source.tensors["blk.5.attn_k.weight"]
    assert "lacks blk.5.attn_k.weight" in refusal(gguf_sources.write(tmp_path / "tiny.gguf", source))


def test_parts_of_a_joined_tensor_that_do_not_fit_together(tmp_path: Path) -> None:
    source = gguf_sources.baichuan_7b()
    source.tensors["blk.5.attn_k.weight"] = torch.zeros(64, 32)
    path = gguf_sources.write(tmp_path / "tiny.gguf", source)
    assert "blk.5.attn_k.weight" in refusal(path)
    assert models.inspect(path).problems[0] == refusal(path)


@pytest.mark.parametrize("kind", [Kind.Q4_0, Kind.Q8_0, Kind.Q5_0, Kind.Q6_K], ids=lambda kind: kind.name)
def test_scales_that_are_no_numbers(kind: Kind, tmp_path: Path) -> None:
    path = gguf_sources.write(tmp_path / "tiny.gguf", gguf_sources.llama(hidden=256, inner=256), kind)
    tensor = open_checkpoint(path)._tensors["blk.1.ffn_up.weight"]
    data = bytearray(path.read_bytes())
    data[tensor.start : tensor.start + tensor.n_bytes] = b"\xff" * tensor.n_bytes
    path.write_bytes(data)
    for tier in ("int4", "fp32"):
        with pytest.raises(CheckpointError, match=r"blk\.1\.ffn_up\.weight in .*tiny\.gguf holds values that are not"):
            models.load(path, tier=tier)


# The bytes of the header, by hand


def header(tensors: int = 0, values: int = 0, version: int = 3) -> bytes:
    return struct.pack("<4sIQQ", b"GGUF", version, tensors, values)


def text(value: str, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(value) if length is None else length) + value.encode()


def entry(name: str, shape: tuple[int, ...], kind: int = 0, start: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, start)


ARCHITECTURE = text("general.architecture") + struct.pack("<I", 8) + text("llama")
HEADERS = [
    (header(version=1), "version 1"),
    (header(version=4), "version 4"),
    (struct.pack(">4sIQQ", b"GGUF", 3, 0, 0), "big-endian"),
    (header(tensors=2**63), "9223372036854775808 tensors"),
    (header(tensors=100), "ends in its header"),
    (header(values=2**40), "1099511627776 metadata values"),
    (header(values=1) + text("key", 2**62), "4611686018427387904 bytes of a key"),
    (header(values=1) + text("key", 2**20), "ends in its header"),
    (header(values=1) + text("key") + struct.pack("<I", 99), "key is of type 99"),
    (header(values=1) + text("key") + struct.pack("<I", 8) + text("", 2**50), "1125899906842624 bytes of key"),
    (header(values=1) + text("key") + struct.pack("<I", 8) + struct.pack("<Q", 1) + b"\xff", "key is no UTF-8"),
    (header(values=1) + text("key") + struct.pack("<IIQ", 9, 9, 1), "key is of type 9"),
    (header(values=1) + text("key") + struct.pack("<IIQ", 9, 8, 2**61), "2305843009213693952 entries of key"),
    (header(values=1) + text("key") + struct.pack("<IIQ", 9, 4, 2**61), "2305843009213693952 entries of key"),
    (header(tensors=1) + entry("a", (2**63, 2**63)), "a lies behind its end"),
    (header(tensors=1) + entry("a", (0, 4)), "a has the shape [0, 4]"),
    (header(tensors=1) + entry("a", ()), "a has the shape []"),
    (header(tensors=1) + entry("a", (1,) * 5), "a has 5 dimensions"),
    (header(tensors=1) + entry("a", (4,), kind=200), "a is of type 200"),
    (header(tensors=1) + entry("a", (33,), kind=2), "a has the shape [33]"),
    (header(tensors=1) + entry("a", (4,), start=2**62), "a lies behind its end"),
    (header(tensors=1) + entry("a", (4,), start=7), "a lies at an impossible place"),
    (header(tensors=2) + entry("a", (64,)) + entry("b", (4,), start=32), "b lies at an impossible place"),
    (header(tensors=2) + entry("a", (4,)) + entry("a", (4,), start=32), "same name"),
]


@pytest.mark.parametrize("content, said", HEADERS)
@pytest.mark.parametrize("behind", [b"", b"\0" * 2**12], ids=["short", "long"])
def test_a_wrong_header(content: bytes, said: str, behind: bytes, tmp_path: Path) -> None:
    if "ends in" in said and behind:
        behind = b""
    (tmp_path / "tiny.gguf").write_bytes(content + behind)
    found = refusal(tmp_path / "tiny.gguf")
    assert said in found or (not behind and "its end" in found), found


def test_a_length_within_a_large_file_takes_no_memory(tmp_path: Path) -> None:
    """A gigabyte of zeros that a wrong count would have us read as a text, as numbers, or as texts."""
    path = tmp_path / "tiny.gguf"
    for value in (struct.pack("<I", 8) + text("", 2**29), *(struct.pack("<IIQ", 9, kind, 2**29) for kind in (0, 8))):
        with path.open("wb") as file:
            file.write(header(values=1) + text("key") + value)
            file.truncate(2**30)
        tracemalloc.start()
        refusal(path)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert most < 2**20


def test_a_damaged_tokenizer_is_named(tmp_path: Path) -> None:
    pieces = {"tokenizer.ggml.tokens": ["a", "a"], "tokenizer.ggml.token_type": [1, 1]}
    for kind, others, said in [
        ("llama", {"tokenizer.ggml.scores": [0.0, 0.0]}, "is damaged"),
        ("llama", {"tokenizer.ggml.scores": [0.0]}, "impossible tokenizer.ggml.scores"),
        ("llama", {}, "lacks tokenizer.ggml.scores"),
        ("gpt2", {}, "lacks tokenizer.ggml.merges"),
        ("gpt2", {"tokenizer.ggml.merges": ["x y"]}, "is damaged"),
        ("gpt2", {"tokenizer.ggml.merges": ["xy"]}, "is damaged"),
        ("gpt2", {"tokenizer.ggml.merges": ["x y"], "tokenizer.ggml.token_type": [1]}, "tokenizer.ggml.token_type"),
        ("gpt2", {"tokenizer.ggml.merges": ["x y"], "tokenizer.ggml.tokens": [1]}, "tokenizer.ggml.tokens"),
    ]:
        writer = gguf.GGUFWriter(tmp_path / "tiny.gguf", "llama")
        for key, value in {"tokenizer.ggml.model": kind, **pieces, **others}.items():
            gguf_sources.add_value(writer, key, value)
        writer.add_eos_token_id(1)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        with pytest.raises(CheckpointError) as caught:
            models.load_tokenizer(tmp_path / "tiny.gguf")
        assert said in str(caught.value) and "tiny.gguf" in str(caught.value) and "\n" not in str(caught.value)
