"""Finding passages: candidates by meaning and by words, weighed together, joined where they touch, then judged."""

import json
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from knowledge import ranking, relevance, terms
from knowledge.background import LANGUAGES, Background
from knowledge.database import Database, StoredChunk
from knowledge.keywords import Corpus, KeywordIndex, Matches
from knowledge.ranking import Candidate

Rerank = Callable[[str, Sequence[str]], Sequence[float]]
"""Scores of passages for a question, a cross-encoder's for example."""

_CANDIDATES = 40  # of each ranking
_RERANKED = 20
_JOINED = 3  # chunks in a passage at most
_SHORTEST_OVERLAP = 8  # characters

# A score becomes a probability: even at the middle. From the same fit as the relevance.
_MIDDLE, _SLOPE = 13.8, 0.62


@dataclass(frozen=True)
class Passage:
    """A found piece of a document, under its headings: `page` is 1-based or None, `label` the name of a sheet.

    score: about how likely it is that it answers, 0 to 1. base: the knowledge base that it is from, where several are
    asked.
    """

    name: str
    page: int | None
    score: float
    text: str
    document: str
    label: str | None = None
    base: str | None = None


@dataclass(frozen=True)
class Findings:
    """Passages, best first, and how likely it is that they answer the question, 0 to 1."""

    passages: tuple[Passage, ...] = ()
    relevance: float = 0.0

    @property
    def answered(self) -> bool:
        """False where the documents had better be said not to answer; the passages are then the nearest there are."""
        return self.relevance >= relevance.ANSWERED

    @property
    def near(self) -> bool:
        """Whether they may answer all the same, so that what is nearest is worth quoting."""
        return self.relevance >= relevance.NEAR


@dataclass(frozen=True)
class Where:
    """Which documents are searched: those with one of `names`, from below `folder`, added (seconds since 1970) from
    `since` on and before `until`, with one of the ids `documents`. What is None does not matter."""

    names: Collection[str] | None = None
    folder: str | None = None
    since: float | None = None
    until: float | None = None
    documents: Collection[str] | None = None

    def chunk_ids(self, database: Database) -> np.ndarray | None:
        """The ids of their chunks, ascending, int64; None if all are searched."""
        conditions = [(text, value) for text, value in self._conditions() if value is not None]
        if not conditions:
            return None
        query = (
            "SELECT chunks.id FROM chunks JOIN documents ON documents.id = document "
            f"WHERE {' AND '.join(text for text, _ in conditions)} ORDER BY chunks.id"
        )
        return np.array([id for (id,) in database.rows(query, [value for _, value in conditions])], np.int64)

    def _conditions(self) -> Iterable[tuple[str, str | float | None]]:
        folder = self.folder
        yield "name IN (SELECT value FROM json_each(?))", _listed(self.names)
        yield "documents.id IN (SELECT value FROM json_each(?))", _listed(self.documents)
        yield "instr(path, ?) = 1", folder if folder is None else os.path.join(folder, "")
        yield "added >= ?", self.since
        yield "added < ?", self.until


def _listed(values: Collection[str] | None) -> str | None:
    return values if values is None else json.dumps(list(values))


EVERYWHERE = Where()


@dataclass(frozen=True)
class Meaning:
    """How near embedded chunks are to a question: ids, ascending, int64 [n], nearness, float64 [n], and whether each is
    in the question's language, bool [n]. Chunks in a language that the model doesn't find with this one are left out.
    """

    ids: np.ndarray
    nearness: np.ndarray
    own: np.ndarray

    def within(self, allowed: np.ndarray | None) -> "Meaning":
        kept = slice(None) if allowed is None else np.isin(self.ids, allowed)
        return Meaning(self.ids[kept], self.nearness[kept], self.own[kept])

    def best(self, own: bool) -> list[int]:
        """The nearest candidates in the question's language, or in the other."""
        ids, nearness = self.ids[self.own == own], self.nearness[self.own == own]
        return ids[_largest(nearness)].tolist()

    def by_id(self, ids: Sequence[int]) -> dict[int, float]:
        places = np.flatnonzero(np.isin(self.ids, ids))
        return dict(zip(self.ids[places].tolist(), self.nearness[places].tolist(), strict=True))


UNKNOWN = Meaning(np.empty(0, np.int64), np.empty(0), np.empty(0, bool))


def _largest(values: np.ndarray) -> np.ndarray:
    """Where the largest `values` [n] stand, at most _CANDIDATES of them, the largest first."""
    if len(values) <= _CANDIDATES:
        return np.argsort(-values, kind="stable")
    places = np.sort(np.argpartition(-values, _CANDIDATES)[:_CANDIDATES])
    return places[np.argsort(-values[places], kind="stable")]


def language(text: str) -> str:
    """One of LANGUAGES."""
    return "zh" if terms.is_chinese(text) else "other"


def meaning(
    background: Background,
    asked: str,
    chinese: np.ndarray,
    directions: np.ndarray,
    found: tuple[np.ndarray, np.ndarray],
) -> Meaning:
    """asked: the question's language. chinese: the ids of chunks in Chinese. found: ids and the inner products of their
    vectors with the background's `directions`."""
    ids, products = found
    nearness = np.full(len(ids), np.nan)
    own = np.isin(ids, chinese) == (asked == "zh")
    for held in LANGUAGES:
        rows = own == (held == asked)
        if held == asked or background.knows(asked, held):
            nearness[rows] = background.nearness(directions, products[rows], asked, held)
    known = ~np.isnan(nearness)
    return Meaning(ids[known], nearness[known], own[known])


@dataclass(frozen=True)
class Ranked:
    """Candidates, best first, the weights of the question's terms, and how near all passages in its language are."""

    candidates: list[Candidate]
    weights: Mapping[str, float]
    nearnesses: np.ndarray


def judge(question: str, ranked: Ranked) -> float:
    """How likely it is that the candidates answer, 0 to 1."""
    return relevance.relevance(question, ranked.weights, ranked.candidates, ranked.nearnesses)


class Retrieval:
    """Ranks the chunks of one knowledge base. `rerank` puts the best of them in order anew."""

    def __init__(self, database: Database, rerank: Rerank | None = None):
        self._database = database
        self._keywords = KeywordIndex(database.rows)
        self.rerank = rerank

    def chinese(self) -> np.ndarray:
        """The ids of the chunks in Chinese, ascending, int64."""
        return self._keywords.chinese()

    def find(self, question: str, k: int, where: Where, near: Meaning, method: str = "both") -> Findings:
        """The `k` best passages among the documents that `where` names, in the order of one of ranking.METHODS."""
        return findings(question, self.rank(question, where, near), k, method, self.rerank)

    def corpus(self, question: str) -> Corpus:
        """What weighs the terms of `question` here, for other bases that are asked at the same time."""
        return self._keywords.corpus(question)

    def rank(self, question: str, where: Where, near: Meaning, corpus: Corpus | None = None) -> Ranked:
        """The candidates among the documents that `where` names, before anything is joined or left out."""
        allowed = where.chunk_ids(self._database)
        matches, near = self._keywords.search(question, corpus).within(allowed), near.within(allowed)
        candidates = ranking.in_order(self._candidates(question, matches, near))
        return Ranked(candidates, matches.weights, near.nearness[near.own])

    def _candidates(self, question: str, matches: Matches, near: Meaning) -> list[Candidate]:
        asked, names = language(question), _latin_names(question)
        by_words = matches.ids[_largest(matches.scores)].tolist()
        ids = list(dict.fromkeys([*by_words, *near.best(own=True), *near.best(own=False)]))
        chunks, nearness = self._database.chunks(ids), near.by_id(ids)
        keywords = dict(zip(ids, matches.of(np.array(ids, np.int64)) / (matches.best_possible or 1), strict=True))
        return [
            Candidate(
                chunks[id],
                float(keywords[id]),
                ranking.window(matches.weights, chunks[id].passage),
                nearness.get(id),
                language(chunks[id].passage) == asked,
                names.intersection(terms.terms(chunks[id].passage)) if names else names,
            )
            for id in ids
            if id in chunks
        ]


def _latin_names(question: str) -> frozenset[str]:
    said = (term for part in terms.particulars(question) for term in part)
    return frozenset(term for term in said if term.isascii() and any(map(str.isalpha, term)))


def findings(question: str, ranked: Ranked, k: int, method: str, rerank: Rerank | None) -> Findings:
    """The `k` best passages of what was ranked, in the order of one of ranking.METHODS."""
    candidates = ranking.METHODS[method](ranked.candidates)
    if rerank is not None:
        candidates = _reranked(question, candidates, rerank)
    return Findings(tuple(_passages(candidates, k)), judge(question, ranked))


def together(ranked: Mapping[str, Ranked]) -> Ranked:
    """What was ranked in several bases, by name, with the same corpus and the same embedding model, as one."""
    found = [
        replace(candidate, chunk=replace(candidate.chunk, base=name))
        for name, each in ranked.items()
        for candidate in each.candidates
    ]
    weights = next((each.weights for each in ranked.values()), {})
    nearnesses = np.concatenate([np.empty(0), *(each.nearnesses for each in ranked.values())])
    return Ranked(ranking.in_order(found), weights, nearnesses)


def _reranked(question: str, ranked: list[Candidate], rerank: Rerank) -> list[Candidate]:
    first = ranked[:_RERANKED]
    scores = rerank(question, [candidate.chunk.passage for candidate in first])
    order = sorted(range(len(first)), key=lambda place: -scores[place])
    return [first[place] for place in order] + ranked[_RERANKED:]


def _passages(ranked: Sequence[Candidate], k: int) -> list[Passage]:
    """`k` passages: chunks that touch each other joined, what says the same as a better one left out."""
    groups: list[list[StoredChunk]] = []
    scores: list[float] = []
    seen: set[tuple[str, ...]] = set()
    for candidate in ranked:
        if _join(groups, candidate.chunk):
            continue
        if len(groups) == k:
            break
        said = tuple(terms.terms(candidate.chunk.text))
        if said not in seen:
            groups.append([candidate.chunk])
            seen.add(said)
            # Where another order than that of the scores was chosen, the score follows the order.
            scores.append(min(relevance.logistic(_SLOPE * (candidate.score - _MIDDLE)), *scores[-1:], 1.0))
    return [_passage(group, score) for group, score in zip(groups, scores, strict=True)]


def _join(groups: list[list[StoredChunk]], chunk: StoredChunk) -> bool:
    """Put `chunk` to a group that it touches; whether there was one."""
    for group in groups:
        first, last = group[0], group[-1]
        if len(group) < _JOINED and _page_of(chunk) == _page_of(first):
            if chunk.position == last.position + 1:
                group.append(chunk)
                return True
            if chunk.position == first.position - 1:
                group.insert(0, chunk)
                return True
    return False


def _page_of(chunk: StoredChunk) -> tuple[str | None, str, int | None, str | None]:
    return chunk.base, chunk.document, chunk.page, chunk.label


def _passage(group: Sequence[StoredChunk], score: float) -> Passage:
    first = group[0]
    text = first.passage
    for before, chunk in pairwise(group):
        new = chunk.text if chunk.headings == before.headings else chunk.passage
        text += _continued(text, new)
    return Passage(first.name, first.page, score, text, first.document, first.label, first.base)


def _continued(text: str, more: str) -> str:
    """What `more` adds to `text`: it may begin with the last sentence of it again."""
    for length in range(min(len(text), len(more)), _SHORTEST_OVERLAP - 1, -1):
        if text.endswith(more[:length]):
            return more[length:]
    return f"\n{more}"
