"""The settings, on a sheet: what goes for one conversation, for new ones, and for the whole app."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ..choices import SMALLEST_WINDOW
from ..preferences import MOST_PASSAGES, Retrieving
from ..sentences import Sentence
from ..texts import say
from . import about, replies
from .lab import FOLLOWUPS, ORDERS
from .section import QUIET, Desk, Label, Parts, Section, complain, only, status, told
from .sheet import Sheet

LANGUAGES = (("set_auto", "auto"), ("中文", "zh"), ("English", "en"))
THEMES = {"auto": "set_auto", "light": "theme_light", "dark": "theme_dark"}
FULL = {"drop": "full_drop", "summarise": "full_summarise"}
LIMITS = ("window", "reply", "reading")
#: What each of LIMITS may be.
RANGES = {"window": (SMALLEST_WINDOW, 2**20), "reply": (16, 32768), "reading": (0, 3600)}

#: The theme changes at once, and stays for the page that Gradio would otherwise change with the system's.
PAINT = """theme => {
  const dark = theme === "dark" || (theme === "auto" && matchMedia("(prefers-color-scheme: dark)").matches);
  document.body.classList.toggle("dark", dark);
  document.documentElement.style.colorScheme = dark ? "dark" : "light";
}"""
RELOAD = "() => location.reload()"

OPENED = (
    *("language", "theme", "general_note"),
    *replies.OPENED,
    *("full", *LIMITS, "context_note"),
    *("new_passages", "new_threshold", "new_method", "new_followups", "search_note"),
    *about.OPENED,
)


def layout(label: Label) -> Parts:
    parts = Parts()
    with gr.Tabs(elem_id="settings-tabs"):
        with gr.Tab(label("set_general"), id="general"):
            parts |= _general(label)
        with gr.Tab(label("set_replies"), id="replies"):
            parts |= replies.layout_sampling(label)
        with gr.Tab(label("set_role"), id="role"):
            parts |= replies.layout_role(label)
        with gr.Tab(label("set_context"), id="context"):
            parts |= _context(label)
        with gr.Tab(label("set_search"), id="search"):
            parts |= _search(label)
        with gr.Tab(label("set_machine"), id="machine") as tab:
            parts |= about.layout(label) | {"machine_tab": tab}
    return parts


def _general(label: Label) -> Parts:
    languages = [(label(text) if value == "auto" else text, value) for text, value in LANGUAGES]
    themes = [(label(text), value) for value, text in THEMES.items()]
    return {
        "language": gr.Radio(
            languages, label=label("set_language"), info=label("set_language_info"), elem_id="set-language"
        ),
        "theme": gr.Radio(themes, label=label("set_theme"), info=label("set_theme_info"), elem_id="set-theme"),
        "general_note": gr.HTML(elem_id="general-note"),
    }


def _context(label: Label) -> Parts:
    gr.HTML(f'<p class="hint">{label("set_context_info")}</p>')
    choices = [(label(text), value) for value, text in FULL.items()]
    full = gr.Radio(choices, label=label("set_full"), info=label("set_full_info"), elem_id="set-full")
    with gr.Row(elem_classes="numbers"):
        window = gr.Number(label=label("set_window"), info=label("set_window_info"), step=256, elem_id="set-window")
        reply = gr.Number(label=label("set_reply"), info=label("set_reply_info"), step=64, elem_id="set-reply")
        reading = gr.Number(label=label("set_reading"), info=label("set_reading_info"), step=5, elem_id="set-reading")
    with gr.Row():
        save = gr.Button(label("set_save"), variant="primary", size="sm", elem_id="context-save")
        reset = gr.Button(label("set_as_started"), size="sm", elem_id="context-reset")
    return {
        "full": full,
        "window": window,
        "reply": reply,
        "reading": reading,
        "context_save": save,
        "context_reset": reset,
        "context_note": gr.HTML(elem_id="context-note"),
    }


def _search(label: Label) -> Parts:
    gr.HTML(f'<p class="hint">{label("set_search_info")}</p>')
    orders = [(label(text), value) for value, text in ORDERS.items()]
    followups = [(label(text), value) for value, text in FOLLOWUPS.items()]
    return {
        "new_passages": gr.Slider(1, MOST_PASSAGES, step=1, label=label("lab_passages"), elem_id="new-passages"),
        "new_threshold": gr.Slider(0, 1, step=0.05, label=label("lab_threshold"), elem_id="new-threshold"),
        "new_method": gr.Radio(orders, label=label("lab_method"), elem_id="new-method"),
        "new_followups": gr.Radio(
            followups, label=label("lab_followups"), info=label("lab_followups_info"), elem_id="new-followups"
        ),
        "search_save": gr.Button(label("set_for_new"), variant="primary", size="sm", elem_id="search-save"),
        "search_note": gr.HTML(elem_id="search-note"),
    }


def connect(sheet: Sheet, parts: Parts, desk: Desk) -> None:
    general, told = General(desk), about.About(desk)
    sheet.connect(parts["settings_open"], general.open, only(parts, "conversation"), only(parts, *OPENED))
    noted = only(parts, "general_note")
    parts["language"].input(general.speak, only(parts, "language"), noted, **QUIET).success(None, js=RELOAD)
    parts["theme"].input(general.paint, only(parts, "theme"), noted, **QUIET).success(
        None, only(parts, "theme"), js=PAINT
    )
    kept = only(parts, "full", *LIMITS, "context_note")
    parts["context_save"].click(general.keep_context, only(parts, "full", *LIMITS), kept, **QUIET)
    parts["context_reset"].click(general.reset_context, None, kept, **QUIET)
    searched = only(parts, "new_passages", "new_threshold", "new_method", "new_followups")
    parts["search_save"].click(general.keep_search, searched, only(parts, "search_note"), **QUIET)
    replies.connect(parts, general.replies)
    about.connect(parts, told)


class General(Section):
    def __init__(self, desk: Desk) -> None:
        super().__init__(desk)
        self.replies = replies.Replies(desk)

    def open(self, conversation: str | None, request: gr.Request) -> tuple[Any, ...]:
        """OPENED."""
        language, chosen = self.language(request), self._chat.chosen
        problem = complain(chosen.problem, language) if chosen.problem else ""
        how = chosen.now.defaults.retrieval or Retrieving()
        return (
            *(chosen.now.language, chosen.now.theme, problem),
            *self.replies.open(conversation, request),
            *self._context(language),
            "",
            *(how.passages, how.threshold, how.method, chosen.now.defaults.followups or "rule", ""),
            *about.CLOSED,
        )

    def speak(self, language: str, request: gr.Request) -> str:
        """Lets the whole app speak a language; the page is to be loaded anew."""
        self._choose(request, language=language)
        return ""

    def paint(self, theme: str, request: gr.Request) -> str:
        self._choose(request, theme=theme)
        return status(say(self.language(request), "set_kept"))

    def _choose(self, request: gr.Request, **changes: Any) -> None:
        """What follows upon it in the browser is not to happen where it fails, so that it ends with Gradio's error."""
        try:
            self._chat.choose_for_all(**changes)
        except Sentence as error:
            raise gr.Error(told(error, self.language(request))) from error

    def keep_context(
        self, full: str, window: float | None, reply: float | None, reading: float | None, request: gr.Request
    ) -> tuple[Any, ...]:
        """Spends windows like this from the next turn on: what is in force then, and what to say."""
        language = self.language(request)
        start = self._chat.chosen.start
        numbers = dict(zip(LIMITS, (window, reply, reading), strict=True))
        try:
            _check(numbers, language)
            changes = {"summarise": full == "summarise", **{name: _whole(value) for name, value in numbers.items()}}
            # Only what differs is chosen: the rest follows the command line of later starts.
            differing = {name: None if value == getattr(start, name) else value for name, value in changes.items()}
            self._chat.choose_for_all(**differing)
        except Sentence as error:
            return (*(gr.skip(),) * 4, complain(error, language))
        return *self._context(language), status(say(language, "set_kept"))

    def reset_context(self, request: gr.Request) -> tuple[Any, ...]:
        """As `keep_context`, with what the app was started with."""
        language = self.language(request)
        try:
            self._chat.choose_for_all(summarise=None, window=None, reply=None, reading=None)
        except Sentence as error:
            return (*(gr.skip(),) * 4, complain(error, language))
        return *self._context(language), status(say(language, "set_kept"))

    def _context(self, language: str) -> tuple[Any, ...]:
        policy, start, now = self._chat.chosen.policy, self._chat.chosen.start, self._chat.chosen.now
        whole = self._chat.engine.longest
        hints = {
            "window": say(language, "window_whole", value=f"{whole:,}") if whole else say(language, "set_by_model"),
            "reply": say(language, "set_start", value=start.reply),
            "reading": say(language, "set_start", value=f"{start.reading:g}"),
        }
        numbers = [gr.update(value=getattr(now, name), placeholder=hints[name]) for name in LIMITS]
        return "summarise" if policy.summarise else "drop", *numbers

    def keep_search(self, passages: int, threshold: float, method: str, followups: str, request: gr.Request) -> str:
        """Lets new conversations search like this."""
        language = self.language(request)
        how = Retrieving(passages=int(passages), threshold=threshold, method=method)
        changed = {"retrieval": how, "followups": followups}
        try:
            self._chat.choose_for_all(defaults=self._chat.chosen.now.defaults.model_copy(update=changed))
        except Sentence as error:
            return complain(error, language)
        return status(say(language, "set_kept_new"))


def _check(numbers: dict[str, float | None], language: str) -> None:
    names = {"window": "set_window", "reply": "set_reply", "reading": "set_reading"}
    for name, value in numbers.items():
        least, greatest = RANGES[name]
        if value is not None and not least <= value <= greatest:
            raise Sentence("set_range", name=say(language, names[name]), least=least, greatest=f"{greatest:,}")


def _whole(value: float | None) -> float | int | None:
    return int(value) if value is not None and float(value).is_integer() else value
