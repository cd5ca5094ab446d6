"""Safetensors files. Each tensor is mapped by itself when its turn comes, so that memory goes back as it is let go.

The safetensors package maps a whole file: what was read of it stays resident until the last tensor is through, and
Linux refuses to map a file so that is larger than the machine's memory, though only its INT4 form has to fit.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ..base import CheckpointError
from ..files import readable, refuse_stand_in

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
LARGEST_HEADER = 2**24  #: bytes; a hundred thousand tensors, where the largest models have some thousands
MOST_DIMENSIONS, MOST_NUMBERS = 8, 2**48  #: of a tensor, its empty dimensions left out


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
    refuse_stand_in(path)
    with readable(path), path.open("rb") as file:
        size, start = path.stat().st_size, file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else LARGEST_HEADER + 1
        if length > min(LARGEST_HEADER, size - 8):
            raise _damaged(path, "its header is cut off")
        text = file.read(length)
    try:
        header = json.loads(text, object_pairs_hook=partial(_once, path))
        header.pop("__metadata__", None)
        entries = {name: _entry(path, name, about, 8 + length) for name, about in header.items()}
    except CheckpointError:
        raise
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(path, "its header makes no sense") from error
    _check_places(path, entries, size)
    return entries


def _once(path: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of the header, in which no name may be there twice."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise _damaged(path, f"its header has {name} twice")
        found[name] = value
    return found


def _entry(path: Path, name: str, about: dict[str, Any], base: int) -> Entry:
    try:
        kind, shape, (start, end) = str(about["dtype"]), tuple(about["shape"]), about["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise _senseless(path, name) from error
    if kind not in TYPES:
        raise CheckpointError(f"{path} holds {name} as {kind}, which can't be read; {', '.join(TYPES)} can.")
    if not all(type(number) is int and number >= 0 for number in (*shape, start, end)):
        raise _senseless(path, name)
    if len(shape) > MOST_DIMENSIONS or math.prod(filter(None, shape)) > MOST_NUMBERS:
        raise _senseless(path, name)
    entry = Entry(TYPES[kind], shape, base + start)
    if end - start != entry.nbytes:
        raise _senseless(path, name)
    return entry


def _check_places(path: Path, entries: Mapping[str, Entry], size: int) -> None:
    """Each tensor lies behind the one before it, within the file."""
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].nbytes)):
        if entry.start < end:
            raise _damaged(path, f"{name} lies in another tensor")
        end = entry.start + entry.nbytes
        if end > size:
            raise _damaged(path, f"{name} lies behind its end")


def _senseless(path: Path, name: str) -> CheckpointError:
    return _damaged(path, f"its header makes no sense of {name}")


def _damaged(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{path} is damaged or incomplete ({reason}); download it again.")
