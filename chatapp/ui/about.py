"""The settings' last tab: where the data is, what runs here, and a self-check."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from .. import checkup
from ..hardware import GIB
from ..texts import say
from .escaping import escape
from .section import QUIET, Label, Parts, Section, only

OPENED = ("folder", "machine", "outcomes", "report")
#: Until the tab is chosen, for measuring takes a moment.
CLOSED = ("", "", "", "")

#: Copies the text of an element and says so on the button for a moment.
COPY = """() => {{
  const text = document.querySelector("{0}")?.textContent ?? "";
  navigator.clipboard.writeText(text);
  document.querySelector("#{1}")?.classList.add("copied");
  setTimeout(() => document.querySelector("#{1}")?.classList.remove("copied"), 1500);
}}"""


def layout(label: Label) -> Parts:
    folder = gr.HTML(elem_id="data-folder")
    copy_path = gr.Button(label("copy_path"), size="sm", elem_id="copy-path")
    machine = gr.HTML(elem_id="machine")
    with gr.Row():
        check = gr.Button(label("check_run"), variant="primary", size="sm", elem_id="check-run")
        copy_report = gr.Button(label("copy_report"), size="sm", elem_id="copy-report")
    return {
        "folder": folder,
        "copy_path": copy_path,
        "machine": machine,
        "check": check,
        "copy_report": copy_report,
        "outcomes": gr.HTML(elem_id="outcomes"),
        "report": gr.HTML(elem_id="report-section"),
    }


def connect(parts: Parts, about: About) -> None:
    parts["machine_tab"].select(about.look, None, only(parts, "folder", "machine", "report"), **QUIET)
    parts["check"].click(about.check, None, only(parts, "outcomes", "report"), **QUIET)
    parts["copy_path"].click(None, js=COPY.format("#data-folder code", "copy-path"))
    parts["copy_report"].click(None, js=COPY.format("#report", "copy-report"))


class About(Section):
    def look(self, request: gr.Request) -> tuple[str, str, str]:
        """The data folder, the machine, and the report on it."""
        language, found = self.language(request), checkup.facts()
        return self._folder(language), _machine(found, language), _report(checkup.report(found, []))

    def check(self, request: gr.Request) -> Iterator[tuple[str, Any]]:
        """The outcome of each check as it comes, then the report."""
        language, outcomes = self.language(request), []
        yield _running(outcomes, language), gr.skip()
        for outcome in checkup.checks(self._settings, self._chat, self._startup):
            outcomes.append(outcome)
            yield _running(outcomes, language), gr.skip()
        yield _listed(outcomes, language), _report(checkup.report(checkup.facts(), outcomes))

    def _folder(self, language: str) -> str:
        data = self._settings.data.absolute()
        figures = say(
            language,
            "folder_figures",
            size=f"{_size(data) / 1e9:.2f}",
            free=f"{shutil.disk_usage(data).free / 1e9:.1f}",
        )
        return (
            f"<h3>{say(language, 'set_folder')}</h3><p><code>{escape(str(data))}</code></p>"
            f'<p class="hint">{figures} {say(language, "folder_change")}</p>'
        )


def _machine(found: checkup.Facts, language: str) -> str:
    free, total = (size / GIB for size in found.memory)
    rows = [
        *found.versions,
        (say(language, "about_processor"), f"{found.processor} · {' '.join(found.instructions)}"),
        (say(language, "about_cores"), str(found.cores)),
        (say(language, "about_memory"), say(language, "about_memory_free", free=f"{free:.1f}", total=f"{total:.1f}")),
        (say(language, "about_cards"), "; ".join(found.cards) or say(language, "about_cards_none")),
        (say(language, "about_kernel"), found.kernel or say(language, "about_kernel_none")),
    ]
    lines = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows)
    notes = "".join(f'<p class="hint">{escape(note)}</p>' for note in found.notes)
    return f"<h3>{say(language, 'set_about')}</h3><table>{lines}</table>{notes}"


def _listed(outcomes: list[checkup.Outcome], language: str, more: str = "") -> str:
    rows = []
    for outcome in outcomes:
        mark, name = ("✓", "good") if outcome.good else ("✗", "bad")
        beside = "".join(f"<small>{escape(each)}</small>" for each in outcome.private)
        rows.append(f'<li class="{name}"><b>{mark}</b><span>{escape(outcome.said.said(language))}{beside}</span></li>')
    return f'<ul class="outcomes" role="status">{"".join(rows)}{more}</ul>'


def _running(outcomes: list[checkup.Outcome], language: str) -> str:
    return _listed(outcomes, language, f"<li><b>…</b><span>{say(language, 'check_running')}</span></li>")


def _report(text: str) -> str:
    return f'<pre id="report" hidden>{escape(text).replace("<br>", chr(10))}</pre>'


def _size(folder: Path) -> int:
    """Bytes of the files in a folder; what goes while it is looked at counts for nothing."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(parent, name)).st_size
            except OSError:
                continue
    return total
