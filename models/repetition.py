"""When a reply does nothing any more but repeat itself: small models do, to the end of their window."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

#: Tokens of the longest cycle that is looked for; how often one, and how many tokens of it, must stand at the end.
LONGEST, TIMES, TOKENS = 64, 6, 128

_CYCLES = np.arange(1, LONGEST + 1)
#: For each cycle, of how many tokens the one that stands a cycle before is the same.
_SAME = np.maximum(TIMES * _CYCLES, TOKENS) - _CYCLES


class Repetition:
    """Whether a reply ends with the same tokens again and again. All cycles are followed at once, token by token.

    One without a letter does not count: rules of tables, lines of dashes and rows of zeros are meant.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._last = np.full(LONGEST, -1)  # the newest first
        self._same = np.zeros(LONGEST, dtype=int)

    def push(self, token: int) -> bool:
        """Whether with this token there is enough of it; told once for each cycle."""
        self._same = (self._same + 1) * (self._last == token)
        self._last[1:] = self._last[:-1]
        self._last[0] = token
        return any(self._has_letters(cycle) for cycle in _CYCLES[self._same == _SAME].tolist())

    def _has_letters(self, cycle: int) -> bool:
        tokens = self._last[:cycle][::-1].tolist()
        return any(map(str.isalpha, self._decode(tokens * 2)))  # twice, for it may begin within a character
