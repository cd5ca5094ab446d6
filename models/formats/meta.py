"""Meta's own LLaMA folders: params.json and consolidated.00.pth, .01, ..., what they say put in Hugging Face terms.

Source: the published models' code (llama/model.py) and how they are known in the Hugging Face form.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ..base import LARGEST_COUNT, MOST_HEADS, MOST_LAYERS, CheckpointError, end_ids, impossible, is_count, is_number
from ..files import read_object
from ..prompts import ChatHints
from ..tokenizer import Tokenizer, read_tokenizer
from .pickles import PickledFile
from .rotary import halves_from_pairs

PARAMS, WEIGHTS = "params.json", "consolidated.{:02}.pth"
MOST_SHARDS = 99  #: their numbers have two digits
#: What params.json must hold, and what it may.
COUNTS, MORE_COUNTS = ("dim", "n_layers", "n_heads"), ("n_kv_heads", "multiple_of")
LIMITS = {"n_layers": MOST_LAYERS, "n_heads": MOST_HEADS, "n_kv_heads": MOST_HEADS}
NUMBERS = ("norm_eps", "rope_theta", "ffn_dim_multiplier")

#: Meta's name of a tensor -> the Hugging Face form's, and the dimension along which the shards cut it.
NAMES = {
    "tok_embeddings.weight": ("model.embed_tokens.weight", 1),
    "norm.weight": ("model.norm.weight", None),
    "output.weight": ("lm_head.weight", 0),
    "attention_norm.weight": ("model.layers.{}.input_layernorm.weight", None),
    "attention.wq.weight": ("model.layers.{}.self_attn.q_proj.weight", 0),
    "attention.wk.weight": ("model.layers.{}.self_attn.k_proj.weight", 0),
    "attention.wv.weight": ("model.layers.{}.self_attn.v_proj.weight", 0),
    "attention.wo.weight": ("model.layers.{}.self_attn.o_proj.weight", 1),
    "ffn_norm.weight": ("model.layers.{}.post_attention_layernorm.weight", None),
    "feed_forward.w1.weight": ("model.layers.{}.mlp.gate_proj.weight", 0),
    "feed_forward.w2.weight": ("model.layers.{}.mlp.down_proj.weight", 1),
    "feed_forward.w3.weight": ("model.layers.{}.mlp.up_proj.weight", 0),
}
EMBEDDING, QUERIES, HEAD = "tok_embeddings.weight", "layers.0.attention.wq.weight", "output.weight"
TOKENIZER = "tokenizer.model"
IGNORED = "rope.freqs"  #: computed here

Params = Mapping[str, Any]
Read = Callable[[PickledFile, str], torch.Tensor]


@dataclass(frozen=True)
class Generation:
    """What params.json does not say of a generation of LLaMA; `folder` is the end of the path in lower case."""

    matches: Callable[[Params, str], bool]
    window: int
    eos_ids: int | list[int]


def _is_first(params: Params, folder: str) -> bool:
    """By the folder's name, else by the epsilon, which the 65B has in common with LLaMA 2, or by the 65B's heads."""
    if re.search(r"llama-?2", folder):
        return False
    return params.get("norm_eps", 1e-6) < 5e-6 or (params["dim"] == 8192 and "n_kv_heads" not in params)


LLAMA3_EOS = [128001, 128008, 128009]  #: <|end_of_text|>, <|eom_id|>, <|eot_id|>
#: The first that matches; what nothing tells apart is taken for LLaMA 2.
GENERATIONS = (
    Generation(lambda params, folder: bool(params.get("use_scaled_rope")), 131072, LLAMA3_EOS),
    Generation(lambda params, folder: params.get("rope_theta") == 500000.0, 8192, LLAMA3_EOS),
    Generation(lambda params, folder: params.get("rope_theta") == 1000000.0, 16384, 2),  # Code Llama
    Generation(_is_first, 2048, 2),
    Generation(lambda params, folder: True, 4096, 2),
)
#: Llama 3.2's 1B and 3B stretch the rotation more than the larger models, which 3.1 began with.
SMALL_DIM, SMALL_FACTOR, FACTOR = 3072, 32.0, 8.0


class MetaCheckpoint:
    form = "folder in Meta's form"
    quantized = 0
    precision = 16

    def __init__(self, path: Path) -> None:
        self.path = path
        self.origin = str(path.resolve())
        self._params = _checked(path / PARAMS)
        self._first = PickledFile(self._file(0))
        self._named = "/".join(path.resolve().parts[-2:]).lower()
        self.config: dict[str, Any] = self._config()

    @staticmethod
    def recognises(path: Path) -> bool:
        return (path / PARAMS).is_file() and (path / WEIGHTS.format(0)).is_file()

    @staticmethod
    def glance(path: Path) -> dict[str, Any]:
        return {"model_type": "llama"}

    @classmethod
    def located(cls, path: Path) -> list[Path]:
        """The files of a checkpoint. Raises CheckpointError for one that is missing."""
        return cls(path).files()

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        return self._tensors(PickledFile.read)

    def outline(self) -> Iterator[tuple[str, torch.Tensor]]:
        return self._tensors(PickledFile.outline)

    def _tensors(self, read: Read) -> Iterator[tuple[str, torch.Tensor]]:
        shards = [self._first, *map(PickledFile, self._files[1:])]
        for name in self._first:
            if name != IGNORED:
                yield self._whole(name, shards, read)

    def nbytes(self) -> int:
        return sum(file.stat().st_size for file in self._files)

    def files(self) -> list[Path]:
        return [self.path / PARAMS, *self._files]

    def tokenizer(self) -> Tokenizer:
        """Beside the weights, or, where several sizes share one, in the folder above."""
        here, above = self.path, self.path.absolute().parent
        shared = not (here / TOKENIZER).is_file() and (above / TOKENIZER).is_file()
        return read_tokenizer(above if shared else here, self.config)

    def chat_hints(self) -> ChatHints:
        return ChatHints(names=tuple(self._named.split("/")), eos_ids=frozenset(end_ids(self.config)))

    def _file(self, number: int) -> Path:
        return self.path / WEIGHTS.format(number)

    @cached_property
    def _files(self) -> list[Path]:
        """All shards. Raises CheckpointError for one that is missing."""
        files = [self._file(number) for number in range(self._count)]
        for file in files:
            if not file.is_file():
                raise CheckpointError(f"{file.name} is missing in {self.path}; download it from the same place.")
        return files

    @cached_property
    def _count(self) -> int:
        """How many shards there must be: each has its share of the first queries, [dim, dim] in all."""
        count, rest = divmod(self._params["dim"] ** 2, math.prod(self._first.shape(QUERIES)) or 1)
        if rest or not 1 <= count <= MOST_SHARDS:
            shape = list(self._first.shape(QUERIES))
            raise CheckpointError(
                f"{QUERIES} in {self._first.path} has the shape {shape}, which {PARAMS} contradicts; download both "
                "again."
            )
        return count

    def _config(self) -> dict[str, Any]:
        params = self._params
        generation = next(each for each in GENERATIONS if each.matches(params, self._named))
        return {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "hidden_size": params["dim"],
            "intermediate_size": _inner_size(params),
            "num_hidden_layers": params["n_layers"],
            "num_attention_heads": params["n_heads"],
            "num_key_value_heads": params.get("n_kv_heads", params["n_heads"]),
            # Early files say -1, to be filled in from the tokenizer: the embedding knows it too.
            "vocab_size": math.prod(self._first.shape(EMBEDDING)) * self._count // params["dim"],
            "max_position_embeddings": generation.window,
            "rms_norm_eps": params.get("norm_eps", 1e-5),
            "rope_theta": params.get("rope_theta", 10000.0),
            "rope_scaling": _rope_scaling(params),
            "tie_word_embeddings": HEAD not in self._first,
            "eos_token_id": generation.eos_ids,
        }

    def _whole(self, name: str, shards: list[PickledFile], read: Read) -> tuple[str, torch.Tensor]:
        """The name in the Hugging Face form, and the tensor put together from all shards."""
        match = re.fullmatch(r"layers\.(\d+)\.(.+)", name)
        number, rest = match.groups() if match else ("", name)
        if rest not in NAMES:
            return name, read(self._first, name)
        pattern, dim = NAMES[rest]
        weight = self._joined(name, dim, shards, read)
        heads = {"wq": "num_attention_heads", "wk": "num_key_value_heads"}.get(rest.split(".")[-2])
        if heads is not None and weight.ndim == 2 and weight.shape[0] % (2 * self.config[heads]) == 0:
            weight = weight[halves_from_pairs(self.config[heads], weight.shape[0])]
        return pattern.format(number), weight

    def _joined(self, name: str, dim: int | None, shards: list[PickledFile], read: Read) -> torch.Tensor:
        if dim is None or len(shards) == 1:
            return read(self._first, name)
        parts = [read(shard, name) for shard in shards]
        for part, shard in zip(parts, shards, strict=True):
            if part.ndim != 2 or part.shape != parts[0].shape:
                raise CheckpointError(
                    f"{name} in {shard.path} has the shape {list(part.shape)}, unlike other shards; download it again."
                )
        # Llama 3 cuts the embedding by tokens, those before it by columns.
        by_rows = name == EMBEDDING and parts[0].shape[1] == self.config["hidden_size"]
        return torch.cat(parts, 0 if by_rows else dim)


def _checked(path: Path) -> Params:
    """params.json; raises CheckpointError naming a value that is missing or impossible."""
    params = {key: value for key, value in read_object(path).items() if value is not None}
    for key in (*COUNTS, *(key for key in (*MORE_COUNTS, *NUMBERS) if key in params)):
        found = params.get(key)
        if not (is_number(found) if key in NUMBERS else is_count(found, LIMITS.get(key, LARGEST_COUNT))):
            raise impossible(path, key, found)
    if params["dim"] % (2 * params["n_heads"]):
        raise impossible(path, "n_heads", params["n_heads"])
    if params["n_heads"] % params.get("n_kv_heads", 1):
        raise impossible(path, "n_kv_heads", params["n_kv_heads"])
    return params


def _inner_size(params: Params) -> int:
    """Two thirds of 4 x dim, times a factor, rounded up to a multiple."""
    inner = int(int(8 * params["dim"] / 3) * params.get("ffn_dim_multiplier", 1))
    multiple = params.get("multiple_of", 256)
    return -(-inner // multiple) * multiple


def _rope_scaling(params: Params) -> dict[str, Any] | None:
    if not params.get("use_scaled_rope"):
        return None
    factor = SMALL_FACTOR if params["dim"] <= SMALL_DIM else FACTOR
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
