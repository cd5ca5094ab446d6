"""What every architecture shares: how arguments are read from a config, and what a model promises."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import nn

from .cache import KVCache, Prefix

if TYPE_CHECKING:
    from .fused import Known

#: How the names of a P-tuning prefix begin: formats/prefixes.py reads its tensors, a model has no place for them.
PREFIX_ENCODER = "transformer.prefix_encoder."


LONGEST_SENTENCE = 500  #: characters of an error; what a damaged file says may have millions


class CheckpointError(ValueError):
    """A checkpoint can't be used; the text is one sentence for the user: what, where, what to do.

    What it quotes of a file stays in its line, and is cut in the middle where it is too long.
    """

    def __init__(self, sentence: str) -> None:
        if len(sentence) > LONGEST_SENTENCE:
            half = LONGEST_SENTENCE // 2
            sentence = f"{sentence[:half]} ... {sentence[-half:]}"
        super().__init__("".join(letter if letter.isprintable() else " " for letter in sentence))


def impossible(file: Path | str, key: str, value: Any) -> CheckpointError:
    """What is said of a value that makes no sense."""
    return CheckpointError(f"{file} has an impossible {key}: {value!r}; download it again.")


def refuse_no_floats(name: str, tensor: torch.Tensor, path: Path) -> None:
    """Raises CheckpointError for a tensor of integers where floats belong."""
    if not tensor.is_floating_point():
        raise CheckpointError(f"{name} in {path} is of {tensor.dtype}, where floats belong; get it as floats.")


def refuse_no_numbers(name: str, tensor: torch.Tensor, path: Path) -> None:
    """Raises CheckpointError for a tensor of floats that holds infinities, or what is no number."""
    # Not isfinite of each, which takes longer than quantizing them; what is not a number wins in both ends.
    if tensor.numel() and not torch.stack(tensor.aminmax()).isfinite().all():
        raise CheckpointError(f"{name} in {path} holds values that are not numbers; download it again.")


def is_number(value: Any) -> bool:
    """Whether a value of a file is a number above zero that a float can hold."""
    return type(value) in (int, float) and 0 < value <= sys.float_info.max


#: More than any model has: a damaged number must not have us build a model that no memory holds.
LARGEST_COUNT = 2**24
MOST_LAYERS, MOST_HEADS, LARGEST_HEAD = 2**9, 2**12, 2**12
#: Those counts by their names in config.json, where they may not be as large as any other.
LIMITS = {
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer"), MOST_LAYERS),
    **dict.fromkeys(("num_attention_heads", "n_head", "num_key_value_heads", "multi_query_group_num"), MOST_HEADS),
    **dict.fromkeys(("head_dim", "kv_channels"), LARGEST_HEAD),
}


def is_count(value: Any, limit: int = LARGEST_COUNT) -> bool:
    """Whether a value of a file is a whole number above zero, and not beyond any model's."""
    return type(value) is int and 0 < value <= limit


def end_ids(settings: Mapping[str, Any], file: Path | str = "config.json") -> list[int]:
    """The ids that end a text according to a config. Raises CheckpointError for an impossible one."""
    found = settings.get("eos_token_id")
    ids = found if isinstance(found, list) else [] if found is None else [found]
    if not all(type(number) is int for number in ids):
        raise impossible(file, "eos_token_id", found)
    return ids


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
        for name, field in known.items():
            if name in values and not FITS[field.type](name, values[name]):
                raise impossible("config.json", name, values[name])
        return cls(**{name: value for name, value in values.items() if name in known})

    def require(self, condition: bool, name: str) -> None:
        """Raises CheckpointError naming the key and its value unless `condition` holds."""
        if not condition:
            raise impossible("config.json", name, getattr(self, name))

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


def section(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """An object inside a config, empty where it is not there. Raises CheckpointError."""
    found = config.get(key) or {}
    if not isinstance(found, Mapping):
        raise impossible("config.json", key, found)
    return found


def _fits_count(name: str, value: Any) -> bool:
    return is_count(value, LIMITS.get(name, LARGEST_COUNT))


#: What a field of each type may hold, by its name and its value.
FITS: Mapping[str, Callable[[str, Any], bool]] = {
    "int": _fits_count,
    "int | None": _fits_count,
    "float": lambda name, value: is_number(value),
    "bool": lambda name, value: isinstance(value, bool),
    "str": lambda name, value: isinstance(value, str),
    "dict[str, Any] | None": lambda name, value: isinstance(value, Mapping),
}


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
    #: The model as fused.py describes it to C, once that was asked for.
    known_to_c: Known | None = None

    def __call__(self, ids: torch.Tensor, cache: KVCache | None = None, last: bool = False) -> torch.Tensor:
        """As forward, in one call of C where that can do it: a few tokens that continue a cache, on the CPU."""
        from . import fused  # not above: it builds on layers.py, and that on this file

        logits = None if "forward" in vars(self) else fused.step(self, ids, cache, last)
        return super().__call__(ids, cache, last) if logits is None else logits

    def _apply(self, *arguments: Any, **options: Any) -> BaseModel:
        """Moves or converts the weights, as `to` and `half` ask for: what C knows of them is out of date."""
        self.known_to_c = None
        return super()._apply(*arguments, **options)

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

    def scaled_for(self, length: int) -> int:
        """Which keys a cache for `length` positions holds: those of another number can't be continued in it.

        All are alike unless positions are scaled by the length of the sequence (dynamic NTK).
        """
        return 0

    def new_cache(
        self, length: int, dtype: torch.dtype, device: str | torch.device, prefix: Prefix | None = None
    ) -> KVCache:
        return KVCache(self.args.cache_shape, length, dtype, device, prefix)
