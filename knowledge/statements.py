"""The sentences of found passages, and how much their words tell: what quotes and relevance are judged by."""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from knowledge import terms
from knowledge.ranking import share
from knowledge.sentences import ABBREVIATIONS

CHARACTERS, WORDS = 120, 60  #: of a sentence at most, and of a quote, in Chinese and in other languages

# A full stop ends a sentence where a new one seems to begin: not in "et al. found", "J. Smith" or "c. 1450". Pages
# have line ends within sentences; those before what looks like an item of a list count.
_ENDS = re.compile(
    r"[。！？；]+[”’」』）》\"]*|[!?]+[\"'”’)\]]*(?=\s|$)"
    rf"|(?<!\b[A-Zcpv]){ABBREVIATIONS}"
    r"\.[\"'”’)\]]*(?:\[\d+\])*(?=\s+[\"'“‘(\[]?[^\W_a-z]|\s*$)"
    r"|\n{2,}|\n(?=\s*(?:[-*•·|#]|\d+[.)、]|[（(]?[一二三四五六七八九十]+[、)）]))"
)
_CLAUSE_ENDS = re.compile(r"[，、：,;:]\s*|\s+")
_WORD = re.compile(r"[^\W_\u3400-\u9fff]+(?:['’.,-][^\W_\u3400-\u9fff]+)*|[\u3400-\u9fff]")
# A semicolon ends what is judged, but not what is quoted.
_FULL_STOP = re.compile(r"[。！？.!?][”’」』）》\"')\]]*\s*$")
_REST = re.compile(r"[^\n]*?(?:[。！？]+[”’」』）》\"]*|[.!?][\"'”’)\]]*(?=\s|$)|(?=\n)|$)")
_HEADING = 0.7  # of the next line: a first line as long as this is no heading


@dataclass(frozen=True)
class Sentence:
    """Characters `start` to `end` of the text of the passage at `rank`, in which it is the sentence at `place`.

    heading: of the passage. around: the heading and the sentences beside it.
    """

    rank: int
    place: int
    start: int
    end: int
    text: str
    heading: str
    around: str


def different(texts: Sequence[str]) -> list[Sentence]:
    """The sentences of passages, best first; those that overlapping ones share but once."""
    found = [sentence for rank, text in enumerate(texts) for sentence in sentences_of(rank, text)]
    return list({sentence.text: sentence for sentence in reversed(found)}.values())[::-1]


def sentences_of(rank: int, text: str) -> Iterator[Sentence]:
    """The sentences of a passage. Headings are none."""
    heading, spans = _sentences(text)
    texts = [text[slice(*span)] for span in spans]
    for place, span in enumerate(spans):
        around = " ".join([heading, *texts[max(place - 1, 0) : place], *texts[place + 1 : place + 2]])
        yield Sentence(rank, place, *span, texts[place], heading.strip("# \n"), around)


def _sentences(text: str) -> tuple[str, list[tuple[int, int]]]:
    """The heading above a passage, and the spans of its sentences; long ones are cut between clauses."""
    heading = _heading(text)
    cuts = [found.end() for found in _ENDS.finditer(text) if found.end() > len(heading)]
    spans = trimmed(text, [len(heading), *cuts, len(text)])
    return heading, [piece for span in spans for piece in _pieces(text, span)]


def _heading(text: str) -> str:
    """The first line, if it ends no sentence and is clearly shorter than the next: lines that a page's width has broken
    are about as long as one another."""
    first, _, rest = text.partition("\n")
    following = rest.lstrip("\n").partition("\n")[0]
    return first if len(first) < _HEADING * len(following) and not _ENDS.search(first.rstrip()) else ""


def trimmed(text: str, cuts: Sequence[int]) -> list[tuple[int, int]]:
    """The spans between cuts, without the spaces around them; what has no word is none."""
    spans = []
    for start, end in zip(cuts, cuts[1:], strict=False):
        said = text[start:end]
        if _WORD.search(said):
            spans.append((start + len(said) - len(said.lstrip()), end - len(said) + len(said.rstrip())))
    return spans


def _pieces(text: str, span: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """A sentence as it is, or, where it is too long, as many of its clauses at a time as are short enough."""
    start, stop = span
    while not is_short(text[start:stop]):
        ends = [start + found.end() for found in _CLAUSE_ENDS.finditer(text[start:stop])]
        fitting = [end for end in ends if is_short(text[start:end])]
        cut = max(fitting, default=start + CHARACTERS)
        yield from trimmed(text, [start, cut])
        start = cut
    yield from trimmed(text, [start, stop])


def rest(text: str, end: int) -> int:
    """How many characters of the sentence that is cut at `end` are behind it; none where it ends there."""
    if _FULL_STOP.search(text[:end]):
        return 0
    behind = _REST.match(text, end)
    return len(behind[0].rstrip()) if behind and _WORD.search(behind[0]) else 0


def is_short(*texts: str) -> bool:
    return sum(map(length, texts)) < 1 + 1e-9


def rarity(question: str, sentences: Sequence[Sentence]) -> dict[str, float]:
    """The weight of each term of the question: high if few of the sentences have it."""
    counts = Counter(term for sentence in sentences for term in set(terms.terms(sentence.text)))
    return {term: math.log1p(len(sentences) / (0.5 + counts[term])) for term in terms.content(question)}


def shares(weights: Mapping[str, float], sentence: Sentence) -> tuple[float, float]:
    """The share of `weights` that it holds, and that it holds together with what is around it, 0 to 1."""
    held = set(terms.terms(sentence.text))
    return share(weights, held), share(weights, held | set(terms.terms(sentence.around)))


def length(text: str) -> float:
    """As a share of what a quote may have."""
    return len(text) / CHARACTERS if terms.is_chinese(text) else len(text.split()) / WORDS
