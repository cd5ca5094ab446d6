"""What makes the page's panes: they fold away, on a phone they are drawers, and the left one has sections that fold.

scripts/panes.js does the folding: what is folded is written on the row of panes, where the style sheets see it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr

from .section import Label, Parts


def fold(name: str, text: Any) -> str:
    """A button that folds or unfolds a pane."""
    return (
        f'<button type="button" class="icon pane" data-fold="{name}" aria-controls="{name}">'
        f"<span>{text}</span></button>"
    )


def drawer(name: str, text: Any) -> str:
    """A button of the bar that phones have: it draws a pane over the chat."""
    return (
        f'<button type="button" class="icon {name}" data-drawer="{name}" aria-controls="{name}" aria-expanded="false">'
        f"<span>{text}</span></button>"
    )


def top_bar(label: Label) -> Parts:
    """Over the messages: what is open, and on a phone the buttons that draw the other panes."""
    with gr.Row(elem_id="top"):
        gr.HTML(drawer("left", label("menu")), elem_classes="narrow-only")
        heading = gr.HTML(elem_id="heading")
        gr.HTML(drawer("right", label("sources")), elem_classes="narrow-only")
    return {"heading": heading}


@contextmanager
def card(name: str, title: Any) -> Iterator[None]:
    """A section of the left pane; what is made inside the `with` folds away under its title."""
    with gr.Column(elem_id=name, elem_classes="section"):
        gr.HTML(
            f'<h2><button type="button" data-fold="{name}" aria-controls="{name}">{title}</button></h2>',
            elem_classes="section-head",
        )
        yield
