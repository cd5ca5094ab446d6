"""The vectors of one embedding model: kept in SQLite, found through FAISS or another LangChain vector store."""

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore

from knowledge.background import Background
from knowledge.database import Database, StoredChunk
from knowledge.vectors import FaissVectors, unit_rows

_READ_AT_ONCE = 4096
_ELSEWHERE = 200  # candidates asked of a store that is not here


class Dense:
    """Not thread-safe: its owner locks.

    store: one that also has `add_embeddings`, as FAISS's and PGVector's have, for vectors found elsewhere; it is taken
    to hold what the database says of the model before. By default FAISS, in `file`, which is made anew where it is
    missing or damaged. fresh: `file` holds another model's vectors, which are left alone until `save`.
    """

    def __init__(
        self,
        database: Database,
        embeddings: Embeddings,
        file: Path,
        store: VectorStore | None = None,
        fresh: bool = False,
    ):
        self.embeddings = embeddings
        self.model = database.model(getattr(embeddings, "identity", type(embeddings).__qualname__))
        self._database = database
        self._file = file
        self._store = store
        self._changed = fresh  # since the file was written
        self._ids = np.empty(0, np.int64)  # what the store holds, as far as is known here
        if store is None:
            self._open_faiss(fresh)
        else:
            self._take_over(database.used_model())
        self._catch_up()

    @property
    def filled(self) -> bool:
        """Whether there are vectors at all."""
        self._refresh()
        return len(self._ids) > 0

    def measure(self) -> None:
        """See to it that `background` is at hand. It needs no lock of the owner's."""
        _ = self.background

    @functools.cached_property
    def background(self) -> Background:
        """Measured once for each model in each base, which takes seconds."""
        measured = self._database.background(self.model)
        if measured is not None:
            return Background.from_json(measured)
        background = Background.measure(self.embeddings)
        self._database.set_background(self.model, background.to_json())
        return background

    def _open_faiss(self, fresh: bool) -> None:
        self._store = FaissVectors(self.embeddings, self._documents)
        if not fresh and self._store.load(self._file) and self._fits():
            self._ids = self._store.ids()
        else:
            self._changed = True
            self._store = FaissVectors(self.embeddings, self._documents)

    def _take_over(self, before: int | None) -> None:
        """What the store holds: vectors of this model, or of another one, which go."""
        self._ids = self._database.embedded_ids(self.model if before is None else before)
        if before != self.model and len(self._ids):
            self.remove(self._ids.tolist())

    def embed(self, chunks: Sequence[StoredChunk]) -> dict[int, np.ndarray]:
        """Embeddings by chunk id, float32 [dimension] of length 1."""
        rows = unit_rows(self.embeddings.embed_documents([chunk.passage for chunk in chunks]))
        return {chunk.id: row for chunk, row in zip(chunks, rows, strict=True)}

    def add(self, chunks: Sequence[StoredChunk], vectors: dict[int, np.ndarray]) -> None:
        """Make chunks findable; their embeddings have been stored before."""
        self._store.add_embeddings(
            [chunk.passage for chunk in chunks],
            [vectors[chunk.id].tolist() for chunk in chunks],
            [{"source": chunk.name, "page": chunk.page} for chunk in chunks],
            [str(chunk.id) for chunk in chunks],
        )
        self._changed = True
        self._ids = np.union1d(self._ids, [chunk.id for chunk in chunks])

    def remove(self, ids: Sequence[int]) -> None:
        self._store.delete([str(id) for id in ids])
        self._changed = True
        self._ids = np.setdiff1d(self._ids, ids)

    def nearest(self, query: np.ndarray, k: int) -> dict[int, float]:
        """The `k` chunks nearest to `query`, float32 [dimension] of length 1: id -> cosine, best first."""
        self._refresh()
        found = self._store.similarity_search_by_vector(query.tolist(), k=k)
        # A store may rank by a distance of its own and may be behind the database: scores come from the latter.
        vectors = self._database.embeddings(self.model, [int(document.id) for document in found])
        scores = {id: float(vector @ query) for id, vector in vectors.items()}
        return dict(sorted(scores.items(), key=lambda item: item[1], reverse=True))

    def products(self, query: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ids, ascending, int64 [n], and inner products with each of `directions` [m, dimension], float32 [n, m].

        Of all vectors where they are here; of those nearest to `query` where another store keeps them.
        """
        if isinstance(self._store, FaissVectors):
            self._refresh()
            return self._store.products(directions)
        vectors = self._database.embeddings(self.model, sorted(self.nearest(query, _ELSEWHERE)))
        rows = np.array(list(vectors.values()), np.float32).reshape(len(vectors), -1)
        order = np.argsort(list(vectors))
        ids = np.array(list(vectors), np.int64)[order]
        return ids, rows[order] @ directions.T if len(ids) else np.empty((0, len(directions)), np.float32)

    def save(self) -> None:
        """Once a batch, not once a file. A kill before it costs a rebuild from the database when next opened."""
        if self._changed and isinstance(self._store, FaissVectors):
            self._store.save(self._file)
            self._changed = False

    def _refresh(self) -> None:
        if self._changes != self._database.changes_elsewhere():
            self._catch_up()

    def _catch_up(self) -> None:
        """Give the store what the database has and it has not, and take from it what was removed."""
        self._changes = self._database.changes_elsewhere()
        stored = self._database.embedded_ids(self.model)
        gone = np.setdiff1d(self._ids, stored)
        missing = np.setdiff1d(stored, self._ids)
        if len(gone):
            self.remove(gone.tolist())
        for start in range(0, len(missing), _READ_AT_ONCE):
            ids = missing[start : start + _READ_AT_ONCE].tolist()
            vectors = self._database.embeddings(self.model, ids)
            chunks = [chunk for chunk in self._database.chunks(ids).values() if chunk.id in vectors]
            if chunks:
                self.add(chunks, vectors)

    def _fits(self) -> bool:
        """Whether loaded vectors have the dimension of those in the database."""
        some = self._database.embeddings(self.model, self._store.ids()[:1].tolist())
        return [vector.size for vector in some.values()] == [self._store.dimension]

    def _documents(self, ids: Sequence[int]) -> dict[int, Document]:
        return {
            id: Document(
                id=str(id),
                page_content=chunk.passage,
                metadata={"source": chunk.name, "page": chunk.page, "document": chunk.document},
            )
            for id, chunk in self._database.chunks(ids).items()
        }
