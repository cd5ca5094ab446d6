"""The metadata of a GGUF file, each value of the type that its key asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..base import LARGEST_COUNT, MOST_LAYERS, CheckpointError, is_count, is_number
from .gguf_file import Texts

TOKENS = "tokenizer.ggml.tokens"
PIECE_IDS = {"bos": 1, "eos": 2}  #: what a sentencepiece model has unless the file says otherwise
SHOWN = 40  #: characters of a wrong value in a message


@dataclass(frozen=True)
class Metadata:
    """In a key, {arch} stands for the architecture's name.

    A value without a default is required. Raises CheckpointError, naming file and key, for one that is not there or
    makes no sense.
    """

    path: Path
    values: Mapping[str, Any]

    def value(self, key: str, default: Any = None) -> Any:
        """A value as a Python object, whatever its type."""
        found = self.values.get(self._whole(key), default)
        if isinstance(found, Texts):
            return found.read()
        return found.tolist() if isinstance(found, np.ndarray) else found

    def text(self, key: str, default: str | None = None) -> str:
        return self._checked(key, default, lambda found: isinstance(found, str))

    def number(self, key: str, default: float | None = None) -> float:
        return self._checked(key, default, is_number)

    def count(self, key: str, default: int | None = None) -> int:
        limit = MOST_LAYERS if key.endswith("block_count") else LARGEST_COUNT
        return self._checked(key, default, lambda found: is_count(found, limit))

    def flag(self, key: str, default: bool) -> bool:
        return self._checked(key, default, lambda found: isinstance(found, bool))

    def texts(self, key: str, first: int | None = None) -> list[str]:
        """All of a list of texts, or so many of the first: of a vocabulary all are many."""
        return self._checked(key, None, lambda found: isinstance(found, Texts)).read(first)

    def numbers(self, key: str, count: int) -> list[Any]:
        """A list of that many numbers."""
        self._checked(key, None, lambda found: isinstance(found, np.ndarray) and len(found) == count)
        return self.value(key)

    def token_id(self, name: str) -> int | None:
        """The id of a token such as "eos", or None where there is none."""
        key = f"tokenizer.ggml.{name}_token_id"
        default = PIECE_IDS.get(name) if self.values.get("tokenizer.ggml.model") == "llama" else None
        if self.values.get(key, default) is None:
            return None
        return self._checked(key, default, lambda found: type(found) is int and 0 <= found < self.vocabulary)

    @property
    def vocabulary(self) -> int:
        """How many tokens there are."""
        tokens = self.values.get(TOKENS)
        return len(tokens) if isinstance(tokens, Texts) else self.count("{arch}.vocab_size")

    @property
    def architecture(self) -> str:
        return self.text("general.architecture")

    def impossible(self, key: str, found: Any) -> CheckpointError:
        shown = f"a list of {len(found)}" if isinstance(found, Texts | np.ndarray) else repr(found)
        shown = shown if len(shown) <= SHOWN else shown[:SHOWN] + "..."
        return CheckpointError(f"{self.path} has an impossible {self._whole(key)}: {shown}; download it again.")

    def __contains__(self, key: str) -> bool:
        return self._whole(key) in self.values

    def _checked(self, key: str, default: Any, fits: Callable[[Any], bool]) -> Any:
        found = self.values.get(self._whole(key), default)
        if found is None:
            raise CheckpointError(f"{self.path} lacks {self._whole(key)}; download it again.")
        if not fits(found):
            raise self.impossible(key, found)
        return found

    def _whole(self, key: str) -> str:
        return key.format(arch=self.architecture) if "{arch}" in key else key
