"""What an empty chat shows: three things to begin with, which depend on what is there, and where everything stays."""

from __future__ import annotations

from typing import Any

import gradio as gr

from knowledge import KnowledgeBaseError
from knowledge.database import StoredDocument

from .. import checkpoints
from ..checkpoints import FetchError
from ..library import LibraryError
from ..texts import say
from .escaping import escape
from .section import QUIET, Parts, Section, only
from .shelf import number_of

#: Questions that need no documents.
EXAMPLES = ("example_explain", "example_write")
#: A key of each, and what it does.
SHORTCUTS = {
    "Enter": "key_send",
    "Shift+Enter": "key_line",
    "Esc": "key_stop",
    "Ctrl+K": "key_new",
    "↑": "key_edit",
}


def layout() -> Parts:
    return {"welcome": gr.HTML(elem_id="welcome"), "keys": gr.HTML(elem_id="keys")}


def connect(parts: Parts, welcome: Welcome) -> None:
    changes = [parts[name].change for name in ("base", "documents", "state")]
    gr.on(changes, welcome.show, only(parts, "base"), only(parts, "welcome"), trigger_mode="always_last", **QUIET)


class Welcome(Section):
    def open(self, base: Any, request: gr.Request) -> tuple[str, str]:
        """The welcome, and the list of keys."""
        return self.show(base, request), keys(self.language(request))

    def show(self, base: Any, request: gr.Request) -> str:
        language, status = self.language(request), self._chat.engine.status
        lines = [say(language, "stays", folder=f"<code>{escape(str(self._settings.data))}</code>")]
        if status.name.startswith(checkpoints.DEFAULT_MODEL) and status.state == "ready":
            lines.insert(0, f"{say(language, 'trying_out')} {_link('models-0', say(language, 'better_model'))}")
        begin = self._beginnings(self._files(base), language)
        if status.state == "empty" and not self._startup.fetching.total:
            begin = [_link("models-0", say(language, "begin_model")), *begin[:2]]
        items = "".join(f"<li>{item}</li>" for item in begin)
        notes = "".join(f"<p>{line}</p>" for line in lines)
        return f"<h3>{say(language, 'empty')}</h3><ul>{items}</ul>{notes}"

    def _beginnings(self, files: list[StoredDocument], language: str) -> list[str]:
        """Three links: about the newest files, or to questions of any kind and to adding a file."""
        asked = [_example(say(language, key)) for key in EXAMPLES]
        if not files:
            return [*asked, _link("upload-0", say(language, "begin_upload"))]
        newest, name = files[-1], escape(files[-1].name)
        summarise = _link(f"summarise-{number_of(newest)}", say(language, "summarise_asked", name=name))
        about = _example(say(language, "example_about", name=name))
        return [summarise, about, _example(say(language, "example_find", name=escape(files[0].name)))]

    def _files(self, base: Any) -> list[StoredDocument]:
        """Those that can be asked about; a knowledge base that is broken says so at its own place."""
        try:
            files = [file for name in base or () for file in self._chat.library.open(name).documents()]
        except (LibraryError, FetchError, KnowledgeBaseError):
            return []
        return [file for file in files if file.state == "done"]


def keys(language: str) -> str:
    """The keys of the keyboard, behind a button."""
    rows = "".join(f"<dt>{key}</dt><dd>{say(language, text)}</dd>" for key, text in SHORTCUTS.items())
    title = say(language, "keys")
    inside = f'class="icon keys" popovertarget="keys-list" title="{title}"><span>{title}</span>'
    return f'<button type="button" {inside}</button><div popover id="keys-list"><h3>{title}</h3><dl>{rows}</dl></div>'


def _example(text: str) -> str:
    """A question that is asked by a click."""
    return f'<a href="#q-example-0">{text}</a>'


def _link(what: str, text: str) -> str:
    return f'<a href="#q-{what}">{text}</a>'
