"""PDF files through PDFium: lines with their places on the page, in reading order, without headers and footers."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from knowledge.formats import layout, ocr
from knowledge.formats.layout import Line
from knowledge.formats.text import close_up, compounds, fold, unwrap
from knowledge.pages import Block, DocumentError, Page, PasswordError, Report

MAX_PAGES = 5_000
MAX_CHARACTERS = 20_000_000  # of text, so that a small file cannot unpack into endless work

PDFIUM = threading.Lock()  # the library works for one thread at a time
MAX_SIDE = 4_000  # dots: a poster must not take gigabytes
_PASSWORD_NEEDED = 4  # FPDF_ERR_PASSWORD
_OCR_SCALE = 150 / 72  # dots per point: 150 dpi, which 9-point print needs; more takes longer and reads no better
_SCANNED = 8  # characters: a page with fewer and a picture is a scan, perhaps with a stamped page number


def read_pdf(data: bytes, name: str, password: str | None, report: Report) -> list[Page]:
    """Pages numbered from 1, in the file's order; those without text as OCR reads them, where that is installed."""
    with opened(data, name, password) as document:
        pages, scanned = _read_pages(document, name, report)
    if not any(pages) and scanned:
        raise DocumentError(name, ocr.missing() or "has no text, and none could be recognised in its pictures")
    if not any(pages):
        raise DocumentError(name, "has no text; check that it is the right file")
    return list(_pages(pages, scanned))


@contextmanager
def opened(data: bytes, name: str, password: str | None = None) -> Iterator:
    """The pypdfium2 document in `data`, to be used under `PDFIUM`. Raises DocumentError and PasswordError."""
    if b"%PDF-" not in data[:1024]:
        raise DocumentError(name, _what_instead_of_pdf(data))
    import pypdfium2

    with PDFIUM:
        document = _open(pypdfium2, data, name, password)
    try:
        yield document
    finally:
        with PDFIUM:
            document.close()


def _what_instead_of_pdf(data: bytes) -> str:
    start = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html", b"<?xml", b"<head")):
        return "is a web page under the name of a PDF; download the PDF itself"
    return "is not a PDF, whatever its name says; check where it came from"


def _open(pypdfium2, data: bytes, name: str, password: str | None):
    try:
        document = pypdfium2.PdfDocument(data, password=password)
        count = len(document)
    except pypdfium2.PdfiumError as error:
        if error.err_code != _PASSWORD_NEEDED:
            raise _damaged(name) from error
        raise PasswordError(name, PasswordError.WRONG if password else PasswordError.MISSING) from error
    if count > MAX_PAGES:
        document.close()
        raise DocumentError(name, f"has {count} pages and the limit is {MAX_PAGES}; split it into smaller files")
    if not count:
        document.close()
        raise _damaged(name)
    return document


def _damaged(name: str) -> DocumentError:
    return DocumentError(name, "is damaged or incomplete; download it again, or save it anew from a PDF viewer")


def _read_pages(document, name: str, report: Report) -> tuple[list[list[Line]], set[int]]:
    """The lines of each page, and the pages (from 0) that are pictures which nothing here can read."""
    recognise = None
    pages, unread, characters = [], set(), 0
    for index in range(len(document)):
        lines, picture = page_lines(document, index, name)
        if picture:
            recognise = recognise or ocr.recogniser()
            if recognise is None:
                unread.add(index)
            else:
                lines = recognise(*picture_of(document, index))
        characters += sum(len(line.text) for line in lines)
        if characters > MAX_CHARACTERS:
            limit = f"{MAX_CHARACTERS // 1_000_000} million"
            raise DocumentError(name, f"holds more than {limit} characters, the limit; split it into smaller files")
        pages.append(lines)
        report((index + 1) / len(document))
    return pages, unread


def page_lines(document, index: int, name: str) -> tuple[list[Line], bool]:
    """The lines of a page, counted from 0, and whether its text has to be recognised in a picture of it."""
    import pypdfium2

    try:
        with PDFIUM:
            page = document[index]
            lines = layout.lines(page)
            text = "".join(line.text for line in lines)
            readable = sum(map(str.isalnum, text)) - layout.unmapped(text)
            picture = readable < _SCANNED and _has_pictures(page) or layout.unmapped(text) > 0.3 * len(text) > 0
            page.close()
    except pypdfium2.PdfiumError as error:
        raise DocumentError(
            name, f"is damaged on page {index + 1}; download it again, or save it anew from a PDF viewer"
        ) from error
    return ([] if picture else lines), picture


def _has_pictures(page) -> bool:
    import pypdfium2.raw as pdfium

    return any(page.get_objects([pdfium.FPDF_PAGEOBJ_IMAGE], max_depth=3))


def picture_of(document, index: int) -> tuple:
    """A picture of a page for `ocr.recogniser`: uint8 [height, width, 3], and its dots a point."""
    with PDFIUM:
        page = document[index]
        scale = bounded(page, _OCR_SCALE)
        image = page.render(scale=scale, rev_byteorder=False).to_numpy()[:, :, :3].copy()
        page.close()
    return image, scale


def bounded(page, scale: float) -> float:
    """`scale`, in dots a point, or less where the picture of the page would be a huge one."""
    return min(scale, MAX_SIDE / max(*page.get_size(), 1))


def _pages(pages: Sequence[Sequence[Line]], scanned: set[int]) -> Iterator[Page]:
    """Blocks out of lines, which takes the whole document: what repeats, how large plain text is."""
    kept = layout.without_repeated(pages)
    body = layout.body_size(kept)
    sizes = layout.heading_sizes(kept, body)
    known_compounds = compounds("\n".join(line.text for lines in kept for line in lines))
    for number, lines in enumerate(kept, start=1):
        blocks = []
        for level, text in layout.stretches(lines, sizes):
            text = unwrap("\n".join(map(close_up, fold(text).split("\n"))), known_compounds)
            if text:
                blocks.append(Block(" ".join(text.split()) if level else text, level))
        yield Page(number, tuple(blocks), scanned=number - 1 in scanned)
