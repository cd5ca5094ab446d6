"""A turn never ends the app: what fails is tried with less, or told in a sentence, and the next turn works."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import chatapp.engine
from chatapp.conversation import Plan, Turn, plan
from chatapp.effort import LADDER, SMALL_CHUNK, SMALLEST_CHUNK, Effort
from chatapp.engine import Engine, EngineError, Source
from chatapp.library import Library
from chatapp.session import Chat, Reply
from chatapp.store import Store
from chatapp.ui import render
from knowledge import Passage
from models import CHUNK, End, LoadedModel, once_more, ran_out
from tests.fakes import ByteTokenizer, HashEmbeddings, RecordingCache, ready_engine, scripted, watch_caches, written
from tests.tiny import LLAMA

REPLY = "It is done."
OUT_OF_MEMORY = [
    MemoryError(),
    MemoryError("Unable to allocate 3.2 GiB"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 4096 bytes. Error code 12 (Cannot allocate memory)"
    ),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] data. DefaultCPUAllocator: not enough memory: you tried to ..."),
    RuntimeError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA to enable device-side assertions."),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("std::bad_alloc"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
]
PASSAGES = tuple(Passage(f"{n}.pdf", n, 1 - n / 10, f"<{n}p>" + "p" * 150, "id") for n in range(3))
HISTORY = tuple(turn for n in range(3) for turn in (Turn("user", f"({n})" + "u" * 60), Turn("assistant", "a" * 60)))
CHUNKS = 5  #: that the whole turn below is read in


def start(engine: Engine, cancel: threading.Event | None = None, reply: int = 64) -> Iterator[Any]:
    def words(passages: tuple[Passage, ...]) -> list[str]:
        return [*(["Use: "] if passages else []), *(each.text for each in passages), "why? " + "?" * 50]

    def make_plan(loaded: LoadedModel, effort: Effort) -> Plan:
        return plan(loaded, HISTORY, words, PASSAGES, "s" * 100, reply, effort)

    return engine.stream(make_plan, {}, cancel or threading.Event())


class Failing:
    """Lets a scripted model fail at one point of each of the first `times` attempts.

    `point` counts an attempt's forwards, those of reading first; None is where the cache is made.
    """

    def __init__(self, point: int | None, error: Exception, times: int = 1) -> None:
        self.loaded = scripted(REPLY, before=self._before)
        self.caches = watch_caches(self.loaded)
        self.alive: list[bool] = []  # whether anything of former attempts was left, at each attempt
        self._point, self._error, self._left = point, error, times
        self._forwards = 0
        self._new_cache = self.loaded.model.new_cache
        self.loaded.model.new_cache = self._cache

    def _cache(self, *arguments: Any) -> RecordingCache:
        self.alive.append(any(cache() is not None for cache in self.caches))
        self._forwards = 0
        if self._point is None:
            self._fail()
        return self._new_cache(*arguments)

    def _before(self) -> None:
        if self._forwards == self._point:
            self._fail()
        self._forwards += 1

    def _fail(self) -> None:
        if self._left:
            self._left -= 1
            raise type(self._error)(*self._error.args)  # a new one: an error holds on to where it was raised


def plans(events: list[Any]) -> list[Plan]:
    return [event for event in events if isinstance(event, Plan)]


# Memory that runs out


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: f"{type(error).__name__} {str(error)[:20]}")
def test_what_says_that_memory_ran_out_is_known(error: Exception) -> None:
    assert ran_out(error)


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError("out of memory"), OSError("disk")])
def test_what_says_something_else_is_not(error: Exception) -> None:
    assert not ran_out(error)


POINTS = {
    "cache": None,
    "first chunk": 0,
    "third chunk": 2,
    "last chunk": CHUNKS - 1,
    "decode 1": CHUNKS,
    "decode 8": 12,
}


def test_the_points_are_where_they_are_said_to_be() -> None:
    forwards = []
    loaded = scripted(REPLY, before=lambda: forwards.append(1))
    (made,) = plans(list(start(ready_engine(loaded))))
    assert -(-len(made.prompt.ids) // CHUNK) == CHUNKS
    assert len(forwards) == CHUNKS + len(REPLY)
    assert (len(made.passages), made.exchanges) == (3, 3)


@pytest.mark.parametrize("error", [MemoryError(), OUT_OF_MEMORY[2]], ids=["MemoryError", "RuntimeError"])
@pytest.mark.parametrize("point", POINTS.values(), ids=POINTS)
def test_memory_that_runs_out_once_costs_the_lowest_passage_and_no_letter(point: int | None, error: Exception) -> None:
    failing = Failing(point, error)
    events = list(start(ready_engine(failing.loaded)))
    assert written(events) == REPLY
    first, second = plans(events)
    assert [len(each.passages) for each in (first, second)] == [3, 2] and second.exchanges == first.exchanges
    (missing,) = second.ledger.left_out
    assert (missing.kind, missing.reason, missing.title) == ("passage", "memory", "2.pdf")
    assert second.ledger.prompt == len(second.prompt.ids)
    timings = events[-1].timings
    assert (timings.tokens, timings.prompt_tokens) == (len(REPLY), len(second.prompt.ids) - len(second.prompt.begun))
    assert failing.alive == [False, False]  # before the second cache was made, the first had gone
    assert written(start(ready_engine(failing.loaded))) == REPLY


@pytest.mark.parametrize("point", POINTS.values(), ids=POINTS)
def test_each_further_time_gives_up_more_and_then_it_ends_in_a_sentence(point: int | None) -> None:
    failing = Failing(min(point or 0, 1) if point is not None else None, MemoryError(), times=len(LADDER) + 1)
    engine, seen = ready_engine(failing.loaded), []
    with pytest.raises(EngineError, match="memory ran out; ask a shorter question, or narrow --context"):
        for event in start(engine):
            seen.append(event)
    held = [(len(each.passages), each.exchanges) for each in plans(seen)]
    assert held == [(3, 3), (2, 3), (2, 2), (2, 2), (1, 0)]
    assert not any(failing.alive) and not engine._queue
    assert written(start(engine)) == REPLY


@pytest.mark.parametrize("times, chunk", [(0, CHUNK), (2, CHUNK), (3, SMALL_CHUNK), (4, SMALLEST_CHUNK)])
def test_chunks_shrink_where_dropping_has_not_helped(times: int, chunk: int) -> None:
    failing = Failing(None, MemoryError(), times)
    sizes = []
    whole = failing.loaded.model.forward
    failing.loaded.model.forward = lambda ids, *more, **named: (sizes.append(ids.shape[1]), whole(ids, *more, **named))[
        1
    ]
    assert written(start(ready_engine(failing.loaded))) == REPLY
    assert max(sizes) == chunk


def test_a_plain_chat_gives_up_its_oldest_exchange_first() -> None:
    loaded = Failing(0, MemoryError()).loaded
    events = list(
        ready_engine(loaded).stream(
            lambda loaded, effort: plan(loaded, HISTORY, lambda passages: ["hi"], effort=effort), {}, threading.Event()
        )
    )
    assert [each.exchanges for each in plans(events)] == [3, 2]
    assert "(0)" not in ByteTokenizer().decode(plans(events)[1].prompt.ids)


def test_a_reply_that_goes_on_keeps_its_length_and_its_seat_in_the_window() -> None:
    failing = Failing(CHUNKS + 4, MemoryError())
    events = list(start(ready_engine(failing.loaded), reply=8))
    assert written(events) == REPLY[:8]
    assert (events[-1].reason, events[-1].timings.tokens) == ("length", 8)
    second = plans(events)[1]
    assert second.prompt.begun == tuple(REPLY[:5].encode()) and second.reply == 3


def test_half_a_character_at_the_break_is_neither_lost_nor_doubled() -> None:
    reply = "好的,完成了"
    for point in range(CHUNKS, CHUNKS + len(reply.encode())):
        failing = Failing(point, MemoryError())
        failing.loaded.model._reply = lambda prompt: reply
        assert written(start(ready_engine(failing.loaded))) == reply


class Gauge:
    """Free memory as a test wants it; counts how often it is asked."""

    def __init__(self, free: int) -> None:
        self.free, self.asked = free, 0

    def __call__(self) -> int:
        self.asked += 1
        return self.free


def engine_with(free: int, device: str = "cpu") -> tuple[Engine, LoadedModel, Gauge]:
    """An engine on a machine with so much free memory, with a model whose chunks take more than its cache."""
    loaded, gauge = scripted(REPLY), Gauge(free)
    loaded.checkpoint.config = LLAMA | {"intermediate_size": 4096}
    loaded.device = torch.device(device)
    engine = Engine(lambda path, **options: loaded, gauge)
    engine.load(Source("scripted", Path("scripted")))
    return engine, loaded, gauge


def test_free_memory_is_looked_at_before_the_cache_and_before_every_chunk() -> None:
    engine, _, gauge = engine_with(2**40)
    assert written(start(engine)) == REPLY
    assert gauge.asked == 1 + CHUNKS


def test_a_chunk_that_does_not_fit_is_not_tried_and_smaller_ones_are() -> None:
    _, loaded, _ = engine_with(0)
    window = 1400
    free = loaded.scratch(window, SMALL_CHUNK) + 1
    assert loaded.needs.cache("fp32", window) < free < loaded.scratch(window, CHUNK)
    engine, loaded, _ = engine_with(free)
    sizes = []
    whole = loaded.model.forward
    loaded.model.forward = lambda ids, *more, **named: (sizes.append(ids.shape[1]), whole(ids, *more, **named))[1]
    assert written(start(engine)) == REPLY
    assert max(sizes) == SMALL_CHUNK


def test_a_machine_without_memory_is_a_sentence_and_nothing_is_tried() -> None:
    engine, loaded, gauge = engine_with(0)
    with pytest.raises(EngineError, match=r"memory ran out \([\d,]+ MiB are needed and 0 are free\)"):
        list(start(engine))
    assert loaded.model.prompts == []
    gauge.free = 2**40
    assert written(start(engine)) == REPLY


def test_a_card_is_not_measured_by_the_memory_of_the_cpu() -> None:
    engine, loaded, _ = engine_with(0, "cuda")
    loaded.model.new_cache = lambda length, *kind: RecordingCache(length)
    assert written(start(engine)) == REPLY


# While loading


def test_a_load_that_runs_out_of_memory_is_tried_again() -> None:
    errors = [MemoryError()]

    def load(path: Path, **options: Any) -> LoadedModel:
        if errors:
            raise errors.pop()
        return scripted(REPLY)

    engine = Engine(load)
    engine.load(Source("big", Path("big")))
    assert engine.status.state == "ready" and written(start(engine)) == REPLY


def test_what_a_failed_load_had_read_is_gone_before_the_former_model_comes_back() -> None:
    read: list[weakref.ref] = []
    left: list[bool] = []

    def load(path: Path, **options: Any) -> LoadedModel:
        gc.collect()
        left.extend(each() is not None for each in read)
        if path.name == "former":
            return scripted(REPLY)
        weights = torch.zeros(1000)
        read.append(weakref.ref(weights))
        raise MemoryError

    engine = Engine(load)
    engine.load(Source("former", Path("former")))
    with pytest.raises(EngineError, match="too big could not be loaded: memory ran out"):
        engine.load(Source("too big", Path("too big")))
    assert left == [False, False, False]  # at its second attempt, and twice when the former model is loaded again
    assert written(start(engine)) == REPLY


def test_work_is_done_again_only_where_memory_ran_out() -> None:
    def failing(*errors: Exception) -> Callable[[], int]:
        left = list(errors)

        def work() -> int:
            if left:
                raise left.pop(0)
            return 7

        return work

    assert once_more(failing()) == once_more(failing(MemoryError())) == 7
    with pytest.raises(MemoryError):
        once_more(failing(MemoryError(), MemoryError()))
    with pytest.raises(RuntimeError, match="shapes"):
        once_more(failing(RuntimeError("shapes differ")))


# What is no lack of memory


ERRORS = [
    RuntimeError("Internal: src/sentencepiece_processor.cc(1101) error"),
    OverflowError("out of range integral type conversion attempted"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    TypeError("argument 'ids': 'NoneType' object can't be converted"),
    KeyError("<0x0A>"),
    ZeroDivisionError("division by zero"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("call", ["encode", "decode"])
def test_a_tokenizer_that_breaks_is_a_sentence(call: str, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ready_engine(scripted(REPLY))

    def fail(*_: Any, **__: Any) -> Any:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(ByteTokenizer, call, fail)
        with pytest.raises(EngineError, match="The model failed") as caught:
            list(start(engine))
    assert "\n" not in str(caught.value) and not engine._queue
    assert written(start(engine)) == REPLY


@pytest.mark.parametrize("point", range(CHUNKS - 1, CHUNKS + 6))
def test_values_that_are_no_numbers_are_a_sentence_at_any_token(point: int) -> None:
    loaded = scripted(REPLY)
    whole, forwards = loaded.model.forward, []

    def broken(*arguments: Any, **more: Any) -> torch.Tensor:
        forwards.append(1)
        return whole(*arguments, **more) * (torch.nan if len(forwards) == point + 1 else 1)

    loaded.model.forward = broken
    engine, seen = ready_engine(loaded), []
    with pytest.raises(EngineError, match="not numbers; try another tier"):
        for event in start(engine):
            seen.append(event)
    assert written(seen) == REPLY[: point - CHUNKS + 1].rstrip()  # the format strips, so a space waits for what follows
    assert written(start(engine)) == REPLY


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_callback_that_breaks_is_a_sentence(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, calls = ready_engine(scripted(REPLY)), []
    whole = chatapp.engine._raise_if

    def breaking(cancel: threading.Event) -> None:
        calls.append(1)
        if len(calls) == 5:  # within the first chunk
            raise error
        whole(cancel)

    monkeypatch.setattr(chatapp.engine, "_raise_if", breaking)
    with pytest.raises(EngineError, match="The model failed"):
        list(start(engine))
    assert written(start(engine)) == REPLY


# As a user sees it


CLAUSES = [f"Clause {number}. The rent " + "is discussed at length here. " * 12 for number in range(3)]


def talk(folder: Path, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, errors: list[Exception]) -> Reply:
    """The last state of a reply about documents; embedding its question fails with these errors first."""
    chat = Chat(ready_engine(loaded), Library(folder / "kb", HashEmbeddings), Store(folder / "conversations.db"))
    base = chat.library.create("docs")
    files = [folder / f"lease {number}.txt" for number in range(len(CLAUSES))]  # in one they would touch, and be joined
    for file, clause in zip(files, CLAUSES, strict=True):
        file.write_text(clause, encoding="utf-8")
    chat.library.open(base).ingest(files)
    whole = HashEmbeddings.embed_query

    def embed(self: HashEmbeddings, text: str) -> list[float]:
        if errors:
            raise errors.pop()
        return whole(self, text)

    monkeypatch.setattr(HashEmbeddings, "embed_query", embed)
    *_, reply = chat.send(chat.store.create().id, "What is the rent?", base, threading.Event())
    return reply


def test_a_question_that_could_not_be_embedded_at_first_is_answered(tmp_path: Path, monkeypatch) -> None:
    reply = talk(tmp_path, scripted(REPLY, context=4000), monkeypatch, [MemoryError()])
    assert (reply.state, reply.text) == ("done", REPLY)


def test_a_question_that_can_not_be_embedded_is_a_sentence(tmp_path: Path, monkeypatch) -> None:
    reply = talk(tmp_path, scripted(REPLY, context=4000), monkeypatch, [MemoryError(), MemoryError()])
    assert reply.state == "failed" and "can't be searched (memory ran out)" in reply.failure


@pytest.mark.parametrize("language, words", [("en", "Memory ran out"), ("zh", "内存不足")])
def test_a_user_is_told_what_was_dropped(tmp_path: Path, monkeypatch, language: str, words: str) -> None:
    steps = iter([None, MemoryError()])

    def before() -> None:
        if (error := next(steps, None)) is not None:
            raise error

    reply = talk(tmp_path, scripted(REPLY, context=4000, before=before), monkeypatch, [])
    assert (reply.state, reply.text) == ("done", REPLY)
    assert isinstance(reply.end, End) and len(reply.sources) == len(reply.plan.passages)
    assert reply.plan.ledger.missing("passage") == 1
    shown = render.progress_line(reply, language)
    assert words in shown and shown.count("lease ") == len(reply.plan.passages) + 1
