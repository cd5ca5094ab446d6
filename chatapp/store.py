"""Conversations on disk. What the user sent, and what was streamed, is in the file before it is acknowledged."""

from __future__ import annotations

import json
import sqlite3
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

VERSION = 2
SCHEMA = """
create table conversation (id text primary key, title text not null, changed text not null);
create table message (
    id integer primary key,
    conversation text not null references conversation (id) on delete cascade,
    role text not null,
    content text not null,
    ids text,                       -- JSON: a reply's tokens as they were generated
    model text,                     -- which model they belong to
    ledger text,                    -- JSON: what a reply's window was spent on, as Ledger.as_json gives it
    sources text not null           -- JSON: [{"name", "page", "score", "text"}]
);
create index message_of_conversation on message (conversation, id);
"""
TABLES = {"conversation", "message"}
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
    #: What its window was spent on. It says nothing of the message itself.
    ledger: Mapping[str, Any] | None = field(default=None, compare=False)


class Store:
    """A SQLite file in WAL mode; every call is a transaction of its own, from any thread."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._lock = threading.Lock()
        try:
            self._connection = sqlite3.connect(path, check_same_thread=False)
        except sqlite3.Error as error:
            raise self._unusable(error) from error
        try:
            self._prepare()
        except (sqlite3.Error, OverflowError) as error:
            self._connection.close()  # Windows moves no file away that is open
            raise self._unusable(error) from error

    def _prepare(self) -> None:
        (version,) = self._connection.execute("pragma user_version").fetchone()
        tables = {name for (name,) in self._connection.execute("select name from sqlite_master where type = 'table'")}
        if version > VERSION:
            raise sqlite3.DatabaseError(f"it was written by a newer Quatrain, version {version}")
        if tables and not (version and TABLES <= tables):
            raise sqlite3.DatabaseError("it belongs to another program")
        (verdict,) = self._connection.execute("pragma quick_check(1)").fetchone()
        if verdict != "ok":
            raise sqlite3.DatabaseError("it is damaged")
        self._connection.execute("pragma journal_mode = wal")
        self._connection.execute("pragma foreign_keys = on")
        if version == 1:
            self._connection.executescript(
                "begin; alter table message add ledger text; pragma user_version = 2; commit;"
            )
        if not tables:
            self._connection.executescript(f"begin; {SCHEMA} pragma user_version = {VERSION}; commit;")

    def _unusable(self, error: Exception) -> StoreError:
        return StoreError(f"{self._path} can't be used ({error}); move it away to start with no conversations.")

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
            "select role, content, ids, model, sources, ledger from message where conversation = ? order by id",
            (conversation,),
        )
        return [_message(*row) for row in rows]

    def add(self, conversation: str, *messages: StoredMessage) -> int:
        """Appends messages, all of them or none, and returns the number of the last.

        A conversation that is not there, because it was deleted elsewhere, starts anew with them.
        """
        number = 0
        with self._transaction() as connection:
            connection.execute("insert or ignore into conversation values (?, '', ?)", (conversation, _now()))
            for message in messages:
                number = self._append(connection, conversation, message)
        return number

    def _append(self, connection: sqlite3.Connection, conversation: str, message: StoredMessage) -> int:
        cursor = connection.execute(
            "insert into message (conversation, role, content, ids, model, sources, ledger) "
            "values (?, ?, ?, ?, ?, ?, ?)",
            (conversation, message.role, *_columns(message)),
        )
        connection.execute(
            "update conversation set changed = ?, title = case when title = '' then ? else title end where id = ?",
            (_now(), _title(message.content), conversation),
        )
        return int(cursor.lastrowid or 0)

    def update(self, number: int, message: StoredMessage) -> None:
        """Replaces a message's content, as more of a reply arrives."""
        with self._transaction() as connection:
            connection.execute(
                "update message set content = ?, ids = ?, model = ?, sources = ?, ledger = ? where id = ?",
                (*_columns(message), number),
            )

    def delete(self, conversation: str) -> None:
        with self._transaction() as connection:
            connection.execute("delete from conversation where id = ?", (conversation,))

    def close(self) -> None:
        self._connection.close()

    def _read(self, query: str, values: Sequence[Any] = ()) -> list[tuple]:
        with self._lock, self._said(), closing(self._connection.execute(query, values)) as cursor:
            return cursor.fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._said(), self._connection:
            yield self._connection

    @contextmanager
    def _said(self) -> Iterator[None]:
        """Failures of the disk, such as one that is full, as a sentence."""
        try:
            yield
        except sqlite3.Error as error:
            raise StoreError(f"{self._path} can't be used ({error}); check the disk and start again.") from error


def _columns(message: StoredMessage) -> tuple[str | None, ...]:
    ids = json.dumps(message.ids) if message.ids is not None else None
    ledger = json.dumps(message.ledger, ensure_ascii=False) if message.ledger is not None else None
    return message.content, ids, message.model, json.dumps(message.sources, ensure_ascii=False), ledger


def _title(content: str) -> str:
    content = content.strip()
    return content.splitlines()[0][:TITLE] if content else ""


def _message(
    role: str, content: str, ids: str | None, model: str | None, sources: str, ledger: str | None
) -> StoredMessage:
    kept, spent = (json.loads(text) if text else None for text in (ids, ledger))
    return StoredMessage(role, content, tuple(kept) if kept else None, model, tuple(json.loads(sources)), spent)


def _now() -> str:
    return datetime.now(UTC).isoformat()
