"""A sentence laid along the passage that it follows: where the two agree, and what stands in one place of both.

Whoever changes a name, a number or a word leaves its neighbours as they were: what was put in stands between the same
words as what it replaced, even if the passage has it too, elsewhere.
"""

import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import Match, SequenceMatcher
from itertools import pairwise

from knowledge.terms import fold

_TOKEN = re.compile(r"\d+(?:[.,]\d+)*|[〇零一二两三四五六七八九十百千万亿]+|[\u3400-\u9fff]|[^\W\u3400-\u9fff]+")
_LONGEST, _HELD = 4.0, 8.0  # words in a place of each: longer ones are put in other words, not replaced
_NAME = 2.0  # words that a name has
_FLANK = 3.0  # words beside it, from where on more say nothing


def tokens(text: str) -> list[str]:
    """Chinese characters, whole numbers and other words, folded."""
    return _TOKEN.findall(fold(text))


def size(words: Sequence[str]) -> float:
    """Of tokens, in words: two Chinese characters are about one."""
    return sum(0.5 if "\u3400" <= word <= "\u9fff" else 1.0 for word in words)


@dataclass(frozen=True)
class Place:
    """What a sentence says (`said`) where the passage says something else (`held`).

    before, after: how much of what stands beside it is the same, 0 to 1. left, right: the two words before it and the
    one behind it that both have, or fewer. moved: words of it that the passage has before the same two words, but
    elsewhere.
    """

    said: tuple[str, ...]
    held: tuple[str, ...]
    before: float
    after: float
    left: tuple[str, ...] = ()
    right: tuple[str, ...] = ()
    moved: frozenset[str] = frozenset()


class Alignment:
    """Tokens of a sentence beside those of a passage's best clauses."""

    def __init__(self, said: Sequence[str], held: Sequence[str], *, whole: bool = False):
        """whole: `held` is a whole sentence too, so that the two begin at the same place."""
        self._said, self._held, self._whole = list(said), list(held), whole
        self._blocks = SequenceMatcher(None, said, held, autojunk=False).get_matching_blocks()[:-1]

    @property
    def in_order(self) -> float:
        """How much of the sentence stands in the clauses in the same order, 0 to 1."""
        enough = len(self._said) < 4
        return sum(block.size for block in self._blocks if block.size > 1 or enough) / max(len(self._said), 1)

    def places(self) -> Iterator[Place]:
        """Where a few words stand between words of the passage, or before the first of them, but others than there."""
        beginning = [Match(0, 0, 0)] if self._whole else []
        for before, after in pairwise([*beginning, *self._blocks]):
            start = before.a + before.size
            said = self._said[start : after.a]
            held = self._held[before.b + before.size : after.b]
            if said and held and size(said) <= _LONGEST and size(held) <= _HELD and not self._is_moved(said):
                left = self._said[max(before.a, start - 2) : start]
                right = self._said[after.a : after.a + 1]
                flanks = self._flank(before), self._flank(after)
                yield Place(tuple(said), tuple(held), *flanks, tuple(left), tuple(right), self._moved(start, after.a))

    @functools.cached_property
    def _held_threes(self) -> set[tuple[str, ...]]:
        return {tuple(self._held[at : at + 3]) for at in range(len(self._held) - 2)}

    def _moved(self, start: int, end: int) -> frozenset[str]:
        """Words from start to end that the clauses have before the same two words, be it elsewhere."""
        return frozenset(
            self._said[at] for at in range(start, end) if tuple(self._said[at : at + 3]) in self._held_threes
        )

    def _flank(self, block: Match) -> float:
        """How much a block says beside a place; a sentence's start or end says as much as a word."""
        ends = (block.a == 0) + (block.a + block.size == len(self._said))
        return min((size(self._said[block.a : block.a + block.size]) + ends) / _FLANK, 1)

    def _is_moved(self, said: Sequence[str]) -> bool:
        """Whether more than a name stands elsewhere in the clauses."""
        length = len(said)
        return size(said) > _NAME and any(
            self._held[at : at + length] == said for at in range(len(self._held) - length + 1)
        )
