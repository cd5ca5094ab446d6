"""The model, in the left pane: family, checkpoint, adapter, tier and chat format."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr

import models

from .. import checkpoints
from ..engine import EngineError, Source
from ..settings import TIERS
from ..texts import say
from . import render
from .escaping import escape
from .section import QUIET, Label, Parts, Section, only, warn

ALL = "*"  #: every family

#: What shows the loaded model.
MODEL = ("family", "model", "adapter", "tier", "chat_format")


def layout(label: Label) -> Parts:
    family = gr.Dropdown([], label=label("family"), interactive=True, elem_id="family")
    model = gr.Dropdown(
        [], label=label("model"), info=label("model_info"), allow_custom_value=True, interactive=True, elem_id="model"
    )
    adapter = gr.Dropdown([], label=label("adapter"), info=label("adapter_info"), visible=False, elem_id="adapter")
    state = gr.HTML(elem_id="state")
    with gr.Accordion(label("model_more"), open=False, elem_id="format-section"):
        tier = gr.Dropdown([], label=label("tier"), info=label("tier_info"), interactive=True, elem_id="tier")
        chat_format = gr.Dropdown([], label=label("chat_format"), info=label("chat_format_info"), elem_id="format")
    models_open = gr.Button(label("models"), size="sm", elem_id="models-open")
    return {
        "models_open": models_open,
        "family": family,
        "model": model,
        "adapter": adapter,
        "tier": tier,
        "chat_format": chat_format,
        "state": state,
        "timer": gr.Timer(1),  # ticks while something is being fetched or loaded, then rests
    }


def connect(parts: Parts, model: Model) -> None:
    loading = only(parts, *MODEL, "state", "timer")
    parts["timer"].tick(model.tick, None, loading, **QUIET)
    for name in ("model", "tier"):
        parts[name].input(model.choose_model, only(parts, "model", "tier"), loading, **QUIET)
    parts["family"].input(model.choose_family, only(parts, "family"), only(parts, "model"), **QUIET)
    parts["adapter"].input(model.choose_adapter, only(parts, "adapter"), loading, **QUIET)
    formats = only(parts, "chat_format", "state")
    parts["chat_format"].input(model.choose_format, only(parts, "chat_format"), formats, **QUIET)


class Model(Section):
    def open(self, request: gr.Request) -> tuple[Any, ...]:
        """MODEL, state and timer."""
        return *self._models(self.language(request)), self.state(request), self._timer()

    def state(self, request: gr.Request) -> str:
        status = self._chat.engine.status
        embedded = status.name.startswith(checkpoints.DEFAULT_MODEL)
        return render.engine_state(
            status, self._startup.fetching, self._startup.notes, embedded, self.language(request)
        )

    def tick(self, request: gr.Request) -> tuple[Any, ...]:
        """Family, model, adapter, tier, chat format, state, and whether to go on asking: not once a model is there."""
        timer = self._timer()
        model = (gr.skip(),) * 5 if timer.active else self._models(self.language(request))
        return *model, self.state(request), timer

    def _timer(self) -> gr.Timer:
        return gr.Timer(active=self._chat.engine.status.state in ("empty", "loading"))

    def choose_model(self, chosen: str | None, tier: str, request: gr.Request) -> Iterator[tuple[Any, ...]]:
        """Loads a checkpoint of the list, or what was pasted as a path: family, model, adapter, tier, format, state,
        timer. Another tier of the loaded one keeps its adapter."""
        language = self.language(request)
        pasted = (chosen or "").strip().strip('"')
        if not pasted:  # the box was emptied
            yield (*self._models(language), self.state(request), gr.skip())
            return
        known = {found.name: found.path for found in self._found()}
        path = known.get(chosen) or Path(os.path.expanduser(pasted))
        name = chosen if chosen in known else checkpoints.name_of(path)
        loaded = self._chat.engine.source
        adapter = loaded.adapter if loaded and loaded.path == path else None
        yield from self._load(lambda: self._startup.source(path, name, tier or "auto", adapter), name, request)

    def choose_adapter(self, chosen: str, request: gr.Request) -> Iterator[tuple[Any, ...]]:
        """Puts an adapter on the loaded model, or takes it away: the same outputs as choose_model."""
        path = self._fitting_adapters().get(chosen)
        yield from self._load(lambda: self._startup.with_adapter(path), chosen, request)

    def _load(self, source: Callable[[], Source], name: str, request: gr.Request) -> Iterator[tuple[Any, ...]]:
        language = self.language(request)
        if self._chat.engine.busy:
            gr.Info(say(language, "waits", name=escape(name or self._chat.engine.status.name)))
        yield (*(gr.skip(),) * 6, gr.Timer(active=True))
        try:
            self._chat.engine.load(source())
        except EngineError as error:
            warn(error)
        yield (*self._models(language), self.state(request), gr.Timer(active=False))

    def choose_family(self, family: str) -> Any:
        """Shows the checkpoints of one family, or all; the loaded one stays chosen where it is among them."""
        names = [found.name for found in self._found() if family in (ALL, found.family)]
        loaded = self._chat.engine.status.name
        return gr.update(choices=names, value=loaded if loaded in names else None)

    def choose_format(self, name: str, request: gr.Request) -> tuple[Any, str]:
        """Makes the model talk in another chat format; if it can't, the former stays: format, state."""
        try:
            self._chat.engine.use_chat_format(name or None)
        except EngineError as error:
            warn(error)
        return self._formats(self.language(request)), self.state(request)

    def _models(self, language: str) -> tuple[Any, Any, Any, Any, Any]:
        """Family, model, adapter, tier and chat format as they are now."""
        found, status = self._found(), self._chat.engine.status
        names = {**checkpoints.FAMILIES, "": say(language, "family_other")}
        families = [(names[family], family) for family in names if any(family == each.family for each in found)]
        family = gr.update(choices=[(say(language, "family_all"), ALL), *families], value=ALL)
        model = gr.update(choices=[each.name for each in found], value=status.name or None)
        return family, model, self._adapters(language), self._tiers(language), self._formats(language)

    def _adapters(self, language: str) -> Any:
        """The loaded model's; the box is hidden where there are none."""
        source, fitting = self._chat.engine.source, self._fitting_adapters()
        chosen = next((name for name, path in fitting.items() if source and path == source.adapter), "")
        choices = [(say(language, "adapter_none"), ""), *((name, name) for name in fitting)]
        return gr.update(choices=choices, value=chosen, visible=bool(fitting))

    def _fitting_adapters(self) -> dict[str, Path]:
        """Adapters for the loaded model by name: those found, and the one in use wherever it is."""
        engine = self._chat.engine
        used = engine.source.adapter if engine.source else None
        found = checkpoints.find_adapters(self._settings.checkpoint_folders)
        fitting = {each.name: each.path for each in found if engine.accepts(each.path)}
        return fitting if used is None or used in fitting.values() else {**fitting, str(used): used}

    def _tiers(self, language: str) -> Any:
        source = self._chat.engine.source
        choices = [(say(language, "tier_auto"), "auto"), *((tier.upper(), tier) for tier in TIERS[1:])]
        return gr.update(choices=choices, value=source.asked_tier if source else self._settings.tier)

    def _formats(self, language: str) -> Any:
        rows = [(title, name) for name, title in models.chat_formats().items()]
        return gr.update(
            choices=[(say(language, "chat_format_own"), ""), *rows], value=self._chat.engine.chat_format or ""
        )

    def _found(self) -> list[checkpoints.Found]:
        return checkpoints.find(self._settings.checkpoint_folders)
