"""In a real browser: a number in a reply opens the page that it stands for, highlighted; also by keyboard and again
after a reload, without a request to any other machine."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from chatapp.library import Library
from chatapp.server import build
from chatapp.session import Chat
from chatapp.settings import parse
from chatapp.startup import Startup
from chatapp.store import Store
from chatapp.ui import mount
from tests.fakes import HashEmbeddings, ready_engine, scripted
from tests.seats import Seat
from tests.serving import serving
from tests.test_browser import App, ask, reply

POEMS = Path(__file__).parent / "data" / "pdf" / "zh_poems.pdf"
SUPPORTED = "忽然太行雪，昨夜飞入来。"
REPLY = f"{SUPPORTED}月亮是绿色的奶酪做的。"


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[App]:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    settings = parse(["--data", str(tmp_path)], {})
    engine = ready_engine(scripted(REPLY, context=20_000))
    library = Library(tmp_path / "kb", HashEmbeddings)
    library.create("诗")
    library.open("诗").ingest([POEMS])
    chat = Chat(engine, library, Store(tmp_path / "conversations.db"))
    with serving(build(chat, mount(settings, chat, Startup(settings, engine)))) as port:
        yield App(f"http://127.0.0.1:{port}", tmp_path)


@pytest.fixture
def page(app: App, browser: Browser, seat: Seat) -> Iterator[Page]:
    """The page with the knowledge base chosen."""
    context = seat.context(browser)
    page = app.watch(context.new_page())
    page.goto(app.address)
    expect(page.locator("#model input")).not_to_have_value("")
    seat.reach(page, "left")
    page.locator("#base").get_by_label("诗").check()
    seat.leave(page)
    yield page
    assert app.complaints == []
    context.close()
    app.complaints.clear()  # what was on its way to a page that closes is broken off, and Gradio says so


def highlighted(page: Page) -> None:
    """Waits for the picture of a page, and for what is highlighted to stand in it, where it can be clicked on."""
    picture = page.locator(".evidence img")
    expect(picture).to_be_visible()
    assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") > 500
    box, sheet = page.locator(".evidence rect.exact").first.bounding_box(), picture.bounding_box()
    assert sheet["x"] <= box["x"] and box["x"] + box["width"] <= sheet["x"] + sheet["width"]
    pane, right = page.locator(".evidence .pane").bounding_box(), page.locator("#right").bounding_box()
    assert right["x"] <= pane["x"] and pane["x"] + pane["width"] <= right["x"] + right["width"]
    assert pane["y"] <= box["y"] <= pane["y"] + pane["height"]


def test_sources_and_quotes_open_their_pages(page: Page, seat: Seat) -> None:
    ask(page, "太行雪昨夜飞入来是谁写的？")
    expect(reply(page).locator(".acts")).to_be_visible()
    cards = page.locator("#sources .card a.place")
    seat.reach(page, "right")
    count = cards.count()
    cards.first.click()
    highlighted(page)
    expect(page.locator(".evidence header")).to_contain_text(seat.says("source_of", at=1, count=count))
    page.locator(".evidence header .pager a").last.click()
    expect(page.locator(".evidence header")).to_contain_text(seat.says("source_of", at=2, count=count))
    page.get_by_text(seat.says("evidence_close")).click()
    expect(cards).to_have_count(count)

    page.locator("#right [data-fold]").click()
    reply(page).locator(".quote a.place").first.press("Enter")
    highlighted(page)
    expect(page.locator(".evidence header")).to_contain_text(seat.says("quote_of", at=1, count=""))


def test_the_nearest_passages_open_their_pages_where_the_documents_do_not_say(page: Page, seat: Seat) -> None:
    seat.reach(page, "right")
    page.locator("#lab > button").click()
    page.locator("#lab-threshold input[type=number]").fill("1")
    page.locator("#lab-threshold input[type=number]").press("Tab")
    page.locator("#lab-apply").click()
    expect(page.locator("#lab-note")).to_contain_text(seat.says("lab_applied"))
    seat.leave(page)
    ask(page, "火车票的价格是多少？")
    expect(reply(page).locator(".acts")).to_be_visible()
    expect(reply(page)).to_contain_text(seat.says("nothing_found"))
    seat.reach(page, "right")
    page.locator("#sources .card a.place").last.click()
    highlighted(page)
    page.reload()
    reply(page).locator(".cited summary").click()
    reply(page).locator(".cited a.place").first.click()
    highlighted(page)


def test_a_number_opens_its_page_with_the_passage_highlighted(page: Page, seat: Seat) -> None:
    ask(page, "太行雪昨夜飞入来是谁写的？")
    mark = reply(page).locator("a.mark")
    expect(mark).to_have_text("[1]")
    expect(reply(page).locator(".unsupported")).to_have_text("月亮是绿色的奶酪做的。")

    expect(reply(page).locator(".acts")).to_be_visible()
    mark.focus()
    page.keyboard.press("Enter")
    panel = page.locator(".evidence")
    expect(panel.locator("mark").first).to_contain_text("忽然太行雪")
    highlighted(page)

    picture = panel.locator("img")
    before = picture.bounding_box()["width"]
    panel.locator(".zoom a").last.click()
    assert picture.bounding_box()["width"] > 1.4 * before
    panel.locator(".bar .pager a").last.click()
    expect(panel.locator("img")).to_have_attribute("src", re.compile(r"/pages/2\.png"))
    panel.get_by_text(seat.says("evidence_close")).click()
    expect(page.locator("#sources .card").first).to_be_visible()

    fold = page.locator("#right [data-fold]")
    expect(fold).to_contain_text(seat.says("fold"))
    fold.press("Enter")
    expect(page.locator("#sources")).to_be_hidden()

    page.reload()
    expect(reply(page).locator("a.mark")).to_have_text("[1]")
    reply(page).locator("a.mark").click()
    expect(page.locator(".evidence rect.exact").first).to_be_visible()
