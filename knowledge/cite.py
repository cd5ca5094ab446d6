"""Which passages the sentences of an answer draw on, and which sentences nothing supports; no language model is asked.

Each sentence is held against the passages by its words, by their characters and by meaning; its numbers, names and
negations are compared exactly, since a sentence that is wrong in one of them shares nearly all the rest.
`python -m benchmarks.fit_citations` finds the weights; docs/citations.md says from which sentences, and what it gives.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher

import numpy as np
from langchain_core.embeddings import Embeddings

from knowledge import claims
from knowledge.background import Background
from knowledge.numbers import Number, lacking, numbers
from knowledge.relevance import logistic
from knowledge.terms import content, fold, is_chinese, terms
from knowledge.vectors import unit_rows

_ATOM = re.compile(r"[^\s].*?(?:[。！？；，;,!?\n]+[”’」』）\"')\]]*|\.(?=\s|$)[\"')\]]*|$)", re.DOTALL)
_LONGEST_WINDOW = 6  # clauses
_UNIT_ENDS = re.compile(r"[。！？!?；\n]+[”’」』）\"')\]]*|(?<![A-Z])(?<!\b(?:Mr|Dr|St|No|vs))\.(?=\s|$)[\"')\]]*")


@dataclass(frozen=True)
class Atom:
    """A clause of a passage: its place, and its terms."""

    start: int
    end: int
    terms: frozenset[str]


@dataclass(frozen=True)
class Source:
    """A passage, cut up. sentences: (start, end). vectors: of the sentences, float32 [sentences, dimension]."""

    text: str
    chinese: bool
    atoms: tuple[Atom, ...]
    sentences: tuple[tuple[int, int], ...]
    terms: frozenset[str]
    pairs: frozenset[str]
    numbers: tuple[Number, ...]


def source(text: str) -> Source:
    atoms = tuple(
        Atom(match.start(), match.end(), frozenset(terms(match[0]))) for match in _ATOM.finditer(text) if match[0]
    )
    every = frozenset(terms(text))
    return Source(
        text,
        is_chinese(text),
        atoms,
        tuple(_sentences(text)),
        every,
        frozenset(term for term in every if len(term) == 2),
        tuple(numbers(text)),
    )


def _sentences(text: str) -> Iterable[tuple[int, int]]:
    start = 0
    for match in [*_UNIT_ENDS.finditer(text), None]:
        end = match.end() if match else len(text)
        if any(map(str.isalnum, text[start:end])) and (end - start >= 12 or match is None):
            yield start + len(text[start:end]) - len(text[start:end].lstrip()), end
            start = end


def weights(sentence: str, sources: Sequence[Source]) -> dict[str, float]:
    """The terms of `sentence` that say something, each with how telling it is among these passages."""
    telling = {}
    for term in content(sentence):
        rare = math.log(1 + len(sources) / (1 + sum(term in each.terms for each in sources)))
        telling[term] = (0.15 if len(term) == 1 and not term.isascii() else 1.0) * (0.4 + rare)
    return telling


def window(telling: Mapping[str, float], passage: Source) -> tuple[int, int]:
    """The clauses, from and to (exclusive), that share most with a sentence for their length."""
    total = sum(telling.values()) or 1.0
    best, place = -1.0, (0, min(1, len(passage.atoms)))
    for first in range(len(passage.atoms)):
        found: set[str] = set()
        for last in range(first, min(first + _LONGEST_WINDOW, len(passage.atoms))):
            found |= telling.keys() & passage.atoms[last].terms
            score = sum(telling[term] for term in found) / total - 0.03 * (last - first)
            if score > best:
                best, place = score, (first, last + 1)
    return place


def share(telling: Mapping[str, float], held: Iterable[str]) -> float:
    total = sum(telling.values())
    held = set(held)
    return sum(weight for term, weight in telling.items() if term in held) / total if total else 0.0


def in_order(sentence: str, text: str) -> float:
    """How much of a sentence's characters (or words) stand in `text` in the same order, 0 to 1."""
    said, held = (re.findall(r"[\u3400-\u9fff]|[^\W\u3400-\u9fff]+", fold(each)) for each in (sentence, text))
    if not said:
        return 0.0
    blocks = SequenceMatcher(None, said, held, autojunk=False).get_matching_blocks()
    return sum(block.size for block in blocks if block.size > 1 or len(said) < 4) / len(said)


FEATURES = (
    "covered",
    "covered_passage",
    "order",
    "near",
    "number_lacking",
    "number_elsewhere",
    "name_lacking",
    "name_elsewhere",
    "place",
    "rare_run",
    "long_run",
    "added",
    "removed",
    "opposite",
    "near_order",
    "numbers_held",
    "han_name",
    "denies_more",
    "denies_less",
    "added_some",
)


def features(sentence: str, passage: Source, telling: Mapping[str, float], nearness: float) -> list[float]:
    """FEATURES of a sentence and a passage in one language."""
    first, last = window(telling, passage)
    start = passage.atoms[first].start if passage.atoms else 0
    end = passage.atoms[last - 1].end if passage.atoms else 0
    text = passage.text[start:end]
    held = set(terms(text))
    said = numbers(sentence)
    wide = passage.text[
        passage.atoms[max(0, first - 1)].start if passage.atoms else 0 : passage.atoms[
            min(len(passage.atoms), last + 1) - 1
        ].end
        if passage.atoms
        else 0
    ]
    absent = lacking(said, passage.numbers)
    elsewhere = [number for number in lacking(said, numbers(wide)) if number not in absent]
    names = claims.latin_names(sentence)
    gone = claims.lacking_latin(names, passage.terms)
    far = [name for name in claims.lacking_latin(names, held) if name not in gone]
    other_names = [n for n in claims.latin_names(text) if not set(terms(n)) <= set(terms(sentence))]
    runs = [run for run, _ in claims.unknown_runs(sentence, passage.pairs)] if passage.chinese else []
    persons = claims.unknown_names(sentence, fold(passage.text)) if passage.chinese else []
    polarity = claims.polarity(sentence, wide)
    soft = claims.softened(wide), claims.softened(sentence)
    order = in_order(sentence, text)
    covered = share(telling, held)
    length = max(len(re.findall("[\u3400-\u9fff]", sentence)), 1)
    return [
        covered,
        share(telling, passage.terms),
        order,
        nearness,
        min(len(absent), 2),
        min(len(elsewhere), 2),
        min(len(gone), 2),
        min(len(far), len(other_names), 2),
        min(len(claims.foreign_places(sentence, passage.text)), 2),
        max((claims.rarity(run) * min(len(run), 4) / 4 for run in runs), default=0.0),
        max((len(run) for run in runs), default=0) / length,
        polarity.added * (0.5 if soft[0] else 1),
        polarity.removed * (0.5 if soft[1] else 1),
        min(len(polarity.opposite), 1),
        order * max((min(len(run), 4) / 4 for run in runs), default=0.0) if passage.chinese else order * (1 - covered),
        float(bool(said) and not absent),
        min(len(persons), 2),
        order * max(0, min(1, len(claims.negations(sentence)) - len(claims.negations(text)))),
        order * max(0, min(1, len(claims.negations(text)) - len(claims.negations(sentence)))) * covered,
        float(polarity.added > 0.3),
    ]
