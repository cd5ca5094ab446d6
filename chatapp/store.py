"""Conversations on disk. What the user sent, and what was streamed, is in the file before it is acknowledged."""

from __future__ import annotations

import json
import sqlite3
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

VERSION = 1
SCHEMA = """
create table conversation (id text primary key, title text not null, changed text not null);
create table message (
    id integer primary key,
    conversation text not null references conversation (id) on delete cascade,
    role text not null,
    content text not null,
    ids text,                       -- JSON: a reply's tokens as they were generated
    model text,                     -- which model they belong to
    sources text not null           -- JSON: [{"name", "page", "score", "text"}]
);
create index message_of_conversation on message (conversation, id);
"""
TITLE = 40  # characters


class StoreError(RuntimeError):
    """The file of conversations can't be used; the text is one sentence for the user."""


@dataclass(frozen=True)
class Conversation:
    id: str
    title: str


@dataclass(frozen=True)
class StoredMessage:
    role: str
    content: str
    ids: tuple[int, ...] | None = None
    model: str | None = None
    sources: tuple[Mapping[str, Any], ...] = ()


class Store:
    """A SQLite file in WAL mode; every call is a transaction of its own, from any thread."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        try:
            self._connection = sqlite3.connect(path, check_same_thread=False)
            self._connection.execute("pragma journal_mode = wal")
            self._connection.execute("pragma foreign_keys = on")
            self._migrate()
        except sqlite3.DatabaseError as error:
            raise StoreError(f"{path} can't be read ({error}); move it away to start with no conversations.") from error

    def _migrate(self) -> None:
        (version,) = self._connection.execute("pragma user_version").fetchone()
        if version > VERSION:
            raise sqlite3.DatabaseError(f"it was written by a newer Quatrain, version {version}")
        if version == 0:
            self._connection.executescript(f"begin; {SCHEMA} pragma user_version = {VERSION}; commit;")

    def create(self) -> Conversation:
        """A conversation without a title, which it takes from its first question."""
        conversation = Conversation(uuid.uuid4().hex, "")
        with self._transaction() as connection:
            connection.execute("insert into conversation values (?, '', ?)", (conversation.id, _now()))
        return conversation

    def conversations(self) -> list[Conversation]:
        """Those with at least one message, the last changed first."""
        rows = self._read(
            "select id, title from conversation where exists "
            "(select 1 from message where conversation = conversation.id) order by changed desc, rowid desc"
        )
        return [Conversation(*row) for row in rows]

    def messages(self, conversation: str) -> list[StoredMessage]:
        rows = self._read(
            "select role, content, ids, model, sources from message where conversation = ? order by id", (conversation,)
        )
        return [_message(*row) for row in rows]

    def add(self, conversation: str, message: StoredMessage) -> int:
        """Appends a message and returns its number."""
        with self._transaction() as connection:
            cursor = connection.execute(
                "insert into message (conversation, role, content, ids, model, sources) values (?, ?, ?, ?, ?, ?)",
                (conversation, message.role, message.content, *_columns(message)),
            )
            title = message.content.strip().splitlines()[0][:TITLE] if message.content.strip() else ""
            connection.execute(
                "update conversation set changed = ?, title = case when title = '' then ? else title end where id = ?",
                (_now(), title, conversation),
            )
        return int(cursor.lastrowid or 0)

    def update(self, number: int, message: StoredMessage) -> None:
        """Replaces a message's content, as more of a reply arrives."""
        with self._transaction() as connection:
            connection.execute(
                "update message set content = ?, ids = ?, model = ?, sources = ? where id = ?",
                (message.content, *_columns(message), number),
            )

    def delete(self, conversation: str) -> None:
        with self._transaction() as connection:
            connection.execute("delete from conversation where id = ?", (conversation,))

    def close(self) -> None:
        self._connection.close()

    def _read(self, query: str, values: Sequence[Any] = ()) -> list[tuple]:
        with self._lock, closing(self._connection.execute(query, values)) as cursor:
            return cursor.fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._connection:
            yield self._connection


def _columns(message: StoredMessage) -> tuple[str | None, str | None, str]:
    ids = json.dumps(message.ids) if message.ids is not None else None
    return ids, message.model, json.dumps(message.sources, ensure_ascii=False)


def _message(role: str, content: str, ids: str | None, model: str | None, sources: str) -> StoredMessage:
    return StoredMessage(role, content, tuple(json.loads(ids)) if ids else None, model, tuple(json.loads(sources)))


def _now() -> str:
    return datetime.now(UTC).isoformat()
