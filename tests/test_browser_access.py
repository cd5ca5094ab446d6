"""In a real browser, in both languages and at three widths: the panes, the keyboard, and what axe-core says of the main
states, without a request to any other machine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from axe_playwright_python.sync_playwright import Axe
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
from tests.test_browser_evidence import POEMS, SUPPORTED

REPLY = f"{SUPPORTED}\n\n```python\nprint(1)\n```\n\n| a | b |\n|---|---|\n| 1 | $x^2$ |\n"
SEVERE = ("serious", "critical")


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    data = tmp_path_factory.mktemp("data")
    settings = parse(["--data", str(data)], {})
    engine = ready_engine(scripted(REPLY, context=20_000))
    library = Library(data / "kb", HashEmbeddings)
    library.create("诗")
    library.open("诗").ingest([POEMS])
    chat = Chat(engine, library, Store(data / "conversations.db"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(data / "uploads"))
        with serving(build(chat, mount(settings, chat, Startup(settings, engine)))) as port:
            yield App(f"http://127.0.0.1:{port}", data)


@pytest.fixture
def page(app: App, browser: Browser, seat: Seat) -> Iterator[Page]:
    """The page; Chinese is dark."""
    dark = "dark" if seat.language == "zh" else "light"
    context = seat.context(browser, color_scheme=dark, bypass_csp=True)  # for axe-core's script
    page = app.watch(context.new_page())
    page.goto(app.address)
    expect(page.locator("#target")).not_to_be_empty()
    expect(page.locator("#welcome li")).to_have_count(3)
    yield page
    assert app.complaints == []
    context.close()
    app.complaints.clear()  # what was on its way to a page that closes is broken off, and Gradio says so


def check(page: Page) -> None:
    """That axe-core has nothing serious to say, and that nothing is wider than the window."""
    found = Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
    severe = {each["id"]: [node["html"] for node in each["nodes"]] for each in found if each["impact"] in SEVERE}
    assert severe == {}
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]


def test_the_main_states_are_accessible_and_fit(page: Page, seat: Seat) -> None:
    check(page)
    seat.reach(page, "left")
    page.locator("#base").get_by_label("诗").check()
    check(page)
    seat.leave(page)
    ask(page, "太行雪昨夜飞入来是谁写的？")
    expect(reply(page).locator(".acts")).to_be_visible()
    expect(reply(page).locator("table, .katex, code").first).to_be_visible()
    reply(page).locator("a.mark").first.click()
    expect(page.locator(".evidence rect.exact").first).to_be_visible()
    check(page)


@pytest.mark.parametrize("name", ["settings", "models"])
def test_sheets_are_dialogs_that_escape_closes(page: Page, seat: Seat, name: str) -> None:
    seat.reach(page, "left")
    page.locator(f"#{name}-open").click()
    sheet = page.get_by_role("dialog", name=seat.says(name))
    expect(sheet).to_be_visible()
    expect(sheet.get_by_role("tab").first).to_be_visible()
    check(page)
    page.keyboard.press("Escape")
    expect(sheet).to_be_hidden()


def test_the_keyboard_begins_a_new_chat(page: Page) -> None:
    ask(page, "Hello")
    expect(reply(page).locator(".acts")).to_be_visible()
    page.keyboard.press("Control+k")
    expect(page.locator("#welcome li")).to_have_count(3)
    expect(page.locator("#messages .message")).to_have_count(0)
    expect(page.locator("#text textarea")).to_be_focused()
