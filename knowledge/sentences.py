"""The sentences of an answer in Chinese or English while it is still being written, as Markdown."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

_CLOSING = "”’」』）》\"')\\]*_"
#: Not behind one of these does a full stop end a sentence; what looks behind needs a fixed length.
ABBREVIATIONS = "".join(
    rf"(?<!\b(?:{words}))"
    for words in (
        r"Mr|Ms|Dr|St|Jr|Sr|Lt|Mt|Ft|Co|No|vs|al|ca|cf|pp",
        r"Mrs|Rev|Gen|Col|Sgt|Maj|Gov|Sen|Rep|Hon|Inc|Ltd|Fig|e\.g|i\.e",
        r"Prof|Capt|Corp",
    )
)
# A full stop ends nothing after a number of a list, an initial or an abbreviation.
_END = re.compile(
    rf"[。！？]+[{_CLOSING}]*(?=[^{_CLOSING}])|[!?]+[{_CLOSING}]*(?=\s)"
    rf"|(?<![\s.][A-Z])(?<!^[A-Z])(?<!\betc){ABBREVIATIONS}"
    rf"\.+[{_CLOSING}]*(?=\s)"
)
_FENCE = re.compile(r"^\s{0,3}(`{3,}|~{3,})")
_MATHS = re.compile(r"^\s*(?:\$\$|\\\[|\\\])")
_APART = re.compile(r"^\s*(?:#{1,6}\s|\||(?:[-*_]\s*){3,}$|<|:?-{2,})")  # headings, tables, rules, HTML
_MARKER = re.compile(r"^[ \t>]*(?:[-*+•][ \t]+|\d{1,3}[.)、][ \t]*)?(?:\[[ xX]\][ \t]+)?")


def _cuts(line: str, whole: bool) -> Iterator[tuple[int, int]]:
    """From and to of each sentence in a line; its last one only if the line is `whole` or something ends it."""
    start = 0
    for match in _END.finditer(f"{line}\n" if whole else line):
        yield start, match.end()
        start = match.end()
    if whole and line[start:].strip():
        yield start, len(line)


def is_ended(text: str) -> bool:
    """Whether something ends the sentence. A full stop behind a number does not: its decimals may be missing."""
    ends = [match.end() for match in _END.finditer(f"{text}\n")]
    return ends[-1:] == [len(text)] and not re.search(r"[0-9]\.$", text)


@dataclass(frozen=True)
class Piece:
    """A sentence from start to end of the whole text, without what makes it an item of a list."""

    start: int
    end: int
    text: str


class Sentences:
    """Finds the sentences of Markdown that comes piece by piece. Code, formulas, tables and headings have none."""

    def __init__(self):
        self._text = ""
        self._line = 0  # where the line begins that is being written
        self._done = 0  # up to where sentences were given out
        self._fence = ""

    def feed(self, text: str) -> list[Piece]:
        """The sentences that are complete now and were not before."""
        self._text += text
        found = []
        while (end := self._text.find("\n", self._line)) >= 0:
            found += self._of_line(end, whole=True)
            self._line = self._done = end + 1
        return found + self._of_line(len(self._text), whole=False)

    def end(self) -> list[Piece]:
        """What is left, as a sentence."""
        return self._of_line(len(self._text), whole=True)

    def _of_line(self, end: int, whole: bool) -> list[Piece]:
        line = self._text[self._line : end]
        if self._is_apart(line, whole):
            return []
        begin = max(self._done, self._line + _MARKER.match(line).end())
        found = []
        for start, stop in _cuts(self._text[begin:end], whole):
            text = self._text[begin + start : begin + stop]
            self._done = begin + stop
            if any(map(str.isalnum, text)):
                found.append(
                    Piece(
                        begin + start + len(text) - len(text.lstrip()), begin + len(text.rstrip()) + start, text.strip()
                    )
                )
        return found

    def _is_apart(self, line: str, whole: bool) -> bool:
        """Whether a line has no sentences; a whole one may open or close a block of code or a formula."""
        fence = _FENCE.match(line) or _MATHS.match(line)
        if fence and whole:
            mark = fence[0].strip()[0]
            opened = self._fence
            if not opened:
                one_line = mark in "$\\" and re.search(r"\S\s*(?:\$\$|\\\])\s*$", line[fence.end() :])
                self._fence = "" if one_line else mark
            elif mark == opened:
                self._fence = ""
            return True
        return bool(self._fence or fence or _APART.match(line))
