"""Where lines stand on a PDF's pages, and what follows: reading order, headers and footers, headings, paragraphs."""

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from knowledge.formats.text import count_wide

_LINE_BREAK = re.compile("\r\n|\x02")  # PDFium writes the second for a hyphen at the end of a line
_UNMAPPED = re.compile("[\ufffd\ue000-\uf8ff\x00-\x08\x0e-\x1f]")
_DIGITS = re.compile(r"\d+|\b[ivxlc]+\b")
_LEADERS = re.compile(r"(?:\. ?){4}|…{2}|·{4}")  # to a page number in a table of contents
_SENTENCE_END = tuple("。．.；;，,：:、？?！!")

_MARGIN = 0.09  # of the page's height, at its top and bottom: where headers and footers are
_REPEATED = 3  # pages: a line at the same place of as many is a header or footer
_GUTTER_ROWS = 5  # as many rows side by side make columns
_HEADING_GROWTH = 1.08  # times the size of plain text
_HEADING_SHARE = 0.7  # of the lines in a size that must look like headings
_HEADING_WIDTH = 80  # a longer line is no heading, in columns of ASCII


@dataclass(frozen=True)
class Line:
    """A line with its box in points, from the page's lower left corner; `size` is that of its font.

    place: where it stands as a fraction of the page's height, 0 at the top. start: which of the page's characters is
    the first of `text`, the others following it one by one; None where they were recognised in a picture, in `parts`.
    """

    text: str
    left: float
    bottom: float
    right: float
    top: float
    size: float
    place: float
    start: int | None = None
    parts: tuple["Line", ...] = ()


def unmapped(text: str) -> int:
    """How many characters say nothing: the font does not tell which they are."""
    return len(_UNMAPPED.findall(text))


def lines(page) -> list[Line]:
    """The lines of a pypdfium2 page in reading order."""
    import pypdfium2.raw as pdfium

    text_page = page.get_textpage()
    height = page.get_height() or 1
    raw = text_page.raw  # millions of calls in a book: the helper would be unwrapped in each of them
    codes = [pdfium.FPDFText_GetUnicode(raw, index) for index in range(text_page.count_chars())]
    text = "".join(map(chr, codes))
    found, split, start = [], [], 0
    for match in [*_LINE_BREAK.finditer(text), None]:
        end = match.start() if match else len(text)
        hyphen = "-" if match and match[0] == "\x02" else ""
        rectangles = [text_page.get_rect(i) for i in range(pdfium.FPDFText_CountRects(text_page, start, end - start))]
        if rectangles and text[start:end].strip():
            size = pdfium.FPDFText_GetFontSize(text_page, start)
            line = _line(text[start:end] + hyphen, rectangles, size, height, start)
            found.append(line)
            split.append((line, start, _gap(rectangles, line.top - line.bottom)))
        start = match.end() if match else end
    text_page_boxes = _Boxes(text_page, text, height)
    found = _columns(found, split, text_page_boxes)
    text_page.close()
    return found


def _line(text: str, rectangles: Sequence[tuple[float, ...]], size: float, height: float, start: int) -> Line:
    left, bottom = min(box[0] for box in rectangles), min(box[1] for box in rectangles)
    right, top = max(box[2] for box in rectangles), max(box[3] for box in rectangles)
    return Line(text, left, bottom, right, top, round(2 * size) / 2, 1 - top / height, start)


def _gap(rectangles: Sequence[tuple[float, ...]], height: float) -> tuple[float, float] | None:
    """The widest empty stretch inside a line, from x to x; None if there is none wider than the line is high."""
    boxes = sorted(rectangles)
    gaps = [(before[2], after[0]) for before, after in zip(boxes, boxes[1:], strict=False)]
    widest = max(gaps, key=lambda gap: gap[1] - gap[0], default=(0, 0))
    return widest if widest[1] - widest[0] > max(height, 6) else None


class _Boxes:
    """Cuts a line at a gap, by the boxes of its characters."""

    def __init__(self, text_page, text: str, height: float):
        self._text_page, self._text, self._height = text_page, text, height

    def cut(self, line: Line, start: int, middle: float) -> list[Line]:
        for index in range(start, start + len(line.text)):
            character = self._text[index] if index < len(self._text) else " "
            if not character.isspace() and self._text_page.get_charbox(index)[0] > middle:
                text = line.text[: index - start].rstrip(), line.text[index - start :].lstrip()
                left = replace(line, text=text[0], right=middle)
                right = replace(line, text=text[1], left=self._text_page.get_charbox(index)[0], start=index)
                return [left, right]
        return [line]


def _columns(found: list[Line], split: Sequence[tuple], boxes: _Boxes) -> list[Line]:
    """The lines in reading order, where a file goes through two columns of prose row by row.

    Nearly all files hold their columns one after the other and stay as they are. Tables have gaps too, but short cells.
    """
    gaps = [gap for _, _, gap in split if gap is not None]
    middle = _gutter(gaps)
    if middle is None:
        return found
    halves: list[list[Line]] = []
    for line, start, gap in split:
        across = gap is not None and gap[0] < middle < gap[1]
        halves.append(boxes.cut(line, start, middle) if across else [line])
    both = [parts for parts in halves if len(parts) == 2]
    prose = sum(min(_width(part.text) for part in parts) >= 16 for parts in both)
    if len(both) < _GUTTER_ROWS or prose < 0.7 * len(both):
        return found
    return _by_column([part for parts in halves for part in parts], middle)


def _gutter(gaps: Sequence[tuple[float, float]]) -> float | None:
    """The x that most gaps hold, if enough do."""
    middles = [(gap[0] + gap[1]) / 2 for gap in gaps]
    counts = [(sum(gap[0] < x < gap[1] for gap in gaps), x) for x in middles]
    count, middle = max(counts, default=(0, 0.0))
    return middle if count >= _GUTTER_ROWS else None


def _by_column(found: Sequence[Line], middle: float) -> list[Line]:
    """From top to bottom: the left column down to the next line across both, then the right one, then that line."""
    ordered: list[Line] = []
    columns: tuple[list[Line], list[Line]] = [], []
    for line in sorted(found, key=lambda line: -line.top):
        if line.left < middle < line.right - 1:
            ordered += [*columns[0], *columns[1], line]
            columns = [], []
        else:
            columns[line.left >= middle].append(line)
    return [*ordered, *columns[0], *columns[1]]


def without_repeated(pages: Sequence[Sequence[Line]]) -> list[list[Line]]:
    """The pages without the lines in their margins that stand at the same place of several pages, whatever numbers
    they hold."""
    counts = Counter(key for page in pages for key in {_margin_key(line) for line in page} if key)
    return [[line for line in page if counts[_margin_key(line)] < _REPEATED] for page in pages]


def _margin_key(line: Line) -> tuple[str, int] | None:
    if _MARGIN < line.place < 1 - _MARGIN:
        return None
    return _DIGITS.sub("#", line.text.strip().lower()), round(line.place * 200)


def body_size(pages: Sequence[Sequence[Line]]) -> float:
    """The size that most characters have."""
    sizes: Counter[float] = Counter()
    for page in pages:
        for line in page:
            sizes[line.size] += len(line.text)
    return max(sizes, key=sizes.__getitem__, default=0.0)


def heading_sizes(pages: Sequence[Sequence[Line]], body: float) -> Mapping[float, int]:
    """The level of each font size that headings have, the largest being 1."""
    larger: dict[float, list[bool]] = {}
    for page in pages:
        for line in page:
            if line.size >= _HEADING_GROWTH * body > 0:
                larger.setdefault(line.size, []).append(_is_short(line))
    # A size with long lines is that of a preface or of a list, not of headings.
    sizes = [size for size, short in larger.items() if sum(short) >= _HEADING_SHARE * len(short)]
    return {size: level for level, size in enumerate(sorted(sizes, reverse=True), start=1)}


def _is_short(line: Line) -> bool:
    text = line.text.strip()
    return (
        2 <= _width(text) <= _HEADING_WIDTH
        and not text.endswith(_SENTENCE_END)
        and any(character.isalpha() for character in text)
        and not _LEADERS.search(text)
    )


def stretches(page: Sequence[Line], sizes: Mapping[float, int]) -> Iterator[tuple[int, str]]:
    """(level, text): headings with their level, and the lines between them with level 0, an empty one before a gap."""
    pitch = _pitch(page)
    gathered, level = "", 0
    before: Line | None = None
    for line in page:
        own = sizes.get(line.size, 0) if _is_short(line) else 0
        if gathered and (own != level or (level and not _goes_on(before, line, pitch))):
            yield level, gathered
            gathered, before = "", None
        apart = "" if before is None else "\n" if level or _goes_on(before, line, pitch) else "\n\n"
        gathered += apart + line.text
        level, before = own, line
    if gathered:
        yield level, gathered


def _pitch(page: Sequence[Line]) -> float:
    """The usual distance from line to line, in points: that of the lines that stand close, not of paragraphs."""
    steps = sorted(before.top - line.top for before, line in itertools.pairwise(page) if before.bottom > line.bottom)
    return steps[len(steps) // 3] if steps else 0.0


def _goes_on(before: Line, line: Line, pitch: float) -> bool:
    """Whether the line follows without a gap, or at the top of the next column."""
    height = line.top - line.bottom
    return before.top - line.top < 1.4 * min(max(pitch, height), 3 * height)


def _width(text: str) -> int:
    return len(text) + count_wide(text)
