"""The one loaded model and its queue: load, switch, unload, stream, cancel."""

from __future__ import annotations

import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import models
from models import (
    CHUNK,
    MEASURED,
    OUT_OF_MEMORY,
    BadLogitsError,
    Blocks,
    CachePool,
    End,
    Event,
    LoadedModel,
    Lookup,
    Read,
    Sampling,
    Timings,
    Token,
    identity,
    once_more,
    ran_out,
)

from .conversation import Aside, Plan, QuestionTooLong
from .effort import LADDER, Effort
from .hardware import free_memory
from .planner import Plan as MemoryPlan

#: How often a waiting request looks whether it was cancelled or has moved up, in seconds.
POLL = 0.2

#: What a model, its tokenizer or its chat template runs into when it is damaged, or when something is wrong in ours:
#: numbers that can't be, names and indices that are not there, memory, shapes, types, texts. Python's and PyTorch's
#: errors for all of these are among them; what is not is no failure of a turn but of the program.
BREAKS = (ArithmeticError, AttributeError, LookupError, MemoryError, OSError, RuntimeError, TypeError, ValueError)


class EngineError(RuntimeError):
    """Nothing can be generated now; the text is one sentence for the user."""


class Cancelled(Exception):
    """The user stopped the turn."""


@dataclass(frozen=True)
class Waiting:
    """`ahead` requests come first."""

    ahead: int


@dataclass(frozen=True)
class Loading:
    """The model that was unloaded is loaded again, for this reply."""

    name: str


@dataclass(frozen=True)
class Summarising:
    """The model reads and writes a summary of what has no room in the window, before the reply."""


@dataclass(frozen=True)
class Status:
    """What the engine holds. `message` explains a failure.

    `state` is "empty", "loading", "ready", "unloaded" (the next reply loads the model again) or "failed".
    """

    state: str
    name: str = ""
    done: int = 0
    total: int = 0
    message: str = ""
    family: str = ""
    chat_format: str = ""  #: its title, such as "Llama 2 Chat"
    base: bool = False  #: a base model: it continues text
    adapter: str = ""  #: its folder's name
    tier: str = ""
    reason: str = ""  #: why this tier and window

    @property
    def writer(self) -> str:
        """Who writes the ids of replies: an adapter may bring another vocabulary."""
        return f"{self.name} + {self.adapter}" if self.adapter else self.name


@dataclass(frozen=True)
class Source:
    """What is to be loaded, and how."""

    name: str
    path: Path
    tier: str = "fp16"
    context: int | None = None
    device: str = "cpu"
    store: Path | None = None  #: where INT8 and INT4 tiers made from larger weights are kept
    reason: str = ""  #: why this tier and window, in a sentence
    asked_tier: str = "auto"  #: what the user chose
    chat_format: str | None = None  #: a name of models.chat_formats(); None is the checkpoint's own
    adapter: Path | None = None
    #: Bytes that caches of earlier prompts may take beside the one that is at work: it follows from what is free now.
    warm: int = field(default=0, compare=False)
    plan: MemoryPlan | None = field(default=None, compare=False)  #: by which it runs so, where there is one


@dataclass(frozen=True)
class Warm:
    """Where on disk what was read is kept for the next start: a folder, and the bytes that it may take.

    With a limit of 0 nothing is kept.
    """

    folder: Path
    limit: int

    def blocks(self, loaded: LoadedModel) -> Blocks | None:
        """Those of this model; None where its prompts can't be reused, or the disk does not allow it."""
        if not loaded.model.causal_prompt or not self.limit:
            return None
        try:
            return Blocks(self.folder, self.limit, identity(loaded), loaded.needs.cache(loaded.tier, 1))
        except (OSError, models.CheckpointError):
            return None  # nothing depends on it; what can't be written or is gone is said where something does

    def clear(self) -> None:
        """Deletes the blocks of all models."""
        models.clear_blocks(self.folder)


class Engine:
    """Requests are served one at a time, in the order they came.

    `reading`: seconds that the reading of passages may take once the model's speed is known; 0: any time. `window`:
    tokens that a turn may take of the model's own window. Both may be changed at any time, for the next turn.
    """

    def __init__(
        self,
        loader: Callable[..., LoadedModel] = models.load,
        free_memory: Callable[[], int] = free_memory,
        warm: Warm | None = None,
        reading: float = 0.0,
        window: int | None = None,
    ) -> None:
        self._loader = loader
        self._free_memory = free_memory
        self._warm = warm
        self.reading = reading
        self.window = window
        self._speed: float | None = None  #: of the loaded model's reading, tokens a second, as it was measured last
        self._blocks: Blocks | None = None
        self._loaded: LoadedModel | None = None
        self._caches: CachePool | None = None  #: of the loaded model, and gone with it
        self._draft: Lookup | None = None  #: what it has learnt of the loaded model's passes
        self._source: Source | None = None
        self._again: Callable[[Source], Source] | None = None  #: plans anew what was unloaded
        self._waiting: Source | None = None  #: and that
        self._queue: deque[object] = deque()
        self._changed = threading.Condition()
        self.status = Status("empty")

    @property
    def loaded(self) -> LoadedModel:
        """The model; raises EngineError, saying what to do, while there is none."""
        if self._loaded is None:
            raise EngineError(_WHY_EMPTY.get(self.status.state, self.status.message))
        return self._loaded

    @property
    def source(self) -> Source | None:
        """What is loaded, and how."""
        return self._source

    @property
    def recommended(self) -> Mapping[str, Any] | None:
        """The fields of Sampling that the loaded model's authors recommend."""
        loaded = self._loaded
        return None if loaded is None else loaded.chat_format.sampling

    @property
    def longest(self) -> int | None:
        """Tokens of the window that the loaded model has here."""
        loaded = self._loaded
        return None if loaded is None else loaded.context

    @property
    def busy(self) -> bool:
        """Whether anything is being served."""
        return bool(self._queue)

    @property
    def nbytes(self) -> int:
        """Bytes of the loaded model's weights, and of the caches that go with it."""
        loaded, caches = self._loaded, self._caches  # a load on another thread lets go of them
        return 0 if loaded is None or caches is None else loaded.nbytes + caches.nbytes

    @property
    def chat_format(self) -> str | None:
        """The name of the chat format that the user chose; None is the checkpoint's own."""
        return self._source.chat_format if self._source else None

    def accepts(self, adapter: Path) -> bool:
        """Whether an adapter is for the loaded model."""
        return self._loaded is not None and self._loaded.accepts(adapter)

    def load(self, source: Source) -> None:
        """Replaces the model once running replies are over, releasing the former one first.

        If that fails, the former one is loaded again, and EngineError says why. Where nothing but the adapter changes,
        and it can stay beside the weights, these are not read again.
        """
        with self._turn():
            if self._switch_adapter(source):
                return
            former, before = self._source, self.status
            try:
                self._replace(source)
            except EngineError:
                if former is not None:
                    with suppress(EngineError):  # why the new one failed is the news; the status tells the rest
                        self._replace(former)
                elif self._waiting is not None:
                    self.status = before  # that one can still be had
                raise

    @property
    def waiting(self) -> Source | None:
        """What the next reply loads, while nothing is loaded and there is such a thing."""
        return self._waiting

    def unload(self, again: Callable[[Source], Source]) -> None:
        """Lets go of the model and all its caches once running replies are over, so that others have their memory.

        The next reply that is asked for loads what `again` makes of its source then, since less memory may be free; it
        may raise EngineError.
        """
        with self._turn():
            if self._loaded is None:
                return
            self._waiting, self._again = self._source, again
            self.status = Status("unloaded", self._source.name)
            self._let_go()
        models.give_back()

    def put_by(self, source: Source) -> bool:
        """Lets the next reply load this in the place of what was unloaded; whether that is to be so."""
        with self._turn():
            if self._loaded is not None or self._waiting is None:
                return False
            self._waiting = source
            self.status = Status("unloaded", source.name)
            return True

    def wake(self, cancel: threading.Event) -> Iterator[Waiting | Loading]:
        """Loads what was unloaded, when its turn has come; nothing is done where a model is loaded.

        Raises EngineError, and Cancelled once `cancel` is set.
        """
        if self._loaded is None and self._waiting is not None:
            ticket = object()
            with self._ticket(ticket):
                yield from self._wait(ticket, cancel)
                yield from self._woken(cancel)

    def _woken(self, cancel: threading.Event) -> Iterator[Loading]:
        if self._loaded is not None or self._waiting is None:
            return
        before = self.status
        yield Loading(before.name)
        try:
            self._replace(self._again(self._waiting), cancel)
        except (EngineError, Cancelled):
            self.status = before  # it stays what can be loaded again
            raise

    def _let_go(self) -> None:
        self._loaded = self._source = self._caches = self._draft = self._blocks = self._speed = None

    def _switch_adapter(self, source: Source) -> bool:
        """Whether that was all; if it fails, the former adapter stays."""
        loaded, former = self._loaded, self._source
        if loaded is None or replace(source, adapter=former.adapter) != former or source == former:
            return False
        try:
            if not loaded.can_switch(source.adapter):
                return False
            self._talk(loaded.with_adapter(source.adapter).with_chat_format(source.chat_format), source)
        except (models.CheckpointError, OSError) as error:
            raise EngineError(str(error)) from error
        return True

    def _replace(self, source: Source, cancel: threading.Event | None = None) -> None:
        self._let_go()
        self.status = Status("loading", source.name)
        try:
            loaded = once_more(
                lambda: self._loader(
                    source.path,
                    tier=source.tier,
                    device=source.device,
                    context=source.context,
                    progress=partial(self._progress, cancel),
                    store=source.store,
                    adapter=source.adapter,
                    beside=True,
                )
            )
            self._talk(loaded.with_chat_format(source.chat_format), source)
            self._waiting = None
        except (ValueError, LookupError, OSError, MemoryError, RuntimeError) as error:
            traceback.clear_frames(error.__traceback__)  # they hold what was read, and the former needs its place
            raise EngineError(self._failed(source, _first_line(error) or "memory ran out.")) from error
        finally:
            if self._loaded is None and self.status.state == "loading":  # an error that nobody foresaw goes on
                self._failed(source, "the program failed; its console says how.")

    def use_chat_format(self, name: str | None) -> None:
        """Makes the model talk in another format; None is its own. Raises EngineError where it can't."""
        with self._turn():
            loaded, source = self.loaded, self._source
            try:
                self._talk(loaded.with_chat_format(name), replace(source, chat_format=name))
            except models.CheckpointError as error:
                raise EngineError(str(error)) from error

    def _talk(self, loaded: LoadedModel, source: Source) -> None:
        chat = loaded.chat_format  # reads the tokenizer: a missing file is said before the first question
        self._loaded, self._source = loaded, source
        budget = loaded.needs.cache(loaded.tier, loaded.context) + source.warm
        self._draft = Lookup()
        self._blocks = self._warm and self._warm.blocks(loaded)
        self._caches = CachePool(loaded, budget, partial(self._make_room, loaded), (Cancelled,), self._blocks)
        self.status = Status(
            "ready",
            source.name,
            family=loaded.family,
            chat_format=chat.title,
            base=chat.base,
            adapter=source.adapter.name if source.adapter else "",
            tier=source.tier,
            reason=source.reason,
        )

    def _failed(self, source: Source, reason: str) -> str:
        sentence = f"{source.name} could not be loaded: {reason}"
        self.status = Status("failed", source.name, message=sentence)
        return sentence

    def forget(self) -> None:
        """Lets go of all that was read so far, in memory and on disk, once running replies are over.

        Keys and values are what was read in another form: what is deleted must not stay there.
        """
        with self._turn():
            if self._caches is not None:
                self._caches.clear()
            if self._warm is not None:
                self._warm.clear()

    def stream(
        self, make_plan: Callable[[LoadedModel, Effort], Plan], options: Mapping[str, Any], cancel: threading.Event
    ) -> Iterator[Waiting | Loading | Summarising | Plan | Event]:
        """One reply: its place in the queue, the plan, then the events of generation.

        The plan is made when the turn has come, for the model that answers; `options` are fields of Sampling that
        differ from what its authors recommend. Where memory runs out, another plan follows, which takes less, and the
        reply goes on where it was. Setting `cancel` ends the stream with Cancelled within one token, or one layer of a
        chunk that is being read.
        """
        ticket = object()
        with self._ticket(ticket):
            yield from self._wait(ticket, cancel)
            _raise_if(cancel)
            yield from self._woken(cancel)
            loaded = self._narrowed(self.loaded)
            with _explained():
                events = self._attempts(loaded, make_plan, options, cancel)
                yield from _as_shown(events, loaded.chat_format.shown)

    def _narrowed(self, loaded: LoadedModel) -> LoadedModel:
        return loaded.within(min(self.window, loaded.context)) if self.window else loaded

    def _attempts(
        self,
        loaded: LoadedModel,
        make_plan: Callable[[LoadedModel, Effort], Plan],
        options: Mapping[str, Any],
        cancel: threading.Event,
    ) -> Iterator[Summarising | Plan | Event]:
        """Plans, and the events of the reply. What an attempt has written is the beginning of the next one's reply."""
        plan, effort = self._in_time(partial(make_plan, loaded))
        rungs, written = iter(LADDER), _Written()
        while True:
            if plan.aside is not None and effort.passages is None:  # the first attempt
                yield Summarising()
                plan = self._summarised(loaded, plan, plan.aside, cancel)
            plan = plan.continued(written.ids)
            yield plan.reusing(self._reused(plan))
            _raise_if(cancel)
            try:
                events = self._generate(loaded, plan, effort.chunk, options, cancel)
                yield from written.noting(events)
                return
            except OUT_OF_MEMORY as error:
                if not ran_out(error):
                    raise
                self._caches.clear()
                tried = replace(effort, passages=len(plan.passages), exchanges=plan.exchanges)
                effort = next((less for rung in rungs if (less := rung(tried)) != tried), None)
                if effort is None:
                    raise
            models.give_back()  # behind the except: until the error has gone, it holds on to the attempt's cache
            plan = make_plan(loaded, effort)

    def _reused(self, plan: Plan) -> int:
        ids = plan.prompt.ids
        return self._caches.reusable(ids, len(ids) + plan.reply)

    def _unread(self, plan: Plan) -> int:
        return len(plan.prompt.ids) - self._reused(plan)

    def _in_time(self, make: Callable[[Effort], Plan]) -> tuple[Plan, Effort]:
        """The plan without its weakest passages, as many as cannot be read in time; the best one stays.

        A reply that goes on keeps what it was given. Where older turns take the place of passages, these stay.
        """
        effort = Effort()
        plan = make(effort)
        if not self.reading or self._speed is None or plan.prompt.begun:
            return plan, effort
        most = self.reading * self._speed
        while (unread := self._unread(plan)) > most and len(plan.passages) > 1:
            less = replace(effort, timely=_timely(plan, unread - most))
            shorter = make(less)
            if self._unread(shorter) >= unread:
                break
            plan, effort = shorter, less
        return plan, effort

    def _summarised(self, loaded: LoadedModel, plan: Plan, aside: Aside, cancel: threading.Event) -> Plan:
        """The plan with the summary that it asks for; the plan as it is where that fails in any way, but for Stop."""
        asking = replace(plan, prompt=aside.prompt, ledger=replace(plan.ledger, reply=aside.longest))
        try:
            events = self._generate(loaded, asking, CHUNK, {"temperature": 0.0}, cancel)
            text = "".join(event.text for event in events if isinstance(event, Token)).strip()
            return aside.planned(text) if text else plan
        except BREAKS:
            pass
        models.give_back()
        return plan

    def _generate(
        self, loaded: LoadedModel, plan: Plan, chunk: int, options: Mapping[str, Any], cancel: threading.Event
    ) -> Iterator[Event]:
        prompt, window = plan.prompt, len(plan.prompt.ids) + plan.reply
        sampling = Sampling(**{"end_loops": True, **loaded.chat_format.sampling, **options, "max_tokens": plan.reply})
        with self._caches.lend(prompt.ids, window) as loan:
            loan.cache.on_layer = lambda layer: _raise_if(cancel)
            events = models.generate(
                loaded,
                prompt.ids,
                sampling,
                loan.cache,
                stop_ids=prompt.stop_ids,
                stop_texts=prompt.stop_texts,
                begun=prompt.begun,
                chunk=chunk,
                draft=self._draft,
            )
            with closing(events):
                for event in events:
                    if isinstance(event, Token) and event.id is not None:
                        loan.ids.append(event.id)
                    if isinstance(event, End):
                        self._measured(event.timings)
                    yield event
                    if not isinstance(event, End):
                        _raise_if(cancel)
                    if isinstance(event, Read) and event.done < event.total:
                        self._make_room(loaded, loaded.scratch(window, chunk))

    def _measured(self, timings: Timings) -> None:
        """Remembers how quickly the model has read."""
        read = timings.prompt_tokens - timings.reused
        if read >= MEASURED and timings.read_seconds > 0:
            self._speed = read / timings.read_seconds
        if self._blocks is not None:
            self._blocks.measured(read, timings.read_seconds)

    def _make_room(self, loaded: LoadedModel, nbytes: int) -> None:
        """Gives up caches of earlier prompts where the CPU has not so much left.

        Raises MemoryError where that is not enough: Linux would not refuse it, but end the program.
        """
        if loaded.device.type != "cpu":
            return
        if (free := self._caches.free(nbytes, self._free_memory)) < nbytes:
            raise MemoryError(f"{nbytes / 2**20:,.0f} MiB are needed and {free / 2**20:,.0f} are free")

    def _progress(self, cancel: threading.Event | None, done: int, total: int) -> None:
        if cancel is not None:
            _raise_if(cancel)
        self.status = replace(self.status, done=done, total=total)

    def _wait(self, ticket: object, cancel: threading.Event) -> Iterator[Waiting]:
        told = None
        while (ahead := self._ahead(ticket, told)) > 0:
            if ahead != told:
                told = ahead
                yield Waiting(ahead)
            _raise_if(cancel)

    def _ahead(self, ticket: object, told: int | None) -> int:
        """How many come first; if as many as told before, after waiting a moment for that to change."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue.index(ticket) != told, POLL)
            return self._queue.index(ticket)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        ticket = object()
        with self._ticket(ticket):
            for _ in self._wait(ticket, threading.Event()):
                pass
            yield

    @contextmanager
    def _ticket(self, ticket: object) -> Iterator[None]:
        """A place in the queue. It is not bound to a thread: web servers step one generator from several."""
        with self._changed:
            self._queue.append(ticket)
        try:
            yield
        finally:
            with self._changed:
                self._queue.remove(ticket)
                self._changed.notify_all()


def _timely(plan: Plan, excess: float) -> int:
    """How many passages stay where so many tokens too many are read: the best one in any case."""
    sizes = [entry.tokens for entry in plan.ledger.entries if entry.kind == "passage"]
    stay = len(sizes)
    while excess > 0 and stay > 1:
        stay -= 1
        excess -= sizes[stay]
    return stay


class _Written:
    """What a reply consists of so far, over all attempts at it."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self._since = 0.0

    def noting(self, events: Iterator[Event]) -> Iterator[Event]:
        """The events of one attempt; its end counts the tokens and the time of those before it too."""
        before = len(self.ids)
        for event in events:
            if isinstance(event, Token) and event.id is not None:
                self._since = self._since or time.perf_counter()
                self.ids.append(event.id)
            yield self._whole(event, before) if isinstance(event, End) and before else event

    def _whole(self, end: End, before: int) -> End:
        timings, seconds = end.timings, time.perf_counter() - self._since
        prompt, tokens = timings.prompt_tokens - before, timings.tokens + before
        return replace(end, timings=replace(timings, prompt_tokens=prompt, tokens=tokens, write_seconds=seconds))


def _as_shown(events: Iterator[Plan | Event], shown: Callable[..., str]) -> Iterator[Plan | Event]:
    """The events with the text that the format shows, such as ChatGLM-6B's full-width punctuation."""
    text, given = "", 0
    for event in events:
        if isinstance(event, Token):
            text += event.text
            piece = shown(text, done=False)[given:]
            given += len(piece)
            yield replace(event, text=piece)
        elif isinstance(event, End) and (rest := shown(text)[given:]):
            yield Token(None, rest)
            yield event
        else:
            if isinstance(event, Plan):
                text = ""  # what a former attempt has written comes again; what was given of it does not
            yield event


def _raise_if(cancel: threading.Event) -> None:
    if cancel.is_set():
        raise Cancelled


@contextmanager
def _explained() -> Iterator[None]:
    """What can go wrong inside a model, as a sentence."""
    try:
        yield
    except (EngineError, QuestionTooLong):
        raise
    except BadLogitsError as error:
        raise EngineError(str(error)) from error
    except BREAKS as error:
        raise EngineError(_why(error)) from error


def _why(error: Exception) -> str:
    reason = _first_line(error)
    if ran_out(error):
        if not reason:
            return "The model failed: memory ran out; ask a shorter question, or narrow --context."
        return f"The model failed: memory ran out ({reason}); ask a shorter question, or narrow --context."
    named = f"{type(error).__name__}: {reason}" if isinstance(error, LookupError) or not reason else reason
    return f"The model failed ({named}); ask again, or choose another model or precision."


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]


_WHY_EMPTY = {
    "empty": "No model is loaded; choose one under Model.",
    "loading": "The model is still being loaded; try again when it is ready.",
    "unloaded": "The model was unloaded; press Load under Model.",
}
