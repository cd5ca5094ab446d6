"""The SQLite file of a knowledge base: the one truth about its documents, pages, chunks, keywords and embeddings."""

import json
import sqlite3
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from knowledge import keywords, terms
from knowledge.pages import Page, PasswordError, plain
from knowledge.splitter import Chunk, passage

_VERSION = 2
_START = 40  # characters of a text by which its chunk is known
# Ids of chunks are never used twice (AUTOINCREMENT), so that a vector left over from a removed chunk can't pass for
# that of a new one.
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS settings (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE documents (
    id TEXT PRIMARY KEY, -- sha256 of the content
    name TEXT NOT NULL,
    suffix TEXT NOT NULL,
    path TEXT, -- where it came from, if that is to be watched
    size INTEGER NOT NULL, -- bytes
    modified INTEGER NOT NULL, -- nanoseconds since 1970, of the file at path
    state TEXT NOT NULL, -- one of State
    reason TEXT, -- why it failed, or what could not be read of it
    pages INTEGER NOT NULL DEFAULT 0, -- 0 for a file without pages
    chunks INTEGER NOT NULL DEFAULT 0,
    added REAL NOT NULL -- seconds since 1970
);
CREATE INDEX documents_by_name ON documents (name);
CREATE INDEX documents_by_state ON documents (state);
CREATE TABLE pages (
    document TEXT NOT NULL REFERENCES documents (id) ON DELETE CASCADE,
    position INTEGER NOT NULL, -- in the document, from 0
    page INTEGER, -- from 1, where pages have numbers
    label TEXT, -- of a sheet
    text TEXT NOT NULL,
    PRIMARY KEY (document, position)
);
CREATE TABLE chunks (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    document TEXT NOT NULL REFERENCES documents (id) ON DELETE CASCADE,
    position INTEGER NOT NULL, -- in the document, from 0
    page INTEGER,
    label TEXT,
    text TEXT NOT NULL,
    headings TEXT NOT NULL, -- over it, " > " between them
    UNIQUE (document, position)
);
CREATE TABLE models (id INTEGER PRIMARY KEY AUTOINCREMENT, identity TEXT NOT NULL UNIQUE);
CREATE TABLE embeddings (
    chunk INTEGER NOT NULL REFERENCES chunks (id) ON DELETE CASCADE,
    model INTEGER NOT NULL REFERENCES models (id) ON DELETE CASCADE,
    vector BLOB NOT NULL, -- float32, of length 1
    PRIMARY KEY (chunk, model)
);
CREATE INDEX embeddings_by_model ON embeddings (model, chunk);
{keywords.SCHEMA}
"""
# Version 1 had no states, and chunks without headings: its documents are read again from their originals.
_FROM_VERSION_1 = f"""
ALTER TABLE documents RENAME TO old;
DROP INDEX documents_by_name;
DROP TABLE chunks;
{_SCHEMA}
INSERT INTO documents (id, name, suffix, size, modified, state, added)
    SELECT id, name, suffix, 0, 0, 'waiting', added FROM old;
DROP TABLE old;
DELETE FROM settings;
"""

State = Literal["waiting", "reading", "embedding", "done", "failed", "cancelled"]
"""waiting to be read, being read, read and searchable by its words, also by its meaning, not readable, stopped."""
UNFINISHED: tuple[State, ...] = ("waiting", "reading", "embedding")


class KnowledgeBaseError(Exception):
    """A knowledge base that cannot be opened. `str()` is one sentence: which, what is wrong, what to do."""


@dataclass(frozen=True)
class StoredDocument:
    """A file of a knowledge base; `id` is the sha256 of its content, `pages` 0 for a file without pages.

    version: 1 for the first document of its name, 2 for the next one, which has another content. path: where it came
    from, with the size in bytes and the time in nanoseconds that the file there had. embedded: how many of its chunks.
    """

    name: str
    id: str
    pages: int
    chunks: int
    suffix: str
    added: float
    state: State
    reason: str | None
    path: str | None
    size: int
    modified: int
    version: int
    embedded: int

    @property
    def locked(self) -> bool:
        """Whether it failed for want of its password."""
        endings = (f"{PasswordError.MISSING}.", f"{PasswordError.WRONG}.")
        return self.state == "failed" and bool(self.reason) and self.reason.endswith(endings)


@dataclass(frozen=True)
class StoredChunk:
    """A chunk with its document's name; base: the knowledge base that it is from, where several are asked."""

    id: int
    document: str
    name: str
    position: int
    page: int | None
    label: str | None
    text: str
    headings: str
    base: str | None = None

    @property
    def passage(self) -> str:
        return passage(self.headings, self.text)


# How many chunks are embedded is counted for the files that are being embedded only: the others know.
_DOCUMENTS = """
SELECT name, id, pages, chunks, suffix, added, state, reason, path, size, modified,
    (SELECT count(*) FROM documents AS other WHERE other.name = documents.name
        AND (other.added, other.id) <= (documents.added, documents.id)),
    CASE state WHEN 'done' THEN chunks WHEN 'embedding' THEN (
        SELECT count(*) FROM chunks JOIN embeddings ON chunk = chunks.id
        WHERE document = documents.id AND model = (SELECT value FROM settings WHERE key = 'model')) ELSE 0 END
FROM documents
"""
_CHUNKS = """
SELECT chunks.id, document, name, position, page, label, text, headings
FROM chunks JOIN documents ON documents.id = document
"""
_WITHOUT_VECTOR = "NOT EXISTS (SELECT 1 FROM embeddings WHERE chunk = chunks.id AND model = ?)"
_TO_EMBED = f"state IN ('embedding', 'done') AND {_WITHOUT_VECTOR}"
_INCOMPLETE = f"EXISTS (SELECT 1 FROM chunks WHERE document = documents.id AND {_WITHOUT_VECTOR})"


def is_unfinished(path: Path) -> bool:
    """Whether the knowledge base in a file has work left, found out without opening it. Raises sqlite3.Error."""
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version < _VERSION:
            return True
        query = f"SELECT count(*) FROM documents WHERE state IN ({_marks(UNFINISHED)})"
        return connection.execute(query, UNFINISHED).fetchone()[0] > 0


class Database:
    """Usable from any thread: one connection writes, under a lock; another reads what is committed meanwhile."""

    def __init__(self, path: Path):
        self.path = path
        self._closed = False
        self._writing = threading.RLock()
        self._reading = threading.Lock()
        try:
            self._writer = self._connect()
            self._prepare()
            self._reader = self._connect()
            self.forget()  # what a kill kept from being forgotten
        except sqlite3.OperationalError as error:
            raise KnowledgeBaseError(
                f"{path} cannot be opened ({error}); check its permissions and that no other program is using it"
            ) from error
        except sqlite3.DatabaseError as error:
            raise KnowledgeBaseError(
                f"{path} is not a readable knowledge base ({error}); move it away and add the documents again"
            ) from error

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=30, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA secure_delete = ON")  # what the user removes must not stay in the file
        return connection

    def _prepare(self) -> None:
        with self.transaction():
            (version,) = self._writer.execute("PRAGMA user_version").fetchone()
            if version > _VERSION:
                raise KnowledgeBaseError(f"{self.path} was made by a newer version of Quatrain; update to open it")
            if version < _VERSION:
                script = _SCHEMA if version == 0 else _FROM_VERSION_1
                for statement in script.split(";"):
                    self._writer.execute(statement)
                self._writer.execute(f"PRAGMA user_version = {_VERSION}")
            if self._setting("terms") != terms.VERSION:
                self._index_again()

    def close(self) -> None:
        """What still comes then raises KnowledgeBaseError."""
        with self._writing, self._reading:
            self._closed = True
            self._writer.close()
            self._reader.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything inside is written, or nothing; other processes cannot write meanwhile."""
        with self._writing:
            self._check_open()
            with self._writer:
                self._writer.execute("BEGIN IMMEDIATE")
                yield

    def rows(self, query: str, values: Sequence = ()) -> list[tuple]:
        """What a query finds in all that is committed."""
        with self._reading:
            self._check_open()
            return self._reader.execute(query, values).fetchall()

    def _check_open(self) -> None:
        if self._closed:
            raise KnowledgeBaseError(f"{self.path} is closed; its knowledge base may have been removed.")

    def _write(self, statement: str, values: Sequence = ()) -> int:
        """Carry out one statement, inside a transaction or as one; how many rows it changed."""
        with self._writing:
            self._check_open()
            return self._writer.execute(statement, values).rowcount

    def changes_elsewhere(self) -> int:
        """A number that is another one once another process has written."""
        with self._writing:
            self._check_open()
            return self._writer.execute("PRAGMA data_version").fetchone()[0]

    def _setting(self, key: str) -> str | None:
        row = self._writer.execute("SELECT value FROM settings WHERE key = ?", (key,)).fetchone()
        return row[0] if row else None

    # Documents

    def documents(self, states: Sequence[State] = ()) -> list[StoredDocument]:
        """Those in one of the states, or all, in the order in which they were added."""
        where = f"WHERE state IN ({_marks(states)})" if states else ""
        return self._documents(f"{where} ORDER BY added, id", states)

    def document(self, id: str) -> StoredDocument | None:
        return next(iter(self._documents("WHERE id = ?", (id,))), None)

    def documents_named(self, name: str) -> list[StoredDocument]:
        return self._documents("WHERE name = ? ORDER BY added, id", (name,))

    def documents_from(self, path: str) -> list[StoredDocument]:
        return self._documents("WHERE path = ? ORDER BY added, id", (path,))

    def next_to_read(self, urgent: Collection[str] = ()) -> StoredDocument | None:
        """The first file that waits, or whose reading was interrupted; those that are `urgent`, by id, before."""
        order = "id IN (SELECT value FROM json_each(?)) DESC, added, id"
        query = f"WHERE state IN ('reading', 'waiting') ORDER BY {order} LIMIT 1"
        return next(iter(self._documents(query, (json.dumps(list(urgent)),))), None)

    def states(self, among: Sequence[State]) -> dict[str, State]:
        """The states of the documents that are in one of these, by id."""
        return dict(self.rows(f"SELECT id, state FROM documents WHERE state IN ({_marks(among)})", among))

    def embedded_shares(self, model: int) -> dict[str, float]:
        """How much of the documents that are being embedded is, from 0 to 1, by id; without those not begun."""
        query = """
        SELECT document, count(*) * 1.0 / documents.chunks FROM documents
        JOIN chunks ON document = documents.id JOIN embeddings ON chunk = chunks.id
        WHERE state = 'embedding' AND model = ? GROUP BY document
        """
        return dict(self.rows(query, (model,)))

    def _documents(self, where: str, values: Sequence) -> list[StoredDocument]:
        return [StoredDocument(*row) for row in self.rows(_DOCUMENTS + where, values)]

    def add(self, id: str, name: str, suffix: str, path: str | None, size: int, modified: int) -> None:
        """Take in a file, which waits to be read."""
        self._write(
            "INSERT INTO documents (id, name, suffix, path, size, modified, state, added) "
            "VALUES (?, ?, ?, ?, ?, ?, 'waiting', ?)",
            (id, name, suffix, path, size, modified, time.time()),
        )

    def rename(self, id: str, name: str, path: str | None, modified: int) -> None:
        self._write("UPDATE documents SET name = ?, path = ?, modified = ? WHERE id = ?", (name, path, modified, id))

    def set_state(self, id: str, state: State, among: Sequence[State], reason: str | None = None) -> bool:
        """Put a document into a state, if it is in one of `among`; whether it was."""
        statement = f"UPDATE documents SET state = ?, reason = ? WHERE id = ? AND state IN ({_marks(among)})"
        return self._write(statement, (state, reason, id, *among)) == 1

    def store(self, id: str, pages: Sequence[Page], chunks: Sequence[Chunk], note: str | None) -> bool:
        """Keep what was read of a document, which is then embedding; False if it no longer is to be read."""
        with self.transaction():
            if not self.set_state(id, "embedding", ("reading",), note):
                return False
            self._remove_chunks(id)
            numbered = sum(page.number is not None for page in pages)
            self._write("UPDATE documents SET pages = ?, chunks = ? WHERE id = ?", (numbered, len(chunks), id))
            self._writer.executemany(
                "INSERT INTO pages VALUES (?, ?, ?, ?, ?)",
                [(id, position, page.number, page.label, page.text) for position, page in enumerate(pages)],
            )
            self._writer.executemany(
                "INSERT INTO chunks (document, position, page, label, text, headings) VALUES (?, ?, ?, ?, ?, ?)",
                [(id, chunk.position, chunk.page, chunk.label, chunk.text, chunk.headings) for chunk in chunks],
            )
            keywords.add(self._writer, self._passages("WHERE document = ?", (id,)))
        return True

    def remove(self, id: str) -> None:
        """Remove a document and all that was made of it."""
        with self.transaction():
            self._remove_chunks(id)
            self._write("DELETE FROM documents WHERE id = ?", (id,))

    def _remove_chunks(self, document: str) -> None:
        keywords.remove(self._writer, self._passages("WHERE document = ?", (document,)))
        self._write("DELETE FROM chunks WHERE document = ?", (document,))
        self._write("DELETE FROM pages WHERE document = ?", (document,))

    def _passages(self, where: str, values: Sequence = ()) -> dict[int, str]:
        rows = self._writer.execute(f"SELECT id, headings, text FROM chunks {where}", values)
        return {id: passage(headings, text) for id, headings, text in rows}

    def _index_again(self) -> None:
        """Make the keywords of all chunks again: terms are cut in another way than they were."""
        keywords.clear(self._writer)
        passages = self._passages("")
        if passages:
            keywords.add(self._writer, passages)
        self._write("INSERT OR REPLACE INTO settings VALUES ('terms', ?)", (terms.VERSION,))

    def forget(self) -> None:
        """Empty the write-ahead log, where removed rows would still stand."""
        self._write("PRAGMA wal_checkpoint(TRUNCATE)")

    # Pages and chunks

    def pages(self, document: str) -> list[Page]:
        """The pages of a document as they were read, each in one block."""
        query = "SELECT page, label, text FROM pages WHERE document = ? ORDER BY position"
        return [replace(plain(number, text), label=label) for number, label, text in self.rows(query, (document,))]

    def headings_over(self, document: str, page: int | None, text: str) -> str:
        """The headings of the chunk in which `text` stands or begins, with " > " between; "" if there are none."""
        rows = self.rows(
            "SELECT headings FROM chunks WHERE document = ? AND page IS ? AND instr(text, ?) ORDER BY position LIMIT 1",
            (document, page, text[:_START]),
        )
        return rows[0][0] if rows else ""

    def chunks_within(self, document: str, page: int | None, text: str) -> list[int]:
        """The ids of the chunks of a page that stand in `text` whole."""
        query = "SELECT id FROM chunks WHERE document = ? AND page IS ? AND instr(?, text) ORDER BY id"
        return [id for (id,) in self.rows(query, (document, page, text))]

    def chunk_ids(self, document: str) -> list[int]:
        """The ids of a document's chunks, ascending."""
        return [id for (id,) in self.rows("SELECT id FROM chunks WHERE document = ? ORDER BY id", (document,))]

    def chunks(self, ids: Iterable[int]) -> dict[int, StoredChunk]:
        """Those chunks that exist, by id."""
        ids = list(ids)
        rows = self.rows(f"{_CHUNKS} WHERE chunks.id IN ({_marks(ids)})", ids)
        return {row[0]: StoredChunk(*row) for row in rows}

    # Embeddings

    def model(self, identity: str) -> int:
        """The number under which the embeddings of a model are kept."""
        with self.transaction():
            self._write("INSERT OR IGNORE INTO models (identity) VALUES (?)", (identity,))
            return self._writer.execute("SELECT id FROM models WHERE identity = ?", (identity,)).fetchone()[0]

    def used_model(self) -> int | None:
        """The model whose embeddings answer questions; None in a new knowledge base."""
        rows = self.rows("SELECT value FROM settings WHERE key = 'model'")
        return int(rows[0][0]) if rows else None

    def background(self, model: int) -> str | None:
        """What was measured of a model, as `set_background` was given it."""
        rows = self.rows("SELECT value FROM settings WHERE key = ?", (f"background {model}",))
        return rows[0][0] if rows else None

    def set_background(self, model: int, measured: str) -> None:
        self._write("INSERT OR REPLACE INTO settings VALUES (?, ?)", (f"background {model}", measured))

    def use_model(self, model: int) -> None:
        """Documents are done once `model` has embedded them: those that it has not are embedding again."""
        with self.transaction():
            self._write("INSERT OR REPLACE INTO settings VALUES ('model', ?)", (str(model),))
            self._write(f"UPDATE documents SET state = 'embedding' WHERE state = 'done' AND {_INCOMPLETE}", (model,))

    def remove_other_models(self, model: int) -> None:
        """Forget the embeddings of all models but one."""
        with self.transaction():
            self._write("DELETE FROM models WHERE id != ?", (model,))

    def embedded_ids(self, model: int) -> np.ndarray:
        """The ids of the chunks that have an embedding, ascending, int64 [n]."""
        rows = self.rows("SELECT chunk FROM embeddings WHERE model = ? ORDER BY chunk", (model,))
        return np.array([id for (id,) in rows], np.int64)

    def embeddings(self, model: int, ids: Sequence[int]) -> dict[int, np.ndarray]:
        """Those embeddings that exist, by chunk id: float32 [dimension] of length 1."""
        query = f"SELECT chunk, vector FROM embeddings WHERE model = ? AND chunk IN ({_marks(ids)})"
        return {id: np.frombuffer(vector, "<f4") for id, vector in self.rows(query, (model, *ids))}

    def without_embedding(self, model: int, count: int) -> list[StoredChunk]:
        """The next `count` chunks to be embedded, those of the document that came first being first."""
        query = f"{_CHUNKS} WHERE {_TO_EMBED} ORDER BY added, chunks.id LIMIT ?"
        return [StoredChunk(*row) for row in self.rows(query, (model, count))]

    def count_without_embedding(self, model: int) -> int:
        query = f"SELECT count(*) FROM chunks JOIN documents ON documents.id = document WHERE {_TO_EMBED}"
        return self.rows(query, (model,))[0][0]

    def add_embeddings(self, model: int, vectors: Mapping[int, np.ndarray]) -> None:
        """Keep embeddings by chunk id, float32 [dimension] each; of chunks that were removed meanwhile none."""
        with self.transaction():
            self._writer.executemany(
                "INSERT OR REPLACE INTO embeddings SELECT id, ?, ? FROM chunks WHERE id = ?",
                [(model, vector.astype("<f4").tobytes(), id) for id, vector in vectors.items()],
            )

    def settle(self, model: int) -> None:
        """Documents whose chunks all have an embedding are done."""
        self._write(f"UPDATE documents SET state = 'done' WHERE state = 'embedding' AND NOT {_INCOMPLETE}", (model,))


def _marks(values: Sequence) -> str:
    return ", ".join("?" * len(values))
