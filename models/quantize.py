"""INT8 and INT4 matrices. The plain PyTorch product here is the specification of every kernel.

A row is cut into groups of 32 columns. INT4 keeps 16 levels between a group's minimum and maximum (scale and minimum in
half precision, 5 bits a weight), INT8 is symmetric (a scale in half precision, 8.5 bits a weight). Measured on the
linear layers of all-MiniLM-L6-v2, relative error of the weights: INT4 .075, where GGUF's Q4_1 has .081 at the same size
and Q4_0 .090 at 4.5 bits; INT8 .0057, as Q8_0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import nn

from .kernels import kernel

GROUP = 32  #: columns that share a scale
ROWS = 8  #: rows that lie side by side, so that one vector holds the same columns of all of them
EXPANDED = 2**24  #: weights that are expanded at once where there is no kernel
LANE = 4  #: columns of one row that lie together: the bytes that a dot product of bytes sums into one integer


@dataclass(frozen=True)
class PackedMatrix:
    """A quantized matrix [rows, columns] in the layout that the CPU kernels read, on disk and in memory alike.

    blocks: uint8 [rows / 8, columns / 32, lanes, 8, 4]; an INT8 group has 8 lanes of 4 columns; an INT4 group 4, whose
    low nibbles are its first 16 columns and whose high nibbles the others. scales and minimums: float16
    [rows / 8, columns / 32, 8]; INT8 has no minimums. Rows and columns are filled up with zeros to whole blocks.
    """

    bits: int
    rows: int
    columns: int
    blocks: torch.Tensor
    scales: torch.Tensor
    minimums: torch.Tensor | None = None

    @property
    def shape(self) -> torch.Size:
        return torch.Size((self.rows, self.columns))

    @classmethod
    def empty(cls, bits: int, rows: int, columns: int) -> PackedMatrix:
        """Room for a matrix of this shape."""
        parts = [torch.empty(shape, dtype=dtype) for shape, dtype in _layout(bits, rows, columns)]
        return cls(bits, rows, columns, *parts)

    def __post_init__(self) -> None:
        """Raises ValueError for parts of other sizes: C would read beyond them."""
        found = [(tuple(part.shape), part.dtype) for part in self.parts()]
        if found != _layout(self.bits, *self.shape) or not all(part.is_contiguous() for part in self.parts()):
            raise ValueError(f"{self.rows} x {self.columns} at {self.bits} bits can't have the parts {found}")

    def parts(self) -> list[torch.Tensor]:
        """blocks, scales and, if there are any, minimums."""
        return [part for part in (self.blocks, self.scales, self.minimums) if part is not None]

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts())

    def dequantize(self) -> torch.Tensor:
        """float32 [rows, columns]."""
        grouped = self._weights(self.blocks, self.scales, self.minimums)  # [blocks, groups, 32, 8]
        whole = grouped.permute(0, 3, 1, 2).reshape(-1, grouped.shape[1] * GROUP)
        return whole[: self.rows, : self.columns]

    def expand(self, dtype: torch.dtype) -> torch.Tensor:
        """dtype [rows, columns], made a part at a time: little more memory than the result is needed."""
        whole = torch.empty(self.shape, dtype=dtype, device=self.blocks.device)
        done = 0
        for part in self.split(AT_ONCE):
            whole[done : done + part.rows] = part.dequantize()
            done += part.rows
        return whole

    def select(self, rows: torch.Tensor) -> torch.Tensor:
        """float32 [n, columns]: the rows with these numbers, int64 [n]."""
        block, row = rows // ROWS, rows % ROWS
        minimums = None if self.minimums is None else self.minimums[block, :, row][..., None]
        chosen = self.blocks[block, :, :, row][:, :, :, None]  # [n, groups, lanes, 1, 4]
        return self._weights(chosen, self.scales[block, :, row][..., None], minimums).flatten(1)[:, : self.columns]

    def split(self, weights: int) -> Iterator[PackedMatrix]:
        """The matrix in parts of whole rows that have about so many weights."""
        blocks = max(weights // (ROWS * self.columns), 1)
        for start in range(0, len(self.blocks), blocks):
            part = slice(start, start + blocks)
            rows = min(blocks * ROWS, self.rows - start * ROWS)
            minimums = None if self.minimums is None else self.minimums[part]
            yield PackedMatrix(self.bits, rows, self.columns, self.blocks[part], self.scales[part], minimums)

    def to(self, device: torch.device) -> PackedMatrix:
        minimums = None if self.minimums is None else self.minimums.to(device)
        return PackedMatrix(
            self.bits, self.rows, self.columns, self.blocks.to(device), self.scales.to(device), minimums
        )

    def _weights(self, blocks: torch.Tensor, scales: torch.Tensor, minimums: torch.Tensor | None) -> torch.Tensor:
        """float32 [.., groups, 32, rows side by side] of blocks [.., groups, lanes, rows side by side, 4]."""
        if self.bits == 8:
            quants = blocks.view(torch.int8)
        else:
            quants = torch.cat((blocks & 15, blocks >> 4), dim=-3)
        columns = quants.transpose(-1, -2).flatten(-3, -2).float()
        wide = columns * scales.float()[..., None, :]
        return wide if minimums is None else wide + minimums.float()[..., None, :]


def _layout(bits: int, rows: int, columns: int) -> list[tuple[tuple[int, ...], torch.dtype]]:
    """Shape and type of blocks, scales and, in INT4, minimums."""
    blocks, groups = -(-rows // ROWS), -(-columns // GROUP)
    floats = ((blocks, groups, ROWS), torch.float16)
    return [((blocks, groups, GROUP * bits // 8 // LANE, ROWS, LANE), torch.uint8), floats, *[floats][: bits == 4]]


@dataclass(frozen=True)
class Quants:
    """A quantized matrix [rows, columns] as files bring it: weight = integer * scale + minimum.

    groups: [rows, groups of 32 columns, bytes]. INT8: int8, a byte for each column. INT4: uint8, 16 bytes, whose low
    halves are the first 16 columns and whose high halves the others; integers are 0 .. 15. scales and minimums: float16
    [rows, groups]. GGUF files and the kernels have their groups like this too, so that only whole groups are moved.
    """

    bits: int
    columns: int
    groups: torch.Tensor
    scales: torch.Tensor
    minimums: torch.Tensor | None = None

    @classmethod
    def of(
        cls, bits: int, integers: torch.Tensor, scales: torch.Tensor, minimums: torch.Tensor | None = None
    ) -> Quants:
        """Of integers [rows, columns], one by one."""
        rows, columns = integers.shape
        whole = F.pad(integers.to(torch.uint8 if bits == 4 else torch.int8), (0, -columns % GROUP))
        groups = whole.view(rows, -1, GROUP)
        if bits == 4:
            groups = groups[..., : GROUP // 2] | groups[..., GROUP // 2 :] << 4
        return cls(bits, columns, groups, scales, minimums)

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self.groups), self.columns))

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in (self.groups, self.scales, self.minimums) if part is not None)

    def __getitem__(self, rows: torch.Tensor | slice) -> Quants:
        """These rows, in this order."""
        groups, scales = _rows(self.groups, rows), _rows(self.scales, rows)
        minimums = None if self.minimums is None else _rows(self.minimums, rows)
        return Quants(self.bits, self.columns, groups, scales, minimums)

    def float(self) -> torch.Tensor:
        """float32 [rows, columns]."""
        return self.pack().dequantize()

    def expand(self, dtype: torch.dtype) -> torch.Tensor:
        """dtype [rows, columns], made a part at a time."""
        return self.pack().expand(dtype)

    def pack(self) -> PackedMatrix:
        """The same numbers in the kernels' layout."""
        rows = len(self.groups)
        whole = F.pad(self.groups, (0, 0, 0, 0, 0, -rows % ROWS)) if rows % ROWS else self.groups
        whole = whole if _in_words(whole) else whole.contiguous()
        lanes = whole.view(torch.int32).view(-1, ROWS, *whole.shape[1:-1], whole.shape[-1] // LANE)  # 4 columns each
        blocks = (
            lanes.permute(0, 2, 3, 1).contiguous().view(torch.uint8).view(len(lanes), -1, lanes.shape[-1], ROWS, LANE)
        )
        minimums = None if self.minimums is None else _side_by_side(self.minimums)
        return PackedMatrix(self.bits, rows, self.columns, blocks, _side_by_side(self.scales), minimums)


def _in_words(values: torch.Tensor) -> bool:
    """Whether the bytes of a tensor, which may be a view of a file, lie so that four of them are one number."""
    *strides, last = values.stride()
    return last == 1 and all(stride % LANE == 0 for stride in (*strides, values.data_ptr()))


def _rows(values: torch.Tensor, rows: torch.Tensor | slice) -> torch.Tensor:
    """values[rows], which copies numbers one by one where index_select copies rows."""
    return values[rows] if isinstance(rows, slice) else values.index_select(0, rows)


def _side_by_side(values: torch.Tensor) -> torch.Tensor:
    """[rows, groups] -> float16 [rows / 8, groups, 8]."""
    whole = F.pad(values.to(torch.float16), (0, 0, 0, -values.shape[0] % ROWS))
    return whole.view(-1, ROWS, values.shape[1]).transpose(1, 2).contiguous()


AT_ONCE = 2**20  #: weights that are quantized in one go: what is computed of more would not stay in the cache


class Rows(Protocol):
    """A matrix [rows, columns] whose rows become floats when they are wanted; every float tensor is one."""

    @property
    def shape(self) -> torch.Size: ...

    def __getitem__(self, rows: slice) -> Rows: ...

    def float(self) -> torch.Tensor:
        """float32 [rows, columns]."""


def quantize(weight: Rows, bits: int) -> PackedMatrix:
    """The nearest packed form, with the kernel where there is one."""
    packed = PackedMatrix.empty(bits, *weight.shape)
    done = 0
    for part in packed.split(AT_ONCE):
        floats = weight[done : done + part.rows].float()
        fast = kernel() if floats.device.type == "cpu" else None
        (_fill if fast is None else fast.quantize)(floats, part)
        done += part.rows
    return packed


def _fill(weight: torch.Tensor, packed: PackedMatrix) -> None:
    """Fills a packed matrix with the nearest to a float matrix of its shape."""
    groups = F.pad(weight.float(), (0, -weight.shape[1] % GROUP)).view(weight.shape[0], -1, GROUP)
    fit = _fit_symmetric if packed.bits == 8 else _fit_between
    integers, scales, minimums = fit(groups)
    made = Quants.of(packed.bits, integers.flatten(1)[:, : weight.shape[1]], scales, minimums).pack()
    for ours, theirs in zip(packed.parts(), made.parts(), strict=True):
        ours.copy_(theirs)


def _half(values: torch.Tensor) -> torch.Tensor:
    """The nearest halves; what is too large becomes the largest of them: infinities would end as no numbers at all."""
    return values.clamp(-HALF_MAX, HALF_MAX).half()


HALF_MAX = torch.finfo(torch.float16).max


def _fit_symmetric(groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
    scales = _half(groups.abs().amax(-1) / 127)
    return _round(groups, scales, torch.zeros_like(scales)).clamp(-127, 127), scales, None


STEPS = 4  #: more of them gain less than a hundredth

Fit = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]  #: squared error, levels, scales, minimums


def _fit_between(groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The least squared error found by turns: the nearest levels on a line, then the best line through the levels."""
    minimums = groups.amin(-1)
    scales = (groups.amax(-1) - minimums) / 15
    best = _nearest(groups, _half(scales), _half(minimums))
    found = best
    for _ in range(STEPS - 1):
        scales, minimums = _line(groups, found[1].float())
        found = _nearest(groups, _half(scales), _half(minimums))
        best = _better(found, best)
    return best[1], best[2], best[3]


def _nearest(groups: torch.Tensor, scales: torch.Tensor, minimums: torch.Tensor) -> Fit:
    levels = _round(groups, scales, minimums).clamp_(0, 15)
    error = (levels * scales.float()[..., None] + minimums.float()[..., None] - groups).pow_(2).sum(-1)
    return error, levels.to(torch.uint8), scales, minimums


def _round(groups: torch.Tensor, scales: torch.Tensor, minimums: torch.Tensor) -> torch.Tensor:
    """The nearest integers; a group that is constant has scale 0 and gets zeros."""
    step = scales.float().where(scales != 0, torch.inf)
    return ((groups - minimums.float()[..., None]) / step[..., None]).round()


def _better(found: Fit, best: Fit) -> Fit:
    wins = found[0] < best[0]
    levels = torch.where(wins[..., None], found[1], best[1])
    error, scales, minimums = (torch.where(wins, found[i], best[i]) for i in (0, 2, 3))
    return error, levels, scales, minimums


def _line(groups: torch.Tensor, levels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and minimum of the least-squares line from levels to weights."""
    middle, mean = levels.mean(-1), groups.mean(-1)
    centred = levels - middle[..., None]
    spread = centred.pow(2).sum(-1)
    scales = (centred * groups).sum(-1) / spread.where(spread > 0, 1)
    return scales, mean - scales * middle


class QuantizedLinear(nn.Module):
    """A Linear over a packed matrix."""

    def __init__(self, weight: PackedMatrix, bias: nn.Parameter | None = None) -> None:
        super().__init__()
        self.weight = weight
        self.bias = bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return multiply(x, self.weight, bias)


class QuantizedEmbedding(nn.Module):
    """Token vectors out of a packed matrix, which also serves as a tied head."""

    def __init__(self, weight: PackedMatrix) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        rows = self.weight.select(ids.flatten()).view(*ids.shape, -1)
        return rows if ids.device.type == "cpu" else rows.half()

    def as_linear(self, x: torch.Tensor) -> torch.Tensor:
        return multiply(x, self.weight)


def multiply(x: torch.Tensor, weight: PackedMatrix, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x [.., columns] times the matrix's rows -> [.., rows]. Where there is no kernel the matrix is expanded first."""
    if x.device.type == "cpu" and x.dtype == torch.float32 and (fast := kernel()) is not None:
        return fast.multiply(x, weight, bias)
    products = [F.linear(x, part.dequantize().to(x.dtype)) for part in weight.split(EXPANDED)]
    product = torch.cat(products, dim=-1)
    return product if bias is None else product + bias
