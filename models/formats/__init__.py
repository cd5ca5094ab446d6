"""Checkpoint forms. A reader knows files and nothing of families; the loader knows neither."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..base import CheckpointError
from ..files import readable, refuse_stand_in
from .adapters import AdaptedCheckpoint, Adapter, is_adapter, open_adapter
from .base import Checkpoint, StoredCheckpoint, Weight
from .gguf import GGUFCheckpoint
from .huggingface import HuggingFaceCheckpoint
from .meta import MetaCheckpoint
from .prefixes import Encoder, PrefixAdapter, is_alone, prefix_rows

__all__ = [
    "AdaptedCheckpoint",
    "Adapter",
    "Checkpoint",
    "Encoder",
    "PrefixAdapter",
    "StoredCheckpoint",
    "Weight",
    "check_files",
    "glance",
    "is_adapter",
    "is_alone",
    "is_checkpoint",
    "open_adapter",
    "open_checkpoint",
    "prefix_rows",
]

#: A folder of another form may hold a GGUF file made from it: it stays what it is.
FORMS = (HuggingFaceCheckpoint, MetaCheckpoint, GGUFCheckpoint)


def open_checkpoint(path: Path) -> StoredCheckpoint:
    """Opens a checkpoint of any form; raises CheckpointError for a path that holds none."""
    with readable(path):
        return _form(path)(path)


def is_checkpoint(path: Path) -> bool:
    """Whether a path is of a form that can be opened; what is in it may be damaged."""
    return any(form.recognises(path) for form in FORMS)


def glance(path: Path) -> dict[str, Any]:
    """As much of a config as names the architecture, quickly, for a list of many. Raises CheckpointError."""
    return _form(path).glance(path)


def check_files(path: Path) -> None:
    """Raises CheckpointError where a file of a checkpoint is missing, or a pointer to it is in its place.

    Names and headers are read, weights are not.
    """
    with readable(path):
        for file in _form(path).located(path):
            refuse_stand_in(file)


def _form(path: Path) -> type[GGUFCheckpoint | HuggingFaceCheckpoint | MetaCheckpoint]:
    if not path.exists():
        raise CheckpointError(f"{path} does not exist; give a checkpoint's folder or a .gguf file.")
    for form in FORMS:
        if form.recognises(path):
            return form
    folder = "a folder without config.json, or params.json and consolidated.00.pth, or a .gguf file"
    what = folder if path.is_dir() else "neither a folder nor a .gguf file"
    raise CheckpointError(f"{path} is no checkpoint: it is {what}; give a checkpoint's folder or a .gguf file.")
