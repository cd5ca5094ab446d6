"""What a kernel's product may differ by from the specification in PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from models.quantize import GROUP, PackedMatrix

#: Of the sum of the products' sizes: float32 sums of up to 33 groups, in whatever order.
ADDING = 1e-5


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rounded(x: torch.Tensor) -> torch.Tensor:
    """float64: x [n, columns] as its bytes stand for it."""
    groups = F.pad(x, (0, -x.shape[1] % GROUP)).unflatten(1, (-1, GROUP))
    largest = groups.abs().amax(-1, keepdim=True)
    step = torch.where(largest > 0, torch.tensor(127.0) / largest, 0)  # 127 / largest would round twice
    return ((groups * step).round().double() * (largest / 127).double()).flatten(1)[:, : x.shape[1]]


def sizes(x: torch.Tensor, weight: PackedMatrix) -> torch.Tensor:
    """What a product's summands add up to without their signs; a group's levels and minimum are added apart."""
    parts = weight.dequantize().abs()
    if weight.minimums is not None:
        minimums = weight.minimums.float().transpose(1, 2).flatten(0, 1)[: weight.rows].abs()
        parts = parts + 2 * minimums.repeat_interleave(GROUP, 1)[:, : weight.columns]
    return x.double().abs() @ parts.double().T


def agrees(found: torch.Tensor, x: torch.Tensor, weight: PackedMatrix, bias: torch.Tensor) -> bool:
    """Whether it is the product of the rounded x, up to the order of adding."""
    wanted = rounded(x) @ weight.dequantize().double().T + bias
    return bool(((found - wanted).abs() <= ADDING * (sizes(x, weight) + bias.abs())).all())


def agrees_halves(found: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> bool:
    wide = weight.double()
    bound = 1e-6 * (x.double().abs() @ wide.abs().T + bias.abs())
    return bool(((found - (x.double() @ wide.T + bias)).abs() <= bound).all())
