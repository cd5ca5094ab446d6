"""Conversations on disk: what is acknowledged stays, and a file that can't be used is one sentence."""

import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from chatapp.store import Store, StoredMessage, StoreError

CODE = Path(__file__).parent.parent


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "数据" / "conversations.db"


def user(text: str) -> StoredMessage:
    return StoredMessage("user", text)


def test_everything_of_a_message_is_there_after_reopening(path: Path) -> None:
    source = {"name": "合同.pdf", "page": 3, "score": 0.5, "text": "违约金"}
    reply = StoredMessage("assistant", "第三页。", (1, 2, 3), "a model", (source,))
    store = Store(path)
    conversation = store.create()
    store.add(conversation.id, user("违约金是多少？"))
    store.add(conversation.id, reply)
    store.close()
    again = Store(path)
    assert again.messages(conversation.id) == [user("违约金是多少？"), reply]
    assert [(row.id, row.title) for row in again.conversations()] == [(conversation.id, "违约金是多少？")]


def test_it_is_in_wal_mode(path: Path) -> None:
    Store(path)
    assert sqlite3.connect(path).execute("pragma journal_mode").fetchone() == ("wal",)


def test_the_title_is_the_start_of_the_first_line_of_the_first_question(path: Path) -> None:
    store = Store(path)
    conversation = store.create().id
    store.add(conversation, user("\n  " + "长" * 60 + "\nmore"))
    store.add(conversation, user("another"))
    assert store.conversations()[0].title == "长" * 40


@pytest.mark.parametrize("text", ["", "  \n\t", "\u2028\x1c\x85"])
def test_a_message_of_nothing_gives_no_title(path: Path, text: str) -> None:
    store = Store(path)
    conversation = store.create().id
    store.add(conversation, user(text))
    assert store.conversations()[0].title == ""


def test_conversations_come_last_changed_first_and_without_empty_ones(path: Path) -> None:
    store = Store(path)
    first, second, _ = store.create().id, store.create().id, store.create().id
    store.add(first, user("1"))
    store.add(second, user("2"))
    assert [row.id for row in store.conversations()] == [second, first]
    store.add(first, user("3"))
    assert [row.id for row in store.conversations()] == [first, second]


def test_a_growing_reply_is_replaced(path: Path) -> None:
    store = Store(path)
    conversation = store.create().id
    number = store.add(conversation, user("hi"), StoredMessage("assistant", ""))
    store.update(number, StoredMessage("assistant", "Hel", (1,), "m"))
    store.update(number, StoredMessage("assistant", "Hello", (1, 2), "m"))
    assert store.messages(conversation) == [user("hi"), StoredMessage("assistant", "Hello", (1, 2), "m")]


def test_messages_added_together_are_all_there_or_none(path: Path) -> None:
    store = Store(path)
    conversation = store.create().id
    with pytest.raises(StoreError):
        store.add(conversation, user("hi"), StoredMessage("assistant", None))
    assert store.messages(conversation) == []


def test_deleting_takes_the_messages_along(path: Path) -> None:
    store = Store(path)
    kept, gone = store.create().id, store.create().id
    store.add(kept, user("kept"))
    number = store.add(gone, user("gone"))
    store.delete(gone)
    store.update(number, StoredMessage("assistant", "a reply that still streams"))
    assert (store.messages(gone), [row.id for row in store.conversations()]) == ([], [kept])
    store.close()
    assert (Store(path).restore(gone), Store(path).messages(gone)) == (None, [])  # gone for good at the next start


def test_a_conversation_that_was_deleted_elsewhere_starts_anew(path: Path) -> None:
    store = Store(path)
    store.add("remembered by a browser", user("hi"))
    assert [row.title for row in store.conversations()] == ["hi"]


def test_any_text_is_kept_as_it_is(path: Path) -> None:
    store = Store(path)
    texts = ["'; drop table message; --", "a\0b", "😀\r\n\t", "<script>", "x" * 1_000_000]
    conversation = store.create().id
    store.add(conversation, *map(user, texts))
    assert [message.content for message in store.messages(conversation)] == texts


def test_threads_write_at_the_same_time(path: Path) -> None:
    store = Store(path)
    conversations = [store.create().id for _ in range(4)]

    def write(conversation: str) -> None:
        for number in range(25):
            at = store.add(conversation, user(str(number)))
            store.update(at, user(f"{number}!"))
            store.conversations()

    threads = [threading.Thread(target=write, args=(conversation,)) for conversation in conversations]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for conversation in conversations:
        assert [message.content for message in store.messages(conversation)] == [f"{n}!" for n in range(25)]


STREAMING = """
import sys
from pathlib import Path
from chatapp.store import Store, StoredMessage
store = Store(Path(sys.argv[1]))
conversation = store.create().id
number = store.add(conversation, StoredMessage("user", "问"), StoredMessage("assistant", ""))
text = ""
while True:
    text += "答"
    store.update(number, StoredMessage("assistant", text))
    print(conversation, len(text), flush=True)
"""


def test_a_kill_keeps_all_that_was_acknowledged(path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", STREAMING, str(path)], cwd=CODE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
    )
    for _ in range(50):
        conversation, written = process.stdout.readline().split()
    process.kill()
    process.wait()
    rest = process.stdout.read().splitlines(keepends=True)
    whole = [line for line in rest if line.endswith("\n")]
    acknowledged = int(whole[-1].split()[1]) if whole else int(written)
    question, reply = Store(path).messages(conversation)
    assert question.content == "问"
    assert len(reply.content) >= acknowledged >= 50


def _foreign(path: Path, version: int) -> None:
    connection = sqlite3.connect(path)
    connection.execute("create table bookmarks (url text)")
    connection.execute(f"pragma user_version = {version}")
    connection.commit()
    connection.close()


def _newer(path: Path) -> None:
    Store(path).close()
    connection = sqlite3.connect(path)
    connection.execute("pragma user_version = 3")
    connection.commit()
    connection.close()


def _damaged(path: Path) -> None:
    store = Store(path)
    conversation = store.create().id
    for number in range(200):
        store.add(conversation, user(f"{number} " * 200))
    store.close()
    data = bytearray(path.read_bytes())
    data[8192:-8192] = bytes(len(data) - 16384)
    path.write_bytes(data)


BAD_FILES = {
    "foreign": (lambda path: _foreign(path, 0), "another program"),
    "foreign with our version": (lambda path: _foreign(path, 1), "another program"),
    "newer": (_newer, "newer Quatrain, version 3"),
    "no database": (
        lambda path: path.write_bytes(b"not a database, but long enough to have a header" * 50),
        "database",
    ),
    "damaged inside": (_damaged, "damaged|malformed"),
    "a folder": (lambda path: path.mkdir(), "unable to open"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_file_that_can_not_be_used_is_one_sentence_and_left_alone(path: Path, kind: str) -> None:
    make, reason = BAD_FILES[kind]
    path.parent.mkdir(parents=True)
    make(path)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(StoreError, match=reason) as caught:
        Store(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert (path.read_bytes() if path.is_file() else None) == before


FIRST_VERSION = """
create table conversation (id text primary key, title text not null, changed text not null);
create table message (
    id integer primary key,
    conversation text not null references conversation (id) on delete cascade,
    role text not null,
    content text not null,
    ids text,
    model text,
    sources text not null
);
create index message_of_conversation on message (conversation, id);
insert into conversation values ('a', 'hi', '2026-11-01'), ('b', 'other', '2026-11-02');
insert into message values (1, 'a', 'user', 'hi', null, null, '[]'), (2, 'b', 'user', 'other', null, null, '[]'),
    (3, 'a', 'assistant', 'hello', '[5, 6]', 'tiny', '[]');
pragma user_version = 1;
"""


def test_a_file_of_the_first_version_is_taken_over(path: Path) -> None:
    path.parent.mkdir(parents=True)
    connection = sqlite3.connect(path)
    connection.executescript(FIRST_VERSION)
    connection.close()
    store = Store(path)
    assert [message.content for message in store.messages("a")] == ["hi", "hello"]
    assert store.messages("a")[1].ids == (5, 6) and store.messages("a")[1].ledger is None
    store.update(3, StoredMessage("assistant", "hello", ledger={"context": 64}))
    assert Store(path).messages("a")[1].ledger == {"context": 64}
    assert [hit.id for hit in store.search("other")] == ["b"]


def test_an_empty_file_becomes_a_store(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.touch()
    assert Store(path).conversations() == []


def test_a_disk_that_fails_while_writing_is_one_sentence(path: Path) -> None:
    store = Store(path)
    conversation = store.create().id
    other = sqlite3.connect(path)
    other.execute("drop table message")  # stands for any failure of the file
    with pytest.raises(StoreError, match="can't be used"):
        store.add(conversation, user("hi"))
    with pytest.raises(StoreError, match="can't be used"):
        store.messages(conversation)
