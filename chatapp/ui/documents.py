"""The knowledge bases and their files, in the left pane."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import gradio as gr

from knowledge import Ingested, KnowledgeBaseError, Status
from knowledge.database import UNFINISHED, StoredDocument

from ..checkpoints import FetchError
from ..library import LibraryError
from ..texts import say
from . import render
from .escaping import escape
from .section import QUIET, Kept, Label, Parts, Section, hint, only, warn

#: What is asked again while files are read or embedded.
WATCHED = ("documents", "halt", "password", "watch")


def layout(label: Label) -> Parts:
    base = gr.Dropdown([], label=label("base"), info=label("base_info"), interactive=True, elem_id="base")
    files = gr.File(label=label("upload"), show_label=False, file_count="multiple", height=96, elem_id="files")
    files.preprocess = _uploaded
    documents = gr.HTML(elem_id="documents")
    halt = gr.Button(size="sm", visible=False, elem_id="halt")
    password = gr.Textbox(
        label=label("password"), info=label("password_info"), type="password", visible=False, elem_id="password"
    )
    with gr.Accordion(label("base_new"), open=False, elem_id="new-base-section"):
        new_base = gr.Textbox(
            label=label("base_new"), show_label=False, placeholder=label("base_new_hint"), elem_id="new-base"
        )
    return {
        "base": base,
        "files": files,
        "documents": documents,
        "halt": halt,
        "password": password,
        "new_base": new_base,
        "watch": gr.Timer(2, active=False),  # ticks while files of the knowledge base are being read or embedded
    }


def connect(parts: Parts, documents: Documents) -> None:
    watched = only(parts, *WATCHED)
    parts["watch"].tick(documents.watch_base, only(parts, "base"), watched, **QUIET)
    parts["halt"].click(documents.halt, only(parts, "base"), watched, queue=False)
    parts["password"].submit(documents.unlock, only(parts, "password", "base"), watched, **QUIET)
    parts["base"].input(documents.watch_base, only(parts, "base"), watched, **QUIET)
    parts["base"].change(documents.keep_base, only(parts, "base", "kept"), only(parts, "kept"), **QUIET)
    made = only(parts, "base", "documents", "new_base", "kept")
    parts["new_base"].submit(documents.new_base, only(parts, "new_base", "kept"), made, **QUIET)
    added = only(parts, "base", "documents", "files", "halt", "password")
    parts["files"].upload(documents.add_files, only(parts, "files", "base"), added, **QUIET)


class Documents(Section):
    def open(self, base: str | None, request: gr.Request) -> tuple[Any, ...]:
        """The knowledge base that is asked, unless it is gone, and WATCHED."""
        language, known = self.language(request), self._known_base(base)
        return self._bases(known, language), *self._looked_at(known, (), language)

    def keep_base(self, base: str | None, kept: Kept) -> Kept:
        return {**kept, "base": base or None}

    def watch_base(self, base: str | None, request: gr.Request) -> tuple[Any, ...]:
        """The documents of a knowledge base, and `_halting`."""
        return self._looked_at(base or None, (), self.language(request))

    def unlock(self, password: str, base: str | None, request: gr.Request) -> tuple[Any, ...]:
        """Tries a password on the files of a knowledge base that need one."""
        try:
            if base and password:
                self._chat.library.unlock(base, password)
        except (LibraryError, FetchError, KnowledgeBaseError) as error:
            warn(error)
        documents, button, box, timer = self.watch_base(base, request)
        return documents, button, {**box, "value": ""}, timer

    def halt(self, base: str | None, request: gr.Request) -> tuple[Any, ...]:
        """Stops the work on a knowledge base's files, or goes on with those that were stopped."""
        try:
            if base and not self._chat.library.stop(base):
                self._chat.library.resume(base)
        except (LibraryError, FetchError, KnowledgeBaseError) as error:
            warn(error)
        return self.watch_base(base, request)

    def _halting(self, files: Sequence[StoredDocument], language: str) -> tuple[Any, Any, Any]:
        """The button that says Stop while files are not finished, then Carry on if some were stopped; the box for a
        password if some need one; and the timer, which asks again while files are not finished."""
        states = {file.state for file in files}
        unfinished = not states.isdisjoint(UNFINISHED)
        text = say(language, "ingest_stop" if unfinished else "ingest_carry_on")
        button = gr.update(value=text, visible=unfinished or "cancelled" in states)
        return button, gr.update(visible=any(file.locked for file in files)), gr.Timer(active=unfinished)

    def new_base(self, name: str, kept: Kept, request: gr.Request) -> tuple[Any, ...]:
        """Makes a knowledge base: base, documents, the name's box, kept."""
        language = self.language(request)
        try:
            base = self._chat.library.create(name)
        except LibraryError as error:
            warn(error)
            return (*(gr.skip(),) * 3, kept)
        return self._bases(base, language), self._documents(base, (), language), "", {**kept, "base": base}

    def add_files(
        self,
        files: list[tuple[str, str]] | None,
        base: str | None,
        request: gr.Request,
    ) -> Iterator[tuple[Any, ...]]:
        """Ingests uploaded (path, name) pairs: base, documents, the drop zone, the button that stops
        it, the box for a password. Makes a first base if need be."""
        language = self.language(request)
        if not files:
            yield (gr.skip(),) * 5
            return
        base = base or self._first_base(language)
        outcomes: list[Ingested] = []
        try:
            yield gr.skip(), render.ingesting(0, 1, say(language, "reading_file")), None, gr.skip(), gr.skip()
            knowledge_base = self._chat.library.open(base)
            # The base is the one that is asked from now on: its files can be searched as soon as they are read.
            yield self._bases(base, language), *(gr.skip(),) * 4
            named = [(Path(path), name) for path, name in files]
            for step in _watched(lambda report: knowledge_base.ingest(named, progress=report)):
                if isinstance(step, tuple):
                    status = knowledge_base.status()
                    shown = self._ingesting(status, step, language)
                    yield gr.skip(), shown, gr.skip(), self._halting(status.files, language)[0], gr.skip()
                else:
                    outcomes = step
        except (LibraryError, FetchError, KnowledgeBaseError, OSError) as error:
            warn(error)
        finally:
            for path, _ in files:  # the knowledge base has its own copy
                Path(path).unlink(missing_ok=True)
        documents, button, box, _ = self._looked_at(base, outcomes, language)
        yield self._bases(base, language), documents, gr.skip(), button, box

    def _ingesting(self, status: Status, step: tuple[int, int, str], language: str) -> str:
        shown = (
            render.ingesting(*step),
            render.left(status.seconds, language),
            render.documents(status.files, (), language),
        )
        return "".join(shown)

    def _first_base(self, language: str) -> str:
        name = say(language, "base_default")
        return name if name in self._chat.library.names() else self._chat.library.create(name)

    def asked(self, base: str | None, language: str) -> tuple[Any, Any]:
        """A knowledge base as the one that is asked, unless it is gone: base, documents."""
        known = self._known_base(base)
        return self._bases(known, language), self._documents(known, (), language)

    def _known_base(self, base: str | None) -> str | None:
        return base if base in self._chat.library.names() else None

    def _bases(self, chosen: str | None, language: str) -> Any:
        names = [(name, name) for name in self._chat.library.names()]
        return gr.update(choices=[(say(language, "base_none"), ""), *names], value=chosen or "")

    def _documents(self, base: str | None, outcomes: Any, language: str) -> str:
        return self._looked_at(base, outcomes, language)[0]

    def _looked_at(self, base: str | None, outcomes: Any, language: str) -> tuple[str, Any, Any, Any]:
        """The documents of a knowledge base, and `_halting`: of one look, since the page asks every other second."""
        try:
            files = self._chat.library.open(base).status().files if base else ()
            shown = render.documents(files, outcomes, language) if base else ""
        except (LibraryError, FetchError, KnowledgeBaseError) as error:
            files, shown = (), hint(f"⚠ {escape(str(error))}")
        return shown, *self._halting(files, language)


def _watched(work: Callable[[Callable[..., None]], list[Ingested]]) -> Iterator[tuple[int, int, str] | list[Ingested]]:
    """Runs work in a thread: its latest reports as they come, then its result."""
    reports: queue.SimpleQueue[tuple[int, int, str]] = queue.SimpleQueue()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work, lambda *report: reports.put(report))
        while not future.done():
            wait([future], timeout=0.3)
            latest = None
            while not reports.empty():
                latest = reports.get()
            if latest is not None:
                yield latest
        yield future.result()


def _uploaded(payload: Any) -> list[tuple[str, str]] | None:
    """(path, name) of each upload, by the name it had on the user's disk: Gradio's path has lost characters of it."""
    return None if payload is None else [(file.path, file.orig_name or Path(file.path).name) for file in payload]
