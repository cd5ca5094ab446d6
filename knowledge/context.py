"""A passage where it stands in what was read of its document: for files that have no pages to show."""

from collections.abc import Sequence
from dataclasses import dataclass

from knowledge import letters
from knowledge.pages import Page

_AROUND = 1_000  # characters before and behind a passage


@dataclass(frozen=True)
class Context:
    """page, label: of the page, slide or sheet. row: in which it begins, of a sheet, counted from 1. before, passage,
    after: the text. headings: over the passage, from the highest."""

    page: int | None
    label: str | None
    row: int
    before: str
    passage: str
    after: str
    headings: tuple[str, ...] = ()


def context(pages: Sequence[Page], number: int | None, text: str) -> Context | None:
    """`text` on the page with this number, or on any where the file has no numbers; None if it is not there."""
    for page in pages:
        place = letters.extent(page.text, text) if number in (None, page.number) else None
        if place is not None:
            start, end = place
            return Context(
                page.number,
                page.label,
                page.text.count("\n", 0, start) + 1,
                page.text[max(0, start - _AROUND) : start],
                page.text[start:end],
                page.text[end : end + _AROUND],
            )
    return None
