"""A knowledge base: files go in, passages come out. SQLite holds the truth, FAISS what can be made from it again."""

import hashlib
import os
import threading
import time
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore

from knowledge.database import Database, StoredChunk, StoredDocument
from knowledge.documents import DocumentError, Page, parse, read, suffix_of
from knowledge.retriever import PassageRetriever
from knowledge.splitter import Chunk, estimate_tokens, split
from knowledge.vectors import FaissVectors, unit_rows

Progress = Callable[[int, int, str], None]
Source = str | os.PathLike | tuple[str | os.PathLike, str]

DATABASE_NAME = "knowledge.db"
_EMBEDDED_AT_ONCE = 8  # half a second of work on two cores: the step of progress, of cancelling, of a question waiting
_READ_AT_ONCE = 4096


@dataclass(frozen=True)
class Ingested:
    """What became of one file. known: its content was here already. failed: `reason` says why, in one sentence.

    `pages` is 0 for a file without pages, such as plain text.
    """

    name: str
    state: Literal["done", "known", "failed"]
    pages: int = 0
    chunks: int = 0
    reason: str | None = None


@dataclass(frozen=True)
class Passage:
    """A found piece of a document: `page` is 1-based or None, `score` the cosine with the question."""

    name: str
    page: int | None
    score: float
    text: str
    document: str


def open(folder: str | os.PathLike, embeddings: Embeddings, vectors: VectorStore | None = None) -> "KnowledgeBase":
    """Open the knowledge base in `folder`, which is made if it does not exist.

    vectors: a LangChain store that also has `add_embeddings` (FAISS's and PGVector's do), for vectors kept elsewhere.
    If `embeddings` is another model than last time, all chunks are embedded again first, which takes its time.
    Raises KnowledgeBaseError when what lies in the folder can't be opened.
    """
    return KnowledgeBase(Path(folder), embeddings, vectors)


class KnowledgeBase:
    """Documents to search. Every method may be called from any thread; searching goes on while files are ingested."""

    def __init__(self, folder: Path, embeddings: Embeddings, vectors: VectorStore | None = None):
        self.folder = folder
        self._embeddings = embeddings
        self._originals = folder / "originals"
        self._originals.mkdir(parents=True, exist_ok=True)
        self._vectors_file = folder / "vectors.faiss"
        self._database = Database(folder / DATABASE_NAME)
        self._lock = threading.RLock()  # database and vectors change together
        self._ingesting = threading.Lock()  # one batch at a time, so that a file in two batches is embedded once
        with self._lock:
            self._embed_again_if_model_changed(vectors)
            self._vectors = self._open_faiss() if vectors is None else vectors
            self._drop_strays()

    @property
    def name(self) -> str:
        return self.folder.name

    def close(self) -> None:
        self._database.close()

    # Reading

    def documents(self) -> list[StoredDocument]:
        """In the order in which they came."""
        return self._database.documents()

    def original(self, document_id: str) -> Path:
        """The copy of the file that was ingested. Raises LookupError for an unknown document."""
        document = self._database.document(document_id)
        if document is None:
            raise LookupError(f"knowledge base {self.name} has no document {document_id}")
        return self._original(document)

    def search(self, question: str, k: int = 5) -> list[Passage]:
        """The `k` passages nearest to `question`, best first."""
        if not question.strip():
            return []
        query = unit_rows(self._embeddings.embed_query(question))[0]
        with self._lock:
            found = self._vectors.similarity_search_by_vector(query.tolist(), k=k)
            chunks = self._database.chunks([int(document.id) for document in found])
        # A store may rank by a distance of its own and may be behind the database: scores come from the latter.
        passages = [_passage(chunk, float(chunk.embedding @ query)) for chunk in chunks.values()]
        return sorted(passages, key=lambda passage: passage.score, reverse=True)

    def as_retriever(self, k: int = 5) -> PassageRetriever:
        return PassageRetriever(search=self.search, k=k)

    # Writing

    def ingest(self, paths: Iterable[Source], progress: Progress | None = None) -> list[Ingested]:
        """Add files, each a path or (path, name) where the name is what the user calls it; one result for each.

        A file is stored as a whole or not at all. A bad one is reported and the others go on.
        progress(done, total, message): hundredths of a file done, of all files together. It runs in this thread, and
        what it raises ends the batch; files finished before stay.
        """
        sources = [_source(source) for source in paths]
        with self._ingesting:
            try:
                return [
                    self._ingest_one(path, name, _share(progress, index, len(sources)))
                    for index, (path, name) in enumerate(sources)
                ]
            finally:
                self._save_vectors()

    def remove(self, name: str) -> int:
        """Remove every document of this name: rows, vectors and original. Returns how many there were."""
        with self._lock:
            documents = self._database.documents_named(_clean_name(name))
            for document in documents:
                self._remove(document)
            if documents:
                self._database.forget()
                self._save_vectors()
        return len(documents)

    def _ingest_one(self, path: Path, name: str, report: Callable[[float, str], None]) -> Ingested:
        report(0, f"{name}: reading")
        try:
            data = read(path, name)
            id = hashlib.sha256(data).hexdigest()
            known = self._database.document(id)
            if known is not None:
                return self._known(known, name)
            pages = parse(data, name)
            chunks = split(pages, getattr(self._embeddings, "count_tokens", estimate_tokens))
            if not chunks:
                raise DocumentError(name, "holds no words that could be searched; check that it is the right file")
        except DocumentError as error:
            return Ingested(name, "failed", reason=str(error))
        embeddings = self._embed(chunks, name, report)
        return self._store(id, name, data, pages, chunks, embeddings)

    def _known(self, document: StoredDocument, name: str) -> Ingested:
        reason = None
        if document.name != name:
            self._database.rename(document.id, name)
            reason = f"{name} has the same content as {document.name}, which was renamed to it."
        return Ingested(name, "known", document.pages, document.chunks, reason)

    def _embed(self, chunks: Sequence[Chunk], name: str, report: Callable[[float, str], None]) -> np.ndarray:
        """Unit vectors, float32 [chunks, dimension]."""
        rows: list[list[float]] = []
        for start in range(0, len(chunks), _EMBEDDED_AT_ONCE):
            texts = [chunk.text for chunk in chunks[start : start + _EMBEDDED_AT_ONCE]]
            rows += self._embeddings.embed_documents(texts)
            report(len(rows) / len(chunks), f"{name}: {len(rows)} of {len(chunks)} passages embedded")
            time.sleep(0.001)  # locks are not fair: lets a question waiting for the embedding model go first
        return unit_rows(rows)

    def _store(
        self, id: str, name: str, data: bytes, pages: Sequence[Page], chunks: Sequence[Chunk], embeddings: np.ndarray
    ) -> Ingested:
        document = Ingested(name, "done", sum(page.number is not None for page in pages), len(chunks))
        with self._lock, self._database.transaction():
            self._database.add(id, name, suffix_of(name), document.pages, chunks, embeddings)
            # Before the commit: a vector without a row is left out of results, a row without a vector is never found.
            self._original(self._database.document(id)).write_bytes(data)
            self._fill(self._vectors, id)
        return document

    def _remove(self, document: StoredDocument) -> None:
        ids = self._database.chunk_ids(document.id)
        with self._database.transaction():
            self._database.remove(document.id)
        self._vectors.delete([str(id) for id in ids])
        self._original(document).unlink(missing_ok=True)

    def _original(self, document: StoredDocument) -> Path:
        return self._originals / f"{document.id}{document.suffix}"

    # Vectors

    def _fill(self, vectors: VectorStore, document: str | None = None) -> None:
        """Give `vectors` the chunks of one document, or of all; those it has already are replaced."""
        for chunks in self._database.batches(_READ_AT_ONCE, document):
            vectors.add_embeddings(
                [chunk.text for chunk in chunks],
                [chunk.embedding.tolist() for chunk in chunks],
                [{"source": chunk.name, "page": chunk.page} for chunk in chunks],
                [str(chunk.id) for chunk in chunks],
            )

    def _embed_again_if_model_changed(self, vectors: VectorStore | None) -> None:
        identity = getattr(self._embeddings, "identity", type(self._embeddings).__qualname__)
        if self._database.setting("embeddings") == identity:
            return
        fresh = [
            (chunk.id, embedding)
            for chunks in self._database.batches(_EMBEDDED_AT_ONCE)
            for chunk, embedding in zip(chunks, self._embed_texts(chunks), strict=True)
        ]
        with self._database.transaction():
            for id, embedding in fresh:
                self._database.set_embedding(id, embedding)
            self._database.set_setting("embeddings", identity)
            self._vectors_file.unlink(missing_ok=True)  # made anew when opened next, even if this is killed here
            if vectors is not None:
                self._fill(vectors)

    def _embed_texts(self, chunks: Sequence[StoredChunk]) -> np.ndarray:
        return unit_rows(self._embeddings.embed_documents([chunk.text for chunk in chunks]))

    def _open_faiss(self) -> FaissVectors:
        """The saved vectors if they are those of the database, else made anew from it."""
        vectors = FaissVectors(self._embeddings, self._documents_of)
        ids = self._database.chunk_ids()
        if vectors.load(self._vectors_file) and self._match(vectors, ids):
            return vectors
        vectors = FaissVectors(self._embeddings, self._documents_of)
        self._fill(vectors)
        vectors.save(self._vectors_file)
        return vectors

    def _match(self, vectors: FaissVectors, ids: list[int]) -> bool:
        if not np.array_equal(vectors.ids(), ids):
            return False
        return not ids or vectors.dimension == self._database.chunks(ids[:1])[ids[0]].embedding.size

    def _save_vectors(self) -> None:
        """Once a batch, not once a file. A kill before it costs a rebuild from the database when next opened."""
        with self._lock:
            if isinstance(self._vectors, FaissVectors):
                self._vectors.save(self._vectors_file)

    def _documents_of(self, ids: Sequence[int]) -> dict[int, Document]:
        return {
            id: Document(
                id=str(id),
                page_content=chunk.text,
                metadata={"source": chunk.name, "page": chunk.page, "document": chunk.document},
            )
            for id, chunk in self._database.chunks(ids).items()
        }

    def _drop_strays(self) -> None:
        """Remove originals that a kill left without a row; inside a transaction, as another process may be storing."""
        with self._database.transaction():
            kept = {self._original(document) for document in self._database.documents()}
            for stray in set(self._originals.iterdir()) - kept:
                stray.unlink()


def _passage(chunk: StoredChunk, score: float) -> Passage:
    return Passage(chunk.name, chunk.page, score, chunk.text, chunk.document)


def _source(source: Source) -> tuple[Path, str]:
    path, name = source if isinstance(source, tuple) else (source, Path(source).name)
    return Path(path), _clean_name(name)


def _clean_name(name: str) -> str:
    """A name that any database and screen can hold: composed characters, "?" for bytes that were no text."""
    return unicodedata.normalize("NFC", name).encode("utf-8", "replace").decode("utf-8")


def _share(progress: Progress | None, index: int, count: int) -> Callable[[float, str], None]:
    """Progress of file `index` of `count`, given as a fraction, in hundredths of all of them."""

    def report(fraction: float, message: str) -> None:
        if progress is not None:
            progress(100 * index + round(100 * fraction), 100 * count, message)

    return report
