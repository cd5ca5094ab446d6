"""The settings in a real browser, in both languages: each is at work at once and after a restart; and the app can be
installed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from chatapp.choices import NAME, Chosen, Policy
from chatapp.library import Library
from chatapp.server import build
from chatapp.session import Chat
from chatapp.settings import parse
from chatapp.startup import Startup
from chatapp.store import Store
from chatapp.ui import mount
from tests.fakes import HashEmbeddings, ready_engine, scripted
from tests.serving import serving
from tests.test_browser import App, ask, reply, wait_until_idle

Opening = Callable[..., AbstractContextManager[Page]]


@contextmanager
def started(folder: Path) -> Iterator[App]:
    """The app on a data folder; a second time it is a restart."""
    settings = parse(["--data", str(folder)], {})
    engine = ready_engine(scripted(lambda prompt: "Sung." if "Sing" in prompt else "Said.", context=4096))
    chosen = Chosen(folder / NAME, Policy(reading=20.0))
    engine.reading, engine.window = chosen.policy.reading, chosen.policy.window
    chat = Chat(engine, Library(folder / "kb", HashEmbeddings), Store(folder / "conversations.db"), chosen)
    startup = Startup(settings, engine)
    startup.embeddings = HashEmbeddings  # type: ignore[method-assign]
    with serving(build(chat, mount(settings, chat, startup))) as port:
        yield App(f"http://127.0.0.1:{port}", folder)
    chat.store.close()


@pytest.fixture
def opening(browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Opening:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))

    @contextmanager
    def opened(**options: object) -> Iterator[Page]:
        with started(tmp_path) as app:
            context = browser.new_context(**{"viewport": {"width": 1440, "height": 900}, **options})
            page = app.watch(context.new_page())
            page.goto(app.address)
            expect(page.locator("#model input")).not_to_have_value("")
            yield page
            context.close()
        assert app.complaints == []

    return opened


def open_sheet(page: Page, tab: str) -> None:
    page.locator("#settings-open").click()
    expect(page.locator("#set-theme label.selected")).to_have_count(1)  # the sheet is filled
    page.get_by_role("tab", name=tab, exact=True).click()


def pick(page: Page, group: str, option: str) -> None:
    page.locator(group).get_by_text(option, exact=True).click()


def number(page: Page, name: str):
    return page.locator(f"#set-{name} input")


def test_the_language_is_chosen_for_the_whole_page_and_stays(opening: Opening) -> None:
    with opening(locale="en-US") as page:
        open_sheet(page, "General")
        pick(page, "#set-language", "中文")
        expect(page.locator("#settings-open")).to_have_text("设置")
        expect(page.locator("html")).to_have_attribute("lang", "zh-CN")
        expect(page.locator("#state")).to_contain_text("已就绪")
    with opening(locale="en-US") as page:
        expect(page.locator("#settings-open")).to_have_text("设置")
        expect(page.locator("#text textarea")).to_have_attribute("placeholder", re.compile("请输入"))
        open_sheet(page, "通用")
        pick(page, "#set-language", "自动")
        expect(page.locator("#settings-open")).to_have_text("Settings")
        expect(page.locator("html")).to_have_attribute("lang", "en")


def background(page: Page) -> int:
    """How bright the page is, 0 to 765."""
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    return sum(map(int, re.findall(r"\d+", colour)[:3]))


def test_the_theme_changes_at_once_and_is_there_from_the_first_paint(opening: Opening) -> None:
    with opening(locale="zh-CN", color_scheme="light") as page:
        assert background(page) > 700
        open_sheet(page, "通用")
        pick(page, "#set-theme", "深色")
        page.wait_for_function("document.body.classList.contains('dark')")
        expect(page.locator("#general-note")).to_contain_text("已保存")
    with opening(locale="zh-CN", color_scheme="light") as page:
        # Before any of Gradio's scripts and style sheets, which are held back, the page is dark.
        quiet = page.context.new_page()
        quiet.route("**/assets/*", lambda route: route.abort())
        quiet.goto(page.url, wait_until="domcontentloaded")
        assert background(quiet) < 150
        quiet.close()
        assert background(page) < 150


def test_sampling_and_the_length_of_replies(opening: Opening) -> None:
    with opening(locale="en-US") as page:
        open_sheet(page, "Replies")
        expect(number(page, "temperature")).to_have_attribute("placeholder", re.compile(r"recommended"))
        number(page, "temperature").fill("3")
        page.locator("#replies-here").click()
        expect(page.locator("#replies-note")).to_contain_text("Temperature can be 0 to 2")
        number(page, "temperature").fill("0.5")
        number(page, "max-tokens").fill("32")
        page.locator("#replies-here").click()
        expect(page.locator("#replies-note")).to_contain_text("This conversation")
        page.keyboard.press("Escape")
        ask(page, "Hello?")
        expect(reply(page)).to_contain_text("Said.")
        wait_until_idle(page)
        open_sheet(page, "Replies")
        expect(number(page, "temperature")).to_have_value("0.5")
        page.locator("#replies-reset").click()
        expect(number(page, "temperature")).to_have_value("")
        number(page, "top-p").fill("0.8")
        page.locator("#replies-new").click()
        expect(page.locator("#replies-note")).to_contain_text("New conversations")
    with opening(locale="en-US") as page:
        open_sheet(page, "Replies")
        expect(number(page, "top-p")).to_have_value("0.8")


def test_a_role_is_made_used_and_kept(opening: Opening) -> None:
    with opening(locale="zh-CN") as page:
        open_sheet(page, "角色")
        page.locator("#role input").click()
        page.get_by_role("option", name="会议纪要").click()
        expect(page.locator("#system textarea")).to_have_value(re.compile("会议纪要"))
        page.locator("#system textarea").fill("Sing.")
        page.locator("#role-name input").fill("歌手")
        page.locator("#role-save").click()
        expect(page.locator("#role-note")).to_contain_text("角色已保存")
        expect(page.locator("#role input")).to_have_value("歌手")
        page.locator("#role-here").click()
        expect(page.locator("#role-note")).to_contain_text("当前对话")
        page.keyboard.press("Escape")
        ask(page, "唱吧。")
        expect(reply(page)).to_contain_text("Sung.")
    with opening(locale="zh-CN") as page:
        open_sheet(page, "角色")
        page.locator("#role input").click()
        page.get_by_role("option", name="歌手").click()
        expect(page.locator("#system textarea")).to_have_value("Sing.")
        page.locator("#role-delete").click()
        expect(page.locator("#role input")).to_have_value("无")


def test_the_context_policy_and_the_search_of_new_conversations(opening: Opening) -> None:
    with opening(locale="en-US") as page:
        open_sheet(page, "Context")
        expect(number(page, "reading")).to_have_attribute("placeholder", "20 (as started)")
        number(page, "window").fill("1024")
        pick(page, "#set-full", "sum them up")
        page.locator("#context-save").click()
        expect(page.locator("#context-note")).to_contain_text("Kept.")
        page.get_by_role("tab", name="Documents", exact=True).click()
        pick(page, "#new-method", "meaning")
        page.locator("#search-save").click()
        expect(page.locator("#search-note")).to_contain_text("New conversations")
        page.keyboard.press("Escape")
        ask(page, "Hello?")
        expect(page.locator("#progress")).to_contain_text("of 1,024 tokens")
    with opening(locale="en-US") as page:
        open_sheet(page, "Context")
        expect(number(page, "window")).to_have_value("1024")
        page.locator("#context-reset").click()
        expect(number(page, "window")).to_have_value("")
        page.get_by_role("tab", name="Documents", exact=True).click()
        expect(page.locator("#new-method label.selected")).to_have_text("meaning")


@pytest.mark.parametrize(("locale", "tab"), [("en-US", "This machine"), ("zh-CN", "本机")])
def test_the_machine_is_told_checked_and_reported(opening: Opening, tmp_path: Path, locale: str, tab: str) -> None:
    with opening(locale=locale) as page:
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        open_sheet(page, tab)
        expect(page.locator("#data-folder code")).to_have_text(str(tmp_path))
        expect(page.locator("#machine")).to_contain_text("torch")
        page.locator("#check-run").click()
        expect(page.locator("#outcomes li.good")).to_have_count(5)
        page.wait_for_function("document.querySelector('#report').textContent.includes('ok ')")
        page.locator("#copy-report").click()
        page.wait_for_function("navigator.clipboard.readText().then(text => text.includes('ok '))")
        report = page.evaluate("navigator.clipboard.readText()")
        assert "Quatrain" in report and str(tmp_path) not in report and "BAD" not in report


def test_the_app_can_be_installed_and_says_when_it_is_not_running(browser: Browser, opening: Opening) -> None:
    with opening(locale="en-US") as page:
        session = page.context.new_cdp_session(page)
        manifest = session.send("Page.getAppManifest")
        assert manifest["url"].endswith("/manifest.json") and manifest["errors"] == []
        errors = session.send("Page.getInstallabilityErrors")["installabilityErrors"]
        assert [
            each["errorId"] for each in errors if each["errorId"] != "in-incognito"
        ] == []  # playwright's contexts are
        page.evaluate("navigator.serviceWorker.ready.then(() => true)")
        page.reload()  # now it is the worker's
        expect(page.locator("#settings-open")).to_have_text("Settings")


def test_without_the_app_the_installed_page_says_how_to_start_it(
    browser: Browser, tmp_path: Path, opening: Opening
) -> None:
    with started(tmp_path) as app:
        context = browser.new_context(locale="en-US")
        page = context.new_page()
        page.goto(app.address)
        page.evaluate("navigator.serviceWorker.ready.then(() => true)")
        page.goto("about:blank")
    page.goto(app.address)
    expect(page.locator("body")).to_contain_text("python app.py")
    context.close()


@pytest.mark.parametrize("dark", [False, True])
def test_the_sheet_fits_a_phone(opening: Opening, dark: bool) -> None:
    scheme = "dark" if dark else "light"
    with opening(locale="zh-CN", viewport={"width": 390, "height": 844}, color_scheme=scheme) as page:
        page.evaluate("document.querySelector('#settings-open').click()")
        expect(page.locator("#set-theme label.selected")).to_have_count(1)
        box = page.locator("#settings-sheet").bounding_box()
        assert box["x"] >= 0 and box["width"] <= 390
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
