"""The layout: left conversations, model and documents; centre the chat; right the sources."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI

from ..preferences import MOST_PASSAGES
from ..session import Chat
from ..settings import Settings
from ..startup import Startup
from ..texts import CATALOGUE
from .handlers import NOTHING, Handlers

STYLE = Path(__file__).with_name("style.css")
ACTIONS = Path(__file__).with_name("actions.js")

#: Fonts that are on the user's machine: nothing is asked of a font server, and Chinese looks right on every system.
FONTS = ["system-ui", "-apple-system", "Segoe UI", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", "sans-serif"]
MONO = ["ui-monospace", "SFMono-Regular", "Consolas", "Noto Sans Mono CJK SC", "monospace"]

#: What is set in the retrieval lab.
LAB = ("lab_passages", "lab_threshold", "lab_method", "lab_followups")

LATEX = [
    {"left": "$$", "right": "$$", "display": True},
    {"left": "\\[", "right": "\\]", "display": True},
    {"left": "\\(", "right": "\\)", "display": False},
]


def mount(settings: Settings, chat: Chat, startup: Startup) -> Callable[[FastAPI], FastAPI]:
    """A function that adds the page to an application."""
    handlers = Handlers(settings, chat, startup)
    translations = gr.I18n(**CATALOGUE)
    label = translations if settings.lang == "auto" else CATALOGUE[settings.lang].__getitem__

    def add(app: FastAPI) -> FastAPI:
        page = build(handlers, label)
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
            css=STYLE.read_text(encoding="utf-8"),
            show_error=False,
            ssr_mode=False,
            max_file_size="300mb",
        )

    return add


def build(handlers: Handlers, label: Callable[[str], Any]) -> gr.Blocks:
    """The page. `label` gives a text of the catalogue, translated in the browser unless the language is fixed."""
    with gr.Blocks(title="Quatrain", analytics_enabled=False, fill_width=True) as page:
        kept = gr.BrowserState({"conversation": None, "base": None}, storage_key="quatrain", secret="quatrain")
        conversation = gr.State(None)
        editing = gr.State(None)
        with gr.Row(elem_id="panes", equal_height=True):
            with gr.Column(scale=2, min_width=240, elem_id="left"):
                left = _left(label)
            with gr.Column(scale=6, min_width=320, elem_id="centre"):
                centre = _centre(label)
            with gr.Column(scale=3, min_width=260, elem_id="right"):
                gr.HTML(_fold(label("fold")), elem_id="fold")  # by itself: one text of a component is translated
                gr.HTML(_heading(label("sources")), elem_classes="heading")
                sources = gr.HTML(elem_id="sources")
                parts = {**left, **centre, "sources": sources, **_lab(label)}
        parts |= {"conversation": conversation, "editing": editing, "kept": kept}
        _connect(page, handlers, parts)
    return page


def _theme() -> gr.themes.Base:
    theme = gr.themes.Base(primary_hue="teal", neutral_hue="slate", radius_size="md", font=FONTS, font_mono=MONO)
    return theme.set(
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        body_background_fill="*background_fill_primary",
        body_text_color_subdued="*neutral_500",
        body_text_color_subdued_dark="*neutral_400",
        block_background_fill="transparent",
        block_border_width="0px",
        block_padding="0px",
        block_title_text_size="*text_sm",
        block_title_text_weight="600",
        block_info_text_size="*text_xs",
        input_background_fill="*background_fill_primary",
    )


def _left(label: Callable[[str], Any]) -> dict[str, Any]:
    gr.HTML("<h1>Quatrain</h1>", elem_id="brand")
    new_chat = gr.Button(label("new_chat"), variant="primary", size="md", elem_id="new-chat")
    conversation = _conversations(label)
    family = gr.Dropdown([], label=label("family"), interactive=True, elem_id="family")
    model = gr.Dropdown(
        [], label=label("model"), info=label("model_info"), allow_custom_value=True, interactive=True, elem_id="model"
    )
    adapter = gr.Dropdown([], label=label("adapter"), info=label("adapter_info"), visible=False, elem_id="adapter")
    state = gr.HTML(elem_id="state")
    with gr.Accordion(label("model_more"), open=False, elem_id="format-section"):
        tier = gr.Dropdown([], label=label("tier"), info=label("tier_info"), interactive=True, elem_id="tier")
        chat_format = gr.Dropdown([], label=label("chat_format"), info=label("chat_format_info"), elem_id="format")
    base = gr.Dropdown([], label=label("base"), info=label("base_info"), interactive=True, elem_id="base")
    mode = gr.Radio([], label=label("mode"), elem_id="mode")
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
        "new_chat": new_chat,
        **conversation,
        "family": family,
        "model": model,
        "adapter": adapter,
        "tier": tier,
        "chat_format": chat_format,
        "state": state,
        "base": base,
        "mode": mode,
        "files": files,
        "documents": documents,
        "halt": halt,
        "password": password,
        "new_base": new_base,
    }


def _conversations(label: Callable[[str], Any]) -> dict[str, Any]:
    """The list, and what can be done with the conversation that is open."""
    hint = label("search")
    search = gr.Textbox(label=hint, placeholder=hint, show_label=False, max_lines=1, elem_id="search")
    conversations = gr.Radio([], label=label("conversations"), elem_id="conversations")
    restore = gr.Button(label("restore"), size="sm", visible=False, elem_id="restore")
    with gr.Accordion(label("this_conversation"), open=False, visible=False, elem_id="conversation-section") as about:
        title = gr.Textbox(label=label("title"), info=label("title_info"), max_lines=1, elem_id="title")
        exports = gr.HTML(elem_id="exports")
        delete = gr.Button(label("delete"), size="sm", elem_id="delete")
    import_file = gr.UploadButton(label("import"), file_types=[".json", ".md"], size="sm", elem_id="import")
    return {
        "search": search,
        "conversations": conversations,
        "restore": restore,
        "about": about,
        "title": title,
        "exports": exports,
        "delete": delete,
        "import": import_file,
        "deleted": gr.State(None),
    }


def _uploaded(payload: Any) -> list[tuple[str, str]] | None:
    """(path, name) of each upload, by the name it had on the user's disk: Gradio's path has lost characters of it."""
    return None if payload is None else [(file.path, file.orig_name or Path(file.path).name) for file in payload]


def _centre(label: Callable[[str], Any]) -> dict[str, Any]:
    messages = gr.Chatbot(
        label=label("chat"),
        show_label=False,
        placeholder=str(label("empty")),
        buttons=["copy"],
        layout="bubble",
        latex_delimiters=LATEX,
        feedback_options=None,
        height="100%",
        elem_id="messages",
    )
    text = gr.Textbox(
        label=label("message_hint"),
        show_label=False,
        placeholder=label("message_hint"),
        lines=1,
        max_lines=8,
        submit_btn=True,
        autofocus=True,
        elem_id="text",
    )
    return {
        "messages": messages,
        "text": text,
        "progress": gr.HTML(elem_id="progress"),
        "actions": gr.HTML(js_on_load=ACTIONS.read_text(encoding="utf-8"), elem_id="actions"),
    }


def _lab(label: Callable[[str], Any]) -> dict[str, Any]:
    """Below the sources: how documents are searched."""
    with gr.Accordion(label("lab"), open=False, elem_id="lab"):
        question = gr.Textbox(label=label("lab_question"), info=label("lab_info"), elem_id="lab-question")
        method = gr.Dropdown([], label=label("lab_method"), elem_id="lab-method")
        passages = gr.Slider(1, MOST_PASSAGES, step=1, label=label("lab_passages"), elem_id="lab-passages")
        threshold = gr.Slider(0, 1, step=0.05, label=label("lab_threshold"), elem_id="lab-threshold")
        followups = gr.Checkbox(label=label("lab_followups"), elem_id="lab-followups")
        with gr.Row():
            find = gr.Button(label("lab_find"), size="sm", elem_id="lab-find")
            apply = gr.Button(label("lab_apply"), size="sm", elem_id="lab-apply")
        note = gr.HTML(elem_id="lab-note")
        results = gr.HTML(elem_id="lab-results")
    return {
        "lab_question": question,
        "lab_method": method,
        "lab_passages": passages,
        "lab_threshold": threshold,
        "lab_followups": followups,
        "lab_find": find,
        "lab_apply": apply,
        "lab_note": note,
        "lab_results": results,
    }


def _fold(text: Any) -> str:
    return f'<a class="fold" href="#q-fold-0" role="button"><span>{text}</span>⇥</a>'


def _heading(text: Any) -> str:
    return f"<h2>{text}</h2>"


def _ending_quietly(handler: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """Gradio shows what a turn yielded last once more when it ends, and the page may show something else by then."""

    @wraps(handler)
    def run(*arguments: Any) -> Iterator[Any]:
        yield from handler(*arguments)
        yield NOTHING

    return run


def _connect(page: gr.Blocks, handlers: Handlers, parts: Mapping[str, Any]) -> None:
    def only(*names: str) -> list[Any]:
        return [parts[name] for name in names]

    shown = ("messages", "sources", "progress")
    about = ("about", "title", "exports")
    model = ("family", "model", "adapter", "tier", "chat_format")
    quiet = {"show_progress": "hidden"}
    timer = gr.Timer(1)  # ticks while something is being fetched or loaded, then rests
    watch = gr.Timer(2, active=False)  # ticks while files of the knowledge base are being read or embedded
    page.load(
        handlers.open_page,
        only("kept"),
        [*only(*shown, "conversation", "conversations", *about, "base", "documents", *model, "state"), timer]
        + [*only("halt", "password"), watch],
        **quiet,
    )
    searching = only("mode", *LAB)
    page.load(handlers.preferred, only("conversation"), searching, **quiet)
    parts["conversation"].change(handlers.preferred, only("conversation"), searching, **quiet)
    parts["mode"].input(handlers.prefer_mode, only("conversation", "mode"), only("conversation"), **quiet)
    examined = only("lab_question", "base", "lab_passages", "lab_threshold", "lab_method")
    for event in (parts["lab_find"].click, parts["lab_question"].submit):
        event(handlers.examine, examined, only("lab_results"), **quiet)
    parts["lab_apply"].click(
        handlers.prefer_retrieval,
        only("conversation", *LAB),
        only("conversation", "lab_note"),
        **quiet,
    )
    timer.tick(handlers.tick, None, [*only(*model, "state"), timer], **quiet)
    page.unload(handlers.leave)

    turn = only(*shown, "conversation", "conversations", "text", "editing", *about)
    send, act = _ending_quietly(handlers.send), _ending_quietly(handlers.act)
    parts["text"].submit(send, only("text", "conversation", "base", "editing"), turn, concurrency_limit=None, **quiet)
    parts["actions"].click(act, only("conversation", "base"), turn, concurrency_limit=None, **quiet)
    parts["text"].stop(handlers.stop, queue=False)

    chosen = only(*shown, "conversation", "text", "editing", *about, "base", "documents", "kept")
    listed = [*chosen, parts["conversations"]]
    parts["new_chat"].click(handlers.new_chat, only("kept"), listed, **quiet)
    parts["conversations"].input(handlers.choose_conversation, only("conversations", "kept"), chosen, **quiet)
    parts["conversation"].change(handlers.keep_conversation, only("conversation", "kept"), only("kept"), **quiet)
    # Not `input`: that is about keys, and Chinese comes from an input method, or is pasted.
    parts["search"].change(handlers.search, only("search", "conversation"), only("conversations"), **quiet)
    parts["title"].submit(handlers.rename, only("title", "conversation"), only("conversations"), **quiet)
    deleted = [*listed, *only("deleted", "restore")]
    parts["delete"].click(handlers.delete, only("conversation", "kept"), deleted, **quiet)
    parts["restore"].click(handlers.restore, only("deleted", "kept"), deleted, **quiet)
    parts["import"].upload(handlers.import_conversation, only("import", "kept"), listed, **quiet)
    for name in ("model", "tier"):
        parts[name].input(handlers.choose_model, only("model", "tier"), [*only(*model, "state"), timer], **quiet)
    parts["family"].input(handlers.choose_family, only("family"), only("model"), **quiet)
    parts["adapter"].input(handlers.choose_adapter, only("adapter"), [*only(*model, "state"), timer], **quiet)
    parts["chat_format"].input(handlers.choose_format, only("chat_format"), only("chat_format", "state"), **quiet)
    watched = [*only("documents", "halt", "password"), watch]
    watch.tick(handlers.watch_base, only("base"), watched, **quiet)
    parts["halt"].click(handlers.halt, only("base"), watched, queue=False)
    parts["password"].submit(handlers.unlock, only("password", "base"), watched, **quiet)
    parts["base"].input(handlers.watch_base, only("base"), watched, **quiet)
    parts["base"].change(handlers.keep_base, only("base", "kept"), only("kept"), **quiet)
    parts["new_base"].submit(
        handlers.new_base, only("new_base", "kept"), only("base", "documents", "new_base", "kept"), **quiet
    )
    parts["files"].upload(
        handlers.add_files,
        only("files", "base"),
        only("base", "documents", "files", "halt", "password"),
        **quiet,
    )
