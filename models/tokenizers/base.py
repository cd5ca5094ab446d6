"""What all tokenizers share: whatever a text holds, no control token comes out of it."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import ClassVar, Literal

#: Names of control tokens that sentencepiece models hold as ordinary or user-defined pieces. Baichuan marks turns with
#: <reserved_N>, Chinese-Alpaca pads with [PAD]; Baichuan's <h2> and ChatGLM-6B's <n> and <|blank_4|> are text.
RESERVED_PIECE = re.compile(r"<reserved_\d+>|<SEP>|<CLS>|\[PAD\]")
#: Tokens added to a vocabulary without saying what they are: bracketed ones are control, others (runs of spaces) text.
BRACKETED = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]")
#: Where a text stands: it opens the sequence, follows a control token, or goes on from other text. Tokenizers that mark
#: the start of words put their mark in front of the first, never the third, and differ on the second.
Place = Literal["start", "control", "text"]


class TextTokenizer:
    """Encodes text through `_encode` of a subclass and takes control tokens out where the vocabulary lets them in."""

    kind: ClassVar[str]
    suffix_ids: Sequence[int] = ()

    def __init__(self, controls: Mapping[str, int], prefix_ids: Sequence[int], eos_id: int | None) -> None:
        self.controls = controls
        self.prefix_ids = prefix_ids
        self.eos_id = eos_id
        self._hidden = frozenset(controls.values())

    def encode(self, text: str, after: Place = "start") -> list[int]:
        ids = self._encode(text, after)
        found = self._hidden.intersection(ids)
        return self._encode_apart(text, after, found) if found else ids

    def _encode(self, text: str, after: Place) -> list[int]:
        raise NotImplementedError

    def _encode_apart(self, text: str, after: Place, found: Collection[int]) -> list[int]:
        """Spells out the names of control tokens: cut behind their first character, they are text like any other."""
        names = [name for name, number in self.controls.items() if number in found and len(name) > 1]
        cuts = "|".join(f"(?<={re.escape(name[0])})(?={re.escape(name[1:])})" for name in names)
        first, *rest = re.split(cuts, text) if names else [text]
        ids = self._encode(first, after)
        for part in rest:
            ids += self._encode(part, "text")
        return [number for number in ids if number not in self._hidden]
