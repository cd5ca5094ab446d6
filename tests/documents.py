"""Documents that are read in tests, and what one of them says where."""

from pathlib import Path

DATA = Path(__file__).parent / "data"
TRACEMONKEY = DATA / "pdf" / "en_tracemonkey_two_column.pdf"
POEMS = DATA / "pdf" / "zh_poems.pdf"
LAW = DATA / "docs" / "zh_copyright_law_utf8.txt"
QUESTION, PAGE = "离离原上草，一岁一枯荣", 5  #: of POEMS


def write(folder: Path, name: str, text: str) -> Path:
    """A file with this text; its folders are made."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path
