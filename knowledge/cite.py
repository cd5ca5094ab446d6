"""Which passages the sentences of an answer draw on, and which sentences nothing supports; no language model is asked.

Each sentence is held against the passages by its words, by their order and by meaning; its numbers, names and negations
are compared exactly, since a sentence that is wrong in one of them shares nearly all the rest.
`python -m benchmarks.fit_citations` finds the weights; docs/citations.md says from which sentences, and what it gives.
"""

import functools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

import numpy as np
from langchain_core.embeddings import Embeddings

from knowledge import claims
from knowledge.background import LANGUAGES, Background
from knowledge.numbers import Number, lacking, numbers
from knowledge.relevance import logistic
from knowledge.sentences import Piece, Sentences
from knowledge.terms import content, fold, is_chinese, terms
from knowledge.vectors import unit_rows

# Of the passage that a sentence may be about, in its own language.
TOPIC = ("covered", "in_order", "covered_lead", "near_lead", "numbers_held", "numbers_lacking")
TOPIC_WEIGHTS = (3.4, 3.31, 6.06, 3.76, 0.7, -1.61)
TOPIC_BIAS = -1.64
# Whether it then says the same.
SOUND = ("numbers_lacking", "names_lacking", "places_lacking", "han_names", "added", "removed", "departs")
SOUND_WEIGHTS = (-5.42, -3.77, -4.42, -4.51, -5.52, -10.41, -2.93)
SOUND_BIAS = 2.7
# Of a passage in the other language, where words can't be compared.
OTHER = ("near", "near_lead", "numbers_lacking", "numbers_held", "places_lacking")
OTHER_WEIGHTS = (1.94, 6.1, -1.4, 1.66, -0.25)
OTHER_BIAS = -1.86
ABOUT, OTHER_ABOUT = 0.5, 0.4  # from here on a sentence is taken to be about a passage
SAME = 0.6  # and from here on to say what that says

_LONGEST_WINDOW = 6  # clauses that a sentence may sum up
_CLAUSE_COST = 0.03  # of a sentence's words, which another clause must add
_USUAL_COVER, _USUAL_NEARNESS = 0.1, 0.4  # of another passage, where there is none to compare with
_VERBATIM_COVER, _VERBATIM_ORDER = 0.8, 0.7  # from here on meaning says nothing new
_CLOSE = 0.5  # in order: the opposite of a word stands where it stood
# A line's end is none of a clause where the next line goes on with it.
_CLAUSE = re.compile(
    r"\S.*?(?:(?:[。！？；，,;!?]|\n(?! *[a-z(]))+[”’」』）\"')\]]*|\.(?=\s|$)[\"')\]]*|$)",
    re.DOTALL,
)
_TOKEN = re.compile(r"[\u3400-\u9fff]|[^\W\u3400-\u9fff]+")
_OWN_MARK = re.compile(r"\[\d{1,2}\]|【\d{1,2}】")


@dataclass(frozen=True)
class Problem:
    """What the passage contradicts or lacks: `text` of the sentence, which is a number, a name or a negation."""

    kind: str
    text: str


@dataclass(frozen=True)
class Span:
    """What a sentence draws on: of the passage with this number, counted from 1, the characters from start to end."""

    passage: int
    start: int
    end: int


@dataclass(frozen=True)
class Citation:
    """spans: of a sentence that is not supported, what it comes nearest to, if it is about a passage.

    chatter: it says nothing that could be supported.
    """

    spans: tuple[Span, ...] = ()
    supported: bool = False
    problems: tuple[Problem, ...] = ()
    chatter: bool = False

    @property
    def passages(self) -> tuple[int, ...]:
        """The numbers of the passages that support the sentence."""
        return tuple(dict.fromkeys(span.passage for span in self.spans)) if self.supported else ()


@dataclass(frozen=True)
class Cited:
    """A sentence of an answer, from start to end of its text, with its citation."""

    start: int
    end: int
    citation: Citation


def cite(
    sentence: str, passages: Sequence[str], embeddings: Embeddings | None, background: Background | None = None
) -> Citation:
    """What of `passages` a sentence draws on. For more than one sentence, `Citer` embeds the passages once."""
    return Citer(passages, embeddings, background).cite(sentence)


class Citer:
    """Cites an answer that comes piece by piece from the passages that its prompt numbered from 1.

    embeddings: for paraphrases and for the other language; without them words decide alone. background: what is known
    of them (`Background.measure`), measured when first needed if it is not given. vectors: of those passages that were
    embedded before.
    """

    def __init__(
        self,
        passages: Sequence[str],
        embeddings: Embeddings | None = None,
        background: Background | None = None,
        vectors: Mapping[str, np.ndarray] | None = None,
    ):
        self._sources = [Source.of(passage) for passage in passages]
        self._embeddings = embeddings
        self._given = background
        self._known = vectors or {}
        self._sentences = Sentences()

    def prepare(self) -> None:
        """Embed the passages now, such as while a model reads its prompt, and not at the first sentence."""
        if self._embeddings is not None and self._sources:
            _ = self._background, self._vectors

    def feed(self, text: str) -> list[Cited]:
        """The sentences that `text` ends, at their places in all that was fed."""
        return self._cited(self._sentences.feed(text))

    def end(self) -> list[Cited]:
        """The last sentence, where nothing ended it."""
        return self._cited(self._sentences.end())

    def _cited(self, pieces: Iterable[Piece]) -> list[Cited]:
        return [Cited(piece.start, piece.end, self.cite(piece.text)) for piece in pieces]

    def cite(self, sentence: str) -> Citation:
        sentence = _OWN_MARK.sub("", sentence).strip()
        if claims.is_chatter(sentence):
            return Citation(chatter=True)
        matches = self.matches(sentence)
        if not matches:
            return Citation()
        best = max(matches, key=lambda match: match.topic)
        if not best.is_about:
            return Citation()
        if best.sound >= SAME:
            return Citation((best.span,), supported=True)
        return Citation((best.span,), problems=tuple(best.problems()))

    def matches(self, sentence: str) -> list["Match"]:
        """The sentence beside each passage, in their order."""
        chinese = is_chinese(sentence)
        telling = _telling(sentence, self._sources)
        found = [Match(number, source, sentence, chinese, telling) for number, source in enumerate(self._sources, 1)]
        if found:
            self._compare(sentence, chinese, found)
        return found

    def _compare(self, sentence: str, chinese: bool, found: Sequence["Match"]) -> None:
        """Fill in nearness, and what each match has ahead of the next."""
        first = max(found, key=lambda match: match.covered)
        verbatim = first.covered >= _VERBATIM_COVER and first.in_order >= _VERBATIM_ORDER
        if self._embeddings is None or verbatim:
            nearness = [_USUAL_NEARNESS + match.covered for match in found]
        else:
            nearness = self._nearness(sentence, chinese)
        for match, near in zip(found, nearness, strict=True):
            match.near = near
        for match in found:
            others = [other for other in found if other is not match]
            match.covered_lead = match.covered - max((other.covered for other in others), default=_USUAL_COVER)
            match.near_lead = match.near - max((other.near for other in others), default=_USUAL_NEARNESS)

    def _nearness(self, sentence: str, chinese: bool) -> list[float]:
        asked = LANGUAGES[not chinese]
        query = unit_rows(self._embeddings.embed_query(sentence))[0]
        directions = self._background.directions(query, asked)
        products = self._vectors @ directions.T  # [passages, 1 + languages]
        return [
            float(self._background.nearness(directions, row[None], asked, LANGUAGES[not source.chinese])[0])
            for source, row in zip(self._sources, products, strict=True)
        ]

    @functools.cached_property
    def _background(self) -> Background:
        return self._given or Background.measure(self._embeddings)

    @functools.cached_property
    def _vectors(self) -> np.ndarray:
        """Of the passages, float32 [passages, dimension]."""
        texts = [source.text for source in self._sources]
        new = [text for text in texts if text not in self._known]
        vectors = {**self._known, **dict(zip(new, self._embeddings.embed_documents(new) if new else (), strict=True))}
        return unit_rows([vectors[text] for text in texts])


@dataclass(frozen=True)
class _Clause:
    start: int
    end: int
    terms: frozenset[str]


@dataclass(frozen=True)
class Source:
    """A passage with what sentences are compared with."""

    text: str
    folded: str
    chinese: bool
    clauses: tuple[_Clause, ...]
    terms: frozenset[str]
    numbers: tuple[Number, ...]

    @classmethod
    def of(cls, text: str) -> "Source":
        clauses = [_Clause(match.start(), match.end(), frozenset(terms(match[0]))) for match in _CLAUSE.finditer(text)]
        return cls(
            text,
            fold(text),
            is_chinese(text),
            tuple(clauses) or (_Clause(0, len(text), frozenset()),),
            frozenset(terms(text)),
            tuple(numbers(text)),
        )

    def window(self, telling: Mapping[str, float]) -> tuple[int, int]:
        """The clauses, from and to (exclusive), that share most with a sentence for their number."""
        total = sum(telling.values()) or 1.0
        best, place = -1.0, (0, 1)
        for first in range(len(self.clauses)):
            found: set[str] = set()
            for last, clause in enumerate(self.clauses[first : first + _LONGEST_WINDOW], first):
                found |= telling.keys() & clause.terms
                score = sum(telling[term] for term in found) / total - _CLAUSE_COST * (last - first)
                if score > best:
                    best, place = score, (first, last + 1)
        return place

    def cut(self, first: int, last: int) -> str:
        """The text of clauses, from and to (exclusive); those that there are."""
        return self.text[self.clauses[max(0, first)].start : self.clauses[min(last, len(self.clauses)) - 1].end]


class Match:
    """A sentence beside a passage. `near` and both leads are told by whoever knows the other passages."""

    near = covered_lead = near_lead = 0.0

    def __init__(self, number: int, source: Source, sentence: str, chinese: bool, telling: Mapping[str, float]):
        self.number, self.source, self.sentence = number, source, sentence
        self.own = chinese == source.chinese
        self._telling = telling
        self._place = source.window(telling)
        self.said = numbers(sentence)
        self.absent_numbers = lacking(self.said, source.numbers)
        # Names in capitals can be compared with Chinese text only where that has them too.
        self.names = claims.latin_names(sentence) if self.own or chinese else []
        self.absent_names = claims.lacking_latin(self.names, source.terms)
        self.absent_places = claims.foreign_places(sentence, source.text)

    @functools.cached_property
    def covered(self) -> float:
        """How much of the sentence's words the best clauses have, 0 to 1."""
        held = terms(self.source.cut(*self._place))
        total = sum(self._telling.values())
        return sum(self._telling.get(term, 0.0) for term in set(held)) / total if total else 0.0

    @functools.cached_property
    def in_order(self) -> float:
        """How much of the sentence stands in them in the same order, 0 to 1."""
        said, held = (_TOKEN.findall(fold(text)) for text in (self.sentence, self.source.cut(*self._place)))
        blocks = SequenceMatcher(None, said, held, autojunk=False).get_matching_blocks()
        return sum(block.size for block in blocks if block.size > 1 or len(said) < 4) / max(len(said), 1)

    @functools.cached_property
    def absent_han_names(self) -> list[str]:
        return claims.unknown_names(self.sentence, self.source.folded) if self.own and self.source.chinese else []

    @functools.cached_property
    def polarity(self) -> claims.Polarity:
        return claims.polarity(self.sentence, self._around)

    @property
    def _around(self) -> str:
        """The best clauses, with one more before and behind."""
        first, last = self._place
        return self.source.cut(first - 1, last + 1)

    @property
    def span(self) -> Span:
        first, last = self._place
        text = self.source.cut(first, last).rstrip()
        start = self.source.clauses[first].start
        return Span(self.number, start, start + len(text))

    @functools.cached_property
    def topic(self) -> float:
        """How likely the sentence is about the passage, 0 to 1."""
        weights, bias = (TOPIC_WEIGHTS, TOPIC_BIAS) if self.own else (OTHER_WEIGHTS, OTHER_BIAS)
        return logistic(float(np.dot(weights, self.features(TOPIC if self.own else OTHER))) + bias)

    @functools.cached_property
    def sound(self) -> float:
        """How likely it then says what the passage says, 0 to 1."""
        if not self.own:  # of the other language only what is written alike can be compared
            return float(not (self.absent_numbers or self.absent_names or self.absent_places))
        return logistic(float(np.dot(SOUND_WEIGHTS, self.features(SOUND))) + SOUND_BIAS)

    @property
    def is_about(self) -> bool:
        return self.topic >= (ABOUT if self.own else OTHER_ABOUT)

    def features(self, names: Iterable[str]) -> list[float]:
        return [float(getattr(self, name)) for name in names]

    @property
    def numbers_held(self) -> bool:
        return bool(self.said) and not self.absent_numbers

    @property
    def numbers_lacking(self) -> int:
        return min(len(self.absent_numbers), 2)

    @property
    def names_lacking(self) -> int:
        return min(len(self.absent_names), 2)

    @property
    def places_lacking(self) -> int:
        return min(len(self.absent_places), 2)

    @property
    def han_names(self) -> int:
        return min(len(self.absent_han_names), 2)

    @property
    def added(self) -> float:
        return self.polarity.added * (
            0.5 if claims.softened(self.source.cut(self._place[0] - 1, self._place[1] + 1)) else 1
        )

    @property
    def removed(self) -> float:
        turned = bool(self.polarity.opposite) and self.in_order > _CLOSE
        return max(self.polarity.removed * (0.5 if claims.softened(self.sentence) else 1), 0.5 * turned)

    @property
    def departs(self) -> float:
        """How closely the sentence follows the passage where it has a stretch that the passage lacks."""
        if not self.source.chinese:
            return self.in_order * (1 - self.covered)
        runs = claims.unknown_runs(self.sentence, self.source.terms)
        return self.in_order * max((min(len(run), 4) / 4 for run, _ in runs), default=0.0)

    def problems(self) -> Iterable[Problem]:
        """Why the sentence is not taken to be sound."""
        yield from (Problem("number", number.text) for number in self.absent_numbers)
        names = dict.fromkeys([*self.absent_names, *self.absent_places, *self.absent_han_names])
        yield from (Problem("name", name.split("|")[0]) for name in names)
        if self.own and (self.polarity.added or self.polarity.removed):
            yield Problem("negation", " ".join(claims.negations(self.sentence)))


def _telling(sentence: str, sources: Sequence[Source]) -> dict[str, float]:
    """The terms of a sentence that say something, each with how telling it is among these passages."""
    held = {term: sum(term in source.terms for source in sources) for term in content(sentence)}
    return {
        # Single Chinese characters tell little; they are for words that are put the other way round.
        term: (0.15 if len(term) == 1 and not term.isascii() else 1.0)
        * (0.4 + math.log(1 + len(sources) / (1 + count)))
        for term, count in held.items()
    }
