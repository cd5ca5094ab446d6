"""What the model was given and wrote in turns of late, for clients that send back a conversation's words alone.

With its passages and its tokens an earlier exchange stands in the next prompt as it was read, and is not read again.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence

from .conversation import Turn

#: Exchanges that are remembered: a passage or five each, so some hundred kilobytes.
MOST = 256


class Recall:
    """Exchanges by all that was said up to their end; the ones that were asked for longest ago are forgotten first."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._kept: OrderedDict[bytes, tuple[Turn, Turn]] = OrderedDict()
        self._lock = threading.Lock()

    def keep(self, history: Sequence[Turn], asked: Turn, replied: Turn) -> None:
        """Remembers an exchange behind what was said before it."""
        *_, said = _said([*history, asked, replied])
        with self._lock:
            self._kept[said] = asked, replied
            self._kept.move_to_end(said)
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)

    def completed(self, history: Sequence[Turn]) -> list[Turn]:
        """The turns, with what is remembered of them."""
        turns = list(history)
        with self._lock:
            for end, said in enumerate(_said(history), start=1):
                if said in self._kept:
                    self._kept.move_to_end(said)
                    turns[end - 2 : end] = self._kept[said]
        return turns


def _said(turns: Sequence[Turn]) -> Iterator[bytes]:
    """Of each turn what stands for all that was said up to it. Clients may trim what they were sent."""
    said = hashlib.sha256()
    for turn in turns:
        said.update(json.dumps([turn.role, turn.content.strip()]).encode())
        yield said.digest()
