"""The panes and the chat in a real browser, in both languages and at three widths: nothing is cut off, everything is
reached by the keyboard and by a tap, axe finds nothing serious, and no request leaves the machine."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright

from chatapp.library import Library
from chatapp.server import build
from chatapp.session import Chat
from chatapp.settings import parse
from chatapp.startup import Startup
from chatapp.store import Store, StoredMessage
from chatapp.texts import say
from chatapp.ui import mount, render
from tests.fakes import HashEmbeddings, ready_engine, scripted
from tests.serving import serving
from tests.test_browser import CHROMIUM, FLAGS, App, act, ask, reply, wait_until_idle

POEMS = Path(__file__).parent / "data" / "pdf" / "zh_poems.pdf"
LOCALES = {"en": "en-US", "zh": "zh-CN"}
WIDE, MIDDLE, PHONE = 1440, 1024, 390
RICH = (
    "质能方程 The formula is \\(E = mc^2\\), or\n\n$$\\int_0^1 x\\,dx$$\n\n"
    "```python\ndef half(x):\n    return x / 2\n```\n\n| 表 table | 数 n |\n|---|---|\n| a | 1 |\n"
)
LONG = f"{RICH}\n\n{'And on it goes. ' * 400}"
CITED = "忽然太行雪，昨夜飞入来。"


def answer(prompt: str) -> str:
    question = prompt.rpartition("user\n")[2]
    return CITED if "太行" in question else LONG if "long" in question else RICH


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    data = tmp_path_factory.mktemp("shell")
    settings = parse(["--data", str(data)], {})
    engine = ready_engine(scripted(answer, context=20_000, before=lambda: time.sleep(0.001)))
    library = Library(data / "kb", HashEmbeddings)
    library.create("诗")
    library.open("诗").ingest([POEMS])
    chat = Chat(engine, library, Store(data / "conversations.db"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(data / "uploads"))
        with serving(build(chat, mount(settings, chat, Startup(settings, engine)))) as port:
            yield App(f"http://127.0.0.1:{port}", data)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    assert CHROMIUM, "Chromium is not installed; CONTRIBUTING.md names the package"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(app: App, browser: Browser, language: str, width: int, scheme: str) -> Iterator[Page]:
    size = {"width": width, "height": 900}
    context = browser.new_context(
        locale=LOCALES[language], viewport=size, color_scheme=scheme, has_touch=width == PHONE, reduced_motion="reduce"
    )
    page = app.watch(context.new_page())
    app.complaints.clear()
    page.goto(app.address)
    expect(page.locator("#welcome li")).to_have_count(3)
    expect(page.locator("#base label")).to_have_count(1)
    yield page
    context.close()
    assert app.complaints == []


@pytest.fixture
def language() -> str:
    return "en"


@pytest.fixture
def width() -> int:
    return WIDE


@pytest.fixture
def scheme() -> str:
    return "light"


def serious(page: Page) -> list[str]:
    """What axe finds that keeps somebody out."""
    found = Axe().run(page).response["violations"]
    return [
        f"{each['id']}: {node['html'][:200]}"
        for each in found
        if each["impact"] in ("serious", "critical")
        for node in each["nodes"]
    ]


def cut_off(page: Page) -> int:
    """By how many pixels the page is wider than the window."""
    return page.evaluate("document.documentElement.scrollWidth - innerWidth")


@pytest.mark.parametrize("width", [WIDE, MIDDLE, PHONE])
@pytest.mark.parametrize(("language", "scheme"), [("en", "light"), ("zh", "dark")])
def test_an_example_is_asked_and_its_reply_is_drawn_while_it_grows(page: Page, language: str, width: int) -> None:
    assert cut_off(page) <= 0 and serious(page) == []
    assert page.locator("html").get_attribute("lang").startswith(language)
    page.get_by_role("link", name=say(language, "example_write")).click()
    expect(reply(page).locator("table td").first).to_have_text("a")
    wait_until_idle(page)
    expect(page.locator("#progress")).to_contain_text(
        say(language, "done", speed="|", first="|", tokens="|").split("|")[1]
    )

    ask(page, "a long one")
    expect(page.locator("#messages .bot.message")).to_have_count(2)
    expect(reply(page).locator("pre .token.keyword").first).to_have_text("def")
    expect(reply(page).locator(".katex-display .katex-html")).to_be_visible()
    expect(reply(page).locator("table td").first).to_have_text("a")
    page.keyboard.press("Escape")
    expect(reply(page)).to_contain_text(say(language, "stopped"))
    wait_until_idle(page)
    expect(page.locator("#text textarea")).to_be_focused()
    assert cut_off(page) <= 0 and serious(page) == []


@pytest.mark.parametrize("language", ["en", "zh"])
def test_on_a_phone_panes_are_drawers(page: Page, language: str, width: int) -> None:
    page.set_viewport_size({"width": PHONE, "height": 844})
    left, right = page.locator("#left"), page.locator("#right")
    expect(left).to_be_hidden()
    opener = page.get_by_role("button", name=say(language, "menu"))
    opener.click()
    expect(left).to_be_visible()
    assert left.evaluate("pane => pane.contains(document.activeElement)") and serious(page) == []
    page.keyboard.press("Escape")
    expect(left).to_be_hidden()
    expect(opener).to_be_focused()

    opener.click()
    page.locator("#base label").click()
    page.mouse.click(PHONE - 10, 400)  # beside it
    expect(left).to_be_hidden()
    ask(page, "太行雪昨夜飞入来是谁写的？")
    reply(page).locator("a.mark").click()
    expect(right.locator(".evidence mark").first).to_be_visible()
    assert cut_off(page) <= 0 and serious(page) == []


def test_panes_and_sections_stay_folded(page: Page) -> None:
    page.locator("#right [data-fold]").click()
    page.locator("#model-card [data-fold]").click()
    page.reload()
    for hidden in ("#sources", "#model"):
        expect(page.locator(hidden)).to_be_hidden()
    expect(page.locator("#model-card [data-fold]")).to_have_attribute("aria-expanded", "false")
    page.locator("#model-card [data-fold]").press("Enter")
    expect(page.locator("#model")).to_be_visible()


def test_the_keyboard_is_enough(page: Page) -> None:
    composer = page.locator("#text textarea")
    composer.fill("nihao")
    composer.dispatch_event("keydown", {"key": "Enter", "isComposing": True})  # takes an input method's proposal
    composer.press("Shift+Enter")
    expect(composer).to_have_value("nihao\n")
    expect(page.locator("#messages .message")).to_have_count(0)
    composer.press("Enter")
    wait_until_idle(page)
    expect(reply(page).locator("table")).to_be_visible()

    expect(composer).to_have_value("")
    composer.press("ArrowUp")
    expect(composer).to_have_value("nihao")
    act(page, "Cancel")
    page.locator("#search input, #search textarea").focus()
    page.keyboard.press("Control+k")
    expect(page.locator("#welcome li").first).to_be_visible()
    expect(composer).to_be_focused()
    page.get_by_role("button", name="Keyboard").click()
    expect(page.locator("#keys-list")).to_contain_text("edit the last question")
    page.keyboard.press("Escape")
    expect(page.locator("#keys-list")).to_be_hidden()


def test_a_long_conversation_shows_its_last_messages_first(page: Page, app: App) -> None:
    store = Store(app.data / "conversations.db")
    count = render.RECENT + render.MORE + 10
    said = [StoredMessage(("user", "assistant")[at % 2], f"number {at}") for at in range(count)]
    store.add(store.create().id, *said)
    store.close()
    page.reload()
    page.locator("#conversations label", has_text="number 0").click()
    expect(reply(page)).to_contain_text(f"number {count - 1}")
    expect(page.get_by_text("number 99", exact=True)).to_have_count(0)
    page.get_by_role("link", name="Show earlier messages (110)").click()
    expect(page.get_by_text("number 99", exact=True)).to_have_count(1)
    expect(page.get_by_role("link", name="Show earlier messages (10)")).to_have_count(1)
