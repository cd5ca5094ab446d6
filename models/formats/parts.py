"""Matrices that a file holds in parts, put together: the ChatGLM authors' INT8 and INT4 files.

A matrix [rows, columns] is integers (INT4: two columns a byte, the first in the high half) and a scale for each row;
weight = integer * scale. Source: quantization.py of the published repositories.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from ..base import CheckpointError
from ..quantize import GROUP, Quants

SCALE = "_scale"  #: what a matrix's name is followed by in that of its scales

#: Beginnings of others' quantized matrices, by the endings of their names.
FOREIGN = {
    ".qweight": "GPTQ or AWQ",
    ".qzeros": "GPTQ or AWQ",
    ".weight.data": "bitsandbytes",
    ".weight.absmax": "bitsandbytes",
    ".SCB": "bitsandbytes",
}


def join(
    tensors: Iterable[tuple[str, torch.Tensor]], bits: int | None, path: Path
) -> Iterator[tuple[str, torch.Tensor | Quants]]:
    """The tensors of a checkpoint, each quantized matrix as one. `bits` is what the config says, `path` for errors.

    Raises CheckpointError for a matrix of which a part is missing, and for one that others quantized.
    """
    return _join(tensors, bits, path, _quants)


def outline(
    tensors: Iterable[tuple[str, torch.Tensor]], bits: int | None, path: Path
) -> Iterator[tuple[str, torch.Tensor]]:
    """The same of tensors on the meta device."""
    return _join(tensors, bits, path, _whole)


def _join(
    tensors: Iterable[tuple[str, torch.Tensor]], bits: int | None, path: Path, together: Callable[..., Any]
) -> Iterator[tuple[str, Any]]:
    waiting: dict[str, dict[bool, torch.Tensor]] = {}
    for name, tensor in tensors:
        for ending, method in FOREIGN.items():
            if name.endswith(ending):
                raise foreign(path, method)
        is_scale = name.endswith(f".weight{SCALE}")
        if not is_scale and tensor.dtype is not torch.int8:
            yield name, tensor
            continue
        whole = name.removesuffix(SCALE)
        parts = waiting.setdefault(whole, {})
        parts[is_scale] = tensor
        if len(parts) == 2:
            del waiting[whole]
            _check(whole, parts[False], parts[True], bits, path)
            yield whole, together(whole, parts[False], parts[True], bits, path)
    for name, parts in waiting.items():
        lacks = name if True in parts else name + SCALE
        raise CheckpointError(f"{lacks} is missing in {path}, though the other part is there; download it again.")


def foreign(path: Path, method: str) -> CheckpointError:
    """What is said of a checkpoint that was quantized by a method that can't be read."""
    instead = "get the model's FP16 checkpoint or its GGUF file"
    return CheckpointError(f"{path} is quantized by {method}, which can't be read here; {instead}.")


def _check(name: str, integers: torch.Tensor, scales: torch.Tensor, bits: int | None, path: Path) -> None:
    if bits not in UNPACK:
        raise CheckpointError(
            f"{path} holds {name} as integers, but its config.json has no quantization_bit of 8 or 4; "
            "download both again."
        )
    if integers.ndim != 2 or scales.shape != integers.shape[:1]:
        shapes = f"{list(scales.shape)} for a matrix of {list(integers.shape)}"
        raise CheckpointError(f"{name}{SCALE} in {path} has the shape {shapes}; download it again.")


def _whole(name: str, integers: torch.Tensor, scales: torch.Tensor, bits: int, path: Path) -> torch.Tensor:
    rows, columns = integers.shape
    return torch.empty(rows, columns * 8 // bits, device="meta")


def _quants(name: str, integers: torch.Tensor, scales: torch.Tensor, bits: int, path: Path) -> Quants:
    lowest = -8 * scales.half()  # exact, a power of two, unless it is beyond what half precision can hold
    if not (scales.is_floating_point() and lowest.isfinite().all()):
        raise CheckpointError(f"{name}{SCALE} in {path} holds values that are no scales; download it again.")
    return UNPACK[bits](integers, scales.half(), lowest)


def _int8(integers: torch.Tensor, scales: torch.Tensor, lowest: torch.Tensor) -> Quants:
    return Quants.of(8, integers, _each_group(scales, integers.shape[1]))


def _int4(integers: torch.Tensor, scales: torch.Tensor, lowest: torch.Tensor) -> Quants:
    """Signed halves of bytes become 0 .. 15 over the lowest value: (integer + 8) * scale - 8 * scale."""
    levels = torch.stack((integers >> 4, integers << 4 >> 4), dim=-1).flatten(1) + 8
    columns = levels.shape[1]
    return Quants.of(4, levels, _each_group(scales, columns), _each_group(lowest, columns))


UNPACK = {8: _int8, 4: _int4}


def _each_group(rows: torch.Tensor, columns: int) -> torch.Tensor:
    """A number for each row -> the same for each of its groups of columns."""
    return rows[:, None].expand(-1, -(-columns // GROUP))
