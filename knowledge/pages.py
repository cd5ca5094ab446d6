"""What files are read into: pages of blocks. And what is said of a file that cannot be read."""

from collections.abc import Callable
from dataclasses import dataclass

Report = Callable[[float], None]
"""Told how much of a file has been read, from 0 to 1; what it raises ends the reading."""


class DocumentError(Exception):
    """A file that cannot be read. `str()` is one sentence: the file's name, what is wrong, what to do."""

    def __init__(self, name: str, reason: str):
        super().__init__(f"{name} {reason}.")
        self.name = name
        self.reason = reason


class PasswordError(DocumentError):
    """A file that opens with a password only, or with another one than was given: `reason` is one of these."""

    MISSING = "needs a password to open; give it, or save a copy without one"
    WRONG = "does not open with this password; try another one"


@dataclass(frozen=True)
class Block:
    """A stretch of text that belongs together.

    level: of a heading, from 1; 0 for anything else. header: of a table, the line that names its columns, which is to
    stand before any of its rows; `text` then has a row in each line, without the header. None for anything else.
    """

    text: str
    level: int = 0
    header: str | None = None

    def __str__(self) -> str:
        return f"{self.header}\n{self.text}".strip() if self.header else self.text


@dataclass(frozen=True)
class Page:
    """A page, slide or sheet, or the whole of a file that has none of them.

    number: from 1, None where nothing is numbered. label: the name of a sheet. apart: headings of the page before it
    do not stand over it. scanned: there is a picture in the place of text, and nothing here can read it.
    """

    number: int | None
    blocks: tuple[Block, ...] = ()
    label: str | None = None
    apart: bool = False
    scanned: bool = False

    @property
    def text(self) -> str:
        """Blocks with an empty line between them."""
        return "\n\n".join(str(block) for block in self.blocks)


def plain(number: int | None, text: str) -> Page:
    """A page of nothing but running text."""
    return Page(number, (Block(text),) if text else ())
