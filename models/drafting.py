"""Guessing the next tokens from the context: where an answer repeats its prompt or itself, it goes on as that did.

One pass checks all that is guessed, each token as if it had been written alone: what is chosen is what would have been
chosen without a guess, so greedy and sampled replies alike stay as they were.

The idea is prompt lookup decoding (Saxena, 2023), with a length that follows from what passes cost and guesses earn.
"""

from __future__ import annotations

from collections.abc import Sequence

from .fused import MOST_ROWS

#: Tokens of a place that are looked up, and how far back from there two places are compared.
KEY, LONGEST = 4, 16
#: Tokens that are guessed at first; while all are right, each guess is twice as long as the one before.
FIRST, MOST = 3, MOST_ROWS - 1
#: By how many tokens two places agree at least: what share of guesses is likely to be right, before any was checked.
LIKELY = {4: 0.7, 8: 0.9, 12: 0.95, LONGEST: 0.97}
#: How many checked tokens these shares weigh as much as, and how many are remembered.
WEIGHT, MEMORY = 16, 256
#: A guess must be expected to earn this much more than a token alone costs.
GAIN = 1.05
#: What guesses may have cost in vain: single passes, and such as a share of all tokens.
LOSS, LOSS_SHARE = 1.0, 0.01
#: What a further row costs, as a share of a pass with one, before any was measured.
COST = 0.5
#: How much a new measurement of a pass counts.
NEW = 0.2
#: Single passes that are measured before any guess.
MEASURED = 4


class Lookup:
    """Guesses for one model, whose passes it measures. `begin` starts with another sequence; what was learnt stays."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}  # by the rows of a pass
        self._singles = 0
        self._checked = {agreed: [0.0, 0.0] for agreed in LIKELY}  # right ones, and all
        self.begin()

    def begin(self) -> None:
        """Another sequence."""
        self._places: dict[tuple[int, ...], int] = {}  # where what follows KEY tokens stands, and stood before it
        self._before: dict[int, int] = {}
        self._known = 0
        self._longest = FIRST
        self._agreed = KEY
        self._saved = 0.0  # seconds
        self._written = 0
        self.proposed = 0
        self.accepted = 0

    @property
    def acceptance(self) -> float | None:
        """The share of guesses that were right; None where there were none."""
        return self.accepted / self.proposed if self.proposed else None

    def propose(self, seen: Sequence[int], most: int) -> list[int]:
        """The tokens that may follow `seen`, `most` of them at most; mostly none."""
        self._learn(seen)
        at = self._place(seen)
        if at is None or self._singles < MEASURED or self._has_lost:
            return []
        self._agreed = max(agreed for agreed in LIKELY if agreed <= _agreement(seen, at))
        length = self._length(min(most, self._longest, MOST))
        return _continued(seen, at, length)

    def checked(self, proposed: int, accepted: int, seconds: float) -> None:
        """Of so many guesses so many were right; the pass that said so took that long."""
        rows = 1 + proposed
        known = self._seconds.get(rows, seconds)
        self._seconds[rows] = known + NEW * (seconds - known)
        self._written += 1 + accepted
        if not proposed:
            self._singles += 1
            return
        self.proposed += proposed
        self.accepted += accepted
        self._saved += (1 + accepted) * self._seconds[1] - seconds
        right = self._checked[self._agreed]
        right[0] += accepted
        right[1] += min(accepted + 1, proposed)
        if right[1] > MEMORY:
            right[:] = [count / 2 for count in right]
        self._longest = 2 * self._longest + 1 if accepted == proposed else FIRST

    @property
    def _has_lost(self) -> bool:
        return self._saved < -(LOSS + LOSS_SHARE * self._written) * self._seconds[1]

    def _learn(self, seen: Sequence[int]) -> None:
        """Notes where each KEY tokens are followed by what; the last ones are followed by nothing yet."""
        for end in range(max(self._known, KEY), len(seen)):
            key = tuple(seen[end - KEY : end])
            if (earlier := self._places.get(key)) is not None:
                self._before[end] = earlier
            self._places[key] = end
        self._known = max(self._known, len(seen))

    def _place(self, seen: Sequence[int]) -> int | None:
        """Where what the sequence ends with stood before: of the last few such places the one that agrees most."""
        at = self._places.get(tuple(seen[-KEY:]))
        best, longest = None, 0
        for _ in range(4):
            if at is None:
                break
            if (agreed := _agreement(seen, at)) > longest:
                best, longest = at, agreed
            at = self._before.get(at)
        return best

    def _length(self, most: int) -> int:
        """How many guesses earn most for what their pass costs; 0 where none earns enough."""
        right, checked = self._checked[self._agreed]
        likely = (LIKELY[self._agreed] * WEIGHT + right) / (WEIGHT + checked)
        best, length = GAIN, 0
        expected, still = 1.0, 1.0
        for count in range(1, most + 1):
            still *= likely
            expected += still
            if (gain := expected * self._seconds[1] / self._estimate(1 + count)) > best:
                best, length = gain, count
        return length

    def _estimate(self, rows: int) -> float:
        """Seconds of a pass: as measured, or in line with the measured one whose rows are nearest."""
        if rows in self._seconds:
            return self._seconds[rows]
        single = self._seconds[1]
        nearest = min(self._seconds.keys() - {1}, key=lambda known: abs(known - rows), default=None)
        if nearest is None:
            return single * (1 + COST * (rows - 1))
        return single + (self._seconds[nearest] - single) / (nearest - 1) * (rows - 1)


def _agreement(seen: Sequence[int], at: int) -> int:
    """How many tokens before `at` are those that the sequence ends with, LONGEST at most."""
    agreed = KEY
    while agreed < min(LONGEST, at) and seen[at - 1 - agreed] == seen[-1 - agreed]:
        agreed += 1
    return agreed


def _continued(seen: Sequence[int], at: int, length: int) -> list[int]:
    """What followed at a place; where that reaches the end, it goes on as if it repeated itself."""
    period = len(seen) - at
    return [seen[at + step % period] for step in range(length)]
