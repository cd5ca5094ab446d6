"""Conversations on disk: what is acknowledged stays, and a file that can't be used is one sentence."""

import re
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from chatapp import schema
from chatapp.preferences import Preferences
from chatapp.store import Store, StoredMessage, StoreError
from chatapp.tree import NotThere, TreeError

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


@pytest.mark.parametrize(
    ("line", "title"),
    [
        ("长" * 60, "长" * 39 + "…"),
        ("长" * 40, "长" * 40),
        ("Which program finds primes with the sieve of Eratosthenes?", "Which program finds primes with the…"),
        ("Is https://example.org/" + "a" * 40, "Is https://example.org/" + "a" * 16 + "…"),
    ],
)
def test_the_title_is_the_start_of_the_first_line_of_the_first_question(path: Path, line: str, title: str) -> None:
    store = Store(path)
    conversation = store.create().id
    store.add(conversation, user(f"\n  {line}\nmore"))
    store.add(conversation, user("another"))
    assert store.conversations()[0].title == title


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
number = store.add(conversation, StoredMessage("user", "问"), StoredMessage("assistant", "", state="writing"))
text = ""
print(conversation, 0, flush=True)
while True:
    text += "答案"
    store.update(number, StoredMessage("assistant", text, state="writing"))
    print(conversation, len(text), flush=True)
"""


def _killed(path: Path, lines: int) -> tuple[str, int]:
    """A conversation whose program was killed at once after so many acknowledgements, and what it had acknowledged."""
    process = subprocess.Popen(
        [sys.executable, "-c", STREAMING, str(path)], cwd=CODE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
    )
    for _ in range(lines):
        conversation, written = process.stdout.readline().split()
    process.kill()
    rest = [line for line in process.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
    process.wait()
    return conversation, int(rest[-1].split()[1]) if rest else int(written)


def _check_kills(path: Path, kills: int) -> None:
    acknowledged: dict[str, int] = {}
    for number in range(kills):
        conversation, written = _killed(path, 1 + number * 7 % 40)
        acknowledged[conversation] = written
        store = Store(path)
        assert store._read("pragma integrity_check") == [("ok",)]
        store._read("insert into message_words (message_words) values ('integrity-check')")
        assert len(acknowledged) == number + 1
        for each, length in acknowledged.items():
            question, reply = store.messages(each)
            assert question.content == "问"
            assert len(reply.content) >= length and set(reply.content) <= {"答", "案"}
            assert reply.state == "interrupted"
        texts = sum(len(store.messages(each)[1].content) > 1 for each in acknowledged)
        assert len(store.search("答案")) == texts
        store.close()


def test_a_kill_keeps_all_that_was_acknowledged(path: Path) -> None:
    _check_kills(path, 5)


@pytest.mark.slow
def test_fifty_kills_keep_all_that_was_acknowledged(path: Path) -> None:
    _check_kills(path, 50)


def test_threads_that_stream_into_two_conversations_never_mix(path: Path) -> None:
    store = Store(path)
    conversations = {letter: store.create().id for letter in "ab"}

    def stream(letter: str) -> None:
        for _ in range(8):
            number = store.add(conversations[letter], user(letter), StoredMessage("assistant", ""))
            for length in range(1, 12):
                store.update(number, StoredMessage("assistant", letter * length))

    threads = [threading.Thread(target=stream, args=(letter,)) for letter in conversations]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for letter, conversation in conversations.items():
        assert [message.content for message in store.messages(conversation)] == [letter, letter * 11] * 8


def test_a_number_is_never_given_twice(path: Path) -> None:
    """Else a reply that still streams into a conversation that was deleted would go into another."""
    store = Store(path)
    gone = store.create().id
    number = store.add(gone, user("gone"), StoredMessage("assistant", ""))
    store.delete(gone)
    store.close()
    store = Store(path)
    kept = store.create().id
    store.add(kept, user("kept"), StoredMessage("assistant", ""))
    store.update(number, StoredMessage("assistant", "late"))
    assert [message.content for message in store.messages(kept)] == ["kept", ""]


def test_a_conversation_of_thousands_of_messages_can_be_deleted(path: Path) -> None:
    """SQLite's cascades end at 1,000 levels."""
    store = Store(path)
    conversation = store.create().id
    store.add(conversation, *(user(str(number)) for number in range(3000)))
    first = store.tree(conversation).path[0].id
    assert store.remove(conversation, first) == store.tree(conversation)
    store.add(conversation, *(user(str(number)) for number in range(3000)))
    store.delete(conversation)
    store.close()
    assert Store(path)._read("select count(*) from message") == [(0,)]


def test_messages_of_another_conversation_are_out_of_reach(path: Path) -> None:
    store = Store(path)
    one, other = store.create().id, store.create().id
    number = store.add(one, user("one"))
    for reach in (
        lambda: store.branch(other, number, user("x")),
        lambda: store.show(other, number),
        lambda: store.remove(other, number),
        lambda: store.branch("no such", None, user("x")),
    ):
        with pytest.raises(NotThere):
            reach()
    assert [message.content for message in store.messages(one)] == ["one"] and store.messages(other) == []


def test_two_windows_do_not_both_take_up_a_reply(path: Path) -> None:
    store = Store(path)
    conversation = store.create().id
    number = store.add(conversation, user("q"), StoredMessage("assistant", "a", state="stopped"))
    assert store.resume(conversation) == number
    with pytest.raises(TreeError):
        store.resume(conversation)


# Titles, settings, deletion


def test_a_title_and_settings_can_be_changed_and_stay(path: Path) -> None:
    store = Store(path)
    conversation = store.create(Preferences(system="简短", temperature=0.5)).id
    store.add(conversation, user("first"))
    store.rename(conversation, " 合同 \nsecond line")
    assert store.conversation(conversation).preferences == Preferences(system="简短", temperature=0.5)
    store.prefer(conversation, Preferences(knowledge_base="docs", seed=3))
    store.close()
    kept = Store(path).conversation(conversation)
    assert (kept.title, kept.preferences) == ("合同", Preferences(knowledge_base="docs", seed=3))


def test_a_deleted_conversation_can_be_restored_until_the_next_start(path: Path) -> None:
    store = Store(path)
    conversation = store.create().id
    store.add(conversation, user("needle"))
    store.delete(conversation)
    assert (store.conversations(), store.messages(conversation), store.search("needle")) == ([], [], [])
    with pytest.raises(NotThere):
        store.conversation(conversation)
    store.restore(conversation)
    assert [message.content for message in store.messages(conversation)] == ["needle"]
    assert [hit.id for hit in store.search("needle")] == [conversation]


def test_a_start_tells_what_has_gone_for_good(path: Path) -> None:
    store = Store(path)
    for delete in (True, False, True):
        conversation = store.create().id
        if delete:
            store.delete(conversation)
    assert [store.gone, Store(path).gone, Store(path).gone] == [0, 2, 0]


# Search


def found(store: Store, text: str) -> list[tuple[str, str]]:
    return [(hit.title, hit.snippet.hit) for hit in store.search(text)]


@pytest.fixture
def searchable(path: Path) -> Store:
    store = Store(path)
    for question, reply in [
        ("合同里的违约金是多少？", "违约金为每日 1,200 元。"),
        ("How do I cook Crème Brûlée?", "Use the OVEN at １５０ degrees."),
        ("foo_bar のテスト", "plain"),
    ]:
        store.add(store.create().id, user(question), StoredMessage("assistant", reply))
    return store


@pytest.mark.parametrize(
    "text, title, hit",
    [
        ("违约", "合同", "违约"),
        ("违约金", "合同", "违约金"),
        ("金", "合同", "金"),
        ("合同 多少", "合同", "合同"),
        ("元", "合同", "元"),
        ("oven", "How", "OVEN"),
        ("ove", "How", "OVE"),
        ("ＯＶＥＮ 150", "How", "OVEN"),
        ("creme", "How", ""),
        ("brûlée", "How", "Brûlée"),
        ("foo_b", "foo", "foo"),
        ("テスト", "foo", "テスト"),
        ("ﾃｽﾄ", "foo", "テスト"),
        ("1,200", "合同", "1"),
    ],
)
def test_words_are_found(searchable: Store, text: str, title: str, hit: str) -> None:
    ((found_title, found_hit),) = found(searchable, text)
    assert found_title.startswith(title) and found_hit == hit


@pytest.mark.parametrize(
    "text", ["约违", "违金", "ven", "nothing", "违约 oven", "", "  ", "?!，", '" OR *', "NEAR(", "words:"]
)
def test_what_is_not_there_is_not_found(searchable: Store, text: str) -> None:
    assert found(searchable, text) == []


def test_a_search_follows_every_change(searchable: Store) -> None:
    store = searchable
    conversation = store.search("oven")[0].id
    number = store.search("oven")[0].message
    store.update(number, StoredMessage("assistant", "Use the grill."))
    assert (found(store, "oven"), len(found(store, "grill"))) == ([], 1)
    store.rename(conversation, "Desserts")
    assert store.search("dessert")[0].message is None
    store.remove(conversation, number)
    assert found(store, "grill") == []
    store.rename(conversation, "Sweets")
    assert (found(store, "dessert"), len(found(store, "sweets"))) == ([], 1)
    store.delete(conversation)
    store.close()
    assert Store(store._path)._read("select count(*) from title_words") == [(2,)]


def test_a_hit_tells_its_message_on_whichever_branch(searchable: Store) -> None:
    conversation = searchable.search("oven")[0].id
    number = searchable.branch(conversation, None, user("another beginning"))
    assert searchable.search("oven")[0].message != number
    assert searchable.search("beginning")[0].message == number
    snippet = searchable.search("cook")[0].snippet
    assert (snippet.before, snippet.hit, snippet.behind) == ("How do I ", "cook", " Crème Brûlée?")


# Files of version 1

VERSION_1 = """
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
pragma user_version = 1;
"""
ROWS_OF_VERSION_1 = """
insert into conversation values
    ('one', '违约金？', '2026-11-01T10:00:00+00:00'), ('two', 'hi', '2026-11-02T10:00:00+00:00');
insert into message (conversation, role, content, ids, model, sources) values
    ('one', 'user', '违约金？', null, null, '[]'), ('two', 'user', 'hi', null, null, '[]'),
    ('one', 'assistant', '1,200 元', '[5, 6]', 'm', '[{"name": "a.pdf", "page": 3, "score": 0.5, "text": "违约金"}]'),
    ('two', 'assistant', '', null, null, '[]'), ('one', 'user', 'and?', null, null, '[]');
"""


def _version_1(path: Path, rows: str = ROWS_OF_VERSION_1) -> None:
    path.parent.mkdir(parents=True)
    connection = sqlite3.connect(path)
    connection.execute("pragma journal_mode = wal")
    connection.executescript(VERSION_1 + rows)
    connection.close()


def test_a_file_of_version_1_becomes_chains(path: Path) -> None:
    _version_1(path)
    for _ in range(2):  # once migrated, it opens as any other
        store = Store(path)
        assert [(row.id, row.title) for row in store.conversations()] == [("two", "hi"), ("one", "违约金？")]
        source = {"name": "a.pdf", "page": 3, "score": 0.5, "text": "违约金"}
        reply = StoredMessage("assistant", "1,200 元", (5, 6), "m", (source,))
        assert store.messages("one") == [user("违约金？"), reply, user("and?")]
        assert store.messages("two") == [user("hi"), StoredMessage("assistant", "")]
        assert [node.parent for node in store.tree("one").path] == [None, 1, 3]
        assert {hit.id for hit in store.search("违约")} == {"one"}
        assert store._read("pragma foreign_key_check") == []
        store.close()
    assert Store(path).add("one", StoredMessage("assistant", "more")) == 6


def test_a_file_of_version_2_gets_room_for_evidence(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path)
    connection.create_function("indexed", 1, str)  # the triggers name it
    former = re.sub(r"\n +evidence text .*", "", schema.SCHEMA.replace("ledger text,", "ledger text "))
    connection.executescript(f"{former} pragma user_version = 2;")
    connection.execute("insert into conversation values (1, 'one', 'hi', '2026-01-01', null, '{}', 1)")
    values = "(1, 'one', null, 'user', 'hi', null, null, null, '[]', 'done', '', null, null)"
    connection.execute(f"insert into message values {values}")
    connection.commit()
    connection.close()
    evidence = {"base": "b", "documents": ["d"], "cited": []}
    store = Store(path)
    store.add("one", StoredMessage("assistant", "Hello.", evidence=evidence))
    assert [(each.content, each.evidence) for each in store.messages("one")] == [("hi", None), ("Hello.", evidence)]


def test_a_migration_that_fails_leaves_the_file_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _version_1(path)
    with monkeypatch.context() as patched:
        broken = schema.MIGRATIONS[1] + "insert into nowhere values (1);"
        patched.setattr(schema, "MIGRATIONS", {**schema.MIGRATIONS, 1: broken})
        with pytest.raises(StoreError, match="nowhere"):
            Store(path)
    assert len(Store(path).messages("one")) == 3


def _foreign(path: Path, version: int) -> None:
    connection = sqlite3.connect(path)
    connection.execute("create table bookmarks (url text)")
    connection.execute(f"pragma user_version = {version}")
    connection.commit()
    connection.close()


def _newer(path: Path) -> None:
    Store(path).close()
    connection = sqlite3.connect(path)
    connection.execute("pragma user_version = 4")
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
    "newer": (_newer, "newer Quatrain, version 4"),
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


FEW_ROWS = """
insert into conversation values ('a', 'hi', '2026-11-01'), ('b', 'other', '2026-11-02');
insert into message values (1, 'a', 'user', 'hi', null, null, '[]'), (2, 'b', 'user', 'other', null, null, '[]'),
    (3, 'a', 'assistant', 'hello', '[5, 6]', 'tiny', '[]');
"""


def test_a_file_of_the_first_version_is_taken_over(path: Path) -> None:
    _version_1(path, FEW_ROWS)
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
