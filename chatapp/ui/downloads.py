"""Downloading, in the sheet of the models: recommendations, looking a repository up, and the downloads themselves."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import gradio as gr

from .. import checkpoints
from ..downloads import hubs
from ..downloads.hubs import HubError, default_address, read_source
from ..downloads.manager import room
from ..downloads.offers import Offer, look_up
from ..downloads.recommend import Recommender, first_time
from ..texts import say
from ..words import in_chinese
from . import model, offers
from .escaping import escape
from .section import AWAY, PRESSED, QUIET, Desk, Label, Parts, Section, hint, inform, only, showing, told, warn

KINDS = {"Hugging Face": "huggingface", "ModelScope": "modelscope"}
#: What a token may help against.
FOR_A_TOKEN = ("hub_gated", "hub_missing", "hub_not_granted", "hub_token_wrong", "hub_token_odd", "hub_token_plain")

TO_THE_LIST = "() => document.getElementById('downloads').scrollIntoView({ block: 'center' })"

#: What says where to look, and what shows what was found.
SOURCE = ("hub", "hub_address", "hub_id", "hub_token", "hub_keep")
FOUND = ("offer", "offered", "variant", "accept", "begin", "token_section", "hub_token")
#: What shows the downloads.
LIST = ("downloads", "downloads_timer")


def layout(label: Label) -> Parts:
    pressed = PRESSED.read_text(encoding="utf-8")
    downloads = gr.HTML(elem_id="downloads", js_on_load=pressed)
    gr.HTML(f"<h3>{label('recommended')}</h3>", elem_classes="heading")
    recommended = gr.HTML(elem_id="recommended", js_on_load=pressed)
    gr.HTML(f"<h3>{label('download_other')}</h3>", elem_classes="heading")
    with gr.Row(elem_id="hub-row"):
        hub = gr.Radio(list(KINDS.items()), value="huggingface", label=label("hub"), min_width=220, elem_id="hub")
        address = gr.Textbox(
            label=label("hub_address"), info=label("hub_address_info"), max_lines=1, elem_id="hub-address"
        )
    with gr.Row(elem_id="hub-id-row"):
        id = gr.Textbox(label=label("hub_id"), placeholder=label("hub_id_hint"), max_lines=1, scale=4, elem_id="hub-id")
        find = gr.Button(label("look_up"), variant="primary", scale=1, min_width=120, elem_id="look-up")
    with gr.Accordion(label("hub_token"), open=False, elem_id="token-section") as token_section:
        token = gr.Textbox(
            label=label("hub_token"), info=label("hub_token_info"), type="password", max_lines=1, elem_id="hub-token"
        )
        keep = gr.Checkbox(label=label("hub_keep"), elem_id="hub-keep")
        use = gr.Button(label("hub_token_use"), size="sm", elem_id="hub-token-use")
    offered = gr.HTML(elem_id="offered")
    variant = gr.Dropdown([], label=label("variant"), info=label("variant_info"), elem_classes=AWAY, elem_id="variant")
    accept = gr.Checkbox(label=label("accept"), elem_classes=AWAY, elem_id="accept")
    begin = gr.Button(interactive=False, variant="primary", elem_classes=AWAY, elem_id="begin")
    return {
        "recommended": recommended,
        "hub": hub,
        "hub_address": address,
        "hub_id": id,
        "look_up": find,
        "token_section": token_section,
        "hub_token": token,
        "hub_keep": keep,
        "hub_token_use": use,
        "offer": gr.State(None),
        "offered": offered,
        "variant": variant,
        "accept": accept,
        "begin": begin,
        "downloads": downloads,
        "downloads_timer": gr.Timer(1, active=False),  # ticks while something is being downloaded
    }


def left(label: Label) -> Parts:
    """Below the model: the way on where the first model could not be fetched."""
    return {
        "again": gr.Button(label("try_again"), size="sm", elem_classes=AWAY, elem_id="again"),
        "fetching_timer": gr.Timer(1, active=False),  # ticks while the start is at work
    }


def connect(page: gr.Blocks, parts: Parts, downloads: DownloadsTab) -> None:
    source, found, listed = only(parts, *SOURCE), only(parts, *FOUND), only(parts, *LIST)
    parts["hub"].input(downloads.choose_hub, only(parts, "hub"), only(parts, "hub_address"), **QUIET)
    for event in (parts["look_up"].click, parts["hub_id"].submit, parts["hub_token"].submit):
        event(downloads.look_up, source, found, **QUIET)
    got = parts["recommended"].click(
        downloads.get, only(parts, "hub"), only(parts, "hub", "hub_address", "hub_id"), **QUIET
    )
    got.then(downloads.look_up, source, found, **QUIET)
    kept = only(parts, "hub_token", "hub_keep")
    parts["hub_token_use"].click(downloads.use_token, source, kept, **QUIET)
    choice = only(parts, "offer", "variant")
    parts["variant"].input(downloads.choose, choice, only(parts, "offered", "accept", "begin"), **QUIET)
    parts["accept"].input(lambda accepted: gr.update(interactive=accepted), parts["accept"], parts["begin"], **QUIET)
    begun = parts["begin"].click(downloads.begin, choice, [*found[:5], *listed], **QUIET)
    begun.then(None, js=TO_THE_LIST)
    parts["downloads"].click(downloads.act, None, listed, **QUIET)
    parts["downloads"].click(downloads.load, None, only(parts, *model.OPENED), **QUIET)
    parts["downloads_timer"].tick(downloads.show, None, listed, **QUIET)
    parts["text"].submit(downloads.notice, only(parts, "text"), None, concurrency_limit=None, **QUIET)
    fetching = only(parts, "again", "fetching_timer")
    page.load(downloads.fetching, None, fetching, **QUIET)
    parts["timer"].tick(downloads.fetching, None, fetching, **QUIET)
    parts["fetching_timer"].tick(downloads.watch, None, [*only(parts, "state"), *fetching], **QUIET)
    parts["again"].click(downloads.again, None, [*fetching, parts["timer"]], **QUIET)


#: What `DownloadsTab.open` fills.
OPENED = ("hub", "hub_address", "recommended", *LIST)


class DownloadsTab(Section):
    def __init__(self, desk: Desk, models: model.Model) -> None:
        super().__init__(desk)
        self._model = models
        self._downloads = desk.startup.downloads
        self._recommender = Recommender()

    def open(self, request: gr.Request) -> tuple[Any, ...]:
        """OPENED, as it is now."""
        language = self.language(request)
        kind = self._kind(language)
        return kind, self.choose_hub(kind), self._recommended(language), *self.show(request)

    def _kind(self, language: str) -> str:
        """The hub that was asked last; at first ModelScope for Chinese users, where its address is known."""
        last = self._downloads.addresses.read().get("last")
        first = "modelscope" if language == "zh" and self.choose_hub("modelscope") else "huggingface"
        return last if last in KINDS.values() else first

    def _recommended(self, language: str) -> str:
        here = {found.name.rpartition("/")[2] for found in self._startup.shelf.found()}
        machine = self._startup.machine()
        return offers.recommended(self._recommender.recommendations(machine, language, here), language)

    def choose_hub(self, kind: str) -> str:
        """Where a kind of hub is: as the user said last, or as its own client is set up."""
        return self._downloads.addresses.read().get(kind) or default_address(kind, os.environ)

    def get(self, kind: str, event: gr.EventData, request: gr.Request) -> tuple[Any, ...]:
        """Takes a recommendation: hub, address, id."""
        machine, language = self._startup.machine(), self.language(request)
        found = self._recommender.recommendations(machine, language)
        chosen = next((each for each in found if each.checkpoint == event.id), None)
        id = chosen and chosen.id_at(kind)
        if not id:  # it is not at this hub
            kind, id = "huggingface", str(event.id)
        return kind, self.choose_hub(kind), id

    def look_up(
        self, kind: str, address: str | None, text: str | None, token: str | None, keep: bool, request: gr.Request
    ) -> Iterator[tuple[Any, ...]]:
        """Asks a hub for a repository: FOUND."""
        address, text, token = address or "", text or "", token or ""
        language, nothing = self.language(request), (showing(False),) * 3
        yield None, hint(say(language, "looking_up")), *nothing, gr.skip(), gr.skip()
        try:
            hub, id, revision = read_source(kind, address, text)
            self._remember(kind, address, hub, token, keep)
            with hubs.client() as client:
                machine, folder = self._startup.machine(), self._downloads.scratch
                token = self._downloads.tokens.get(hub.address)
                found = look_up(client, hub, id, machine, folder, revision, token)
        except (HubError, OSError) as error:
            section = gr.update(open=True) if getattr(error, "key", "") in FOR_A_TOKEN else gr.skip()
            yield None, hint(f"⚠ {told(error, language)}"), *nothing, section, gr.skip()
            return
        shown, accept, begin = self.choose(found, found.best, request)
        several = showing(len(found.choices) > 1, choices=offers.choices(found), value=found.best)
        yield found, shown, several, accept, begin, gr.skip(), ""

    def _remember(self, kind: str, address: str, hub: hubs.Hub, token: str, keep: bool) -> None:
        """The kind of hub, an address that differs from its usual one, and a token that was given."""
        kept = self._downloads.addresses.read()
        changed = {name: value for name, value in kept.items() if name != kind} | {"last": kind}
        if address.strip() and address.strip().rstrip("/") != default_address(kind, os.environ):
            changed[kind] = address.strip()
        if changed != kept:
            self._downloads.addresses.write(changed)
        if token.strip():
            self._downloads.tokens.put(hub.address, token.strip(), keep)

    def use_token(
        self, kind: str, address: str | None, text: str | None, token: str | None, keep: bool, request: gr.Request
    ) -> tuple[Any, ...]:
        """Gives a hub's downloads a token, or takes it from them: the box, and whether it is kept."""
        language, token = self.language(request), token or ""
        try:
            hub, _, _ = read_source(kind, address or "", text or "any/name")
            hub.headers(token.strip())
            self._downloads.tokens.put(hub.address, token.strip(), keep)
        except (HubError, OSError) as error:
            warn(error, language)
            return gr.skip(), gr.skip()
        if not token.strip():
            inform(say(language, "token_forgotten", host=escape(hub.host)))
        else:
            inform(say(language, "token_kept" if keep else "token_used", host=escape(hub.host)))
        return "", gr.skip()

    def choose(self, offer: Offer | None, variant: int, request: gr.Request) -> tuple[Any, Any, Any]:
        """What is offered with one of its variants, the box to accept the licence, and the button."""
        language = self.language(request)
        if offer is None:
            return "", gr.skip(), gr.skip()
        shown = offers.offer(offer, variant, room(self._downloads.checkpoints), language)
        licence = offer.repository.licence
        label = say(language, "accept_named", name=licence) if licence else say(language, "accept")
        begin = say(language, "begin", size=offers.size(offer.choices[variant].variant.size))
        return (
            f'<section class="offer">{shown}</section>',
            showing(True, label=label, value=False),
            showing(True, value=begin, interactive=False),
        )

    def begin(self, offer: Offer | None, variant: int, request: gr.Request) -> tuple[Any, ...]:
        """Begins the download whose licence was accepted: the first of FOUND, and LIST."""
        if offer is None:
            return (*(gr.skip(),) * 5, *self.show(request))
        choice, language = offer.choices[variant], self.language(request)
        chosen = choice.variant
        try:
            wanted = offer.repository.only(chosen.files)
            self._downloads.add(wanted, chosen.name, chosen.form, choice.copy, choice.tier)
        except (HubError, OSError) as error:
            warn(error, language)
            return (*(gr.skip(),) * 5, *self.show(request))
        return (None, "", *(showing(False),) * 3, *self.show(request))

    def show(self, request: gr.Request) -> tuple[str, gr.Timer]:
        """LIST, as it is now."""
        found = self._downloads.list()
        return offers.listed(found, self.language(request)), gr.Timer(active=offers.running(found) is not None)

    def act(self, event: gr.EventData, request: gr.Request) -> tuple[Any, ...]:
        """Does what a button beside a download says: LIST."""
        do = {
            "pause": self._downloads.pause,
            "resume": self._downloads.resume,
            "verify": self._downloads.verify,
            "delete": self._downloads.delete,
        }.get(event.do)
        try:
            if do is not None:
                do(str(event.id))
        except (HubError, OSError) as error:
            warn(error, self.language(request))
        return self.show(request)

    def load(self, event: gr.EventData, request: gr.Request) -> Iterator[tuple[Any, ...]]:
        """Loads a checkpoint that has come, while scripts/sheet.js closes the sheet: the outputs of loading a model."""
        found = next((each for each in self._downloads.list() if each.job.id == event.id), None)
        if event.do != "load" or found is None or found.path is None:
            yield (gr.skip(),) * len(model.OPENED)
            return
        named = {each.path: each.name for each in self._startup.shelf.found()}
        yield from self._model.load(named.get(found.path.resolve(), str(found.path)), found.job.tier, request)

    def notice(self, text: str) -> None:
        """Says once, when somebody writes Chinese to the small model, which one would understand."""
        name = self._chat.engine.status.name
        if not in_chinese(text) or not name.startswith(checkpoints.DEFAULT_MODEL):
            return
        if not first_time(self._settings.data, "chinese"):
            return
        found = self._recommender.recommendations(self._startup.machine(), "zh")
        said = say("zh", "notice_chinese", name=found[0].name) if found else say("zh", "notice_chinese_none")
        link = f' <a href="#q-models-0">{say("zh", "better_model")}</a>' if found else ""
        inform(said + link, seconds=None)

    def fetching(self) -> tuple[Any, gr.Timer]:
        """The button that tries again, where something could not be fetched; and the timer, while something is."""
        return showing(bool(self._startup.fetching.failure)), gr.Timer(active=self._startup.at_work)

    def watch(self, request: gr.Request) -> tuple[Any, ...]:
        """The state of the model, below which the second one is fetched, and the same."""
        return self._model.state(request), *self.fetching()

    def again(self) -> tuple[Any, ...]:
        self._startup.again()
        return showing(False), gr.Timer(active=True), gr.Timer(active=True)
