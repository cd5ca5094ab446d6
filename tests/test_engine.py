"""The one loaded model and its queue."""

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from chatapp.conversation import Plan, plan
from chatapp.effort import Effort
from chatapp.engine import Cancelled, Engine, EngineError, Loading, Source, Waiting
from models import CheckpointError, End, LoadedModel, Read, Sampling
from tests.fakes import Gate, ready_engine, scripted, watch_caches, written
from tests.waiting import eventually, in_thread


def asks(text: str = "hi", reply: int = 64) -> Callable[[LoadedModel, Effort], Plan]:
    return lambda loaded, effort: plan(loaded, [], lambda passages: [text], reply=reply, effort=effort)


def start(engine: Engine, text: str = "hi", cancel: threading.Event | None = None, **options: Any) -> Iterator[Any]:
    return engine.stream(asks(text), options, cancel or threading.Event())


# Streaming


def test_a_reply_is_a_plan_and_then_the_events_of_generation() -> None:
    events = list(start(ready_engine(scripted("你好!")), "hi"))
    assert isinstance(events[0], Plan) and isinstance(events[1], Read) and isinstance(events[-1], End)
    assert written(iter(events)) == "你好!"
    assert events[-1].reason == "stop"
    assert not any(isinstance(event, Waiting) for event in events)


def test_options_override_what_the_authors_recommend(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def generate(loaded: LoadedModel, ids: list[int], sampling: Sampling, *rest: Any, **more: Any) -> Iterator[Any]:
        seen.append(sampling)
        yield from ()

    monkeypatch.setattr("chatapp.engine.models.generate", generate)
    engine = ready_engine(scripted())
    list(start(engine))
    list(start(engine, temperature=0.0, seed=7))
    assert [(s.temperature, s.top_p, s.seed) for s in seen] == [(0.2, 0.9, None), (0.0, 0.9, 7)]


def test_the_reply_is_no_longer_than_planned() -> None:
    engine = ready_engine(scripted("x" * 500))
    events = list(engine.stream(asks(reply=9), {}, threading.Event()))
    assert written(iter(events)) == "x" * 9 and events[-1].reason == "length"


def test_a_stream_can_be_stepped_from_one_thread_after_another() -> None:
    engine = ready_engine(scripted("steps"))
    events, seen = start(engine), []
    for _ in range(50):
        thread, result = in_thread(lambda: next(events, None))
        thread.join()
        seen += result
    assert written(iter(seen)) == "steps"
    assert written(start(engine)) == "steps"


# The queue


def test_requests_are_served_in_their_order_and_told_their_place() -> None:
    gate, order = Gate(), []
    engine = ready_engine(scripted(before=gate))
    threads, results = [], []
    for number in range(4):
        events = start(engine, str(number))

        def run(events: Iterator[Any] = events, number: int = number) -> list[Any]:
            seen = list(events)
            order.append(number)
            return seen

        thread, result = in_thread(run)
        threads.append(thread)
        results.append(result)
        eventually(lambda number=number: len(engine._queue) == number + 1)
    gate.open()
    for thread in threads:
        thread.join(20)
    assert order == [0, 1, 2, 3]
    for number, (seen,) in enumerate(results):
        told = [event.ahead for event in seen if isinstance(event, Waiting)]
        assert told == sorted(told, reverse=True) and len(set(told)) == len(told)
        assert told[:1] == ([number] if number else [])
        assert seen.index(next(event for event in seen if isinstance(event, Plan))) == len(told)


def test_many_threads_get_each_its_own_reply() -> None:
    engine = ready_engine(scripted(lambda prompt: prompt.split("\n")[1] * 3))
    started = [in_thread(lambda number=number: written(start(engine, f"<{number}>"))) for number in range(20)]
    for thread, _ in started:
        thread.join(20)
    assert [result for _, result in started] == [[f"<{number}>" * 3] for number in range(20)]


def test_a_request_can_be_cancelled_while_it_waits() -> None:
    gate = Gate()
    engine = ready_engine(scripted(before=gate))
    first, reply = in_thread(lambda: written(start(engine)))
    gate.reached.wait(20)
    cancel = threading.Event()
    second, cancelled = in_thread(lambda: list(start(engine, cancel=cancel)))
    third, after = in_thread(lambda: written(start(engine)))
    eventually(lambda: len(engine._queue) == 3)
    cancel.set()
    second.join(20)
    assert isinstance(cancelled[0], Cancelled) and first.is_alive() and len(engine._queue) == 2
    gate.open()
    first.join(20)
    third.join(20)
    assert reply == after == ["Hello!"]


def test_a_request_that_was_cancelled_before_its_turn_makes_no_plan() -> None:
    cancel, planned = threading.Event(), []
    cancel.set()
    with pytest.raises(Cancelled):
        list(ready_engine(scripted()).stream(planned.append, {}, cancel))
    assert planned == []


def test_reading_can_be_cancelled_within_a_layer() -> None:
    cancel = threading.Event()
    layers = []
    model = scripted(before=cancel.set)  # as if Stop came while the first chunk is read
    original = model.model.new_cache

    def watched(*arguments: Any) -> Any:
        cache = original(*arguments)
        append = cache.append
        cache.append = lambda layer, *rest: (layers.append(layer), append(layer, *rest))[1]
        return cache

    model.model.new_cache = watched
    engine = ready_engine(model)
    with pytest.raises(Cancelled):
        list(start(engine, "x" * 1000, cancel))
    assert layers == [0]
    assert not engine._queue


def test_writing_can_be_cancelled_within_a_token() -> None:
    cancel, seen = threading.Event(), []
    engine = ready_engine(scripted("x" * 50))
    with pytest.raises(Cancelled):
        for event in start(engine, cancel=cancel):
            seen.append(event)
            if written(iter(seen)) == "xxx":
                cancel.set()
    assert written(iter(seen)) == "xxx"
    assert written(start(engine)) == "x" * 50


@pytest.mark.parametrize("steps", [1, 3, 6])
def test_a_stream_that_is_closed_midway_frees_the_queue(steps: int) -> None:
    engine = ready_engine(scripted("abandoned"))
    events = start(engine)
    for _ in range(steps):
        next(events)
    events.close()
    assert written(start(engine)) == "abandoned"


def test_a_waiting_stream_that_is_closed_frees_its_place() -> None:
    engine = ready_engine(scripted())
    first, second, third = start(engine), start(engine), start(engine)
    next(first)
    assert (next(second), next(third)) == (Waiting(1), Waiting(2))
    second.close()
    assert next(third) == Waiting(1)
    first.close()
    assert written(third) == "Hello!"


def test_a_stream_that_was_never_started_holds_nothing() -> None:
    engine = ready_engine(scripted())
    waiting = start(engine)
    assert written(start(engine)) == "Hello!"
    assert written(waiting) == "Hello!"


# Loading


def failing(error: Exception) -> Callable[..., LoadedModel]:
    def load(path: Path, **options: Any) -> LoadedModel:
        raise error

    return load


class Shelf:
    """A loader with these models by path; what is not there fails as a checkpoint does."""

    def __init__(self, **models: LoadedModel | Exception):
        self.models = models
        self.loads: list[str] = []

    def __call__(self, path: Path, progress: Callable[[int, int], None], **options: Any) -> LoadedModel:
        self.loads.append(path.name)
        progress(1, 2)
        model = self.models[path.name]
        if isinstance(model, Exception):
            raise model
        return model


def source(name: str) -> Source:
    return Source(name, Path(name))


def test_free_memory_does_not_make_another_source() -> None:
    assert Source("a", Path("a"), warm=1) == Source("a", Path("a"), warm=2)


def test_nothing_is_loaded_at_first_and_a_request_says_what_to_do() -> None:
    engine = Engine(Shelf())
    assert engine.status.state == "empty"
    with pytest.raises(EngineError, match="choose one under Model"):
        list(start(engine))
    with pytest.raises(EngineError, match="choose one under Model"):
        engine.loaded  # noqa: B018 - the property raises
    assert not engine._queue


def test_the_loader_gets_what_the_source_says_and_reports_progress() -> None:
    seen = {}

    def load(path: Path, **options: Any) -> LoadedModel:
        options.pop("progress")(3, 4)
        seen.update(options, path=path, status=engine.status)
        return scripted()

    engine = Engine(load)
    engine.load(Source("mine", Path("/x/mine"), "fp32", 512, "cuda:1", Path("/x/quantized"), adapter=Path("/x/lora")))
    status = seen.pop("status")
    kept = {"device": "cuda:1", "store": Path("/x/quantized"), "adapter": Path("/x/lora"), "beside": True}
    assert seen == {"path": Path("/x/mine"), "tier": "fp32", "context": 512, **kept}
    assert (status.state, status.name, status.done, status.total) == ("loading", "mine", 3, 4)
    assert (engine.status.state, engine.status.name, engine.status.message) == ("ready", "mine", "")
    assert engine.status.writer == "mine + lora"


@pytest.mark.parametrize(
    "error, reason",
    [
        (CheckpointError("config.json is missing in /x; download it again."), "config.json is missing"),
        (MemoryError(), "memory ran out"),
        (RuntimeError("DefaultCPUAllocator: can't allocate\nBacktrace:\n..."), "can't allocate$"),
        (PermissionError(13, "Permission denied", "/x"), "Permission denied"),
        (KeyError("blk.0"), "blk.0"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "invalid start byte"),
    ],
)
def test_a_failed_first_load_is_a_sentence_then_and_for_every_request(error: Exception, reason: str) -> None:
    engine = Engine(failing(error))
    with pytest.raises(EngineError, match=reason) as caught:
        engine.load(source("broken"))
    assert str(caught.value).startswith("broken could not be loaded: ") and "\n" not in str(caught.value)
    assert (engine.status.state, engine.status.message) == ("failed", str(caught.value))
    with pytest.raises(EngineError, match=reason):
        list(start(engine))


def test_an_error_that_nobody_foresaw_is_raised_and_does_not_leave_it_loading_for_ever() -> None:
    engine = Engine(failing(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        engine.load(source("odd"))
    assert engine.status.state == "failed" and "odd" in engine.status.message
    assert not engine._queue


def test_a_missing_tokenizer_is_said_when_loading() -> None:
    loaded = scripted()

    class WithoutTokenizer:
        config = loaded.checkpoint.config

        def tokenizer(self) -> None:
            raise CheckpointError("tokenizer.json is missing in /x.")

    loaded.checkpoint = WithoutTokenizer()
    with pytest.raises(EngineError, match="tokenizer.json is missing"):
        Engine(Shelf(mute=loaded)).load(source("mute"))


def test_a_failed_load_brings_the_former_model_back_and_says_why() -> None:
    shelf = Shelf(good=scripted("still here"), bad=CheckpointError("bad is damaged."))
    engine = Engine(shelf)
    engine.load(source("good"))
    with pytest.raises(EngineError, match="bad could not be loaded: bad is damaged."):
        engine.load(source("bad"))
    assert shelf.loads == ["good", "bad", "good"]
    assert (engine.status.state, engine.status.name) == ("ready", "good")
    assert written(start(engine)) == "still here"


def test_when_the_former_model_is_gone_too_both_are_said() -> None:
    shelf = Shelf(good=scripted(), bad=CheckpointError("bad is damaged."))
    engine = Engine(shelf)
    engine.load(source("good"))
    shelf.models["good"] = CheckpointError("good has vanished.")
    with pytest.raises(EngineError, match="bad is damaged"):
        engine.load(source("bad"))
    assert engine.status.state == "failed" and "good has vanished" in engine.status.message


def test_the_former_model_is_released_before_the_next_is_loaded() -> None:
    held = []

    def load(path: Path, **options: Any) -> LoadedModel:
        held.append(engine._loaded)
        return scripted()

    engine = Engine(load)
    engine.load(source("one"))
    engine.load(source("two"))
    assert held == [None, None]


def test_a_load_waits_for_the_reply_that_runs_and_goes_before_those_that_came_later() -> None:
    gate = Gate()
    engine = Engine(Shelf(old=scripted("old", before=gate), new=scripted("new")))
    engine.load(source("old"))
    reply_thread, reply = in_thread(lambda: written(start(engine)))
    gate.reached.wait(20)
    load_thread, _ = in_thread(lambda: engine.load(source("new")))
    eventually(lambda: len(engine._queue) == 2)
    later_thread, later = in_thread(lambda: written(start(engine)))
    eventually(lambda: len(engine._queue) == 3)
    assert (engine.status.state, engine.status.name) == ("ready", "old")
    gate.open()
    for thread in (reply_thread, load_thread, later_thread):
        thread.join(20)
    assert (reply, later) == (["old"], ["new"])


def test_requests_wait_while_a_model_is_loaded() -> None:
    gate = Gate()

    def load(path: Path, **options: Any) -> LoadedModel:
        gate()
        return scripted()

    engine = Engine(load)
    loading, _ = in_thread(lambda: engine.load(source("slow")))
    gate.reached.wait(20)
    with pytest.raises(EngineError, match="still being loaded"):
        engine.loaded  # noqa: B018 - the property raises
    events = start(engine)
    assert next(events) == Waiting(1)
    gate.open()
    loading.join(20)
    assert written(events) == "Hello!"


# Unloading


def test_an_unloaded_model_is_released_with_its_caches() -> None:
    loaded = scripted("Hello, this is a reply that is long enough to be kept")
    caches = watch_caches(loaded)
    model = weakref.ref(loaded.model)
    engine = Engine(Shelf(one=loaded))
    engine.load(source("one"))
    list(start(engine))
    assert any(each() is not None for each in caches) and engine.nbytes > 0
    engine._loader = Shelf(one=scripted("again"))
    del loaded
    engine.unload(lambda _: source("one"))
    gc.collect()
    assert model() is None and all(each() is None for each in caches)
    assert (engine.status.state, engine.status.name, engine.source, engine.nbytes) == ("unloaded", "one", None, 0)
    with pytest.raises(EngineError, match="was unloaded; press Load"):
        engine.loaded  # noqa: B018 - the property raises


def test_the_next_reply_loads_it_again_and_says_so() -> None:
    engine = Engine(Shelf(one=scripted("one"), smaller=scripted("smaller")))
    engine.load(source("one"))
    engine.unload(lambda _: source("smaller"))
    events = list(start(engine))
    assert events[0] == Loading("one") and written(iter(events)) == "smaller"
    assert (engine.status.state, engine.status.name) == ("ready", "smaller")
    assert not any(isinstance(event, Loading) for event in start(engine))
    assert list(engine.wake(threading.Event())) == []


def test_another_model_can_be_put_by_for_the_next_reply() -> None:
    engine = Engine(Shelf(one=scripted("one"), two=scripted("two")))
    assert not engine.put_by(source("two"))
    engine.load(source("one"))
    assert not engine.put_by(source("two")) and engine.waiting is None
    engine.unload(lambda former: former)
    assert engine.waiting == source("one")
    assert engine.put_by(source("two")) and engine.waiting == source("two")
    assert (engine.status.state, engine.status.name) == ("unloaded", "two")
    assert written(start(engine)) == "two" and engine.waiting is None


def test_unloading_waits_for_the_reply_that_runs() -> None:
    gate = Gate()
    engine = Engine(Shelf(one=scripted("whole", before=gate)))
    engine.load(source("one"))
    reply_thread, reply = in_thread(lambda: written(start(engine)))
    gate.reached.wait(20)
    unloading, _ = in_thread(lambda: engine.unload(lambda _: source("one")))
    eventually(lambda: len(engine._queue) == 2)
    later_thread, later = in_thread(lambda: written(start(engine)))
    eventually(lambda: len(engine._queue) == 3)
    assert engine.status.state == "ready"
    gate.open()
    for thread in (reply_thread, unloading, later_thread):
        thread.join(20)
    assert reply == later == ["whole"]  # the later one has loaded it again


def test_what_is_not_loaded_can_not_be_unloaded() -> None:
    engine = Engine(Shelf())
    engine.unload(lambda _: source("one"))
    assert engine.status.state == "empty"
    assert list(engine.wake(threading.Event())) == []


def test_stop_ends_loading_again_and_it_stays_to_be_had() -> None:
    cancel = threading.Event()
    loads = []

    def load(path: Path, progress: Callable[[int, int], None], **options: Any) -> LoadedModel:
        loads.append(path.name)
        if len(loads) == 2:
            cancel.set()
        progress(1, 2)
        return scripted("Hi")

    engine = Engine(load)
    engine.load(source("one"))
    engine.unload(lambda _: source("one"))
    with pytest.raises(Cancelled):
        list(start(engine, cancel=cancel))
    assert (engine.status.state, engine.status.name) == ("unloaded", "one")
    assert written(start(engine)) == "Hi"


def test_a_model_that_no_longer_fits_is_said_and_stays_to_be_had() -> None:
    engine = Engine(Shelf(one=scripted("one"), other=scripted("other")))
    engine.load(source("one"))

    def again(former: Source) -> Source:
        raise EngineError("one could not be loaded: 9.9 GiB are needed.")

    engine.unload(again)
    with pytest.raises(EngineError, match="9.9 GiB"):
        list(start(engine))
    assert engine.status.state == "unloaded"
    with pytest.raises(EngineError, match="could not be loaded"):
        engine.load(source("broken"))
    assert (engine.status.state, engine.status.name) == ("unloaded", "one")
    engine.load(source("other"))
    assert written(start(engine)) == "other"


# Failures inside the model


@pytest.mark.parametrize(
    "error, reason",
    [
        (RuntimeError("[enforce fail at tensor.cpp]\nmore"), "enforce fail"),
        (IndexError("index out of range in self"), "index out of range"),
        (KeyError("sop"), "KeyError: 'sop'"),
        (OverflowError("out of range integral type conversion attempted"), "integral type"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "invalid start byte"),
        (TypeError(), "TypeError"),
    ],
)
def test_a_failure_of_the_model_is_a_sentence_and_the_next_request_works(error: Exception, reason: str) -> None:
    failures = [error]

    def before() -> None:
        if failures:
            raise failures.pop()

    engine = ready_engine(scripted(before=before))
    with pytest.raises(EngineError, match=reason) as caught:
        list(start(engine))
    assert "\n" not in str(caught.value)
    assert written(start(engine)) == "Hello!"


def test_a_cache_that_memory_has_no_room_for_is_a_sentence() -> None:
    loaded = scripted()

    def no_memory(*arguments: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    loaded.model.new_cache = no_memory
    with pytest.raises(EngineError, match="can't allocate memory"):
        list(start(ready_engine(loaded)))


def test_values_that_are_no_numbers_are_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = scripted()
    whole = loaded.model.forward
    monkeypatch.setattr(loaded.model, "forward", lambda *args, **more: whole(*args, **more) * torch.nan)
    with pytest.raises(EngineError, match="not numbers; try another tier"):
        list(start(ready_engine(loaded)))


def test_the_former_model_is_released_before_another_is_read() -> None:
    """Both at once would need the memory of two."""
    alive: list[bool] = []
    former: list[weakref.ref] = []

    def load(path: Path, **options: Any) -> LoadedModel:
        gc.collect()
        alive.extend(each() is not None for each in former)
        loaded = scripted("Hello")
        former.append(weakref.ref(loaded.model))
        return loaded

    engine = Engine(load)
    for name in ("first", "second", "third"):
        engine.load(source(name))
        list(engine.stream(asks("Hi"), {}, threading.Event()))
    assert alive == [False, False, False]
