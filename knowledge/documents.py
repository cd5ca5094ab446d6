"""Files to pages of text. A file that cannot be read is one `DocumentError`, whatever is wrong with it."""

import importlib
import os
from collections.abc import Callable
from pathlib import Path

from knowledge.pages import DocumentError, Page, PasswordError, Report

__all__ = ["DocumentError", "Page", "PasswordError", "load", "parse", "read", "suffix_of"]

MAX_BYTES = 256 * 2**20

Reader = Callable[[bytes, str, str | None, Report], list[Page]]
"""(content, the file's name, a password if there is one, progress) -> pages; raises DocumentError."""

# Modules by name: each brings a library that only files of its kind need.
READERS: dict[str, tuple[str, str]] = {
    ".pdf": ("pdf", "read_pdf"),
    ".docx": ("office", "read_docx"),
    ".pptx": ("office", "read_pptx"),
    ".xlsx": ("tables", "read_xlsx"),
    ".csv": ("tables", "read_csv"),
    ".tsv": ("tables", "read_csv"),
    ".html": ("web", "read_html"),
    ".htm": ("web", "read_html"),
    ".md": ("markdown", "read_markdown"),
    ".markdown": ("markdown", "read_markdown"),
    ".txt": ("plain", "read_text"),
}

# The names of parts stand as they are in the archive that an Office file is.
_PARTS = {".docx": b"word/document.xml", ".pptx": b"ppt/presentation.xml", ".xlsx": b"xl/workbook.xml"}


def load(path: str | os.PathLike, name: str | None = None, password: str | None = None) -> list[Page]:
    """The pages of the file at `path`, empty ones included, so that their count is the file's.

    name: what the user calls the file, when it lies under another path; its suffix decides the reader.
    Raises DocumentError when the file cannot be read or holds no text.
    """
    name = Path(path).name if name is None else name
    return parse(read(path, name), name, password)


def read(path: str | os.PathLike, name: str) -> bytes:
    """The bytes of the file at `path`, if its size allows reading it."""
    try:
        size = Path(path).stat().st_size
        if size > MAX_BYTES:
            limit = f"{MAX_BYTES >> 20} MB"
            raise DocumentError(name, f"has {size >> 20} MB and the limit is {limit}; split it into smaller files")
        return Path(path).read_bytes()
    except OSError as error:
        raise DocumentError(name, f"cannot be opened ({error.strerror}); check the path and its permissions") from error


def parse(data: bytes, name: str, password: str | None = None, report: Report = lambda share: None) -> list[Page]:
    """The pages in the bytes of a file called `name`."""
    if not data:
        raise DocumentError(name, "is empty (0 bytes); copy or download it again")
    return _reader(kind_of(data, name), name)(data, name, password, report)


def suffix_of(name: str) -> str:
    """The suffix of a file name in lower case, with its dot; "" without one."""
    return os.path.splitext(name)[1].lower()


def kind_of(data: bytes, name: str) -> str:
    """The key of READERS for a file: what its content shows, whatever it is called, else its suffix."""
    if data.startswith(b"%PDF-"):
        return ".pdf"
    if data.startswith(b"PK\x03\x04"):
        return next((kind for kind, part in _PARTS.items() if part in data), suffix_of(name))
    return suffix_of(name)


def _reader(kind: str, name: str) -> Reader:
    if kind not in READERS:
        raise DocumentError(name, f"is not of a kind that can be read; choose a file of {', '.join(READERS)}")
    module, function = READERS[kind]
    return getattr(importlib.import_module(f"knowledge.formats.{module}"), function)
