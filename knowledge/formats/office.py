"""Word documents and PowerPoint slides."""

import io
import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from knowledge.formats import rows
from knowledge.formats.text import fold
from knowledge.pages import Block, DocumentError, Page, PasswordError, Report

_MAX_UNPACKED = 512 * 2**20
_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_HEADING_STYLE = re.compile(r"(?:heading|标题)\s*(\d)$", re.IGNORECASE)

# What python-docx, python-pptx and openpyxl let escape when a file's parts are not what they should be.
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    NotImplementedError,
    OSError,
    RecursionError,
    SyntaxError,  # lxml's XMLSyntaxError is one
    TypeError,
    ValueError,
)


def open_office(data: bytes, name: str) -> io.BytesIO:
    """The file for a reader, once it is known to be a zip archive that unpacks to a bearable size."""
    if data.startswith(_OLE):
        if "EncryptedPackage".encode("utf-16-le") in data:
            raise PasswordError(name, "is protected by a password; save a copy without one and add that")
        raise DocumentError(name, "is in the old binary format of Office; save it in the new one (.docx, .pptx, .xlsx)")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > _MAX_UNPACKED:
            raise DocumentError(name, f"unpacks to more than {_MAX_UNPACKED >> 20} MB, the limit; split it up")
    return io.BytesIO(data)


@contextmanager
def damage_as_document_error(name: str, *own: type[Exception]) -> Iterator[None]:
    """own: the exceptions of the library that reads the file."""
    try:
        yield
    except (*own, *_DAMAGE) as error:
        raise DocumentError(
            name, "is damaged or not what its name says; open it in an office program and save it anew"
        ) from error


def read_docx(data: bytes, name: str, password: str | None, report: Report) -> list[Page]:
    """One page without a number (Word decides on pages when it prints): headings, paragraphs, tables in their order."""
    import docx
    import docx.exceptions

    with damage_as_document_error(name, docx.exceptions.PythonDocxError):
        blocks = tuple(_docx_blocks(docx.Document(open_office(data, name))))
    if not blocks:
        raise DocumentError(name, "has no text; check that it is the right file")
    return [Page(None, blocks)]


def _docx_blocks(document) -> Iterator[Block]:
    from docx.table import Table

    prose: list[str] = []
    for item in document.iter_inner_content():
        table = isinstance(item, Table)
        text = "" if table else fold(item.text).strip()
        level = 0 if table else _level(item)
        if not table and not level:
            prose += [text] if text else []
            continue
        if prose:
            yield Block("\n".join(prose))
            prose = []
        block = _docx_table(item) if table else Block(text, level)
        if block is not None and str(block):
            yield block
    if prose:
        yield Block("\n".join(prose))


def _level(paragraph) -> int:
    """The level of a heading, 0 for any other paragraph."""
    style = paragraph.style
    name = style.name if style is not None and style.name else ""
    if name.lower() == "title":
        return 1
    match = _HEADING_STYLE.match(name)
    return int(match[1]) if match else 0


def _docx_table(table) -> Block | None:
    return rows.table(list(_docx_row(row)) for row in table.rows)


def _docx_row(row) -> Iterator[str]:
    """The texts of a row's cells, a merged one once."""
    seen = set()
    for cell in row.cells:
        if cell._tc not in seen:
            seen.add(cell._tc)
            yield fold(cell.text)


def read_pptx(data: bytes, name: str, password: str | None, report: Report) -> list[Page]:
    """A page for each slide, numbered from 1: its title as a heading, texts, tables, notes."""
    import pptx
    import pptx.exc

    with damage_as_document_error(name, pptx.exc.PythonPptxError):
        slides = pptx.Presentation(open_office(data, name)).slides
        pages = []
        for number, slide in enumerate(slides, start=1):
            pages.append(Page(number, tuple(_slide_blocks(slide)), apart=True))
            report(number / len(slides))
    if not any(page.blocks for page in pages):
        raise DocumentError(name, "has no text, only pictures; export it as PDF for its text to be recognised")
    return pages


def _slide_blocks(slide) -> Iterator[Block]:
    title = slide.shapes.title
    heading = " ".join(fold(title.text_frame.text).split()) if title is not None and title.has_text_frame else ""
    if heading:
        yield Block(heading, 1)
    skip = title.shape_id if title is not None else None
    for shape in _shapes(slide.shapes):
        if shape.shape_id != skip:
            yield from _shape_blocks(shape)
    if slide.has_notes_slide and slide.notes_slide.notes_text_frame is not None:
        yield from _text_block(slide.notes_slide.notes_text_frame.text)


def _shapes(shapes) -> Iterator:
    """All shapes, those in groups too, from top to bottom and left to right."""
    for shape in sorted(shapes, key=lambda shape: (shape.top or 0, shape.left or 0)):
        if hasattr(shape, "shapes"):
            yield from _shapes(shape.shapes)
        else:
            yield shape


def _shape_blocks(shape) -> Iterator[Block]:
    if getattr(shape, "has_table", False) and shape.has_table:
        block = rows.table([fold(cell.text) for cell in row.cells] for row in shape.table.rows)
        if block is not None:
            yield block
    elif shape.has_text_frame:
        yield from _text_block(shape.text_frame.text)


def _text_block(text: str) -> Iterator[Block]:
    lines = [line.strip() for line in fold(text).split("\n")]
    if any(lines):
        yield Block("\n".join(filter(None, lines)))
