"""Text to ids and back. Text never yields a control token, and control tokens never show in text.

What every tokenizer promises is here; models/tokenizers/ reads the files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Protocol

from .tokenizers.base import Place
from .tokenizers.bpe import FastTokenizer, byte_level_tokenizer
from .tokenizers.pieces import PieceTokenizer
from .tokenizers.reading import read_tokenizer

__all__ = [
    "FastTokenizer",
    "PieceTokenizer",
    "Place",
    "StreamDecoder",
    "Tokenizer",
    "byte_level_tokenizer",
    "read_tokenizer",
]

REPLACEMENT = "\ufffd"
#: A character has at most four bytes; a run of this many tokens without one is damage and is shown as such.
MOST_PENDING = 8


class Tokenizer(Protocol):
    kind: ClassVar[str]  #: how it cuts text, as the field calls it
    controls: Mapping[str, int]  #: control tokens by name
    prefix_ids: Sequence[int]  #: what every sequence starts with, such as <s>
    suffix_ids: Sequence[int]  #: what every prompt ends with: ChatGLM-6B's [gMASK] and <sop>
    eos_id: int | None

    def encode(self, text: str, after: Place = "start") -> list[int]:
        """Ids of a text that stands at the start of a sequence, behind a control token or behind other text."""

    def decode(self, ids: Sequence[int]) -> str: ...

    def __len__(self) -> int: ...


class StreamDecoder:
    """Ids in, text out, a piece at a time and never half a character: a Chinese character can be several tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        # Where the window starts. What is decoded must begin with visible text, since the first text of all loses the
        # space in front of it, and with some tokenizers every space.
        self._context = 0
        self._shown = 0  # how many ids have been given out as text
        self._given = 0  # how many characters of the text behind them have been given out too
        self._waiting = 0  # for how many ids no text has become certain

    def push(self, token: int) -> str:
        """The text that has become certain with this id; empty while a character is incomplete."""
        self._ids.append(token)
        text = self._tail()
        certain = text.rstrip(REPLACEMENT)
        if certain == text or self._waiting == MOST_PENDING:
            return self._all_of(text)
        # A token may complete one character and begin the next: the complete one need not wait.
        piece, self._given = certain[self._given :], len(certain)
        self._waiting = 0 if piece else self._waiting + 1
        return piece

    def flush(self) -> str:
        """What was still held back, without the character of which only the beginning came."""
        return self._all_of(self._tail().rstrip(REPLACEMENT))

    def _all_of(self, text: str) -> str:
        piece = text[self._given :]
        if text.strip():
            self._context = self._shown
        self._shown, self._given, self._waiting = len(self._ids), 0, 0
        return piece

    def _tail(self) -> str:
        before = self._tokenizer.decode(self._ids[self._context : self._shown])
        return self._tokenizer.decode(self._ids[self._context :])[len(before) :]
