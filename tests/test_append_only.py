"""Every turn's prompt stands behind the one before it and its reply, until the window is full."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from functools import partial

import pytest

from chatapp.answering import Question, answer, wording
from chatapp.conversation import Plan, Turn, plan
from chatapp.engine import Engine
from knowledge import Findings, Passage, Where
from models import End, Read, shared
from tests.fakes import IM_END, ByteTokenizer, ready_engine, scripted

CONTEXT = 4000
ROOM = CONTEXT - 512
REPLY = tuple(b"It is so.")
FRAME_OF_REPLY = [IM_END, ord("\n")]


def passage(number: int, size: int = 150) -> Passage:
    return Passage("report.pdf", number, 1 - number / 100, f"<{number}>" + "p" * size, "id")


def conversation(turns: int, found: dict[int, list[Passage]] | None = None, context: int = CONTEXT) -> Iterator[Plan]:
    """The plan of each turn, with two new passages for each where `found` does not say otherwise."""
    loaded, history = scripted(context=context), []
    for number in range(turns):
        text = f"What is number {number}?"
        passages = (found or {}).get(number, [passage(2 * number), passage(2 * number + 1)])
        made = plan(loaded, history, partial(wording, text), passages, "Be kind.", quoting=wording)
        yield made
        history += [Turn("user", text, passages=made.passages), Turn("assistant", "It is so.", REPLY)]


def text_of(made: Plan) -> str:
    return ByteTokenizer().decode(made.prompt.ids)


def test_each_prompt_begins_with_the_former_one_and_its_reply() -> None:
    former: list[int] = []
    for number, made in enumerate(conversation(5)):
        assert made.prompt.ids[: len(former)] == former
        assert f"<{2 * number}>" in text_of(made) and made.dropped_turns == 0
        former = [*made.prompt.ids, *REPLY, *FRAME_OF_REPLY]


def test_a_full_window_is_filled_anew_without_older_passages_and_then_lasts() -> None:
    former, anew = [], []
    for number, made in enumerate(conversation(60)):
        assert len(made.prompt.ids) <= ROOM
        if made.prompt.ids[: len(former)] != former:
            anew.append(number)
            quoted = [n for n in range(2 * number) if f"<{n}>" in text_of(made)]
            assert quoted == [] and f"<{2 * number}>" in text_of(made)
            assert len(made.prompt.ids) <= ROOM / 2 + 500  # a question with its passages takes about 470
        former = [*made.prompt.ids, *REPLY, *FRAME_OF_REPLY]
    assert 5 <= len(anew) <= 15


def test_passages_that_stand_in_the_window_are_not_told_again() -> None:
    found = {0: [passage(0), passage(1)], 1: [passage(1), passage(7)], 2: [passage(0)]}
    first, second, third = conversation(3, found)
    text = text_of(third)
    assert [text.count(f"<{n}>") for n in (0, 1, 7)] == [1, 1, 1]
    assert text.count(", above)") == 2
    assert "[1] (page 1, above)" in text_of(second)
    assert second.passages == (passage(1), passage(7))  # all of them are this turn's evidence
    assert [entry.page for entry in third.ledger.entries if entry.kind == "passage"] == [0]


def test_passages_that_went_with_a_former_window_are_told_again() -> None:
    found = {n: [passage(0), passage(n)] for n in range(1, 40)}
    for made in conversation(40, found):
        assert text_of(made).count("<0>") == 1


class Documents:
    """A knowledge base that finds the same two passages for every question, and for a numbered one another."""

    def find(self, question: str, count: int, where: Where, method: str) -> Findings:
        number = int("".join(filter(str.isdigit, question)) or 0)
        return Findings((passage(0), passage(1), *([passage(number)] if number else [])), True)

    def quote(self, question: str, passages: Sequence[Passage]) -> None:
        """Nothing is worth being quoted."""


def ask(engine: Engine, history: list[Turn], text: str) -> tuple[Plan, list[Read], End]:
    """One turn about documents, which is added to the history."""
    events = list(answer(engine, Question(text, list(history), Documents(), "Be kind."), threading.Event()))
    made, end = next(event for event in events if isinstance(event, Plan)), events[-1]
    history += [Turn("user", text, passages=made.passages), Turn("assistant", "It is so.", REPLY, engine.status.writer)]
    return made, [event for event in events if isinstance(event, Read)], end


@pytest.fixture
def engine() -> Engine:
    return ready_engine(scripted("It is so.", context=CONTEXT))


def test_a_follow_up_on_documents_reads_what_is_new_and_says_so(engine: Engine) -> None:
    history: list[Turn] = []
    before, *_ = ask(engine, history, "What is it?")
    for text in ("And why?", "Where is 5?", "Who says so?"):
        made, reads, end = ask(engine, history, text)
        new = len(made.prompt.ids) - len(before.prompt.ids) - len(REPLY) - len(FRAME_OF_REPLY)
        read = end.timings.prompt_tokens - end.timings.reused
        assert 0 < new <= read <= new + 16
        assert (made.ledger.reused, reads[0].done, reads[0].reused) == (end.timings.reused,) * 3
        assert made.ledger.as_json()["read"] == read
        before = made


def test_conversations_that_take_turns_keep_what_they_have_read(engine: Engine) -> None:
    histories: list[list[Turn]] = [[], [], []]
    for turn in range(4):
        for number, history in enumerate(histories):
            made, _, end = ask(engine, history, f"Which {'abc'[number]} is it in turn {'wxyz'[turn]}?")
            read = end.timings.prompt_tokens - end.timings.reused
            assert read <= (250 if turn else len(made.prompt.ids))
            if (turn, number) == (0, 1):  # the system message and the passages are the first conversation's too
                assert end.timings.reused > 300


def test_another_reply_and_an_edited_question_are_read_from_the_change_on(engine: Engine) -> None:
    history: list[Turn] = []
    ask(engine, history, "What is it?")
    made, *_ = ask(engine, history, "And why?")
    earlier = history[:2]
    again, _, end = ask(engine, list(earlier), "And why?")
    assert again.prompt.ids == made.prompt.ids and end.timings.reused == len(made.prompt.ids) - 1
    edited, _, end = ask(engine, list(earlier), "And who?")
    assert end.timings.reused == shared(edited.prompt.ids, made.prompt.ids)
