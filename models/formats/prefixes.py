"""P-tuning v2: trained keys and values that every token of a ChatGLM sees before its own sequence.

A folder holds a config.json with pre_seq_len, the number of rows, and the tensors of an encoder: an embedding whose
rows are the keys and values of all layers, or (prefix_projection) one that two Linears with tanh between them turn into
those. The rows have no position: those of real tokens are as without them. Source: Liu et al. (P-Tuning v2, 2022) and
the published code of ChatGLM-6B and ChatGLM2-6B.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from ..base import (
    PREFIX_ENCODER,
    BaseArgs,
    BaseModel,
    CacheShape,
    CheckpointError,
    impossible,
    is_count,
    refuse_no_floats,
    refuse_no_numbers,
)
from ..cache import Prefix
from ..registry import resolve
from .base import Checkpoint, StoredCheckpoint, Weight
from .huggingface import HuggingFaceCheckpoint


def prefix_rows(config: Mapping[str, Any]) -> int:
    """How many rows a config.json gives a prefix, 0 where it has none. Raises CheckpointError."""
    rows = config.get("pre_seq_len")
    if rows is None or (type(rows) is int and rows == 0):
        return 0
    if not is_count(rows):
        raise impossible("config.json", "pre_seq_len", rows)
    return rows


@dataclass(frozen=True)
class Encoder:
    """What a folder holds of a prefix: its config, and its tensors without the beginning of their names."""

    path: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, torch.Tensor]

    @staticmethod
    def of(checkpoint: Checkpoint, tensors: Iterable[tuple[str, Weight]]) -> Encoder:
        """The encoder among a checkpoint's tensors, or among their outline."""
        own = {
            name.removeprefix(PREFIX_ENCODER): weight
            for name, weight in tensors
            if name.startswith(PREFIX_ENCODER) and isinstance(weight, torch.Tensor)
        }
        return Encoder(checkpoint.path, checkpoint.config, own)

    def check(self, args: BaseArgs) -> None:
        """Raises CheckpointError where a tensor is missing, or does not fit the model."""
        for name, shape in self._shapes(args).items():
            tensor = self.tensors.get(name)
            if tensor is None:
                raise CheckpointError(f"{PREFIX_ENCODER}{name} is missing in {self.path}; download it again.")
            if tensor.shape != shape:
                raise CheckpointError(
                    f"{PREFIX_ENCODER}{name} in {self.path} has the shape {list(tensor.shape)} instead of "
                    f"{list(shape)}; load the model that it was trained on."
                )

    def encode(self, shape: CacheShape, dtype: torch.dtype, device: torch.device) -> Prefix:
        """The prefix for a model's cache. Raises CheckpointError where there are no numbers."""
        for name, tensor in self.tensors.items():
            refuse_no_floats(PREFIX_ENCODER + name, tensor, self.path)
            refuse_no_numbers(PREFIX_ENCODER + name, tensor, self.path)
        numbers = self._numbers()
        # [rows, numbers] -> [layers, 2, 1, kv_heads, rows, head_dim]; a layer's keys come before its values.
        parts = numbers.unflatten(1, (shape.layers, 2, 1, shape.kv_heads, shape.head_dim)).permute(1, 2, 3, 4, 0, 5)
        return Prefix(*parts.to(device, dtype).unbind(1))

    def _shapes(self, args: BaseArgs) -> dict[str, tuple[int, ...]]:
        """The tensors that a prefix for a model consists of."""
        rows, shape, hidden = prefix_rows(self.config), args.cache_shape, args.hidden_size
        numbers = shape.layers * 2 * shape.kv_heads * shape.head_dim
        first = self.tensors.get("trans.0.weight")
        if not self.config.get("prefix_projection"):
            return {"embedding.weight": (rows, numbers)}
        # ChatGLM-6B embeds as wide as it is itself, ChatGLM2 as wide as the result.
        width = hidden if first is None else math.prod(first.shape) // hidden
        return {
            "trans.0.weight": (hidden, width),
            "trans.0.bias": (hidden,),
            "trans.2.weight": (numbers, hidden),
            "trans.2.bias": (numbers,),
            "embedding.weight": (rows, width),
        }

    def _numbers(self) -> torch.Tensor:
        """float32 [rows, numbers]."""
        tensors = {name: tensor.float() for name, tensor in self.tensors.items()}
        rows = tensors["embedding.weight"]
        if self.config.get("prefix_projection"):
            rows = torch.tanh(F.linear(rows, tensors["trans.0.weight"], tensors["trans.0.bias"]))
            rows = F.linear(rows, tensors["trans.2.weight"], tensors["trans.2.bias"])
        return rows


def is_alone(checkpoint: StoredCheckpoint) -> bool:
    """Whether a checkpoint is a prefix that has no model with it. Raises CheckpointError."""
    has_prefix = bool(checkpoint.config.get("pre_seq_len"))
    return has_prefix and all(name.startswith(PREFIX_ENCODER) for name, _ in checkpoint.outline())


def _folder(path: Path) -> Path:
    return path.parent if path.is_file() else path


class PrefixAdapter:
    """A folder that holds a prefix and no model, or a file of weights in it."""

    switchable = True
    mergeable = False
    numbers = 0  #: its rows are counted by the config

    def __init__(self, path: Path) -> None:
        self._own = HuggingFaceCheckpoint(_folder(path))
        self.path = self._own.path
        self.base = self._own.config.get("_name_or_path") or None

    @staticmethod
    def recognises(path: Path) -> bool:
        folder = _folder(path)
        if not HuggingFaceCheckpoint.recognises(folder):
            return False
        try:
            own = HuggingFaceCheckpoint(folder)
        except CheckpointError:
            return False
        try:
            return is_alone(own)
        except CheckpointError:
            return bool(own.config.get("pre_seq_len"))  # what is wrong with its weights is said when they are read

    @property
    def encoder(self) -> Encoder:
        return Encoder.of(self._own, self._own.tensors())

    def config(self, base: dict[str, Any]) -> dict[str, Any]:
        if resolve(base).family != "chatglm":
            raise CheckpointError(
                f"The P-tuning prefix in {self.path} is for a ChatGLM, and the base is none; load the one that it was "
                "trained on."
            )
        return {**base, "pre_seq_len": prefix_rows(self._own.config)}

    def check(self, model: BaseModel) -> None:
        Encoder.of(self._own, self._own.outline()).check(model.args)

    def tensors(self, base: Checkpoint, model: BaseModel) -> Iterator[tuple[str, Weight]]:
        return base.tensors()

    def beside(self, model: BaseModel, device: torch.device) -> BaseModel:
        return model

    def files(self) -> list[Path]:
        return self._own.files()

    def nbytes(self) -> int:
        return self._own.nbytes()
