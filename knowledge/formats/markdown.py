"""Markdown: headings, tables, and everything else as it is written."""

import re
from collections.abc import Iterator

from knowledge.formats.plain import read_text
from knowledge.pages import Block, Page, Report

_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_FENCE = re.compile(r" {0,3}(```+|~~~+)")
_HEADING = re.compile(r" {0,3}(#{1,6})\s+(.*?)\s*#*\s*$")
_UNDERLINE = re.compile(r" {0,3}(=+|-{2,})\s*$")
_TABLE_RULE = re.compile(r"\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$")


def read_markdown(data: bytes, name: str, password: str | None, report: Report) -> list[Page]:
    """One page without a number, with a block for each heading and table."""
    (page,) = read_text(data, name, password, report)
    return [Page(None, tuple(_blocks(_COMMENT.sub("", page.text).split("\n"))))]


def _blocks(lines: list[str]) -> Iterator[Block]:
    prose: list[str] = []
    fence = None
    place = 0
    while place < len(lines):
        line = lines[place]
        marks = _FENCE.match(line)
        if marks and (fence is None or line.strip().startswith(fence)):
            fence = marks[1] if fence is None else None
        special = None if fence or marks else _heading(lines, place) or _table(lines, place)
        if special:
            yield from _prose(prose)
            prose = []
            block, count = special
            yield block
            place += count
        else:
            prose.append(line)
            place += 1
    yield from _prose(prose)


def _prose(lines: list[str]) -> Iterator[Block]:
    text = "\n".join(lines).strip()
    if text:
        yield Block(text)


def _heading(lines: list[str], place: int) -> tuple[Block, int] | None:
    """The heading that begins here, if one does, and how many lines it takes."""
    line = lines[place]
    match = _HEADING.match(line)
    if match and match[2]:
        return Block(match[2], len(match[1])), 1
    below = _UNDERLINE.match(lines[place + 1]) if place + 1 < len(lines) else None
    alone = place == 0 or not lines[place - 1].strip()
    if below and alone and line.strip() and "|" not in line and not line.startswith((" ", "\t", "-", ">", "*")):
        return Block(line.strip(), 1 if "=" in below[1] else 2), 2
    return None


def _table(lines: list[str], place: int) -> tuple[Block, int] | None:
    """The table that begins here, if one does, and how many lines it takes."""
    if "|" not in lines[place] or place + 1 >= len(lines) or "|" not in lines[place + 1]:
        return None
    if not _TABLE_RULE.match(lines[place + 1]):
        return None
    end = place + 2
    while end < len(lines) and "|" in lines[end]:
        end += 1
    rows = "\n".join(line.strip() for line in lines[place + 2 : end])
    return Block(rows, header=lines[place].strip()), end - place
