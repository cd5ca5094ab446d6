"""What is chosen for all conversations: kept whole, taken over by new ones, at work from the next turn on."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from chatapp import atomic
from chatapp.atomic import write_whole
from chatapp.choices import DAMAGED, NAME, Chosen, Policy, Role
from chatapp.conversation import REPLY
from chatapp.library import Library
from chatapp.preferences import Preferences, Retrieving
from chatapp.sentences import Sentence
from chatapp.session import Chat, Reply
from chatapp.store import Store
from tests.fakes import HashEmbeddings, ready_engine, scripted

STARTED = Policy(summarise=True, reading=20.0)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / NAME


@pytest.fixture
def chat(tmp_path: Path, file: Path) -> Chat:
    engine = ready_engine(scripted("Yes.", context=2048))
    return Chat(engine, Library(tmp_path / "kb", HashEmbeddings), Store(tmp_path / "c.db"), Chosen(file, STARTED))


def ask(chat: Chat, conversation: str) -> Reply:
    (*_, reply) = chat.send(conversation, "Why?", None, threading.Event())
    assert reply.state == "done"
    return reply


@pytest.mark.parametrize(
    "changes",
    [
        {"language": "zh", "theme": "dark"},
        {"summarise": False, "window": 1024, "reply": 100, "reading": 0.0},
        {"roles": (Role(name="译者", system="翻译。"),)},
        {"defaults": Preferences(temperature=0.3, top_k=7, repetition_penalty=1.2, retrieval=Retrieving(passages=2))},
    ],
)
def test_choices_survive_a_restart(file: Path, changes: dict) -> None:
    Chosen(file).change(**changes)
    again = Chosen(file).now
    assert {name: getattr(again, name) for name in changes} == changes
    assert [path.name for path in file.parent.iterdir()] == [NAME]


def test_what_is_not_chosen_is_the_command_lines(file: Path) -> None:
    chosen = Chosen(file, STARTED)
    assert chosen.policy == STARTED == Policy(True, None, REPLY, 20.0)
    chosen.change(reading=5.0, summarise=False)
    assert Chosen(file, STARTED).policy == Policy(False, None, REPLY, 5.0)
    assert Chosen(file, Policy(reading=60.0)).policy.reading == 5.0
    chosen.change(reading=None, summarise=None)
    assert Chosen(file, STARTED).policy == STARTED


@pytest.mark.parametrize(
    "changes", [{"window": 10}, {"reply": 0}, {"reading": -1}, {"theme": "pink"}, {"language": "fr"}]
)
def test_values_that_cannot_be_change_nothing(file: Path, changes: dict) -> None:
    chosen = Chosen(file)
    chosen.change(theme="dark")
    before = file.read_bytes()
    with pytest.raises(ValueError):
        chosen.change(**changes)
    assert (file.read_bytes(), chosen.now.theme) == (before, "dark")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b'{"theme": "pink"}', b'{"roles": [{"name": ""}]}'])
def test_a_damaged_file_is_put_aside_and_said(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    chosen = Chosen(file)
    assert chosen.now == Chosen().now
    assert NAME in str(chosen.problem) and DAMAGED in chosen.problem.said("zh")
    assert (file.parent / DAMAGED).read_bytes() == content
    chosen.change(theme="light")
    assert Chosen(file).problem is None


def test_a_file_that_is_no_file_is_said(file: Path) -> None:
    file.mkdir()
    assert "can't be read" in str(Chosen(file).problem)


def test_a_newer_versions_fields_are_passed_over(file: Path) -> None:
    file.write_text('{"theme": "dark", "sounds": true}', encoding="utf-8")
    assert Chosen(file).now.theme == "dark"


def test_a_kill_before_the_end_leaves_the_file_as_it_was(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_whole(file, "whole")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(atomic.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_whole(file, "half")
    assert file.read_text(encoding="utf-8") == "whole"


def test_a_disk_that_refuses_is_said_and_nothing_changes(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = Chosen(file)
    chosen.change(theme="dark")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(Sentence, match="No space left"):
        chosen.change(theme="light")
    assert chosen.now.theme == "dark"
    monkeypatch.undo()
    assert Chosen(file).now.theme == "dark"
    assert [path.name for path in file.parent.iterdir()] == [NAME]


def test_new_conversations_take_the_defaults_over(chat: Chat) -> None:
    before = chat.begin()
    wanted = Preferences(system="Be brief.", temperature=0.0, max_tokens=50)
    chat.choose_for_all(defaults=wanted)
    assert chat.store.conversation(chat.begin()).preferences == wanted == chat.preferences(None)
    assert chat.store.conversation(before).preferences == Preferences()
    assert chat.preferences(chat.prefer(None, system="Sing.")) == wanted.model_copy(update={"system": "Sing."})


def test_the_window_is_narrowed_at_the_next_turn(chat: Chat) -> None:
    conversation = chat.begin()
    assert ask(chat, conversation).plan.ledger.context == 2048
    chat.choose_for_all(window=512)
    assert ask(chat, conversation).plan.ledger.context == 512
    chat.choose_for_all(window=100_000)
    assert ask(chat, conversation).plan.ledger.context == 2048


def test_room_is_kept_for_the_reply_that_was_chosen(chat: Chat) -> None:
    conversation = chat.begin()
    chat.choose_for_all(reply=64)
    assert ask(chat, conversation).plan.reply == 64
    chat.prefer(conversation, max_tokens=32)
    assert ask(chat, conversation).plan.reply == 32


def test_the_engine_reads_for_as_long_as_was_chosen(chat: Chat) -> None:
    chat.choose_for_all(reading=3.0)
    assert chat.engine.reading == 3.0
    chat.choose_for_all(reading=None)
    assert chat.engine.reading == STARTED.reading


def test_sampling_that_was_chosen_is_used() -> None:
    chosen = Preferences(temperature=0.001, top_k=0, repetition_penalty=1.0, seed=7)
    assert chosen.options() == {"temperature": 0.0, "top_k": 0, "repetition_penalty": 1.0, "seed": 7}
