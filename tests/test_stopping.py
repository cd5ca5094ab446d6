"""Stop at every point: at once, with everything freed, and nobody else noticing."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from chatapp.conversation import Plan, plan
from chatapp.effort import Effort
from chatapp.engine import Cancelled, Engine, Waiting
from chatapp.library import Library
from chatapp.session import Chat
from chatapp.settings import parse
from chatapp.startup import Startup
from chatapp.store import Store
from chatapp.ui.chat import Turns
from chatapp.ui.section import Desk
from models import CHUNK, LoadedModel, Read, Token
from tests.fakes import Gate, HashEmbeddings, ready_engine, scripted, watch_caches, written
from tests.waiting import eventually, in_thread

QUESTION = "x" * (3 * CHUNK)  # several chunks
REPLY = "It is done."


def start(engine: Engine, cancel: threading.Event | None = None, text: str = QUESTION) -> Iterator[Any]:
    def make_plan(loaded: LoadedModel, effort: Effort) -> Plan:
        return plan(loaded, [], lambda passages: [text], effort=effort)

    return engine.stream(make_plan, {}, cancel or threading.Event())


@pytest.fixture
def loaded() -> LoadedModel:
    return scripted(REPLY)


EVENTS = len(list(start(ready_engine(scripted(REPLY)))))


def check_free(engine: Engine, caches: list[Any]) -> None:
    """No request is left, the next reply is whole, and no cache is left but what is kept for the next prompt."""
    assert not engine._queue
    assert written(start(engine)) == REPLY
    engine._caches.clear()
    gc.collect()  # of a cache that counts, and so holds itself
    assert [cache for cache in caches if cache() is not None] == []


@pytest.mark.parametrize("count", range(EVENTS))
def test_stop_after_each_event_ends_with_it(loaded: LoadedModel, count: int) -> None:
    engine, caches, cancel, seen = ready_engine(loaded), watch_caches(loaded), threading.Event(), []
    if count == 0:
        cancel.set()
    with pytest.raises(Cancelled):
        for event in start(engine, cancel):
            seen.append(type(event))
            if len(seen) == count:
                cancel.set()
    assert len(seen) == count
    check_free(engine, caches)


def test_the_events_above_are_those_of_reading_and_of_writing() -> None:
    events = list(start(ready_engine(scripted(REPLY))))
    assert sum(isinstance(event, Read) for event in events) == 1 + 4
    assert sum(isinstance(event, Token) for event in events) == len(REPLY)


def test_stop_after_the_end_changes_nothing(loaded: LoadedModel) -> None:
    engine, caches, cancel = ready_engine(loaded), watch_caches(loaded), threading.Event()
    events = list(start(engine, cancel))
    cancel.set()
    assert written(events) == REPLY
    check_free(engine, caches)


@pytest.mark.parametrize("count", range(1, EVENTS + 1))
def test_a_reader_that_vanishes_after_an_event_leaves_nothing(loaded: LoadedModel, count: int) -> None:
    engine, caches = ready_engine(loaded), watch_caches(loaded)
    events = start(engine)
    for _ in range(count):
        next(events)
    events.close()
    check_free(engine, caches)


@pytest.mark.parametrize("layer", range(2 * 4 + 2))  # two layers for each chunk, and for the first token
def test_stop_within_a_layer_ends_there(loaded: LoadedModel, layer: int) -> None:
    engine, cancel, layers = ready_engine(loaded), threading.Event(), []
    caches = watch_caches(loaded)
    whole = loaded.model.new_cache

    def stopping(*arguments: Any) -> Any:
        cache = whole(*arguments)
        append = cache.append

        def counted(number: int, *rows: Any) -> Any:
            if len(layers) == layer:
                cancel.set()
            found = append(number, *rows)
            layers.append(number)
            return found

        cache.append = counted
        return cache

    loaded.model.new_cache = stopping
    with pytest.raises(Cancelled):
        list(start(engine, cancel))
    assert len(layers) == layer
    loaded.model.new_cache = whole
    check_free(engine, caches)


def test_stop_while_queued_frees_the_place_and_the_running_reply_goes_on(loaded: LoadedModel) -> None:
    engine, caches, cancel = ready_engine(loaded), watch_caches(loaded), threading.Event()
    running, waiting = start(engine), start(engine, cancel)
    next(running)
    assert next(waiting) == Waiting(1)
    cancel.set()
    with pytest.raises(Cancelled):
        next(waiting)
    assert len(engine._queue) == 1
    assert written(running) == REPLY
    check_free(engine, caches)


# Several users


def chat_over(folder: Path, engine: Engine) -> Chat:
    return Chat(engine, Library(folder / "kb", HashEmbeddings), Store(folder / "conversations.db"))


def test_users_who_talk_at_the_same_time_never_see_each_others_text(tmp_path: Path) -> None:
    """Each reply repeats all that its prompt held, so that anything foreign would show."""
    loaded = scripted(lambda prompt: "".join(letter for letter in prompt if letter in "ABC"))
    chat = chat_over(tmp_path, ready_engine(loaded))
    conversations = {user: chat.store.create().id for user in "ABC"}

    def talk(user: str) -> list[str]:
        seen = []
        for turn in range(4):
            for reply in chat.send(conversations[user], user * (turn + 1), None, threading.Event()):
                seen.append(reply.text)
        return seen

    started = {user: in_thread(lambda user=user: talk(user)) for user in "ABC"}
    for thread, _ in started.values():
        thread.join(60)
    for user, (_, (seen,)) in started.items():
        assert set("".join(seen)) == {user}
        stored = chat.store.messages(conversations[user])
        assert len(stored) == 8 and {letter for message in stored for letter in message.content} == {user}
    assert all(len({letter for letter in prompt if letter in "ABC"}) == 1 for prompt in loaded.model.prompts)


def turns_over(folder: Path, engine: Engine) -> Turns:
    settings = parse(["--data", str(folder), "--lang", "en"], {})
    return Turns(Desk(settings, chat_over(folder, engine), Startup(settings, engine, lambda line: None)))


@pytest.mark.parametrize("way", ["stop", "leave"])
def test_stop_or_a_closed_tab_ends_the_replies_of_its_own_browser_only(tmp_path: Path, way: str) -> None:
    gate = Gate()
    turns = turns_over(tmp_path, engine := ready_engine(scripted(REPLY, before=gate)))
    here, there = gr.Request(headers={}, session_hash="here"), gr.Request(headers={}, session_hash="there")
    first, shown_here = in_thread(lambda: list(turns.send("hi", None, [], None, [], here)))
    gate.reached.wait(20)
    second, shown_there = in_thread(lambda: list(turns.send("hello", None, [], None, [], there)))
    eventually(lambda: len(engine._queue) == 2)
    getattr(turns, way)(here)
    gate.open()
    first.join(20)
    second.join(20)
    (*_, last) = shown_there[0]
    assert last[0][-1]["content"].startswith(REPLY)
    assert REPLY not in str(shown_here)
    assert not engine._queue


@pytest.mark.parametrize("way", ["stop", "leave"])
def test_a_closed_tab_gives_up_its_place_in_the_queue(tmp_path: Path, way: str) -> None:
    gate = Gate()
    turns = turns_over(tmp_path, engine := ready_engine(scripted(REPLY, before=gate)))
    running, _ = in_thread(lambda: written(start(engine)))
    gate.reached.wait(20)
    request = gr.Request(headers={}, session_hash="here")
    waiting, _ = in_thread(lambda: list(turns.send("hi", None, [], None, [], request)))
    eventually(lambda: len(engine._queue) == 2)
    getattr(turns, way)(request)
    eventually(lambda: len(engine._queue) == 1)
    gate.open()
    running.join(20)
    waiting.join(20)


def test_a_new_conversation_is_listed_before_its_first_reply_ends(tmp_path: Path) -> None:
    turns = turns_over(tmp_path, ready_engine(scripted(REPLY)))
    request = gr.Request(headers={}, session_hash="here")

    def listings(conversation: str | None) -> list[tuple[int, int, Any, str]]:
        """How far the reply is whenever the list comes, the list, and the heading."""
        turn = list(turns.send("Who is it?", conversation, [], None, [], request))
        return [(at, len(turn), shown[4], shown[-1]) for at, shown in enumerate(turn) if "choices" in shown[4]]

    (at, count, early, heading), (_, _, late, _) = listings(None)
    (row,) = turns._chat.store.conversations()
    assert at < count - 1 and early == late and early["choices"] == [("Who is it?", row.id)]
    assert early["value"] == row.id and "Who is it?" in heading
    assert len(listings(row.id)) == 1
