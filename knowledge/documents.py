"""Files to pages of text. A file that cannot be read is one `DocumentError`, whatever is wrong with it."""

import os
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from knowledge.text import compounds, fold, unwrap

MAX_BYTES = 256 * 2**20
MAX_PAGES = 5_000
MAX_CHARACTERS = 20_000_000  # of text, so that a small file cannot unpack into endless work

# Besides its own errors pypdf lets these escape: most were seen when reading 5,000 files damaged at random, the rest
# (numbers, recursion) belong to the same walk over objects that are not what they should be.
_DAMAGE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NotImplementedError,
    RecursionError,
    TypeError,
    ValueError,
)
_BYTE_ORDER_MARKS = {
    b"\xef\xbb\xbf": "utf-8-sig",
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}


class DocumentError(Exception):
    """A file that cannot be read. `str()` is one sentence: the file's name, what is wrong, what to do."""

    def __init__(self, name: str, reason: str):
        super().__init__(f"{name} {reason}.")
        self.name = name
        self.reason = reason


@dataclass(frozen=True)
class Page:
    """The text of one page; `number` is 1-based, None in a file without pages."""

    number: int | None
    text: str


def load(path: str | os.PathLike, name: str | None = None) -> list[Page]:
    """The pages of the file at `path`, empty ones included, so that their count is the file's.

    name: what the user calls the file, when it lies under another path; its suffix decides the loader.
    Raises DocumentError when the file cannot be read or holds no text.
    """
    name = Path(path).name if name is None else name
    return parse(read(path, name), name)


def read(path: str | os.PathLike, name: str) -> bytes:
    """The bytes of the file at `path`, once its kind and size allow reading it."""
    _loader(name)
    try:
        size = Path(path).stat().st_size
        if size > MAX_BYTES:
            limit = f"{MAX_BYTES >> 20} MB"
            raise DocumentError(name, f"has {size >> 20} MB and the limit is {limit}; split it into smaller files")
        return Path(path).read_bytes()
    except OSError as error:
        raise DocumentError(name, f"cannot be opened ({error.strerror}); check the path and its permissions") from error


def parse(data: bytes, name: str) -> list[Page]:
    """The pages in the bytes of a file called `name`."""
    if not data:
        raise DocumentError(name, "is empty (0 bytes); copy or download it again")
    return _loader(name)(data, name)


def suffix_of(name: str) -> str:
    """The suffix of a file name in lower case, with its dot; "" without one."""
    return os.path.splitext(name)[1].lower()


def _loader(name: str) -> Callable[[bytes, str], list[Page]]:
    loader = LOADERS.get(suffix_of(name))
    if loader is None:
        raise DocumentError(name, f"is not of a kind that can be read; choose a file of {', '.join(LOADERS)}")
    return loader


def load_pdf(data: bytes, name: str) -> list[Page]:
    """Pages numbered from 1, in the file's order."""
    if b"%PDF-" not in data[:1024]:
        raise DocumentError(name, _what_instead_of_pdf(data))
    with _damage_as_document_error(name):
        texts = list(_pdf_texts(data, name))
    if not any(text.strip() for text in texts):
        raise DocumentError(
            name, "has no text, only images such as scanned pages; recognise its text (OCR) with another program first"
        )
    known_compounds = compounds("\n".join(texts))
    return [Page(number, unwrap(text, known_compounds)) for number, text in enumerate(texts, start=1)]


def _what_instead_of_pdf(data: bytes) -> str:
    start = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html", b"<?xml", b"<head")):
        return "is a web page under the name of a PDF; download the PDF itself"
    return "is not a PDF, whatever its name says; check where it came from"


@contextmanager
def _damage_as_document_error(name: str) -> Iterator[None]:
    from pypdf.errors import LimitReachedError, PyPdfError

    try:
        yield
    except LimitReachedError as error:
        raise DocumentError(name, "unpacks into more data than is safe to read; print it to a new PDF") from error
    except (PyPdfError, *_DAMAGE) as error:
        raise DocumentError(
            name, "is damaged or incomplete; download it again, or open it in a PDF viewer and save it anew"
        ) from error


def _pdf_texts(data: bytes, name: str) -> Iterator[str]:
    from pypdf import PdfReader  # 0.1 s that only the first PDF needs

    reader = PdfReader(BytesIO(data))
    # The empty password opens files that only forbid printing or copying.
    if reader.is_encrypted and not reader.decrypt(""):
        raise DocumentError(name, "needs a password to open; save a copy without one and add that")
    count = len(reader.pages)
    if count > MAX_PAGES:
        raise DocumentError(name, f"has {count} pages and the limit is {MAX_PAGES}; split it into smaller files")
    characters = 0
    for page in reader.pages:
        text = fold(page.extract_text())
        characters += len(text)
        _check_length(characters, name)
        yield text


def load_text(data: bytes, name: str) -> list[Page]:
    """One page without a number."""
    text = fold(_decode(data, name))
    _check_length(len(text), name)
    if not text.strip():
        raise DocumentError(name, "holds only blank space; check that it was saved")
    return [Page(None, text.replace("\u00ad", "").strip())]


def _check_length(characters: int, name: str) -> None:
    if characters > MAX_CHARACTERS:
        limit = f"{MAX_CHARACTERS // 1_000_000} million"
        raise DocumentError(name, f"holds more than {limit} characters, the limit; split it into smaller files")


def _decode(data: bytes, name: str) -> str:
    marked = next((encoding for mark, encoding in _BYTE_ORDER_MARKS.items() if data.startswith(mark)), None)
    for encoding in [marked] if marked else ["utf-8", "gb18030"]:
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        if _is_plausible(text, encoding):
            return text
    raise DocumentError(name, "is not text in UTF-8, UTF-16 or GB18030; open it in an editor and save it as UTF-8")


def _is_plausible(text: str, encoding: str) -> bool:
    """Whether `text` reads like text. Binary data has control characters; and GB18030 decodes almost any bytes, but
    into rare characters, where real Chinese is mostly of those that the older GB2312 and Big5 have."""
    controls = sum(unicodedata.category(character) == "Cc" for character in text) - sum(map(text.count, "\t\n\r\f"))
    if controls > 0.01 * len(text):
        return False
    foreign = "".join(character for character in text if character > "\x7f")
    common = max(len(foreign.encode(core, "ignore").decode(core)) for core in ("gb2312", "big5"))
    return encoding != "gb18030" or common >= 0.5 * len(foreign)


LOADERS: dict[str, Callable[[bytes, str], list[Page]]] = {
    ".pdf": load_pdf,
    ".txt": load_text,
    ".md": load_text,
    ".markdown": load_text,
}
