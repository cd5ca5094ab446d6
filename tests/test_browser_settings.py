"""The settings in a real browser, at every seat: each is at work at once and after a restart; and the app can be
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
from tests.seats import Seat
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
    def opened(seat: Seat, **options: object) -> Iterator[Page]:
        with started(tmp_path) as app:
            context = seat.context(browser, **options)
            page = app.watch(context.new_page())
            page.goto(app.address)
            expect(page.locator("#model input")).not_to_have_value("")
            yield page
            context.close()
        assert app.complaints == []

    return opened


def open_sheet(page: Page, seat: Seat, tab: str) -> None:
    seat.reach(page, "left")
    page.locator("#settings-open").click()
    expect(page.locator("#set-theme label.selected")).to_have_count(1)  # the sheet is filled
    turn_to(page, seat, tab)


def turn_to(page: Page, seat: Seat, tab: str) -> None:
    """Chooses a tab; those that a phone has no room for are in a menu beside the others."""
    found = page.get_by_role("tab", name=seat.says(tab), exact=True)
    if seat.narrow and not found.is_visible():
        page.locator("#settings-tabs .overflow-menu > button").click()
        found = page.locator("#settings-tabs .overflow-dropdown").get_by_text(seat.says(tab), exact=True)
    found.click()


def pick(page: Page, group: str, option: str) -> None:
    page.locator(group).get_by_text(option, exact=True).click()


def number(page: Page, name: str):
    return page.locator(f"#set-{name} input")


def test_the_language_is_chosen_for_the_whole_page_and_stays(seat: Seat, opening: Opening) -> None:
    other = seat._replace(language="zh" if seat.language == "en" else "en")
    with opening(seat) as page:
        open_sheet(page, seat, "set_general")
        pick(page, "#set-language", {"en": "English", "zh": "中文"}[other.language])
        expect(page.locator("#settings-open")).to_have_text(other.says("settings"))
        expect(page.locator("html")).to_have_attribute("lang", {"en": "en", "zh": "zh-CN"}[other.language])
        expect(page.locator("#state")).to_contain_text({"en": "is ready", "zh": "已就绪"}[other.language])
    with opening(seat) as page:
        expect(page.locator("#settings-open")).to_have_text(other.says("settings"))
        expect(page.locator("#text textarea")).to_have_attribute("placeholder", other.says("message_hint"))
        open_sheet(page, other, "set_general")
        pick(page, "#set-language", other.says("set_auto"))
        expect(page.locator("#settings-open")).to_have_text(seat.says("settings"))
        expect(page.locator("html")).to_have_attribute("lang", {"en": "en", "zh": "zh-CN"}[seat.language])


def test_a_sheet_closes_and_opens_again_also_where_the_app_does_not_answer(seat: Seat, opening: Opening) -> None:
    with opening(seat) as page:
        open_sheet(page, seat, "set_general")
        page.route("**/gradio_api/**", lambda route: None)
        page.keyboard.press("Escape")
        expect(page.locator("#settings-sheet")).to_be_hidden()
        seat.reach(page, "left")
        page.locator("#settings-open").click()
        expect(page.locator("#settings-sheet")).to_be_visible()
        page.locator("#settings-sheet .sheet-close").click()
        expect(page.locator("#settings-sheet")).to_be_hidden()


def background(page: Page) -> int:
    """How bright the page is, 0 to 765."""
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    return sum(map(int, re.findall(r"\d+", colour)[:3]))


def test_the_theme_changes_at_once_and_is_there_from_the_first_paint(seat: Seat, opening: Opening) -> None:
    with opening(seat, color_scheme="light") as page:
        assert background(page) > 700
        open_sheet(page, seat, "set_general")
        pick(page, "#set-theme", seat.says("theme_dark"))
        page.wait_for_function("document.body.classList.contains('dark')")
        expect(page.locator("#general-note")).to_contain_text(seat.says("set_kept"))
    with opening(seat, color_scheme="light") as page:
        # Before any of Gradio's scripts and style sheets, which are held back, the page is dark.
        quiet = page.context.new_page()
        quiet.route("**/assets/*", lambda route: route.abort())
        quiet.goto(page.url, wait_until="domcontentloaded")
        assert background(quiet) < 150
        quiet.close()
        assert background(page) < 150


def test_sampling_and_the_length_of_replies(seat: Seat, opening: Opening) -> None:
    with opening(seat) as page:
        open_sheet(page, seat, "set_replies")
        recommended = re.compile(re.escape(seat.says("set_recommended", value="")))
        expect(number(page, "temperature")).to_have_attribute("placeholder", recommended)
        number(page, "temperature").fill("3")
        page.locator("#replies-here").click()
        said = seat.says("set_range", name=seat.says("set_temperature"), least=0, greatest=2)
        expect(page.locator("#replies-note")).to_contain_text(said)
        number(page, "temperature").fill("0.5")
        number(page, "max-tokens").fill("32")
        page.locator("#replies-here").click()
        expect(page.locator("#replies-note")).to_contain_text(seat.says("set_kept_here"))
        page.keyboard.press("Escape")
        ask(page, "Hello?")
        expect(reply(page)).to_contain_text("Said.")
        wait_until_idle(page)
        open_sheet(page, seat, "set_replies")
        expect(number(page, "temperature")).to_have_value("0.5")
        page.locator("#replies-reset").click()
        expect(number(page, "temperature")).to_have_value("")
        number(page, "top-p").fill("0.8")
        page.locator("#replies-new").click()
        expect(page.locator("#replies-note")).to_contain_text(seat.says("set_kept_new"))
    with opening(seat) as page:
        open_sheet(page, seat, "set_replies")
        expect(number(page, "top-p")).to_have_value("0.8")


def test_a_role_is_made_used_and_kept(seat: Seat, opening: Opening) -> None:
    with opening(seat) as page:
        open_sheet(page, seat, "set_role")
        page.locator("#role input").click()
        page.get_by_role("option", name=seat.says("role_minutes")).click()
        expect(page.locator("#system textarea")).to_have_value(seat.says("role_minutes_prompt"))
        page.locator("#system textarea").fill("Sing.")
        page.locator("#role-name input").fill("歌手")
        page.locator("#role-save").click()
        expect(page.locator("#role-note")).to_contain_text(seat.says("roles_kept"))
        expect(page.locator("#role input")).to_have_value("歌手")
        page.locator("#role-here").click()
        expect(page.locator("#role-note")).to_contain_text(seat.says("set_kept_here"))
        page.keyboard.press("Escape")
        ask(page, "唱吧。")
        expect(reply(page)).to_contain_text("Sung.")
    with opening(seat) as page:
        open_sheet(page, seat, "set_role")
        page.locator("#role input").click()
        page.get_by_role("option", name="歌手").click()
        expect(page.locator("#system textarea")).to_have_value("Sing.")
        page.locator("#role-delete").click()
        expect(page.locator("#role input")).to_have_value(seat.says("role_none"))


def test_the_context_policy_and_the_search_of_new_conversations(seat: Seat, opening: Opening) -> None:
    with opening(seat) as page:
        open_sheet(page, seat, "set_context")
        expect(number(page, "reading")).to_have_attribute("placeholder", seat.says("set_start", value=20))
        number(page, "window").fill("1024")
        pick(page, "#set-full", seat.says("full_summarise"))
        page.locator("#context-save").click()
        expect(page.locator("#context-note")).to_contain_text(seat.says("set_kept"))
        turn_to(page, seat, "set_search")
        pick(page, "#new-method", seat.says("lab_meaning"))
        page.locator("#search-save").click()
        expect(page.locator("#search-note")).to_contain_text(seat.says("set_kept_new"))
        page.keyboard.press("Escape")
        ask(page, "Hello?")
        expect(page.locator("#progress")).to_contain_text(
            {"en": "of 1,024 tokens", "zh": "共 1,024 个词元"}[seat.language]
        )
    with opening(seat) as page:
        open_sheet(page, seat, "set_context")
        expect(number(page, "window")).to_have_value("1024")
        page.locator("#context-reset").click()
        expect(number(page, "window")).to_have_value("")
        turn_to(page, seat, "set_search")
        expect(page.locator("#new-method label.selected")).to_have_text(seat.says("lab_meaning"))


def test_the_machine_is_told_checked_and_reported(seat: Seat, opening: Opening, tmp_path: Path) -> None:
    with opening(seat) as page:
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        open_sheet(page, seat, "set_machine")
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
    with opening(Seat("en", "wide")) as page:
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
    with opening(Seat("zh", "phone"), color_scheme=scheme) as page:
        page.evaluate("document.querySelector('#settings-open').click()")
        expect(page.locator("#set-theme label.selected")).to_have_count(1)
        box = page.locator("#settings-sheet").bounding_box()
        assert box["x"] >= 0 and box["width"] <= 390
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
