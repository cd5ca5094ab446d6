"""In a real browser, in both languages and at three widths: what one does with a chat, its conversations and the panes
around it, with a scripted model that writes as slowly as a real one."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from chatapp.library import Library
from chatapp.server import build
from chatapp.session import Chat
from chatapp.settings import parse
from chatapp.startup import Startup
from chatapp.store import Store, StoredMessage
from chatapp.ui import mount
from tests.fakes import HashEmbeddings, ready_engine, scripted
from tests.seats import Seat
from tests.serving import serving
from tests.test_browser import App, ask, reply, stop_button, wait_until_idle
from tests.test_browser_evidence import POEMS, SUPPORTED

RICH = "Said 说过.\n\n```python\nprint(1)\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n\\(x^2\\)"
STORY = "".join(f"The fox 狐狸 went on {day}. " for day in range(400))
VERSE = "太行雪昨夜飞入来是谁写的？"
PAUSE = 0.01  #: seconds for a token


class Running(App):
    """The app, with what is behind its page."""

    chat: Chat


def written(prompt: str) -> str:
    """What the model writes: on the poems, a story for whoever asks for a long one, or some of everything."""
    asked = prompt.rpartition("user")[2]
    if VERSE in asked:
        return SUPPORTED
    return STORY if "long" in asked else RICH


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    data = tmp_path_factory.mktemp("data")
    settings = parse(["--data", str(data)], {})
    engine = ready_engine(scripted(written, context=20_000, before=lambda: time.sleep(PAUSE)))
    library = Library(data / "kb", HashEmbeddings)
    library.open(library.create("诗")).ingest([POEMS])
    chat = Chat(engine, library, Store(data / "conversations.db"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(data / "uploads"))
        with serving(build(chat, mount(settings, chat, Startup(settings, engine)))) as port:
            running = Running(f"http://127.0.0.1:{port}", data)
            running.chat = chat
            yield running


@pytest.fixture
def page(app: Running, browser: Browser, seat: Seat) -> Iterator[Page]:
    for conversation in app.chat.store.conversations():
        app.chat.store.delete(conversation.id)
    context = seat.context(browser)
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = app.watch(context.new_page())
    page.goto(app.address)
    expect(page.locator("#target")).not_to_be_empty()
    expect(page.locator("#welcome li")).to_have_count(3)
    yield page
    assert app.complaints == []
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
    context.close()
    app.complaints.clear()  # what was on its way to a page that closes is broken off, and Gradio says so


def act(page: Page, label: str, number: int = -1) -> None:
    """Clicks a link below a message, by default the last."""
    page.locator("#messages .acts").nth(number).get_by_text(label, exact=True).click()


def pager(page: Page, number: int = -1) -> Locator:
    return page.locator("#messages .acts").nth(number).locator("span").first


def answered(page: Page, count: int = 1) -> None:
    """Waits until the last of so many replies has come to its end."""
    expect(page.locator("#messages .bot.message .acts")).to_have_count(count)
    wait_until_idle(page)


def conversations(page: Page) -> Locator:
    return page.locator("#conversations label")


def choose_mode(page: Page, seat: Seat, name: str) -> None:
    page.locator("#mode").get_by_label(seat.says(f"mode_{name}"), exact=True).check()


def test_an_example_is_asked_and_its_reply_is_set_as_markdown(page: Page, seat: Seat) -> None:
    example = page.locator("#welcome a[href^='#q-example']").first
    asked = example.inner_text()
    example.click()
    expect(page.locator("#messages .user.message")).to_contain_text(asked)
    answered(page)
    expect(page.locator("#welcome")).to_be_hidden()
    said = reply(page)
    expect(said).to_contain_text("Said 说过.")
    expect(said.locator("pre code span.token, pre code span[class*=hljs]").first).to_be_visible()
    expect(said.locator("table td").first).to_have_text("1")
    expect(said.locator(".katex").first).to_be_visible()
    expect(page.locator("#progress")).to_contain_text(re.compile(r"\d+\.\d (tokens/s|词元/秒)"))


def test_stop_takes_the_place_of_send_and_the_reply_goes_on(page: Page, seat: Seat) -> None:
    ask(page, "Tell me a long story.")
    expect(stop_button(page)).to_be_visible()
    expect(reply(page)).to_contain_text("The fox 狐狸 went on 0. The fox")
    page.locator("#text textarea").press("Escape")
    expect(page.locator("#progress")).to_contain_text(seat.says("stopped"))
    answered(page)
    kept = reply(page).locator("p").first.inner_text().rstrip()
    act(page, seat.says("continue"))
    page.wait_for_function(
        "kept => document.querySelector('#messages .bot.message p')?.innerText.length > kept.length + 20", arg=kept
    )
    stop_button(page).click()
    answered(page)
    assert reply(page).locator("p").first.inner_text().startswith(kept)


def test_messages_have_versions_and_come_back_after_undo(page: Page, seat: Seat) -> None:
    ask(page, "First 第一?")
    answered(page)
    act(page, seat.says("regenerate"))
    expect(pager(page)).to_have_text("‹ 2/2 ›")
    answered(page)
    act(page, "‹")
    expect(pager(page)).to_have_text("‹ 1/2 ›")
    act(page, seat.says("edit"), 0)
    expect(page.locator("#text textarea")).to_have_value("First 第一?")
    expect(page.locator("#text textarea")).to_be_focused()
    page.locator("#progress").get_by_text(seat.says("cancel"), exact=True).click()
    expect(page.locator("#text textarea")).to_have_value("")
    act(page, seat.says("edit"), 0)
    expect(page.locator("#text textarea")).not_to_have_value("")
    ask(page, "Second 第二?")
    expect(page.locator("#messages .user.message")).to_contain_text("Second 第二?")
    answered(page)
    expect(pager(page, 0)).to_have_text("‹ 2/2 ›")
    act(page, seat.says("undo"))
    expect(page.locator("#messages .message")).to_have_count(0)
    page.locator("#progress").get_by_text(seat.says("redo"), exact=True).click()
    expect(page.locator("#messages .user.message")).to_contain_text("Second 第二?")


def test_a_copy_is_what_was_typed(page: Page) -> None:
    ask(page, "Is 1 < 2 & *so* on? 对吗")
    answered(page)
    page.locator("#messages .message-buttons button, #messages .user-row button").first.click()
    page.wait_for_function("navigator.clipboard.readText().then(text => text === 'Is 1 < 2 & *so* on? 对吗')")


def test_the_keyboard_writes_lines_recalls_and_begins_anew(page: Page) -> None:
    text = page.locator("#text textarea")
    text.click()
    page.keyboard.type("One")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    expect(text).to_have_value("One\ntwo")
    page.keyboard.press("Enter")
    answered(page)
    text.click()
    page.keyboard.press("ArrowUp")
    expect(text).to_have_value("One\ntwo")
    page.keyboard.press("Control+k")
    expect(page.locator("#welcome li")).to_have_count(3)
    expect(page.locator("#messages .message")).to_have_count(0)
    expect(text).to_have_value("")
    expect(text).to_be_focused()


def test_a_conversation_is_found_renamed_deleted_and_brought_back(page: Page, seat: Seat, tmp_path: Path) -> None:
    for question in ("合同里的违约金是多少？", "Where is the key?"):
        ask(page, question)
        answered(page)
        seat.reach(page, "left")
        page.locator("#new-chat").click()
        expect(page.locator("#messages .message")).to_have_count(0)
    seat.reach(page, "left")
    page.locator("#search input").fill("zebra")
    expect(page.locator("#conversations")).to_contain_text(seat.says("search_nothing"))
    page.locator("#search input").fill("违约")
    expect(conversations(page)).to_have_count(1)
    expect(page.locator("#conversations")).not_to_contain_text(seat.says("search_nothing"))
    conversations(page).click()
    expect(page.locator("#messages .user.message")).to_contain_text("违约金")
    seat.reach(page, "left")
    page.locator("#conversation-section > button").click()
    title = page.locator("#title input")
    expect(title).to_have_value(re.compile("违约金"))
    title.fill("租约 lease")
    title.press("Enter")
    expect(conversations(page).filter(has_text="租约 lease")).to_have_count(1)
    with page.expect_download() as download:
        page.locator("#exports a").get_by_text("JSON").click()
    download.value.save_as(tmp_path / "租约.json")
    page.locator("#delete").click()
    expect(conversations(page)).to_have_count(1)
    page.locator("#restore").click()
    expect(conversations(page)).to_have_count(2)
    expect(page.locator("#messages .user.message")).to_contain_text("违约金")
    with page.expect_file_chooser() as chooser:
        page.locator("#import").click()
    chooser.value.set_files(tmp_path / "租约.json")
    expect(conversations(page)).to_have_count(3)


def test_where_answers_come_from_is_chosen_and_seen(page: Page, seat: Seat) -> None:
    seat.reach(page, "left")
    page.locator("#base").get_by_label("诗").check()
    seat.leave(page)
    choose_mode(page, seat, "documents")
    ask(page, VERSE)
    answered(page)
    expect(reply(page).locator("a.mark").first).to_be_visible()
    seat.reach(page, "right")
    expect(page.locator("#sources .card").first).to_contain_text("zh_poems.pdf")
    seat.leave(page)
    ask(page, "它的下一句是什么？")
    answered(page, 2)
    expect(reply(page)).to_contain_text(seat.says("searched_for", text=""))
    reply(page).get_by_text(seat.says("search_edit"), exact=True).click()
    expect(page.locator("#text textarea")).to_have_value(re.compile("下一句"))
    page.locator("#progress").get_by_text(seat.says("cancel"), exact=True).click()
    expect(page.locator("#text textarea")).to_have_value("")
    choose_mode(page, seat, "chat")
    ask(page, "Hello")
    expect(page.locator("#messages .user.message").last).to_contain_text("Hello")
    answered(page, 3)
    expect(page.locator("#sources .card")).to_have_count(0)


def test_the_lab_shows_what_each_way_of_searching_finds(page: Page, seat: Seat) -> None:
    seat.reach(page, "left")
    page.locator("#base").get_by_label("诗").check()
    seat.leave(page)
    seat.reach(page, "right")
    page.locator("#lab > button").click()
    page.locator("#lab-question").locator("input, textarea").fill(VERSE)
    page.locator("#lab-find").click()
    expect(page.locator("#lab-results")).to_contain_text("zh_poems.pdf")
    page.locator("#lab-passages input[type=number]").fill("2")
    page.locator("#lab-passages input[type=number]").press("Tab")
    page.locator("#lab-apply").click()
    expect(page.locator("#lab-note")).to_contain_text(seat.says("lab_applied"))
    seat.leave(page)
    ask(page, VERSE)
    answered(page)
    expect(page.locator("#sources .card")).to_have_count(2)


def test_the_budget_opens_into_the_ledger(page: Page, seat: Seat) -> None:
    ask(page, "Hello")
    answered(page)
    budget = page.locator("#progress details.budget")
    budget.locator("summary").click()
    expect(budget.locator("tr").filter(has_text=seat.says("spent_question"))).to_be_visible()
    expect(budget.locator("tr").filter(has_text=seat.says("spent_reply"))).to_be_visible()


def test_a_long_conversation_shows_its_end_and_the_rest_on_demand(page: Page, app: Running, seat: Seat) -> None:
    conversation = app.chat.begin()
    for number in range(30):
        said = StoredMessage("user", f"Question {number}."), StoredMessage("assistant", f"Answer {number}.")
        app.chat.store.add(conversation, *said)
    page.reload()
    seat.reach(page, "left")
    conversations(page).first.click()
    seat.leave(page)
    expect(page.locator("#messages .user.message")).to_have_count(20)
    expect(page.locator("#messages .user.message").last).to_be_in_viewport()
    page.locator("#messages .earlier a").click()
    expect(page.locator("#messages .user.message")).to_have_count(30)


def test_panes_fold_and_stay_so_and_drawers_give_the_focus_back(page: Page, seat: Seat) -> None:
    if seat.narrow:
        for pane in ("left", "right"):
            button = page.locator(f"#top [data-drawer={pane}]")
            button.press("Enter")
            expect(page.locator(f"#{pane} [data-fold={pane}]")).to_be_focused()
            expect(button).to_have_attribute("aria-expanded", "true")
            page.keyboard.press("Escape")
            expect(page.locator(f"#{pane}")).to_be_hidden()
            expect(button).to_be_focused()
        return
    fold = page.locator("#left [data-fold=left]")
    expect(fold).to_have_attribute("aria-expanded", "true")
    fold.press("Enter")
    expect(fold).to_have_attribute("aria-expanded", "false")
    expect(page.locator("#new-chat")).to_be_hidden()
    page.reload()
    expect(page.locator("#welcome li")).to_have_count(3)
    expect(fold).to_have_attribute("aria-expanded", "false")
    expect(page.locator("#new-chat")).to_be_hidden()
    fold.press("Enter")
    expect(page.locator("#new-chat")).to_be_visible()
