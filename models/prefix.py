"""P-tuning v2: trained keys and values that every token of a ChatGLM sees before its own sequence.

A folder holds a config.json with pre_seq_len, the number of rows, and the tensors of an encoder: an embedding whose
rows are the keys and values of all layers, or (prefix_projection) one that two Linears with tanh between them turn into
those. The rows have no position: those of real tokens are as without them. Source: Liu et al. (P-Tuning v2, 2022) and
the published code of ChatGLM-6B and ChatGLM2-6B.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from .base import PREFIX_ENCODER, CheckpointError, impossible, is_count
from .cache import Prefix
from .formats import Checkpoint, StoredCheckpoint, Weight, glance, open_checkpoint

if TYPE_CHECKING:
    from .loader import LoadedModel


@dataclass(frozen=True)
class Encoder:
    """What a folder holds of a prefix: its config, and its tensors without the beginning of their names."""

    path: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, torch.Tensor]


def prefix_rows(config: Mapping[str, Any]) -> int:
    """How many rows a config.json gives a prefix, 0 where it has none. Raises CheckpointError."""
    rows = config.get("pre_seq_len")
    if rows is None or (type(rows) is int and rows == 0):
        return 0
    if not is_count(rows):
        raise impossible("config.json", "pre_seq_len", rows)
    return rows


def recognises(path: Path) -> bool:
    """Whether a folder, or the one that a weight file is in, is that of a prefix. Raises CheckpointError."""
    folder = _folder(path)
    return (folder / "config.json").is_file() and prefix_rows(glance(folder)) > 0


def read(path: Path) -> Encoder:
    """The encoder of a P-tuning folder, or of the one that a weight file is in. Raises CheckpointError."""
    return read_from(open_checkpoint(_folder(path)))


def read_from(checkpoint: Checkpoint) -> Encoder:
    """The encoder that a checkpoint holds, alone or beside a model. Raises CheckpointError."""
    return _encoder(checkpoint, checkpoint.tensors())


def outline(checkpoint: StoredCheckpoint) -> Encoder:
    """The same without the numbers, on the meta device. Raises CheckpointError."""
    return _encoder(checkpoint, checkpoint.outline())


def _encoder(checkpoint: Checkpoint, tensors: Iterable[tuple[str, Weight]]) -> Encoder:
    own = {
        name.removeprefix(PREFIX_ENCODER): weight
        for name, weight in tensors
        if name.startswith(PREFIX_ENCODER) and isinstance(weight, torch.Tensor)
    }
    return Encoder(checkpoint.path, checkpoint.config, own)


def refuse_alone(checkpoint: StoredCheckpoint) -> None:
    """Raises CheckpointError for a prefix that has no model with it."""
    if is_alone(checkpoint):
        raise CheckpointError(
            f"{checkpoint.path} holds a P-tuning prefix and no model; load the ChatGLM that it was trained on, with "
            "this folder as the adapter."
        )


def is_alone(checkpoint: StoredCheckpoint) -> bool:
    """Whether a checkpoint is a prefix that has no model with it."""
    names = (name for name, _ in checkpoint.outline())
    return prefix_rows(checkpoint.config) > 0 and all(name.startswith(PREFIX_ENCODER) for name in names)


def refuse_unfit(loaded: LoadedModel, encoder: Encoder) -> None:
    """Raises CheckpointError for a prefix that was made for another model."""
    if loaded.family != "chatglm":
        name = loaded.checkpoint.path.name
        raise CheckpointError(
            f"The P-tuning prefix in {encoder.path} is for a ChatGLM, and {name} is none; load the one that it was "
            "trained on."
        )
    for name, shape in _shapes(loaded, encoder.config).items():
        tensor = encoder.tensors.get(name)
        if tensor is None:
            raise CheckpointError(f"{PREFIX_ENCODER}{name} is missing in {encoder.path}; download it again.")
        if tensor.shape != shape:
            raise CheckpointError(
                f"{PREFIX_ENCODER}{name} in {encoder.path} has the shape {list(tensor.shape)} instead of "
                f"{list(shape)}; load the model that it was trained on."
            )


def attach(loaded: LoadedModel, encoder: Encoder) -> LoadedModel:
    """The same model with a prefix. Raises CheckpointError for one that does not fit, or is damaged."""
    refuse_unfit(loaded, encoder)
    for name, tensor in encoder.tensors.items():
        _refuse_damaged(name, tensor, encoder.path)
    shape, numbers = loaded.model.args.cache_shape, _encode(encoder.tensors)
    # [rows, numbers] -> [layers, 2, 1, kv_heads, rows, head_dim]; a layer's keys come before its values.
    parts = numbers.unflatten(1, (shape.layers, 2, 1, shape.kv_heads, shape.head_dim))
    keys, values = parts.permute(1, 2, 3, 4, 0, 5).to(loaded.device, loaded.cache_dtype).unbind(1)
    return dataclasses.replace(loaded, prefix=Prefix(keys, values))


def _folder(path: Path) -> Path:
    return path if path.is_dir() else path.parent


def _shapes(loaded: LoadedModel, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tensors that make the prefix of a config for a model."""
    rows, shape, hidden = prefix_rows(config), loaded.model.args.cache_shape, loaded.model.args.hidden_size
    numbers = shape.layers * 2 * shape.kv_heads * shape.head_dim
    if not config.get("prefix_projection"):
        return {"embedding.weight": (rows, numbers)}
    width = hidden if loaded.architecture == "chatglm" else numbers  # ChatGLM2 and later embed as wide as the result
    return {
        "embedding.weight": (rows, width),
        "trans.0.weight": (hidden, width),
        "trans.0.bias": (hidden,),
        "trans.2.weight": (numbers, hidden),
        "trans.2.bias": (numbers,),
    }


def _refuse_damaged(name: str, tensor: torch.Tensor, path: Path) -> None:
    if not tensor.is_floating_point():
        raise CheckpointError(
            f"{PREFIX_ENCODER}{name} in {path} is of {tensor.dtype}, where floats belong; get it as floats."
        )
    if not tensor.isfinite().all():
        raise CheckpointError(f"{PREFIX_ENCODER}{name} in {path} holds values that are not numbers; download it again.")


def _encode(tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The encoder's rows of numbers, in float32."""
    numbers = {name: tensor.float() for name, tensor in tensors.items()}
    rows = numbers["embedding.weight"]
    if "trans.0.weight" in numbers:
        rows = torch.tanh(F.linear(rows, numbers["trans.0.weight"], numbers["trans.0.bias"]))
        rows = F.linear(rows, numbers["trans.2.weight"], numbers["trans.2.bias"])
    return rows
