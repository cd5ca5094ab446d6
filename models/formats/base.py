"""What every checkpoint form promises."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch

from ..prompts import ChatHints
from ..tokenizer import Tokenizer
from .gguf_types import Weight


class Checkpoint(Protocol):
    """What the loader needs of any form."""

    path: Path
    origin: str  #: where it comes from, in full: its path, and an adapter's
    config: dict[str, Any]  #: config.json, or its equivalent in the same terms
    quantized: int  #: bits of the matrices that it brings packed and that are taken over so; 0 where they are not
    precision: int  #: bits of the lowest tier that loses nothing worth having of what it brings: 16, 8 or 4

    def tensors(self) -> Iterator[tuple[str, Weight]]:
        """Each tensor under the name it has in the Hugging Face form, read when its turn comes."""

    def nbytes(self) -> int:
        """How many bytes `tensors` will read."""

    def files(self) -> list[Path]:
        """The files that the weights depend on."""

    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer; raises CheckpointError where it has none."""

    def chat_hints(self) -> ChatHints:
        """What its files say about how it wants to be talked to."""


class StoredCheckpoint(Checkpoint, Protocol):
    """What can be asked of a checkpoint on disk besides."""

    form: ClassVar[str]  #: what users call it

    def outline(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The same names as `tensors` with the shapes, on the meta device: only headers are read."""


def floats(weight: Weight) -> torch.Tensor:
    """A copy in float32, to be changed."""
    return weight.to(torch.float32, copy=True) if isinstance(weight, torch.Tensor) else weight.expand(torch.float32)
