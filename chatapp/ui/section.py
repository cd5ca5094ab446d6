"""What the sections of the page share: the application, the language, and the replies that can be stopped."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr

from ..downloads.hubs import HubError
from ..sentences import Sentence, localised
from ..session import Chat
from ..settings import Settings
from ..startup import Startup
from ..texts import preferred
from .escaping import escape

#: Gives a text of the catalogue, translated in the browser, whose language document.py has set.
Label = Callable[[str], Any]


class Parts(dict[str, Any]):
    """Components by name, of a section or of the page, which has each name once."""

    def __ior__(self, others: Mapping[str, Any]) -> Parts:
        return Parts(**self, **others)  # a TypeError for a name that two have


#: Makes events of the buttons in an HTML component of ours.
PRESSED = Path(__file__).with_name("scripts") / "pressed" / "pressed.js"

#: Gradio's sign of work in progress would lie over texts that are still to be read.
QUIET: dict[str, Any] = {"show_progress": "hidden"}

#: The class of what is on the page and not shown (style/page.css). Gradio's own `visible` makes the browser draw all of
#: the page anew, and what else happens in that moment can be lost, with all that comes after it.
AWAY = "away"

Kept = dict[str, Any]
"""What the browser remembers across a reload: {"conversation": id, "base": preferences.Asked}. A handler that has it as
an output always returns it: Gradio would store a skip as its value."""


@dataclass(frozen=True)
class Desk:
    """One for all browsers; what belongs to one of them is kept there, or under its session."""

    settings: Settings
    chat: Chat
    startup: Startup
    cancels: dict[str, threading.Event] = field(default_factory=dict)
    chosen: dict[str, str | None] = field(default_factory=dict)  #: the conversation that a session went to

    def language(self, request: gr.Request) -> str:
        return self.fixed_language or preferred(request.headers.get("accept-language", ""))

    @property
    def fixed_language(self) -> str | None:
        """What was chosen on the page, else on the command line; None: the browser's."""
        chosen = (self.chat.chosen.now.language, self.settings.lang)
        return next((language for language in chosen if language != "auto"), None)

    def begin(self, request: gr.Request) -> threading.Event:
        """What stops the session's reply from now on."""
        self.chosen.pop(request.session_hash or "", None)
        cancel = self.cancels[request.session_hash or ""] = threading.Event()
        return cancel

    def shows(self, cancel: threading.Event, request: gr.Request) -> bool:
        """Whether the page still waits for the reply that this one stops."""
        return self.cancels.get(request.session_hash or "") is cancel

    def stop(self, request: gr.Request) -> None:
        """Ends the session's reply within a token, or a layer of what is being read."""
        if cancel := self.cancels.get(request.session_hash or ""):
            cancel.set()

    def go(self, conversation: str | None, request: gr.Request) -> None:
        """The session shows another conversation."""
        self.leave(request)
        self.chosen[request.session_hash or ""] = conversation

    def went(self, request: gr.Request) -> list[str | None]:
        """The conversation that the session has gone to and written nothing in since, if it has."""
        session = request.session_hash or ""
        return [self.chosen[session]] if session in self.chosen else []

    def leave(self, request: gr.Request) -> None:
        """Nobody waits for the session's reply any more."""
        self.chosen.pop(request.session_hash or "", None)
        if cancel := self.cancels.pop(request.session_hash or "", None):
            cancel.set()


class Section:
    """Handlers turn events into calls of the application, and results into updates."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._settings, self._chat, self._startup = desk.settings, desk.chat, desk.startup
        self.language = desk.language


def only(parts: Parts, *names: str) -> list[Any]:
    """Components by name, as inputs or outputs of an event."""
    return [parts[name] for name in names]


def joined(files: Iterable[Path]) -> str:
    """Style sheets or scripts, one behind the other."""
    return "\n".join(file.read_text(encoding="utf-8") for file in files)


def hint(html: str) -> str:
    return f'<p class="hint">{html}</p>'


def status(sentence: str) -> str:
    """What was done, for all to see and to hear."""
    return f'<p class="told" role="status">{sentence}</p>'


def showing(really: bool, **changes: Any) -> Any:
    """Shows a component or takes it away, and changes more of it; one that is away at first has AWAY in its layout."""
    return gr.update(elem_classes=[] if really else [AWAY], **changes)


def complain(error: Sentence, language: str) -> str:
    """Why something was not done, in its place."""
    return f'<p class="told bad" role="alert">{escape(error.said(language))}</p>'


def told(error: Exception, language: str) -> str:
    """An error's sentence in the language of the page, harmless as HTML."""
    return escape(error.said(language) if isinstance(error, HubError | Sentence) else localised(str(error), language))


def inform(html: str, seconds: float | None = 10) -> None:
    """Shown for a while, or with None until it is closed."""
    gr.Info(html, duration=seconds)


def warn(error: Exception, language: str) -> None:
    """Shown until it is closed. Gradio takes messages for HTML, and a sentence may name a file of any name."""
    gr.Warning(told(error, language), duration=None)


def busy() -> Any:
    """The input while a reply is written."""
    return gr.update(value="", submit_btn=False, stop_btn=True)


def idle() -> Any:
    return gr.update(submit_btn=True, stop_btn=False)
