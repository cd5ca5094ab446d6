"""The SQLite file of a knowledge base: the one truth about its documents, chunks and their embeddings."""

import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from knowledge.splitter import Chunk

_VERSION = 1
# Ids of chunks are never used twice (AUTOINCREMENT), so that a vector left over from a removed chunk can't pass for
# that of a new one.
_SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS settings (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS documents (
    id TEXT PRIMARY KEY, -- sha256 of the content
    name TEXT NOT NULL,
    suffix TEXT NOT NULL,
    pages INTEGER NOT NULL, -- 0 for a file without pages
    chunks INTEGER NOT NULL,
    added REAL NOT NULL -- seconds since 1970
);
CREATE INDEX IF NOT EXISTS documents_by_name ON documents (name);
CREATE TABLE IF NOT EXISTS chunks (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    document TEXT NOT NULL REFERENCES documents (id) ON DELETE CASCADE,
    page INTEGER, -- from 1
    position INTEGER NOT NULL, -- in the document, from 0
    text TEXT NOT NULL,
    embedding BLOB NOT NULL, -- float32, of length 1
    UNIQUE (document, position)
);
PRAGMA user_version = {_VERSION};
COMMIT;
"""


class KnowledgeBaseError(Exception):
    """A knowledge base that cannot be opened. `str()` is one sentence: which, what is wrong, what to do."""


@dataclass(frozen=True)
class StoredDocument:
    """A document of a knowledge base; `id` is the sha256 of its content, `pages` 0 for a file without pages."""

    name: str
    id: str
    pages: int
    chunks: int
    suffix: str
    added: float


@dataclass(frozen=True)
class StoredChunk:
    """A chunk with its document's name; `embedding` is float32 [dimension] of length 1."""

    id: int
    document: str
    name: str
    page: int | None
    position: int
    text: str
    embedding: np.ndarray


_DOCUMENT_COLUMNS = "name, id, pages, chunks, suffix, added"
_CHUNK_COLUMNS = "chunks.id, document, name, page, position, text, embedding"
_CHUNKS = "chunks JOIN documents ON documents.id = document"


class Database:
    """One connection, usable from any thread: each method holds the lock for as long as it runs."""

    def __init__(self, path: Path):
        self.path = path
        self._lock = threading.RLock()
        try:
            self._connection = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
            self._prepare()
        except sqlite3.OperationalError as error:
            raise KnowledgeBaseError(
                f"{path} cannot be opened ({error}); check its permissions and that no other program is using it"
            ) from error
        except sqlite3.DatabaseError as error:
            raise KnowledgeBaseError(
                f"{path} is not a readable knowledge base ({error}); move it away and add the documents again"
            ) from error

    def _prepare(self) -> None:
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA foreign_keys = ON")
        self._connection.execute("PRAGMA secure_delete = ON")  # what the user removes must not stay in the file
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        if version == 0:
            self._connection.executescript(_SCHEMA)
        elif version != _VERSION:
            raise KnowledgeBaseError(f"{self.path} was made by a newer version of Quatrain; update to open it")

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything inside is written, or nothing; other processes cannot write meanwhile."""
        with self._lock, self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            yield

    def _rows(self, query: str, values: Sequence = ()) -> list[tuple]:
        with self._lock:
            return self._connection.execute(query, values).fetchall()

    def setting(self, key: str) -> str | None:
        rows = self._rows("SELECT value FROM settings WHERE key = ?", (key,))
        return rows[0][0] if rows else None

    def set_setting(self, key: str, value: str) -> None:
        self._rows("INSERT OR REPLACE INTO settings VALUES (?, ?)", (key, value))

    def documents(self) -> list[StoredDocument]:
        """In the order in which they were added."""
        return [StoredDocument(*row) for row in self._rows(f"SELECT {_DOCUMENT_COLUMNS} FROM documents ORDER BY added")]

    def document(self, id: str) -> StoredDocument | None:
        rows = self._rows(f"SELECT {_DOCUMENT_COLUMNS} FROM documents WHERE id = ?", (id,))
        return StoredDocument(*rows[0]) if rows else None

    def documents_named(self, name: str) -> list[StoredDocument]:
        rows = self._rows(f"SELECT {_DOCUMENT_COLUMNS} FROM documents WHERE name = ?", (name,))
        return [StoredDocument(*row) for row in rows]

    def rename(self, id: str, name: str) -> None:
        self._rows("UPDATE documents SET name = ? WHERE id = ?", (name, id))

    def add(self, id: str, name: str, suffix: str, pages: int, chunks: Sequence[Chunk], embeddings: np.ndarray) -> None:
        """Store a document with its chunks and their embeddings, float32 [chunks, dimension]."""
        self._rows(
            "INSERT INTO documents (id, name, suffix, pages, chunks, added) VALUES (?, ?, ?, ?, ?, ?)",
            (id, name, suffix, pages, len(chunks), time.time()),
        )
        rows = [
            (id, chunk.page, chunk.position, chunk.text, embedding.astype("<f4").tobytes())
            for chunk, embedding in zip(chunks, embeddings, strict=True)
        ]
        with self._lock:
            self._connection.executemany(
                "INSERT INTO chunks (document, page, position, text, embedding) VALUES (?, ?, ?, ?, ?)", rows
            )

    def remove(self, id: str) -> None:
        """Remove a document and its chunks."""
        self._rows("DELETE FROM documents WHERE id = ?", (id,))

    def forget(self) -> None:
        """Empty the write-ahead log, where removed rows would still stand."""
        self._rows("PRAGMA wal_checkpoint(TRUNCATE)")

    def chunk_ids(self, document: str | None = None) -> list[int]:
        """The ids of the chunks of one document, or of all, ascending."""
        rows = self._rows("SELECT id FROM chunks WHERE document = ?1 OR ?1 IS NULL ORDER BY id", (document,))
        return [id for (id,) in rows]

    def chunks(self, ids: Sequence[int]) -> dict[int, StoredChunk]:
        """Those chunks that exist, by id."""
        marks = ", ".join("?" * len(ids))
        rows = self._rows(f"SELECT {_CHUNK_COLUMNS} FROM {_CHUNKS} WHERE chunks.id IN ({marks})", ids)
        return {row[0]: _stored_chunk(row) for row in rows}

    def batches(self, size: int, document: str | None = None) -> Iterator[list[StoredChunk]]:
        """The chunks of one document, or of all, in the order of their ids, `size` at a time."""
        last = 0
        query = (
            f"SELECT {_CHUNK_COLUMNS} FROM {_CHUNKS} "
            "WHERE chunks.id > ?1 AND (document = ?2 OR ?2 IS NULL) ORDER BY chunks.id LIMIT ?3"
        )
        while rows := self._rows(query, (last, document, size)):
            yield [_stored_chunk(row) for row in rows]
            last = rows[-1][0]

    def set_embedding(self, id: int, embedding: np.ndarray) -> None:
        self._rows("UPDATE chunks SET embedding = ? WHERE id = ?", (embedding.astype("<f4").tobytes(), id))


def _stored_chunk(row: tuple) -> StoredChunk:
    return StoredChunk(*row[:-1], np.frombuffer(row[-1], "<f4"))
