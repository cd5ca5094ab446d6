"""Tables: CSV and Excel. Each row is a line; the first one names the columns and goes with every chunk."""

import csv
import datetime
import io
import warnings
from collections.abc import Iterable, Iterator, Sequence

from knowledge.formats.office import damage_as_document_error, open_office
from knowledge.formats.plain import decode
from knowledge.formats.rows import table
from knowledge.formats.text import fold
from knowledge.pages import Block, DocumentError, Page, Report

_MAX_CELLS = 5_000_000
_DELIMITERS = ",;\t|"


def read_csv(data: bytes, name: str, password: str | None, report: Report) -> list[Page]:
    """One page without a number: comma, semicolon, tab or bar between cells, whichever gives whole columns."""
    text = fold(decode(data, name))
    try:
        block = table(csv.reader(io.StringIO(text), delimiter=_delimiter(text)))
    except csv.Error as error:
        raise DocumentError(name, f"is not a readable CSV table ({error}); save it anew from a spreadsheet") from error
    if block is None:
        raise DocumentError(name, "holds only blank space; check that it was saved")
    return [Page(None, (block,))]


def _delimiter(text: str) -> str:
    """The delimiter that cuts most of the first rows into as many cells as the first one."""
    lines = [line for line in text[:20_000].split("\n")[:50] if line.strip()]

    def agreement(delimiter: str) -> tuple[int, int]:
        counts = [len(row) for row in csv.reader(lines, delimiter=delimiter)]
        return (counts.count(counts[0]) * (counts[0] > 1) if counts else 0), counts[0] if counts else 0

    return max(_DELIMITERS, key=agreement)


def read_xlsx(data: bytes, name: str, password: str | None, report: Report) -> list[Page]:
    """A page for each sheet that holds anything, labelled and headed with its name; formulas as last computed."""
    import openpyxl
    from openpyxl.utils.exceptions import InvalidFileException

    with damage_as_document_error(name, InvalidFileException), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of styles and the like, which are not read
        workbook = openpyxl.load_workbook(open_office(data, name), read_only=True, data_only=True, keep_links=False)
        try:
            sheets = workbook.worksheets
            pages = []
            for number, sheet in enumerate(sheets, start=1):
                block = table(_limited(sheet.iter_rows(values_only=True), name))
                report(number / len(sheets))
                if block is not None:
                    title = fold(sheet.title)
                    pages.append(Page(None, (Block(title, 1), block), label=title, apart=True))
        finally:
            workbook.close()
    if not pages:
        raise DocumentError(name, "has no cell with text; check that it was saved")
    return pages


def _limited(rows: Iterable[Sequence[object]], name: str) -> Iterator[list[str]]:
    cells = 0
    for row in rows:
        cells += len(row)
        if cells > _MAX_CELLS:
            limit = f"{_MAX_CELLS // 1_000_000} million"
            raise DocumentError(name, f"has more than {limit} cells, the limit; split it into smaller files")
        yield [_cell(value) for value in row]


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, datetime.datetime):
        midnight = value.time() == datetime.time()
        return str(value.date()) if midnight else value.isoformat(" ")
    return fold(str(value))
