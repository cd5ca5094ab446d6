"""In a real browser, at every seat: files that are dropped on the input and asked about at once, folders, files
that are removed, read again or fail, several knowledge bases at once, and what can be done with one."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from chatapp.library import Library
from chatapp.server import build
from chatapp.session import Chat
from chatapp.settings import parse
from chatapp.startup import Startup
from chatapp.store import Store
from chatapp.ui import mount
from knowledge import ingest
from tests.fakes import HashEmbeddings, ready_engine, scripted
from tests.seats import Seat
from tests.serving import serving
from tests.test_browser import App, ask, reload, reply

FACTS = {
    "en": ("The rent is 1,200 francs a month, due on the first day.", "What is the rent?"),
    "zh": ("每月租金为一千二百法郎，每月一日支付。", "每月租金是多少？"),
}
LOCKED = "bad_zero_bytes.pdf"


class Place(App):
    """The running app, with what is behind its page."""

    chat: Chat

    @property
    def library(self) -> Library:
        return self.chat.library

    def base(self, name: str, **texts: str) -> str:
        """A knowledge base with text files."""
        folder = self.data / "made" / name
        folder.mkdir(parents=True)
        for file, text in texts.items():
            (folder / f"{file}.txt").write_text(text, encoding="utf-8")
        self.library.open(self.library.create(name)).ingest(sorted(folder.iterdir()))
        return name


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    settings = parse(["--data", str(tmp_path)], {})
    engine = ready_engine(scripted(lambda prompt: FACTS["zh" if "租金" in prompt else "en"][0], context=20_000))
    library = Library(tmp_path / "kb", HashEmbeddings)
    chat = Chat(engine, library, Store(tmp_path / "conversations.db"))
    with serving(build(chat, mount(settings, chat, Startup(settings, engine)))) as port:
        place = Place(f"http://127.0.0.1:{port}", tmp_path)
        place.chat = chat
        yield place


def opened(place: Place, browser: Browser, seat: Seat) -> Page:
    """The page, once it can be used."""
    page = place.watch(seat.context(browser).new_page())
    page.goto(place.address)
    expect(page.locator("#target")).not_to_be_empty()
    return page


def closed(page: Page, place: Place) -> None:
    page.context.close()
    assert place.complaints == []


def tick(page: Page, seat: Seat, *names: str) -> None:
    """Chooses knowledge bases, and leaves them in view."""
    seat.reach(page, "left")
    for name in names:
        page.locator("#base").get_by_label(name).check()


def row(page: Page, name: str) -> Locator:
    return page.locator("#documents li", has_text=name)


def drop(page: Page, target: str, *paths: Path) -> None:
    """What a file manager does: files and folders, by their paths, dropped on an element."""
    page.locator(target).hover()  # scrolls there, and waits until it stays in its place
    box = page.locator(target).bounding_box()
    where = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
    data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
    devtools = page.context.new_cdp_session(page)
    for kind in ("dragEnter", "dragOver", "dragOver", "drop"):
        devtools.send("Input.dispatchDragEvent", {"type": kind, **where, "data": data})
        if kind == "dragOver":
            expect(page.locator(".dropping")).to_be_visible()  # else the browser may take the drop for refused


def sources(page: Page, seat: Seat, *names: str) -> None:
    """Reads that an answer comes from one passage of each of these, in any order, and goes back to the chat."""
    cards = page.locator("#sources .card")
    expect(cards).to_have_count(len(names))
    seat.reach(page, "right")
    for name in names:
        expect(cards.filter(has_text=name)).to_be_visible()
    seat.leave(page)


def answered(page: Page, seat: Seat, question: str) -> None:
    """Asks, and waits for the whole answer with its citations."""
    seat.leave(page)
    ask(page, question)
    expect(reply(page).locator("a.mark").first).to_be_visible()
    expect(reply(page).locator(".acts")).to_be_visible()


def cited(page: Page, seat: Seat) -> None:
    """Opens the answer's first citation."""
    seat.leave(page)
    reply(page).locator("a.mark").first.click()
    expect(page.locator(".evidence")).to_be_in_viewport()


def test_a_file_dropped_on_the_input_is_asked_about_at_once(
    place: Place, browser: Browser, seat: Seat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, question = FACTS[seat.language]
    name = place.base("docs", other=text.replace("1,200", "900").replace("一千二百", "九百"))
    (tmp_path / "rent 租金.txt").write_text(text, encoding="utf-8")
    reading, parse_file = threading.Event(), ingest.parse

    def slowly(*arguments: object) -> object:
        assert reading.wait(60)
        return parse_file(*arguments)

    monkeypatch.setattr(ingest, "parse", slowly)
    page = opened(place, browser, seat)
    tick(page, seat, name)
    expect(row(page, "other.txt")).to_be_visible()
    seat.leave(page)
    drop(page, "#text", tmp_path / "rent 租金.txt")
    ask(page, question)  # the file may still be on its way
    expect(page.locator("#progress")).to_contain_text(seat.says("opening", name="rent 租金.txt"))
    seat.reach(page, "left")
    expect(row(page, "rent 租金.txt")).to_be_visible()
    expect(row(page, "rent 租金.txt")).to_have_class("reading")
    seat.leave(page)
    expect(page.locator("#messages .user .beside")).to_have_text("rent 租金.txt")
    expect(page.locator("#chips .chip")).to_have_count(0)
    reading.set()
    sources(page, seat, "rent 租金.txt")  # it says, so the other one was not asked
    expect(reply(page).locator(".quote")).to_contain_text("1,200" if seat.language == "en" else "一千二百")
    expect(row(page, "rent 租金.txt")).to_have_class("done")
    reload(page)
    expect(page.locator("#messages .user .beside")).to_have_text("rent 租金.txt")
    expect(page.locator("#base").get_by_label(name)).to_be_checked()
    closed(page, place)


def test_the_first_file_makes_a_base_and_can_be_taken_from_the_question(
    place: Place, browser: Browser, seat: Seat, tmp_path: Path
) -> None:
    text, question = FACTS[seat.language]
    for name in ("one.txt", "two.txt"):
        (tmp_path / name).write_text(f"{name}: {text}", encoding="utf-8")
    page = opened(place, browser, seat)
    with page.expect_file_chooser() as chooser:
        page.locator("#attach").click()
    chooser.value.set_files([tmp_path / "one.txt", tmp_path / "two.txt"])
    chips = page.locator("#chips .chip")
    expect(chips).to_have_count(2)
    expect(chips.first).to_contain_text(seat.says("chip_ready"))
    base = seat.says("base_default")
    seat.reach(page, "left")
    expect(page.locator("#base").get_by_label(base)).to_be_checked()
    seat.leave(page)
    page.get_by_label(seat.says("chip_remove", name="two.txt")).click()
    expect(chips).to_have_count(1)
    ask(page, question)
    sources(page, seat, "one.txt")
    assert [document.name for document in place.library.open(base).documents()] == ["one.txt", "two.txt"]
    closed(page, place)


def test_a_picture_that_is_pasted_says_that_it_can_not_be_read(place: Place, browser: Browser, seat: Seat) -> None:
    page = opened(place, browser, seat)
    page.locator("#text textarea").focus()
    page.evaluate(
        """() => {
            const carrier = new DataTransfer();
            carrier.items.add(new File(["x"], "photo.jpg", { type: "image/jpeg" }));
            document.activeElement.dispatchEvent(
                new ClipboardEvent("paste", { clipboardData: carrier, bubbles: true, cancelable: true }));
        }"""
    )
    expect(page.locator("#chips .chip.failed")).to_contain_text("photo.jpg")
    ask(page, "What is in the photo?")
    kinds = {"en": "is not of a kind that can be read", "zh": "的类型不受支持"}
    expect(reply(page)).to_contain_text(kinds[seat.language])
    closed(page, place)


def test_a_folder_keeps_the_names_inside_it_and_counts_what_it_leaves_out(
    place: Place, browser: Browser, seat: Seat, tmp_path: Path
) -> None:
    folder = tmp_path / "租约 lease"
    for path, text in {
        "notes.txt": "There are three keys to the cellar.",
        "2024/notes.txt": "The bins are emptied on Tuesday.",
        "2024/.hidden.txt": "secret",
        ".git/config.txt": "secret",
        "photo.jpg": "x",
    }.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
    (tmp_path / "alone.txt").write_text("Alone.", encoding="utf-8")
    names = ["alone.txt", "租约 lease/2024/notes.txt", "租约 lease/notes.txt"]
    left_out = seat.says("folder_skipped", count=3)

    page = opened(place, browser, seat)
    seat.reach(page, "left")
    drop(page, "#files", folder, tmp_path / "alone.txt")
    expect(page.locator("#documents li.done")).to_have_count(3)
    expect(page.locator(".toast-body")).to_contain_text(left_out)
    base = place.library.open(seat.says("base_default"))
    assert sorted(document.name for document in base.documents()) == names

    page.locator(".toast-close").click()
    with page.expect_file_chooser() as chooser:
        page.locator("#target button").click()
    chooser.value.set_files(folder)
    expect(page.locator("#arrivals li.known")).to_have_count(2)
    expect(page.locator(".toast-body")).to_contain_text(left_out)
    assert sorted(document.name for document in base.documents()) == names
    closed(page, place)


def test_what_is_removed_is_neither_found_nor_quoted(
    place: Place, browser: Browser, seat: Seat, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, question = FACTS[seat.language]
    base = place.library.open(place.base("docs", rent=text, cat="The cat sleeps on the roof."))
    forgotten = threading.Event()
    monkeypatch.setattr(type(place.chat.engine), "forget", lambda engine: forgotten.set())
    page = opened(place, browser, seat)
    tick(page, seat, "docs")
    answered(page, seat, question)
    removed = next(document for document in base.documents() if document.name == "rent.txt")
    original = base.original(removed.id)

    seat.reach(page, "left")
    row(page, "rent.txt").get_by_text(seat.says("file_remove"), exact=True).first.click()
    row(page, "rent.txt").get_by_text(seat.says("cancel")).click()
    expect(row(page, "rent.txt").locator(".sure")).to_be_hidden()
    assert original.exists()
    row(page, "rent.txt").get_by_text(seat.says("file_remove"), exact=True).first.click()
    row(page, "rent.txt").locator(".sure [data-do=remove]").click()
    expect(row(page, "rent.txt")).to_have_count(0)
    assert forgotten.wait(10) and not original.exists()
    assert {passage.name for passage in base.search(question)} <= {"cat.txt"}
    assert text.encode() not in b"".join(path.read_bytes() for path in base.folder.rglob("*") if path.is_file())

    cited(page, seat)
    expect(page.locator(".evidence")).to_contain_text(seat.says("evidence_gone"))
    seat.reach(page, "left")
    page.locator("#new-chat").click()
    ask(page, question)
    expect(reply(page)).to_contain_text(seat.says("nothing_found"))
    closed(page, place)


def test_two_bases_are_asked_at_once(place: Place, browser: Browser, seat: Seat) -> None:
    text, question = FACTS[seat.language]
    other = text.replace("1,200", "90").replace("一千二百", "九十")
    place.base("flat 住房", rent=text)
    place.base("garage 车库", rent=other)
    place.base("unasked", rent=text.replace("1,200", "7").replace("一千二百", "七"))
    page = opened(place, browser, seat)
    tick(page, seat, "flat 住房", "garage 车库")
    expect(page.locator("#documents h3")).to_have_count(2)
    answered(page, seat, question)
    sources(page, seat, "flat 住房", "garage 车库")
    for name, rent in {"flat 住房": FACTS[seat.language][0], "garage 车库": other}.items():
        expect(page.locator("#sources .card", has_text=name)).to_contain_text(rent)
    cited(page, seat)
    expect(page.locator(".evidence mark").first).to_contain_text("1,200" if seat.language == "en" else "一千二百")
    reload(page)
    seat.reach(page, "left")
    expect(page.locator("#base").get_by_label("garage 车库")).to_be_checked()
    expect(page.locator("#base").get_by_label("flat 住房")).to_be_checked()
    expect(page.locator("#base").get_by_label("unasked")).not_to_be_checked()
    (kept,) = place.chat.store.conversations()
    assert kept.preferences.knowledge_base == ["flat 住房", "garage 车库"]
    page.locator("#base").get_by_label("flat 住房").uncheck()
    expect(page.locator("#documents h3")).to_have_count(0)
    seat.leave(page)
    ask(page, question)
    sources(page, seat, "rent.txt")
    closed(page, place)


def test_a_file_that_failed_says_why_and_is_tried_again(
    place: Place, browser: Browser, seat: Seat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, question = FACTS[seat.language]
    (tmp_path / "rent.txt").write_text(text, encoding="utf-8")
    page = opened(place, browser, seat)
    seat.reach(page, "left")
    with monkeypatch.context() as patch:
        patch.setattr(ingest, "split", lambda pages, count: [])
        page.locator("#files input[type=file]").set_input_files(tmp_path / "rent.txt")
        expect(row(page, "rent.txt")).to_have_class("failed")
    expect(row(page, "rent.txt")).to_contain_text({"en": "holds no words", "zh": "没有可供检索的词语"}[seat.language])
    row(page, "rent.txt").get_by_text(seat.says("file_retry")).click()
    expect(row(page, "rent.txt")).to_have_class("done")
    (before,) = place.library.open(seat.says("base_default")).documents()

    with monkeypatch.context() as patch:  # a reader that has become better
        patch.setattr(ingest, "split", lambda pages, count, split=ingest.split: split(pages, count) * 1)
        row(page, "rent.txt").get_by_text(seat.says("file_again")).click()
        expect(row(page, "rent.txt")).to_have_class("done")
    (after,) = place.library.open(seat.says("base_default")).documents()
    assert after.id == before.id
    answered(page, seat, question)
    sources(page, seat, "rent.txt")
    closed(page, place)


def test_two_hundred_files_stay_usable(place: Place, browser: Browser, seat: Seat) -> None:
    base = place.library.open(place.base("many", **{f"note {number:03}": f"Note {number}." for number in range(200)}))
    base.ingest([Path(__file__).parent / "data" / "pdf" / LOCKED])
    page = opened(place, browser, seat)
    tick(page, seat, "many")
    rows = page.locator("#documents li")
    expect(rows).to_have_count(201)
    expect(rows.first).to_have_class("failed")
    listing = page.locator("#documents")
    assert listing.bounding_box()["height"] < 500
    assert listing.evaluate("list => list.scrollHeight > 5 * list.clientHeight")
    page.locator("#filter input, #filter textarea").fill("NOTE 07")
    expect(page.locator("#documents li:visible")).to_have_count(10)
    with page.expect_download() as download:
        row(page, "note 077").locator(".name a").click()
    assert download.value.path().read_text() == "Note 77."
    page.locator("#filter input, #filter textarea").fill("")
    expect(page.locator("#documents li:visible")).to_have_count(201)
    closed(page, place)


def test_a_base_is_renamed_and_deleted_by_its_name(place: Place, browser: Browser, seat: Seat) -> None:
    text, question = FACTS[seat.language]
    folder = place.library.open(place.base("docs", rent=text)).folder
    page = opened(place, browser, seat)
    tick(page, seat, "docs")
    answered(page, seat, question)
    seat.reach(page, "left")
    expect(page.locator("#conversation-section > button")).to_be_visible()  # the reply's end has drawn the pane anew
    page.locator("#base-section > button").click()
    name = page.locator("#base-name input, #base-name textarea")
    expect(name).to_have_value("docs")
    name.fill("租约")
    name.press("Enter")
    expect(page.locator("#base").get_by_label("租约")).to_be_checked()
    cited(page, seat)  # the conversation knows it by its former name
    expect(page.locator(".evidence mark").first).to_be_visible()

    seat.reach(page, "left")
    doomed = page.locator("#base-doomed input, #base-doomed textarea")
    doomed.fill("docs")
    page.locator("#base-delete").click()
    expect(page.locator(".toast-body")).to_contain_text("租约")
    assert folder.exists()
    doomed.fill("租约")
    page.locator("#base-delete").click()
    expect(page.locator("#base").get_by_label("租约")).to_have_count(0)
    expect(page.locator("#documents li")).to_have_count(0)
    assert not folder.exists() and place.library.names() == []
    cited(page, seat)
    expect(page.locator(".evidence")).to_contain_text(seat.says("evidence_gone"))
    closed(page, place)


def test_it_fits_a_phone(place: Place, browser: Browser, tmp_path: Path) -> None:
    (tmp_path / f"{'合同' * 30}.txt").write_text(FACTS["zh"][0], encoding="utf-8")
    page = opened(place, browser, Seat("zh", "phone"))
    drop(page, "#text", tmp_path / f"{'合同' * 30}.txt")
    expect(page.locator("#chips .chip")).to_contain_text("可提问")
    for part in ("#chips .chip", "#attach", "#text"):
        box = page.locator(part).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 390
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    ask(page, FACTS["zh"][1])
    expect(reply(page)).to_contain_text(re.compile("一千二百"))
    closed(page, place)
