"""A small product of every kind, to see on a user's machine that the kernels give what they should."""

from __future__ import annotations

import torch

from .kernels import kernel
from .quantize import quantize

ROWS, COLUMNS = 24, 96
#: Relative errors: a quantized product rounds the activations to 8 bits, an FP16 one only adds in another order.
ROUNDED, EXACT = 0.02, 1e-5


def kernel_level() -> str | None:
    """The instruction set that the C kernels use; None where PyTorch does the work."""
    made = kernel()
    return None if made is None else made.level


def wrong_products() -> list[str]:
    """The names of kernels ("INT4", "INT8", "FP16") whose product differs from PyTorch's; none where there are none."""
    made = kernel()
    if made is None:
        return []
    random = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(*shape, generator=random) for shape in ((ROWS, COLUMNS), (3, COLUMNS)))
    halves = weight.half()
    found = {"FP16": _differs(made.multiply_halves(x, halves, None), x @ halves.float().T, EXACT)}
    for bits in (4, 8):
        packed = quantize(weight, bits)
        found[f"INT{bits}"] = _differs(made.multiply(x, packed, None), x @ packed.dequantize().T, ROUNDED)
    return [name for name, wrong in sorted(found.items()) if wrong]


def _differs(found: torch.Tensor, wanted: torch.Tensor, bound: float) -> bool:
    return not bool((found - wanted).norm() <= bound * wanted.norm())
