"""The conversations, in the left pane: the list, and what can be done with the one that is open."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import gradio as gr

from .. import transfer
from ..store import Store, StoreError
from ..texts import say
from ..tree import Tree, TreeError
from ..words import whole_characters
from . import render
from .documents import Documents
from .section import AWAY, QUIET, Desk, Kept, Label, Parts, Section, idle, only, showing, warn

#: What changes with the conversation that is open, and what `about` gives.
CHOSEN = ("messages", "sources", "progress", "conversation", "text", "editing")
ABOUT = ("about", "title", "exports", "heading")
#: What `Conversations.open` fills.
OPENED = ("messages", "sources", "progress", "conversation", "conversations", *ABOUT)


def layout(label: Label) -> Parts:
    """The list, and what can be done with the conversation that is open."""
    hint = label("search")
    new_chat = gr.Button(label("new_chat"), variant="primary", size="md", elem_id="new-chat")
    search = gr.Textbox(label=hint, placeholder=hint, show_label=False, max_lines=1, elem_id="search")
    conversations = gr.Radio([], label=label("conversations"), elem_id="conversations")
    restore = gr.Button(label("restore"), size="sm", elem_classes=AWAY, elem_id="restore")
    with gr.Accordion(
        label("this_conversation"), open=False, elem_classes=AWAY, elem_id="conversation-section"
    ) as about:
        title = gr.Textbox(label=label("title"), info=label("title_info"), max_lines=1, elem_id="title")
        exports = gr.HTML(elem_id="exports")
        delete = gr.Button(label("delete"), size="sm", elem_id="delete")
    return {
        "new_chat": new_chat,
        "search": search,
        "conversations": conversations,
        "restore": restore,
        "about": about,
        "title": title,
        "exports": exports,
        "delete": delete,
        "deleted": gr.State(None),
    }


def importer(label: Label) -> Parts:
    """The button that brings a conversation back from its file."""
    return {"import": gr.UploadButton(label("import"), file_types=[".json", ".md"], size="sm", elem_id="import")}


def connect(parts: Parts, conversations: Conversations) -> None:
    chosen = only(parts, *CHOSEN, *ABOUT, "base", "documents", "kept")
    listed = [*chosen, parts["conversations"]]
    deleted = [*listed, *only(parts, "deleted", "restore")]
    parts["new_chat"].click(conversations.new_chat, only(parts, "kept", "editing"), listed, **QUIET)
    went = only(parts, "conversations", "kept", "editing")
    parts["conversations"].input(conversations.choose, went, chosen, **QUIET)
    parts["conversation"].change(conversations.keep, only(parts, "conversation", "kept"), only(parts, "kept"), **QUIET)
    # Not `input`: that is about keys, and Chinese comes from an input method, or is pasted.
    found = only(parts, "conversations")
    parts["search"].change(conversations.search, only(parts, "search", "conversation"), found, **QUIET)
    renamed = only(parts, "conversations", "heading")
    parts["title"].submit(conversations.rename, only(parts, "title", "conversation"), renamed, **QUIET)
    parts["delete"].click(conversations.delete, only(parts, "conversation", "kept"), deleted, **QUIET)
    parts["restore"].click(conversations.restore, only(parts, "deleted", "kept"), deleted, **QUIET)
    parts["import"].upload(conversations.import_file, only(parts, "import", "kept"), listed, **QUIET)


class Conversations(Section):
    def __init__(self, desk: Desk, documents: Documents) -> None:
        super().__init__(desk)
        self._documents = documents

    def show(self, conversation: str | None, request: gr.Request, message: str = "") -> tuple[Any, ...]:
        """Messages, sources and progress line of a kept conversation, from `message` on if that is an early one."""
        tree = self._chat.store.tree(conversation) if conversation else Tree()
        ids = [str(node.id) for node in tree.path]
        behind = len(ids) - ids.index(message) if message in ids else 0
        return render.conversation(tree, self.language(request), count=max(behind, render.RECENT))

    def open(self, conversation: str | None, request: gr.Request) -> tuple[Any, ...]:
        """OPENED."""
        store, language = self._chat.store, self.language(request)
        listing = listed(store, conversation, language)
        return *self.show(conversation, request), conversation, listing, *about(store, conversation, language)

    def new_chat(self, kept: Kept, editing: int | None, request: gr.Request) -> tuple[Any, ...]:
        """As `choose`, and conversations."""
        return *self.choose(None, kept, editing, request), listed(self._chat.store, None, self.language(request))

    def choose(self, chosen: str | None, kept: Kept, editing: int | None, request: gr.Request) -> tuple[Any, ...]:
        """Messages, sources, progress line, conversation, input, editing, ABOUT, base, documents, kept.

        `chosen` is a conversation, or one with a message that was searched for ("id/message"), whose branch is shown
        then. A reply that streams elsewhere is stopped. What was typed stays in the input, unless it is an earlier
        message that was being edited.
        """
        self._desk.go((chosen or "").partition("/")[0] or None, request)
        conversation, _, message = (chosen or "").partition("/")
        if message and int(message) not in {node.id for node in self._chat.store.tree(conversation).path}:
            with suppress(TreeError):  # it may have been removed since
                self._chat.choose(conversation, int(message))
        kept = self.keep(conversation or None, kept)
        rows = {row.id: row.preferences.knowledge_base for row in self._chat.store.conversations()}
        kept["base"] = rows.get(conversation, kept.get("base"))
        language = self.language(request)
        shown, beside = self.show(conversation, request, message), about(self._chat.store, conversation, language)
        text = idle() if editing is None else idle() | {"value": ""}
        return *shown, kept["conversation"], text, None, *beside, *self._documents.asked(kept["base"], language), kept

    def keep(self, conversation: str | None, kept: Kept) -> Kept:
        return {**kept, "conversation": conversation}

    def search(self, text: str, conversation: str | None, request: gr.Request) -> Any:
        """The conversations in which a text is found, or that it is in none; all for an empty one."""
        language = self.language(request)
        if not text.strip():
            return listed(self._chat.store, conversation, language)
        hits = self._chat.store.search(text)
        nothing = "" if hits else say(language, "search_nothing")
        return gr.update(choices=[render.hit(hit, language) for hit in hits], value=None, info=nothing)

    def rename(self, title: str, conversation: str | None, request: gr.Request) -> tuple[Any, str]:
        """The list, and the heading."""
        store, language = self._chat.store, self.language(request)
        if conversation:
            store.rename(conversation, whole_characters(title))
        return listed(store, conversation, language), about(store, conversation, language)[-1]

    def delete(self, conversation: str | None, kept: Kept, request: gr.Request) -> tuple[Any, ...]:
        """As `new_chat`; then what was deleted, and the button that brings it back."""
        if conversation:
            self._chat.store.delete(conversation)
        back = showing(bool(conversation))
        return *self.new_chat(kept, None, request), conversation, back

    def restore(self, deleted: str | None, kept: Kept, request: gr.Request) -> tuple[Any, ...]:
        """As `delete`, the other way round."""
        if deleted:
            self._chat.store.restore(deleted)
        shown = self.choose(deleted, kept, None, request)
        return *shown, listed(self._chat.store, deleted, self.language(request)), None, showing(False)

    def import_file(self, file: str, kept: Kept, request: gr.Request) -> tuple[Any, ...]:
        """As `new_chat`, with the conversation of an exported file."""
        path = Path(file)
        try:
            conversation = transfer.import_file(self._chat.store, path.read_bytes()).id
        except (transfer.TransferError, StoreError, OSError) as error:
            warn(error, self.language(request))
            return *(gr.skip(),) * 12, kept, gr.skip()
        finally:
            path.unlink(missing_ok=True)
        shown = self.choose(conversation, kept, None, request)
        return *shown, listed(self._chat.store, conversation, self.language(request))


def listed(store: Store, chosen: str | None, language: str) -> Any:
    """All conversations, with one of them chosen."""
    rows = store.conversations()
    choices = [(row.title or say(language, "untitled"), row.id) for row in rows]
    return gr.update(choices=choices, value=chosen if chosen in {row.id for row in rows} else None, info="")


def about(store: Store, conversation: str | None, language: str) -> tuple[Any, str, str, str]:
    """What can be done with a conversation: the section, its title, its files; and the heading over its messages."""
    rows = {row.id: row for row in store.conversations()}
    if conversation not in rows:
        return showing(False), "", "", render.heading(say(language, "new_chat"))
    title = rows[conversation].title
    heading = render.heading(title or say(language, "untitled"))
    return showing(True), title, render.exports(conversation, language), heading
