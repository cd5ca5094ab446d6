"""The tree of turns against a plain model of it, in memory and on disk, through any sequence of operations."""

import itertools
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from chatapp.preferences import Preferences
from chatapp.store import Store, StoredMessage
from chatapp.transfer import import_file, to_json
from chatapp.tree import Node, NotThere, Tree, TreeError

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def user(text: str = "q") -> StoredMessage:
    return StoredMessage("user", text)


def reply(text: str = "a", **more: Any) -> StoredMessage:
    return StoredMessage("assistant", text, **more)


def chain(*messages: StoredMessage) -> Tree:
    nodes = [Node(at, at - 1 if at else None, message) for at, message in enumerate(messages)]
    return Tree().added(*nodes)


class Turns(RuleBasedStateMachine):
    """`parents` and `texts` are all that was ever said, `leaf` what is shown: dictionaries, and no cleverness."""

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.store = Store(self.folder / "c.db")
        self.id = self.store.create(Preferences(system="be brief")).id
        self.tree = Tree()
        self.parents: dict[int, int | None] = {}
        self.texts: dict[int, str] = {}
        self.leaf: int | None = None

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            shutil.rmtree(self.folder)

    def note(self, last: int, parent: int | None, *messages: StoredMessage) -> None:
        """The messages, of which the store says that the last got this number."""
        for number, message in enumerate(messages, start=last - len(messages) + 1):
            assert number not in self.parents  # a number is never given twice
            self.tree = self.tree.added(Node(number, parent, message))
            self.parents[number], self.texts[number] = parent, message.content
            parent = number
        self.leaf = last

    def some(self, data: st.DataObject, role: str | None = None) -> int | None:
        ids = [id for id, node in self.tree.nodes.items() if role in (None, node.message.role)]
        return data.draw(st.sampled_from(ids)) if ids else None

    @rule(question=TEXTS, answer=TEXTS)
    def send(self, question: str, answer: str) -> None:
        messages = user(question), reply(answer)
        self.note(self.store.add(self.id, *messages), self.leaf, *messages)

    @precondition(lambda self: self.parents)
    @rule(data=st.data(), answer=TEXTS)
    def regenerate(self, data: st.DataObject, answer: str) -> None:
        question = self.tree.question(self.some(data)).id
        self.note(self.store.branch(self.id, question, reply(answer)), question, reply(answer))

    @precondition(lambda self: self.parents)
    @rule(data=st.data(), question=TEXTS)
    def edit(self, data: st.DataObject, question: str) -> None:
        parent = self.tree.editable(self.some(data, "user")).parent
        messages = user(question), reply()
        self.note(self.store.branch(self.id, parent, *messages), parent, *messages)

    @precondition(lambda self: self.leaf is not None)
    @rule(more=TEXTS)
    def grow(self, more: str) -> None:
        message = self.tree[self.leaf].message
        grown = StoredMessage(message.role, message.content + more, (1, 2), "m", chat_format="f", reason="length")
        self.store.update(self.leaf, grown)
        self.tree = self.tree.updated(self.leaf, grown)
        self.texts[self.leaf] += more

    @rule()
    def undo_and_redo(self) -> None:
        if self.leaf is None:
            with pytest.raises(TreeError):
                self.tree.undone()
            return
        before = self.tree.path
        back = self.tree.undone()
        assert back.path == before[: len(back.path)] and back.nodes == self.tree.nodes
        assert before[len(back.path)].message.role == "user"
        newest = back.children(back.leaf)[-1]
        assert back.chosen(newest.id).leaf == self.tree.newest_below(newest.id)
        self.show(back)

    @precondition(lambda self: self.parents)
    @rule(data=st.data())
    def choose(self, data: st.DataObject) -> None:
        id = self.some(data)
        chosen = self.tree.chosen(id)
        assert id in [node.id for node in chosen.path] and not chosen.children(chosen.leaf)
        self.show(chosen)

    def show(self, tree: Tree) -> None:
        self.store.show(self.id, tree.leaf)
        self.tree, self.leaf = tree, tree.leaf

    @precondition(lambda self: len(self.parents) > 4)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        id = self.some(data)
        gone = {other for other in self.parents if id in self.ancestors(other)}
        rest = self.store.remove(self.id, id)
        assert self.tree.nodes.keys() - rest.nodes.keys() == gone
        if self.leaf not in gone:
            assert rest.leaf == self.leaf
        self.parents = {other: parent for other, parent in self.parents.items() if other not in gone}
        self.texts = {other: text for other, text in self.texts.items() if other not in gone}
        self.tree, self.leaf = self.tree.without(id), rest.leaf

    @rule()
    def export_and_import(self) -> None:
        before = self.store.conversation(self.id)
        data = to_json(before, self.tree)
        after = import_file(self.store, data.encode())
        assert (after.title, after.preferences) == (before.title, before.preferences) and after.id != before.id
        assert to_json(after, self.store.tree(after.id)) == data

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = Store(self.folder / "c.db")

    def ancestors(self, id: int | None) -> list[int]:
        found = []
        while id is not None:
            found.append(id)
            id = self.parents[id]
        return found

    @invariant()
    def nothing_is_lost_and_the_disk_says_the_same(self) -> None:
        tree = self.store.tree(self.id)
        assert tree == self.tree
        assert {id: (node.parent, node.message.content) for id, node in tree.nodes.items()} == {
            id: (parent, self.texts[id]) for id, parent in self.parents.items()
        }

    @invariant()
    def the_path_leads_from_the_beginning_to_the_leaf(self) -> None:
        assert [node.id for node in self.tree.path] == self.ancestors(self.leaf)[::-1]
        roles = [node.message.role for node in self.tree.path]
        assert all(a != b or a == "user" for a, b in itertools.pairwise(roles))

    @invariant()
    def versions_keep_their_order(self) -> None:
        for id, parent in self.parents.items():
            versions = [node.id for node in self.tree.versions(id)]
            assert versions == sorted(other for other in self.parents if self.parents[other] == parent)


TestTurns = Turns.TestCase
TestTurns.settings = settings(
    max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)


# What an operation refuses


def test_an_empty_tree_has_nothing_to_undo_answer_or_continue() -> None:
    for refuse in (Tree().undone, Tree().continuable, lambda: Tree().question(None)):
        with pytest.raises(TreeError):
            refuse()
    with pytest.raises(NotThere, match="no message 7"):
        Tree().chosen(7)


def test_only_the_users_own_messages_are_edited() -> None:
    with pytest.raises(TreeError, match="your own"):
        chain(user(), reply()).editable(1)


@pytest.mark.parametrize(
    "more", [*({"state": state} for state in ("stopped", "failed", "interrupted")), {"reason": "loop"}]
)
def test_a_reply_that_was_cut_off_can_go_on(more: dict[str, str]) -> None:
    assert chain(user(), reply(**more)).continuable().id == 1


@pytest.mark.parametrize(
    "messages",
    [
        (user(), reply(reason="stop")),
        (user(), reply("", state="stopped")),
        (user(), reply(state="writing", reason="length")),
        (user(), reply(state="nothing_found")),
        (user(), reply(state="stopped"), user()),
        (reply(state="stopped"),),
    ],
    ids=["complete", "empty", "being written", "nothing found", "not the last", "without a question"],
)
def test_any_other_can_not(messages: tuple[StoredMessage, ...]) -> None:
    with pytest.raises(TreeError, match="no unfinished reply"):
        chain(*messages).continuable()


def test_a_long_conversation_is_no_deep_recursion() -> None:
    tree = chain(*(user() for _ in range(5000)))
    assert len(tree.path) == len(list(tree.below(0))) == 5000
    assert tree.without(0) == Tree()
