"""What a GGUF file's tensors become: floats, matrices that are taken over as they are, and encoded ones.

Q4_0, Q4_1 and Q8_0 have the groups that ours have, so nothing is rounded twice. All other encodings are decoded when
they are used, a few rows at a time, and quantized like floats.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType as QuantType
from gguf.quants import dequantize

from ..base import CheckpointError, refuse_no_numbers
from ..quantize import AT_ONCE, Quants
from .gguf_file import NUMBER_TYPES, Tensor


@dataclass(frozen=True)
class Encoded:
    """A matrix in one of ggml's own encodings: uint8 [rows, bytes of a row], mapped."""

    path: Path
    name: str
    kind: QuantType
    data: np.ndarray
    columns: int

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self.data), self.columns))

    @property
    def nbytes(self) -> int:
        return self.data.nbytes

    def __getitem__(self, rows: torch.Tensor | slice) -> Encoded:
        """These rows, in this order."""
        chosen = rows if isinstance(rows, slice) else rows.numpy()
        return Encoded(self.path, self.name, self.kind, self.data[chosen], self.columns)

    def float(self) -> torch.Tensor:
        """float32 [rows, columns]. Raises CheckpointError where there are no numbers."""
        return _finite(torch.from_numpy(dequantize(self.data, self.kind)), self.path, self.name)

    def expand(self, dtype: torch.dtype) -> torch.Tensor:
        """dtype [rows, columns], made a part at a time."""
        whole = torch.empty(self.shape, dtype=dtype)
        rows = max(AT_ONCE // self.columns, 1)
        for start in range(0, len(whole), rows):
            part = slice(start, start + rows)
            whole[part] = self[part].float()
        return whole


Weight = torch.Tensor | Quants | Encoded
"""A tensor as a file brings it: floats, or a matrix that is already quantized."""


def read(tensor: Tensor) -> Weight:
    """A tensor in torch's order of dimensions. Raises CheckpointError for what can't be read."""
    refuse_unreadable(tensor)
    kind = tensor.tensor_type
    if kind in READERS and (kind in NUMBER_TYPES or len(tensor.shape) == 2):
        return READERS[kind](tensor)
    if len(tensor.shape) != 2:
        return _finite(torch.from_numpy(dequantize(tensor.data, kind)), tensor.path, tensor.name)
    return Encoded(tensor.path, tensor.name, kind, tensor.data, tensor.shape[1])


def refuse_unreadable(tensor: Tensor) -> None:
    """Raises CheckpointError for a tensor of a type that can't be read."""
    kind = tensor.tensor_type
    if kind not in READERS and kind not in ENCODINGS:
        kinds = ", ".join(kind.name for kind in (*READERS, *ENCODINGS))
        raise CheckpointError(f"{tensor.path} holds {tensor.name} as {kind.name}, which can't be read; {kinds} can.")


def join(weights: Sequence[Weight]) -> Weight:
    """One below the other, as they are where they are of one kind and as floats where they are not."""
    first = weights[0]
    if len(weights) == 1:
        return first
    if all(isinstance(each, Encoded) and each.kind is first.kind for each in weights):
        data = np.concatenate([each.data for each in weights])
        return Encoded(first.path, first.name, first.kind, data, first.columns)
    if all(isinstance(each, Quants) and _parts(each) == _parts(first) for each in weights):
        columns = zip(*((each.groups, each.scales, each.minimums) for each in weights), strict=True)
        return Quants(first.bits, first.columns, *(None if each[0] is None else torch.cat(each) for each in columns))
    return torch.cat([each.float() for each in weights])


def _parts(weight: Quants) -> tuple[int, bool]:
    return weight.bits, weight.minimums is None


def _finite(weights: torch.Tensor, path: Path, name: str) -> torch.Tensor:
    refuse_no_numbers(name, weights, path)
    return weights


def _numbers(tensor: Tensor) -> torch.Tensor:
    """Floats as they are, but for float64."""
    values = torch.from_numpy(np.array(tensor.data))  # a copy: the mapped file is read-only
    if tensor.tensor_type is QuantType.BF16:
        return values.view(torch.bfloat16)
    return values.float() if values.dtype == torch.float64 else values


def _blocks(tensor: Tensor, *fields: tuple[str, str, int]) -> dict[str, torch.Tensor]:
    """The fields (name, type, count) of a quantized tensor's blocks of 32 weights, each [rows, blocks, count].

    They are views of the mapped file.
    """
    blocks = tensor.data.view(np.dtype([(name, kind, (count,)) for name, kind, count in fields]))
    parts = {name: torch.from_numpy(blocks[name]) for name, _, _ in fields}
    for part in parts.values():
        if part.is_floating_point():
            _finite(part, tensor.path, tensor.name)
    return parts


def _q4_0(tensor: Tensor) -> Quants:
    parts = _blocks(tensor, ("scale", "<f2", 1), ("packed", "u1", 16))
    scales = parts["scale"].squeeze(-1)
    return Quants(4, tensor.shape[1], parts["packed"], scales, -8 * scales)  # exact: a power of two


def _q4_1(tensor: Tensor) -> Quants:
    parts = _blocks(tensor, ("scale", "<f2", 1), ("minimum", "<f2", 1), ("packed", "u1", 16))
    return Quants(4, tensor.shape[1], parts["packed"], parts["scale"].squeeze(-1), parts["minimum"].squeeze(-1))


def _q8_0(tensor: Tensor) -> Quants:
    parts = _blocks(tensor, ("scale", "<f2", 1), ("integers", "i1", 32))
    return Quants(8, tensor.shape[1], parts["integers"], parts["scale"].squeeze(-1))


#: Bits of the types that are taken over.
TAKEN_OVER = {QuantType.Q4_0: 4, QuantType.Q4_1: 4, QuantType.Q8_0: 8}
READERS: Mapping[QuantType, Callable[[Tensor], torch.Tensor | Quants]] = {
    **dict.fromkeys(NUMBER_TYPES, _numbers),
    QuantType.Q4_0: _q4_0,
    QuantType.Q4_1: _q4_1,
    QuantType.Q8_0: _q8_0,
}
#: What the gguf package decodes beside these. NVFP4 is left out: its scales are tensors of their own.
ENCODINGS = tuple(
    QuantType[name]
    for name in (
        "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "TQ1_0", "TQ2_0", "MXFP4",
        "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS",
    )
)  # fmt: skip
