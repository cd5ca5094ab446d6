"""Search: this repository's beside what others do with the same embeddings and the same questions.

- plain FAISS over the same chunks and embeddings, as langchain-ChatGLM searches;
- BM25 over the same chunks, Chinese as pairs of characters, English as words;
- LangChain's default pipeline: RecursiveCharacterTextSplitter (1,000 characters, 200 shared), its vector store.

Needs a folder of question sets in QUATRAIN_TEST_ASSETS; making their knowledge bases takes an hour of two cores once.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import knowledge
from chatapp import checkpoints
from knowledge import Findings, KnowledgeBase, Passage, Where
from knowledge.database import Database
from knowledge.embedder import LocalEmbeddings
from knowledge.evaluate import Question, evaluate
from knowledge.index import DATABASE_NAME
from knowledge.pages import plain
from knowledge.splitter import Chunk
from knowledge.vectors import FaissVectors, unit_rows

from . import question_sets
from .results import Result
from .settings import Settings

SIZES = (1_000, 10_000, 100_000)
DIMENSION, CHARACTERS, DIFFERENT = 384, 200, 4_000  #: of vectors; of a chunk; of all
ASKED = 100
DEPTH = 50  #: passages asked for, of which a document counts once
FAISS_PEER = "FAISS, the same chunks and embeddings"
FIGURES = ("hit@1", "hit@5", "recall@5", "mrr@10")

Search = Callable[[str], list[str]]
"""The names of documents for a question, best first; each as often as it has passages."""


def run(settings: Settings) -> Iterator[Result]:
    embeddings = LocalEmbeddings(checkpoints.ensure_embedder(settings.data))
    sets = Path(os.environ["QUATRAIN_TEST_ASSETS"]) / "qa" if "QUATRAIN_TEST_ASSETS" in os.environ else None
    if sets is not None and "speed" != settings.only:
        bases = question_sets.bases(sets, settings.scratch / "questions", embeddings)
        for language in ("zh", "en"):
            yield from quality(bases[language], question_sets.read(sets, language), embeddings)
        yield from both_languages(bases, sets, embeddings)
    if "quality" != settings.only:
        for size in SIZES:
            yield from speed(settings.scratch / f"chunks-{size}", size)


def quality(base: KnowledgeBase, questions: question_sets.QuestionSet, embeddings: LocalEmbeddings) -> Iterator[Result]:
    names = [document.name for document in base.documents()]
    asked = [Question(row["question"], tuple(row["gold"]), row["source"]) for row in questions.questions]
    ours = evaluate(base.find, asked, names)
    peers = {
        FAISS_PEER: _plain_faiss(base, embeddings),
        "BM25 with bigrams, the same chunks": _bigram_bm25(base),
        "LangChain's default pipeline": _default_pipeline(questions.passages, embeddings),
    }
    for peer_name, search in peers.items():
        theirs = evaluate(_as_find(search), asked, names)
        for source in ("all", *ours["sources"]):
            mine, other = (report["all"] if source == "all" else report["sources"][source] for report in (ours, theirs))
            for figure in FIGURES:
                name = f"{questions.language} {source} {figure}"
                yield Result.more_is_better(name, mine[figure], other[figure], peer_name, "of questions")


def both_languages(bases: dict[str, KnowledgeBase], sets: Path, embeddings: LocalEmbeddings) -> Iterator[Result]:
    """One base with both languages: answers in the other language, and what its presence costs the question's own."""
    base = bases["both"]
    names = [document.name for document in base.documents()]
    ours, theirs = (_cross_lingual_hits(sets, search) for search in (_ours(base), _plain_faiss(base, embeddings)))
    yield Result.more_is_better("answer in the other language hit@5", ours, theirs, FAISS_PEER, "of questions")
    for language in ("zh", "en"):
        rows = question_sets.read(sets, language).questions
        asked = [Question(row["question"], tuple(row["gold"]), row["source"]) for row in rows]
        mixed, alone = (evaluate(each.find, asked, names)["all"] for each in (base, bases[language]))
        for figure in FIGURES:
            name = f"{language} {figure} in a base of both languages"
            yield Result.more_is_better(name, mixed[figure], alone[figure], "a base of one language", "of questions")


def _cross_lingual_hits(sets: Path, search: Search) -> float:
    hits = []
    for question in question_sets.cross_lingual(sets):
        found = [name for name in dict.fromkeys(search(question["question"])) if name not in question["twin"]]
        hits.append(not set(question["gold"]).isdisjoint(found[:5]))
    return statistics.mean(hits)


def _ours(base: KnowledgeBase) -> Search:
    return lambda question: [Path(passage.name).stem for passage in base.search(question, DEPTH)]


class Stored(NamedTuple):
    """A chunk of a base: the document's name without suffix, the text, the embedding."""

    name: str
    text: str
    vector: np.ndarray


def _stored(base: KnowledgeBase) -> list[Stored]:
    database = Database(base.folder / DATABASE_NAME)
    vectors = database.embeddings(database.used_model(), database.embedded_ids(database.used_model()).tolist())
    chunks = database.chunks(vectors)
    database.close()
    return [Stored(Path(chunk.name).stem, chunk.passage, vectors[id]) for id, chunk in chunks.items()]


def _plain_faiss(base: KnowledgeBase, embeddings: LocalEmbeddings) -> Search:
    """The nearest vectors, and nothing else."""
    stored, vectors = _stored(base), FaissVectors()
    vectors.add_embeddings([""] * len(stored), [chunk.vector for chunk in stored], [{}] * len(stored))

    def search(question: str) -> list[str]:
        found = vectors.similarity_search_by_vector(embeddings.embed_query(question), DEPTH)
        return [stored[int(document.id) - 1].name for document in found]

    return search


def _bigram_bm25(base: KnowledgeBase, k1: float = 1.2, b: float = 0.75) -> Search:
    stored = _stored(base)
    counts = [Counter(_bigrams(chunk.text)) for chunk in stored]
    lengths = np.array([sum(those.values()) for those in counts])
    damping = k1 * (1 - b + b * lengths / lengths.mean())
    postings: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for row, those in enumerate(counts):
        for term, count in those.items():
            postings[term].append((row, count))

    def search(question: str) -> list[str]:
        scores = np.zeros(len(counts))
        for term in set(_bigrams(question)) & postings.keys():
            rows, times = map(np.array, zip(*postings[term], strict=True))
            weight = math.log1p((len(counts) - len(rows) + 0.5) / (len(rows) + 0.5))
            scores[rows] += weight * (k1 + 1) * times / (times + damping[rows])
        return [stored[row].name for row in np.argsort(-scores, kind="stable")[:DEPTH]]

    return search


def _bigrams(text: str) -> list[str]:
    parts = re.findall(r"[\u3400-\u9fff]+|[a-z0-9]+", text.lower())
    return [
        pair
        for part in parts
        for pair in ([part] if part.isascii() or len(part) == 1 else map("".join, zip(part, part[1:], strict=False)))
    ]


def _default_pipeline(passages: Sequence[dict[str, Any]], embeddings: LocalEmbeddings) -> Search:
    from langchain_text_splitters import RecursiveCharacterTextSplitter

    splitter = RecursiveCharacterTextSplitter(chunk_size=1000, chunk_overlap=200)
    texts, names = [], []
    for passage in passages:
        for text in splitter.split_text(f"{passage['title'] or ''}\n\n{passage['text']}".strip()):
            texts.append(text)
            names.append({"source": passage["id"]})
    vectors = FaissVectors.from_texts(texts, embeddings, names)
    return lambda question: [found.metadata["source"] for found in vectors.similarity_search(question, DEPTH)]


def _as_find(search: Search) -> Callable[[str, int], Findings]:
    return lambda question, k: Findings(tuple(Passage(name, None, 0.0, "", "") for name in search(question)[:k]))


def speed(folder: Path, size: int) -> Iterator[Result]:
    """Milliseconds of a search without the embedding of its question: made-up vectors and Chinese."""
    shutil.rmtree(folder, ignore_errors=True)
    random = np.random.default_rng(0)
    vectors, texts = _fill(folder, size, random)
    base = knowledge.open(folder, MadeUp(vectors[0]))
    plain_vectors = FaissVectors()
    plain_vectors.add_embeddings([""] * size, vectors, [{}] * size)
    questions = [text[:16] for text in random.choice(texts, ASKED)]
    base.search(questions[0])
    ours = [_milliseconds(lambda question=question: base.search(question)) for question in questions]
    theirs = [
        _milliseconds(lambda row=row: plain_vectors.similarity_search_by_vector(vectors[row], 5))
        for row in range(ASKED)
    ]
    narrowed = [
        _milliseconds(lambda question=question: base.search(question, where=Where(names=["0.txt"])))
        for question in questions
    ]
    for name, times in (("search", ours), ("search in one document", narrowed)):
        for percent in (50, 95):
            title = f"{name} among {size:,} chunks, p{percent}"
            peer = float(np.percentile(theirs, percent))
            yield Result.less_is_better(title, float(np.percentile(times, percent)), peer, "plain FAISS", "ms")


class MadeUp:
    """Embeddings that say the same of every question."""

    identity = "made up"

    def __init__(self, vector: np.ndarray):
        self._vector = vector.tolist()

    def embed_query(self, text: str) -> list[float]:
        return self._vector

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [self._vector for _ in texts]


def _fill(folder: Path, size: int, random: np.random.Generator) -> tuple[np.ndarray, list[str]]:
    """A knowledge base of documents with 1,000 chunks each; its vectors and texts."""
    folder.mkdir(parents=True)
    database = Database(folder / DATABASE_NAME)
    model = database.model(MadeUp.identity)
    vectors = unit_rows(random.standard_normal((size, DIMENSION), np.float32))
    places = random.zipf(1.2, (size, CHARACTERS)) % DIFFERENT  # few characters are most of any text
    texts = ["".join(chr(0x4E00 + place) for place in row) for row in places]
    for start in range(0, size, 1_000):
        id = str(start)
        database.add(id, f"{start}.txt", ".txt", None, 0, 0)
        database.set_state(id, "reading", ["waiting"])
        chunks = [Chunk(text, None, place, "", None) for place, text in enumerate(texts[start : start + 1_000])]
        database.store(id, [plain(None, "")], chunks, None)
        database.add_embeddings(model, dict(zip(database.chunk_ids(id), vectors[start : start + 1_000], strict=True)))
    database.settle(model)
    database.close()
    return vectors, texts


def _milliseconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - start)
