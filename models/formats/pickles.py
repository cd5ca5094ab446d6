"""PyTorch's own files (.bin, .pth): pickles, of which only what describes tensors is ever obeyed.

torch's restricted unpickler calls nothing but what rebuilds tensors. It is asked for tensors without data, which say
where their numbers lie in the file; each is then mapped by itself, as in safetensors files. What PyTorch wrote before
1.6, and what was compressed afterwards, can't be mapped: such a file is in memory whole while it is read.
"""

from __future__ import annotations

import pickle
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from ..base import CheckpointError
from ..files import refuse_stand_in
from .shards import TYPES, map_numbers

#: What training scripts put around the weights, as an entry of a larger state or as the beginning of every name.
WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
PREFIX = "module."
MOST_UNPACKED = 64  #: times its size; weights become a little smaller when they are compressed, zeros a thousand times
#: What a file that is not whole, or no such file at all, runs into inside torch's unpickler.
DAMAGE = (
    pickle.UnpicklingError, zipfile.BadZipFile, struct.error, EOFError, OSError, RuntimeError,
    ValueError, TypeError, AttributeError, AssertionError, LookupError, ArithmeticError, MemoryError,
)  # fmt: skip


class PickledFile:
    """The tensors of a file by their names, none of them read yet. Raises CheckpointError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        refuse_stand_in(path)
        self._size = path.stat().st_size
        self._tensors = _tensors(_load(path))
        if not self._tensors:
            raise CheckpointError(f"{path} holds no weights; download it again.")

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._found(name).shape)

    def read(self, name: str) -> torch.Tensor:
        """A tensor, mapped where the file allows it. Raises CheckpointError for one that is not there or not whole."""
        tensor = self._possible(name)
        return (self._map(name, tensor) if tensor.is_meta else tensor).contiguous()

    def outline(self, name: str) -> torch.Tensor:
        """A tensor without its numbers, on the meta device."""
        return self._possible(name).to("meta")

    def _possible(self, name: str) -> torch.Tensor:
        tensor = self._found(name)
        if tensor.layout is not torch.strided or tensor.dtype not in TYPES.values():
            raise CheckpointError(f"{self.path} holds {name} as {tensor.layout} of {tensor.dtype}; get it as floats.")
        if tensor.nbytes > self._size:  # one number can be repeated without end
            raise self._behind_end(name)
        return tensor

    def _behind_end(self, name: str) -> CheckpointError:
        return CheckpointError(f"{self.path} is damaged or incomplete ({name} lies behind its end); download it again.")

    def _found(self, name: str) -> torch.Tensor:
        if name not in self._tensors:
            raise CheckpointError(f"{name} is missing in {self.path}; download it again.")
        return self._tensors[name]

    def _map(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """A view into its storage: what lies between its first number and its last is mapped."""
        count = 1 + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
        count = count if tensor.numel() else 0
        start = tensor.untyped_storage()._checkpoint_offset + tensor.storage_offset() * tensor.itemsize
        if not 0 <= start <= start + count * tensor.itemsize <= self._size:
            raise self._behind_end(name)
        return map_numbers(self.path, tensor.dtype, start, count).as_strided(tensor.shape, tensor.stride())


def read_pickled(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a file in its order. Raises CheckpointError."""
    file = PickledFile(path)
    for name in file:
        yield name, file.read(name)


def outline_pickled(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """The same without the numbers, on the meta device. Raises CheckpointError."""
    file = PickledFile(path)
    for name in file:
        yield name, file.outline(name)


def _load(path: Path) -> Any:
    try:
        place = "meta" if _can_be_mapped(path) else "cpu"
        return torch.load(path, map_location=place, weights_only=True)
    except CheckpointError:
        raise
    except DAMAGE as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if wanted is None:
            raise _damaged(path) from error
        raise CheckpointError(
            f"{path} wants to run {wanted[1]}, and code out of a checkpoint is never run; get the checkpoint as "
            "safetensors, or convert it elsewhere."
        ) from error


def _can_be_mapped(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    if sum(entry.file_size for entry in entries) > MOST_UNPACKED * path.stat().st_size:
        raise _damaged(path)
    return all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)


def _tensors(found: Any) -> dict[str, torch.Tensor]:
    """The tensors of a state dict, out of whatever is around it; counters and settings beside them are passed over."""
    if not isinstance(found, Mapping):
        return {}
    for key in WRAPPERS:
        found = found[key] if isinstance(found.get(key), Mapping) else found
    return {
        str(name).removeprefix(PREFIX): tensor.detach()
        for name, tensor in found.items()
        if isinstance(tensor, torch.Tensor)
    }


def _damaged(path: Path) -> CheckpointError:
    return CheckpointError(f"{path} is damaged, incomplete or no file of weights; download it again.")
