"""The one loaded model and its queue: load, switch, unload, stream, cancel."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import models
from models import BadLogitsError, End, Event, LoadedModel, Sampling, Token

from .conversation import Plan

#: How often a waiting request looks whether it was cancelled or has moved up, in seconds.
POLL = 0.2


class EngineError(RuntimeError):
    """Nothing can be generated now; the text is one sentence for the user."""


class Cancelled(Exception):
    """The user stopped the turn."""


@dataclass(frozen=True)
class Waiting:
    """`ahead` requests come first."""

    ahead: int


@dataclass(frozen=True)
class Status:
    """What the engine holds. `state` is "empty", "loading", "ready" or "failed"; `message` explains a failure."""

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


class Engine:
    """Requests are served one at a time, in the order they came."""

    def __init__(self, loader: Callable[..., LoadedModel] = models.load) -> None:
        self._loader = loader
        self._loaded: LoadedModel | None = None
        self._source: Source | None = None
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
    def busy(self) -> bool:
        """Whether anything is being served."""
        return bool(self._queue)

    @property
    def nbytes(self) -> int:
        """Bytes of the loaded model's weights."""
        return self._loaded.nbytes if self._loaded else 0

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
            former = self._source
            try:
                self._replace(source)
            except EngineError:
                if former is not None:
                    with suppress(EngineError):  # why the new one failed is the news; the status tells the rest
                        self._replace(former)
                raise

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

    def _replace(self, source: Source) -> None:
        self._loaded = self._source = None
        self.status = Status("loading", source.name)
        try:
            loaded = self._loader(
                source.path,
                tier=source.tier,
                device=source.device,
                context=source.context,
                progress=self._progress,
                store=source.store,
                adapter=source.adapter,
                beside=True,
            )
            self._talk(loaded.with_chat_format(source.chat_format), source)
        except (ValueError, LookupError, OSError, MemoryError, RuntimeError) as error:
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

    def stream(
        self, make_plan: Callable[[LoadedModel], Plan], options: Mapping[str, Any], cancel: threading.Event
    ) -> Iterator[Waiting | Plan | Event]:
        """One reply: its place in the queue, the plan, then the events of generation.

        The plan is made when the turn has come, for the model that answers; `options` are fields of Sampling that
        differ from what its authors recommend. Setting `cancel` ends the stream with Cancelled within one token, or
        one layer of a chunk that is being read.
        """
        ticket = object()
        with self._ticket(ticket):
            yield from self._wait(ticket, cancel)
            _raise_if(cancel)
            loaded = self.loaded
            plan = make_plan(loaded)
            yield plan
            with _explained():
                yield from self._generate(loaded, plan, options, cancel)

    def _generate(
        self, loaded: LoadedModel, plan: Plan, options: Mapping[str, Any], cancel: threading.Event
    ) -> Iterator[Event]:
        prompt = plan.prompt
        sampling = Sampling(**{**loaded.chat_format.sampling, **options, "max_tokens": plan.reply})
        cache = loaded.new_cache(len(prompt.ids) + plan.reply)
        cache.on_layer = lambda layer: _raise_if(cancel)
        events = models.generate(
            loaded,
            prompt.ids,
            sampling,
            cache,
            stop_ids=prompt.stop_ids,
            stop_texts=prompt.stop_texts,
            begun=prompt.begun,
        )
        with closing(events):
            for event in _as_shown(events, loaded.chat_format.shown):
                yield event
                if not isinstance(event, End):
                    _raise_if(cancel)

    def _progress(self, done: int, total: int) -> None:
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


def _as_shown(events: Iterator[Event], shown: Callable[..., str]) -> Iterator[Event]:
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
            yield event


def _raise_if(cancel: threading.Event) -> None:
    if cancel.is_set():
        raise Cancelled


@contextmanager
def _explained() -> Iterator[None]:
    """What can go wrong inside a model, as a sentence."""
    try:
        yield
    except BadLogitsError as error:
        raise EngineError(str(error)) from error
    except (LookupError, MemoryError, RuntimeError) as error:  # PyTorch says that memory ran out by a RuntimeError
        reason = _first_line(error) or "memory ran out"
        raise EngineError(f"The model failed ({reason}); ask a shorter question or narrow --context.") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]


_WHY_EMPTY = {
    "empty": "No model is loaded; choose one under Model.",
    "loading": "The model is still being loaded; try again when it is ready.",
}
