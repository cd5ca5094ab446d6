"""One turn: what is searched for, and what a model may have to do with it."""

import threading
from pathlib import Path
from typing import Any

import pytest

import knowledge
from chatapp.answering import Question, answer, asked_alone, search
from chatapp.conversation import Plan, Turn
from chatapp.engine import Cancelled, Engine
from chatapp.preferences import Retrieving
from chatapp.rewriting import Rewriting, usable
from knowledge import KnowledgeBase
from knowledge.followup import Standalone
from models import LoadedModel
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


def asked(model: LoadedModel, text: str = "When was she born?", **fields: Any) -> tuple[list[Any], Standalone]:
    """The events of making a question stand alone by this model, and what is searched for then."""
    question = Question(text, **{"history": HISTORY, "followups": "model", **fields})
    steps, events = asked_alone(ready_engine(model), question, threading.Event()), []
    while True:
        try:
            events.append(next(steps))
        except StopIteration as ended:
            return events, ended.value


BY_RULE = "When was Ada Lovelace born?"


@pytest.mark.parametrize(
    ("said", "searched"),
    [
        (" Ada Lovelace was born when?\n", "Ada Lovelace was born when?"),
        ("Q: When was the mathematician born?", "When was the mathematician born?"),
        (
            '\nRewritten question: "When was the mathematician born?"\n\nThis is because',
            "When was the mathematician born?",
        ),
        ("", BY_RULE),
        ("Who was it?", BY_RULE),  # no word of the question
        ("Ada Lovelace was born in 1815.", BY_RULE),  # an answer
        ("when was she born?", BY_RULE),  # the same again
        ("When was she born? " * 20, BY_RULE),  # it does not end
    ],
)
def test_a_model_makes_the_question_stand_alone_or_the_rule_does(said: str, searched: str) -> None:
    loaded = scripted(said)
    events, standalone = asked(loaded)
    assert (events, standalone.text, standalone.certain) == ([Rewriting()], searched, True)
    (prompt,) = loaded.model.prompts
    assert "Who is Ada Lovelace?" in prompt and "Write only the question.\n\nWhen was she born?" in prompt


@pytest.mark.parametrize(
    ("fields", "searched"),
    [
        ({"followups": "rule"}, BY_RULE),
        ({"followups": "off"}, "When was she born?"),
        ({"history": ()}, "When was she born?"),
    ],
)
def test_the_model_is_asked_only_where_it_should_be(fields: dict[str, Any], searched: str) -> None:
    loaded = scripted("When was somebody born?")
    events, standalone = asked(loaded, **fields)
    assert (events, standalone.text, loaded.model.prompts) == ([], searched, [])


def test_the_rule_does_where_no_model_is_loaded() -> None:
    steps = asked_alone(Engine(), Question("When was she born?", HISTORY, followups="model"), threading.Event())
    assert next(steps) == Rewriting()
    with pytest.raises(StopIteration) as ended:
        next(steps)
    assert ended.value.value.text == BY_RULE


def test_the_documents_decide_on_what_a_model_makes_of_no_follow_up() -> None:
    _, standalone = asked(scripted("What is Ada Lovelace's rent?"), "What is the rent of Oak House in Zurich?")
    assert standalone == Standalone(
        "What is Ada Lovelace's rent?", True, certain=False, asked="What is the rent of Oak House in Zurich?"
    )


def test_stop_ends_a_rewriting() -> None:
    cancel = threading.Event()
    loaded = scripted("When was Ada Lovelace born?", before=cancel.set)
    question = Question("When was she born?", HISTORY, followups="model")
    with pytest.raises(Cancelled):
        list(asked_alone(ready_engine(loaded), question, cancel))


def test_the_conversation_stays_in_the_cache(base: KnowledgeBase) -> None:
    """What was read for the conversation is not read again for the reply behind a rewriting."""
    long = (Turn("user", "Who is Ada Lovelace? " * 20), Turn("assistant", "A mathematician. " * 20))
    engine = ready_engine(scripted("What is the rent of Oak House?", context=4096))
    list(answer(engine, Question("Hello?", long), threading.Event()))
    question = Question("What is the rent of it?", long, base, followups="model")
    ledger = next(event for event in answer(engine, question, threading.Event()) if isinstance(event, Plan)).ledger
    assert ledger.reused > len("".join(turn.content for turn in long))


def test_chinese_questions_are_rewritten_in_chinese() -> None:
    assert (
        usable("改写后的问题：“唐爱陆什么时候创办了爱国公司？”", "他什么时候创办了爱国公司？")
        == "唐爱陆什么时候创办了爱国公司？"
    )
    assert usable("When did he found it?", "他什么时候创办了爱国公司？") is None
