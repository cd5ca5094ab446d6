"""Text as the keyword index sees it: characters and their pairs where no spaces part words, stems elsewhere."""

import functools
import importlib.resources
import re
import unicodedata
from collections.abc import Iterator
from itertools import pairwise

# Changes whenever the same text would give other rows of the index: one made by another version is made again.
VERSION = f"3, Unicode {unicodedata.unidata_version}"

# Scripts that put no spaces between words: Han, kana, hangul.
_UNSPACED = "\u3005-\u3007\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\U00020000-\U0003ffff"
_PARTS = re.compile(f"([{_UNSPACED}]+)|([^\\W_{_UNSPACED}]+(?:['’.,][^\\W_{_UNSPACED}]+)*)")
_HAN = re.compile("[\u3400-\u9fff\U00020000-\U0003ffff]")
_LETTER = re.compile("[^\\W\\d_]")
_LETTERS_PER_HAN = 6
_ACCENTS = re.compile("[\u0300-\u036f]")

_LATIN_WORD = re.compile(r"[^\W\d_][\w'’-]*|\d[\d.,]*")
_HAN_PARTICULARS = re.compile(r"(?<=[《“「\"])[^》”」\"]+(?=[》”」\"])|[A-Za-z0-9]+")

# What makes a sentence a question or holds it together, in folded text.
_ASKING = re.compile(
    "什么|甚么|哪些|哪个|哪里|哪|谁|多少|几|怎么样|怎么|怎样|怎|如何|为何|为什么|是否|吗|呢|请问|的|了|是|在|有|被|和|与|于|由|为"
)
_ASKING_ENGLISH = (
    "what who whom whose which when where why how many much did does do is are was were be been being the a an of in "
    "on at to for from by with and or as that this it its has have had can could would should will name kind type"
)

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
    """Whether `text` is in Chinese; a few Han characters outweigh the names and terms that stay in Latin letters."""
    han = len(_HAN.findall(text))
    return _LETTERS_PER_HAN * han > len(_LETTER.findall(text)) - han


def content(question: str) -> list[str]:
    """The different terms of `question` but for those that only ask; all of them if there are no others."""
    said = [term for term in terms(_ASKING.sub(" ", fold(question))) if term not in _asking_words()]
    return list(dict.fromkeys(said or terms(question)))


def particulars(question: str) -> list[list[str]]:
    """The terms of each name, number and quoted title in `question`, which no passage that answers should lack."""
    found = _HAN_PARTICULARS.findall(question) if is_chinese(question) else _particular_words(question)
    return [cut for part in found if (cut := terms(part))]


def _particular_words(question: str) -> list[str]:
    words = _LATIN_WORD.findall(question)
    return [
        word for place, word in enumerate(words) if word[0].isdigit() or (place and word[0].isupper() and word != "I")
    ]


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
def _asking_words() -> frozenset[str]:
    return frozenset(terms(_ASKING_ENGLISH))


@functools.cache
def _simplified() -> dict[int, str]:
    """Traditional characters and the Simplified ones that stand for them."""
    table = importlib.resources.files("opencc") / "dictionary" / "TSCharacters.txt"
    pairs = (line.split() for line in table.read_text(encoding="utf-8").splitlines())
    return {ord(traditional): simplified for traditional, simplified, *_ in pairs}
