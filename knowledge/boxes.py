"""Where a passage stands on the page of its PDF, and pictures of pages.

A passage's text was folded, unwrapped and put together from a page's lines, which say where each of their characters
stands. Both are compared by their letters and digits alone, so that spaces, line ends and hyphens don't matter.
"""

import ctypes
import io
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from knowledge.formats import ocr, pdf
from knowledge.formats.layout import Line
from knowledge.formats.text import count_wide
from knowledge.letters import letters, stretches
from knowledge.pages import DocumentError

_CHARACTER = re.compile("[\ud800-\udbff][\udc00-\udfff]|.", re.DOTALL)
_INSET = 0.04  # of a line's height at each of its ends
_WHOLE = 1_000_000  # the page's sides for PDFium, which gives whole numbers
_LINE_SHARE = 0.4  # of the smaller of two characters, which both share where they stand on one line
_LINE_GAP = 2.5  # characters between two words of a line at most


class Box(NamedTuple):
    """A rectangle in fractions of the page as it is shown, 0 to 1, from its upper left corner."""

    x0: float
    y0: float
    x1: float
    y1: float


def boxes(
    data: bytes | str | os.PathLike, page: int, text: str, password: str | None = None, name: str = ""
) -> list[Box]:
    """The boxes, one for each line or part of one, of what `text` and the page (from 1) have in common.

    data: the PDF or its path; name: what errors call it. A heading of another page, or what stands on the next one, has
    no box here. Pages that are pictures are recognised anew, which takes seconds. Raises DocumentError.
    """
    name = name or ("The document" if isinstance(data, bytes) else Path(data).name)
    with pdf.opened(_content(data), name, password) as document:
        index = _index(document, page, name)
        lines, picture = pdf.page_lines(document, index, name)
        if picture:
            sheet = _recognised(document, index)
        else:
            with pdf.PDFIUM:
                sheet = _printed(document, index, lines)
    found = _joined(_found(sheet.characters, text))
    return [
        Box(box.x0 / sheet.width, box.y0 / sheet.height, box.x1 / sheet.width, box.y1 / sheet.height) for box in found
    ]


def draw(
    data: bytes | str | os.PathLike, page: int, scale: float = 2.0, password: str | None = None, name: str = ""
) -> bytes:
    """The page (from 1) as PNG, `scale` dots a point; less for a page that is very large. Raises DocumentError."""
    name = name or ("The document" if isinstance(data, bytes) else Path(data).name)
    with pdf.opened(_content(data), name, password) as document:
        index = _index(document, page, name)
        with pdf.PDFIUM:
            sheet = document[index]
            image = sheet.render(scale=pdf.bounded(sheet, scale)).to_pil()
            sheet.close()
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _content(data: bytes | str | os.PathLike) -> bytes:
    return data if isinstance(data, bytes) else Path(data).read_bytes()


def _index(document, page: int, name: str) -> int:
    if not 1 <= page <= len(document):
        raise DocumentError(name, f"has no page {page}; its pages are 1 to {len(document)}")
    return page - 1


class _Character(NamedTuple):
    text: str  # folded: a ligature is two letters
    box: Box  # in points


class _Sheet(NamedTuple):
    """A page as it is shown: its size in points, and its letters and digits in reading order."""

    width: float
    height: float
    characters: list[_Character]


def _printed(document, index: int, lines: Iterable[Line]) -> _Sheet:
    page = document[index]
    width, height = page.get_size()
    text_page = page.get_textpage()
    found = []
    for line in lines:
        for at, character in _whole_characters(line.text):
            if (folded := letters(character)) and (box := _box(page, text_page, line.start + at)):
                found.append(_Character(folded, box))
    text_page.close()
    page.close()
    return _Sheet(width, height, found)


def _whole_characters(text: str) -> Iterator[tuple[int, str]]:
    """Where each character is, and it: PDFium gives those beyond the basic plane, such as 𝑥, in two halves."""
    for match in _CHARACTER.finditer(text):
        yield match.start(), match[0].encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _box(page, text_page, at: int) -> Box | None:
    """Of a character on the page as it is shown: turned, cropped, and from the top."""
    import pypdfium2

    try:
        left, bottom, right, top = text_page.get_charbox(at)
    except pypdfium2.PdfiumError:
        return None
    width, height = page.get_size()
    (x0, y0), (x1, y1) = (_shown(page, *corner) for corner in ((left, bottom), (right, top)))
    return Box(min(x0, x1) * width, min(y0, y1) * height, max(x0, x1) * width, max(y0, y1) * height)


def _shown(page, x: float, y: float) -> tuple[float, float]:
    import pypdfium2.raw as pdfium

    shown_x, shown_y = ctypes.c_int(), ctypes.c_int()
    pdfium.FPDF_PageToDevice(page, 0, 0, _WHOLE, _WHOLE, 0, x, y, shown_x, shown_y)
    return shown_x.value / _WHOLE, shown_y.value / _WHOLE


def _recognised(document, index: int) -> _Sheet:
    """What is recognised in a page's picture; the width of each stretch is shared out among its characters."""
    recognise = ocr.recogniser()
    if recognise is None:
        return _Sheet(1, 1, [])
    image, scale = pdf.picture_of(document, index)
    height, width = image.shape[0] / scale, image.shape[1] / scale
    found = []
    for line in recognise(image, scale):
        for part in line.parts or (line,):
            step = (part.right - part.left) / max(_columns(part.text), 1)
            left = part.left
            for character in part.text:
                right = left + step * _columns(character)
                if folded := letters(character):
                    found.append(_Character(folded, Box(left, height - part.top, right, height - part.bottom)))
                left = right
    return _Sheet(width, height, found)


def _columns(text: str) -> int:
    return len(text) + count_wide(text)


def _found(characters: Sequence[_Character], text: str) -> Iterator[list[Box]]:
    """The characters' boxes of each stretch of `text` that a page has."""
    owner = [number for number, character in enumerate(characters) for _ in character.text]
    for start, end in stretches("".join(character.text for character in characters), letters(text)):
        yield [characters[number].box for number in dict.fromkeys(owner[start:end])]


def _joined(runs: Iterable[list[Box]]) -> Iterator[Box]:
    """Boxes of characters as boxes of lines, or of columns where they are written downwards."""
    for run in runs:
        beside = _below if _is_downwards(run) else _beside
        line = last = run[0]
        for box in run[1:]:
            if beside(last, box):
                line = Box(min(line.x0, box.x0), min(line.y0, box.y0), max(line.x1, box.x1), max(line.y1, box.y1))
            else:
                yield _inset(line)
                line = box
            last = box
        yield _inset(line)


def _is_downwards(run: Sequence[Box]) -> bool:
    """Whether most characters stand below or above the one before, not beside it."""
    steps = [
        (abs(box.x0 + box.x1 - one.x0 - one.x1), abs(box.y0 + box.y1 - one.y0 - one.y1)) for one, box in pairwise(run)
    ]
    return sum(down > across for across, down in steps) > len(steps) / 2


def _beside(before: Box, box: Box) -> bool:
    """Whether a character shares a line with the one before it."""
    shared = min(before.y1, box.y1) - max(before.y0, box.y0)
    lower = min(before.y1 - before.y0, box.y1 - box.y0)
    gap = max(before.x0, box.x0) - min(before.x1, box.x1)
    return shared > _LINE_SHARE * lower and gap < _LINE_GAP * max(before.y1 - before.y0, box.y1 - box.y0)


def _below(before: Box, box: Box) -> bool:
    """`_beside`, of writing that goes downwards."""
    return _beside(*(Box(one.y0, one.x0, one.y1, one.x1) for one in (before, box)))


def _inset(line: Box) -> Box:
    """A box that touches no character before or behind it."""
    across, down = line.x1 - line.x0, line.y1 - line.y0
    by = _INSET * min(across, down)
    if across > down:
        return Box(line.x0 + by, line.y0, line.x1 - by, line.y1)
    return Box(line.x0, line.y0 + by, line.x1, line.y1 - by)
