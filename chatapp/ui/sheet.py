"""A sheet: a dialog over the page for what is not needed while chatting. It is drawn when it is opened, not before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import gradio as gr

from .section import QUIET, Label


@dataclass(frozen=True)
class Sheet:
    """`column` holds what is in it; scripts/sheet.js makes it a dialog: it keeps the focus, and Esc closes it."""

    column: gr.Column
    closing: gr.Button

    def connect(
        self, opener: Any, fill: Callable[..., Any] | None = None, inputs: Any = None, outputs: Any = None
    ) -> None:
        """`opener` is the button that opens it; `fill` gives its components their values then, as they are now."""
        opened = opener.click(lambda: gr.update(visible=True), None, self.column, **QUIET)
        if fill is not None:
            opened.then(fill, inputs, outputs, **QUIET)
        self.closing.click(lambda: gr.update(visible=False), None, self.column, queue=False, **QUIET)


@contextmanager
def sheet(name: str, title: str, label: Label) -> Iterator[Sheet]:
    """A sheet with the id `name`-sheet; what is made inside the `with` is in it."""
    with gr.Column(visible=False, elem_id=f"{name}-sheet", elem_classes="sheet") as column:
        with gr.Row(elem_classes="sheet-head"):
            gr.HTML(f'<h2 id="{name}-title">{label(title)}</h2>', elem_classes="heading")
            closing = gr.Button(label("close"), size="sm", min_width=64, scale=0, elem_classes="sheet-close")
        yield Sheet(column, closing)
