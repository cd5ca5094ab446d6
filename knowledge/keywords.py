"""The keyword index: BM25 over postings that live in the knowledge base's SQLite file and change with its chunks.

A row holds the postings of one term in one block of chunk ids: adding a chunk appends to a few hundred small rows, and
a question reads only the rows of its own terms. Nothing is kept in memory, and no query ever rebuilds anything.
"""

import json
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from knowledge import terms

# BM25's usual constants: how soon repetitions stop counting, and how much a long chunk is held against it.
_K1, _B = 1.2, 0.75

# Chunks taken to be there besides, with none of the terms: in a base of a few chunks every word that it has would be a
# common one, and every other a rare one.
_UNSEEN_CHUNKS = 200

_BLOCK_BITS = 12  # 4,096 chunks a block: some hundred postings for a usual term, so that appending stays cheap
_BLOCK = 1 << _BLOCK_BITS
# A posting is a little-endian uint32: the chunk's place in its block, then how often it has the term.
_COUNT_BITS = 32 - _BLOCK_BITS
_COUNT_MASK = (1 << _COUNT_BITS) - 1

# Rows about the chunks themselves stand under names that no term can have.
_LENGTH = "#length"  # the count is the number of the chunk's terms
_CHINESE = "#zh"

SCHEMA = """
CREATE TABLE IF NOT EXISTS keywords (
    term TEXT NOT NULL,
    block INTEGER NOT NULL, -- chunk id // 4096
    postings BLOB NOT NULL, -- uint32 each
    PRIMARY KEY (term, block)
) WITHOUT ROWID;
"""
_READ = "SELECT term, block, postings FROM keywords WHERE term IN (SELECT value FROM json_each(?))"
_APPEND = """
INSERT INTO keywords VALUES (?, ?, ?)
ON CONFLICT (term, block) DO UPDATE SET postings = CAST(postings || excluded.postings AS BLOB)
"""


@dataclass(frozen=True)
class Matches:
    """What a question's terms find: chunk ids, ascending, int64 [n], and their BM25 scores, float64 [n].

    weights: how much each term of the question says, by BM25's inverse document frequency, those that no chunk has too.
    """

    ids: np.ndarray
    scores: np.ndarray
    weights: Mapping[str, float]

    @property
    def best_possible(self) -> float:
        """The BM25 that a chunk with every term, repeated without end, would come near."""
        return sum(self.weights.values()) * (_K1 + 1)

    def of(self, ids: np.ndarray) -> np.ndarray:
        """The scores of the chunks `ids`, float64 [len(ids)]; 0 where nothing matches."""
        if not len(self.ids):
            return np.zeros(len(ids))
        places = np.minimum(np.searchsorted(self.ids, ids), len(self.ids) - 1)
        return np.where(self.ids[places] == ids, self.scores[places], 0)

    def within(self, allowed: np.ndarray | None) -> "Matches":
        """Those among the chunks `allowed`; all if it is None. Terms weigh what they weigh in the whole."""
        kept = slice(None) if allowed is None else np.isin(self.ids, allowed)
        return Matches(self.ids[kept], self.scores[kept], self.weights)


@dataclass(frozen=True)
class Corpus:
    """What weighs a question's terms: of the chunks that are searched how many there are, how many terms they have
    together, and how many chunks have each term of the question. Those of several bases add up."""

    chunks: int = 0
    length: int = 0
    having: Mapping[str, int] = field(default_factory=dict)

    def __add__(self, other: "Corpus") -> "Corpus":
        having = Counter(self.having)
        having.update(other.having)
        return Corpus(self.chunks + other.chunks, self.length + other.length, dict(having))


class KeywordIndex:
    """Reads through `rows(query, values)` and writes through the caller's connection, in the caller's transaction."""

    def __init__(self, rows: Callable[[str, tuple], Iterable[tuple]]):
        self._rows = rows

    def search(self, question: str, corpus: Corpus | None = None) -> Matches:
        """Every chunk that has a term of `question`, which weigh what they weigh in `corpus`, by default here."""
        asked = dict.fromkeys(terms.terms(question))
        found = self._read([_LENGTH, *asked])
        lengths = found.pop(_LENGTH, {})
        if not lengths:
            return Matches(np.empty(0, np.int64), np.empty(0), _weights(asked, corpus) if corpus else {})
        return _score(asked, found, lengths, corpus or _corpus(found, lengths))

    def corpus(self, question: str) -> Corpus:
        """What weighs the terms of `question` here."""
        found = self._read([_LENGTH, *dict.fromkeys(terms.terms(question))])
        return _corpus(found, found.pop(_LENGTH, {}))

    def chinese(self) -> np.ndarray:
        """The ids of the chunks in Chinese, ascending, int64."""
        return np.sort(_ids(self._read([_CHINESE]).get(_CHINESE, {})))

    def _read(self, names: Iterable[str]) -> dict[str, dict[int, np.ndarray]]:
        """term -> block -> postings, uint32."""
        found: dict[str, dict[int, np.ndarray]] = defaultdict(dict)
        for term, block, postings in self._rows(_READ, (json.dumps(list(names)),)):
            found[term][block] = np.frombuffer(postings, "<u4")
        return dict(found)


def add(connection: sqlite3.Connection, chunks: Mapping[int, str]) -> None:
    """Take in the texts of new chunks, by id."""
    connection.executemany(
        _APPEND, [(term, block, postings.tobytes()) for (term, block), postings in _postings(chunks).items()]
    )


def remove(connection: sqlite3.Connection, chunks: Mapping[int, str]) -> None:
    """Take out chunks, by id, whose texts must be those that were added."""
    for (term, block), postings in _postings(chunks).items():
        key = (term, block)
        row = connection.execute("SELECT postings FROM keywords WHERE term = ? AND block = ?", key).fetchone()
        kept = np.frombuffer(row[0] if row else b"", "<u4")
        kept = kept[~np.isin(kept >> _COUNT_BITS, postings >> _COUNT_BITS)]
        if len(kept):
            connection.execute("UPDATE keywords SET postings = ? WHERE term = ? AND block = ?", (kept.tobytes(), *key))
        else:
            connection.execute("DELETE FROM keywords WHERE term = ? AND block = ?", key)


def clear(connection: sqlite3.Connection) -> None:
    """Forget every chunk."""
    connection.execute("DELETE FROM keywords")


def _postings(chunks: Mapping[int, str]) -> dict[tuple[str, int], np.ndarray]:
    """(term, block) -> postings, uint32."""
    found: dict[tuple[str, int], list[int]] = defaultdict(list)
    for id, text in chunks.items():
        counts = Counter(terms.terms(text))
        counts[_LENGTH] = counts.total()
        if terms.is_chinese(text):
            counts[_CHINESE] = 1
        place = (id % _BLOCK) << _COUNT_BITS
        for term, count in counts.items():
            found[term, id // _BLOCK].append(place | min(count, _COUNT_MASK))
    return {key: np.array(postings, "<u4") for key, postings in found.items()}


def _corpus(found: dict[str, dict[int, np.ndarray]], lengths: dict[int, np.ndarray]) -> Corpus:
    counts = [postings & _COUNT_MASK for postings in lengths.values()]
    having = {term: sum(map(len, blocks.values())) for term, blocks in found.items()}
    return Corpus(sum(map(len, counts)), sum(int(part.sum(dtype=np.int64)) for part in counts), having)


def _weights(asked: Iterable[str], corpus: Corpus) -> dict[str, float]:
    return {term: _weight(corpus.chunks, corpus.having.get(term, 0)) for term in asked}


def _score(
    asked: Iterable[str], found: dict[str, dict[int, np.ndarray]], lengths: dict[int, np.ndarray], corpus: Corpus
) -> Matches:
    blocks = np.array(sorted(lengths))
    starts = {block: row * _BLOCK for row, block in enumerate(blocks.tolist())}
    # Over all places of all blocks; where there is no chunk, nothing is read or written.
    damping, scores = np.zeros((2, len(blocks) * _BLOCK))
    places, counts = _places(lengths, starts)
    usual = max(1.0, corpus.length / corpus.chunks)
    damping[places] = _K1 * (1 - _B + _B * counts / usual)  # what BM25 adds to a count below the line
    weights = _weights(asked, corpus)
    for term, postings in found.items():
        term_places, term_counts = _places(postings, starts)
        scores[term_places] += weights[term] * (_K1 + 1) * term_counts / (term_counts + damping[term_places])
    (matched,) = np.nonzero(scores)
    return Matches(blocks[matched // _BLOCK] * _BLOCK + matched % _BLOCK, scores[matched], weights)


def _weight(chunks: int, having: int) -> float:
    return float(np.log1p((chunks + _UNSEEN_CHUNKS - having + 0.5) / (having + 0.5)))


def _places(blocks: dict[int, np.ndarray], starts: dict[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Places of the chunks with the blocks one after the other, int64 [n], and their counts, float64 [n]."""
    postings = np.concatenate(list(blocks.values()))
    offsets = np.repeat([starts[block] for block in blocks], [len(part) for part in blocks.values()])
    return (postings >> _COUNT_BITS) + offsets, (postings & _COUNT_MASK).astype(float)


def _ids(blocks: dict[int, np.ndarray]) -> np.ndarray:
    parts = [(postings >> _COUNT_BITS).astype(np.int64) + block * _BLOCK for block, postings in blocks.items()]
    return np.concatenate([np.empty(0, np.int64), *parts])
