"""Exact vector search: a LangChain VectorStore over FAISS, saved without pickle and without paths in FAISS's hands."""

import hashlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore

Lookup = Callable[[Sequence[int]], Mapping[int, Document]]

_DIGEST_BYTES = hashlib.sha256().digest_size


def unit_rows(vectors) -> np.ndarray:
    """`vectors` [n, dimension] as float32 rows of length 1, so that inner products are cosines; zero rows stay zero."""
    rows = np.atleast_2d(np.asarray(vectors, np.float32))
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths == 0, 1, lengths)


class FaissVectors(VectorStore):
    """Cosine search over unit vectors under integer ids. Not thread-safe: its owner locks.

    lookup: ids -> documents, for an owner that keeps the texts; without it they are kept in memory here.
    The dimension is that of the first vectors added.
    """

    def __init__(self, embeddings: Embeddings | None = None, lookup: Lookup | None = None):
        self._embeddings = embeddings
        self._lookup = lookup
        self._documents: dict[int, Document] = {}
        self._index = None

    @property
    def embeddings(self) -> Embeddings | None:
        return self._embeddings

    @property
    def dimension(self) -> int | None:
        """None as long as there are no vectors."""
        return self._index.d if self._index is not None else None

    def ids(self) -> np.ndarray:
        """All ids in ascending order, int64 [n]."""
        if self._index is None:
            return np.empty(0, np.int64)
        return np.sort(_faiss().vector_to_array(self._index.id_map))

    def add_texts(
        self, texts: Iterable[str], metadatas: list[dict] | None = None, *, ids: list[str] | None = None, **kwargs: Any
    ) -> list[str]:
        texts = list(texts)
        return self.add_embeddings(texts, self._embeddings.embed_documents(texts), metadatas, ids)

    def add_embeddings(
        self, texts: Sequence[str], embeddings, metadatas: list[dict] | None = None, ids: Sequence[str] | None = None
    ) -> list[str]:
        """Add texts whose vectors are known, [n, dimension]; ids that exist already are replaced."""
        if not len(texts):
            return []
        rows = unit_rows(embeddings)
        numbers = self._numbers(ids, len(rows))
        if self._index is None:
            faiss = _faiss()
            self._index = faiss.IndexIDMap2(faiss.IndexFlatIP(rows.shape[1]))
        self._index.remove_ids(numbers)
        self._index.add_with_ids(rows, numbers)
        if self._lookup is None:
            metadatas = metadatas or [{} for _ in texts]
            for number, text, metadata in zip(numbers.tolist(), texts, metadatas, strict=True):
                self._documents[number] = Document(id=str(number), page_content=text, metadata=metadata)
        return [str(number) for number in numbers]

    def _numbers(self, ids: Sequence[str] | None, count: int) -> np.ndarray:
        if ids is not None:
            return np.array([int(id) for id in ids], np.int64)
        known = self.ids()
        first = known[-1] + 1 if len(known) else 1
        return np.arange(first, first + count, dtype=np.int64)

    def delete(self, ids: list[str] | None = None, **kwargs: Any) -> bool:
        """Remove these ids, or everything when None."""
        numbers = self.ids() if ids is None else np.array([int(id) for id in ids], np.int64)
        if self._index is not None:
            self._index.remove_ids(numbers)
        for number in numbers.tolist():
            self._documents.pop(number, None)
        return True

    def similarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        return [document for document, _ in self.similarity_search_with_score(query, k)]

    def similarity_search_with_score(self, query: str, k: int = 4, **kwargs: Any) -> list[tuple[Document, float]]:
        return self.similarity_search_with_score_by_vector(self._embeddings.embed_query(query), k)

    def similarity_search_by_vector(self, embedding: list[float], k: int = 4, **kwargs: Any) -> list[Document]:
        return [document for document, _ in self.similarity_search_with_score_by_vector(embedding, k)]

    def similarity_search_with_score_by_vector(
        self, embedding: list[float], k: int = 4, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """The `k` nearest documents, best first, each with its cosine; ids unknown to the lookup are left out."""
        if self._index is None or self._index.ntotal == 0:
            return []
        scores, numbers = self._index.search(unit_rows(embedding), min(k, self._index.ntotal))
        found = list(zip(numbers[0].tolist(), scores[0].tolist(), strict=True))
        documents = (self._lookup or self._kept)([number for number, _ in found])
        return [(documents[number], score) for number, score in found if number in documents]

    def products(self, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Every id, ascending, int64 [n], and its vector's inner product with each of `directions` [m, dimension],
        float32 [n, m]."""
        if self._index is None or self._index.ntotal == 0:
            return np.empty(0, np.int64), np.empty((0, len(directions)), np.float32)
        faiss = _faiss()
        flat = faiss.downcast_index(self._index.index)
        rows = faiss.rev_swig_ptr(flat.get_xb(), flat.ntotal * flat.d).reshape(flat.ntotal, flat.d)  # not a copy
        ids = faiss.vector_to_array(self._index.id_map)
        products = rows @ directions.astype(np.float32).T
        if np.all(ids[:-1] < ids[1:]):  # as they mostly are
            return ids, products
        order = np.argsort(ids)
        return ids[order], products[order]

    def _kept(self, numbers: Sequence[int]) -> Mapping[int, Document]:
        return self._documents

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> "FaissVectors":
        vectors = cls(embedding)
        vectors.add_texts(texts, metadatas, ids=ids)
        return vectors

    def save(self, path: Path) -> None:
        """Write the vectors (not texts) to `path`, which is replaced as a whole or not at all."""
        if self._index is None:
            path.unlink(missing_ok=True)
            return
        data = _faiss().serialize_index(self._index).tobytes()
        partial = path.with_name(f"{path.name}.partial")
        partial.write_bytes(hashlib.sha256(data).digest() + data)
        partial.replace(path)

    def load(self, path: Path) -> bool:
        """Take the vectors that `save` wrote to `path`; False, and nothing changed, if it is missing or damaged."""
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return False
        digest, data = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if hashlib.sha256(data).digest() != digest:
            return False
        self._index = _faiss().deserialize_index(np.frombuffer(data, np.uint8))
        return True


def _faiss():
    """The faiss module, imported when first needed; on one thread where its OpenMP would clash with torch's."""
    import faiss

    if sys.platform == "darwin":
        faiss.omp_set_num_threads(1)
    return faiss
