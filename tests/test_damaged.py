"""Damaged checkpoints of every form: one sentence that names file and tensor or key, little memory, never a crash.

Each variant is a whole checkpoint of a form, copied and then damaged in one way.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import json
import os
import re
import shutil
import struct
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file

import models
from benchmarks.process import memory, reset_peak
from models import CheckpointError
from tests import gguf_sources, test_inspection, test_meta
from tests.test_adapters import write_delta
from tests.tiny import (
    BAICHUAN_7B,
    BLOOM,
    CHATGLM,
    CHATGLM2,
    LLAMA,
    byte_level_tokenizer,
    piece_model,
    save_folder,
    write_lora,
)

LINUX = sys.platform == "linux"
MOST_MEMORY = 64 * 2**20

# Whole checkpoints, each in a folder with "tiny" (or the file of that name) and maybe an "adapter"


def folder(root: Path, config: Mapping[str, Any] = LLAMA) -> None:
    save_folder(root / "tiny", config, byte_level_tokenizer())


def sharded(root: Path) -> None:
    folder(root)
    split_up(root / "tiny", "model", "safetensors", save_file)


def pickled(root: Path) -> None:
    test_inspection.pickled(root / "tiny")


def sharded_pickled(root: Path) -> None:
    folder(root)
    split_up(root / "tiny", "pytorch_model", "bin", torch.save)


def split_up(path: Path, name: str, suffix: str, write: Callable[[dict, Path], None]) -> None:
    """Two shards and an index in place of one file."""
    tensors = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    files = {tensor: f"{name}-{1 + at % 2:05}-of-00002.{suffix}" for at, tensor in enumerate(tensors)}
    for file in set(files.values()):
        write({tensor: tensors[tensor] for tensor in tensors if files[tensor] == file}, path / file)
    (path / f"{name}.{suffix}.index.json").write_text(json.dumps({"weight_map": files}))


def glm(root: Path) -> None:
    """ChatGLM2's tree in transformers' form, its queries, keys and values apart."""
    folder(root, CHATGLM2 | {"num_layers": 1})
    tensors = load_file(root / "tiny" / "model.safetensors")
    fused = "transformer.encoder.layers.0.self_attention.query_key_value"
    for kind in ("weight", "bias"):
        parts = tensors.pop(f"{fused}.{kind}").split([64, 16, 16])
        for name, part in zip("qkv", parts, strict=True):
            tensors[f"model.layers.0.self_attn.{name}_proj.{kind}"] = part.clone()
    save_file(tensors, root / "tiny" / "model.safetensors")


def baichuan2(root: Path) -> None:
    """As many tokens as Baichuan2 has, whose head is normed when it is read."""
    small = {"vocab_size": 125696, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    folder(root, BAICHUAN_7B | small | {"num_attention_heads": 2})


def published_int4(root: Path) -> None:
    test_inspection.published_int4(root / "tiny")


def meta(root: Path) -> None:
    test_inspection.meta(root / "tiny")


def one_gguf(root: Path) -> None:
    test_inspection.gguf(root / "tiny.gguf")


def split_gguf(root: Path) -> None:
    tokens = byte_level_tokenizer().get_vocab()
    values = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": sorted(tokens, key=tokens.__getitem__),
        "tokenizer.ggml.token_type": [1] * len(tokens),
        "tokenizer.ggml.merges": ["Ġ t"],
    }
    gguf_sources.write(root / "tiny.gguf", gguf_sources.llama(), values=values, split=20)


def with_lora(root: Path) -> None:
    folder(root)
    write_lora(root / "adapter", {"model.layers.1.self_attn.q_proj": (64, 64)})


def with_pickled_lora(root: Path) -> None:
    with_lora(root)
    torch.save(load_file(root / "adapter" / "adapter_model.safetensors"), root / "adapter" / "adapter_model.bin")
    (root / "adapter" / "adapter_model.safetensors").unlink()


def with_delta(root: Path) -> None:
    folder(root)
    write_delta(root / "delta", LLAMA, load_file(root / "tiny" / "model.safetensors"), torch.float32)


def with_prefix(root: Path) -> None:
    folder(root, CHATGLM2)
    test_inspection.prefixed(root / "adapter")


def with_pieces(root: Path) -> None:
    folder(root, LLAMA | {"vocab_size": 400})
    (root / "tiny" / "tokenizer.json").unlink()
    (root / "tiny" / "tokenizer.model").write_bytes(piece_model())


def with_ranks(root: Path) -> None:
    test_meta.save(root / "tiny", test_meta.llama())
    (root / "tiny" / "tokenizer.model").write_bytes(b"".join(b"%s %d\n" % (line, at) for at, line in enumerate(RANKS)))


RANKS = [base64.b64encode(bytes([byte])) for byte in range(256)]

FORMS: Mapping[str, Callable[[Path], None]] = {
    each.__name__: each
    for each in (
        folder,
        sharded,
        pickled,
        sharded_pickled,
        glm,
        baichuan2,
        published_int4,
        meta,
        one_gguf,
        split_gguf,
        with_lora,
        with_pickled_lora,
        with_delta,
        with_prefix,
        with_pieces,
        with_ranks,
    )
}


class Case(NamedTuple):
    path: Path
    adapter: Path | None

    def load(self) -> models.LoadedModel:
        """All that a chat needs of it: weights, tokenizer and chat format."""
        loaded = models.load(self.path, tier="fp32", adapter=self.adapter)
        loaded.chat_prompt([{"role": "user", "content": "sea"}])
        return loaded


def case(root: Path) -> Case:
    path = next((root / name for name in ("tiny.gguf", "tiny-00001-of-00002.gguf") if (root / name).exists()), None)
    adapter = next((root / name for name in ("adapter", "delta") if (root / name).exists()), None)
    return Case(path or root / "tiny", adapter)


@functools.cache
def whole(name: str, root: Path) -> Path:
    (root / name).mkdir()
    FORMS[name](root / name)
    return root / name


# Ways of damaging: each gives what is done to the folder that a whole checkpoint is in

Damage = Callable[[Path], None]
DEEP = b"[" * 10_000
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9976578928\n"
PAGE = b"<!DOCTYPE html>\n<html><head><title>404</title></head></html>"


def put(name: str, content: bytes | str) -> Damage:
    data = content.encode() if isinstance(content, str) else content
    return lambda root: void((root / name).write_bytes(data))


def void(_: object) -> None:
    """For lambdas that are called for what they do."""


def remove(name: str) -> Damage:
    return lambda root: (root / name).unlink()


def cut(name: str, share: float) -> Damage:
    def damage(root: Path) -> None:
        data = (root / name).read_bytes()
        (root / name).write_bytes(data[: int(share * len(data))])

    return damage


def replace(name: str, make: Callable[[Path], None]) -> Damage:
    """Something else in the place of a file."""

    def damage(root: Path) -> None:
        (root / name).unlink(missing_ok=True)
        make(root / name)

    return damage


def link(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


def sparse(start: bytes, size: int) -> Callable[[Path], None]:
    """A file that begins so, followed by a hole."""

    def make(path: Path) -> None:
        path.write_bytes(start)
        os.truncate(path, size)

    return make


def keys(name: str, **changes: Any) -> Damage:
    """Values of a JSON file; a key with None is taken out."""

    def damage(root: Path) -> None:
        found = json.loads((root / name).read_text()) | changes
        (root / name).write_text(json.dumps({key: value for key, value in found.items() if value is not None}))

    return damage


def config(**changes: Any) -> Damage:
    return keys("tiny/config.json", **changes)


def raw(name: str, key: str, text: str) -> Damage:
    """A value that Python's json would not write."""

    def damage(root: Path) -> None:
        keys(name, **{key: "HERE"})(root)
        (root / name).write_text((root / name).read_text().replace('"HERE"', text))

    return damage


def index(name: str, tensor: str, file: str) -> Damage:
    def damage(root: Path) -> None:
        found = json.loads((root / "tiny" / name).read_text())["weight_map"] | {tensor: file}
        keys(f"tiny/{name}", weight_map=found)(root)

    return damage


def tensors(name: str, changes: Mapping[str, torch.Tensor | None]) -> Damage:
    """Tensors of a weight file, put in or, with None, taken out."""

    def damage(root: Path) -> None:
        path = root / name
        safe = path.suffix == ".safetensors"
        found = (load_file(path) if safe else torch.load(path, weights_only=True)) | changes
        found = {name: tensor for name, tensor in found.items() if tensor is not None}
        (save_file if safe else torch.save)(found, path)

    return damage


def header(name: str, change: Callable[[dict], Any]) -> Damage:
    """The header of a safetensors file, edited in place; what `change` returns, if it is bytes, stands for it."""

    def damage(root: Path) -> None:
        data = (root / name).read_bytes()
        end = 8 + struct.unpack("<Q", data[:8])[0]
        about = json.loads(data[8:end])
        made = change(about)
        text = made if isinstance(made, bytes) else json.dumps(about).encode()
        (root / name).write_bytes(struct.pack("<Q", len(text)) + text + data[end:])

    return damage


def entry(tensor: str, **changes: Any) -> Damage:
    return header(MODEL, lambda about: about[tensor].update(changes))


def length(value: int) -> Damage:
    def damage(root: Path) -> None:
        data = (root / MODEL).read_bytes()
        (root / MODEL).write_bytes(struct.pack("<Q", value) + data[8:])

    return damage


def doubled(about: dict) -> bytes:
    """The header with the last tensor twice."""
    name, last = about.popitem()
    rest = json.dumps(about)[:-1]
    return f"{rest}, {json.dumps(name)}: {json.dumps(last)}, {json.dumps(name)}: {json.dumps(last)}}}".encode()


def gguf(values: Mapping[str, Any] | None = None, **changes: torch.Tensor | None) -> Damage:
    """A GGUF file written with other values, or other tensors."""

    def damage(root: Path) -> None:
        source = gguf_sources.llama()
        named = {name.replace("__", "."): tensor for name, tensor in changes.items()}
        for name, tensor in named.items():
            source.tensors.pop(name, None)
            if tensor is not None:
                source.tensors[name] = tensor
        (root / "tiny.gguf").unlink()
        gguf_sources.write(root / "tiny.gguf", source, values=values)

    return damage


def counts(at: int, value: int) -> Damage:
    """A number of eight bytes in a GGUF header."""

    def damage(root: Path) -> None:
        data = bytearray((root / "tiny.gguf").read_bytes())
        data[at : at + 8] = struct.pack("<Q", value)
        (root / "tiny.gguf").write_bytes(data)

    return damage


def renamed(name: str, other: str) -> Damage:
    return lambda root: void((root / name).rename(root / other))


def copied(name: str, other: str) -> Damage:
    return lambda root: void(shutil.copy(root / name, root / other))


def another(name: str, config: Mapping[str, Any]) -> Damage:
    """Another model in the place of a checkpoint."""

    def damage(root: Path) -> None:
        shutil.rmtree(root / name)
        save_folder(root / name, config, byte_level_tokenizer())

    return damage


def bomb(path: Path) -> None:
    """A zip archive of a file of weights that unpacks to a thousand times its size."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("archive/data.pkl", "w", force_zip64=True) as file:
            for _ in range(256):
                file.write(bytes(2**20))


def weights_bomb(path: Path) -> None:
    """The same with weights that are all zero."""
    torch.save({NORM: torch.zeros(2**26)}, path)
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, data in content.items():
            archive.writestr(name, data)


class Calls:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.getcwd, ()


MODEL, BIN = "tiny/model.safetensors", "tiny/pytorch_model.bin"
SAFE_INDEX, BIN_INDEX = "model.safetensors.index.json", "pytorch_model.bin.index.json"
FIRST_SHARD = "tiny/model-00001-of-00002.safetensors"
SHARD, BIN_SHARD = "tiny/model-00002-of-00002.safetensors", "tiny/pytorch_model-00002-of-00002.bin"
ADAPTER, SETTINGS = "adapter/adapter_model.safetensors", "adapter/adapter_config.json"
NORM, DOWN = "model.norm.weight", "model.layers.1.mlp.down_proj.weight"
MATRIX = "transformer.encoder.layers.1.mlp.dense_4h_to_h.weight"
PART = "model.layers.0.self_attn.k_proj.weight"
WK = "layers.1.attention.wk.weight"
LORA = "model.layers.1.self_attn.q_proj"
A, B = (f"base_model.model.{LORA}.lora_{side}.weight" for side in "AB")
ROWS = "transformer.prefix_encoder.embedding.weight"
HUGE = 10**400


@dataclass(frozen=True)
class Variant:
    """`words` must all be in the sentence: the file's name, then the tensor's, the key's or what else tells it."""

    form: Callable[[Path], None]
    damage: Damage
    words: tuple[str, ...]


def table(form: Callable[[Path], None], **rows: tuple[Any, ...]) -> dict[str, Variant]:
    return {f"{form.__name__}-{name}": Variant(form, row[0], row[1:]) for name, row in rows.items()}


CONFIG = table(
    folder,
    config_is_missing=(remove("tiny/config.json"), "tiny", "config.json"),
    config_is_empty=(put("tiny/config.json", ""), "config.json"),
    config_is_cut=(cut("tiny/config.json", 0.5), "config.json"),
    config_is_a_list=(put("tiny/config.json", "[1, 2]"), "config.json", "object"),
    config_is_deep=(put("tiny/config.json", DEEP), "config.json"),
    config_is_binary=(put("tiny/config.json", b"\xff\xfe\x00"), "config.json"),
    config_is_endless=(replace("tiny/config.json", sparse(b"{", 2**30)), "config.json"),
    config_is_a_page=(put("tiny/config.json", PAGE), "config.json", "web page"),
    config_is_a_pointer=(put("tiny/config.json", POINTER), "config.json", "Git LFS pointer"),
    config_has_endless_digits=(raw("tiny/config.json", "hidden_size", "1" * 5000), "config.json"),
    config_has_a_huge_number=(config(hidden_size=HUGE), "config.json", "hidden_size"),
    config_has_nan=(raw("tiny/config.json", "hidden_size", "NaN"), "config.json", "hidden_size"),
    config_has_a_huge_text=(config(hidden_size="9" * 100_000), "config.json", "hidden_size"),
    config_lacks_a_key=(config(intermediate_size=None), "config.json", "intermediate_size"),
    config_has_a_fraction=(config(num_hidden_layers=2.5), "config.json", "num_hidden_layers"),
    config_has_a_negative_number=(config(vocab_size=-320), "config.json", "vocab_size"),
    config_has_a_billion_layers=(config(num_hidden_layers=10**9), "config.json", "num_hidden_layers"),
    config_has_a_huge_matrix=(config(intermediate_size=2**62), "config.json", "intermediate_size"),
    config_has_huge_heads=(config(head_dim=2**40), "config.json", "head_dim"),
    config_has_huge_positions=(config(max_position_embeddings=HUGE), "config.json", "max_position_embeddings"),
    config_has_an_odd_head=(config(head_dim=7), "config.json", "head_dim"),
    config_has_an_epsilon_of_nan=(raw("tiny/config.json", "rms_norm_eps", "NaN"), "config.json", "rms_norm_eps"),
    config_has_an_epsilon_of_text=(config(rms_norm_eps="small"), "config.json", "rms_norm_eps"),
    config_has_an_endless_theta=(raw("tiny/config.json", "rope_theta", "1e999"), "config.json", "rope_theta"),
    config_has_a_huge_theta=(config(rope_theta=HUGE), "config.json", "rope_theta"),
    config_has_a_negative_theta=(config(rope_theta=-1.0), "config.json", "rope_theta"),
    config_ties_by_a_text=(config(tie_word_embeddings="no"), "config.json", "tie_word_embeddings"),
    config_scales_by_a_text=(config(rope_scaling="linear"), "config.json", "rope_scaling"),
    config_scales_by_a_list=(config(rope_scaling={"type": ["linear"], "factor": 2.0}), "config.json", "rope_scaling"),
    config_scales_by_no_number=(
        config(rope_scaling={"type": "linear", "factor": "2"}),
        "config.json",
        "rope_scaling",
    ),
    config_scales_by_nothing=(config(rope_scaling={"type": "linear", "factor": 0}), "config.json", "rope_scaling"),
    config_has_rope_of_text=(config(rope_parameters="default"), "config.json", "rope_parameters"),
    config_activates_by_a_list=(config(hidden_act=["silu"]), "config.json", "hidden_act"),
    config_is_of_no_type=(config(model_type={}, architectures=5), "model_type", "llama"),
    config_is_of_another_type=(config(model_type="mamba"), "'mamba'", "llama"),
    config_is_of_a_long_type=(config(model_type="mamba\n" * 1000), "mamba", "llama"),
    config_ends_with_an_object=(config(eos_token_id={"id": 2}), "config.json", "eos_token_id"),
    config_ends_with_a_text=(config(eos_token_id=["</s>"]), "config.json", "eos_token_id"),
    config_is_quantized_by_text=(config(quantization_bit="4"), "config.json", "quantization_bit"),
    config_is_quantized_to_an_object=(config(quantization_bit={"bits": 4}), "config.json", "quantization_bit"),
    config_is_quantized_by_others=(config(quantization_config={"quant_method": "gptq"}), "tiny", "gptq"),
    config_has_endless_rows_before=(config(pre_seq_len=HUGE), "config.json", "pre_seq_len"),
)

SAFETENSORS = table(
    folder,
    weights_are_missing=(remove(MODEL), "tiny", "safetensors"),
    weights_are_empty=(put(MODEL, b""), "model.safetensors"),
    weights_are_seven_bytes=(put(MODEL, b"\x08" + bytes(6)), "model.safetensors"),
    weights_are_zeros=(put(MODEL, bytes(4096)), "model.safetensors"),
    weights_are_a_page=(put(MODEL, PAGE), "model.safetensors", "web page"),
    weights_are_a_pointer=(put(MODEL, POINTER), "model.safetensors", "Git LFS pointer", "download the real file"),
    weights_are_a_folder=(replace(MODEL, Path.mkdir), "model.safetensors"),
    weights_are_cut=(cut(MODEL, 0.7), "model.safetensors", "model.layers"),
    header_is_cut=(cut(MODEL, 0.005), "model.safetensors", "header"),
    header_is_longer_than_the_file=(length(2**63), "model.safetensors", "header"),
    header_is_most_of_a_large_file=(
        replace(MODEL, sparse(struct.pack("<Q", 90_000_000) + b"{", 2**30)),
        "model.safetensors",
        "header",
    ),
    header_is_deep=(header(MODEL, lambda about: DEEP), "model.safetensors", "header"),
    header_is_a_list=(header(MODEL, lambda about: b"[]"), "model.safetensors", "header"),
    header_is_empty=(header(MODEL, lambda about: about.clear()), "tiny", "missing"),
    header_has_a_tensor_twice=(header(MODEL, doubled), "model.safetensors", "twice"),
    header_has_endless_digits=(header(MODEL, lambda about: b'{"a": ' + b"1" * 5000 + b"}"), "model.safetensors"),
    tensor_is_missing=(tensors(MODEL, {DOWN: None}), "tiny", DOWN),
    tensor_is_a_stranger=(tensors(MODEL, {"model.extra": torch.ones(2)}), "tiny", "model.extra"),
    tensor_has_a_long_name=(tensors(MODEL, {"x\n" * 9999: torch.ones(2)}), "tiny", "x"),
    tensor_has_another_shape=(tensors(MODEL, {DOWN: torch.ones(96, 64)}), "tiny", DOWN, "[96, 64]"),
    tensor_has_no_shape=(tensors(MODEL, {DOWN: torch.tensor(1.0)}), "tiny", DOWN),
    tensor_has_no_numbers=(tensors(MODEL, {DOWN: torch.ones(0, 96)}), "tiny", DOWN),
    tensor_has_many_dimensions=(entry(NORM, shape=[64] + [1] * 100_000), "model.safetensors", NORM),
    tensor_holds_integers=(tensors(MODEL, {NORM: torch.ones(64, dtype=torch.int32)}), "tiny", NORM, "int32"),
    tensor_holds_truths=(tensors(MODEL, {NORM: torch.ones(64, dtype=torch.bool)}), "tiny", NORM, "bool"),
    tensor_holds_bytes=(tensors(MODEL, {DOWN: torch.ones(64, 96, dtype=torch.int8)}), "tiny", DOWN),
    tensor_holds_nan=(tensors(MODEL, {DOWN: torch.full((64, 96), torch.nan)}), "tiny", DOWN, "not numbers"),
    tensor_is_of_no_type=(entry(NORM, dtype="F8_E4M3"), "model.safetensors", NORM, "F8_E4M3"),
    tensor_is_of_a_list_of_types=(entry(NORM, dtype=["F32"]), "model.safetensors", NORM),
    tensor_is_negative=(entry(NORM, shape=[-64]), "model.safetensors", NORM),
    tensor_is_huge=(entry(NORM, shape=[2**62, 2**62]), "model.safetensors", NORM),
    tensor_is_nothing_of_huge=(
        entry(NORM, shape=[0, 2**70], data_offsets=[0, 0]),
        "model.safetensors",
        NORM,
    ),
    tensor_lies_before_the_start=(entry(NORM, data_offsets=[-256, 0]), "model.safetensors", NORM),
    tensor_lies_behind_the_end=(
        entry(NORM, data_offsets=[2**40, 2**40 + 256]),
        "model.safetensors",
        NORM,
    ),
    tensor_lies_backwards=(entry(NORM, data_offsets=[256, 0]), "model.safetensors", NORM),
    tensor_lies_in_another=(
        header(MODEL, lambda about: about[NORM].update(data_offsets=[128, 384])),
        "model.safetensors",
        "lie",
    ),
    tensor_is_of_others=(tensors(MODEL, {"a.qweight": torch.ones(4, dtype=torch.int32)}), "tiny", "GPTQ"),
)

SHARDS = table(
    sharded,
    shard_is_missing=(remove(SHARD), "tiny", "model-00002-of-00002.safetensors"),
    shard_is_cut=(cut(SHARD, 0.9), "model-00002-of-00002.safetensors", "model.layers"),
    shard_is_the_other=(
        copied(FIRST_SHARD, SHARD),
        "tiny",
        "lm_head.weight",
        "twice",
    ),
    shard_is_a_pointer=(put(SHARD, POINTER), "model-00002-of-00002.safetensors", "Git LFS pointer"),
    tensor_is_in_two_shards=(
        lambda root: [tensors(name, {NORM: torch.ones(64)})(root) for name in (FIRST_SHARD, SHARD)],
        "tiny",
        NORM,
        "twice",
    ),
    count_is_absurd=(
        lambda root: (
            remove(f"tiny/{SAFE_INDEX}")(root),
            renamed(FIRST_SHARD, "tiny/model-00001-of-99999.safetensors")(root),
        ),
        "tiny",
        "model-00001-of-00002.safetensors",
    ),
    index_names_another_folder=(index(SAFE_INDEX, NORM, "../other.safetensors"), SAFE_INDEX, NORM, "../other"),
    index_names_the_parent=(index(SAFE_INDEX, NORM, ".."), SAFE_INDEX, NORM),
    index_names_an_absolute_path=(index(SAFE_INDEX, NORM, "/dev/zero"), SAFE_INDEX, NORM, "/dev/zero"),
    index_names_itself=(index(SAFE_INDEX, NORM, SAFE_INDEX), SAFE_INDEX, NORM),
    index_names_the_config=(index(SAFE_INDEX, NORM, "config.json"), SAFE_INDEX, NORM, "config.json"),
    index_names_nothing=(index(SAFE_INDEX, NORM, ""), SAFE_INDEX, NORM),
    index_names_a_zero_byte=(index(SAFE_INDEX, NORM, "a\0b.safetensors"), SAFE_INDEX, NORM),
    index_names_a_long_name=(index(SAFE_INDEX, NORM, "a" * 9999 + ".safetensors"), SAFE_INDEX, NORM),
    index_names_a_number=(keys(f"tiny/{SAFE_INDEX}", weight_map={NORM: 3}), SAFE_INDEX),
    index_is_a_list=(put(f"tiny/{SAFE_INDEX}", "[]"), SAFE_INDEX),
    index_is_deep=(put(f"tiny/{SAFE_INDEX}", DEEP), SAFE_INDEX),
    index_is_cut=(cut(f"tiny/{SAFE_INDEX}", 0.5), SAFE_INDEX),
)

PICKLES = table(
    pickled,
    bin_is_empty=(put(BIN, b""), "pytorch_model.bin"),
    bin_is_cut=(cut(BIN, 0.6), "pytorch_model.bin"),
    bin_is_a_page=(put(BIN, PAGE), "pytorch_model.bin", "web page"),
    bin_is_a_pointer=(put(BIN, POINTER), "pytorch_model.bin", "Git LFS pointer", "download the real file"),
    bin_is_a_bomb=(replace(BIN, bomb), "pytorch_model.bin"),
    bin_is_a_bomb_of_weights=(replace(BIN, weights_bomb), "pytorch_model.bin"),
    bin_is_a_folder=(replace(BIN, Path.mkdir), "pytorch_model.bin"),
    bin_holds_no_weights=(lambda root: torch.save([1], root / BIN), "pytorch_model.bin", "no weights"),
    bin_calls=(lambda root: torch.save({"a": Calls()}, root / BIN), "pytorch_model.bin", "getcwd", "safetensors"),
    tensor_is_missing=(tensors(BIN, {DOWN: None}), "tiny", DOWN),
    tensor_has_another_shape=(tensors(BIN, {DOWN: torch.ones(96, 64)}), "tiny", DOWN),
    tensor_has_no_shape=(tensors(BIN, {DOWN: torch.tensor(1.0)}), "tiny", DOWN),
    tensor_holds_integers=(tensors(BIN, {NORM: torch.ones(64, dtype=torch.int64)}), "tiny", NORM, "int64"),
    tensor_is_complex=(
        tensors(BIN, {NORM: torch.ones(64, dtype=torch.complex64)}),
        "pytorch_model.bin",
        NORM,
        "complex64",
    ),
    tensor_is_sparse=(tensors(BIN, {DOWN: torch.ones(64, 96).to_sparse()}), "pytorch_model.bin", DOWN),
    tensor_is_endless=(tensors(BIN, {DOWN: torch.ones(1).expand(2**30, 2**30)}), "pytorch_model.bin", DOWN),
) | table(
    sharded_pickled,
    shard_is_missing=(remove(BIN_SHARD), "tiny", "pytorch_model-00002-of-00002.bin"),
    shard_is_cut=(cut(BIN_SHARD, 0.9), "pytorch_model-00002-of-00002.bin"),
    index_names_itself=(index(BIN_INDEX, NORM, BIN_INDEX), BIN_INDEX, NORM),
)

PARTS = (
    table(
        published_int4,
        scale_is_missing=(tensors(BIN, {f"{MATRIX}_scale": None}), "tiny", f"{MATRIX}_scale"),
        integers_are_missing=(tensors(BIN, {MATRIX: None}), "tiny", MATRIX),
        scale_has_another_shape=(tensors(BIN, {f"{MATRIX}_scale": torch.ones(3)}), "tiny", f"{MATRIX}_scale"),
        scale_holds_nan=(tensors(BIN, {f"{MATRIX}_scale": torch.full((64,), torch.nan)}), "tiny", f"{MATRIX}_scale"),
        integers_are_a_row=(tensors(BIN, {MATRIX: torch.ones(64, dtype=torch.int8)}), "tiny", MATRIX),
        integers_are_of_another_shape=(
            tensors(BIN, {MATRIX: torch.ones(64, 17, dtype=torch.int8)}),
            "tiny",
            MATRIX,
        ),
        bits_are_of_another_file=(config(quantization_bit=8), "tiny", "transformer.encoder.layers.0"),
        bits_are_unknown=(config(quantization_bit=3), "config.json", "quantization_bit"),
        bits_are_missing=(config(quantization_bit=None), "config.json", "quantization_bit"),
    )
    | table(
        glm,
        part_is_missing=(tensors(MODEL, {PART: None}), "tiny", "query_key_value.weight"),
        part_has_other_columns=(tensors(MODEL, {PART: torch.ones(16, 65)}), "tiny", "query_key_value.weight"),
        part_has_no_shape=(tensors(MODEL, {PART: torch.tensor(1.0)}), "tiny", "query_key_value.weight"),
        part_has_other_rows=(tensors(MODEL, {PART: torch.ones(15, 64)}), "tiny", "query_key_value.weight"),
        a_head_of_text=(config(kv_channels="8"), "config.json", "kv_channels"),
        a_part_of_nan=(raw("tiny/config.json", "partial_rotary_factor", "NaN"), "config.json", "partial_rotary_factor"),
        too_large_a_part=(config(partial_rotary_factor=4.0), "config.json", "partial_rotary_factor"),
    )
    | table(
        baichuan2,
        head_has_no_shape=(tensors(MODEL, {"lm_head.weight": torch.tensor(1.0)}), "tiny", "lm_head.weight"),
        head_is_a_row=(tensors(MODEL, {"lm_head.weight": torch.ones(8)}), "tiny", "lm_head.weight"),
        head_holds_integers=(
            tensors(MODEL, {"lm_head.weight": torch.ones(125696, 8, dtype=torch.int32)}),
            "tiny",
            "lm_head.weight",
            "int32",
        ),
    )
)

FIRST, LAST, PARAMS = "tiny/consolidated.00.pth", "tiny/consolidated.01.pth", "tiny/params.json"
META = table(
    meta,
    shard_is_missing=(remove(LAST), "tiny", "consolidated.01.pth"),
    shard_is_cut=(cut(LAST, 0.5), "consolidated.01.pth"),
    shard_is_a_pointer=(put(LAST, POINTER), "consolidated.01.pth", "Git LFS pointer"),
    tensor_is_missing=(tensors(LAST, {WK: None}), "consolidated.01.pth", WK),
    tensor_has_another_shape=(tensors(LAST, {WK: torch.ones(7, 64)}), "consolidated.01.pth", WK),
    tensor_has_no_shape=(
        lambda root: [tensors(file, {WK: torch.tensor(1.0)})(root) for file in (FIRST, LAST)],
        "consolidated.00.pth",
        WK,
    ),
    tensor_holds_integers=(
        lambda root: [tensors(file, {WK: torch.ones(32, 64, dtype=torch.int32)})(root) for file in (FIRST, LAST)],
        "tiny",
        "k_proj",
        "int32",
    ),
    params_are_a_list=(put(PARAMS, "[]"), "params.json"),
    params_are_deep=(put(PARAMS, DEEP), "params.json"),
    params_lack_a_key=(keys(PARAMS, dim=None), "params.json", "dim"),
    params_have_a_huge_number=(keys(PARAMS, dim=HUGE), "params.json", "dim"),
    params_have_a_billion_layers=(keys(PARAMS, n_layers=10**9), "params.json", "n_layers"),
    params_have_nan=(raw(PARAMS, "norm_eps", "NaN"), "params.json", "norm_eps"),
    params_have_an_endless_factor=(raw(PARAMS, "ffn_dim_multiplier", "1e999"), "params.json", "ffn_dim_multiplier"),
    params_have_a_huge_multiple=(keys(PARAMS, multiple_of=HUGE), "params.json", "multiple_of"),
    params_have_other_heads=(keys(PARAMS, n_kv_heads=3), "params.json", "n_kv_heads"),
)

GGUF = table(
    one_gguf,
    file_is_empty=(put("tiny.gguf", b""), "tiny.gguf"),
    file_is_a_page=(put("tiny.gguf", PAGE), "tiny.gguf", "web page"),
    file_is_a_pointer=(put("tiny.gguf", POINTER), "tiny.gguf", "Git LFS pointer", "download the real file"),
    file_is_a_folder=(replace("tiny.gguf", Path.mkdir), "tiny.gguf"),
    header_is_cut=(cut("tiny.gguf", 0.01), "tiny.gguf", "header"),
    weights_are_cut=(cut("tiny.gguf", 0.9), "tiny.gguf", "weight"),
    tensors_are_too_many=(counts(8, 2**63), "tiny.gguf", "tensors"),
    values_are_too_many=(counts(16, 2**63), "tiny.gguf", "metadata"),
    a_key_is_too_long=(counts(24, 2**63), "tiny.gguf", "a key"),
    value_is_missing=(gguf({"arch.block_count": None}), "tiny.gguf", "llama.block_count"),
    layers_are_too_many=(gguf({"arch.block_count": 2**31}), "tiny.gguf", "llama.block_count"),
    a_matrix_is_too_large=(gguf({"arch.feed_forward_length": 2**31}), "tiny.gguf", "llama.feed_forward_length"),
    heads_are_too_large=(gguf({"arch.attention.key_length": 2**31}), "tiny.gguf", "llama.attention.key_length"),
    epsilon_is_nan=(
        gguf({"arch.attention.layer_norm_rms_epsilon": float("nan")}),
        "tiny.gguf",
        "llama.attention.layer_norm_rms_epsilon",
    ),
    architecture_is_another=(lambda root: gguf_of_another(root / "tiny.gguf"), "tiny.gguf", "'mamba'"),
    tensor_is_missing=(gguf(blk__1__attn_q__weight=None), "tiny.gguf", "layers.1.self_attn.q_proj.weight"),
    tensor_has_another_shape=(
        gguf(blk__1__attn_q__weight=torch.ones(65, 64)),
        "tiny.gguf",
        "blk.1.attn_q.weight",
    ),
    tensor_is_a_row=(gguf(blk__1__attn_q__weight=torch.ones(64)), "tiny.gguf", "q_proj.weight"),
    tensor_holds_nan=(gguf(output__weight=torch.full((320, 64), torch.nan)), "tiny.gguf", "lm_head.weight"),
) | table(
    split_gguf,
    file_is_missing=(remove("tiny-00002-of-00002.gguf"), "tiny-00002-of-00002.gguf"),
    file_is_cut=(cut("tiny-00002-of-00002.gguf", 0.9), "tiny-00002-of-00002.gguf"),
    file_is_the_other=(
        copied("tiny-00001-of-00002.gguf", "tiny-00002-of-00002.gguf"),
        "tiny-00002-of-00002.gguf",
        "split.no",
    ),
)


def gguf_of_another(path: Path) -> None:
    path.unlink()
    source = gguf_sources.llama()
    gguf_sources.write(path, gguf_sources.Source("mamba", source.values, source.tensors, source.logits))


ADAPTERS = table(
    with_lora,
    weights_are_missing=(remove(ADAPTER), "adapter", "adapter_model.safetensors"),
    weights_are_cut=(cut(ADAPTER, 0.9), "adapter_model.safetensors", LORA),
    weights_are_a_pointer=(put(ADAPTER, POINTER), "adapter_model.safetensors", "Git LFS pointer"),
    settings_are_missing=(remove(SETTINGS), "adapter", "adapter_config.json"),
    settings_are_a_list=(put(SETTINGS, "[]"), "adapter_config.json"),
    settings_are_deep=(put(SETTINGS, DEEP), "adapter_config.json"),
    rank_is_nothing=(keys(SETTINGS, r=0), "adapter_config.json", "r: 0"),
    rank_is_another=(keys(SETTINGS, r=8), "adapter_model.safetensors", LORA, "r = 8"),
    rank_is_huge=(keys(SETTINGS, r=HUGE), "adapter_config.json", "r:"),
    rank_is_a_list=(keys(SETTINGS, r=[4]), "adapter_config.json", "r: [4]"),
    alpha_is_text=(keys(SETTINGS, lora_alpha="16"), "adapter_config.json", "lora_alpha"),
    alpha_is_nan=(raw(SETTINGS, "lora_alpha", "NaN"), "adapter_config.json", "lora_alpha"),
    alpha_is_endless=(raw(SETTINGS, "lora_alpha", "1e999"), "adapter_config.json", "lora_alpha"),
    alpha_is_huge=(keys(SETTINGS, lora_alpha=HUGE), "adapter_config.json", "lora_alpha"),
    ranks_are_text=(keys(SETTINGS, rank_pattern="q_proj"), "adapter_config.json", "rank_pattern"),
    pattern_is_broken=(keys(SETTINGS, rank_pattern={"(": 4}), "adapter_config.json", "rank_pattern"),
    pattern_gives_nothing=(keys(SETTINGS, rank_pattern={".*": 0}), "adapter_config.json", "r: 0"),
    kind_is_another=(keys(SETTINGS, peft_type="IA3"), "adapter", "IA3"),
    kind_is_a_list=(keys(SETTINGS, peft_type=["LORA"]), "adapter", "LORA"),
    start_is_another=(keys(SETTINGS, init_lora_weights="pissa"), "adapter", "pissa"),
    targets_nothing=(
        header(
            ADAPTER, lambda about: json.dumps({"none.lora_A.weight": about[A], "none.lora_B.weight": about[B]}).encode()
        ),
        "adapter_model.safetensors",
        "none",
        "made/tiny",
    ),
    holds_nothing=(lambda root: save_file({}, root / ADAPTER), "adapter_model.safetensors", "no tensors"),
    side_is_missing=(tensors(ADAPTER, {B: None}), "adapter_model.safetensors", f"{LORA}.lora_B"),
    side_has_no_shape=(tensors(ADAPTER, {B: torch.tensor(1.0)}), "adapter_model.safetensors", LORA),
    side_holds_nan=(tensors(ADAPTER, {A: torch.full((4, 64), torch.nan)}), "adapter_model.safetensors", LORA),
    side_holds_integers=(
        tensors(ADAPTER, {A: torch.ones(4, 64, dtype=torch.int32)}),
        "adapter_model.safetensors",
        LORA,
        "int32",
    ),
    embedding_has_no_shape=(
        tensors(ADAPTER, {"base_model.model.model.embed_tokens.weight": torch.tensor(1.0)}),
        "adapter_model.safetensors",
        "embed_tokens.weight",
    ),
    base_is_wider=(another("tiny", LLAMA | {"hidden_size": 128}), "adapter_model.safetensors", LORA, "made/tiny"),
    base_is_another=(another("tiny", BLOOM), "adapter_model.safetensors", LORA, "made/tiny"),
    name_of_the_base_is_long=(
        lambda root: [keys(SETTINGS, base_model_name_or_path="tiny\n" * 999)(root), another("tiny", BLOOM)(root)],
        "adapter_model.safetensors",
        LORA,
    ),
) | table(
    with_pickled_lora,
    bin_is_cut=(cut("adapter/adapter_model.bin", 0.5), "adapter_model.bin"),
    bin_is_a_pointer=(put("adapter/adapter_model.bin", POINTER), "adapter_model.bin", "Git LFS pointer"),
    bin_is_a_list=(lambda root: torch.save([1], root / "adapter/adapter_model.bin"), "adapter_model.bin"),
    bin_is_a_number=(
        lambda root: torch.save({A: 1, B: 2}, root / "adapter/adapter_model.bin"),
        "adapter_model.bin",
    ),
    bin_is_deep=(put("adapter/adapter_model.bin", b"(" * 100_000), "adapter_model.bin"),
    bin_calls=(
        lambda root: torch.save({A: Calls()}, root / "adapter/adapter_model.bin"),
        "adapter_model.bin",
        "getcwd",
    ),
)

DELTAS = table(
    with_delta,
    tensor_is_missing=(tensors("delta/model.safetensors", {DOWN: None}), "delta", DOWN),
    tensor_has_another_shape=(tensors("delta/model.safetensors", {DOWN: torch.ones(9, 9)}), "delta", DOWN),
    tensor_has_no_shape=(tensors("delta/model.safetensors", {DOWN: torch.tensor(1.0)}), "delta", DOWN),
    tensor_holds_integers=(
        tensors("delta/model.safetensors", {DOWN: torch.ones(64, 96, dtype=torch.int32)}),
        "delta",
        DOWN,
        "int32",
    ),
    weights_are_cut=(cut("delta/model.safetensors", 0.6), "model.safetensors", "model.layers"),
    config_is_deep=(put("delta/config.json", DEEP), "config.json"),
    config_has_a_huge_number=(keys("delta/config.json", hidden_size=HUGE), "delta", "hidden_size"),
    base_is_wider=(another("tiny", LLAMA | {"hidden_size": 128}), "delta", "hidden_size", "128"),
    base_is_another=(another("tiny", BLOOM), "delta", "model_type", "bloom"),
    base_lacks_layers=(another("tiny", LLAMA | {"num_hidden_layers": 2}), "delta", "num_hidden_layers"),
)

PREFIXES = table(
    with_prefix,
    tensor_is_missing=(
        tensors("adapter/model.safetensors", {ROWS: None, f"{ROWS}.old": torch.ones(1)}),
        "adapter",
        ROWS,
    ),
    tensor_has_other_rows=(tensors("adapter/model.safetensors", {ROWS: torch.ones(4, 96)}), "adapter", ROWS),
    tensor_holds_integers=(
        tensors("adapter/model.safetensors", {ROWS: torch.ones(5, 96, dtype=torch.int32)}),
        "adapter",
        ROWS,
        "int32",
    ),
    tensor_holds_nan=(tensors("adapter/model.safetensors", {ROWS: torch.full((5, 96), torch.nan)}), "adapter", ROWS),
    weights_are_cut=(cut("adapter/model.safetensors", 0.6), "model.safetensors", ROWS),
    rows_are_text=(keys("adapter/config.json", pre_seq_len="5"), "config.json", "pre_seq_len"),
    rows_are_huge=(keys("adapter/config.json", pre_seq_len=HUGE), "config.json", "pre_seq_len"),
    projection_is_missing=(
        keys("adapter/config.json", prefix_projection=True),
        "adapter",
        "transformer.prefix_encoder",
    ),
    config_is_deep=(put("adapter/config.json", DEEP), "config.json"),
    base_is_another=(another("tiny", LLAMA), "adapter", "ChatGLM"),
    base_is_another_chatglm=(another("tiny", CHATGLM), "adapter", ROWS),
)

TOKENIZER, TOKENIZER_CONFIG = "tiny/tokenizer.json", "tiny/tokenizer_config.json"
TOKENIZERS = (
    table(
        folder,
        tokenizer_is_missing=(remove(TOKENIZER), "tiny", "tokenizer.json"),
        tokenizer_is_empty=(put(TOKENIZER, ""), "tokenizer.json"),
        tokenizer_is_cut=(cut(TOKENIZER, 0.5), "tokenizer.json"),
        tokenizer_is_deep=(put(TOKENIZER, DEEP), "tokenizer.json"),
        tokenizer_is_binary=(put(TOKENIZER, b"\xff\xfe\x00"), "tokenizer.json"),
        tokenizer_is_endless=(replace(TOKENIZER, sparse(b"{", 2**30)), "tokenizer.json"),
        tokenizer_is_a_pointer=(put(TOKENIZER, POINTER), "tokenizer.json", "Git LFS pointer"),
        tokenizer_lacks_its_model=(keys(TOKENIZER, model=None), "tokenizer.json"),
        tokenizer_merges_nothing=(
            keys(TOKENIZER, model={"type": "BPE", "vocab": {"a": 0}, "merges": [["x", "y"]]}),
            "tokenizer.json",
        ),
        tokenizer_adds_texts=(keys(TOKENIZER, added_tokens=["<s>"]), "tokenizer.json"),
        settings_are_a_list=(put(TOKENIZER_CONFIG, "[]"), "tokenizer_config.json"),
        settings_are_deep=(put(TOKENIZER_CONFIG, DEEP), "tokenizer_config.json"),
        template_is_a_number=(put(TOKENIZER_CONFIG, '{"chat_template": 5}'), "tokenizer_config.json", "chat_template"),
        template_is_a_list_of_numbers=(
            put(TOKENIZER_CONFIG, '{"chat_template": [{"name": "default", "template": 5}]}'),
            "tokenizer_config.json",
            "chat_template",
        ),
        tokens_are_numbers=(put(TOKENIZER_CONFIG, '{"bos_token": 5}'), "tokenizer_config.json", "bos_token"),
        tokens_are_empty=(put(TOKENIZER_CONFIG, '{"bos_token": {"id": 1}}'), "tokenizer_config.json", "bos_token"),
        generation_is_deep=(put("tiny/generation_config.json", DEEP), "generation_config.json"),
        generation_ends_with_an_object=(
            put("tiny/generation_config.json", '{"eos_token_id": {}}'),
            "generation_config.json",
            "eos_token_id",
        ),
    )
    | table(
        with_pieces,
        model_is_empty=(put("tiny/tokenizer.model", b""), "tokenizer.model"),
        model_is_cut=(cut("tiny/tokenizer.model", 0.5), "tokenizer.model"),
        model_is_a_page=(put("tiny/tokenizer.model", PAGE), "tokenizer.model"),
        model_is_a_pointer=(put("tiny/tokenizer.model", POINTER), "tokenizer.model", "Git LFS pointer"),
        model_is_endless=(replace("tiny/tokenizer.model", sparse(b"\n", 2**30)), "tokenizer.model"),
        added_is_a_list=(put("tiny/added_tokens.json", "[]"), "added_tokens.json"),
        added_holds_texts=(put("tiny/added_tokens.json", '{"<s>": "1"}'), "added_tokens.json", "<s>"),
        decoder_is_a_list=(
            put(TOKENIZER_CONFIG, '{"added_tokens_decoder": []}'),
            "tokenizer_config.json",
            "added_tokens_decoder",
        ),
        decoder_numbers_by_names=(
            put(TOKENIZER_CONFIG, '{"added_tokens_decoder": {"x": {"content": "y", "special": true}}}'),
            "tokenizer_config.json",
            "added_tokens_decoder",
        ),
    )
    | table(
        with_ranks,
        rank_is_negative=(put("tiny/tokenizer.model", b"YQ== 0\nYg== -1\n"), "tokenizer.model"),
        rank_is_huge=(put("tiny/tokenizer.model", b"YQ== 0\nYg== 99999999999999\n"), "tokenizer.model"),
        line_is_no_rank=(put("tiny/tokenizer.model", b"YQ== 0\nYg==\n"), "tokenizer.model"),
        line_is_no_text=(put("tiny/tokenizer.model", b"YQ== 0\nY 1\n"), "tokenizer.model"),
    )
)

#: What can only be done, or only shows, on Linux.
SPECIAL = (
    table(
        folder,
        config_can_not_be_read=(replace("tiny/config.json", link("/proc/self/mem")), "config.json", "can't be read"),
        config_is_a_pipe=(replace("tiny/config.json", os.mkfifo), "tiny", "config.json"),
        weights_can_not_be_read=(replace(MODEL, link("/proc/self/mem")), "model.safetensors", "can't be read"),
        weights_are_a_pipe=(replace(MODEL, os.mkfifo), "tiny", "model.safetensors"),
        weights_are_a_loop=(replace(MODEL, link("model.safetensors")), "tiny", "model.safetensors"),
        weights_are_a_broken_link=(replace(MODEL, link("nowhere")), "tiny", "model.safetensors"),
        folder_is_a_loop=(lambda root: [shutil.rmtree(root / "tiny"), link("tiny")(root / "tiny")], "tiny"),
        tokenizer_is_a_pipe=(replace(TOKENIZER, os.mkfifo), "tiny", "tokenizer.json"),
        tokenizer_can_not_be_read=(replace(TOKENIZER, link("/proc/self/mem")), "tokenizer.json", "can't be read"),
    )
    | table(
        one_gguf,
        file_can_not_be_read=(replace("tiny.gguf", link("/proc/self/mem")), "tiny.gguf", "can't be read"),
        file_is_a_pipe=(replace("tiny.gguf", os.mkfifo), "tiny.gguf"),
        file_is_a_loop=(replace("tiny.gguf", link("tiny.gguf")), "tiny"),
    )
    | table(
        with_lora,
        weights_can_not_be_read=(
            replace(ADAPTER, link("/proc/self/mem")),
            "adapter_model.safetensors",
            "can't be read",
        ),
        weights_are_a_pipe=(replace(ADAPTER, os.mkfifo), "adapter", "adapter_model.safetensors"),
    )
    | table(
        meta,
        shard_can_not_be_read=(replace(FIRST, link("/proc/self/mem")), "consolidated.00.pth"),
        shard_is_a_pipe=(replace(LAST, os.mkfifo), "tiny", "consolidated.01.pth"),
    )
    if LINUX
    else {}
)
#: Root may read everything.
FORBIDDEN = (
    {
        f"forbidden-{each.form.__name__}-{file}": Variant(
            each.form, lambda root, file=file: (root / file).chmod(0), (file.rpartition("/")[2],)
        )
        for file, each in {MODEL: SAFETENSORS, "tiny/config.json": CONFIG}.items()
        for each in list(each.values())[:1]
    }
    if LINUX and os.geteuid()
    else {}
)

VARIANTS = {
    **CONFIG, **SAFETENSORS, **SHARDS, **PICKLES, **PARTS, **META, **GGUF, **ADAPTERS, **DELTAS, **PREFIXES,
    **TOKENIZERS, **SPECIAL, **FORBIDDEN,
}  # fmt: skip

#: What a sentence tells the user to do, or whom to turn to.
ADVICE = re.compile(
    r"download|get |give |load |choose|merge|try |convert|check |don't match|it is for|supported are|can\.|belong"
)
#: What belongs to Python.
JARGON = re.compile(r"Traceback|Errno|Error\b|Exception|NoneType|object at 0x|<class|torch\.Size")


@contextlib.contextmanager
def bounded_memory() -> Iterator[None]:
    """What is read of a damaged file stays small, whatever it says of itself, and no file stays open."""
    if not LINUX:
        yield
        return
    reset_peak()
    before, opened = memory(), len(os.listdir("/proc/self/fd"))
    yield
    assert memory().peak - before.peak < MOST_MEMORY
    assert len(os.listdir("/proc/self/fd")) <= opened


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("whole")


@pytest.mark.parametrize("name", VARIANTS)
def test_one_sentence(name: str, bases: Path, tmp_path: Path) -> None:
    variant = VARIANTS[name]
    root = tmp_path / "copy"
    shutil.copytree(whole(variant.form.__name__, bases), root)
    good = case(root)
    variant.damage(root)
    bad = Case(good.path, good.adapter)
    with bounded_memory():
        with pytest.raises(CheckpointError) as caught:
            bad.load()
        text = str(caught.value)
        del caught
        report = models.inspect(bad.path)
        if bad.adapter is not None:
            models.inspect(bad.adapter)
    assert "\n" not in text and text.isprintable() and text.endswith(".") and len(text) < 600, text
    for word in variant.words:
        assert word in text, text
    assert ADVICE.search(text) and not JARGON.search(text), text
    if bad.adapter is None:
        # Headers do not show numbers that are none.
        assert not report.loads or "not numbers" in text or "no scales" in text, report


@pytest.mark.parametrize("form", FORMS)
def test_the_whole_one_loads_after_all(form: str, bases: Path) -> None:
    case(whole(form, bases)).load()


@pytest.mark.parametrize("path", ["", "nowhere", "a\0b", "a" * 5000, "/dev/null"])
def test_paths_that_are_none(path: str, bases: Path) -> None:
    base = whole("folder", bases) / "tiny"
    for load in (lambda: models.load(path), lambda: models.load(base, adapter=path)):
        with pytest.raises(CheckpointError) as caught:
            load()
        text = str(caught.value)
        assert text.isprintable() and text.endswith(".") and ADVICE.search(text) and not JARGON.search(text), text
    assert not models.inspect(path).loads
