"""Repairs to text as files yield it: look-alike characters, words and lines broken by the page's width."""

import itertools
import re
import unicodedata
from collections.abc import Set

# CJK radicals that NFKC leaves alone, each followed by the character it stands for
# (Unicode's EquivalentUnifiedIdeograph.txt).
_RADICALS = (
    "⺁厂⺂乛⺃乚⺄乙⺅亻⺆冂⺈刀⺉刂⺊卜⺋㔾⺌小⺍尐⺎兀⺏尣⺐尢⺒巳⺓幺⺔彑⺕彐⺖忄⺗心⺘扌⺙攵⺛旡⺜日⺝月⺞歺⺟母⺠民⺡氵⺢氺⺣灬⺤爫⺥爬⺦丬⺧牛⺨犭⺩王⺫目⺬示⺭礻⺯糹⺰纟⺱罓⺲罒⺳㓁⺴冗⺶羊⺹耂⺺肀⺻聿"
    "⺼肉⺾艹⺿艺⻀艻⻁虎⻂衤⻃覀⻄西⻅见⻆角⻈讠⻉贝⻋车⻌辶⻍辷⻎辸⻏邑⻐钅⻑長⻒镸⻓长⻔门⻖阝⻗雨⻘青⻙韦⻚页⻛风⻜飞⻝食⻟飠⻠饣⻢马⻣骨⻤鬼⻥鱼⻦鸟⻧卤⻨麦⻩黄⻪黾⻫斉⻬齐⻭歯⻮齿⻯竜⻰龙⻱龜⻲亀⻳龟"
)
_RADICAL_CHARACTERS = dict(zip(map(ord, _RADICALS[::2]), _RADICALS[1::2], strict=True))

# What search stumbles over: radicals, Latin ligatures, mathematical letters, odd spaces. Full NFKC would also turn
# the full-width punctuation of Chinese (，：！（）) into ASCII, so it is applied to these ranges only.
_COMPATIBILITY = re.compile("[\u00a0\u2000-\u200a\u202f\u205f\u2e80-\u2fd5\u3000\ufb00-\ufb06\U0001d400-\U0001d7ff]")
_INVISIBLE = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\u200b\u2060\ufeff]")
_LINE_END = re.compile("\r\n?|[\v\f\x85\u2028\u2029]")

_CJK = (
    "\u2e80-\u303f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65"
)
_CJK_START = re.compile(f"[{_CJK}“‘…—]")
_CJK_UNFINISHED_END = re.compile(f"(?![。！？])[{_CJK}”’—]$")
# A row of a table rather ends with a number, and an item of a list begins with its mark.
_LATIN_UNFINISHED_END = re.compile("[a-zß-ɏ,’'\"”)]$")
_WORD_START = re.compile('[("“‘]?[0-9A-Za-zÀ-ɏ]')
_SENTENCE_END = re.compile('[.!?:;。！？：；]["”’)]*$')
_LEADERS = re.compile(r"(?:[.·] ?){5,}|(?:… ?){3,}")  # to the page numbers of a table of contents
_SPREAD = re.compile("(?<=[\u3400-\u9fff]) +(?=[\u3400-\u9fff])")
_IDEOGRAPH = re.compile("[\u3400-\u9fff]")
_ASCII_WIDTH = re.compile("[\x00-\x7f]")

_WIDE = re.compile("[\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef]")

_LETTER = "A-Za-zÀ-ɏ"
_SPLIT_WORD = re.compile(
    rf"(?<![{_LETTER}-])([{_LETTER}][{_LETTER}-]*)(?<=[a-zß-ɏ])"  # the head; its own hyphens mark a compound
    r"([-\u2010\u00ad])[ ]*\n[ ]*"
    r"([a-zß-ɏ]+)(\S*)(?:[ ]+|\n|$)"  # the tail, and the punctuation after it
)
_COMPOUND = re.compile(r"(?<![A-Za-z])(?=([A-Za-z]+-[A-Za-z]+))")


def fold(text: str) -> str:
    """`text` in NFC with radicals, ligatures and odd spaces replaced by plain characters, and "\\n" ending each line.

    Full-width punctuation stays as it is; invisible control characters and halves of surrogate pairs go.
    """
    text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    text = _INVISIBLE.sub("", _LINE_END.sub("\n", text))
    text = _COMPATIBILITY.sub(
        lambda match: unicodedata.normalize("NFKC", match[0].translate(_RADICAL_CHARACTERS)), text
    )
    return unicodedata.normalize("NFC", text)


def compounds(text: str) -> set[str]:
    """The hyphenated pairs that `text` holds within a line, in lower case: {"just-in", "in-time"}."""
    return {pair.lower() for pair in _COMPOUND.findall(text)}


def unwrap(text: str, known_compounds: Set[str] = frozenset()) -> str:
    """`text` of a page without the breaks that only its width made: in words, in sentences.

    A hyphen at a line's end stays where the word is a compound elsewhere in the document (`known_compounds`).
    """
    text = "\n".join(line.strip() for line in _LEADERS.sub(" … ", text).split("\n"))
    text = _SPLIT_WORD.sub(lambda match: _whole_word(match, known_compounds), text).replace("\u00ad", "")
    return _join_wrapped_lines(text).strip()


def close_up(line: str) -> str:
    """`line` without the spaces that set its Chinese characters apart: "目 录" is 目录. "张三 李四" stays."""
    if len(_SPREAD.findall(line)) < 0.6 * (len(_IDEOGRAPH.findall(line)) - 1):
        return line
    return _SPREAD.sub("", line)


def _whole_word(match: re.Match, known_compounds: Set[str]) -> str:
    head, mark, tail, rest = match.groups()
    compound = "-" in head or f"{head}-{tail}".lower() in known_compounds
    hyphen = "-" if compound and mark != "\u00ad" else ""
    return f"{head}{hyphen}{tail}{rest}\n"


def _join_wrapped_lines(text: str) -> str:
    lines = text.split("\n")
    full = 0.7 * _full_width(lines)  # a shorter line ends by itself: a heading, the end of a paragraph
    joined = lines[:1]
    for before, line in itertools.pairwise(_without_gaps(lines, full)):
        between = _between(before, line) if _width(before) >= full else "\n"
        if between == "\n":
            joined.append(line)
        else:
            joined[-1] += between + line
    return "\n".join(joined)


def _without_gaps(lines: list[str], full: float) -> list[str]:
    """The lines without empty ones in the middle of a sentence, as wide spacing makes them."""
    beside = zip(["", *lines], lines, [*lines[1:], ""], strict=False)
    return [line for before, line, after in beside if line or _width(before) < full or _between(before, after) == "\n"]


def _between(before: str, line: str) -> str:
    """What stood between two lines of a page before they were set: nothing, a space, or a line end."""
    if _CJK_UNFINISHED_END.search(before) and _CJK_START.match(line):
        return ""
    unfinished = _LATIN_UNFINISHED_END.search(before) or (line[:1].islower() and not before[-1:].isdigit())
    return " " if unfinished and _WORD_START.match(line) and not _SENTENCE_END.search(before) else "\n"


def count_wide(text: str) -> int:
    """How many characters are as wide as two of Latin: Chinese, Japanese, Korean, and full-width forms."""
    return len(_WIDE.findall(text))


def _full_width(lines: list[str]) -> int:
    """The width of a full line of this page: the upper quartile, so that neither headings nor one long row decide."""
    widths = sorted(_width(line) for line in lines if line)
    return widths[len(widths) * 3 // 4] if widths else 0


def _width(line: str) -> int:
    """Columns that `line` takes: one for an ASCII character, two for any other."""
    return 2 * len(line) - len(_ASCII_WIDTH.findall(line))
