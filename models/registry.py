"""Which file runs a checkpoint, decided from its config alone."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from .base import CheckpointError


@dataclass(frozen=True)
class Architecture:
    """`name` is the file in this package; `family` is what users choose by."""

    name: str
    family: str
    matches: Callable[[Mapping[str, Any]], bool]

    def module(self) -> ModuleType:
        """The file's module, with its ModelArgs and Model."""
        return importlib.import_module(f".{self.name}", __package__)


def _is_llama(config: Mapping[str, Any]) -> bool:
    return config.get("model_type") == "llama" or "llamaforcausallm" in map(
        str.lower, config.get("architectures") or ()
    )


ARCHITECTURES = (Architecture("llama", "llama", _is_llama),)


def resolve(config: Mapping[str, Any]) -> Architecture:
    """The architecture of a config.json; raises CheckpointError naming what was seen and what is supported."""
    for architecture in ARCHITECTURES:
        if architecture.matches(config):
            return architecture
    seen = f"model_type {config.get('model_type')!r}, architectures {config.get('architectures')!r}"
    supported = ", ".join(architecture.name for architecture in ARCHITECTURES)
    raise CheckpointError(f"This architecture can't be run here: {seen}; supported are {supported}.")
