"""Text as the keyword index sees it: characters and their pairs where no spaces part words, stems elsewhere."""

import functools
import importlib.resources
import re
import unicodedata
from collections.abc import Iterator
from itertools import pairwise

# Changes whenever the same text would give other terms: an index made by another version is made again.
VERSION = f"1, Unicode {unicodedata.unidata_version}"

# Scripts that put no spaces between words: Han, kana, hangul.
_UNSPACED = "\u3005-\u3007\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\U00020000-\U0003ffff"
_PARTS = re.compile(f"([{_UNSPACED}]+)|([^\\W_{_UNSPACED}]+(?:['’.,][^\\W_{_UNSPACED}]+)*)")
_HAN = re.compile("[\u3400-\u9fff\U00020000-\U0003ffff]")
_LETTER = re.compile("[^\\W\\d_]")
_ACCENTS = re.compile("[\u0300-\u036f]")

# English endings, one after the other; what is left need not be a word, only the same for all forms of one.
_ENDINGS = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"['’]s$", ""),
        (r"(?<=[a-z]{2})ies$", "y"),
        (r"(?<=[a-z]{2}[a-rtv-z])s$", ""),
        (r"(?<=[a-z]{3})(?:ing|ed)$", ""),
        (r"(?<=[a-z]{3})e$", ""),
        (r"([bcdfghjkmnpqrtvwx])\1$", r"\1"),
    )
)


def terms(text: str) -> list[str]:
    """The terms of `text`, with repetitions: characters and pairs of Chinese, stems of words, numbers.

    Full and half width, capitals, accents, and Simplified and Traditional characters are made alike.
    """
    return [term for run, word in _PARTS.findall(fold(text)) for term in (_of_run(run) if run else _of_word(word))]


def fold(text: str) -> str:
    """`text` as it is compared: NFKC, small letters without accents, Traditional characters as Simplified ones."""
    plain = _ACCENTS.sub("", unicodedata.normalize("NFKD", text).casefold())
    return unicodedata.normalize("NFC", plain).translate(_simplified())


def is_chinese(text: str) -> bool:
    """Whether `text` is in Chinese: a Han character says as much as three letters or more."""
    return 3 * len(_HAN.findall(text)) > len(_LETTER.findall(text)) - len(_HAN.findall(text))


def _of_run(run: str) -> Iterator[str]:
    yield from run
    for first, second in pairwise(run):
        yield first + second


def _of_word(word: str) -> Iterator[str]:
    """Its stem; and of compounds such as "3.5" or "e.g" the whole only, so that numbers stay themselves."""
    yield _stem(word)


@functools.lru_cache(maxsize=65_536)
def _stem(word: str) -> str:
    for ending, replacement in _ENDINGS:
        word = ending.sub(replacement, word)
    return word


@functools.cache
def _simplified() -> dict[int, str]:
    """Traditional characters and the Simplified ones that stand for them."""
    table = importlib.resources.files("opencc") / "dictionary" / "TSCharacters.txt"
    pairs = (line.split() for line in table.read_text(encoding="utf-8").splitlines())
    return {ord(traditional): simplified for traditional, simplified, *_ in pairs}
