"""The model, in the left pane: family, checkpoint, adapter, tier and chat format; its memory; Load and Unload."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

import models

from .. import checkpoints
from ..caches import ORIGINS
from ..checkpoints import Found
from ..choices import LastModel
from ..engine import EngineError, Source
from ..hardware import Machine
from ..planner import Plan
from ..sentences import Sentence
from ..settings import TIERS
from ..texts import say
from . import memory, render
from .escaping import escape
from .section import AWAY, QUIET, Desk, Label, Parts, Section, inform, only, showing, warn

ALL = "*"  #: every family

#: What shows the model that is loaded, or is to be.
MODEL = ("family", "model", "adapter", "tier", "chat_format")
#: The buttons of the states in which there is one.
BUTTONS = {"ready": "unload", "unloaded": "load", "failed": "load"}

#: Seconds between two looks at the engine in the states in which something may happen by itself: what is unloaded is
#: loaded by a message, also by another window's.
TICKS = {"empty": 1, "loading": 1, "unloaded": 3}

#: Seconds in which the same choice is the same event.
TWICE = 1.0


def layout(label: Label) -> Parts:
    family = gr.Dropdown([], label=label("family"), interactive=True, elem_id="family")
    model = gr.Dropdown(
        [], label=label("model"), info=label("model_info"), allow_custom_value=True, interactive=True, elem_id="model"
    )
    adapter = gr.Dropdown([], label=label("adapter"), info=label("adapter_info"), elem_classes=AWAY, elem_id="adapter")
    with gr.Row(elem_id="tier-row"):
        tier = gr.Dropdown([], label=label("tier"), interactive=True, min_width=100, elem_id="tier")
        load = gr.Button(label("load"), variant="primary", size="sm", min_width=80, elem_classes=AWAY, elem_id="load")
        unload = gr.Button(label("unload"), size="sm", min_width=80, elem_classes=AWAY, elem_id="unload")
    state = gr.HTML(elem_id="state")
    models_open = gr.Button(label("models"), size="sm", elem_id="models-open")
    with gr.Accordion(label("model_more"), open=False, elem_id="format-section"):
        chat_format = gr.Dropdown([], label=label("chat_format"), info=label("chat_format_info"), elem_id="format")
    return {
        "models_open": models_open,
        "family": family,
        "model": model,
        "adapter": adapter,
        "tier": tier,
        "chat_format": chat_format,
        "state": state,
        "load": load,
        "unload": unload,
        "timer": gr.Timer(1),  # ticks while something is fetched or loaded, or waits to be, then rests
    }


def connect(parts: Parts, model: Model) -> None:
    loading = only(parts, *OPENED)
    parts["timer"].tick(model.tick, None, loading, **QUIET)
    for name in ("model", "tier"):
        parts[name].input(model.choose_model, only(parts, "model", "tier"), loading, **QUIET)
    parts["load"].click(model.load, only(parts, "model", "tier"), loading, **QUIET)
    parts["unload"].click(model.unload, None, loading, **QUIET)
    parts["family"].input(model.choose_family, only(parts, "family"), only(parts, "model"), **QUIET)
    parts["adapter"].input(model.choose_adapter, only(parts, "adapter"), loading, **QUIET)
    formats = only(parts, "chat_format", "state")
    parts["chat_format"].input(model.choose_format, only(parts, "chat_format"), formats, **QUIET)


#: What `Model.open` fills.
OPENED = (*MODEL, "state", "load", "unload", "timer")


class Model(Section):
    def __init__(self, desk: Desk) -> None:
        super().__init__(desk)
        self._tried = ("", "", 0.0)  #: which choice failed last, and when

    def open(self, request: gr.Request) -> tuple[Any, ...]:
        """OPENED."""
        return *self._models(self.language(request)), *self._shown(request), self._timer()

    def state(self, request: gr.Request) -> str:
        """What is loaded, and why so; where nothing is, what the next reply loads."""
        language, engine = self.language(request), self._chat.engine
        status = engine.status
        embedded = status.name.startswith(checkpoints.DEFAULT_MODEL)
        plan = self._plan()
        status = replace(status, reason=memory.reason(plan, status.reason, language))
        words = render.engine_state(status, self._startup.fetching, self._startup.notes, embedded, language)
        return words + memory.bar(plan, self._startup.machine(), language)

    def _plan(self) -> Plan | None:
        """By which the model runs; of one that waits, as it would run now."""
        engine = self._chat.engine
        if (waiting := engine.waiting) is None or engine.status.state != "unloaded":
            return engine.source.plan if engine.source else None
        try:
            return self._startup.shelf.plan(waiting.path, self._startup.machine(), waiting.asked_tier)
        except models.CheckpointError:
            return waiting.plan  # it has gone since; the next reply says so

    def tick(self, request: gr.Request) -> tuple[Any, ...]:
        """OPENED; the choices only once a model is there, and then the timer rests."""
        timer = self._timer()
        model = (gr.skip(),) * len(MODEL) if timer.active else self._models(self.language(request))
        return *model, *self._shown(request), timer

    def _shown(self, request: gr.Request) -> tuple[Any, ...]:
        """State, and the two buttons."""
        button = BUTTONS.get(self._chat.engine.status.state)
        return self.state(request), *(showing(name == button) for name in ("load", "unload"))

    def _timer(self) -> gr.Timer:
        state = self._chat.engine.status.state
        return gr.Timer(TICKS.get(state, 1), active=state in TICKS)

    def choose_model(self, chosen: str | None, tier: str, request: gr.Request) -> Iterator[tuple[Any, ...]]:
        """Loads a checkpoint of the list, or what was pasted as a path: OPENED. Another tier of the loaded one keeps
        its adapter. After Unload nothing is loaded yet, but the plan is shown."""
        pasted = (chosen or "").strip().strip('"')
        if not pasted or self._is_done(pasted, tier):  # the box was emptied, or left as it was
            yield (*self._models(self.language(request)), *self._shown(request), gr.skip())
            return
        name, source = self._chosen(chosen, pasted, tier)
        if self._chat.engine.waiting is None:
            yield from self._load(source, name, request)
            self._tried = (pasted, tier, time.monotonic())
            return
        try:
            self._chat.engine.put_by(source())
        except EngineError as error:
            warn(error, self.language(request))
        yield self.open(request)

    def _is_done(self, chosen: str, tier: str) -> bool:
        """Whether a choice is what is loaded, or has just failed: a dropdown tells of each twice, when it is made and
        when the box is left, and the second time waits until the first is over."""
        source, (name, asked, at) = self._chat.engine.source, self._tried
        loaded = source is not None and (source.name, source.asked_tier) == (chosen, tier)
        return loaded or ((name, asked) == (chosen, tier) and time.monotonic() - at < TWICE)

    def load(self, chosen: str | None, tier: str, request: gr.Request) -> Iterator[tuple[Any, ...]]:
        """Loads what is chosen, or what was unloaded: OPENED."""
        waiting = self._chat.engine.waiting
        if waiting is not None and waiting.name == (chosen or waiting.name) and waiting.asked_tier == tier:
            yield from self._load(self._startup.anew, waiting.name, request)
        elif chosen:
            name, source = self._chosen(chosen, chosen.strip().strip('"'), tier)
            yield from self._load(source, name, request)
        else:
            yield self.open(request)

    def unload(self, request: gr.Request) -> Iterator[tuple[Any, ...]]:
        """Frees the memory of the model, after the reply that is being written: OPENED."""
        engine = self._chat.engine
        if engine.busy:
            inform(say(self.language(request), "unloads", name=escape(engine.status.name)))
        yield (gr.skip(),) * len(OPENED)
        self._startup.unload()
        yield self.open(request)

    def _chosen(self, chosen: str, pasted: str, tier: str) -> tuple[str, Callable[[], Source]]:
        """A checkpoint of the list or a pasted path: its name, and what makes its plan."""
        path = Path(os.path.expanduser(pasted))
        known = next((found for found in self._found() if chosen == found.name or path == found.path), None)
        path, name = (known.path, known.name) if known else (path, checkpoints.name_of(path))
        current = self._chat.engine.source or self._chat.engine.waiting
        adapter = current.adapter if current and current.path == path else None
        return name, lambda: self._startup.source(path, name, tier or "auto", adapter)

    def choose_adapter(self, chosen: str, request: gr.Request) -> Iterator[tuple[Any, ...]]:
        """Puts an adapter on the loaded model, or takes it away: the same outputs as choose_model."""
        path = self._fitting_adapters().get(chosen)
        yield from self._load(lambda: self._startup.with_adapter(path), chosen, request)

    def _load(self, source: Callable[[], Source], name: str, request: gr.Request) -> Iterator[tuple[Any, ...]]:
        if self._chat.engine.busy:
            said = name or self._chat.engine.status.name
            inform(say(self.language(request), "waits", name=escape(said)))
        yield (*(gr.skip(),) * (len(OPENED) - 1), gr.Timer(1, active=True))
        try:
            self._chat.engine.load(source())
            self._remember()
        except (EngineError, Sentence) as error:
            warn(error, self.language(request))
        yield self.open(request)

    def _remember(self) -> None:
        """For the next start. Raises Sentence where the disk refuses it."""
        loaded = self._chat.engine.source
        if loaded is not None:
            last = LastModel(
                name=loaded.name,
                path=loaded.path.absolute(),
                tier=loaded.asked_tier,
                adapter=loaded.adapter,
                chat_format=loaded.chat_format,
            )
            self._chat.chosen.change(model=last)

    def choose_family(self, family: str, request: gr.Request) -> Any:
        """Shows the checkpoints of one family, or all; the loaded one stays chosen where it is among them."""
        shown, loaded = self.measure(family, request)[1], self._chat.engine.status.name
        return {**shown, "value": loaded if any(name == loaded for _, name in shown["choices"]) else None}

    def measure(self, family: str, request: gr.Request) -> tuple[Any, Any]:
        """Families, and the checkpoints of one, or all, with how each would run: reading that may last a moment."""
        language, found = self.language(request), self._found()
        shown = [each for each in found if family in (ALL, each.family)]
        return self._families(found, language), gr.update(choices=self._choices(shown, language, measured=True))

    def choose_format(self, name: str, request: gr.Request) -> tuple[Any, str]:
        """Makes the model talk in another chat format; if it can't, the former stays: format, state."""
        try:
            self._chat.engine.use_chat_format(name or None)
            self._remember()
        except (EngineError, Sentence) as error:
            warn(error, self.language(request))
        return self._formats(self.language(request)), self.state(request)

    def _models(self, language: str) -> tuple[Any, Any, Any, Any, Any]:
        """MODEL as it is now."""
        found, name = self._found(), self._chat.engine.status.name
        family = {**self._families(found, language), "value": ALL}
        model = gr.update(choices=self._choices(found, language), value=name or None)
        return family, model, self._adapters(language), self._tiers(language), self._formats(language)

    def _families(self, found: list[Found], language: str) -> Any:
        names = {**checkpoints.FAMILIES, "": say(language, "family_other")}
        families = [(names[family], family) for family in names if any(family == each.family for each in found)]
        return gr.update(choices=[(say(language, "family_all"), ALL), *families])

    def _choices(self, found: list[Found], language: str, measured: bool = False) -> list[tuple[str, str]]:
        """Labels and names. Without `measured` nothing is read for them: only what is known already is said."""
        machine = self._startup.machine()
        return [(self._label(each, machine, language, measured), each.name) for each in found]

    def _label(self, found: Found, machine: Machine, language: str, measured: bool) -> str:
        """A name, whose cache it is in, and how it would run; of the one that is loaded the state says that."""
        source, origin = self._chat.engine.source, ORIGINS.get(found.origin, "")
        if source is not None and source.name == found.name:
            return found.name
        fits = self._fits(found, machine, language) if measured or self._startup.shelf.is_known(found.path) else ""
        return " · ".join(part for part in (found.name, origin if origin not in found.name else "", fits) if part)

    def _fits(self, found: Found, machine: Machine, language: str) -> str:
        if found.lacks:
            return say(language, "fits_incomplete")
        try:
            plan = self._startup.shelf.plan(found.path, machine, self._asked_tier())
        except models.CheckpointError:
            return say(language, "fits_unknown")
        return say(language, "fits_at", tier=plan.tier.upper()) if plan.tier else say(language, "fits_not")

    def _adapters(self, language: str) -> Any:
        """The loaded model's; the box is hidden where there are none."""
        source, fitting = self._chat.engine.source, self._fitting_adapters()
        chosen = next((name for name, path in fitting.items() if source and path == source.adapter), "")
        choices = [(say(language, "adapter_none"), ""), *((name, name) for name in fitting)]
        return showing(bool(fitting), choices=choices, value=chosen)

    def _fitting_adapters(self) -> dict[str, Path]:
        """Adapters for the loaded model by name: those found, and the one in use wherever it is."""
        engine = self._chat.engine
        used = engine.source.adapter if engine.source else None
        fitting = {each.name: each.path for each in self._startup.shelf.adapters() if engine.accepts(each.path)}
        return fitting if used is None or used in fitting.values() else {**fitting, str(used): used}

    def _tiers(self, language: str) -> Any:
        choices = [(say(language, "tier_auto"), "auto"), *((tier.upper(), tier) for tier in TIERS[1:])]
        return gr.update(choices=choices, value=self._asked_tier())

    def _asked_tier(self) -> str:
        source = self._chat.engine.source or self._chat.engine.waiting
        return source.asked_tier if source else self._settings.tier

    def _formats(self, language: str) -> Any:
        rows = [(title, name) for name, title in models.chat_formats().items()]
        return gr.update(
            choices=[(say(language, "chat_format_own"), ""), *rows], value=self._chat.engine.chat_format or ""
        )

    def _found(self) -> list[Found]:
        return self._startup.shelf.found()
