"""In a real browser, at every seat: models are switched, unloaded and loaded, folders added, and what takes disk is
shown and deleted.

The checkpoints on disk are tiny ones; what is loaded from them is scripted, so that a reply tells who gave it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from chatapp.engine import Engine
from chatapp.library import Library
from chatapp.server import build
from chatapp.session import Chat
from chatapp.settings import parse
from chatapp.startup import Startup
from chatapp.store import Store
from chatapp.ui import mount
from models import CheckpointError, LoadedModel
from tests.configs import CHECKPOINTS
from tests.fakes import Gate, HashEmbeddings, scripted
from tests.seats import Seat
from tests.serving import serving
from tests.test_browser import App, ask, choose, reply, stop_button
from tests.tiny import BLOOM, CHATGLM2, LLAMA, save_folder


class Loader:
    """Loads a scripted model by the folder's name; one that is called broken fails, and `gate` holds a load."""

    def __init__(self) -> None:
        self.gate: Gate | None = None
        self.loads: list[str] = []

    def __call__(self, path: Path, progress: Callable[[int, int], None], **options: Any) -> LoadedModel:
        self.loads.append(path.name)
        progress(1, 2)
        if self.gate:
            self.gate()
        progress(2, 2)
        if path.name == "broken":
            raise CheckpointError("model.safetensors is damaged; download it again.")
        return scripted(f"I am {path.name}.", context=4096)


@dataclass
class Running:
    app: App
    engine: Engine
    loader: Loader
    data: Path
    cache: Path
    page: Page
    seat: Seat

    def says(self, key: str, **values: object) -> str:
        return self.seat.says(key, **values)

    def ask(self, text: str) -> None:
        """Writes to the model, and goes back to where it is chosen."""
        self.seat.leave(self.page)
        ask(self.page, text)
        self.seat.reach(self.page, "left")


@pytest.fixture
def running(browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seat: Seat) -> Iterator[Running]:
    """The app with the pane in view where models are chosen."""
    data, cache = tmp_path / "数据", tmp_path / "hub"
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    for name, config in {"llama": LLAMA, "bloom": BLOOM, "THUDM/glm": CHATGLM2, "broken": LLAMA}.items():
        save_folder(data / "checkpoints" / name, config)
    settings = parse(["--data", str(data)], {})
    loader = Loader()
    engine = Engine(loader)
    startup = Startup(settings, engine)
    engine.load(startup.source(data / "checkpoints" / "llama", "llama"))
    chat = Chat(engine, Library(data / "kb", HashEmbeddings), Store(data / "conversations.db"))
    with serving(build(chat, mount(settings, chat, startup))) as port:
        app = App(f"http://127.0.0.1:{port}", data)
        context = seat.context(browser)
        page = app.watch(context.new_page())
        page.goto(app.address)
        expect(page.locator("#model input")).to_have_value("llama")
        seat.reach(page, "left")
        yield Running(app, engine, loader, data, cache, page, seat)
        context.close()
        assert app.complaints == []


def ready(running: Running, name: str, tier: str = "FP32") -> None:
    said = running.says("state_ready", name=name, tier=tier, format="|").split("|")[0]
    expect(running.page.locator("#state")).to_contain_text(said)


def test_models_are_switched_with_their_memory_shown(running: Running) -> None:
    page = running.page
    ready(running, "llama")
    expect(page.locator("#state .memory li")).to_have_count(5)
    for key in ("memory_weights", "memory_cache", "memory_work", "memory_others", "memory_free"):
        expect(page.locator("#state .memory")).to_contain_text(running.says(key))
    choose(page, "#family", "BLOOM")
    expect(page.locator("#model input")).to_have_value("")
    page.locator("#model input").click()
    option = page.get_by_role("option")
    expect(option).to_have_count(1)
    expect(option).to_contain_text(f"bloom · {running.says('fits_at', tier='FP32')}")
    option.click()
    ready(running, "bloom")
    expect(page.locator("#model input")).to_have_value("bloom")
    choose(page, "#tier", "INT8")
    ready(running, "bloom", "INT8")
    page.locator("#model input").focus()
    running.ask("Who are you?")
    expect(reply(page)).to_contain_text("I am bloom.")
    assert running.loader.loads == ["llama", "bloom", "bloom"]  # no choice loads twice, and leaving a box loads nothing


def test_loading_shows_how_far_it_is_and_a_failure_leaves_the_former_model(running: Running) -> None:
    page, running.loader.gate = running.page, Gate()
    choose(page, "#model", "broken")
    expect(page.locator("#state")).to_contain_text(running.says("state_loading", name="broken"))
    expect(page.locator("#state progress")).to_have_attribute("max", "2")
    expect(page.locator("#load")).to_be_hidden()
    expect(page.locator("#unload")).to_be_hidden()
    running.loader.gate.open()
    expect(page.locator(".toast-body").last).to_contain_text("broken")
    expect(page.locator(".toast-body").last).to_contain_text("model.safetensors")
    ready(running, "llama")
    expect(page.locator("#model input")).to_have_value("llama")
    running.seat.leave(page)
    page.locator("#text textarea").focus()
    page.wait_for_timeout(1000)
    assert running.loader.loads == ["llama", "broken", "llama"]
    assert running.engine.status.name == "llama"


def test_an_unloaded_model_is_loaded_by_the_button_or_by_a_message(running: Running) -> None:
    page = running.page
    expect(page.locator("#load")).to_be_hidden()
    page.locator("#unload").click()
    expect(page.locator("#state")).to_contain_text(running.says("state_unloaded", name="llama"))
    expect(page.locator("#unload")).to_be_hidden()
    assert running.engine.source is None
    page.locator("#load").click()
    ready(running, "llama")
    page.locator("#unload").click()
    expect(page.locator("#load")).to_be_visible()
    running.ask("Who are you?")
    expect(reply(page)).to_contain_text("I am llama.")
    ready(running, "llama")
    expect(page.locator("#unload")).to_be_visible()
    assert running.loader.loads == ["llama"] * 3


def test_after_unload_a_choice_shows_its_plan_and_load_loads_it(running: Running) -> None:
    page = running.page
    page.locator("#unload").click()
    expect(page.locator("#load")).to_be_visible()
    choose(page, "#model", "THUDM/glm")
    expect(page.locator("#state")).to_contain_text(running.says("state_unloaded", name="THUDM/glm"))
    expect(page.locator("#state")).to_contain_text("FP32")
    choose(page, "#tier", "INT4")
    expect(page.locator("#state")).to_contain_text("INT4")
    other = running.app.watch(page.context.new_page())  # what is chosen is so for all windows
    other.goto(running.app.address)
    expect(other.locator("#state")).to_contain_text("INT4")
    running.seat.reach(other, "left")
    expect(other.locator("#load")).to_be_visible()
    other.close()
    assert running.loader.loads == ["llama"]
    page.locator("#load").click()
    ready(running, "THUDM/glm", "INT4")
    expect(page.locator("#model input")).to_have_value("THUDM/glm")
    assert running.loader.loads == ["llama", "glm"]


def test_stop_ends_the_loading_that_a_message_began(running: Running) -> None:
    page = running.page
    page.locator("#unload").click()
    expect(page.locator("#load")).to_be_visible()
    running.loader.gate = Gate()
    running.ask("Who are you?")
    expect(page.locator("#progress")).to_contain_text(running.says("state_loading", name="llama"))
    expect(page.locator("#state progress")).to_be_visible()
    running.seat.leave(page)
    stop_button(page).click()
    page.wait_for_timeout(300)  # Stop has arrived; it takes effect with the next weight that is read
    running.loader.gate.open()
    expect(page.locator("#progress")).to_contain_text(running.says("stopped"))
    expect(page.locator("#state")).to_contain_text(running.says("state_unloaded", name="llama"))
    running.ask("Who are you?")
    expect(reply(page)).to_contain_text("I am llama.")


def cached(folder: Path, name: str, config: dict[str, Any], *files: str) -> None:
    snapshot = folder / f"models--{name.replace('/', '--')}" / "snapshots" / "aaa"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps(config))
    for file in files:
        (snapshot / file).write_bytes(b"weights")


def open_storage(running: Running) -> None:
    running.seat.reach(running.page, "left")
    running.page.locator("#models-open").click()
    running.page.get_by_role("tab", name=running.says("storage")).click()
    expect(running.page.locator("#storage-items h3").first).to_be_visible()


def row(page: Page, name: str):
    return page.locator("#storage-items li", has=page.get_by_text(name, exact=True))


def test_what_takes_disk_is_shown_and_what_is_ours_deleted(running: Running) -> None:
    page = running.page
    cached(running.cache, "bigscience/whole", BLOOM, "model.safetensors")
    cached(running.cache, "baichuan/half", CHECKPOINTS["baichuan-inc/Baichuan-13B-Chat"].config, "x-00001-of-00002.bin")
    blobs = running.cache / "models--baichuan--half" / "blobs"
    blobs.mkdir()
    (blobs / "0.incomplete").write_bytes(b"half")
    open_storage(running)
    expect(row(page, "bigscience/whole")).to_contain_text("Hugging Face")
    expect(row(page, "bigscience/whole").get_by_role("button")).to_have_count(0)
    expect(row(page, "baichuan/half")).to_contain_text(running.says("storage_partial"))
    expect(row(page, "llama")).to_contain_text(running.says("storage_in_use"))
    expect(row(page, "llama").get_by_role("button")).to_have_count(0)
    expect(page.locator("#storage-items")).to_contain_text(running.says("storage_conversations"))

    glm = row(page, "THUDM/glm")
    asked: list[str] = []
    page.once("dialog", lambda dialog: (asked.append(dialog.message), dialog.dismiss()))
    glm.get_by_role("button").click()
    page.once("dialog", lambda dialog: (asked.append(dialog.message), dialog.accept()))
    glm.get_by_role("button").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#storage-note")).to_contain_text("THUDM/glm")
    expect(glm).to_have_count(0)
    assert not (running.data / "checkpoints" / "THUDM").exists()
    assert len(asked) == 2 and all("THUDM/glm" in question for question in asked)
    page.keyboard.press("Escape")
    expect(page.locator("#models-sheet")).to_be_hidden()
    running.seat.reach(page, "left")
    page.locator("#model input").click()
    expect(page.get_by_role("option", name="bigscience/whole · Hugging Face")).to_be_visible()
    names = page.get_by_role("option").all_inner_texts()
    assert not any("glm" in name or "half" in name for name in names)


def test_what_was_loaded_meanwhile_is_refused_in_a_sentence(running: Running) -> None:
    page = running.page
    open_storage(running)
    bloom = row(page, "bloom")
    page.on("dialog", lambda dialog: dialog.accept())
    engine, folder = running.engine, running.data / "checkpoints" / "bloom"
    engine.load(Startup(parse(["--data", str(running.data)], {}), engine).source(folder, "bloom"))
    bloom.get_by_role("button").click()
    said = running.says("storage_loaded", name="bloom")
    expect(page.locator("#storage-note").get_by_role("alert")).to_contain_text(said)
    assert folder.is_dir()


def test_folders_are_added_and_taken_off_the_list(running: Running, tmp_path: Path) -> None:
    page = running.page
    mine = tmp_path / "我的 models"
    save_folder(mine / "tiny", BLOOM)
    open_storage(running)
    for path, said in [
        (str(tmp_path / "gone"), running.says("folder_none", path=tmp_path / "gone")),
        (str(tmp_path / "uploads"), None),
    ]:
        (tmp_path / "uploads").mkdir(exist_ok=True)
        page.locator("#folder input").fill(path)
        page.locator("#folder-add").click()
        expect(page.get_by_role("alert")).to_contain_text(said or running.says("folder_empty", path=path))
        expect(page.locator("#folder input")).to_have_value(path)
    page.locator("#folder input").fill(f'"{mine}"')
    page.locator("#folder input").press("Enter")
    expect(page.locator("#storage-note")).to_contain_text(running.says("folder_added", path=mine, count=1))
    expect(page.locator("#folder input")).to_have_value("")
    expect(row(page, "tiny").get_by_role("button")).to_have_count(0)
    assert json.loads((running.data / "folders.json").read_text(encoding="utf-8")) == {"folders": [str(mine)]}
    page.keyboard.press("Escape")
    running.seat.reach(page, "left")
    choose(page, "#model", "tiny")
    ready(running, "tiny")
    open_storage(running)
    page.locator("#storage-folders button").click()
    expect(page.locator("#storage-note")).to_contain_text(running.says("folder_removed", path=mine))
    expect(page.locator("#storage-folders li")).to_have_count(0)
    assert (mine / "tiny" / "config.json").is_file()


def test_the_storage_page_fits(running: Running) -> None:
    page, width = running.page, running.page.viewport_size["width"]
    open_storage(running)
    sheet = page.locator("#models-sheet").bounding_box()
    assert sheet["x"] >= 0 and sheet["x"] + sheet["width"] <= width
    assert page.evaluate("document.querySelector('#models-sheet').scrollWidth") <= sheet["width"]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
