"""In a real browser, at every seat: a model is found, its licence accepted, downloaded, paused, verified and loaded;
what goes wrong is a sentence; the small model says once that it knows no Chinese. A hub of our own answers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect

from chatapp.checkpoints import DEFAULT_MODEL
from chatapp.hardware import GIB, Machine
from chatapp.library import Library
from chatapp.server import build
from chatapp.session import Chat
from chatapp.settings import parse
from chatapp.startup import Fetching, Startup
from chatapp.store import Store
from chatapp.ui import mount
from tests.fake_hub import FakeHub, Mischief, serving_hub
from tests.fakes import HashEmbeddings, ready_engine, scripted
from tests.seats import Seat
from tests.serving import closed_port, serving
from tests.test_browser import App, ask
from tests.tiny import LLAMA, byte_level_tokenizer, save_folder

ID = "maker/tiny-chat"
#: What a machine with 6 GiB is recommended first, by the user's language: its ids at both hubs, and its tier.
RECOMMENDED = {
    "en": ("LLM-Research/Llama-3.2-3B-Instruct", "meta-llama/Llama-3.2-3B-Instruct", "INT8"),
    "zh": ("ZhipuAI/chatglm3-6b", "THUDM/chatglm3-6b", "INT4"),
}


@dataclass
class Desk:
    """A running app with its hub."""

    app: App
    hub: FakeHub
    startup: Startup
    contexts: list[BrowserContext] = field(default_factory=list)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    save_folder(folder, LLAMA | {"vocab_size": 4000, "hidden_size": 256}, byte_level_tokenizer())
    return folder


@pytest.fixture
def desk(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    settings = parse(["--data", str(tmp_path)], {})
    engine = ready_engine(scripted("Hello."), f"{DEFAULT_MODEL}.Q4_1")
    chat = Chat(engine, Library(tmp_path / "kb", HashEmbeddings), Store(tmp_path / "conversations.db"))
    startup = Startup(settings, engine, detect=lambda: Machine(ram_free=6 * GIB, ram_total=8 * GIB))
    startup.downloads.start()
    with serving_hub() as hub, serving(build(chat, mount(settings, chat, startup))) as port:
        hub.add_folder(ID, made, licence="apache-2.0").files["LICENSE"] = b"Do no <harm>."
        startup.downloads.addresses.write({"huggingface": hub.address, "modelscope": hub.address})
        app = App(f"http://127.0.0.1:{port}", tmp_path)
        desk = Desk(app, hub, startup)
        yield desk
        for context in desk.contexts:
            context.close()
        startup.downloads.stop(20)
    assert app.complaints == []


def opened(desk: Desk, browser: Browser, seat: Seat) -> Page:
    context = seat.context(browser)
    desk.contexts.append(context)
    page = desk.app.watch(context.new_page())
    page.goto(desk.app.address)
    began(page, seat)
    return page


def began(page: Page, seat: Seat) -> None:
    """Waits until the page can be used."""
    expect(page.locator("#state a")).to_have_text(seat.says("better_model"))
    expect(page.locator("#target")).not_to_be_empty()  # comes with the rest of what the page is opened with


def sheet(page: Page, seat: Seat) -> Locator:
    """The sheet of the models, opened by the link in what is said of the small model."""
    seat.reach(page, "left")
    page.locator("#state summary").click()
    page.locator("#state a").click()
    shown = page.locator("#models-sheet")
    expect(shown.locator("#hub-address input, #hub-address textarea")).not_to_have_value("")
    return shown


def find(shown: Locator, id: str = ID) -> None:
    shown.locator("#hub-id").locator("input, textarea").fill(id)
    shown.locator("#look-up").click()


def press(shown: Locator, do: str) -> None:
    shown.locator(f".downloads [data-do={do}]").first.click()


def test_a_model_is_found_downloaded_verified_and_loaded(seat: Seat, desk: Desk, browser: Browser, made: Path) -> None:
    slow = desk.hub.repositories[ID].mischief["model.safetensors"] = Mischief(pause=0.2)
    page = opened(desk, browser, seat)
    shown = sheet(page, seat)
    if seat.language == "zh":
        expect(shown.get_by_label("ModelScope")).to_be_checked()  # its address is known
    find(shown)
    offer = shown.locator(".offer")
    expect(offer).to_contain_text("LLaMA")
    expect(offer).to_contain_text("apache-2.0")
    offer.locator(".terms summary").click()
    expect(offer.locator("pre")).to_have_text("Do no <harm>.")
    offer.locator(".files summary").click()
    expect(offer.locator("td").first).to_be_visible()
    begin = shown.locator("#begin")
    expect(begin).to_be_disabled()
    shown.locator("#accept input").check()
    begin.click()
    row = shown.locator(".downloads li")
    expect(row).to_contain_text(ID)
    expect(begin).to_be_hidden()
    expect(row).to_contain_text(re.compile(r"MB/(s|秒)"))
    assert not (desk.app.data / "checkpoints" / ID).exists()
    press(shown, "pause")
    expect(row).to_have_class("paused")
    slow.pause = 0
    press(shown, "resume")
    expect(row).to_have_class("done")
    press(shown, "verify")
    expect(row.locator("[data-do=load]")).to_be_visible()
    press(shown, "load")
    expect(shown).to_be_hidden()
    expect(page.locator("#model input")).to_have_value(re.compile("tiny-chat"))
    seat.reach(page, "left")
    expect(page.locator("#state")).to_contain_text("tiny-chat")
    expect(page.locator("#state")).to_be_visible()
    here = desk.app.data / "checkpoints" / ID
    assert (here / "model.safetensors").read_bytes() == (made / "model.safetensors").read_bytes()


def test_keys_are_enough(seat: Seat, desk: Desk, browser: Browser) -> None:
    page = opened(desk, browser, seat)
    shown = sheet(page, seat)
    shown.locator("#hub-id").locator("input, textarea").fill(ID)
    page.keyboard.press("Enter")
    expect(shown.locator(".offer")).to_be_visible()
    shown.locator("#accept input").press("Space")
    expect(shown.locator("#begin")).to_be_enabled()
    shown.locator("#begin").press("Enter")
    expect(shown.locator(".downloads li")).to_have_class("done")
    shown.locator("[data-do=delete]").press("Enter")
    expect(shown.locator(".downloads li")).to_have_count(0)
    page.keyboard.press("Escape")
    expect(shown).to_be_hidden()


def test_what_goes_wrong_is_a_sentence(seat: Seat, desk: Desk, browser: Browser) -> None:
    desk.hub.add("maker/other", {"config.json": b'{"model_type": "qwen2"}', "model.safetensors": b"x"})
    page = opened(desk, browser, seat)
    shown = sheet(page, seat)
    shown.get_by_label("Hugging Face").check()
    said = shown.locator("#offered")
    host = desk.hub.address.removeprefix("http://")
    for id, key, values in (
        ("maker/nothing", "hub_missing", {"id": "maker/nothing", "host": host}),
        ("<b>bold</b>", "hub_id_bad", {"id": "<b>bold</b>"}),
        ("maker/other", "hub_architecture", {"id": "maker/other", "name": "qwen2"}),
    ):
        find(shown, id)
        expect(said).to_have_text(f"⚠ {seat.says(key, **values)}")
        expect(shown.locator("#begin")).to_be_hidden()
    find(shown, f"http://127.0.0.1:{closed_port()}/maker/name")
    expect(said).to_contain_text({"en": "does not answer (", "zh": "没有应答（"}[seat.language])


def test_a_gated_model_comes_with_a_token(seat: Seat, desk: Desk, browser: Browser) -> None:
    desk.hub.repositories[ID].token = "right"
    page = opened(desk, browser, seat)
    shown = sheet(page, seat)
    shown.get_by_label("Hugging Face").check()
    find(shown)
    host = desk.hub.address.removeprefix("http://")
    expect(shown.locator("#offered")).to_contain_text(seat.says("hub_gated", id=ID, host=host))
    box = shown.locator("#hub-token").locator("input, textarea")
    box.fill("wrong")
    shown.locator("#look-up").click()
    expect(shown.locator("#offered")).to_contain_text(seat.says("hub_not_granted", id=ID, host=host))
    box.fill("right")
    shown.locator("#look-up").click()
    expect(shown.locator(".offer")).to_contain_text(seat.says("gated"))
    expect(box).to_have_value("")
    shown.locator("#accept input").check()
    shown.locator("#begin").click()
    expect(shown.locator(".downloads li")).to_have_class("done")
    assert not (desk.app.data / "tokens.json").exists()


def test_a_download_that_fails_says_why_and_can_be_deleted(seat: Seat, desk: Desk, browser: Browser) -> None:
    desk.hub.repositories[ID].mischief["tokenizer.json"] = Mischief(wrong=99)
    page = opened(desk, browser, seat)
    shown = sheet(page, seat)
    find(shown)
    shown.locator("#accept input").check()
    shown.locator("#begin").click()
    row = shown.locator(".downloads li")
    expect(row).to_have_class("failed")
    said = seat.says("hub_wrong_bytes", name="tokenizer.json", host=desk.hub.address.removeprefix("http://"))
    expect(row).to_contain_text(said)
    asked: list[str] = []

    def answer(dialog) -> None:
        asked.append(dialog.message)
        dialog.accept()

    page.on("dialog", answer)
    press(shown, "delete")
    expect(row).to_have_count(0)
    assert asked == [seat.says("download_sure", name=ID)]
    assert not list((desk.app.data / "checkpoints").rglob("*.part"))


def test_a_recommendation_is_one_press_away(seat: Seat, desk: Desk, browser: Browser, made: Path) -> None:
    here, there, tier = RECOMMENDED[seat.language]
    desk.hub.add_folder(here, made, licence="its own")
    page = opened(desk, browser, seat)
    shown = sheet(page, seat)
    first = shown.locator(".recommended li").first
    expect(first).to_contain_text(here.partition("/")[2])
    expect(first).to_contain_text(tier)
    shown.get_by_label("ModelScope").check()
    first.locator("[data-do=get]").click()
    expect(shown.locator(".offer h3")).to_have_text(here)
    shown.get_by_label("Hugging Face").check()
    first.locator("[data-do=get]").click()
    expect(shown.locator("#offered")).to_contain_text(there)


def test_the_small_model_says_once_that_it_knows_no_chinese(seat: Seat, desk: Desk, browser: Browser) -> None:
    page = opened(desk, browser, seat)
    toast = page.locator(".toast-body")
    ask(page, "Hello")
    expect(page.locator("#messages .bot.message")).to_have_count(1)
    expect(page.locator("#text .submit-button")).to_be_visible()
    expect(toast).to_have_count(0)
    ask(page, "你好，请介绍一下自己")
    expect(toast).to_contain_text("chatglm3-6b")  # in Chinese, as the one who writes to it
    toast.get_by_role("link").click()
    expect(page.locator("#models-sheet")).to_be_visible()
    page.keyboard.press("Escape")
    toast.locator("button").first.click()
    expect(toast).to_have_count(0)
    ask(page, "再说一遍")
    expect(page.locator("#messages .bot.message")).to_have_count(3)
    expect(page.locator("#text .submit-button")).to_be_visible()
    expect(toast).to_have_count(0)


def test_a_start_without_a_network_is_no_dead_end(
    seat: Seat, desk: Desk, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []

    def again() -> None:
        tried.append("again")
        desk.startup.fetching = Fetching()

    monkeypatch.setattr(desk.startup, "again", again)
    desk.startup.fetching = Fetching(failure="The package index did not answer.")
    page = opened(desk, browser, seat)
    seat.reach(page, "left")
    button = page.locator("#again")
    expect(button).to_have_text(seat.says("try_again"))
    button.click()
    expect(button).to_be_hidden()
    assert tried == ["again"]


def test_downloads_go_on_while_the_page_is_closed(seat: Seat, desk: Desk, browser: Browser) -> None:
    slow = desk.hub.repositories[ID].mischief["model.safetensors"] = Mischief(pause=0.3)
    page = opened(desk, browser, seat)
    shown = sheet(page, seat)
    find(shown)
    shown.locator("#accept input").check()
    shown.locator("#begin").click()
    expect(shown.locator(".downloads li")).to_be_visible()
    page.reload()
    began(page, seat)
    shown = sheet(page, seat)
    expect(shown.locator(".downloads li progress")).to_be_visible()
    slow.pause = 0
    expect(shown.locator(".downloads li")).to_have_class("done")
