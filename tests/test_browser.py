"""The main job in a real browser: open, chat, stop, upload, ask, see the page that the answer comes from, reload."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import gguf
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.memorise import checkpoint, one_thread
from tests.tiny import LLAMA, save_folder

ROOT = Path(__file__).parent.parent
PDF = Path(__file__).parent / "data" / "pdf"
SLOW_MACHINE = 120_000  # milliseconds: two busy cores read a thousand tokens in some seconds, but not always

expect.set_options(timeout=SLOW_MACHINE)


#: What Gradio says of requests that end because their page is left or loaded anew.
BROKEN_OFF = ("AbortError", "Connection errored out")


@dataclass
class App:
    """A running app, and what its page did that it should not: requests to other machines, errors on the console."""

    address: str
    data: Path
    complaints: list[str] = field(default_factory=list)

    def _note(self, complaint: str) -> None:
        print(complaint)  # whatever the test fails of
        if not any(words in complaint for words in BROKEN_OFF):
            self.complaints.append(complaint)

    def watch(self, page: Page) -> Page:
        page.on("request", lambda request: self._check(request.url))
        page.on("console", lambda message: message.type == "error" and self._note(message.text))
        page.on("pageerror", lambda error: self._note(str(error)))
        return page

    def _check(self, url: str) -> None:
        if not url.startswith((self.address, "data:", "blob:")):
            self.complaints.append(url)


@pytest.fixture(scope="module")
def app(
    default_model: Path, embedder_folder: Path, data_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[App]:
    data = tmp_path_factory.mktemp("数据 data")
    (data / "checkpoints").mkdir()
    with one_thread():
        memorised = checkpoint("chatglm2-6b", data_folder / "memorised")
    for folder in (default_model.parent, embedder_folder, memorised):
        os.symlink(folder.resolve(), data / "checkpoints" / folder.name)
    log = (data / "log.txt").open("w+")
    command = [sys.executable, "app.py", "--data", str(data), "--port", "17860"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, env=_environment())
    try:
        yield App(_address(process, data / "log.txt"), data)
    finally:
        process.terminate()
        process.wait(20)
        log.close()


def _environment() -> dict[str, str]:
    """No package index can be reached: every start but the first works without a network."""
    offline = {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull, "PYTHONUNBUFFERED": "1"}
    return {name: value for name, value in os.environ.items() if not name.startswith("QUATRAIN_")} | offline


def _address(process: subprocess.Popen, log: Path) -> str:
    for _ in range(600):
        match = re.search(r"http://[\d.]+:\d+", log.read_text())
        if match and _answers(match[0]):
            return match[0]
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)
    raise AssertionError(log.read_text())


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/health") as response:
            return json.load(response)["model"]["state"] == "ready"
    except urllib.error.URLError:
        return False


@pytest.fixture
def page(app: App, browser: Browser) -> Iterator[Page]:
    context = browser.new_context(locale="en-US", viewport={"width": 1440, "height": 900})
    page = app.watch(context.new_page())
    page.goto(app.address)
    expect(page.locator("#state")).to_contain_text("is ready")
    expect(page.locator("#model input")).to_have_value("SmolLM2-135M-Instruct.Q4_1")
    # The two above may come from a tick; this comes with what the page is opened with, which replaces its documents.
    expect(page.locator("#target")).not_to_be_empty()
    yield page
    assert app.complaints == []
    context.close()
    app.complaints.clear()  # what was on its way to a page that closes is broken off, and Gradio says so


def ask(page: Page, text: str) -> None:
    page.locator("#text textarea").fill(text)
    page.keyboard.press("Enter")


def reply(page: Page):
    return page.locator("#messages .bot.message").last


def stop_button(page: Page):
    return page.locator("#text .stop-button")


def stop_if_writing(page: Page) -> None:
    """Presses Stop at once; a short reply may have come to its end by itself."""
    page.evaluate("document.querySelector('#text .stop-button')?.click()")


def ask_and_stop(page: Page, text: str) -> None:
    """Asks, and stops the reply; one that came to its end by itself is asked for anew."""
    ask(page, text)
    for _ in range(5):
        page.wait_for_function("document.querySelector('#messages .bot.message')?.innerText.length > 20")
        stop_if_writing(page)
        wait_until_idle(page)
        if "Stopped." in page.locator("#progress").inner_text():
            return
        act(page, "Regenerate")
        expect(stop_button(page)).to_be_visible()
    raise AssertionError("no reply was stopped")


def wait_until_idle(page: Page) -> None:
    expect(page.locator("#text .submit-button")).to_be_visible()


def finish(page: Page) -> None:
    """Ends a reply once it has begun: the small model may go round in circles to the end of its window."""
    page.wait_for_function("[...document.querySelectorAll('#messages .bot.message')].at(-1)?.innerText.length > 1")
    stop_if_writing(page)
    wait_until_idle(page)


def reload(page: Page) -> None:
    """A moment later: the browser complains of answers that it no longer gets, and the network is never idle here."""
    page.wait_for_timeout(1500)
    page.reload()


def upload(page: Page, *names: str) -> None:
    page.locator("#files input[type=file]").set_input_files([PDF / name for name in names])


def test_chat_streams_and_remembers(page: Page) -> None:
    ask(page, "What is the capital of France? Answer in one sentence.")
    expect(reply(page)).to_contain_text("Paris")
    expect(page.locator("#progress")).to_contain_text("tokens/s")
    ask(page, "Say that again.")
    expect(page.locator("#messages .bot.message")).to_have_count(2)
    finish(page)
    expect(page.locator("#conversations label.selected")).to_contain_text("What is the capital of France?")


def test_the_budget_bar_opens_into_the_ledger_and_is_kept_with_its_conversation(page: Page) -> None:
    ask(page, "What is the capital of Italy?")
    finish(page)
    budget = page.locator("#progress details.budget")
    expect(budget.locator("summary")).to_contain_text(re.compile(r"[\d,]+ of [\d,]+ tokens"))
    rows = budget.locator("table tr")
    expect(rows.first).to_be_hidden()
    budget.locator("summary").focus()
    page.keyboard.press("Enter")
    expect(rows.filter(has_text="Question")).to_be_visible()
    expect(rows.filter(has_text="Kept for the reply")).to_be_visible()
    page.locator("#new-chat").click()
    expect(budget).to_have_count(0)
    page.locator("#conversations label").first.click()
    expect(budget.locator("summary")).to_contain_text("tokens")


def test_a_tab_that_is_closed_frees_the_model_for_others(page: Page, app: App, browser: Browser) -> None:
    context = browser.new_context(locale="en-US")
    closing = context.new_page()  # not watched: Gradio complains about what it is cut off from
    closing.goto(app.address)
    expect(closing.locator("#state")).to_contain_text("is ready")
    ask(closing, "Write a very long story about an old bridge and all who cross it, with every detail.")
    closing.wait_for_function("document.querySelector('#messages .bot.message')?.innerText.length > 20")
    ask(page, "What is the capital of Spain?")
    expect(page.locator("#progress")).to_contain_text("Waiting: 1 before you")
    context.close()
    expect(page.locator("#progress")).not_to_contain_text("Waiting", timeout=5000)
    finish(page)
    expect(reply(page)).not_to_be_empty()


def test_reply_grows_and_stop_ends_it_within_a_second(page: Page) -> None:
    ask(page, "Write a long story about a dragon who learns to sail, with many details.")
    expect(reply(page)).to_contain_text("dragon")
    early = reply(page).inner_text()
    page.wait_for_function(
        "early => document.querySelector('#messages .bot.message').innerText.length > early.length", arg=early
    )
    started = time.monotonic()
    stop_button(page).click()
    expect(page.locator("#progress")).to_contain_text("Stopped.")
    wait_until_idle(page)
    assert time.monotonic() - started < 1
    stopped = reply(page).inner_text()
    page.wait_for_timeout(1000)
    assert reply(page).inner_text() == stopped
    assert len(stopped) >= len(early)


def act(page: Page, label: str, number: int = -1) -> None:
    """Clicks a link below a message, by default the last."""
    page.locator("#messages .acts").nth(number).get_by_text(label, exact=True).click()


def pager(page: Page, number: int = -1):
    return page.locator("#messages .acts").nth(number).locator("span").first


def test_replies_and_questions_have_versions(page: Page) -> None:
    ask(page, "What is the capital of <France>? Answer in one sentence.")
    expect(reply(page)).to_contain_text("Paris")
    wait_until_idle(page)
    act(page, "Regenerate")
    expect(pager(page)).to_have_text("‹ 2/2 ›")
    act(page, "‹")
    expect(pager(page)).to_have_text("‹ 1/2 ›")
    act(page, "Edit", 0)
    expect(page.locator("#text textarea")).to_have_value("What is the capital of <France>? Answer in one sentence.")
    expect(page.locator("#progress")).to_contain_text("new version")
    page.locator("#progress").get_by_text("Cancel").click()
    expect(page.locator("#text textarea")).to_have_value("")
    act(page, "Edit", 0)
    expect(page.locator("#text textarea")).not_to_have_value("")
    ask(page, "What is the capital of Italy? Answer in one sentence.")
    expect(reply(page)).to_contain_text("Rome")
    wait_until_idle(page)
    expect(pager(page, 0)).to_have_text("‹ 2/2 ›")
    reload(page)
    expect(page.locator("#messages .user.message")).to_contain_text("Italy")
    act(page, "‹", 0)
    expect(page.locator("#messages .user.message")).to_contain_text("<France>")
    act(page, "Undo")
    expect(page.locator("#messages .message")).to_have_count(0)
    page.locator("#progress").get_by_text("Redo").click()
    expect(page.locator("#messages .user.message")).not_to_have_count(0)


def test_a_stopped_reply_goes_on(page: Page) -> None:
    ask_and_stop(page, "Write a long story about a fox in winter, with many details.")
    kept = reply(page).locator("p").first.inner_text()
    act(page, "Continue")
    page.wait_for_function(
        "kept => document.querySelector('#messages .bot.message')?.innerText.length > kept.length + 60", arg=kept
    )
    stop_if_writing(page)
    wait_until_idle(page)
    assert reply(page).inner_text().startswith(kept[:-1])
    expect(page.locator("#messages .bot.message")).to_have_count(1)


def test_copying_gives_what_was_typed(page: Page) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    typed = "  Is 1 < 2 & *so* on?\n\nAnswer in a word."
    ask(page, typed)
    finish(page)
    expect(page.locator("#messages .acts")).to_have_count(2)
    page.locator('#messages button[title="Copy message"]').first.click()
    page.wait_for_function("navigator.clipboard.readText().then(text => text.length > 0)")
    assert page.evaluate("navigator.clipboard.readText()") == typed


def conversations(page: Page):
    return page.locator("#conversations label")


def test_conversations_are_found_renamed_deleted_exported_and_imported(page: Page, tmp_path: Path) -> None:
    ask(page, "合同里的违约金是多少？Answer in a word.")
    finish(page)
    page.locator("#search input").fill("违约")
    expect(conversations(page)).to_have_count(1)
    expect(conversations(page)).to_contain_text("违约金是多少")
    conversations(page).click()
    page.locator("#conversation-section > button").click()
    expect(page.locator("#title input")).to_have_value(re.compile("违约金"))  # else it would come over what is typed
    page.locator("#title input").fill("租约")
    page.locator("#title input").press("Enter")
    expect(conversations(page).first).to_have_text("租约")
    with page.expect_download() as download:
        page.locator("#exports a").get_by_text("JSON").click()
    download.value.save_as(tmp_path / "租约.json")
    count = conversations(page).count()
    page.locator("#delete").click()
    expect(conversations(page)).to_have_count(count - 1)
    expect(page.locator("#messages .message")).to_have_count(0)
    page.locator("#restore").click()
    expect(conversations(page)).to_have_count(count)
    expect(page.locator("#messages .user.message")).to_contain_text("违约金")
    for name, said in [("租约.json", None), ("bad.json", "can't be imported")]:
        (tmp_path / "bad.json").write_text("{}")
        with page.expect_file_chooser() as chooser:
            page.locator("#import").click()
        chooser.value.set_files(tmp_path / name)
        if said:
            expect(page.locator(".toast-body").last).to_contain_text(said)
        expect(conversations(page)).to_have_count(count + 1)


def test_new_chat_leaves_a_streaming_reply_behind(page: Page) -> None:
    ask(page, "Write a long story about a lighthouse in the north, with many details.")
    page.wait_for_function("document.querySelector('#messages .bot.message')?.innerText.length > 20")
    page.locator("#new-chat").click()
    expect(page.locator("#messages .message")).to_have_count(0)
    wait_until_idle(page)
    page.wait_for_timeout(1000)
    expect(page.locator("#messages .message")).to_have_count(0)
    page.locator("#conversations label").first.click()
    expect(reply(page)).not_to_be_empty()
    reload(page)
    expect(page.locator("#messages .user.message")).to_contain_text("lighthouse")


def test_documents_are_cited_with_their_page_in_both_languages(page: Page) -> None:
    upload(page, "en_tracemonkey_two_column.pdf", "zh_modelscope_qa.pdf")
    expect(page.locator("#documents .files li.done")).to_have_count(2)
    expect(page.locator("#base").get_by_label("My documents")).to_be_checked()
    expect(page.locator("#halt")).to_be_hidden()

    ask(page, "Which program finds primes with the sieve of Eratosthenes?")
    first = page.locator("#sources .card").first
    expect(first).to_contain_text("en_tracemonkey_two_column.pdf · page 2")
    expect(first).to_contain_text("sieve of Eratosthenes")
    page.wait_for_function("document.querySelector('#messages .bot.message')?.innerText.length > 20")
    stop_if_writing(page)
    wait_until_idle(page)
    cited = reply(page).locator("details.cited")
    expect(cited.locator("summary")).to_contain_text("en_tracemonkey_two_column.pdf · p. 2")
    cited.locator("summary").click()
    expect(cited.locator("li").first).to_be_visible()

    page.locator("#new-chat").click()
    expect(page.locator("#messages .bot.message")).to_have_count(0)
    ask(page, "如何贡献 tool？")
    expect(page.locator("#sources .card").first).to_contain_text("zh_modelscope_qa.pdf · page 4")
    page.wait_for_function("document.querySelector('#messages .bot.message')?.innerText.length > 10")
    stop_if_writing(page)
    wait_until_idle(page)

    reload(page)
    expect(page.locator("#base").get_by_label("My documents")).to_be_checked()
    expect(page.locator("#documents .files li")).to_have_count(2)
    expect(page.locator("#messages .user.message")).to_contain_text("如何贡献 tool？")
    expect(page.locator("#sources .card").first).to_contain_text("zh_modelscope_qa.pdf · page 4")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("bad_zero_bytes.pdf", "empty"),
        ("bad_truncated.pdf", "damaged"),
        ("enc_en_user_password_aes128.pdf", "password"),
        ("bad_html_named_pdf.pdf", "web page"),
    ],
)
def test_bad_files_get_one_sentence(page: Page, tmp_path: Path, name: str, reason: str) -> None:
    path = PDF / name
    if name == "bad_truncated.pdf":
        path = tmp_path / name
        path.write_bytes((PDF / "zh_poems.pdf").read_bytes()[:40_000])
    page.locator("#files input[type=file]").set_input_files([path])
    outcome = page.locator("#documents li.failed", has_text=name)
    expect(outcome).to_have_count(1)
    expect(outcome).to_contain_text(reason)


def test_a_locked_file_is_asked_for_its_password(page: Page) -> None:
    expect(page.locator("#password")).to_be_hidden()
    page.locator("#files input[type=file]").set_input_files([PDF / "enc_en_user_password_aes128.pdf"])
    box = page.locator("#password input")
    box.fill("openpassword")
    box.press("Enter")
    expect(page.locator("#documents .files li.done", has_text="enc_en_user_password")).to_have_count(1)
    expect(page.locator("#password")).to_be_hidden()
    expect(page.locator("#halt")).to_be_hidden()


def test_bad_checkpoints_get_one_sentence_and_the_model_stays(page: Page, app: App, tmp_path: Path) -> None:
    without_tokenizer = tmp_path / "没有分词器"
    save_folder(without_tokenizer, LLAMA)
    unknown = tmp_path / "unknown.gguf"
    writer = gguf.GGUFWriter(unknown, "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    for path, words in [
        (without_tokenizer, "tokenizer.json is missing"),
        (unknown, "mamba"),
        (tmp_path / "gone", "exist"),
    ]:
        choice = page.locator("#model input")
        choice.fill(str(path))
        choice.press("Enter")
        toast = page.locator(".toast-body").last
        expect(toast).to_contain_text(words)
        toast.locator(".toast-close").click()
        expect(page.locator("#state")).to_contain_text("SmolLM2-135M-Instruct.Q4_1 is ready")
    ask(page, "What is the capital of France? Answer in one sentence.")
    expect(reply(page)).to_contain_text("Paris")


def choose(page: Page, dropdown: str, option: str) -> None:
    page.locator(f"{dropdown} input").click()
    page.get_by_role("option", name=option).click()


def test_family_checkpoint_precision_and_format_are_chosen_on_the_page(page: Page) -> None:
    choose(page, "#family", "ChatGLM")
    expect(page.locator("#model input")).to_have_value("")
    page.locator("#model input").click()
    expect(page.get_by_role("option")).to_have_count(1)
    page.get_by_role("option", name="chatglm2-6b").click()
    expect(page.locator("#state")).to_contain_text("chatglm2-6b is ready at FP32.")
    page.locator("#format-section > button").click()
    choose(page, "#tier", "INT4")
    expect(page.locator("#state")).to_contain_text("chatglm2-6b is ready at INT4")
    expect(page.locator("#state")).to_contain_text("GiB that are free on the CPU")
    ask(page, "请背一首诗。")
    expect(reply(page)).to_contain_text("春眠不觉晓，处处闻啼鸟。")
    expect(reply(page)).to_contain_text("夜来风雨声，花落知多少？")
    wait_until_idle(page)
    choose(page, "#format", "问答 / Q&A frame (base)")
    expect(page.locator("#state")).to_contain_text("续写")
    choose(page, "#format", "Llama-3-Instruct")
    expect(page.locator(".toast-body").last).to_contain_text("tokenizer lacks")
    choose(page, "#tier", "Auto")
    choose(page, "#family", "All families")
    choose(page, "#model", "SmolLM2-135M-Instruct.Q4_1")
    expect(page.locator("#state")).to_contain_text("SmolLM2-135M-Instruct.Q4_1 is ready at INT4")


def test_interface_speaks_chinese_and_fits_a_phone(app: App, browser: Browser) -> None:
    context = browser.new_context(locale="zh-CN", viewport={"width": 390, "height": 844}, color_scheme="dark")
    page = app.watch(context.new_page())
    page.goto(app.address)
    expect(page.locator("#new-chat")).to_have_text("新对话")
    expect(page.locator("#state")).to_contain_text("已就绪")
    composer = page.locator("#text").bounding_box()
    welcome = page.locator("#welcome").bounding_box()
    assert composer["x"] >= 0 and composer["x"] + composer["width"] <= 390
    assert welcome["height"] > 200
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    context.close()
    assert app.complaints == []
