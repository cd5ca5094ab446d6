"""Candidates in order: keywords, the best sentences and meaning weighed together, two languages put into one list."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from knowledge.database import StoredChunk
from knowledge.terms import terms

# What a candidate's three figures weigh, close to what `python -m benchmarks.fit_retrieval` finds; the optimum is flat.
# Weighing the figures themselves beats adding reciprocal ranks, which forget by how much one is ahead of the next.
KEYWORDS, WINDOW, NEARNESS = 6.0, 9.6, 8.0

# A passage in the other language shares hardly a word with the question. This stands for the words: it puts a passage
# that means the same behind one that says so in the question's own language, and before those that merely share words.
OTHER_LANGUAGE = 3.5
# How the other language is kept from pushing out the question's own, where most answers are.
FIRST, AMONG_FIRST, OTHERS_AMONG_FIRST = 1, 5, 2

_SENTENCES = re.compile(r"(?<=[。！？；!?;])|(?<=\.)\s+|\n")


@dataclass(frozen=True)
class Candidate:
    """A chunk and how it fits the question.

    keywords: BM25, as a share of the best possible. window: the share of the question's terms, weighed, that two
    consecutive sentences hold. nearness: of its meaning, 1 as right passages usually are, 0 as wrong ones; None as
    long as it has no embedding. own: it is in the question's language. names: of the question's names, those that it
    has in Latin letters, which are the same in any language.
    """

    chunk: StoredChunk
    keywords: float
    window: float
    nearness: float | None
    own: bool = True
    names: frozenset[str] = frozenset()

    @cached_property
    def score(self) -> float:
        nearness = self.likely_nearness
        if not self.own:
            return NEARNESS * nearness + OTHER_LANGUAGE
        return KEYWORDS * self.keywords + WINDOW * self.window + NEARNESS * nearness

    @property
    def likely_nearness(self) -> float:
        """What is not embedded yet is taken to be as near as passages with such words are on average."""
        return 0.5 + 0.8 * self.window if self.nearness is None else self.nearness


def window(weights: Mapping[str, float], text: str) -> float:
    """The largest share of `weights`, by term, that two consecutive sentences of `text` hold, 0 to 1."""
    held = [weights.keys() & terms(sentence) for sentence in _SENTENCES.split(text) if sentence.strip()]
    pairs = [first | second for first, second in pairwise([set(), *held])]
    return max((share(weights, pair) for pair in pairs), default=0.0)


def share(weights: Mapping[str, float], held) -> float:
    """The share of `weights` that the terms in `held` have, 0 to 1."""
    return sum(weight for term, weight in weights.items() if term in held) / (sum(weights.values()) or 1)


def in_order(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Best first. One in the other language is first only for a name that none in the question's own has, and few are
    among the first, unless there are no others."""
    ranked = sorted(candidates, key=lambda candidate: -candidate.score)
    own = [candidate for candidate in ranked if candidate.own]
    others = [candidate for candidate in ranked if not candidate.own]
    return list(_merge(own, others))


def _merge(own: list[Candidate], others: list[Candidate]) -> Iterator[Candidate]:
    known = frozenset().union(*(candidate.names for candidate in own))
    first = 0 if others and others[0].names - known else FIRST
    taken = 0  # of the others
    for place in range(len(own) + len(others)):
        mine, other = own[place - taken : place - taken + 1], others[taken : taken + 1]
        held_back = place < first or (place < AMONG_FIRST and taken >= OTHERS_AMONG_FIRST)
        if other and (not mine or (not held_back and other[0].score > mine[0].score)):
            taken += 1
            yield other[0]
        else:
            yield mine[0]


def by_words(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that hold words of the question, best first."""
    found = [candidate for candidate in candidates if candidate.keywords > 0]
    return sorted(found, key=lambda candidate: -candidate.keywords)


def by_meaning(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that have an embedding, nearest first."""
    found = [candidate for candidate in candidates if candidate.nearness is not None]
    return sorted(found, key=lambda candidate: -candidate.nearness)


#: Ways to put candidates in order. Each of the last two is what other programs do alone, to be compared with.
METHODS: Mapping[str, Callable[[Sequence[Candidate]], list[Candidate]]] = {
    "both": in_order,
    "words": by_words,
    "meaning": by_meaning,
}
