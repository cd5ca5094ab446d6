"""What every architecture shares: how arguments are read from a config, and what a model promises."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn

from .cache import KVCache, Prefix

#: How the names of a P-tuning prefix begin: formats/prefixes.py reads its tensors, a model has no place for them.
PREFIX_ENCODER = "transformer.prefix_encoder."


class CheckpointError(ValueError):
    """A checkpoint can't be used; the text is one sentence for the user: what, where, what to do."""


@dataclass(frozen=True)
class CacheShape:
    """What one position of the key/value cache holds."""

    layers: int
    kv_heads: int
    head_dim: int


@dataclass(frozen=True, kw_only=True)
class BaseArgs:
    """Arguments of an architecture, named as in config.json.

    `aliases` maps other names that a value goes by in published configs to the field's name.
    """

    aliases: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> BaseArgs:
        """Reads the known keys of a config.json; raises CheckpointError for a missing or impossible value."""
        known = {field.name: field for field in dataclasses.fields(cls)}
        values = {cls.aliases.get(key, key): value for key, value in config.items() if value is not None}
        values |= {key: value for key, value in config.items() if key in known and value is not None}
        missing = [name for name, field in known.items() if name not in values and _required(field)]
        if missing:
            raise CheckpointError(f"config.json lacks {', '.join(missing)}; download it again from the model's page.")
        for name in known.keys() & values.keys():
            if known[name].type in ("int", "int | None") and not _is_count(values[name]):
                raise CheckpointError(f"config.json has an impossible {name}: {values[name]!r}.")
        return cls(**{name: value for name, value in values.items() if name in known})

    def require(self, condition: bool, name: str) -> None:
        """Raises CheckpointError naming the key and its value unless `condition` holds."""
        if not condition:
            raise CheckpointError(f"config.json has an impossible {name}: {getattr(self, name)!r}.")

    @property
    def cache_shape(self) -> CacheShape:
        raise NotImplementedError

    @property
    def context(self) -> int:
        """The longest sequence the model was made for, in tokens."""
        raise NotImplementedError

    @property
    def query_heads(self) -> int:
        raise NotImplementedError

    @property
    def alibi(self) -> bool:
        """Whether scores fall with distance (ALiBi): attention then needs a table of every head's scores."""
        return False


def _required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0


#: Tables and masks that some checkpoints store: they are computed here.
LEFTOVERS = (".inv_freq", ".cos_cached", ".sin_cached", ".attn.bias", ".attention.bias", ".masked_bias")


class Place(NamedTuple):
    """Where a published tensor goes: a parameter here, all of it, or so many rows from `first` on."""

    name: str
    first: int = 0
    rows: int | None = None


class BaseModel(nn.Module):
    """An architecture: `forward` is in the family's file and can be read there from top to bottom."""

    #: False where prompt positions attend both ways (ChatGLM-6B): a cached prompt can't be extended, and is read whole.
    causal_prompt: ClassVar[bool] = True
    #: True where [MASK] in a prompt is a blank that the model can fill (ChatGLM-6B).
    fills_blanks: ClassVar[bool] = False

    args: BaseArgs

    def forward(self, ids: torch.Tensor, cache: KVCache | None = None, last: bool = False) -> torch.Tensor:
        """ids: int64 [1, time] -> logits: float32 [1, time, vocab], or [1, 1, vocab] if only the last row is wanted.

        With a cache, ids continue what it holds and their keys and values are added to it.
        """
        raise NotImplementedError

    def is_leftover(self, name: str) -> bool:
        """Whether a checkpoint's tensor is to be ignored: a copy, or something that is computed here."""
        return name.endswith(LEFTOVERS)

    def sanitize(self, name: str, tensor: torch.Tensor) -> tuple[str, torch.Tensor] | None:
        """The attribute that a checkpoint's tensor belongs to; None for a leftover, or a part that waits for others."""
        return None if self.is_leftover(name) else (name, tensor)

    def place(self, name: str) -> Place:
        """The place of a tensor by its published name, in whichever form it was published."""
        return Place(name)

    def new_cache(
        self, length: int, dtype: torch.dtype, device: str | torch.device, prefix: Prefix | None = None
    ) -> KVCache:
        return KVCache(self.args.cache_shape, length, dtype, device, prefix)
