"""As many passages as the measured reading speed allows: the weakest stay out, and the ledger says why."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import models
from chatapp.answering import wording
from chatapp.conversation import Plan, Turn, continuing, plan
from chatapp.effort import Effort
from chatapp.engine import Engine, Source
from chatapp.ui import budget
from knowledge import Passage
from models import MEASURED, End, LoadedModel, Timings
from tests.fakes import scripted, written

PASSAGES = tuple(Passage(f"{n}.pdf", n, 1 - n / 10, f"<{n}>" + "p" * 200, "id") for n in range(1, 5))


def engine_reading(seconds: float, speed: float | None, loaded: LoadedModel | None = None) -> Engine:
    """An engine that may read for so long, and has measured so many tokens a second."""
    made = loaded or scripted("Yes.")
    engine = Engine(loader=lambda path, **options: made, reading=seconds)
    engine.load(Source("scripted", Path("scripted")))
    if speed is not None:
        engine._measured(Timings(1000, 0, 1000 / speed, 1, 0.0))
    return engine


def ask(
    engine: Engine, passages: Sequence[Passage] = PASSAGES, history: Sequence[Turn] = (), begun: Turn | None = None
) -> list[Any]:
    def make(loaded: LoadedModel, effort: Effort) -> Plan:
        words = lambda passages: wording("Why?", passages)  # noqa: E731
        return plan(loaded, history, words, passages, effort=effort, quoting=wording)

    def going_on(loaded: LoadedModel, effort: Effort) -> Plan:
        return continuing(loaded, begun, lambda loaded: make(loaded, effort))

    return list(engine.stream(going_on if begun else make, {}, threading.Event()))


def planned(events: Sequence[Any]) -> Plan:
    return next(event for event in events if isinstance(event, Plan))


def test_without_a_measured_speed_there_is_no_limit() -> None:
    assert planned(ask(engine_reading(20, None))).passages == PASSAGES


def test_without_a_limit_the_speed_does_not_matter() -> None:
    assert planned(ask(engine_reading(0, 0.1))).passages == PASSAGES


@pytest.mark.parametrize("seconds, kept", [(60, 4), (45, 3), (34, 2), (25, 1), (0.001, 1)])
def test_the_weakest_passages_stay_out_until_the_rest_can_be_read_in_time(seconds: float, kept: int) -> None:
    made = planned(ask(engine_reading(seconds, 20)))
    assert made.passages == PASSAGES[:kept]
    assert len(made.prompt.ids) <= seconds * 20 or kept == 1
    assert [(each.kind, each.reason, each.title) for each in made.ledger.left_out] == [
        ("passage", "reading time", passage.name) for passage in PASSAGES[kept:]
    ]
    whole = plan(scripted(), (), lambda passages: wording("Why?", passages), PASSAGES[: kept + 1])
    assert kept == 4 or len(whole.prompt.ids) > seconds * 20  # one more would have been too many


def test_the_ledger_says_it_in_both_languages_and_to_clients() -> None:
    ledger = planned(ask(engine_reading(45, 20))).ledger
    assert "reading time" in budget.bar(ledger, "en") and "阅读时间不够" in budget.bar(ledger, "zh")
    (left_out,) = ledger.as_json()["left_out"]
    assert (left_out["reason"], left_out["title"]) == ("reading time", "4.pdf")
    assert not ledger.short_of_memory


def test_tokens_that_were_read_before_do_not_count() -> None:
    engine = engine_reading(60, 20)
    first = planned(ask(engine))
    engine._measured(Timings(1000, 0, 1000.0, 1, 0.0))  # it has become twenty times slower
    again = planned(ask(engine))
    assert again.passages == first.passages == PASSAGES
    line = budget.bar(again.ledger, "en")
    assert f"reused {again.ledger.reused:,}, read {again.ledger.read:,}" in line
    assert f"复用 {again.ledger.reused:,}，读取 {again.ledger.read:,}" in budget.bar(again.ledger, "zh")
    assert 0 < again.ledger.read <= 60 < again.ledger.reused
    assert "reused" not in budget.bar(first.ledger, "en")


def test_a_reply_that_goes_on_keeps_what_it_was_given() -> None:
    assert planned(ask(engine_reading(1, 1), begun=Turn("assistant", "Y"))).passages == PASSAGES


def test_older_turns_do_not_take_the_place_of_passages() -> None:
    history = [turn for n in range(40) for turn in (Turn("user", f"({n})" + "u" * 60), Turn("assistant", "a" * 60))]
    made = planned(ask(engine_reading(1, 1), history=history))
    assert len(made.prompt.ids) <= planned(ask(engine_reading(0, 1), history=history)).ledger.prompt


def test_the_speed_is_measured_from_readings_that_are_long_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_reading(20, None)
    for read, seconds, expected in ((MEASURED - 1, 1.0, None), (MEASURED, 2.0, MEASURED / 2), (3, 9.0, MEASURED / 2)):
        timings = Timings(read + 50, 50, seconds, 1, 0.0)
        end = End("stop", timings)
        monkeypatch.setattr(models, "generate", lambda *rest, end=end, **more: (each for each in [end]))
        ask(engine)
        assert engine._speed == expected
    engine.load(Source("another", Path("another")))
    assert engine._speed is None


def test_memory_that_runs_out_leaves_the_reasons_apart() -> None:
    failures = iter([MemoryError()])

    def before() -> None:
        for failure in failures:
            raise failure

    events = ask(engine_reading(45, 20, scripted("Yes.", before=before)))
    assert written(events) == "Yes."
    _, second = (event for event in events if isinstance(event, Plan))
    assert [(each.reason, each.title) for each in second.ledger.left_out] == [
        ("memory", "3.pdf"),
        ("reading time", "4.pdf"),
    ]
