"""Which passages the sentences of an answer draw on, and which sentences nothing supports; no language model is asked.

Each sentence is held against the passages by its words, by their order and by meaning; its numbers, names and negations
are compared exactly, since a sentence that is wrong in one of them shares nearly all the rest.
`python -m benchmarks.fit_citations` finds the weights; docs/citations.md says from which sentences, and what it gives.
"""

import functools
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from langchain_core.embeddings import Embeddings

from knowledge import claims
from knowledge.alignment import Alignment, tokens
from knowledge.background import LANGUAGES, Background
from knowledge.numbers import Number, lacking, numbers
from knowledge.relevance import logistic
from knowledge.sentences import Piece, Sentences
from knowledge.statements import sentences_of
from knowledge.terms import content, fold, is_chinese, terms
from knowledge.vectors import unit_rows

_LONGEST_WINDOW = 6  # clauses that a sentence may sum up
_CLAUSE_COST = 0.03  # of a sentence's words, which another clause must add
_USUAL_NEARNESS = 0.4
_LEADS = {"covered": 0.1, "near": _USUAL_NEARNESS, "nearest": _USUAL_NEARNESS}  # usual in a passage that is not the one
_WHOLE_ORDER = 0.97  # of a sentence in the passage's order: nothing is put in another's place there
_VERBATIM_COVER, _VERBATIM_ORDER = 0.8, 0.7  # from here on meaning says nothing new
_STRANGE_COVER, _STRANGE_NEARNESS = 0.1, 0.1  # with less of both a sentence is about none, however far ahead one is
_SMALL = 0.5  # of a number: what is counted in words may follow from a list, or be no count
_READ = 8  # passages whose sentences are embedded too
# A line's end is none of a clause where the next line goes on with it.
_CLAUSE = re.compile(
    r"\S.*?(?:(?:[。！？；，,;!?]|\n(?! *[a-z(]))+[”’」』）\"')\]]*|\.(?=\s|$)[\"')\]]*|$)",
    re.DOTALL,
)
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
        return Citation(chatter=True) if claims.is_chatter(sentence) else judged(self.matches(sentence))

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
            nearness = [(_USUAL_NEARNESS + match.covered,) * 2 for match in found]
        else:
            nearness = self._nearness(sentence, chinese)
        for match, (near, nearest) in zip(found, nearness, strict=True):
            match.near, match.nearest = near, nearest
        for name, usual in _LEADS.items():
            _set_lead(found, name, usual)

    def _nearness(self, sentence: str, chinese: bool) -> list[tuple[float, float]]:
        """How near each passage is as a whole, and its nearest sentence."""
        asked = LANGUAGES[not chinese]
        query = unit_rows(self._embeddings.embed_query(sentence))[0]
        directions = self._background.directions(query, asked)
        found = []
        for source, rows in zip(self._sources, self._vectors, strict=True):
            held = LANGUAGES[not source.chinese]
            whole, *parts = self._background.nearness(directions, rows @ directions.T, asked, held).tolist()
            found.append((whole, max(parts, default=whole)))
        return found

    @functools.cached_property
    def _background(self) -> Background:
        return self._given or Background.measure(self._embeddings)

    @functools.cached_property
    def _vectors(self) -> list[np.ndarray]:
        """Of each passage its own vector and those of its sentences, float32 [1 + sentences, dimension]."""
        parts = [
            [source.text, *(source.sentences if place < _READ else ())] for place, source in enumerate(self._sources)
        ]
        new = [text for text in dict.fromkeys(itertools.chain(*parts)) if text not in self._known]
        vectors = {**self._known, **dict(zip(new, self._embeddings.embed_documents(new) if new else (), strict=True))}
        return [unit_rows([vectors[text] for text in texts]) for texts in parts]


def _set_lead(found: Sequence["Match"], name: str, usual: float) -> None:
    """Fill in how far each match has more of a figure than the best of the others."""
    for match in found:
        others = [getattr(other, name) for other in found if other is not match]
        setattr(match, f"{name}_lead", getattr(match, name) - max(others, default=usual))


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

    @functools.cached_property
    def sentences(self) -> list[str]:
        return [sentence.text for sentence in sentences_of(0, self.text)]

    @functools.cached_property
    def names(self) -> frozenset[str]:
        return _names(self.text)

    def cut(self, first: int, last: int) -> str:
        """The text of clauses, from and to (exclusive); those that there are."""
        return self.text[self.clauses[max(0, first)].start : self.clauses[min(last, len(self.clauses)) - 1].end]


class Match:
    """A sentence beside a passage. Nearness and leads are told by whoever knows the other passages."""

    near = nearest = covered_lead = near_lead = nearest_lead = 0.0

    def __init__(self, number: int, source: Source, sentence: str, chinese: bool, telling: Mapping[str, float]):
        self.number, self.source, self.sentence = number, source, sentence
        self.own = chinese == source.chinese
        self._telling = telling
        self._place = source.window(telling)
        self.said = numbers(sentence)
        self.absent_numbers = lacking(self.said, source.numbers)
        # Names in capitals can be compared with Chinese text only where that has them too.
        self.names = claims.latin_names(sentence) if self.own or chinese else []
        self.absent_names = claims.lacking_latin(self.names, source.terms | claims.place_words(source.text))
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
        return Alignment(self._tokens, tokens(self.source.cut(*self._place))).in_order

    @functools.cached_property
    def _tokens(self) -> list[str]:
        return tokens(self.sentence)

    @functools.cached_property
    def _replaced(self) -> claims.Replaced:
        """What stands where the best clauses have something else."""
        names, held_names = _names(self.sentence) | self._first_name, _names(self._around)
        alignments = [Alignment(self._tokens, tokens(self._around))]
        if alignments[0].in_order < _WHOLE_ORDER:
            alignments.append(Alignment(self._tokens, tokens(self._nearest_sentence), whole=True))
        return claims.Replaced.most(
            claims.replaced(alignment, names, held_names, self.source.folded) for alignment in alignments
        )

    @property
    def _first_name(self) -> frozenset[str]:
        """The sentence's first word if it is a name by the capital that the passage writes it with."""
        return self.source.names.intersection(self._tokens[:1] if self.sentence[:1].isupper() else ())

    @property
    def _nearest_sentence(self) -> str:
        """The sentence around the best clauses that it follows most; what stands in the next one is not beside it."""
        parts = [part.text for part in sentences_of(0, self._around)]
        return max(parts, key=lambda part: Alignment(self._tokens, tokens(part)).in_order, default=self._around)

    # Other words than the passage's say another thing where the sentence follows it, and the same in other words else.
    @property
    def replaced_name(self) -> float:
        return self._replaced.name * self.in_order

    @property
    def replaced(self) -> float:
        return self._replaced.words * self.in_order

    @property
    def replaced_number(self) -> float:
        return self._replaced.number * self.in_order

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

    @property
    def is_strange(self) -> bool:
        """Whether it has hardly a word of the passage, which is not near as a whole: one sentence may be by chance."""
        return self.own and self.covered < _STRANGE_COVER and self.near < _STRANGE_NEARNESS

    def features(self, names: Iterable[str]) -> list[float]:
        return [float(getattr(self, name)) for name in names]

    @property
    def numbers_held(self) -> bool:
        return bool(self.said) and not self.absent_numbers

    @property
    def numbers_lacking(self) -> float:
        return min(sum(_SMALL if number.is_small else 1 for number in self.absent_numbers), 2)

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
    def denied(self) -> float:
        """How surely one of the two denies what the other affirms, where they don't deny equally often."""
        return 0.0 if self._denies_alike else self._denied

    @property
    def denied_otherwise(self) -> float:
        """As `denied`, where they do: then it may be the same thing."""
        return self._denied if self._denies_alike else 0.0

    @property
    def _denies_alike(self) -> bool:
        return len(claims.negations(self.sentence)) == len(claims.negations(self.source.cut(*self._place)))

    @property
    def _denied(self) -> float:
        """It says the more the more words the two share."""
        added = self.polarity.added * (0.5 if claims.softened(self._around) else 1)
        removed = self.polarity.removed * (0.5 if claims.softened(self.sentence) else 1)
        return max(added, removed) * self.covered

    @property
    def opposite(self) -> float:
        """How much it shares with the passage where it has the opposite of a word of it."""
        return bool(self.polarity.opposite or self._replaced.opposite) * self.covered

    @property
    def departs(self) -> float:
        """How closely the sentence follows the passage where it has a stretch that the passage lacks."""
        if not self.source.chinese:
            return self.in_order * (1 - self.covered)
        runs = claims.unknown_runs(self.sentence, self.source.terms)
        return self.in_order * max((min(len(run), 4) * (1 + claims.rarity(run)) / 8 for run, _ in runs), default=0.0)

    def problems(self) -> Iterable[Problem]:
        """Why the sentence is not taken to be sound."""
        wrong = [number.text for number in self.absent_numbers]
        yield from (Problem("number", text) for text in wrong or self._replaced.numbers)
        names = dict.fromkeys([*self.absent_names, *self.absent_places, *self.absent_han_names, *self._replaced.names])
        yield from (Problem("name", name.split("|")[0]) for name in names)
        if self.own and (self.polarity.added or self.polarity.removed):
            yield Problem("negation", " ".join(claims.negations(self.sentence)))
        elif self.own and (opposite := [*self.polarity.opposite, *self._replaced.opposite]):
            yield Problem("negation", opposite[0])


@dataclass(frozen=True)
class Rule:
    """A logistic regression over figures of a match, by their names; what is as likely as `least` is taken for true."""

    weights: Mapping[str, float]
    bias: float
    least: float

    def likelihood(self, match: Match) -> float:
        return logistic(float(np.dot([*self.weights.values()], match.features(self.weights))) + self.bias)

    def holds(self, match: Match) -> bool:
        return self.likelihood(match) >= self.least


class Rules(NamedTuple):
    """topic: whether a sentence is about a passage in its language. sound: whether it then says the same.

    other: whether it is about a passage in the other language, where words can't be compared.
    """

    topic: Rule
    sound: Rule
    other: Rule

    def about(self, match: Match) -> Rule:
        return self.topic if match.own else self.other

    def is_sound(self, match: Match) -> bool:
        """Of the other language only what is written alike can be compared."""
        if match.own:
            return self.sound.holds(match)
        return match.numbers_lacking < 1 and not (match.absent_names or match.absent_places)


RULES = Rules(
    topic=Rule(
        {
            "covered": 2.43,
            "in_order": 3.34,
            "covered_lead": 4.29,
            "near_lead": 2.91,
            "nearest_lead": 2.34,
            "near": -3.85,
            "nearest": 7.57,
            "numbers_lacking": -1.48,
        },
        bias=-6.01,
        least=0.5,
    ),
    sound=Rule(
        {
            "numbers_lacking": -3.42,
            "names_lacking": -2.87,
            "places_lacking": -0.88,
            "han_names": -1.78,
            "denied": -10.57,
            "denied_otherwise": -4.19,
            "opposite": -4.86,
            "replaced_name": -5.23,
            "replaced": -3.66,
            "replaced_number": -6.57,
            "departs": -1.78,
        },
        bias=2.44,
        least=0.65,
    ),
    other=Rule(
        {
            "near_lead": 4.65,
            "nearest": 0.94,
            "nearest_lead": 6.0,
            "numbers_lacking": -1.26,
            "numbers_held": 1.45,
            "places_lacking": -1.19,
        },
        bias=-0.96,
        least=0.4,
    ),
)


def judged(matches: Sequence[Match], rules: Rules = RULES) -> Citation:
    """What a sentence draws on, from how it stands beside each passage."""
    best = max(matches, key=lambda match: rules.about(match).likelihood(match), default=None)
    if best is None or best.is_strange or not rules.about(best).holds(best):
        return Citation()
    if rules.is_sound(best):
        return Citation((best.span,), supported=True)
    return Citation((best.span,), problems=tuple(best.problems()))


def _names(text: str) -> frozenset[str]:
    """The words (folded) that are names by their capitals."""
    return frozenset(tokens(" ".join(claims.latin_names(text))))


def _telling(sentence: str, sources: Sequence[Source]) -> dict[str, float]:
    """The terms of a sentence that say something, each with how telling it is among these passages."""
    held = {term: sum(term in source.terms for source in sources) for term in content(sentence)}
    return {
        # Single Chinese characters tell little; they are for words that are put the other way round.
        term: (0.15 if len(term) == 1 and not term.isascii() else 1.0)
        * (0.4 + math.log(1 + len(sources) / (1 + count)))
        for term, count in held.items()
    }
