"""The retrieval lab: what it shows, and that a conversation searches as it was told to."""

from __future__ import annotations

import threading
from pathlib import Path

import gradio as gr
import pytest

from chatapp.answering import Found, Question, answer
from chatapp.library import Library
from chatapp.preferences import Retrieving
from chatapp.session import Chat
from chatapp.settings import parse
from chatapp.startup import Startup
from chatapp.store import Store
from chatapp.ui import lab
from chatapp.ui.lab import Lab
from chatapp.ui.section import Desk
from knowledge import KnowledgeBase
from tests.fakes import HashEmbeddings, ready_engine, scripted

NOTES = {
    "rent.txt": "The rent is 1,200 francs a month, due on the first day.",
    "garden.txt": "Apple trees are pruned in late winter, before the buds open.",
    "stove.txt": "The stove is lit with dry birch bark and thin sticks.",
}


@pytest.fixture
def chat(tmp_path: Path) -> Chat:
    chat = Chat(
        ready_engine(scripted()), Library(tmp_path / "kb", HashEmbeddings), Store(tmp_path / "conversations.db")
    )
    base = chat.library.open(chat.library.create("notes"))
    for name, text in NOTES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    base.ingest(tmp_path / name for name in NOTES)
    return chat


@pytest.fixture
def base(chat: Chat) -> KnowledgeBase:
    return chat.library.open("notes")


@pytest.fixture
def searching(chat: Chat, tmp_path: Path) -> Lab:
    settings = parse(["--data", str(tmp_path), "--lang", "en"], {})
    return Lab(Desk(settings, chat, Startup(settings, chat.engine)))


REQUEST = gr.Request()


def test_passages_come_with_their_figures_and_places(base: KnowledgeBase) -> None:
    shown = lab.results("What is the rent?", base.rank("What is the rent?"), Retrieving(passages=1), "en")
    assert shown.count("<article") == 1 and "rent.txt" in shown and "1,200 francs" in shown
    assert shown.count("#1") >= 2 and "best two sentences" in shown


@pytest.mark.parametrize(("threshold", "verdict"), [(0.0, "taken to answer"), (1.0, "taken not to say")])
def test_the_verdict_follows_the_threshold(base: KnowledgeBase, threshold: float, verdict: str) -> None:
    question = "What is the rent?"
    assert verdict in lab.results(question, base.rank(question), Retrieving(threshold=threshold), "en")


def test_words_alone_find_only_what_has_them(base: KnowledgeBase) -> None:
    ranked = base.rank("francs")
    assert lab.results("francs", ranked, Retrieving(method="words"), "en").count("<article") == 1
    assert lab.results("francs", ranked, Retrieving(method="meaning"), "en").count("<article") == len(NOTES)


def test_a_question_without_a_base_says_what_to_do(searching: Lab) -> None:
    for question, base in (("rent?", None), (" ", "notes")):
        assert "Choose a knowledge base" in searching.examine(question, base, 4, 0.5, "both", REQUEST)
    assert "⚠" in searching.examine("rent?", "no such base", 4, 0.5, "both", REQUEST)
    assert "rent.txt" in searching.examine("rent?", "notes", 4, 0.5, "both", REQUEST)


def test_a_conversation_keeps_how_it_searches(searching: Lab, chat: Chat) -> None:
    conversation, _ = searching.prefer_retrieval(None, 2, 0.25, "words", "model", REQUEST)
    assert searching.prefer_mode(conversation, "auto") == conversation
    kept = chat.store.conversation(conversation).preferences
    assert kept.retrieval == Retrieving(passages=2, threshold=0.25, method="words")
    assert kept.followups == "model" and kept.mode == "auto"
    mode, passages, threshold, method, followups = searching.preferred(conversation, REQUEST)
    chosen = (mode["value"], passages, threshold, method["value"], followups["value"])
    assert chosen == ("auto", 2, 0.25, "words", "model")
    assert [name for _, name in followups["choices"]] == ["off", "rule", "model"]
    mode, *_, followups = searching.preferred(None, REQUEST)
    assert (mode["value"], followups["value"]) == ("documents", "rule")


@pytest.mark.parametrize(
    ("how", "count", "answered"),
    [(Retrieving(passages=1, threshold=0), 1, True), (Retrieving(passages=3, threshold=1), 3, False)],
)
def test_a_turn_searches_as_it_was_told_to(
    base: KnowledgeBase, chat: Chat, how: Retrieving, count: int, answered: bool
) -> None:
    events = answer(chat.engine, Question("What is the rent?", base=base, retrieving=how), threading.Event())
    found = next(event for event in events if isinstance(event, Found))
    assert (len(found.passages), found.answered) == (count, answered)
