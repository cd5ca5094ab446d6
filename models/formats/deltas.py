"""Deltas: whole checkpoints that hold differences to a base (Vicuna v0 and v1.1, Chimera)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from ..base import BaseModel, CheckpointError, Place
from .base import Checkpoint, Weight, floats
from .huggingface import HuggingFaceCheckpoint

#: What a delta and its base must have in common.
SAME = (
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "n_layer",
    "n_head",
)


class DeltaAdapter:
    base = None
    switchable = False
    mergeable = True
    numbers = 0

    def __init__(self, path: Path) -> None:
        self.path = path
        self._own = HuggingFaceCheckpoint(path)

    @staticmethod
    def recognises(path: Path) -> bool:
        return HuggingFaceCheckpoint.recognises(path) and "delta" in path.resolve().name.lower()

    def config(self, base: dict[str, Any]) -> dict[str, Any]:
        for key in SAME:
            own, theirs = self._own.config.get(key), base.get(key)
            if None not in (own, theirs) and own != theirs:
                raise CheckpointError(
                    f"{self.path} is a delta to another model: its {key} is {own}, the base's {theirs}; load that one "
                    "with it."
                )
        return {**base, **self._own.config}

    def check(self, model: BaseModel) -> None:
        """Nothing beyond the config: its tensors are as many as the base's, and each is checked when it is added."""

    def files(self) -> list[Path]:
        return self._own.files()

    def nbytes(self) -> int:
        return self._own.nbytes()

    def tensors(self, base: Checkpoint, model: BaseModel) -> Iterator[tuple[str, Weight]]:
        """Base and delta are read side by side: their files mostly have one order, and what comes early waits."""
        waiting: dict[Place, torch.Tensor] = {}
        coming = ((model.place(name), tensor) for name, tensor in self._own.tensors())
        expected = {name for name, _ in model.named_parameters()}
        for name, weight in base.tensors():
            place = model.place(name)
            if place.name not in expected:
                yield name, weight  # a leftover: the loader ignores it, or says so
                continue
            while place not in waiting:
                found = next(coming, None)
                if found is None:
                    raise CheckpointError(f"{name} is missing in {self.path}; download it again.")
                waiting[found[0]] = found[1]
            yield name, self._sum(name, weight, waiting.pop(place))
        left = [place.name for place, _ in (*waiting.items(), *coming) if place.name in expected]
        if left:
            raise CheckpointError(
                f"{self.path} changes {left[0]}, which {base.path} does not have; load the base that it was made for."
            )

    def _sum(self, name: str, weight: Weight, delta: torch.Tensor) -> torch.Tensor:
        """Their sum in float32; tokens that the delta adds to the vocabulary begin at zero."""
        if not (isinstance(delta, torch.Tensor) and delta.is_floating_point()):
            kind = getattr(delta, "dtype", "integers")
            raise CheckpointError(f"{name} in {self.path} is of {kind}, where floats belong; get it as floats.")
        rows = (delta.shape[0] if delta.ndim else 0) - weight.shape[0]
        if delta.shape[1:] != weight.shape[1:] or rows < 0:
            shapes = f"{list(delta.shape)} where the base has {list(weight.shape)}"
            raise CheckpointError(f"{name} in {self.path} is {shapes}; load the base that it was made for.")
        wide = floats(weight)
        wide = F.pad(wide, (0, 0) * (wide.ndim - 1) + (0, rows)) if rows else wide
        return wide.add_(delta)

    def beside(self, model: BaseModel, device: torch.device) -> BaseModel:
        raise CheckpointError(f"{self.path} changes every weight: load its base with it instead.")
