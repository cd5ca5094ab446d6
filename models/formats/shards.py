"""Safetensors files. Each tensor is mapped by itself when its turn comes, so that memory goes back as it is let go.

The safetensors package maps a whole file: what was read of it stays resident until the last tensor is through, and
Linux refuses to map a file so that is larger than the machine's memory, though only its INT4 form has to fit.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ..base import CheckpointError

TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
LARGEST_HEADER = 100_000_000  #: bytes; the format's own limit


class Entry(NamedTuple):
    """Where a tensor lies: its bytes from `start` of the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.count * self.dtype.itemsize


def read_shard(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a safetensors file in its order, mapped. Raises CheckpointError."""
    for name, read in open_shard(path).items():
        yield name, read()


def open_shard(path: Path) -> dict[str, Callable[[], torch.Tensor]]:
    """A reader for each tensor of a safetensors file; called, it maps the tensor. Raises CheckpointError."""
    return {name: partial(_map, path, entry) for name, entry in _entries(path).items()}


def outline_shard(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """The same without the numbers, on the meta device. Raises CheckpointError."""
    for name, entry in _entries(path).items():
        yield name, torch.empty(entry.shape, dtype=entry.dtype, device="meta")


def _map(path: Path, entry: Entry) -> torch.Tensor:
    return map_numbers(path, entry.dtype, entry.start, entry.count).view(entry.shape)


def map_numbers(path: Path, dtype: torch.dtype, start: int, count: int) -> torch.Tensor:
    """`count` numbers of a file from a byte on, mapped: [count]."""
    if count == 0:
        return torch.empty(0, dtype=dtype)  # nothing can't be mapped
    # Copy on write: torch takes no array that can't be written to, and nothing ever writes.
    mapped = np.memmap(path, np.uint8, "c", start, (count * dtype.itemsize,))
    return torch.from_numpy(mapped).view(dtype)


def _entries(path: Path) -> dict[str, Entry]:
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else LARGEST_HEADER + 1
        if length > min(LARGEST_HEADER, size - 8):
            raise _damaged(path, "its header is cut off")
        text = file.read(length)
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        entries = {name: _entry(path, name, about, 8 + length) for name, about in header.items()}
    except CheckpointError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(path, "its header makes no sense") from error
    end = max((entry.start + entry.nbytes for entry in entries.values()), default=0)
    if end > size:
        raise _damaged(path, f"{end - size:,} bytes are missing at its end")
    return entries


def _entry(path: Path, name: str, about: dict[str, Any], base: int) -> Entry:
    if about["dtype"] not in TYPES:
        raise CheckpointError(f"{path} holds {name} as {about['dtype']}, which can't be read; {', '.join(TYPES)} can.")
    shape, (start, end) = tuple(about["shape"]), about["data_offsets"]
    if not all(type(number) is int and number >= 0 for number in (*shape, start, end)):
        raise ValueError(name)
    entry = Entry(TYPES[about["dtype"]], shape, base + start)
    if end - start != entry.nbytes:
        raise ValueError(name)
    return entry


def _damaged(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{path} is damaged or incomplete ({reason}); download it again.")
