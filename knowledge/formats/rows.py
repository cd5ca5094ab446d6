"""Rows of cells as lines of text."""

from collections.abc import Iterable, Sequence

from knowledge.pages import Block

_TITLE_ROWS = 4


def row_line(cells: Iterable[str]) -> str:
    """A row as a line: cells with bars between them, without line ends of their own, empty ones at the end left out."""
    texts = [" ".join(cell.split()).replace("|", "/") for cell in cells]
    while texts and not texts[-1]:
        texts.pop()
    return " | ".join(texts)


def table(rows: Iterable[Sequence[str]]) -> Block | None:
    """Rows of cells as a block, or None if all are empty.

    The first row names the columns; where it has a single cell, which is a title, the next one with several does too.
    """
    lines = [line for line in map(row_line, rows) if line]
    if not lines:
        return None
    several = (count for count, line in enumerate(lines[:_TITLE_ROWS], start=1) if " | " in line)
    head = next(several, 1)
    return Block("\n".join(lines[head:]), header="\n".join(lines[:head]))
