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

from . import words
from .preferences import Preferences
from .schema import prepare
from .tree import Node, NotThere, Tree
from .words import Snippet

TITLE = 40  #: characters of a title that is taken from the first question
LONGEST_TITLE = 200
HITS = 100  #: conversations that a search finds at most

COLUMNS = "role, content, ids, model, chat_format, sources, state, failure, reason, ledger, evidence"


class StoreError(RuntimeError):
    """The file of conversations can't be used; the text is one sentence for the user."""


@dataclass(frozen=True)
class Conversation:
    id: str
    title: str
    changed: str = ""  #: ISO 8601, UTC
    preferences: Preferences = Preferences()


@dataclass(frozen=True)
class StoredMessage:
    """A message as it is kept. What follows `content` is told of replies only.

    `state` is "writing", "done", "stopped", "failed", "nothing_found" (the documents do not say) or "interrupted" (the
    program ended); `reason` is End's, if the reply came to an end.
    """

    role: str
    content: str
    ids: tuple[int, ...] | None = None
    model: str | None = None
    sources: tuple[Mapping[str, Any], ...] = ()
    chat_format: str | None = None
    state: str = "done"
    failure: str = ""
    reason: str | None = None
    #: What its window was spent on, as Ledger.as_json gives it. It says nothing of the message itself.
    ledger: Mapping[str, Any] | None = field(default=None, compare=False)
    #: What its sentences draw on, as Evidence.as_json gives it.
    evidence: Mapping[str, Any] | None = field(default=None, compare=False)

    @property
    def unfinished(self) -> bool:
        """Whether it is a reply that could go on."""
        cut = self.state in ("stopped", "failed", "interrupted") or self.reason in ("length", "window", "loop")
        return self.role == "assistant" and bool(self.content) and self.state != "writing" and cut


@dataclass(frozen=True)
class Hit:
    """A conversation that holds what was searched for: in a message, or in its title if `message` is None."""

    id: str
    title: str
    message: int | None
    snippet: Snippet


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
            #: How many conversations this start has removed for good.
            self.gone = prepare(self._connection)
        except (sqlite3.Error, OverflowError) as error:
            self._connection.close()  # Windows moves no file away that is open
            raise self._unusable(error) from error

    def _unusable(self, error: Exception) -> StoreError:
        return StoreError(f"{self._path} can't be used ({error}); move it away to start with no conversations.")

    # Conversations

    def create(self, preferences: Preferences | None = None) -> Conversation:
        """A conversation without a title, which it takes from its first question."""
        return self.insert("", preferences or Preferences(), Tree())

    def insert(self, title: str, preferences: Preferences, tree: Tree) -> Conversation:
        """A whole conversation, under an id of its own; the order of its messages stays, their numbers don't."""
        conversation = Conversation(uuid.uuid4().hex, _title(title, LONGEST_TITLE), _now(), preferences)
        numbers: dict[int | None, int | None] = {None: None}
        with self._transaction() as connection:
            connection.execute(
                "insert into conversation (id, title, changed, preferences) values (?, ?, ?, ?)",
                (conversation.id, conversation.title, conversation.changed, _json(preferences)),
            )
            for node in tree.nodes.values():
                numbers[node.id] = _insert(connection, conversation.id, numbers[node.parent], node.message)
            _set_leaf(connection, conversation.id, numbers[tree.leaf])
        return conversation

    def conversations(self) -> list[Conversation]:
        """Those with at least one message, the last changed first."""
        rows = self._read(
            "select id, title, changed, preferences from conversation where deleted is null and exists "
            "(select 1 from message where conversation = conversation.id) order by changed desc, number desc"
        )
        return [_conversation(*row) for row in rows]

    def conversation(self, id: str) -> Conversation:
        """Raises NotThere for one that is unknown or deleted."""
        rows = self._read(
            "select id, title, changed, preferences from conversation where id = ? and deleted is null", (id,)
        )
        if not rows:
            raise NotThere("There is no such conversation; it may have been deleted.")
        return _conversation(*rows[0])

    def search(self, text: str) -> list[Hit]:
        """The conversations that hold all words of the text in a message or in their title, the last changed first.

        Each comes with its newest message that does, on whichever branch that is.
        """
        query = words.query(text)
        if not query:
            return []
        rows = self._read(
            """select id, title, message, content from (
                   select conversation.number, max(message.id) as message, message.content
                   from message_words join message on message.id = message_words.rowid
                   join conversation on conversation.id = message.conversation
                   where message_words match ? group by conversation.number
                   union all
                   select rowid, null, null from title_words where title_words match ?
               ) as hit join conversation on conversation.number = hit.number
               where deleted is null group by conversation.number
               order by changed desc, conversation.number desc limit ?""",
            (query, query, HITS),
        )
        return [Hit(id, title, message, words.snippet(content or title, text)) for id, title, message, content in rows]

    def rename(self, conversation: str, title: str) -> None:
        """Gives it a title, of which the first line counts."""
        self._change(conversation, "title", _title(title, LONGEST_TITLE))

    def prefer(self, conversation: str, preferences: Preferences) -> None:
        """Replaces its settings."""
        self._change(conversation, "preferences", _json(preferences))

    def delete(self, conversation: str) -> None:
        """Takes it out of sight; `restore` brings it back until the next start."""
        self._change(conversation, "deleted", _now())

    def restore(self, conversation: str) -> None:
        self._change(conversation, "deleted", None)

    def _change(self, conversation: str, column: str, value: str | None) -> None:
        with self._transaction() as connection:
            connection.execute(f"update conversation set {column} = ? where id = ?", (value, conversation))

    # Messages

    def tree(self, conversation: str) -> Tree:
        """All that was said; empty for a conversation that is not there."""
        with self._lock, self._said():
            return _tree(self._connection, conversation)

    def messages(self, conversation: str) -> list[StoredMessage]:
        """The branch that is shown."""
        return [node.message for node in self.tree(conversation).path]

    def add(self, conversation: str, *messages: StoredMessage) -> int:
        """Appends messages to the branch that is shown, all of them or none, and returns the number of the last.

        A conversation that is not there, because it was deleted elsewhere, starts anew with them.
        """
        with self._transaction() as connection:
            connection.execute(
                "insert or ignore into conversation (id, title, changed, preferences) values (?, '', ?, '{}')",
                (conversation, _now()),
            )
            ((leaf,),) = connection.execute("select leaf from conversation where id = ?", (conversation,))
            return _append(connection, conversation, leaf, messages)

    def branch(self, conversation: str, parent: int | None, *messages: StoredMessage) -> int:
        """Adds messages behind another one than the last, or at the beginning, and shows them; as `add` otherwise.

        Raises NotThere where that one is not in the conversation.
        """
        with self._transaction() as connection:
            _check(connection, conversation, parent)
            return _append(connection, conversation, parent, messages)

    def resume(self, conversation: str) -> int:
        """Takes up the last reply of the branch, so that nobody else does, and returns its number.

        Raises TreeError where it is complete, or being written.
        """
        with self._transaction() as connection:
            number = _tree(connection, conversation).continuable().id
            connection.execute("update message set state = 'writing' where id = ?", (number,))
        return number

    def update(self, number: int, message: StoredMessage) -> None:
        """Replaces a message's content, as more of a reply arrives."""
        assignments = ", ".join(f"{name} = ?" for name in COLUMNS.split(", "))
        with self._transaction() as connection:
            connection.execute(f"update message set {assignments} where id = ?", (*_columns(message), number))

    def show(self, conversation: str, leaf: int | None) -> None:
        """Shows the branch that ends with a message. Raises NotThere where it is not in the conversation."""
        with self._transaction() as connection:
            _check(connection, conversation, leaf)
            _set_leaf(connection, conversation, leaf)

    def remove(self, conversation: str, number: int) -> Tree:
        """Removes a message and all that follow it, for good, and returns what is left."""
        with self._transaction() as connection:
            tree = _tree(connection, conversation)
            rest = tree.without(number)
            gone = [(id,) for id in tree.nodes.keys() - rest.nodes.keys()]
            connection.executemany("delete from message where id = ?", gone)
            _set_leaf(connection, conversation, rest.leaf)
        return rest

    def check(self) -> None:
        """Whether the file is whole and can be written. Raises StoreError where it is not."""
        with self._transaction() as connection:
            (verdict,) = connection.execute("pragma quick_check(1)").fetchone()
            version = connection.execute("pragma user_version").fetchone()[0]
            connection.execute(f"pragma user_version = {version}")  # a write that changes nothing
        if verdict != "ok":
            raise self._unusable(sqlite3.DatabaseError(f"it is damaged: {verdict}"))

    def close(self) -> None:
        self._connection.close()

    def _read(self, query: str, values: Sequence[Any] = ()) -> list[tuple]:
        with self._lock, self._said(), closing(self._connection.execute(query, values)) as cursor:
            return cursor.fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._said(), self._connection:
            self._connection.execute("begin immediate")  # what is read in it is still true when it writes
            yield self._connection

    @contextmanager
    def _said(self) -> Iterator[None]:
        """Failures of the disk, such as one that is full, as a sentence."""
        try:
            yield
        except sqlite3.Error as error:
            raise StoreError(f"{self._path} can't be used ({error}); check the disk and start again.") from error


def _append(
    connection: sqlite3.Connection, conversation: str, parent: int | None, messages: Sequence[StoredMessage]
) -> int:
    """Adds a chain of messages behind a parent and returns the number of the last."""
    for message in messages:
        parent = _insert(connection, conversation, parent, message)
        connection.execute(
            "update conversation set changed = ?, deleted = null, title = case when title = '' then ? else title end "
            "where id = ?",
            (_now(), _title(message.content, TITLE), conversation),
        )
    _set_leaf(connection, conversation, parent)
    return parent or 0


def _insert(connection: sqlite3.Connection, conversation: str, parent: int | None, message: StoredMessage) -> int:
    marks = ", ".join("?" * (2 + len(COLUMNS.split(", "))))
    cursor = connection.execute(
        f"insert into message (conversation, parent, {COLUMNS}) values ({marks})",
        (conversation, parent, *_columns(message)),
    )
    return int(cursor.lastrowid or 0)


def _set_leaf(connection: sqlite3.Connection, conversation: str, leaf: int | None) -> None:
    connection.execute("update conversation set leaf = ? where id = ?", (leaf, conversation))


def _check(connection: sqlite3.Connection, conversation: str, number: int | None) -> None:
    if number is None:
        known = connection.execute("select 1 from conversation where id = ?", (conversation,))
    else:
        known = connection.execute("select 1 from message where id = ? and conversation = ?", (number, conversation))
    if known.fetchone() is None:
        raise NotThere("This message is not in the conversation; it may have been deleted.")


def _tree(connection: sqlite3.Connection, conversation: str) -> Tree:
    shown = connection.execute("select leaf from conversation where id = ? and deleted is null", (conversation,))
    found = shown.fetchone()
    if found is None:
        return Tree()
    rows = connection.execute(
        f"select id, parent, {COLUMNS} from message where conversation = ? order by id", (conversation,)
    ).fetchall()
    nodes = (Node(id, parent, _message(*columns)) for id, parent, *columns in rows)
    return Tree({node.id: node for node in nodes}, found[0])


def _columns(message: StoredMessage) -> tuple[str | None, ...]:
    """The values of COLUMNS."""
    return (
        message.role,
        message.content,
        json.dumps(message.ids) if message.ids is not None else None,
        message.model,
        message.chat_format,
        json.dumps(message.sources, ensure_ascii=False),
        message.state,
        message.failure,
        message.reason,
        *(
            None if each is None else json.dumps(each, ensure_ascii=False)
            for each in (message.ledger, message.evidence)
        ),
    )


def _message(
    role: str,
    content: str,
    ids: str | None,
    model: str | None,
    chat_format: str | None,
    sources: str,
    state: str,
    failure: str,
    reason: str | None,
    ledger: str | None,
    evidence: str | None,
) -> StoredMessage:
    kept = tuple(json.loads(ids)) if ids else None
    read = tuple(json.loads(sources))
    spent, cited = (json.loads(each) if each else None for each in (ledger, evidence))
    return StoredMessage(role, content, kept, model, read, chat_format, state, failure, reason, spent, cited)


def _conversation(id: str, title: str, changed: str, preferences: str) -> Conversation:
    return Conversation(id, title, changed, Preferences.model_validate_json(preferences))


def _title(text: str, longest: int) -> str:
    """The first line; of a longer one the beginning, which ends with a word where there is a space to tell."""
    first = next(iter(text.strip().splitlines()), "").strip()
    if len(first) <= longest:
        return first
    begun = first[: longest - 1]
    words = begun.rpartition(" ")[0]
    return f"{(words if 2 * len(words) > longest else begun).strip()}…"


def _json(preferences: Preferences) -> str:
    return preferences.model_dump_json(exclude_none=True)


def _now() -> str:
    return datetime.now(UTC).isoformat()
