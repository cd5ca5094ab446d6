"""What is on this machine, in the sheet of models: what takes disk, folders that are looked in, and deletion."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import gradio as gr

from ..caches import ORIGINS
from ..checkpoints import FAMILIES
from ..sentences import Sentence, localised
from ..storage import Item, Report, Storage, id_of
from ..texts import say
from .escaping import escape
from .model import Model
from .offers import button, size
from .section import PRESSED, QUIET, Desk, Label, Parts, Section, hint, only

#: The headings of kinds of items, and what their deletion means.
HEADINGS = {
    "checkpoint": "storage_checkpoints",
    "adapter": "storage_adapters",
    "tier": "storage_tiers",
    "embedder": "storage_embedder",
    "base": "storage_bases",
    "conversations": "storage_conversations",
    "warm": "storage_warm",
    "download": "storage_downloads",
}
MEANING = {
    "checkpoint": "storage_confirm",
    "adapter": "storage_confirm",
    "tier": "storage_confirm_tier",
    "warm": "storage_confirm_warm",
}
ABOUT = {"embedder": "storage_embedder_info", "download": "storage_download_info"}

#: What `Stored.open` fills: the total, folders, items, the box for a folder, and what became of the last wish.
OPENED = ("storage_total", "storage_folders", "storage_items", "look_in", "storage_note")


def layout(label: Label) -> Parts:
    pressed = PRESSED.read_text(encoding="utf-8")
    total = gr.HTML(elem_id="storage-total")
    with gr.Row(elem_id="folder-row"):
        folder = gr.Textbox(label=label("look_in"), info=label("look_in_info"), max_lines=1, scale=4, elem_id="folder")
        add = gr.Button(label("look_in_add"), size="sm", min_width=88, scale=0, elem_id="folder-add")
    note = gr.HTML(elem_id="storage-note")
    folders = gr.HTML(js_on_load=pressed, elem_id="storage-folders")
    items = gr.HTML(js_on_load=pressed, elem_id="storage-items")
    return {
        "storage_total": total,
        "look_in": folder,
        "look_in_add": add,
        "storage_note": note,
        "storage_folders": folders,
        "storage_items": items,
    }


def connect(parts: Parts, stored: Stored, model: Model) -> None:
    shown, choices = only(parts, *OPENED), only(parts, "family", "model")
    for event in (parts["look_in"].submit, parts["look_in_add"].click):
        event(stored.add, only(parts, "look_in"), shown, **QUIET).then(model.measure, parts["family"], choices, **QUIET)
    parts["models_open"].click(lambda: "", None, parts["storage_note"], queue=False, **QUIET)
    parts["storage_tab"].select(stored.open, None, shown, **QUIET)
    for name in ("storage_folders", "storage_items"):
        parts[name].click(stored.press, None, shown, **QUIET).then(model.measure, parts["family"], choices, **QUIET)


class Stored(Section):
    def __init__(self, desk: Desk) -> None:
        super().__init__(desk)
        self._shelf = desk.startup.shelf
        self._storage = Storage(desk.settings, self._shelf, desk.chat.engine, desk.chat.library, desk.startup.downloads)

    def open(self, request: gr.Request) -> tuple[Any, ...]:
        """OPENED, as it is now."""
        *shown, _, _ = self._opened(self.language(request))
        return *shown, gr.skip(), gr.skip()  # sizes take a moment: somebody may have added a folder meanwhile

    def add(self, path: str, request: gr.Request) -> tuple[Any, ...]:
        """Looks for checkpoints in another folder from now on: OPENED."""
        language = self.language(request)
        try:
            folder = self._shelf.add(path)
        except Sentence as sentence:  # what was typed stays, to be corrected
            return *(gr.skip(),) * 4, _refusal(sentence, language)
        count = sum(found.path.is_relative_to(folder) for found in self._shelf.found())
        return self._opened(language, hint(say(language, "folder_added", path=escape(str(folder)), count=count)))

    def press(self, event: gr.EventData, request: gr.Request) -> tuple[Any, ...]:
        """Does what a button says, with what its id stands for: OPENED."""
        language = self.language(request)
        try:
            if event.do == "delete":
                item = self._storage.delete(str(event.id))
                done = say(language, "storage_deleted", name=_name(item, language), size=size(item.size))
            else:
                done = say(language, "folder_removed", path=escape(str(self._forget(str(event.id)))))
        except Sentence as sentence:
            return self._opened(language, _refusal(sentence, language))
        return self._opened(language, hint(done))

    def _forget(self, id: str) -> Path:
        folder = next((each for each in self._shelf.added if id_of(str(each)) == id), None)
        if folder is None:
            raise Sentence("storage_gone")
        self._shelf.remove(folder)
        return folder

    def _opened(self, language: str, note: str = "") -> tuple[Any, ...]:
        report = self._storage.report()
        total = say(
            language,
            "storage_total",
            folder=escape(str(self._settings.data)),
            ours=size(report.ours),
            total=size(report.total),
            free=size(report.free),
        )
        return hint(total), self._folders(language), "".join(self._groups(report, language)), "", note

    def _folders(self, language: str) -> str:
        rows = "".join(_folder(folder, language) for folder in self._shelf.added)
        return f'<ul class="stored">{rows}</ul>' if rows else ""

    def _groups(self, report: Report, language: str) -> Iterator[str]:
        for kind, group in groupby(report.items, key=lambda item: item.kind):
            items = list(group)
            rows = "".join(self._row(item, language) for item in items)
            total = size(sum(item.size for item in items))
            yield f"<section><h3>{say(language, HEADINGS[kind])}<span>{total}</span></h3>"
            yield f'<ul class="stored">{rows}</ul></section>'

    def _row(self, item: Item, language: str) -> str:
        loaded = self._storage.is_loaded(item)
        tags = [FAMILIES[item.family] if item.family else "", ORIGINS.get(item.origin, "")]
        tags += [say(language, "storage_in_use")] if loaded else []
        tagged = "".join(f'<span class="tag">{tag}</span>' for tag in tags if tag)
        notes = "".join(f"<small>{note}</small>" for note in self._notes(item, language))
        act = _deletion(item, language) if item.ours and not loaded else ""
        what = f'<div class="what"><b>{_name(item, language)}</b>{tagged}{notes}</div>'
        return f'<li>{what}<span class="size">{size(item.size)}</span>{act}</li>'

    def _notes(self, item: Item, language: str) -> Iterator[str]:
        if item.kind == "checkpoint" and not item.ours:
            yield escape(str(item.place))
        if item.partial:
            yield f"⚠ {say(language, 'storage_partial')}"
        elif item.lacks:
            yield f"⚠ {say(language, 'storage_lacks', reason=escape(localised(item.lacks, language)))}"
        if item.ours and self._storage.is_loaded(item):
            yield say(language, "storage_unload_first")
        if item.kind in ABOUT:
            yield say(language, ABOUT[item.kind])


def _deletion(item: Item, language: str) -> str:
    """A button that asks whether that is meant."""
    key = "storage_confirm_embedded" if item.fetched_again else MEANING[item.kind]
    name = item.name or say(language, HEADINGS[item.kind])
    return button("delete", item.id, say(language, "delete"), name, say(language, key, name=name, size=size(item.size)))


def _folder(folder: Path, language: str) -> str:
    gone = "" if folder.is_dir() else f"<small>⚠ {say(language, 'folder_gone')}</small>"
    remove = button("forget", id_of(str(folder)), say(language, "folder_remove"), str(folder))
    return f'<li><div class="what">{escape(str(folder))}{gone}</div>{remove}</li>'


def _name(item: Item, language: str) -> str:
    return escape(item.name) or say(language, HEADINGS[item.kind])


def _refusal(sentence: Sentence, language: str) -> str:
    return f'<p class="hint" role="alert">⚠ {escape(sentence.said(language))}</p>'
