"""A summary in the place of the oldest turns: asked for, marked, kept, and never in the way of the reply."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from chatapp import summary
from chatapp.choices import Chosen, Policy
from chatapp.library import Library
from chatapp.session import Chat, Reply
from chatapp.store import Store, StoredMessage
from chatapp.summary import Summary
from chatapp.tree import Tree
from chatapp.ui import render
from models import LoadedModel
from tests.fakes import HashEmbeddings, ready_engine, scripted

SUMMARISING = Chosen(start=Policy(summarise=True))
TOLD = "They spoke of pears."


def replying(prompt: str) -> str:
    return TOLD if "Summarise this" in prompt else "Yes."


@pytest.fixture
def loaded() -> LoadedModel:
    return scripted(replying, context=800)


@pytest.fixture
def chat(tmp_path: Path, loaded: LoadedModel) -> Chat:
    library, store = Library(tmp_path / "kb", HashEmbeddings), Store(tmp_path / "c.db")
    return Chat(ready_engine(loaded), library, store, chosen=SUMMARISING)


def fill(chat: Chat, exchanges: int, size: int = 60) -> str:
    """A conversation that has been had."""
    conversation = chat.store.create().id
    for number in range(exchanges):
        chat.store.add(
            conversation, StoredMessage("user", f"({number})" + "u" * size), StoredMessage("assistant", "a" * size)
        )
    return conversation


def ask(chat: Chat, conversation: str, text: str = "and?", cancel: threading.Event | None = None) -> list[Reply]:
    """The states of a reply."""
    return [replace(reply) for reply in chat.send(conversation, text, None, cancel or threading.Event())]


def asked(loaded: LoadedModel) -> list[str]:
    """The requests for a summary so far."""
    return [prompt for prompt in loaded.model.prompts if "Summarise this" in prompt]


def check(reply: Reply, summarised: bool) -> None:
    """The reply is there, its ledger exact, and the summary in both or in neither."""
    assert (reply.state, reply.text, reply.failure) == ("done", "Yes.", "")
    ledger = reply.plan.ledger
    assert ledger.prompt == len(reply.plan.prompt.ids) and ledger.used <= ledger.context
    assert (ledger.tokens("summary") > 0) == summarised == (ledger.summary is not None)


def test_nothing_is_summed_up_unless_asked_for(chat: Chat, loaded: LoadedModel) -> None:
    (*_, reply) = ask(replace(chat, chosen=Chosen()), fill(chat, 20))
    check(reply, summarised=False)
    assert asked(loaded) == []


def test_nothing_is_summed_up_while_all_fits(chat: Chat, loaded: LoadedModel) -> None:
    (*_, reply) = ask(chat, fill(chat, 2))
    check(reply, summarised=False)
    assert asked(loaded) == []


def test_what_no_longer_fits_is_summed_up_before_the_reply(chat: Chat, loaded: LoadedModel) -> None:
    replies = ask(chat, fill(chat, 6))
    check(replies[-1], summarised=True)
    assert "summarising" in [reply.state for reply in replies]
    (request,) = asked(loaded)
    assert "(0)" in request and "(5)" not in request
    prompt = loaded.model.prompts[-1]
    assert prompt.startswith(f"system\nSummary of the earlier conversation:\n{TOLD}\nuser\n")
    ledger = replies[-1].plan.ledger
    assert ledger.summary.text == TOLD and ledger.missing("exchange") <= ledger.summary.exchanges < 6
    expected = len(f"system\nSummary of the earlier conversation:\n{TOLD}\n") + 2
    assert ledger.tokens("summary") == expected


def test_a_summary_is_kept_and_used_as_long_as_it_covers_what_is_missing(chat: Chat, loaded: LoadedModel) -> None:
    conversation = fill(chat, 6)
    for turn in range(12):
        (*_, reply) = ask(chat, conversation, f"<{turn}>" + "?" * 40)
        check(reply, summarised=True)
        assert reply.plan.ledger.missing("exchange") <= reply.plan.ledger.summary.exchanges
    requests = asked(loaded)
    assert 2 <= len(requests) <= 6  # not one for each turn
    assert all(TOLD in request for request in requests[1:])  # the former goes into the next
    assert chat.store.messages(conversation)[-1].ledger["summary"]["text"] == TOLD


@pytest.mark.parametrize("language, words", [("en", "Summary of older turns: They spoke"), ("zh", "较早对话的摘要")])
def test_a_summary_is_shown_as_one_then_and_later(chat: Chat, language: str, words: str) -> None:
    conversation = fill(chat, 6)
    (*_, reply) = ask(chat, conversation)
    assert words in render.progress_line(reply, language)
    assert words in render.kept_budget(chat.store.tree(conversation), language)
    assert render.kept_budget(Tree(), language) == ""


def failing(error: Exception) -> Callable[[str], str]:
    def reply(prompt: str) -> str:
        if "Summarise this" in prompt:
            raise error
        return "Yes."

    return reply


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("boom"), KeyError("x"), ValueError("y")],
    ids=lambda error: type(error).__name__,
)
def test_a_summary_that_fails_does_not_cost_the_reply(tmp_path: Path, error: Exception) -> None:
    engine = ready_engine(scripted(failing(error), context=800))
    chat = Chat(engine, Library(tmp_path / "kb", HashEmbeddings), Store(tmp_path / "c.db"), chosen=SUMMARISING)
    (*_, reply) = ask(chat, fill(chat, 6))
    check(reply, summarised=False)


def test_values_that_are_no_numbers_do_not_cost_the_reply(chat: Chat, loaded: LoadedModel, monkeypatch) -> None:
    whole, calls = type(loaded.model).forward, []

    def broken(self, *arguments, **more) -> torch.Tensor:
        calls.append(1)
        return whole(self, *arguments, **more) * (torch.nan if len(calls) == 4 else 1)

    monkeypatch.setattr(type(loaded.model), "forward", broken)
    (*_, reply) = ask(chat, fill(chat, 6))
    check(reply, summarised=False)


@pytest.mark.parametrize("told", ["", "   "])
def test_an_empty_summary_is_none(tmp_path: Path, told: str) -> None:
    engine = ready_engine(scripted(lambda prompt: told if "Summarise this" in prompt else "Yes.", context=800))
    chat = Chat(engine, Library(tmp_path / "kb", HashEmbeddings), Store(tmp_path / "c.db"), chosen=SUMMARISING)
    (*_, reply) = ask(chat, fill(chat, 6))
    check(reply, summarised=False)


@pytest.mark.parametrize("size", [300, 900])
def test_exchanges_too_long_to_be_summed_up_do_not_cost_the_reply(chat: Chat, size: int) -> None:
    (*_, reply) = ask(chat, fill(chat, 4, size))
    assert (reply.state, reply.text) == ("done", "Yes.")


def test_a_question_that_leaves_no_room_for_a_summary_is_answered_without(chat: Chat, loaded: LoadedModel) -> None:
    conversation = fill(chat, 6)
    ask(chat, conversation)
    (*_, reply) = ask(chat, conversation, "?" * 570)
    check(reply, summarised=False)


def test_stop_works_while_a_summary_is_written(chat: Chat) -> None:
    cancel = threading.Event()
    states = []
    for reply in chat.send(fill(chat, 6), "and?", None, cancel):
        states.append(reply.state)
        if reply.state == "summarising":
            cancel.set()
    assert states[-2:] == ["summarising", "stopped"] and not chat.engine._queue


@pytest.mark.parametrize("text, words", [("梨子", "前面对话的摘要"), ("pears", "Summary of the earlier")])
def test_a_summary_speaks_the_language_of_the_conversation(text: str, words: str) -> None:
    assert Summary(text, 3).message().startswith(words)
    request = summary.request([("user", text), ("assistant", "ok")], Summary(text, 1))
    assert text in request and words in request and ("概括" in request) == (text == "梨子")
