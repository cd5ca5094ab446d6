"""One turn: what is searched for, and what a model may have to do with it."""

import threading
from pathlib import Path

import pytest

import knowledge
from chatapp import answering
from chatapp.answering import Question, rewritten, search
from chatapp.conversation import Turn
from chatapp.preferences import Retrieving
from knowledge import KnowledgeBase
from knowledge.followup import Standalone
from tests.fakes import HashEmbeddings, ready_engine, scripted

HISTORY = (Turn("user", "Who is Ada Lovelace?"), Turn("assistant", "A mathematician."))


@pytest.fixture
def base(tmp_path: Path) -> KnowledgeBase:
    (tmp_path / "lease.txt").write_text("The rent of Oak House is 1,200 francs a month.", encoding="utf-8")
    made = knowledge.open(tmp_path / "kb", HashEmbeddings())
    made.ingest([tmp_path / "lease.txt"])
    return made


@pytest.mark.parametrize(
    ("text", "asked", "certain", "searched"),
    [
        ("Ada Lovelace: What is the rent of Oak House?", "What is the rent of Oak House?", False, "asked"),
        ("What is the rent of Oak House?", "How much is it?", False, "text"),
        ("Ada Lovelace: What is the rent of Oak House?", "What is the rent of Oak House?", True, "text"),
    ],
)
def test_where_the_rule_is_not_certain_the_documents_decide(
    base: KnowledgeBase, text: str, asked: str, certain: bool, searched: str
) -> None:
    standalone = Standalone(text, True, certain, asked)
    found, findings = search(base, standalone, Retrieving())
    assert found == getattr(standalone, searched)
    assert findings == base.find(found, Retrieving().passages)


def ask(
    size: int, monkeypatch: pytest.MonkeyPatch, history: tuple[Turn, ...] = HISTORY
) -> tuple[str | None, list[str]]:
    """What the model, taken to be small below `size` parameters, makes of a question, and the prompts that it got."""
    monkeypatch.setattr(answering, "SMALL", size)
    loaded = scripted(" When was Ada Lovelace born?")
    text = rewritten(ready_engine(loaded), Question("When was she born?", history), threading.Event())
    return text, loaded.model.prompts


def test_a_capable_model_rewrites_a_question(monkeypatch: pytest.MonkeyPatch) -> None:
    text, (prompt,) = ask(1, monkeypatch)
    assert text == "When was Ada Lovelace born?"
    assert "Who is Ada Lovelace?" in prompt and "Write only the question. When was she born?" in prompt


def test_a_small_model_is_not_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ask(answering.SMALL, monkeypatch) == (None, [])


def test_there_is_nothing_to_rewrite_without_earlier_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ask(1, monkeypatch, history=()) == (None, [])
