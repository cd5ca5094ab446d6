"""What the page's controls do. Handlers turn events into calls of the application and results into updates."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

import models
from knowledge import Ingested, KnowledgeBaseError, Status
from knowledge.database import UNFINISHED, StoredDocument

from .. import checkpoints, transfer
from ..checkpoints import FetchError
from ..citing import Evidence
from ..digest import DigestError, still_there
from ..engine import EngineError, Source
from ..library import LibraryError
from ..preferences import Preferences, Retrieving
from ..session import FINAL, Chat, Reply
from ..settings import TIERS, Settings
from ..startup import Startup
from ..store import StoredMessage, StoreError
from ..texts import preferred, say
from ..tree import Node, Tree, TreeError
from ..words import whole_characters
from . import evidence, lab, render

#: Seconds between two updates of a streaming reply.
REFRESH = 0.06

ALL = "*"  #: every family
EVIDENCE = ("cite", "page", "sources")  #: links that show where a reply comes from

NOTHING = (gr.skip(),) * 10
"""TURN, the outputs of a turn, unchanged: messages, sources, progress line, conversation, conversations, input, which
message is being edited, and the three of `_about`."""

Kept = dict[str, str | None]
"""What the browser remembers across a reload: {"conversation": id, "base": name}. A handler that has it as an output
always returns it: Gradio would store a skip as its value."""


class Handlers:
    """One set for all browsers; what belongs to one of them is kept there, or under its session."""

    def __init__(self, settings: Settings, chat: Chat, startup: Startup) -> None:
        self._settings = settings
        self._chat = chat
        self._startup = startup
        self._cancels: dict[str, threading.Event] = {}

    def language(self, request: gr.Request) -> str:
        if self._settings.lang != "auto":
            return self._settings.lang
        return preferred(request.headers.get("accept-language", ""))

    # Opening the page

    def open_page(self, kept: Kept, request: gr.Request) -> tuple[Any, ...]:
        """Everything that depends on the language or on what is on disk."""
        language = self.language(request)
        base = self._known_base(kept.get("base"))
        documents, *halting = self._looked_at(base, (), language)
        return (
            *self.show_conversation(kept.get("conversation"), request),
            kept.get("conversation"),
            self._conversations(kept.get("conversation"), language),
            *self._about(kept.get("conversation"), language),
            self._bases(base, language),
            documents,
            *self._models(language),
            self.state(request),
            self._timer(),
            *halting,
        )

    def show_conversation(self, conversation: str | None, request: gr.Request) -> tuple[Any, ...]:
        """Messages, sources and progress line of a kept conversation."""
        language = self.language(request)
        return self._branch(self._chat.store.tree(conversation) if conversation else Tree(), language)

    def _branch(self, tree: Tree, language: str, progress: str | None = None) -> tuple[Any, ...]:
        sources = tree[tree.leaf].message.sources if tree.leaf is not None else ()
        line = render.undone(tree, language) + render.kept_budget(tree, language) if progress is None else progress
        return render.branch(tree, language), render.sources_pane(sources, language), line

    def state(self, request: gr.Request) -> str:
        status = self._chat.engine.status
        embedded = status.name.startswith(checkpoints.DEFAULT_MODEL)
        return render.engine_state(
            status, self._startup.fetching, self._startup.notes, embedded, self.language(request)
        )

    def tick(self, request: gr.Request) -> tuple[Any, ...]:
        """Family, model, adapter, tier, chat format, state, and whether to go on asking: not once a model is there."""
        timer = self._timer()
        model = (gr.skip(),) * 5 if timer.active else self._models(self.language(request))
        return *model, self.state(request), timer

    def _timer(self) -> gr.Timer:
        return gr.Timer(active=self._chat.engine.status.state in ("empty", "loading"))

    # Chatting

    def send(
        self, text: str, conversation: str | None, base: str | None, editing: int | None, request: gr.Request
    ) -> Iterator[tuple[Any, ...]]:
        """Streams the reply to what was typed, which may be another version of an earlier message: TURN."""
        if not text.strip():
            yield NOTHING
            return
        tree = self._chat.store.tree(conversation) if conversation else Tree()
        conversation = conversation or self._chat.store.create().id
        if editing in tree.nodes:
            before, start = tree.path_to(tree[editing].parent), partial(self._chat.edit, conversation, editing, text)
        else:
            before, start = tree.path, partial(self._chat.send, conversation, text)
        yield from self._stream(conversation, before, [StoredMessage("user", text)], start, base, request)

    def act(
        self, event: gr.EventData, conversation: str | None, base: str | None, request: gr.Request
    ) -> Iterator[tuple[Any, ...]]:
        """Does what a link below a message, or beside a document, says: TURN."""
        if event.do == "summarise":
            yield from self._sum_up(event.message, conversation, base, request)
            return
        if not conversation:
            yield NOTHING
            return
        try:
            if event.do in EVIDENCE:
                yield self._evidence(event.do, [event.message, *event.more], conversation, self.language(request))
            else:
                yield from self._act(event.do, event.message, conversation, base, request)
        except TreeError as error:  # the page showed what another window has changed
            _warn(error)
            yield (*self.show_conversation(conversation, request), *NOTHING[3:])

    def _act(
        self, do: str, message: int, conversation: str, base: str | None, request: gr.Request
    ) -> Iterator[tuple[Any, ...]]:
        language, chat, tree = self.language(request), self._chat, self._chat.store.tree(conversation)
        match do:
            case "choose":
                yield self._moved(chat.choose(conversation, message), language)
            case "undo":
                yield self._moved(chat.undo(conversation), language)
            case "edit":
                text = gr.update(value=tree.editable(message).message.content)
                yield (*NOTHING[:2], render.editing(language), *NOTHING[3:5], text, message, *NOTHING[7:])
            case "search":  # the question again, as it was searched for
                beside = Evidence.from_json(tree[message].message.evidence)
                text, asked = gr.update(value=beside.searched_for or ""), tree.question(message).id
                yield (*NOTHING[:2], render.editing(language), *NOTHING[3:5], text, asked, *NOTHING[7:])
            case "cancel":
                yield (*NOTHING[:2], "", *NOTHING[3:5], gr.update(value=""), None, *NOTHING[7:])
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

    def _sum_up(
        self, number: int, conversation: str | None, base: str | None, request: gr.Request
    ) -> Iterator[tuple[Any, ...]]:
        """The summary of the document with that number as another turn: TURN."""
        language = self.language(request)
        try:
            files = self._chat.library.open(base or "").documents()
            id = next((file.id for file in files if render.number_of(file) == number), "")
            file = still_there(files, id)
        except (LibraryError, FetchError, KnowledgeBaseError, DigestError) as error:
            _warn(error)
            yield NOTHING
            return
        text = say(language, "summarise_asked", name=file.name)
        before = self._chat.store.tree(conversation).path if conversation else []
        conversation = conversation or self._chat.store.create().id
        start = partial(self._chat.sum_up, conversation, file.id, text)
        yield from self._stream(conversation, before, [StoredMessage("user", text)], start, base, request)

    def _evidence(self, do: str, numbers: list[int], conversation: str, language: str) -> tuple[Any, ...]:
        """The page behind a citation in the place of the sources, or these again: TURN."""
        message, *place = numbers
        stored = self._chat.store.tree(conversation)[message].message
        if do == "sources" or not place:
            shown = render.sources_pane(stored.sources, language)
        else:
            shown = evidence.panel(stored, evidence.View(message, *place[:2]), self._chat.library, language)
        return (NOTHING[0], shown, *NOTHING[2:])

    # The retrieval lab

    def examine(
        self, question: str, base: str | None, passages: int, threshold: float, method: str, request: gr.Request
    ) -> str:
        """What a search finds."""
        language = self.language(request)
        if not base or not question.strip():
            return _hint(say(language, "lab_no_base"))
        how = Retrieving(passages=passages, threshold=threshold, method=method)
        try:
            return lab.results(question, self._chat.library.open(base).rank(question), how, language)
        except (LibraryError, KnowledgeBaseError, FetchError) as error:
            return _hint(f"⚠ {render.escape(str(error))}")

    def prefer_retrieval(
        self,
        conversation: str | None,
        passages: int,
        threshold: float,
        method: str,
        followups: bool,
        request: gr.Request,
    ) -> tuple[str, str]:
        """Lets a conversation search like this: its id, and what to say."""
        how = Retrieving(passages=passages, threshold=threshold, method=method)
        id = self._prefer(conversation, retrieval=how, followups=None if followups else False)
        return id, _hint(say(self.language(request), "lab_applied"))

    def prefer_mode(self, conversation: str | None, mode: str) -> str:
        """Lets a conversation's answers come from documents, from the model, or from either: its id."""
        return self._prefer(conversation, mode=mode)

    def _prefer(self, conversation: str | None, **changes: Any) -> str:
        store = self._chat.store
        kept = store.conversation(conversation) if conversation else store.create()
        store.prefer(kept.id, kept.preferences.model_copy(update=changes))
        return kept.id

    def preferred(self, conversation: str | None, request: gr.Request) -> tuple[Any, ...]:
        """How a conversation searches: mode, passages, threshold, method, follow-up questions."""
        language = self.language(request)
        kept = self._chat.store.conversation(conversation).preferences if conversation else Preferences()
        how = kept.retrieval or Retrieving()
        return (
            gr.update(choices=lab.choices(lab.MODES, language), value=kept.mode or "documents"),
            how.passages,
            how.threshold,
            gr.update(choices=lab.choices(lab.ORDERS, language), value=how.method),
            kept.followups is not False,
        )

    def _moved(self, tree: Tree, language: str) -> tuple[Any, ...]:
        """Another branch is shown, and nothing is edited any more: TURN."""
        return *self._branch(tree, language), *NOTHING[3:6], None, *NOTHING[7:]

    def _stream(
        self,
        conversation: str,
        before: Sequence[Node],
        asked: Sequence[StoredMessage] | None,
        start: Callable[[str | None, threading.Event], Iterator[Reply]],
        base: str | None,
        request: gr.Request,
    ) -> Iterator[tuple[Any, ...]]:
        """A reply as it grows behind what was said before and what is asked now; None: it has begun already. TURN."""
        language = self.language(request)
        numbers = [node.id for node in before]
        shown = render.messages([*(node.message for node in before), *(asked or ())], language, numbers)
        cancel = self._cancels[request.session_hash or ""] = threading.Event()
        first = gr.skip() if asked is None else shown
        yield first, gr.skip(), "", conversation, gr.skip(), _busy(), None, *NOTHING[7:]
        try:
            reply, sources = Reply(), None
            for reply in _paced(start(base or None, cancel)):
                if reply.state in FINAL or self._cancels.get(request.session_hash or "") is not cancel:
                    continue  # shown below, or the page shows another conversation by now; this one goes to disk
                messages, pane, line = self._reply(shown, reply, language)
                # Once they are shown they stay: the page of a citation may have taken their place by a click.
                yield (messages, gr.skip() if reply.sources == sources else pane, line, *NOTHING[3:])
                sources = list(reply.sources)
            if self._cancels.get(request.session_hash or "") is cancel:
                kept = self._reply(shown, reply, language)
                if reply.number is not None:  # else it never came to disk, and only the reply itself says why
                    kept = self._branch(self._chat.store.tree(conversation), language, kept[-1])
                conversations, about = self._conversations(conversation, language), self._about(conversation, language)
                messages, pane, line = kept
                pane = gr.skip() if reply.sources and reply.sources == sources else pane
                yield (messages, pane, line, gr.skip(), conversations, _idle(), gr.skip(), *about)
        finally:
            cancel.set()

    def _reply(self, shown: list[dict[str, Any]], reply: Reply, language: str) -> tuple[Any, ...]:
        messages = [*shown, render.reply_message(reply, language)]
        return messages, render.sources_pane(reply.sources, language), render.progress_line(reply, language)

    def stop(self, request: gr.Request) -> None:
        """Ends the session's reply within a token, or a layer of what is being read."""
        if cancel := self._cancels.get(request.session_hash or ""):
            cancel.set()

    def leave(self, request: gr.Request) -> None:
        """Nobody waits for the session's reply any more: the browser has gone, or shows another conversation."""
        if cancel := self._cancels.pop(request.session_hash or "", None):
            cancel.set()

    # Conversations

    def new_chat(self, kept: Kept, request: gr.Request) -> tuple[Any, ...]:
        """As `choose_conversation`, and conversations."""
        return *self.choose_conversation(None, kept, request), self._conversations(None, self.language(request))

    def choose_conversation(self, chosen: str | None, kept: Kept, request: gr.Request) -> tuple[Any, ...]:
        """Messages, sources, progress line, conversation, input, editing, `_about`, base, documents, kept.

        `chosen` is a conversation, or one with a message that was searched for ("id/message"), whose branch is shown
        then. A reply that streams elsewhere is stopped.
        """
        self.leave(request)
        conversation, _, message = (chosen or "").partition("/")
        if message and int(message) not in {node.id for node in self._chat.store.tree(conversation).path}:
            with suppress(TreeError):  # it may have been removed since
                self._chat.choose(conversation, int(message))
        kept = self.keep_conversation(conversation or None, kept)
        rows = {row.id: row.preferences.knowledge_base for row in self._chat.store.conversations()}
        kept["base"] = rows.get(conversation, kept.get("base"))
        language = self.language(request)
        shown, about = self.show_conversation(conversation, request), self._about(conversation, language)
        return *shown, kept["conversation"], _idle(), None, *about, *self._asked_base(kept["base"], language), kept

    def keep_conversation(self, conversation: str | None, kept: Kept) -> Kept:
        return {**kept, "conversation": conversation}

    def _conversations(self, chosen: str | None, language: str) -> Any:
        rows = self._chat.store.conversations()
        choices = [(row.title or say(language, "untitled"), row.id) for row in rows]
        return gr.update(choices=choices, value=chosen if chosen in {row.id for row in rows} else None)

    def search(self, text: str, conversation: str | None, request: gr.Request) -> Any:
        """The conversations in which a text is found; all for an empty one."""
        language = self.language(request)
        if not text.strip():
            return self._conversations(conversation, language)
        hits = self._chat.store.search(text)
        return gr.update(choices=[render.hit(hit, language) for hit in hits], value=None)

    def _about(self, conversation: str | None, language: str) -> tuple[Any, str, str]:
        """What can be done with a conversation: the section, its title, its files."""
        rows = {row.id: row for row in self._chat.store.conversations()}
        if conversation not in rows:
            return gr.update(visible=False), "", ""
        return gr.update(visible=True), rows[conversation].title, render.exports(conversation, language)

    def rename(self, title: str, conversation: str | None, request: gr.Request) -> Any:
        if conversation:
            self._chat.store.rename(conversation, whole_characters(title))
        return self._conversations(conversation, self.language(request))

    def delete(self, conversation: str | None, kept: Kept, request: gr.Request) -> tuple[Any, ...]:
        """As `new_chat`; then what was deleted, and the button that brings it back."""
        if conversation:
            self._chat.store.delete(conversation)
        back = gr.update(visible=bool(conversation))
        return *self.new_chat(kept, request), conversation, back

    def restore(self, deleted: str | None, kept: Kept, request: gr.Request) -> tuple[Any, ...]:
        """As `delete`, the other way round."""
        if deleted:
            self._chat.store.restore(deleted)
        shown = self.choose_conversation(deleted, kept, request)
        return *shown, self._conversations(deleted, self.language(request)), None, gr.update(visible=False)

    def import_conversation(self, file: str, kept: Kept, request: gr.Request) -> tuple[Any, ...]:
        """As `new_chat`, with the conversation of an exported file."""
        path = Path(file)
        try:
            conversation = transfer.import_file(self._chat.store, path.read_bytes()).id
        except (transfer.TransferError, StoreError, OSError) as error:
            _warn(error)
            return *(gr.skip(),) * 11, kept, gr.skip()
        finally:
            path.unlink(missing_ok=True)
        shown = self.choose_conversation(conversation, kept, request)
        return *shown, self._conversations(conversation, self.language(request))

    # Model

    def choose_model(self, chosen: str | None, tier: str, request: gr.Request) -> Iterator[tuple[Any, ...]]:
        """Loads a checkpoint of the list, or what was pasted as a path: family, model, adapter, tier, format, state,
        timer. Another tier of the loaded one keeps its adapter."""
        language = self.language(request)
        pasted = (chosen or "").strip().strip('"')
        if not pasted:  # the box was emptied
            yield (*self._models(language), self.state(request), gr.skip())
            return
        known = {found.name: found.path for found in self._found()}
        path = known.get(chosen) or Path(os.path.expanduser(pasted))
        name = chosen if chosen in known else checkpoints.name_of(path)
        loaded = self._chat.engine.source
        adapter = loaded.adapter if loaded and loaded.path == path else None
        yield from self._load(lambda: self._startup.source(path, name, tier or "auto", adapter), name, request)

    def choose_adapter(self, chosen: str, request: gr.Request) -> Iterator[tuple[Any, ...]]:
        """Puts an adapter on the loaded model, or takes it away: the same outputs as choose_model."""
        path = self._fitting_adapters().get(chosen)
        yield from self._load(lambda: self._startup.with_adapter(path), chosen, request)

    def _load(self, source: Callable[[], Source], name: str, request: gr.Request) -> Iterator[tuple[Any, ...]]:
        language = self.language(request)
        if self._chat.engine.busy:
            gr.Info(say(language, "waits", name=render.escape(name or self._chat.engine.status.name)))
        yield (*(gr.skip(),) * 6, gr.Timer(active=True))
        try:
            self._chat.engine.load(source())
        except EngineError as error:
            _warn(error)
        yield (*self._models(language), self.state(request), gr.Timer(active=False))

    def choose_family(self, family: str) -> Any:
        """Shows the checkpoints of one family, or all; the loaded one stays chosen where it is among them."""
        names = [found.name for found in self._found() if family in (ALL, found.family)]
        loaded = self._chat.engine.status.name
        return gr.update(choices=names, value=loaded if loaded in names else None)

    def choose_format(self, name: str, request: gr.Request) -> tuple[Any, str]:
        """Makes the model talk in another chat format; if it can't, the former stays: format, state."""
        try:
            self._chat.engine.use_chat_format(name or None)
        except EngineError as error:
            _warn(error)
        return self._formats(self.language(request)), self.state(request)

    def _models(self, language: str) -> tuple[Any, Any, Any, Any, Any]:
        """Family, model, adapter, tier and chat format as they are now."""
        found, status = self._found(), self._chat.engine.status
        names = {**checkpoints.FAMILIES, "": say(language, "family_other")}
        families = [(names[family], family) for family in names if any(family == each.family for each in found)]
        family = gr.update(choices=[(say(language, "family_all"), ALL), *families], value=ALL)
        model = gr.update(choices=[each.name for each in found], value=status.name or None)
        return family, model, self._adapters(language), self._tiers(language), self._formats(language)

    def _adapters(self, language: str) -> Any:
        """The loaded model's; the box is hidden where there are none."""
        source, fitting = self._chat.engine.source, self._fitting_adapters()
        chosen = next((name for name, path in fitting.items() if source and path == source.adapter), "")
        choices = [(say(language, "adapter_none"), ""), *((name, name) for name in fitting)]
        return gr.update(choices=choices, value=chosen, visible=bool(fitting))

    def _fitting_adapters(self) -> dict[str, Path]:
        """Adapters for the loaded model by name: those found, and the one in use wherever it is."""
        engine = self._chat.engine
        used = engine.source.adapter if engine.source else None
        found = checkpoints.find_adapters(self._settings.checkpoint_folders)
        fitting = {each.name: each.path for each in found if engine.accepts(each.path)}
        return fitting if used is None or used in fitting.values() else {**fitting, str(used): used}

    def _tiers(self, language: str) -> Any:
        source = self._chat.engine.source
        choices = [(say(language, "tier_auto"), "auto"), *((tier.upper(), tier) for tier in TIERS[1:])]
        return gr.update(choices=choices, value=source.asked_tier if source else self._settings.tier)

    def _formats(self, language: str) -> Any:
        rows = [(title, name) for name, title in models.chat_formats().items()]
        return gr.update(
            choices=[(say(language, "chat_format_own"), ""), *rows], value=self._chat.engine.chat_format or ""
        )

    def _found(self) -> list[checkpoints.Found]:
        return checkpoints.find(self._settings.checkpoint_folders)

    # Documents

    def keep_base(self, base: str | None, kept: Kept) -> Kept:
        return {**kept, "base": base or None}

    def watch_base(self, base: str | None, request: gr.Request) -> tuple[Any, ...]:
        """The documents of a knowledge base, and `_halting`."""
        return self._looked_at(base or None, (), self.language(request))

    def unlock(self, password: str, base: str | None, request: gr.Request) -> tuple[Any, ...]:
        """Tries a password on the files of a knowledge base that need one."""
        try:
            if base and password:
                self._chat.library.unlock(base, password)
        except (LibraryError, FetchError, KnowledgeBaseError) as error:
            _warn(error)
        documents, button, box, timer = self.watch_base(base, request)
        return documents, button, {**box, "value": ""}, timer

    def halt(self, base: str | None, request: gr.Request) -> tuple[Any, ...]:
        """Stops the work on a knowledge base's files, or goes on with those that were stopped."""
        try:
            if base and not self._chat.library.stop(base):
                self._chat.library.resume(base)
        except (LibraryError, FetchError, KnowledgeBaseError) as error:
            _warn(error)
        return self.watch_base(base, request)

    def _halting(self, files: Sequence[StoredDocument], language: str) -> tuple[Any, Any, Any]:
        """The button that says Stop while files are not finished, then Carry on if some were stopped; the box for a
        password if some need one; and the timer, which asks again while files are not finished."""
        states = {file.state for file in files}
        unfinished = not states.isdisjoint(UNFINISHED)
        text = say(language, "ingest_stop" if unfinished else "ingest_carry_on")
        button = gr.update(value=text, visible=unfinished or "cancelled" in states)
        return button, gr.update(visible=any(file.locked for file in files)), gr.Timer(active=unfinished)

    def new_base(self, name: str, kept: Kept, request: gr.Request) -> tuple[Any, ...]:
        """Makes a knowledge base: base, documents, the name's box, kept."""
        language = self.language(request)
        try:
            base = self._chat.library.create(name)
        except LibraryError as error:
            _warn(error)
            return (*(gr.skip(),) * 3, kept)
        return self._bases(base, language), self._documents(base, (), language), "", {**kept, "base": base}

    def add_files(
        self,
        files: list[tuple[str, str]] | None,
        base: str | None,
        request: gr.Request,
    ) -> Iterator[tuple[Any, ...]]:
        """Ingests uploaded (path, name) pairs: base, documents, the drop zone, the button that stops
        it, the box for a password. Makes a first base if need be."""
        language = self.language(request)
        if not files:
            yield (gr.skip(),) * 5
            return
        base = base or self._first_base(language)
        outcomes: list[Ingested] = []
        try:
            yield gr.skip(), render.ingesting(0, 1, say(language, "reading_file")), None, gr.skip(), gr.skip()
            knowledge_base = self._chat.library.open(base)
            # The base is the one that is asked from now on: its files can be searched as soon as they are read.
            yield self._bases(base, language), *(gr.skip(),) * 4
            named = [(Path(path), name) for path, name in files]
            for step in _watched(lambda report: knowledge_base.ingest(named, progress=report)):
                if isinstance(step, tuple):
                    status = knowledge_base.status()
                    shown = self._ingesting(status, step, language)
                    yield gr.skip(), shown, gr.skip(), self._halting(status.files, language)[0], gr.skip()
                else:
                    outcomes = step
        except (LibraryError, FetchError, KnowledgeBaseError, OSError) as error:
            _warn(error)
        finally:
            for path, _ in files:  # the knowledge base has its own copy
                Path(path).unlink(missing_ok=True)
        documents, button, box, _ = self._looked_at(base, outcomes, language)
        yield self._bases(base, language), documents, gr.skip(), button, box

    def _ingesting(self, status: Status, step: tuple[int, int, str], language: str) -> str:
        shown = (
            render.ingesting(*step),
            render.left(status.seconds, language),
            render.documents(status.files, (), language),
        )
        return "".join(shown)

    def _first_base(self, language: str) -> str:
        name = say(language, "base_default")
        return name if name in self._chat.library.names() else self._chat.library.create(name)

    def _asked_base(self, base: str | None, language: str) -> tuple[Any, Any]:
        """A knowledge base as the one that is asked, unless it is gone: base, documents."""
        known = self._known_base(base)
        return self._bases(known, language), self._documents(known, (), language)

    def _known_base(self, base: str | None) -> str | None:
        return base if base in self._chat.library.names() else None

    def _bases(self, chosen: str | None, language: str) -> Any:
        names = [(name, name) for name in self._chat.library.names()]
        return gr.update(choices=[(say(language, "base_none"), ""), *names], value=chosen or "")

    def _documents(self, base: str | None, outcomes: Any, language: str) -> str:
        return self._looked_at(base, outcomes, language)[0]

    def _looked_at(self, base: str | None, outcomes: Any, language: str) -> tuple[str, Any, Any, Any]:
        """The documents of a knowledge base, and `_halting`: of one look, since the page asks every other second."""
        try:
            files = self._chat.library.open(base).status().files if base else ()
            shown = render.documents(files, outcomes, language) if base else ""
        except (LibraryError, FetchError, KnowledgeBaseError) as error:
            files, shown = (), _hint(f"⚠ {render.escape(str(error))}")
        return shown, *self._halting(files, language)


def _paced(replies: Iterator[Reply]) -> Iterator[Reply]:
    """A reply's states at the page's pace; the last one always comes."""
    shown = 0.0
    for reply in replies:
        if reply.state in FINAL or time.monotonic() - shown >= REFRESH:
            shown = time.monotonic()
            yield reply


def _watched(work: Callable[[Callable[..., None]], list[Ingested]]) -> Iterator[tuple[int, int, str] | list[Ingested]]:
    """Runs work in a thread: its latest reports as they come, then its result."""
    reports: queue.SimpleQueue[tuple[int, int, str]] = queue.SimpleQueue()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work, lambda *report: reports.put(report))
        while not future.done():
            wait([future], timeout=0.3)
            latest = None
            while not reports.empty():
                latest = reports.get()
            if latest is not None:
                yield latest
        yield future.result()


def _hint(html: str) -> str:
    return f'<p class="hint">{html}</p>'


def _warn(error: Exception) -> None:
    """Shown until it is closed. Gradio takes messages for HTML, and a sentence may name a file of any name."""
    gr.Warning(render.escape(str(error)), duration=None)


def _busy() -> Any:
    return gr.update(value="", submit_btn=False, stop_btn=True)


def _idle() -> Any:
    return gr.update(submit_btn=True, stop_btn=False)
