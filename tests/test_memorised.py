"""Tiny trained models of every architecture answer word for word through the whole app.

Template, tokenizer, forward, cache and decoding have to be right together: each model was trained on whole prompts
without a cache (tests/memorise.py), and is loaded here from its files as any checkpoint is.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from chatapp.engine import Engine, Source
from chatapp.library import Library
from chatapp.server import build
from chatapp.session import Chat
from chatapp.store import Store, StoredMessage
from models import registry
from tests.fakes import HashEmbeddings
from tests.memorise import DIALOGUES, RECIPES, checkpoint, one_thread, written

TIERS = ("fp32", "fp16", "int8", "int4")
CASES = [(name, tier) for name in RECIPES for tier in TIERS]


@pytest.fixture(scope="module", autouse=True)
def calm() -> Iterator[None]:
    """Threads that wait for each other at every tiny product are slow on a busy machine."""
    with one_thread():
        yield


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def engine(request: pytest.FixtureRequest, data_folder: Path) -> Engine:
    """An engine with one of the models, which is trained first if no earlier run has done so."""
    name, tier = request.param
    engine = Engine()
    engine.load(Source(name, checkpoint(name, data_folder / "memorised"), tier))
    return engine


@pytest.fixture
def chat(engine: Engine, tmp_path: Path) -> Chat:
    return Chat(engine, Library(tmp_path / "kb", HashEmbeddings), Store(tmp_path / "conversations.db"))


@pytest.fixture
def client(chat: Chat) -> Iterator[TestClient]:
    """A client of the app as it is served, all but the page."""
    with TestClient(build(chat, lambda app: app), base_url="http://127.0.0.1") as client:
        yield client


Said = list[list[str]]
"""The replies of each dialogue."""
EXPECTED: Said = [[reply for _, reply in dialogue] for dialogue in DIALOGUES]


def replies(ask: Callable[[list[dict[str, str]]], str]) -> Said:
    """What a client hears that sends the whole conversation with each question, its replies as it has heard them."""
    said = []
    for dialogue in DIALOGUES:
        messages: list[dict[str, str]] = []
        for question, _ in dialogue:
            messages.append({"role": "user", "content": question})
            messages.append({"role": "assistant", "content": ask(messages)})
        said.append([message["content"] for message in messages if message["role"] == "assistant"])
    return said


def post(client: TestClient, messages: list[dict[str, str]], **more: Any) -> httpx.Response:
    response = client.post("/v1/chat/completions", json={"messages": messages, "temperature": 0, **more})
    assert response.status_code == 200, response.text
    return response


def whole(client: TestClient, messages: list[dict[str, str]]) -> str:
    (choice,) = post(client, messages).json()["choices"]
    assert choice["finish_reason"] == "stop"
    return choice["message"]["content"]


def streamed(client: TestClient, messages: list[dict[str, str]]) -> str:
    """The text of a streamed reply, which must have come in several pieces and ended by itself."""
    *lines, done, _ = post(client, messages, stream=True).text.split("\n\n")
    assert done == "data: [DONE]"
    choices = [json.loads(line.removeprefix("data: "))["choices"][0] for line in lines]
    assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == ["stop"]
    pieces = [choice["delta"]["content"] for choice in choices if choice["delta"].get("content")]
    assert len(pieces) > 1
    return "".join(pieces)


def test_every_architecture_has_memorised() -> None:
    """A new family can't be forgotten."""
    assert {recipe.architecture for recipe in RECIPES.values()} == {row.name for row in registry.ARCHITECTURES}


def test_the_files_say_how_to_talk_to_it(engine: Engine) -> None:
    loaded, recipe = engine.loaded, RECIPES[engine.status.name]
    assert loaded.architecture == recipe.architecture
    assert (loaded.chat_format.name, loaded.chat_format.notice) == (recipe.chat_format, None)


def test_word_for_word(client: TestClient) -> None:
    assert replies(lambda messages: whole(client, messages)) == EXPECTED


def test_word_for_word_streamed(client: TestClient) -> None:
    assert replies(lambda messages: streamed(client, messages)) == EXPECTED


def test_reading_in_small_chunks_changes_nothing(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["models.generate"], "CHUNK", 7)
    assert replies(lambda messages: whole(client, messages)) == EXPECTED


def test_a_kept_conversation(chat: Chat) -> None:
    """On the page: with the sampling that the model's authors recommend, whose top_p leaves one token to draw from.

    The second question goes behind the ids of the first reply, not its text.
    """
    assert [_talk(chat, [question for question, _ in dialogue]) for dialogue in DIALOGUES] == EXPECTED


@pytest.mark.parametrize("writer", ["itself", "another model"])
def test_a_reply_that_was_stopped_goes_on_word_for_word(chat: Chat, writer: str) -> None:
    """Wherever it was cut, between the bytes of a character too; another model's words go in as text."""
    (question, expected), *_ = DIALOGUES[0]
    conversation = chat.store.create().id
    _answer(chat, conversation, question)
    ids = chat.store.messages(conversation)[-1].ids
    number = chat.store.tree(conversation).leaf
    decode = chat.engine.loaded.tokenizer.decode
    texts = {cut: decode(ids[:cut]).strip() for cut in range(1, len(ids))}  # as shown
    if writer == "another model":  # it cuts elsewhere: where this one would have begun with other ids, it goes astray
        texts = {cut: text for cut, text in texts.items() if chat.engine.loaded.reply_ids(text) == list(ids[:cut])}
    cuts = [cut for cut, text in texts.items() if text]
    # ChatGLM2 learnt its replies as texts of their own, while its format puts them into one text with the rest.
    assert len(cuts) > 3 or (writer == "another model" and RECIPES[chat.engine.status.name].place == "start")
    for cut in cuts:
        begun = StoredMessage("assistant", texts[cut], ids[:cut], chat.engine.status.name, state="stopped")
        if writer == "another model":
            begun = replace(begun, ids=(1, 2, 3), model=writer)
        chat.store.update(number, begun)
        *_, reply = chat.continue_(conversation, threading.Event())
        assert (reply.failure, reply.text, tuple(reply.ids)) == ("", expected, ids), cut


def _talk(chat: Chat, questions: list[str]) -> list[str]:
    conversation = chat.store.create().id
    said = [_answer(chat, conversation, question) for question in questions]
    kept = [message.content for message in chat.store.messages(conversation) if message.role == "assistant"]
    assert kept == said
    return said


def _answer(chat: Chat, conversation: str, question: str) -> str:
    """The final text, which must have grown without ever taking anything back, out of the very ids that were learnt."""
    texts = []
    for reply in chat.send(conversation, question, None, threading.Event()):
        texts.append(reply.text)
    assert (reply.state, reply.end.reason) == ("done", "stop")
    assert all(reply.text.startswith(text) for text in texts)
    assert reply.ids == written(RECIPES[chat.engine.status.name], chat.engine.loaded.tokenizer, reply.text)
    return reply.text
