"""How much one attempt at a turn may take, and how to ask for less where memory ran out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from models import CHUNK

#: Tokens read at once where memory is short, and where there is hardly any.
SMALL_CHUNK, SMALLEST_CHUNK = 64, 16


@dataclass(frozen=True)
class Effort:
    """At most so many passages and exchanges (None: all that fit), and tokens that are read at once.

    `timely`: how many passages can be read in the time that a reply may take to begin; the others are left out first.
    """

    passages: int | None = None
    exchanges: int | None = None
    chunk: int = CHUNK
    timely: int | None = None


def _without_lowest_passage(effort: Effort) -> Effort:
    return replace(effort, passages=max(effort.passages - 1, min(effort.passages, 1)))


def _without_oldest_exchange(effort: Effort) -> Effort:
    return replace(effort, exchanges=max(effort.exchanges - 1, 0))


def _in_small_chunks(effort: Effort) -> Effort:
    return replace(effort, chunk=min(effort.chunk, SMALL_CHUNK))


def _with_next_to_nothing(effort: Effort) -> Effort:
    return replace(effort, passages=min(effort.passages, 1), exchanges=0, chunk=min(effort.chunk, SMALLEST_CHUNK))


#: Each is tried once. A question about documents keeps its best passage: without it the model would only invent.
LADDER: tuple[Callable[[Effort], Effort], ...] = (
    _without_lowest_passage,
    _without_oldest_exchange,
    _in_small_chunks,
    _with_next_to_nothing,
)
