"""Checkpoint forms. A reader knows files and nothing of families; the loader knows neither."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from ..base import CheckpointError
from ..prompts import ChatHints
from ..tokenizer import Tokenizer
from .gguf import GGUFCheckpoint
from .gguf_types import Weight
from .huggingface import HuggingFaceCheckpoint
from .meta import MetaCheckpoint


class Checkpoint(Protocol):
    """What the loader needs of any form."""

    path: Path
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


FORMS = (GGUFCheckpoint, HuggingFaceCheckpoint, MetaCheckpoint)


def open_checkpoint(path: Path) -> Checkpoint:
    """Opens a checkpoint of any form; raises CheckpointError for a path that holds none."""
    return _form(path)(path)


def glance(path: Path) -> dict[str, Any]:
    """As much of a config as names the architecture, quickly, for a list of many. Raises CheckpointError."""
    return _form(path).glance(path)


def _form(path: Path) -> type[GGUFCheckpoint | HuggingFaceCheckpoint | MetaCheckpoint]:
    if not path.exists():
        raise CheckpointError(f"{path} does not exist; give a checkpoint's folder or a .gguf file.")
    for form in FORMS:
        if form.recognises(path):
            return form
    folder = "a folder without config.json, or params.json and consolidated.00.pth"
    what = folder if path.is_dir() else "neither a folder nor a .gguf file"
    raise CheckpointError(f"{path} is no checkpoint: it is {what}.")
