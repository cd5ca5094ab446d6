"""Changes of a matrix that are products of two thin ones (LoRA: Hu et al., 2021), added into it or kept beside it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from .base import BaseModel
from .quantize import PackedMatrix


@dataclass(frozen=True)
class LowRank:
    """up [rows, r] @ down [r, columns], both float32, added to a matrix's rows from `first` on.

    `magnitude` [rows] is the length that each row has afterwards (DoRA: Liu et al., 2024).
    """

    up: torch.Tensor
    down: torch.Tensor
    first: int = 0
    magnitude: torch.Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return self.up.shape[0], self.down.shape[1]

    def add_to(self, weight: torch.Tensor, first: int) -> None:
        """Adds itself to a float32 tensor that holds the matrix's rows from `first` on, maybe not all of them."""
        start, stop = max(first, self.first), min(first + len(weight), self.first + len(self.up))
        if start >= stop:
            return
        rows, own = weight[start - first : stop - first], slice(start - self.first, stop - self.first)
        rows.addmm_(self.up[own], self.down)
        if self.magnitude is not None:
            rows.mul_((self.magnitude[own] / rows.norm(dim=1))[:, None])


class AdaptedLinear(nn.Module):
    """A Linear, quantized or not, with changes beside it: y = W x + up (down x). W is not touched."""

    def __init__(self, inner: nn.Module, up: torch.Tensor, down: torch.Tensor) -> None:
        super().__init__()
        self.inner = inner
        self.up = nn.Parameter(up, requires_grad=False)
        self.down = nn.Parameter(down, requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) + F.linear(F.linear(x, self.down), self.up)


def beside(model: BaseModel, changes: Mapping[str, Sequence[LowRank]], device: torch.device) -> BaseModel:
    """A model with changes beside the Linears of these names; it shares every weight with `model`, which stays."""
    adapted = _sharing(model)
    dtype = torch.float32 if device.type == "cpu" else torch.float16  # that of the activations
    for name, own in changes.items():
        parent, _, attribute = name.rpartition(".")
        inner = adapted.get_submodule(name)
        up, down = _joined(own, inner.weight.shape[0])
        setattr(
            adapted.get_submodule(parent), attribute, AdaptedLinear(inner, up.to(device, dtype), down.to(device, dtype))
        )
    return adapted


def _sharing(model: BaseModel) -> BaseModel:
    """A copy of the modules over the same weights."""
    weights = [*model.parameters(), *model.buffers()]
    weights += [each.weight for each in model.modules() if isinstance(getattr(each, "weight", None), PackedMatrix)]
    return copy.deepcopy(model, {id(weight): weight for weight in weights})


def _joined(changes: Sequence[LowRank], rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum of changes of parts of a matrix (queries, keys, values) as one change of all its rows."""
    ups = [F.pad(each.up, (0, 0, each.first, rows - each.first - len(each.up))) for each in changes]
    return torch.cat(ups, dim=1), torch.cat([each.down for each in changes])
