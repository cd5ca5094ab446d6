"""Pages to chunks: about 200 tokens each, cut at the ends of Chinese and English sentences, under their headings."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from knowledge.formats.text import count_wide
from knowledge.pages import Block, Page

CHUNK_TOKENS = 200
OVERLAP_TOKENS = 32  # about a sentence, so that one cut off from its neighbours is found with either
_SMALL = 48  # tokens: a section with less takes its next one along
_HEADING_TOKENS = 60  # of all headings over a chunk: the lower ones are kept
_HEADER_TOKENS = 80  # of a table's header: what is beyond is not repeated
HEADING_SEPARATOR = " > "

# Tried in this order, the next one only on what is still too long. Sentences and paragraphs come together: with
# paragraphs first, a line before a long paragraph would become a chunk by itself.
_BOUNDARIES = tuple(
    re.compile(pattern)
    for pattern in (
        r"\n{2,}|[。！？；…]+[”’」』）》]*\s*|[.!?]+[\"'”’)\]]*\s+",
        r"\n",
        r"[，、：]|[,;:]\s+",
        r"\s+",
    )
)

Length = Callable[[str], int]


@dataclass(frozen=True)
class Chunk:
    """A passage of one page or sheet; `position` counts the document's chunks from 0.

    headings: those that it stands under, from the highest to the lowest, with " > " between; "" if there are none.
    """

    text: str
    page: int | None
    position: int
    headings: str = ""
    label: str | None = None

    @property
    def passage(self) -> str:
        return passage(self.headings, self.text)


def passage(headings: str, text: str) -> str:
    """A chunk as it is embedded, indexed and quoted: under its headings."""
    return f"{headings}\n{text}" if headings else text


def estimate_tokens(text: str) -> int:
    """Tokens that a multilingual tokenizer makes of `text`, roughly: one a CJK character, one for four others."""
    wide = count_wide(text)
    return wide + (len(text) - wide + 3) // 4


@dataclass(frozen=True)
class _Piece:
    """A sentence, a line, or a table or part of one. whole: it is not to be repeated in the next chunk."""

    text: str
    tokens: int
    whole: bool = False


def split(pages: Iterable[Page], length: Length = estimate_tokens) -> list[Chunk]:
    """Chunks in reading order, none spanning two pages, none longer than CHUNK_TOKENS with its headings.

    length: counts the tokens of a text. A table's rows stay whole, and each chunk of it begins with its header.
    """
    chunks: list[Chunk] = []
    path: list[Block] = []
    for page in pages:
        for section in _merged(_sections(page, [] if page.apart else path), length):
            path = section.path
            headings = _headings(path, length)
            room = CHUNK_TOKENS - length(headings)
            for text in _packed(_pieces(section.blocks, room, length), room):
                # A row of bullets or rules says nothing to a search.
                if any(map(str.isalnum, text)):
                    chunks.append(Chunk(text, page.number, len(chunks), headings, page.label))
    return chunks


@dataclass(frozen=True)
class _Section:
    """What stands under one heading on a page."""

    path: list[Block]
    blocks: list[Block]


def _sections(page: Page, path: list[Block]) -> Iterator[_Section]:
    """The page's sections; the first may go on under the headings of the page before, `path`."""
    gathered: list[Block] = []
    for block in page.blocks:
        if not block.level:
            gathered.append(block)
            continue
        if gathered or page.blocks[0] is not block:
            yield _Section(path, gathered)
        path = [*(heading for heading in path if heading.level < block.level), block]
        gathered = []
    yield _Section(path, gathered)


def _merged(sections: Iterable[_Section], length: Length) -> Iterator[_Section]:
    """Sections with the small ones put together, under the headings that they share; the others stand in the text.

    A heading with nothing below it but lower headings is in their paths. One with nothing at all is kept as text.
    """
    held: _Section | None = None
    for section in sections:
        if held is not None:
            shared = _shared(held.path, section.path)
            tokens = sum(length(str(block)) for block in held.blocks)
            if not held.blocks and shared == held.path:
                pass
            elif tokens < _SMALL and tokens + sum(length(str(b)) for b in section.blocks) <= CHUNK_TOKENS // 2:
                blocks = [*_inline(held, shared), *_inline(section, shared)]
                held = _Section(shared, blocks)
                continue
            else:
                yield _with_heading(held)
        held = section
    if held is not None:
        yield _with_heading(held)


def _shared(one: list[Block], other: list[Block]) -> list[Block]:
    count = 0
    while count < min(len(one), len(other)) and one[count] is other[count]:
        count += 1
    return one[:count]


def _inline(section: _Section, shared: list[Block]) -> list[Block]:
    """The section's blocks, after those of its headings that are not shared."""
    return [*(replace(heading, level=0) for heading in section.path[len(shared) :]), *section.blocks]


def _with_heading(section: _Section) -> _Section:
    """A section that has only a heading, as one that has it as its text."""
    if section.blocks or not section.path:
        return section
    return _Section(section.path[:-1], [replace(section.path[-1], level=0)])


def _headings(path: list[Block], length: Length) -> str:
    """The path as a line, without the highest headings where it would take too much of a chunk."""
    texts = [heading.text for heading in path]
    while texts and length(HEADING_SEPARATOR.join(texts)) > _HEADING_TOKENS:
        texts = texts[1:]
    return HEADING_SEPARATOR.join(texts)


def _pieces(blocks: Iterable[Block], room: int, length: Length) -> Iterator[_Piece]:
    for block in blocks:
        if block.header is None:
            texts = list(_sentences(block.text, room, length, _BOUNDARIES))
            texts[-1] += "\n\n"
            yield from (_Piece(text, length(text)) for text in texts)
        else:
            yield from _table_pieces(block, room, length)


def _sentences(text: str, room: int, length: Length, boundaries: tuple[re.Pattern, ...]) -> Iterator[str]:
    """`text` cut after every boundary of the first kind, and where a part is still too long, after the next kinds'."""
    if not boundaries:
        middle = max(1, len(text) // 2)
        parts = [text] if length(text) <= room or len(text) < 2 else [text[:middle], text[middle:]]
        rest: tuple[re.Pattern, ...] = ()
    else:
        ends = [match.end() for match in boundaries[0].finditer(text)]
        parts = [text[start:end] for start, end in zip([0, *ends], [*ends, len(text)], strict=True) if start < end]
        rest = boundaries[1:]
    for part in parts:
        if length(part) <= room or (len(part) < 2 and not rest):
            yield part
        else:
            yield from _sentences(part, room, length, rest)


def _table_pieces(block: Block, room: int, length: Length) -> Iterator[_Piece]:
    """The table whole if it fits; else parts of as many rows as fit, each under the header."""
    if length(str(block)) <= room:
        yield _Piece(f"{block}\n\n", length(str(block)), whole=True)
        return
    header = next(_row_parts(block.header, _HEADER_TOKENS, length)) + "\n"
    room -= length(header)
    rows = [part for row in block.text.split("\n") for part in _row_parts(row, room, length)]
    for text in _packed((_Piece(f"{row}\n", length(row) + 1, whole=True) for row in rows), room):
        yield _Piece(f"{header}{text}\n\n", length(header) + room, whole=True)


def _row_parts(row: str, room: int, length: Length) -> Iterator[str]:
    if length(row) + 1 <= room:
        yield row
        return
    yield from _packed(
        (_Piece(text, length(text)) for text in _sentences(row, room - 1, length, _BOUNDARIES)), room - 1
    )


def _packed(pieces: Iterable[_Piece], room: int) -> Iterator[str]:
    """Texts of as many pieces as fit; each begins with the last pieces of the one before, up to OVERLAP_TOKENS."""
    held: list[_Piece] = []
    fresh = 0  # how many of them are not repeated
    for piece in pieces:
        if fresh and sum(part.tokens for part in held) + piece.tokens > room:
            yield _joined(held)
            held, fresh = _tail(held, room - piece.tokens), 0
        held.append(piece)
        fresh += 1
    if fresh:
        yield _joined(held)


def _tail(held: list[_Piece], room: int) -> list[_Piece]:
    tail: list[_Piece] = []
    tokens = 0
    for piece in reversed(held):
        tokens += piece.tokens
        if piece.whole or tokens > min(OVERLAP_TOKENS, room):
            break
        tail.insert(0, piece)
    return tail


def _joined(pieces: list[_Piece]) -> str:
    return "".join(piece.text for piece in pieces).strip("\n").rstrip()
