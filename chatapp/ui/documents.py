"""The knowledge bases and their files, in the left pane; and files that are put beside a question, at the input."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from knowledge import Ingested, KnowledgeBaseError
from knowledge.database import UNFINISHED, StoredDocument
from knowledge.documents import READERS

from ..checkpoints import FetchError
from ..library import Batch, LibraryError
from ..preferences import Asked, names_of
from ..sentences import localised
from ..session import Beside
from ..texts import say
from . import shelf
from .escaping import escape
from .section import AWAY, QUIET, Kept, Label, Parts, Section, hint, inform, joined, only, showing, told, warn
from .shelf import Shelf

#: They run once, in one scope with the `trigger` of the list of files.
SCRIPTS = Path(__file__).with_name("scripts") / "documents"
#: Files from which on they can be filtered by name.
MANY = 9
#: Brings the list into view, where what has become of added files is told.
SHOW_LIST = "() => document.getElementById('documents')?.scrollIntoView({ block: 'nearest' })"
FAILURES = (LibraryError, FetchError, KnowledgeBaseError, OSError, LookupError)

#: What is asked again while files are read or embedded.
WATCHED = ("documents", "ingesting", "halt", "password", "filter", "chips", "watch")
#: What changes with the knowledge bases that are asked: where files go, and what can be done with that base.
MANAGED = ("target", "manage", "rename", "doomed")
Uploads = list[tuple[str, str]]
"""(path, name) of files."""


def layout(label: Label) -> Parts:
    base = gr.CheckboxGroup([], label=label("base"), info=label("base_info"), elem_id="base")
    files = gr.File(label=label("upload"), show_label=False, file_count="multiple", height=96, elem_id="files")
    files.preprocess = _uploaded
    target = gr.HTML(elem_id="target")
    ingesting = gr.HTML(elem_id="ingesting")
    arrivals = gr.HTML(elem_id="arrivals")
    filter = gr.Textbox(
        label=label("filter"),
        show_label=False,
        placeholder=label("filter"),
        interactive=True,
        max_lines=1,
        elem_classes=AWAY,
        elem_id="filter",
    )
    documents = gr.HTML(js_on_load=joined(sorted(SCRIPTS.glob("*.js"))), elem_id="documents")
    halt = gr.Button(size="sm", elem_classes=AWAY, elem_id="halt")
    password = gr.Textbox(
        label=label("password"), info=label("password_info"), type="password", elem_classes=AWAY, elem_id="password"
    )
    with gr.Accordion(label("base_new"), open=False, elem_id="new-base-section"):
        new_base = gr.Textbox(
            label=label("base_new"), show_label=False, placeholder=label("base_new_hint"), elem_id="new-base"
        )
    with gr.Accordion(label("base_manage"), open=False, elem_classes=AWAY, elem_id="base-section") as manage:
        rename = gr.Textbox(label=label("base_name"), info=label("title_info"), max_lines=1, elem_id="base-name")
        doomed = gr.Textbox(label=label("base_delete"), max_lines=1, elem_id="base-doomed")
        delete = gr.Button(label("base_delete"), size="sm", variant="stop", elem_id="base-delete")
    return {
        "base": base,
        "files": files,
        "target": target,
        "ingesting": ingesting,
        "arrivals": arrivals,
        "filter": filter,
        "documents": documents,
        "halt": halt,
        "password": password,
        "new_base": new_base,
        "manage": manage,
        "rename": rename,
        "doomed": doomed,
        "base_delete": delete,
        "watch": gr.Timer(1, active=False),  # ticks while files are being read or embedded
    }


def composer(label: Label) -> Parts:
    """At the input: the files beside the question that is being written, and the button that adds some."""
    attach = gr.UploadButton(label("attach"), file_count="multiple", size="sm", scale=0, min_width=44, elem_id="attach")
    attach.preprocess = _uploaded
    return {"attach": attach, "beside": gr.State([])}


def connect(parts: Parts, documents: Documents) -> None:
    seen = only(parts, "base", "beside")
    watched, managed = only(parts, *WATCHED), only(parts, *MANAGED)
    everything = only(parts, "base", *WATCHED, "arrivals")
    parts["watch"].tick(documents.watch_base, seen, watched, **QUIET)
    parts["halt"].click(documents.halt, seen, watched, queue=False)
    parts["password"].submit(documents.unlock, [parts["password"], *seen], watched, **QUIET)
    parts["base"].change(documents.choose, [*seen, parts["kept"]], [parts["kept"], *watched, *managed], **QUIET)
    parts["documents"].click(documents.act, seen, [*watched, parts["arrivals"]], concurrency_limit=None, **QUIET)
    made = only(parts, "base", "new_base", "kept")
    parts["new_base"].submit(documents.new_base, only(parts, "new_base", "kept"), made, **QUIET)
    parts["rename"].submit(documents.rename, only(parts, "rename", "base"), only(parts, "base", *MANAGED), **QUIET)
    doomed = only(parts, "doomed", "base")
    for event in (parts["doomed"].submit, parts["base_delete"].click):
        event(documents.delete, doomed, only(parts, "base", "doomed"), **QUIET)
    added = parts["files"].upload(documents.add_files, [parts["files"], *seen], [*everything, parts["files"]], **QUIET)
    added.then(js=SHOW_LIST, **QUIET)
    attached = [*everything, parts["beside"]]
    parts["attach"].upload(documents.attach, [parts["attach"], *seen], attached, **QUIET)
    parts["chips"].click(documents.detach, seen, only(parts, "chips", "beside"), **QUIET)


class Documents(Section):
    def open(self, base: Asked, request: gr.Request) -> tuple[Any, ...]:
        """The knowledge bases that are asked, unless they are gone, WATCHED and MANAGED."""
        language, known = self.language(request), self._known(base)
        return self._bases(known), *self._looked_at(known, [], language), *self._managed(known, language)

    def asked(self, base: Asked, language: str) -> tuple[Any, Any]:
        """Knowledge bases as those that are asked, unless they are gone: base, documents."""
        known = self._known(base)
        return self._bases(known), shelf.listing(self._shelves(known), language)

    def choose(self, base: list[str], beside: list[Beside], kept: Kept, request: gr.Request) -> tuple[Any, ...]:
        """The knowledge bases that are asked are others now: kept, WATCHED, MANAGED."""
        language, known = self.language(request), self._known(base)
        shown = self._looked_at(known, beside, language)
        return {**kept, "base": base or None}, *shown, *self._managed(known, language)

    def watch_base(self, base: list[str], beside: list[Beside], request: gr.Request) -> tuple[Any, ...]:
        """The files of the knowledge bases that are asked, as they are now: WATCHED."""
        return self._looked_at(self._known(base), beside, self.language(request))

    def unlock(self, password: str, base: list[str], beside: list[Beside], request: gr.Request) -> tuple[Any, ...]:
        """Tries a password on the files that need one: WATCHED."""
        if password:
            self._trying(
                self.language(request), *(lambda name=name: self._chat.library.unlock(name, password) for name in base)
            )
        shown = dict(zip(WATCHED, self.watch_base(base, beside, request), strict=True))
        return tuple({**shown, "password": {**shown["password"], "value": ""}}.values())

    def halt(self, base: list[str], beside: list[Beside], request: gr.Request) -> tuple[Any, ...]:
        """Stops the work on the files, or goes on with those that were stopped: WATCHED."""
        library = self._chat.library

        def turn() -> None:
            if not any([library.stop(name) for name in base]):
                for name in base:
                    library.resume(name)

        self._trying(self.language(request), turn)
        return self.watch_base(base, beside, request)

    def act(self, event: gr.EventData, base: list[str], beside: list[Beside], request: gr.Request) -> tuple[Any, ...]:
        """What a button in the list of files says: WATCHED, and notes."""
        language, library = self.language(request), self._chat.library
        match event.do:
            case "again":
                self._trying(self.language(request), lambda: library.read_again(event.base, event.file))
            case "remove":
                self._trying(self.language(request), lambda: library.open(event.base).remove_document(event.file))
                self._forget()
            case "skipped":
                inform(say(language, "folder_skipped", count=int(event.count)), seconds=12)
        return *self.watch_base(base, beside, request), "" if event.do == "remove" else gr.skip()

    def new_base(self, name: str, kept: Kept, request: gr.Request) -> tuple[Any, ...]:
        """Makes a knowledge base, which is asked from now on: base, the name's box, kept."""
        try:
            base = self._chat.library.create(name)
        except LibraryError as error:
            warn(error, self.language(request))
            return gr.skip(), gr.skip(), kept
        return self._bases([base]), "", {**kept, "base": [base]}

    def rename(self, name: str, base: list[str], request: gr.Request) -> tuple[Any, ...]:
        """Gives the knowledge base into which files go another name: base, MANAGED."""
        known = self._known(base)
        try:
            renamed = [*known[:-1], self._chat.library.rename(known[-1], name)]
        except FAILURES as error:
            warn(error, self.language(request))
            renamed = known
        return self._bases(renamed), *self._managed(renamed, self.language(request))

    def delete(self, typed: str, base: list[str], request: gr.Request) -> tuple[Any, Any]:
        """Removes the knowledge base into which files go, whose name has to be typed for it: base, the box."""
        known = self._known(base)
        if not known or typed.strip() != known[-1]:
            language = self.language(request)
            inform(say(language, "base_delete_typed", name=escape(known[-1] if known else "")))
            return gr.skip(), gr.skip()
        self._trying(self.language(request), lambda: self._chat.library.remove(known[-1]))
        self._forget()
        return self._bases(known[:-1]), ""

    def add_files(
        self, files: Uploads | None, base: list[str], beside: list[Beside], request: gr.Request
    ) -> tuple[Any, ...]:
        """Takes uploads into the last of the knowledge bases that are asked, or a first one: base, WATCHED, notes, and
        the drop zone, which is empty again."""
        language = self.language(request)
        asked, taken = self._taken(files, base, language, hurry=False)
        shown = self._looked_at(asked, beside, language)
        return self._bases(asked), *shown, shelf.notes(taken, language), None

    def attach(
        self, files: Uploads | None, base: list[str], beside: list[Beside], request: gr.Request
    ) -> tuple[Any, ...]:
        """As `add_files`, and puts the files beside the question: base, WATCHED, notes, those beside it."""
        language = self.language(request)
        asked, taken = self._taken(files, base, language, hurry=True)
        for outcome in taken:
            if isinstance(outcome, Ingested) and outcome.state == "failed":
                inform(escape(localised(outcome.reason or outcome.name, language)), seconds=None)
        known = {each.id for each in beside}
        added = [Beside(asked[-1], id, file.name) for file in taken if (id := _id_of(file)) and id not in known]
        shown = self._looked_at(asked, [*beside, *added], language)
        return self._bases(asked), *shown, shelf.notes(taken, language), [*beside, *added]

    def detach(
        self, event: gr.EventData, base: list[str], beside: list[Beside], request: gr.Request
    ) -> tuple[Any, Any]:
        """A file is beside the question no longer; it stays in its knowledge base: chips, those that are left."""
        left = [each for at, each in enumerate(beside) if at != int(event.at)]
        return self._chips(left, self.language(request)), left

    def _taken(
        self, files: Uploads | None, base: list[str], language: str, hurry: bool
    ) -> tuple[list[str], list[StoredDocument | Ingested]]:
        """The knowledge bases that are asked now, the last of which has the files; and what became of these."""
        asked = self._known(base) or [self._first_base(language)]
        try:
            return asked, self._chat.library.add(asked[-1], [(Path(path), name) for path, name in files or ()], hurry)
        except FAILURES as error:
            warn(error, language)
            return asked, []
        finally:
            for path, _ in files or ():  # the knowledge base has its own copy
                Path(path).unlink(missing_ok=True)

    def _trying(self, language: str, *work: Any) -> None:
        """Does each of these, and says what went wrong."""
        for each in work:
            try:
                each()
            except FAILURES as error:
                warn(error, language)

    def _forget(self) -> None:
        """What was removed must not stay in what the model has read; behind, since that waits for a running reply."""
        threading.Thread(target=self._chat.engine.forget, name="forgetting", daemon=True).start()

    def _first_base(self, language: str) -> str:
        name = say(language, "base_default")
        return name if name in self._chat.library.names() else self._chat.library.create(name)

    def _known(self, base: Asked) -> list[str]:
        """The names that knowledge bases have now, of those that are still there."""
        found = (self._chat.library.current(name) for name in names_of(base))
        return list(dict.fromkeys(name for name in found if name))

    def _bases(self, chosen: Sequence[str]) -> Any:
        return gr.update(choices=self._chat.library.names(), value=list(chosen))

    def _managed(self, known: Sequence[str], language: str) -> tuple[Any, ...]:
        """MANAGED, about the last of the knowledge bases that are asked."""
        name = known[-1] if known else ""
        into = shelf.target(name or say(language, "base_default"), list(READERS), language)
        label = say(language, "base_delete_label", name=name)
        return into, showing(bool(known)), name, gr.update(value="", label=label)

    def _shelves(self, known: Sequence[str]) -> list[Shelf]:
        """The one into which files go comes first."""
        return [Shelf(name, self._chat.library.open(name).status().files) for name in reversed(known)]

    def _looked_at(self, known: Sequence[str], beside: Sequence[Beside], language: str) -> tuple[Any, ...]:
        """WATCHED: the button says Stop while files are not finished, then Carry on if some were stopped; the box for a
        password is there if some need one; the timer asks again while files are not finished."""
        batches: list[Batch] = []
        try:
            shelves = self._shelves(known)
            batches = [self._chat.library.batch(name) for name in known]
            listing = shelf.listing(shelves, language)
        except FAILURES as error:
            shelves, listing = [], hint(f"⚠ {told(error, language)}")
        files = [file for each in shelves for file in each.files]
        states = {file.state for file in files}
        unfinished = not states.isdisjoint(UNFINISHED)
        text = say(language, "ingest_stop" if unfinished else "ingest_carry_on")
        return (
            listing,
            shelf.working(batches, language),
            showing(unfinished or "cancelled" in states, value=text),
            showing(any(file.locked for file in files)),
            showing(len(files) >= MANY),
            self._chips(beside, language),
            gr.Timer(active=unfinished),
        )

    def _chips(self, beside: Sequence[Beside], language: str) -> str:
        """The files beside the question; never twice the same text, so that the page sees that they were looked at."""
        try:
            found = [file for each in beside for file in self._chat.library.open(each.base).files([each.id])]
        except FAILURES:
            found = []
        return f'<div class="chips" data-at="{time.monotonic_ns()}">{shelf.chips(beside, found, language)}</div>'


def _id_of(file: StoredDocument | Ingested) -> str | None:
    return file.id if isinstance(file, StoredDocument) else file.document


def _uploaded(payload: Any) -> Uploads | None:
    """(path, name) of each upload, by the name it had on the user's disk: Gradio's path has lost characters of it. Of a
    folder that was added the name holds the folders inside it."""
    return None if payload is None else [(file.path, file.orig_name or Path(file.path).name) for file in payload]
