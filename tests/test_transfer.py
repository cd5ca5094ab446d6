"""Conversations as files: JSON gives everything back, Markdown the branch that is shown."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chatapp import transfer
from chatapp.preferences import Preferences
from chatapp.store import Conversation, Store, StoredMessage
from chatapp.transfer import TransferError, import_file, to_json, to_markdown
from chatapp.tree import Tree

SOURCE = {"name": "租约\n.pdf", "page": 3, "score": 0.5, "text": "违约金\n## User"}
#: Lines that the Markdown form uses itself, whole and nearly so.
LINES = [
    "",
    " ",
    "## User",
    "## Assistant",
    "### Sources",
    "\\## User",
    "## User \r",
    "## Users",
    " ## User",
    "# t",
    "```",
]
TEXTS = st.lists(st.sampled_from(LINES) | st.text(st.characters(exclude_categories=["Cs"]))).map("\n".join)
MESSAGES = st.lists(st.tuples(st.sampled_from(["user", "assistant"]), TEXTS, st.booleans()), min_size=1, max_size=6)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "c.db")


@pytest.fixture
def kept(store: Store) -> Conversation:
    """A conversation with two branches and everything that a reply can have."""
    id = store.create(Preferences(system="简短", temperature=0.7, knowledge_base="租约")).id
    reply = StoredMessage("assistant", "1,200", (1, 2), "m", (SOURCE,), "ChatML", "stopped", "", None)
    first = store.add(id, StoredMessage("user", "违约金？"), reply)
    store.branch(id, store.tree(id)[first].parent, StoredMessage("assistant", "", state="failed", failure="boom"))
    store.branch(id, first, StoredMessage("user", "and?"), StoredMessage("assistant", "no", reason="length"))
    store.rename(id, "租约")
    return store.conversation(id)


def shape(tree: Tree) -> tuple[Any, ...]:
    """A tree without its numbers."""
    places = {id: at for at, id in enumerate(tree.nodes)} | {None: None}
    nodes = [(places[node.parent], node.message) for node in tree.nodes.values()]
    return nodes, places[tree.leaf]


def test_json_gives_everything_back_under_another_id(store: Store, kept: Conversation) -> None:
    made = import_file(store, to_json(kept, store.tree(kept.id)).encode())
    assert made.id != kept.id and (made.title, made.preferences) == (kept.title, kept.preferences)
    assert shape(store.tree(made.id)) == shape(store.tree(kept.id))
    assert len(store.search("违约")) == 2


def test_several_knowledge_bases_come_back(store: Store) -> None:
    id = store.create(Preferences(knowledge_base=["租约", "garage", "租约"])).id
    reply = StoredMessage("assistant", "1,200", sources=({**SOURCE, "base": "garage"},))
    store.add(id, StoredMessage("user", "?"), reply)
    made = import_file(store, to_json(store.conversation(id), store.tree(id)).encode())
    assert made.preferences.knowledge_base == ["租约", "garage"]
    assert shape(store.tree(made.id)) == shape(store.tree(id))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(title=TEXTS, messages=MESSAGES)
def test_any_text_comes_back_from_either(store: Store, title: str, messages: list[tuple[str, str, bool]]) -> None:
    id = store.create().id
    said = [
        StoredMessage(role, text, sources=(SOURCE,) * (role == "assistant" and cited)) for role, text, cited in messages
    ]
    store.add(id, *said)
    store.rename(id, title)
    conversation, tree = store.conversation(id), store.tree(id)
    whole = import_file(store, to_json(conversation, tree).encode())
    assert (whole.title, shape(store.tree(whole.id))) == (conversation.title, shape(tree))
    readable = store.messages(import_file(store, to_markdown(conversation, tree).encode()).id)
    assert [(message.role, message.content) for message in readable] == [(role, text) for role, text, _ in messages]


def test_markdown_shows_the_branch_with_its_sources(store: Store, kept: Conversation) -> None:
    assert to_markdown(kept, store.tree(kept.id)) == (
        "# 租约\n\n## User\n\n违约金？\n\n## Assistant\n\n1,200\n\n### Sources\n\n"
        "1. 租约 .pdf, page 3\n   > 违约金\n   > ## User\n\n## User\n\nand?\n\n## Assistant\n\nno\n"
    )


def test_markdown_that_an_editor_saved_with_other_line_ends_and_a_mark(store: Store, kept: Conversation) -> None:
    text = to_markdown(kept, store.tree(kept.id)).replace("\n", "\r\n")
    made = import_file(store, b"\xef\xbb\xbf" + text.encode())
    assert made.title == "租约"
    assert [message.content.strip() for message in store.messages(made.id)] == ["违约金？", "1,200", "and?", "no"]


def test_what_another_program_was_writing_is_no_longer_written(store: Store, kept: Conversation) -> None:
    file = json.loads(to_json(kept, store.tree(kept.id)))
    file["messages"][-1]["state"] = "writing"
    assert store.messages(import_file(store, json.dumps(file).encode()).id)[-1].state == "interrupted"


def changed(**changes: Any) -> bytes:
    message = {"parent": None, "role": "user", "content": "hi"}
    whole = {"format": transfer.FORMAT, "version": 1, "title": "t", "preferences": {}, "leaf": 0, "messages": [message]}
    return json.dumps({**whole, **changes}).encode()


def message(**changes: Any) -> bytes:
    return changed(messages=[{"parent": None, "role": "user", "content": "hi", **changes}])


BAD = {
    "empty": (b"", "no heading"),
    "something else": (b"# A README\n\nHello.", "no heading"),
    "no UTF-8": (b"\xff\xfe\x00", "UTF-8"),
    "cut off": (changed()[:40], "JSON"),
    "another JSON": (b'{"mapping": {}}', "no conversation that Quatrain exported; choose"),
    "an empty object": (b"{}", "no conversation that Quatrain exported; choose"),
    "a list of objects": (b'[{"mapping": {}}]', "no conversation that Quatrain exported; choose"),
    "a newer version": (changed(version=2), "version"),
    "another format": (changed(format="x"), "no conversation that Quatrain exported; choose"),
    "an unknown field": (changed(more=1), "more"),
    "no such leaf": (changed(leaf=1), "not in it"),
    "a parent that comes later": (message(parent=0), "follows message 0"),
    "a negative parent": (message(parent=-1), "messages.0.parent"),
    "an unknown role": (message(role="system"), "messages.0.role"),
    "ids that are none": (message(ids=[-1]), "messages.0.ids"),
    "huge ids": (message(ids=[2**40]), "messages.0.ids"),
    "sources that are none": (message(sources=[{"name": 1}]), "messages.0.sources"),
    "an unknown state": (message(state="x"), "messages.0.state"),
    "bad settings": (changed(preferences={"temperature": 9}), "preferences.temperature"),
    "nested without end": (b'{"a":' + b"[" * 100_000, "JSON"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_one_sentence_and_leaves_nothing_behind(store: Store, kind: str) -> None:
    data, words = BAD[kind]
    with pytest.raises(TransferError, match="^The file can't be imported: ") as caught:
        import_file(store, data)
    said = str(caught.value)
    assert words in said and "\n" not in said and said.endswith(".") and len(said) < 300
    assert store._read("select count(*) from conversation") == [(0,)]


def test_a_file_that_is_too_large_is_not_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "LARGEST", 1_000_000)
    with pytest.raises(TransferError, match="larger than 1 MB"):
        import_file(store, changed(title="x" * 1_000_000))
