"""The key/value cache: an argument of every forward, so that two conversations can't meet."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from .base import CacheShape


class Prefix(NamedTuple):
    """Trained keys and values [layers, 1, kv_heads, rows, head_dim] that every token sees before its own sequence."""

    keys: torch.Tensor
    values: torch.Tensor

    @property
    def rows(self) -> int:
        return self.keys.shape[3]

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes


class KVCache:
    """Keys and values of one sequence, `capacity` positions of them allocated and touched at once.

    `length` positions are filled. A forward writes each layer's rows behind them and moves `length` at its end, so that
    a forward that was interrupted leaves the cache as it was. A prefix's rows stand before them; they have no position,
    count in neither number, and stay.
    """

    def __init__(
        self,
        shape: CacheShape,
        capacity: int,
        dtype: torch.dtype,
        device: str | torch.device,
        prefix: Prefix | None = None,
    ) -> None:
        if capacity < 1:
            raise ValueError(f"a cache needs room for at least one position, not {capacity}")
        self._start = 0 if prefix is None else prefix.rows
        size = (shape.layers, 1, shape.kv_heads, self._start + capacity, shape.head_dim)
        self.keys = _touched(size, dtype, device)
        self.values = _touched(size, dtype, device)
        if prefix is not None:
            self.keys[:, :, :, : self._start] = prefix.keys
            self.values[:, :, :, : self._start] = prefix.values
        self.capacity = capacity
        self.length = 0
        #: What an architecture must remember of the prompt, such as where ChatGLM-6B's [gMASK] stands.
        self.memory: dict[str, int] = {}
        #: Called with the layer's number as each layer attends; it may raise to stop the forward.
        self.on_layer: Callable[[int], None] | None = None

    def append(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes [1, kv_heads, time, head_dim] behind the filled part; returns all keys and values up to there.

        A prefix's rows come first among them.
        """
        if self.on_layer is not None:
            self.on_layer(layer)
        needed = self.length + keys.shape[2]
        if needed > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} positions, {needed} are needed")
        start, end = self._start + self.length, self._start + needed
        self.keys[layer, :, :, start:end] = keys
        self.values[layer, :, :, start:end] = values
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def advance(self, time: int) -> None:
        """Counts `time` more positions as filled: every layer has written them."""
        self.length += time

    def truncate(self, length: int) -> None:
        """Forgets all but the first `length` positions."""
        if not 0 <= length <= self.length:
            raise ValueError(f"can't truncate a cache of {self.length} positions to {length}")
        self.length = length
        if length == 0:
            self.memory.clear()

    def copy(self, other: KVCache, length: int) -> None:
        """Begins with the first `length` positions of another cache of the same model; what was here is forgotten."""
        if not 0 <= length <= min(other.length, self.capacity):
            raise ValueError(f"can't copy {length} of {other.length} positions into a cache of {self.capacity}")
        end = self._start + length
        self.keys[:, :, :, :end] = other.keys[:, :, :, :end]
        self.values[:, :, :, :end] = other.values[:, :, :, :end]
        self.length = length

    def grow(self, capacity: int) -> None:
        """Makes room for more positions. Beside it, only the new keys or the new values are in memory at once."""
        self.keys = self._larger(self.keys, capacity)
        self.values = self._larger(self.values, capacity)
        self.capacity = capacity

    def _larger(self, rows: torch.Tensor, capacity: int) -> torch.Tensor:
        end = self._start + self.length
        larger = _touched((*rows.shape[:3], self._start + capacity, rows.shape[4]), rows.dtype, rows.device)
        larger[:, :, :, :end] = rows[:, :, :, :end]
        return larger

    def rows(self, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Views of the keys and the values of some positions, each [layers, 1, kv_heads, stop - start, head_dim]."""
        places = slice(self._start + start, self._start + stop)
        return self.keys[:, :, :, places], self.values[:, :, :, places]

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes


def _touched(size: tuple[int, ...], dtype: torch.dtype, device: str | torch.device) -> torch.Tensor:
    # empty + fill: zeros() would leave the pages untouched, and memory would run out in the middle of a reply.
    return torch.empty(size, dtype=dtype, device=device).fill_(0)
