"""GGUF files, with the config and the tensor names put back into the Hugging Face form."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType as QuantType

from ..base import CheckpointError
from ..prompts import ChatHints
from ..quantize import Quants
from ..tokenizer import PieceTokenizer, Tokenizer, byte_level_tokenizer
from ..tokenizers import model_proto
from .gguf_file import MAGIC, GGUFFile, Tensor, Texts

Weight = torch.Tensor | Quants


@dataclass(frozen=True)
class Layout:
    """How one GGUF architecture corresponds to the Hugging Face form."""

    config: Callable[[GGUFCheckpoint], dict[str, Any]]
    names: Mapping[str, str]  #: "blk.N." becomes the "N." of the pattern
    restore: Callable[[str, Weight, Mapping[str, Any]], Weight]


class GGUFCheckpoint:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.origin = str(path.resolve())
        self._file = _open(path)
        name = self.value("general.architecture")
        if name not in LAYOUTS:
            supported = ", ".join(LAYOUTS)
            raise CheckpointError(
                f"{path.name} has the architecture {name!r}, which can't be run here; try {supported}."
            )
        self._layout = LAYOUTS[name]
        self._tensors = self._file.tensors
        self.config: dict[str, Any] = self._layout.config(self)

    @staticmethod
    def recognises(path: Path) -> bool:
        return path.is_file() and path.suffix == ".gguf"

    @staticmethod
    def glance(path: Path) -> dict[str, Any]:
        """What names the architecture, from the first bytes: reading the whole header takes seconds."""
        with path.open("rb") as file:
            start = file.read(512)
        # Writers put general.architecture first: its name, its type (8 is text), the text's length, the text.
        found = re.search(rb"general\.architecture\x08\0\0\0(.)\0{7}", start, re.DOTALL)
        name = start[found.end() : found.end() + found[1][0]].decode("utf-8", "replace") if found else None
        return {"model_type": name}

    def value(self, key: str, default: Any = None) -> Any:
        """A metadata value as a Python object; {arch} in the key stands for the architecture's name."""
        if "{arch}" in key:
            key = key.format(arch=self.value("general.architecture"))
        value = self._file.values.get(key, default)
        return value.read() if isinstance(value, Texts) else value

    def holds(self, name: str) -> bool:
        return name in self._tensors

    def tensors(self) -> Iterator[tuple[str, Weight]]:
        for name in self._tensors:
            renamed = self._rename(name)
            if renamed is not None:
                yield renamed, self._layout.restore(renamed, self.read(name), self.config)

    def read(self, name: str) -> Weight:
        """One tensor in torch's order of dimensions: float32, or quantized as the file has it."""
        tensor = self._tensors[name]
        if tensor.tensor_type not in READERS:
            kinds = ", ".join(kind.name for kind in READERS)
            raise CheckpointError(
                f"{self.path.name} holds {name} as {tensor.tensor_type.name}, which can't be read yet; {kinds} can."
            )
        return READERS[tensor.tensor_type](tensor)

    @property
    def quantized(self) -> bool:
        return any(READERS.get(tensor.tensor_type) not in (None, _floats) for tensor in self._tensors.values())

    def files(self) -> list[Path]:
        return [self.path]

    def nbytes(self) -> int:
        return sum(int(tensor.n_bytes) for tensor in self._tensors.values())

    def tokenizer(self) -> Tokenizer:
        kind = self.value("tokenizer.ggml.model")
        if kind not in TOKENIZERS:
            kinds = " and ".join(map(repr, TOKENIZERS))
            raise CheckpointError(f"{self.path.name} carries a tokenizer of kind {kind!r}; {kinds} can be read.")
        return TOKENIZERS[kind](self)

    def chat_hints(self) -> ChatHints:
        names = [self.value(f"general.{key}") for key in ("name", "basename", "finetune")]
        eos = self.value("tokenizer.ggml.eos_token_id")
        return ChatHints(
            template=self.value("tokenizer.chat_template"),
            special_tokens=self._special_tokens(),
            names=tuple(name.lower() for name in [*names, self.path.stem] if name),
            eos_ids=frozenset() if eos is None else frozenset({eos}),
        )

    def _special_tokens(self) -> dict[str, str]:
        tokens = self.value("tokenizer.ggml.tokens", [])
        ids = {f"{name}_token": self.value(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos")}
        return {name: tokens[number] for name, number in ids.items() if number is not None}

    def _rename(self, name: str) -> str | None:
        match = re.fullmatch(r"blk\.(\d+)\.(.+)", name)
        number, rest = match.groups() if match else ("", name)
        pattern = self._layout.names.get(rest)
        if pattern is None:
            return None if name in IGNORED else name
        return pattern.format(number)


def _open(path: Path) -> GGUFFile:
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != MAGIC:
        raise CheckpointError(f"{path} is not a GGUF file, or damaged at its start; download it again.")
    try:
        return GGUFFile(path)
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged or incomplete ({error}); download it again.") from error


def _byte_level_tokenizer(file: GGUFCheckpoint) -> Tokenizer:
    split = file.value("tokenizer.ggml.pre", "default")
    adds_bos = file.value("tokenizer.ggml.add_bos_token", split in BOS_BY_DEFAULT)
    return byte_level_tokenizer(
        tokens=file.value("tokenizer.ggml.tokens"),
        kinds=file.value("tokenizer.ggml.token_type"),
        merges=file.value("tokenizer.ggml.merges"),
        split=split,
        bos_id=file.value("tokenizer.ggml.bos_token_id") if adds_bos else None,
        eos_id=file.value("tokenizer.ggml.eos_token_id"),
    )


def _piece_tokenizer(file: GGUFCheckpoint) -> Tokenizer:
    """The sentencepiece model that the file was made from, put together again."""
    tokens, scores, kinds = (file.value(f"tokenizer.ggml.{key}") for key in ("tokens", "scores", "token_type"))
    proto = model_proto.build(
        zip(tokens, scores, kinds, strict=True),
        bos_id=file.value("tokenizer.ggml.bos_token_id", 1),
        eos_id=file.value("tokenizer.ggml.eos_token_id", 2),
        dummy_prefix=file.value("tokenizer.ggml.add_space_prefix", True),
    )
    return PieceTokenizer(proto, adds_bos=file.value("tokenizer.ggml.add_bos_token", True))


TOKENIZERS = {"gpt2": _byte_level_tokenizer, "llama": _piece_tokenizer}
BOS_BY_DEFAULT = {"llama-bpe"}  #: byte-level tokenizers that start with <s> where the file doesn't say
IGNORED = {"rope_freqs.weight"}  # read into the config


def _llama_config(file: GGUFCheckpoint) -> dict[str, Any]:
    heads = file.value("{arch}.attention.head_count")
    embedding = file.value("{arch}.embedding_length")
    head_dim = file.value("{arch}.attention.key_length", file.value("{arch}.rope.dimension_count"))
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": embedding,
        "intermediate_size": file.value("{arch}.feed_forward_length"),
        "num_hidden_layers": file.value("{arch}.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": file.value("{arch}.attention.head_count_kv", heads),
        "head_dim": head_dim,
        "vocab_size": _vocabulary(file),
        "max_position_embeddings": file.value("{arch}.context_length"),
        "rms_norm_eps": file.value("{arch}.attention.layer_norm_rms_epsilon"),
        "rope_theta": file.value("{arch}.rope.freq_base", 10000.0),
        "rope_scaling": _rope_scaling(file),
        "tie_word_embeddings": not file.holds("output.weight"),
        "bos_token_id": file.value("tokenizer.ggml.bos_token_id"),
        "eos_token_id": file.value("tokenizer.ggml.eos_token_id"),
    }


def _vocabulary(file: GGUFCheckpoint) -> int | None:
    tokens = file._file.values.get("tokenizer.ggml.tokens")
    return len(tokens) if tokens is not None else file.value("{arch}.vocab_size")


def _rope_scaling(file: GGUFCheckpoint) -> dict[str, Any] | None:
    if file.holds("rope_freqs.weight"):
        return {"rope_type": "factors", "factors": file.read("rope_freqs.weight").tolist()}
    kind = file.value("{arch}.rope.scaling.type", "none")
    return None if kind == "none" else {"rope_type": kind, "factor": file.value("{arch}.rope.scaling.factor")}


def _llama_restore(name: str, weight: Weight, config: Mapping[str, Any]) -> Weight:
    """GGUF rotates neighbouring pairs, the Hugging Face form halves: the rows of q and k go back to their places."""
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    part = name.split(".")[-2] if "." in name else ""
    if part not in heads:
        return weight
    rows = torch.arange(weight.shape[0])
    return weight[rows.view(heads[part], -1, 2).transpose(1, 2).flatten()]


def _floats(tensor: Tensor) -> torch.Tensor:
    return torch.from_numpy(np.array(tensor.data, dtype=np.float32))  # a copy: the mapped file is read-only


def _blocks(tensor: Tensor, *fields: tuple[str, str, int]) -> dict[str, torch.Tensor]:
    """The fields (name, type, count) of a quantized tensor's blocks of 32 weights, each [rows, blocks, count]."""
    rows = tensor.data.shape[0] if tensor.data.ndim > 1 else 1
    blocks = np.ascontiguousarray(tensor.data).view(np.dtype([(name, kind, (count,)) for name, kind, count in fields]))
    blocks = blocks.reshape(rows, -1)
    return {name: torch.from_numpy(np.ascontiguousarray(blocks[name])) for name, _, _ in fields}


def _nibbles(packed: torch.Tensor) -> torch.Tensor:
    """[rows, blocks, 16] bytes, the low halves first -> integers [rows, columns]."""
    return torch.cat((packed & 15, packed >> 4), dim=-1).flatten(1)


def _q4_0(tensor: Tensor) -> Quants:
    parts = _blocks(tensor, ("scale", "<f2", 1), ("packed", "u1", 16))
    scales = parts["scale"].squeeze(-1)
    return Quants(4, _nibbles(parts["packed"]), scales, -8 * scales)  # exact: a power of two


def _q4_1(tensor: Tensor) -> Quants:
    parts = _blocks(tensor, ("scale", "<f2", 1), ("minimum", "<f2", 1), ("packed", "u1", 16))
    return Quants(4, _nibbles(parts["packed"]), parts["scale"].squeeze(-1), parts["minimum"].squeeze(-1))


def _q8_0(tensor: Tensor) -> Quants:
    parts = _blocks(tensor, ("scale", "<f2", 1), ("integers", "i1", 32))
    return Quants(8, parts["integers"].flatten(1), parts["scale"].squeeze(-1))


READERS: Mapping[QuantType, Callable[[Tensor], Weight]] = {
    QuantType.F32: _floats,
    QuantType.F16: _floats,
    QuantType.Q4_0: _q4_0,
    QuantType.Q4_1: _q4_1,
    QuantType.Q8_0: _q8_0,
}


LLAMA_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    "attn_norm.weight": "model.layers.{}.input_layernorm.weight",
    "attn_q.weight": "model.layers.{}.self_attn.q_proj.weight",
    "attn_k.weight": "model.layers.{}.self_attn.k_proj.weight",
    "attn_v.weight": "model.layers.{}.self_attn.v_proj.weight",
    "attn_output.weight": "model.layers.{}.self_attn.o_proj.weight",
    "ffn_norm.weight": "model.layers.{}.post_attention_layernorm.weight",
    "ffn_gate.weight": "model.layers.{}.mlp.gate_proj.weight",
    "ffn_up.weight": "model.layers.{}.mlp.up_proj.weight",
    "ffn_down.weight": "model.layers.{}.mlp.down_proj.weight",
}

LAYOUTS = {"llama": Layout(_llama_config, LLAMA_NAMES, _llama_restore)}
