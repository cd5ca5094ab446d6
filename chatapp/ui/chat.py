"""The chat, in the centre: messages, input, and what a turn shows while it runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial, wraps
from pathlib import Path
from typing import Any

import gradio as gr

from knowledge import KnowledgeBaseError

from ..checkpoints import FetchError
from ..citing import Evidence
from ..digest import DigestError, asks_for_summary, still_there
from ..library import LibraryError
from ..preferences import Asked, asking
from ..session import FINAL, Beside, Reply, question_beside
from ..store import StoredMessage
from ..texts import say
from ..tree import Node, Tree, TreeError
from . import documents, evidence, render
from .conversations import ABOUT, about, listed
from .section import QUIET, Label, Parts, Section, busy, idle, joined, only, warn
from .shelf import number_of

#: They run once, in one scope with Gradio's `trigger`.
SCRIPTS = Path(__file__).with_name("scripts")

#: What takes a file from beside the question.
CHIPS = "element.addEventListener('click', ({target}) => target.dataset.do && trigger('click', {...target.dataset}));"

#: Seconds between two updates of a streaming reply.
REFRESH = 0.06

#: The outputs of a turn; `editing` is which message is being edited.
TURN = ("messages", "sources", "progress", "conversation", "conversations", "text", "editing", *ABOUT)
NOTHING = (gr.skip(),) * len(TURN)

LATEX = [
    {"left": "$$", "right": "$$", "display": True},
    {"left": "\\[", "right": "\\]", "display": True},
    {"left": "\\(", "right": "\\)", "display": False},
]


def layout(label: Label) -> Parts:
    messages = gr.Chatbot(
        label=label("chat"),
        show_label=False,
        placeholder="",
        buttons=["copy"],
        layout="bubble",
        latex_delimiters=LATEX,
        feedback_options=None,
        height="100%",
        elem_id="messages",
    )
    chips = gr.HTML(js_on_load=CHIPS, elem_id="chips")
    with gr.Row(elem_id="composer"):
        beside = documents.composer(label)
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
    with gr.Row(elem_id="below"):
        mode = gr.Radio([], label=label("mode"), min_width=180, scale=0, elem_id="mode")
        progress = gr.HTML(elem_id="progress")
    return {
        "messages": messages,
        "text": text,
        "chips": chips,
        **beside,
        "mode": mode,
        "progress": progress,
        "actions": gr.HTML(js_on_load=joined(sorted(SCRIPTS.glob("*.js"))), elem_id="actions"),
    }


def connect(parts: Parts, turns: Turns) -> None:
    turn = only(parts, *TURN)
    send, act = _taking_along(_ending_quietly(turns.send)), _ending_quietly(turns.act)
    asked = only(parts, "text", "conversation", "base", "editing", "beside")
    sent = [*turn, *only(parts, "chips", "beside")]
    parts["text"].submit(send, asked, sent, concurrency_limit=None, **QUIET)
    parts["actions"].click(act, only(parts, "conversation", "base"), turn, concurrency_limit=None, **QUIET)
    # What writes no reply has events of its own, each of which counts: Gradio passes over a click while the one before
    # is not at its end.
    quick = {"trigger_mode": "multiple", "concurrency_limit": None, **QUIET}
    parts["actions"].apply(turns.move, only(parts, "conversation"), turn, **quick)
    parts["actions"].expand(turns.show, only(parts, "conversation"), only(parts, "sources"), **quick)
    parts["text"].stop(turns.stop, queue=False)


class Turns(Section):
    def stop(self, request: gr.Request) -> None:
        """Ends the session's reply."""
        self._desk.stop(request)

    def leave(self, request: gr.Request) -> None:
        """The browser has gone."""
        self._desk.leave(request)

    def send(
        self,
        text: str,
        conversation: str | None,
        base: list[str],
        editing: int | None,
        beside: list[Beside],
        request: gr.Request,
    ) -> Iterator[tuple[Any, ...]]:
        """Streams the reply to what was typed, with the files beside it, or to another version of an earlier message:
        TURN."""
        if not text.strip():
            yield NOTHING
            return
        tree = self._chat.store.tree(conversation) if conversation else Tree()
        conversation = conversation or self._chat.begin()
        if editing in tree.nodes:
            before, start = tree.path_to(tree[editing].parent), partial(self._chat.edit, conversation, editing, text)
        else:
            before, start = tree.path, partial(self._chat.send, conversation, text, beside=beside)
            if len(beside) == 1 and asks_for_summary(text):
                start = partial(self._chat.sum_up, conversation, beside[0].id, text)
        yield from self._stream(conversation, before, [question_beside(text, beside)], start, asking(base), request)

    def act(
        self, event: gr.EventData, conversation: str | None, base: list[str], request: gr.Request
    ) -> Iterator[tuple[Any, ...]]:
        """Writes what a link below a message, or beside a document, asks for: TURN."""
        try:
            yield from self._act(event.do, event.message, conversation, asking(base), request)
        except TreeError as error:
            yield self._changed(error, conversation, request)

    def move(self, event: gr.EventData, conversation: str | None, request: gr.Request) -> tuple[Any, ...]:
        """Goes where a link below a message or the input leads: TURN."""
        try:
            return self._move(event.do, event.message, conversation, self.language(request))
        except TreeError as error:
            return self._changed(error, conversation, request)

    def show(self, event: gr.EventData, conversation: str | None, request: gr.Request) -> Any:
        """The page of a citation, a quote or a source in the place of the sources, or these again."""
        language = self.language(request)
        try:
            stored = self._chat.store.tree(conversation or "")[event.message].message
        except TreeError as error:
            warn(error, self.language(request))
            return gr.skip()
        if event.do not in evidence.PLACES or not event.more:
            return render.sources_pane(stored.sources, language, event.message)
        view = evidence.View(event.message, *event.more[:2], kind=event.do)
        return evidence.panel(stored, view, self._chat.library, language)

    def _act(
        self, do: str, message: int, conversation: str | None, base: Asked, request: gr.Request
    ) -> Iterator[tuple[Any, ...]]:
        if do == "summarise":
            yield from self._sum_up(message, conversation, base, request)
            return
        if not conversation:
            yield NOTHING
            return
        chat, tree = self._chat, self._chat.store.tree(conversation)
        match do:
            case "regenerate":
                before = tree.path_to(tree.question(message).id)
                start = partial(chat.regenerate, conversation, message)
                yield from self._stream(conversation, before, [], start, base, request)
            case "continue":
                before = tree.path_to(tree.continuable().parent)
                yield from self._stream(
                    conversation, before, None, lambda _, cancel: chat.continue_(conversation, cancel), None, request
                )
            case _:  # a model can write links too
                yield NOTHING

    def _move(self, do: str, message: int, conversation: str | None, language: str) -> tuple[Any, ...]:
        if not conversation:
            return NOTHING
        chat, tree = self._chat, self._chat.store.tree(conversation)
        match do:
            case "choose":
                return self._moved(chat.choose(conversation, message), language)
            case "undo":
                return self._moved(chat.undo(conversation), language)
            case "earlier":
                return (render.branch(tree, language, message), *NOTHING[1:])
            case "edit":
                return self._editing(tree.editable(message).message.content, message, language)
            case "search":  # the question again, as it was searched for
                beside = Evidence.from_json(tree[message].message.evidence)
                return self._editing(beside.searched_for or "", tree.question(message).id, language)
            case "cancel":
                return (*NOTHING[:2], "", *NOTHING[3:5], gr.update(value=""), None, *NOTHING[7:])
            case _:  # a model can write links too
                return NOTHING

    def _editing(self, text: str, message: int, language: str) -> tuple[Any, ...]:
        """A text in the input, which is to be another version of a message: TURN."""
        return (*NOTHING[:2], render.editing(language), *NOTHING[3:5], gr.update(value=text), message, *NOTHING[7:])

    def _changed(self, error: TreeError, conversation: str | None, request: gr.Request) -> tuple[Any, ...]:
        """The page showed what another window has changed: TURN."""
        language = self.language(request)
        warn(error, language)
        return (*render.conversation(self._chat.store.tree(conversation or ""), language), *NOTHING[3:])

    def _sum_up(
        self, number: int, conversation: str | None, base: Asked, request: gr.Request
    ) -> Iterator[tuple[Any, ...]]:
        """The summary of the document with that number as another turn: TURN."""
        language = self.language(request)
        try:
            asked = self._chat.library.ask(base)
            files = asked.documents() if asked else []
            id = next((file.id for file in files if number_of(file) == number), "")
            file = still_there(files, id)
        except (LibraryError, FetchError, KnowledgeBaseError, DigestError) as error:
            warn(error, self.language(request))
            yield NOTHING
            return
        text = say(language, "summarise_asked", name=file.name)
        before = self._chat.store.tree(conversation).path if conversation else []
        conversation = conversation or self._chat.begin()
        start = partial(self._chat.sum_up, conversation, file.id, text)
        yield from self._stream(conversation, before, [StoredMessage("user", text)], start, base, request)

    def _moved(self, tree: Tree, language: str) -> tuple[Any, ...]:
        """Another branch is shown, and nothing is edited any more: TURN."""
        return *render.conversation(tree, language), *NOTHING[3:6], None, *NOTHING[7:]

    def _stream(
        self,
        conversation: str,
        before: Sequence[Node],
        asked: Sequence[StoredMessage] | None,
        start: Callable[[Asked, threading.Event], Iterator[Reply]],
        base: Asked,
        request: gr.Request,
    ) -> Iterator[tuple[Any, ...]]:
        """A reply as it grows behind what was said before and what is asked now; None: it has begun already. TURN."""
        language = self.language(request)
        recent = before[-render.RECENT :]
        said = [*(node.message for node in recent), *(asked or ())]
        shown = render.messages(said, language, [node.id for node in recent])
        shown = [*render.earlier(len(before) - len(recent), language), *shown]
        cancel = self._desk.begin(request)
        first = gr.skip() if asked is None else shown
        yield first, gr.skip(), "", conversation, gr.skip(), busy(), None, *NOTHING[7:]
        time.sleep(REFRESH)  # of two states that come at once the page loses what only the first one says: Stop
        try:
            reply, sources, new = Reply(), None, not before
            for reply in _paced(start(base, cancel)):
                if reply.state in FINAL or not self._desk.shows(cancel, request):
                    continue  # shown below, or the page shows another conversation by now; this one goes to disk
                messages, pane, line = self._reply(shown, reply, language)
                # Once they are shown they stay: the page of a citation may have taken their place by a click.
                pane = gr.skip() if reply.sources == sources else pane
                listing, beside = gr.skip(), NOTHING[7:]
                if new and reply.number is not None:  # its question is on disk: the conversation has a title
                    listing, new = listed(self._chat.store, conversation, language), False
                    beside = about(self._chat.store, conversation, language)
                yield (messages, pane, line, gr.skip(), listing, gr.skip(), gr.skip(), *beside)
                sources = list(reply.sources)
            if self._desk.shows(cancel, request):
                kept = self._reply(shown, reply, language)
                if reply.number is not None:  # else it never came to disk, and only the reply itself says why
                    kept = render.conversation(self._chat.store.tree(conversation), language, kept[-1])
                messages, pane, line = kept
                pane = gr.skip() if reply.sources and reply.sources == sources else pane
                conversations = listed(self._chat.store, conversation, language)
                beside = about(self._chat.store, conversation, language)
                yield (messages, pane, line, gr.skip(), conversations, idle(), gr.skip(), *beside)
            for other in self._desk.went(request):  # what was on its way then may have come after it
                tree = self._chat.store.tree(other) if other else Tree()
                yield *render.conversation(tree, language), *NOTHING[3:]
        finally:
            cancel.set()

    def _reply(self, shown: list[dict[str, Any]], reply: Reply, language: str) -> tuple[Any, ...]:
        messages = [*shown, render.reply_message(reply, language)]
        pane = render.sources_pane(reply.sources, language, reply.number)
        return messages, pane, render.progress_line(reply, language)


def _paced(replies: Iterator[Reply]) -> Iterator[Reply]:
    """A reply's states at the page's pace; the last one always comes."""
    shown = 0.0
    for reply in replies:
        if reply.state in FINAL or time.monotonic() - shown >= REFRESH:
            shown = time.monotonic()
            yield reply


def _taking_along(send: Callable[..., Iterator[tuple[Any, ...]]]) -> Callable[..., Iterator[tuple[Any, ...]]]:
    """What is beside a question goes with it, and is beside the next one no longer: as `send`, chips, and beside. Not
    an event of its own, which might come before the question has been looked at."""

    @wraps(send)
    def run(text: str, *arguments: Any) -> Iterator[tuple[Any, ...]]:
        gone = ("", []) if text.strip() else (gr.skip(), gr.skip())
        for shown in send(text, *arguments):
            yield (*shown, *gone)
            gone = (gr.skip(), gr.skip())

    return run


def _ending_quietly(handler: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """Gradio shows what a turn yielded last once more when it ends, and the page may show something else by then."""

    @wraps(handler)
    def run(*arguments: Any) -> Iterator[Any]:
        yield from handler(*arguments)
        time.sleep(REFRESH)  # else the page might lose that the input is free again
        yield NOTHING

    return run
