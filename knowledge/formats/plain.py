"""Plain text in the encodings that Chinese and English files have."""

import unicodedata

from knowledge.formats.text import fold
from knowledge.pages import DocumentError, Page, Report, plain

_BYTE_ORDER_MARKS = {
    b"\xef\xbb\xbf": "utf-8-sig",
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
_UTF16_SPACES = {"utf-16-le": (b"\n\0", b" \0"), "utf-16-be": (b"\0\n", b"\0 ")}


def read_text(data: bytes, name: str, password: str | None, report: Report) -> list[Page]:
    """One page without a number."""
    text = fold(decode(data, name)).replace("\u00ad", "").strip()
    if not text:
        raise DocumentError(name, "holds only blank space; check that it was saved")
    return [plain(None, text)]


def decode(data: bytes, name: str) -> str:
    """`data` as text. Raises DocumentError for what is no text in a known encoding."""
    for encoding in _candidates(data):
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        if _is_plausible(text, encoding):
            return text
    raise DocumentError(name, "is not text in UTF-8, UTF-16 or GB18030; open it in an editor and save it as UTF-8")


def _candidates(data: bytes) -> list[str]:
    marked = next((encoding for mark, encoding in _BYTE_ORDER_MARKS.items() if data.startswith(mark)), None)
    if marked:
        return [marked]
    # Without a mark UTF-16 shows in its spaces and line ends, which have a zero byte that no other encoding has.
    wide = [encoding for encoding, marks in _UTF16_SPACES.items() if any(map(data.__contains__, marks))]
    return [*wide, "utf-8", "gb18030"] if b"\0" in data else ["utf-8", "gb18030"]


def _is_plausible(text: str, encoding: str) -> bool:
    """Whether `text` reads like text. Binary data has control characters; and GB18030 and UTF-16 decode almost any
    bytes, but into rare characters, where real Chinese is mostly of those that the older GB2312 and Big5 have."""
    controls = sum(unicodedata.category(character) == "Cc" for character in text) - sum(map(text.count, "\t\n\r\f"))
    if controls > 0.01 * len(text):
        return False
    foreign = "".join(character for character in text if character > "\x7f")
    common = max(len(foreign.encode(core, "ignore").decode(core)) for core in ("gb2312", "big5"))
    return encoding in ("utf-8", *_BYTE_ORDER_MARKS.values()) or common >= 0.5 * len(foreign)
