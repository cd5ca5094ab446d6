"""A sheet: a dialog over the page for what is not needed while chatting. It is drawn when it is first opened."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import gradio as gr

from .section import QUIET, Label


@dataclass(frozen=True)
class Sheet:
    """`column` holds what is in it. scripts/sheet.js makes it a dialog, closes it, and shows what was drawn before:
    all that the page can do without the app. `drawn` says whether it was."""

    column: gr.Column
    drawn: gr.State

    def connect(
        self, opener: Any, fill: Callable[..., Any] | None = None, inputs: Any = None, outputs: Any = None
    ) -> None:
        """`opener` is the button that opens it; `fill` gives its components their values then, as they are now."""
        opened = opener.click(_draw, self.drawn, [self.column, self.drawn], **QUIET)
        if fill is not None:
            opened.then(fill, inputs, outputs, **QUIET)


@contextmanager
def sheet(name: str, title: str, label: Label) -> Iterator[Sheet]:
    """A sheet with the id `name`-sheet, opened by the button `name`-open; what is made inside the `with` is in it."""
    with gr.Column(visible=False, elem_id=f"{name}-sheet", elem_classes="sheet") as column:
        with gr.Row(elem_classes="sheet-head"):
            gr.HTML(f'<h2 id="{name}-title">{label(title)}</h2>', elem_classes="heading")
            gr.Button(label("close"), size="sm", min_width=64, scale=0, elem_classes="sheet-close")
        yield Sheet(column, gr.State(False))


def _draw(drawn: bool) -> tuple[Any, bool]:
    return gr.skip() if drawn else gr.update(visible=True), True
