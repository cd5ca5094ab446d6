"""Random checkpoints of full shape: the published configs with FP16 weights that no one trained."""

from __future__ import annotations

import json
import math
import shutil
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO

import torch

from chatapp.planner import known_checkpoints
from models import registry

SHARD = 10 * 10**9  #: bytes, as the 7B checkpoints are published
AT_ONCE = 2**24  #: random numbers that are made in one go
ROOM = 2 * 10**9  #: bytes of disk that stay free


class RoomError(RuntimeError):
    """The disk is too full for a checkpoint; the text is a sentence."""


@dataclass(frozen=True)
class Shape:
    """A known checkpoint's config, with other values where they are given."""

    checkpoint: str
    changes: Mapping[str, Any] | None = None

    @property
    def config(self) -> dict[str, Any]:
        return known_checkpoints()[self.checkpoint] | dict(self.changes or {})


def make(shape: Shape, folder: Path) -> Path:
    """The checkpoint's folder, made unless it is there. Raises RoomError."""
    if (folder / "config.json").is_file():
        return folder
    sizes = _sizes(shape.config)
    _check_room(folder, 2 * sum(map(math.prod, sizes.values())))
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    for number, names in enumerate(_shards(sizes), 1):
        with (folder / f"model-{number:05d}.safetensors").open("wb") as file:
            _write_shard(file, {name: sizes[name] for name in names}, generator)
    # Last, so that a folder with a config is whole.
    (folder / "config.json").write_text(json.dumps(shape.config), encoding="utf-8")
    return folder


def _sizes(config: Mapping[str, Any]) -> dict[str, torch.Size]:
    module = registry.resolve(config).module()
    with torch.device("meta"):
        model = module.Model(module.ModelArgs.from_dict(config))
    return {name: parameter.shape for name, parameter in model.named_parameters()}


def _check_room(folder: Path, needed: int) -> None:
    existing = next(parent for parent in folder.absolute().parents if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed + ROOM:
        raise RoomError(f"{folder} needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; name another --scratch.")


def _shards(sizes: Mapping[str, torch.Size]) -> list[list[str]]:
    """Names in order, cut where a shard would become larger than SHARD."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        nbytes = 2 * math.prod(size)
        if shards[-1] and filled + nbytes > SHARD:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += nbytes
    return shards


def _write_shard(file: BinaryIO, sizes: Mapping[str, torch.Size], generator: torch.Generator) -> None:
    """A safetensors file written a piece at a time: a shard need not fit into memory."""
    ends = list(accumulate(2 * math.prod(size) for size in sizes.values()))
    header = {
        name: {"dtype": "F16", "shape": list(size), "data_offsets": [start, end]}
        for (name, size), start, end in zip(sizes.items(), [0, *ends], ends, strict=False)
    }
    text = json.dumps(header).encode()
    file.write(struct.pack("<Q", len(text)) + text)
    for name, size in sizes.items():
        for piece in _numbers(name, size, generator):
            file.write(piece.numpy())


def _numbers(name: str, size: torch.Size, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """float16 that keep activations at their size: matrices by their columns, norms about 1, biases about 0."""
    left = math.prod(size)
    scale = 1 / math.sqrt(size[-1]) if len(size) > 1 else 0.1
    middle = 1.0 if len(size) == 1 and not name.endswith("bias") else 0.0
    while left > 0:
        count = min(left, AT_ONCE)
        yield torch.randn(count, generator=generator).mul_(scale).add_(middle).half()
        left -= count
