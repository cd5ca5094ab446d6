"""Adapters: folders that change a base checkpoint. An adapted checkpoint is a checkpoint like any other."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch

from ..base import BaseModel, CheckpointError
from ..files import readable
from ..prompts import ChatHints
from ..tokenizer import Tokenizer, read_tokenizer
from ..tokenizers.reading import holds_tokenizer
from .base import Checkpoint, Weight
from .deltas import DeltaAdapter
from .huggingface import read_hints
from .lora import LoraAdapter
from .prefixes import PrefixAdapter


class Adapter(Protocol):
    """What is needed of any kind of adapter. `model` is the base's architecture under the adapted config."""

    path: Path
    base: str | None  #: what the model that it was made for is called, where it says so
    switchable: bool  #: it can be put beside the weights of a loaded model, and be taken away again
    mergeable: bool  #: it can become part of the weights
    numbers: int  #: how many numbers it then keeps, all of them in float32

    @staticmethod
    def recognises(path: Path) -> bool: ...

    def config(self, base: dict[str, Any]) -> dict[str, Any]:
        """The base's config as the adapter changes it. Raises CheckpointError for another model's."""

    def check(self, model: BaseModel) -> None:
        """Raises CheckpointError, naming file and tensor, where something has no place in the model."""

    def tensors(self, base: Checkpoint, model: BaseModel) -> Iterator[tuple[str, Weight]]:
        """The base's tensors, changed; those without a change as they are."""

    def beside(self, model: BaseModel, device: torch.device) -> BaseModel:
        """A model that shares the weights of this one and has the adapter beside them."""

    def files(self) -> list[Path]: ...

    def nbytes(self) -> int:
        """How many bytes `tensors` reads besides the base's."""


#: Every kind of adapter; the first that recognises a folder reads it.
KINDS: tuple[type[Adapter], ...] = (LoraAdapter, PrefixAdapter, DeltaAdapter)


def is_adapter(path: Path) -> bool:
    return any(kind.recognises(path) for kind in KINDS)


def open_adapter(path: Path) -> Adapter:
    """Opens an adapter of any kind; raises CheckpointError for what is none, or can't be applied here."""
    with readable(path):
        for kind in KINDS:
            if kind.recognises(path):
                return kind(path)
    raise CheckpointError(
        f"{path} is no adapter: it is no folder with adapter_config.json, nor one of a P-tuning prefix that is whole, "
        "nor a checkpoint with 'delta' in its name; download all of its files."
    )


class AdaptedCheckpoint:
    """A base checkpoint as an adapter changes it: tensors, config, tokenizer, and how it wants to be talked to."""

    def __init__(self, base: Checkpoint, adapter: Adapter, config: dict[str, Any], model: BaseModel) -> None:
        self.path = base.path
        self.origin = f"{base.origin} + {adapter.path.resolve()}"
        self.config = config
        self.base = base
        self.adapter = adapter
        self._model = model

    @property
    def quantized(self) -> int:
        return self.base.quantized

    @property
    def precision(self) -> int:
        return self.base.precision

    def tensors(self) -> Iterator[tuple[str, Weight]]:
        return self.adapter.tensors(self.base, self._model)

    def nbytes(self) -> int:
        return self.base.nbytes() + self.adapter.nbytes()

    def files(self) -> list[Path]:
        return [*self.base.files(), *self.adapter.files()]

    def tokenizer(self) -> Tokenizer:
        if holds_tokenizer(self.adapter.path):
            return read_tokenizer(self.adapter.path, self.config)
        return self.base.tokenizer()

    def chat_hints(self) -> ChatHints:
        """The adapter's own hints, where it has any, in front of the base's."""
        own, base = read_hints(self.adapter.path, {}), self.base.chat_hints()
        return dataclasses.replace(
            base,
            template=own.template or base.template,
            special_tokens={**base.special_tokens, **own.special_tokens},
            names=(*own.names, *base.names),
            eos_ids=own.eos_ids or base.eos_ids,
            generation={**base.generation, **own.generation},
        )
