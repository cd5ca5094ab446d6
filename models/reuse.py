"""Caches of the prompts and replies of late: the next prompt starts where it first differs from one of them.

They are found by their ids alone, so that a follow-up, an edited question, another reply and a conversation that begins
with the same passages all find what they share. A pool belongs to one model as it was loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .blocks import Blocks
from .cache import KVCache
from .prompts import shared

if TYPE_CHECKING:
    from .loader import LoadedModel

#: Caches have room for a multiple of this, or for the whole window: a few turns fit before one has to grow.
STEP = 512
#: Fewer tokens than this are not worth a cache of their own: reading them again takes about as long.
FEWEST = 16


@dataclass
class Kept:
    """A cache, and the ids whose keys and values it holds; while it is at work, those that it is to hold."""

    ids: list[int]
    cache: KVCache


class CachePool:
    """The caches of one model, `budget` bytes of them at most, the one that is at work included.

    That one is given out even where it alone takes more: without it there is no reply. `before` is called with the
    bytes that are about to be allocated; it may raise. `stopping` are errors by which work is stopped on purpose.
    `blocks` is where keys and values are kept on disk.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        budget: int,
        before: Callable[[int], None] = lambda nbytes: None,
        stopping: tuple[type[Exception], ...] = (),
        blocks: Blocks | None = None,
    ) -> None:
        self._loaded = loaded
        self._budget = budget
        self._before = before
        self._stopping = (GeneratorExit, *stopping)
        self._blocks = blocks
        self._kept: list[Kept] = []  # from the one that was used longest ago
        self._lent = 0

    @property
    def nbytes(self) -> int:
        """Bytes of all caches."""
        return sum(kept.cache.nbytes for kept in self._kept) + self._lent

    def __len__(self) -> int:
        return len(self._kept)

    def reusable(self, ids: Sequence[int], room: int) -> int:
        """How many of a prompt's ids need not be read, in a cache for `room` positions."""
        capacity = self._capacity(room)
        nearest, common = self._nearest(ids, capacity)
        return max(common, self._on_disk(ids, capacity, common))

    @contextmanager
    def lend(self, ids: Sequence[int], room: int) -> Iterator[Kept]:
        """A cache for `room` positions that holds as many of the first ids as any here.

        What is written is to be added to the loan's ids. It comes back when the work is over or was stopped; where it
        failed, the cache is thrown away.
        """
        loan = Kept(list(ids), self._take(ids, room))
        self._lent = loan.cache.nbytes
        try:
            yield loan
        except self._stopping:  # what was read is right
            self._put_back(loan)
            raise
        except Exception:
            self._lent = 0
            raise
        self._put_back(loan)

    def free(self, nbytes: int, measure: Callable[[], int]) -> int:
        """Throws caches away, the oldest first, until `measure` says that so many bytes are free; returns how many."""
        while (free := measure()) < nbytes and self._kept:
            del self._kept[0]
        return free

    def clear(self) -> None:
        self._kept.clear()

    def _take(self, ids: Sequence[int], room: int) -> KVCache:
        capacity = self._capacity(room)
        nearest, common = self._nearest(ids, capacity)
        cache = self._new(capacity, ()) if nearest is None else self._continued(nearest, common, capacity)
        if self._on_disk(ids, capacity, common):
            self._blocks.load(ids[:-1], cache, self._loaded.model.scaled_for(capacity))
        return cache

    def _continued(self, nearest: Kept, common: int, capacity: int) -> KVCache:
        """A cache that begins as another does: a copy, or that one itself."""
        lost = len(nearest.ids) - common
        if lost > FEWEST and self._can_keep(nearest, capacity, lost):
            cache = self._new(capacity, (nearest,))
            cache.copy(nearest.cache, common)
            return cache
        self._kept.remove(nearest)
        cache = nearest.cache
        cache.truncate(common)
        if cache.capacity < capacity:
            self._make_room(self._bytes(capacity), ())
            self._before(self._bytes(capacity) // 2)
            cache.grow(capacity)
        return cache

    def _on_disk(self, ids: Sequence[int], capacity: int, common: int) -> int:
        """How many ids are on disk, if that is more than are in a cache already; else 0."""
        if self._blocks is None or not self._loaded.model.causal_prompt:
            return 0
        held = self._blocks.held(ids[:-1], self._loaded.model.scaled_for(capacity))
        return held if held > common else 0

    def _nearest(self, ids: Sequence[int], capacity: int) -> tuple[Kept | None, int]:
        """The cache that shares most with a prompt, and how much; the last id is read in any case."""
        scaled_for = self._loaded.model.scaled_for
        found, longest = None, FEWEST - 1
        for kept in reversed(self._kept):
            common = min(shared(kept.ids, ids), len(ids) - 1)
            if common > longest and scaled_for(kept.cache.capacity) == scaled_for(capacity):
                found, longest = kept, common
        return (found, longest) if found else (None, 0)

    def _capacity(self, room: int) -> int:
        """A multiple of STEP, unless that were more than the window, or would scale positions in another way."""
        model, window = self._loaded.model, max(self._loaded.context, room)
        rounded = min(-(-room // STEP) * STEP, window)
        if model.scaled_for(room) == model.scaled_for(1):  # as short ones are
            return rounded if model.scaled_for(rounded) == model.scaled_for(1) else room
        return window

    def _bytes(self, capacity: int) -> int:
        return self._loaded.needs.cache(self._loaded.tier, capacity)

    def _can_keep(self, nearest: Kept, capacity: int, lost: int) -> bool:
        """Whether a copy of a cache's beginning costs less than cutting it there would: the tokens that would go."""
        needed = self.nbytes + self._bytes(capacity) - self._budget
        gone = 0
        for kept in self._kept:
            if needed <= 0 or kept is nearest:
                break
            needed, gone = needed - kept.cache.nbytes, gone + len(kept.ids)
        return needed <= 0 and gone < lost

    def _new(self, capacity: int, stay: Sequence[Kept]) -> KVCache:
        nbytes = self._bytes(capacity)
        self._make_room(nbytes, stay)
        self._before(nbytes)
        return self._loaded.new_cache(capacity)

    def _make_room(self, nbytes: int, stay: Sequence[Kept]) -> None:
        """Throws caches away, the oldest first, until so many bytes more are within the budget."""
        for kept in list(self._kept):
            if self.nbytes + nbytes <= self._budget:
                return
            if kept not in stay:
                self._kept.remove(kept)

    def _put_back(self, loan: Kept) -> None:
        self._lent, cache = 0, loan.cache
        cache.on_layer = None
        cache.truncate(min(cache.length, len(loan.ids)))  # a draft may have gone further than what was asked for
        ids = loan.ids[: cache.length]
        if not self._loaded.model.causal_prompt or len(ids) < FEWEST:
            return
        if self._blocks is not None:
            self._blocks.keep(ids, cache, self._loaded.model.scaled_for(cache.capacity))
        self._kept = [kept for kept in self._kept if shared(kept.ids, ids) < len(kept.ids)]  # it holds all of theirs
        self._make_room(cache.nbytes, ())
        if cache.nbytes <= self._budget:
            self._kept.append(Kept(ids, cache))
