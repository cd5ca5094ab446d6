"""Downloads as the page shows them: every state has its words, and what a hub says is never taken for our HTML."""

from __future__ import annotations

import dataclasses
from html.parser import HTMLParser
from pathlib import Path

import pytest

from chatapp.downloads.hubs import Hub, HubError, RemoteFile, Repository
from chatapp.downloads.jobs import STATES, Job, Progress
from chatapp.downloads.offers import Choice, Offer
from chatapp.downloads.recommend import Recommender
from chatapp.downloads.selection import Variant
from chatapp.hardware import GIB, Machine
from chatapp.planner import known_checkpoints, plan
from chatapp.texts import say
from chatapp.ui import offers

ATTACK = """'"><img src=x onerror=alert(1)>&lt;b&gt;"""
ROOM = Machine(ram_free=16 * GIB, ram_total=16 * GIB)
FILES = (RemoteFile("model.safetensors", 12_500_000_000, "0" * 64), RemoteFile(f"{ATTACK}.json", 300))
REPOSITORY = Repository(Hub("huggingface", "https://hub.invalid"), "maker/name", ATTACK, FILES, ATTACK, gated=True)
JOB = Job("0123", REPOSITORY, ATTACK, "folder")


class Seen(HTMLParser):
    """The text that is seen, and each tag with its attributes."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.text = ""
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(source)
        self.close()
        assert not {"img", "script", "svg"} & {tag for tag, _ in self.tags}
        assert not any(name.startswith("on") for _, attributes in self.tags for name in attributes)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        self.text += data

    @property
    def buttons(self) -> dict[str, dict[str, str | None]]:
        return {about["data-do"]: about for tag, about in self.tags if tag == "button"}


def offer(**changes: object) -> Offer:
    made = plan(known_checkpoints()["THUDM/chatglm3-6b"], ROOM, "int4")
    choice = Choice(Variant("name", "folder", FILES), made, made.memory.weights)
    whole = Offer(REPOSITORY, (choice,), 0, "chatglm", 6_243_584_000, terms=f"Terms {ATTACK}")
    return dataclasses.replace(whole, **changes)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_an_offer_says_what_it_is_and_what_it_takes(language: str) -> None:
    shown = Seen(offers.offer(offer(), 0, 99_000_000_000, language))
    for part in ("maker/name", "ChatGLM", "6.2B", "12.5 GB", "INT4", "99.0 GB", ATTACK, f"Terms {ATTACK}"):
        assert part in shown.text
    assert say(language, "gated") in shown.text


def test_an_offer_without_a_licence_or_a_plan_says_so() -> None:
    bare = dataclasses.replace(REPOSITORY, licence="", gated=False)
    shown = Seen(offers.offer(offer(repository=bare, family=None, base=ATTACK, terms=""), 0, 1, "en"))
    assert say("en", "licence_none") in shown.text and f"an adapter for {ATTACK}" in shown.text


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_state_has_its_words_and_its_buttons(language: str) -> None:
    said = set()
    for state in STATES:
        failure = ("hub_wrong_bytes", {"host": "h", "name": ATTACK}) if state == "failed" else None
        job = dataclasses.replace(JOB, state=state, failure=failure)
        path = Path("/x") if state == "done" else None
        shown = Seen(offers.listed([Progress(job, 5_000_000_000, 24e6, path=path)], language))
        assert ATTACK in shown.text
        assert shown.buttons.keys() == offers.DOING[state].keys()
        assert all(about["data-id"] == "0123" for about in shown.buttons.values())
        said.add(shown.text)
    assert len(said) == len(STATES)


def test_what_loses_something_is_asked_about_first() -> None:
    begun = Seen(offers.listed([Progress(dataclasses.replace(JOB, state="paused"), 1)], "en"))
    assert ATTACK in begun.buttons["delete"]["data-sure"] and "data-sure" not in begun.buttons["resume"]
    done = Seen(offers.listed([Progress(dataclasses.replace(JOB, state="done"), 1, path=Path("/x"))], "en"))
    assert "data-sure" not in done.buttons["delete"]


def test_what_is_gone_or_an_adapter_is_not_loaded() -> None:
    gone = Progress(dataclasses.replace(JOB, state="done"), 1)
    adapter = Progress(dataclasses.replace(JOB, state="done", form="adapter"), 1, path=Path("/x"))
    assert Seen(offers.listed([gone], "en")).buttons.keys() == {"delete"}
    assert Seen(offers.listed([adapter], "en")).buttons.keys() == {"verify", "delete"}


def test_a_wait_for_the_hub_says_how_long_and_why() -> None:
    retry = (7.4, HubError("hub_busy", host="h"))
    shown = Seen(offers.listed([Progress(dataclasses.replace(JOB, state="downloading"), 1, retry=retry)], "en"))
    assert "too many requests" in shown.text and "Next try in 7 s." in shown.text


@pytest.mark.parametrize(
    "seconds, expected", [(0.2, "1 s left"), (89, "89 s left"), (150, "2 min left"), (9000, "2.5 h left")]
)
def test_the_time_left_is_rounded(seconds: float, expected: str) -> None:
    assert offers.left(seconds, "en") == expected


@pytest.mark.parametrize(
    "count, expected", [(999, "999 B"), (1000, "1.0 KB"), (170_000_000, "170.0 MB"), (12_500_000_000, "12.5 GB")]
)
def test_sizes_have_their_units(count: int, expected: str) -> None:
    assert offers.size(count) == expected


@pytest.mark.parametrize("language", ["en", "zh"])
def test_recommendations_have_a_button_each(language: str) -> None:
    found = Recommender().recommendations(ROOM, language)
    shown = Seen(offers.recommended(found, language))
    assert [about["data-id"] for tag, about in shown.tags if tag == "button"] == [each.checkpoint for each in found]
    assert say(language, "recommended_none") in offers.recommended([], language)
