"""Texts in Chinese and others: their language, and how the full-text index sees them.

It has Chinese by pairs of characters, other words by their beginnings.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

#: Scripts that put no spaces between words: Han, kana, hangul.
UNSPACED = "\u3005-\u3007\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
HAN = re.compile(r"[\u3400-\u9fff]")
UNSPACED_RUN = re.compile(f"[{UNSPACED}]+")
#: A run of those, or a word of letters and digits; the index takes an underscore for a space.
PART = re.compile(f"[{UNSPACED}]+|[^\\W_{UNSPACED}]+")
WORD_STARTS = f"(?<![^\\W_{UNSPACED}])"

#: Characters of a snippet before the hit and behind it.
BEFORE, BEHIND = 24, 60


@dataclass(frozen=True)
class Snippet:
    """Where a text holds what was searched for."""

    before: str
    hit: str
    behind: str


def whole_characters(text: str) -> str:
    """Text that can be encoded: half of a character, as a broken client sends it, becomes a question mark."""
    return text.encode("utf-8", "replace").decode()


def in_chinese(text: str) -> bool:
    """Whether a text is to be answered in Chinese rather than in English."""
    return HAN.search(text) is not None


def folded(text: str) -> str:
    """Full-width and half-width forms, capitals and small letters made alike."""
    return unicodedata.normalize("NFKC", text).casefold()


def indexed(text: str) -> str:
    """The words of a text for an FTS5 table.

    A run of Chinese becomes its overlapping pairs and its last character, so that words of one or two characters are
    found, which FTS5's trigrams can't do.
    """
    return " ".join(word for part in PART.findall(folded(text)) for word in _words(part))


def _words(part: str) -> Iterator[str]:
    if not UNSPACED_RUN.fullmatch(part):
        yield part
        return
    yield from (part[at : at + 2] for at in range(len(part)))


def query(text: str) -> str:
    """The FTS5 query for texts that hold every part of what was typed; empty if there is nothing to look for."""
    return " ".join(_term(part) for part in PART.findall(folded(text)))


def _term(part: str) -> str:
    if len(part) > 1 and UNSPACED_RUN.fullmatch(part):
        return f'"{" ".join(part[at : at + 2] for at in range(len(part) - 1))}"'
    return f'"{part}" *'


def snippet(text: str, searched: str) -> Snippet:
    """The surroundings of the first hit in a text, or its beginning where the hit is not in it."""
    letters = [folded(letter) for letter in text]
    origin = [at for at, letter in enumerate(letters) for _ in letter]
    found = _first("".join(letters), searched)
    start, stop = (origin[found[0]], origin[found[1] - 1] + 1) if found else (0, 0)
    before, behind = text[max(start - BEFORE, 0) : start], text[stop : stop + BEHIND]
    return Snippet(
        ("…" if start > BEFORE else "") + _one_line(before),
        _one_line(text[start:stop]),
        _one_line(behind) + ("…" if stop + BEHIND < len(text) else ""),
    )


def _first(text: str, searched: str) -> tuple[int, int] | None:
    for part in PART.findall(folded(searched)):
        starts = "" if UNSPACED_RUN.fullmatch(part) else WORD_STARTS
        if match := re.search(starts + re.escape(part), text):
            return match.span()
    return None


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text)
