"""The page: left conversations, model and documents; centre the chat; right the sources."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI

from ..session import Chat
from ..settings import Settings
from ..startup import Startup
from ..texts import CATALOGUE, preferred
from . import chat as centre
from . import conversations, documents, downloads, lab, model, panes, storage, welcome
from . import settings as settings_page
from .document import Document, Look, add_document_routes
from .section import QUIET, Desk, Kept, Label, Parts, joined, only
from .sheet import sheet

STYLES = Path(__file__).with_name("style")

#: Fonts that are on the user's machine: nothing is asked of a font server, and Chinese looks right on every system.
FONTS = ["system-ui", "-apple-system", "Segoe UI", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", "sans-serif"]
MONO = ["ui-monospace", "SFMono-Regular", "Consolas", "Noto Sans Mono CJK SC", "monospace"]


def mount(settings: Settings, chat: Chat, startup: Startup) -> Callable[[FastAPI], FastAPI]:
    """A function that adds the page to an application."""
    desk = Desk(settings, chat, startup)
    translations = gr.I18n(**CATALOGUE)

    def look(accept_language: str) -> Look:
        return Look(desk.fixed_language or preferred(accept_language), chat.chosen.now.theme)

    def add(app: FastAPI) -> FastAPI:
        add_document_routes(app, look)
        app.add_middleware(Document, look=look)
        page = build(desk, translations)
        # Gradio checks only in launched apps, and takes a mounted one for none, that a path which the browser names is
        # an upload of its own: without this any file of the user could be asked for.
        page.has_launched = True
        # Of the events that its queue lets run, all but one may wait for the model; what is not queued, such as Stop,
        # needs threads as well.
        page.max_threads *= 2
        return gr.mount_gradio_app(
            app,
            page,
            path="/",
            server_name=settings.host,
            footer_links=[],
            i18n=translations,
            theme=_theme(),
            css=joined(_styles()),
            show_error=False,
            ssr_mode=False,
            max_file_size="300mb",
        )

    return add


class Page:
    """The sections' handlers, and what happens when the page is opened."""

    def __init__(self, desk: Desk) -> None:
        self.documents = documents.Documents(desk)
        self.conversations = conversations.Conversations(desk, self.documents)
        self.model = model.Model(desk)
        self.downloads = downloads.DownloadsTab(desk, self.model)
        self.chat = centre.Turns(desk)
        self.lab = lab.Lab(desk)
        self.welcome = welcome.Welcome(desk)
        self.storage = storage.Stored(desk)
        self._desk = desk

    def open(self, kept: Kept, request: gr.Request) -> tuple[Any, ...]:
        """Everything that depends on the language or on what is on disk: OPENED."""
        conversation = kept.get("conversation")
        return (
            *self.conversations.open(conversation, request),
            *self.documents.open(kept.get("base"), request),
            *self.model.open(request),
            *self.lab.preferred(conversation, request),
            *self.welcome.open(kept.get("base"), request),
        )


#: What `Page.open` fills.
OPENED = (
    *conversations.OPENED,
    *("base", *documents.WATCHED, *documents.MANAGED),
    *model.OPENED,
    *("mode", *lab.LAB),
    *("welcome", "keys"),
)


def build(desk: Desk, label: Label) -> gr.Blocks:
    """The page, with its events."""
    with gr.Blocks(title="Quatrain", analytics_enabled=False, fill_width=True) as page:
        parts = Parts(
            kept=gr.BrowserState({"conversation": None, "base": None}, storage_key="quatrain", secret="quatrain"),
            conversation=gr.State(None),
            editing=gr.State(None),
        )
        with gr.Row(elem_id="panes", equal_height=True):
            with gr.Column(scale=2, min_width=240, elem_id="left"):
                gr.HTML('<h1 id="left-title">Quatrain</h1>' + panes.fold("left", label("fold_left")), elem_id="brand")
                parts |= conversations.layout(label)
                with panes.card("model-card", label("model")):
                    parts |= model.layout(label)
                    parts |= downloads.left(label)
                with panes.card("documents-card", label("documents")):
                    parts |= documents.layout(label)
                with gr.Row(elem_id="foot"):
                    parts["settings_open"] = gr.Button(label("settings"), size="sm", elem_id="settings-open")
                    parts |= conversations.importer(label)
            with gr.Column(scale=6, min_width=320, elem_id="centre"):
                parts |= panes.top_bar(label)
                parts |= welcome.layout()
                parts |= centre.layout(label)
            with gr.Column(scale=3, min_width=260, elem_id="right"):
                gr.HTML(panes.fold("right", label("fold")), elem_id="fold")
                gr.HTML(f'<h2 id="right-title">{label("sources")}</h2>', elem_classes="heading")
                parts["sources"] = gr.HTML(elem_id="sources")
                parts |= lab.layout(label)
        with sheet("models", "models", label) as models_sheet:
            with gr.Tabs(elem_id="models-tabs"):
                with gr.Tab(label("download_tab"), id="download"):
                    parts |= downloads.layout(label)
                with gr.Tab(label("storage"), elem_id="storage-tab") as parts["storage_tab"]:
                    parts |= storage.layout(label)
        with sheet("settings", "settings", label) as settings_sheet:
            parts |= settings_page.layout(label)
        handlers = Page(desk)
        _connect(page, handlers, parts)
        filled = only(parts, *downloads.OPENED)
        models_sheet.connect(parts["models_open"], handlers.downloads.open, None, filled)
        settings_page.connect(settings_sheet, parts, desk)
    return page


def _connect(page: gr.Blocks, handlers: Page, parts: Parts) -> None:
    opened = page.load(handlers.open, only(parts, "kept"), only(parts, *OPENED), **QUIET)
    opened.then(handlers.model.measure, parts["family"], only(parts, "family", "model"), **QUIET)
    page.unload(handlers.chat.leave)
    conversations.connect(parts, handlers.conversations)
    model.connect(parts, handlers.model)
    documents.connect(parts, handlers.documents)
    downloads.connect(page, parts, handlers.downloads)  # before the chat, which empties the input that it reads too
    centre.connect(parts, handlers.chat)
    lab.connect(parts, handlers.lab)
    welcome.connect(parts, handlers.welcome)
    storage.connect(parts, handlers.storage, handlers.model)


def _theme() -> gr.themes.Base:
    theme = gr.themes.Base(primary_hue="teal", neutral_hue="slate", radius_size="md", font=FONTS, font_mono=MONO)
    return theme.set(
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        body_background_fill="*background_fill_primary",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_400",
        block_background_fill="transparent",
        block_border_width="0px",
        block_padding="0px",
        block_title_text_size="*text_sm",
        block_title_text_weight="600",
        block_info_text_size="*text_xs",
        input_background_fill="*background_fill_primary",
    )


def _styles() -> list[Path]:
    """What is about the whole page comes first, what is about narrow windows last; the sections are in between."""
    first, last = STYLES / "page.css", STYLES / "narrow.css"
    return [first, *sorted(set(STYLES.glob("*.css")) - {first, last}), last]
