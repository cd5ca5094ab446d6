"""The settings sheet's handlers, the document around the page, and the self-check."""

from __future__ import annotations

import json
import sqlite3
from io import BytesIO
from pathlib import Path

import gradio as gr
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image

import models.selfcheck
from chatapp import checkup
from chatapp.choices import DAMAGED, NAME, Chosen, Policy
from chatapp.library import Library
from chatapp.preferences import Retrieving
from chatapp.server import build
from chatapp.session import Chat
from chatapp.settings import parse
from chatapp.startup import Startup
from chatapp.store import Store, StoreError
from chatapp.ui import mount
from chatapp.ui.document import Look, dressed
from chatapp.ui.replies import NUMBERS, Replies
from chatapp.ui.section import Desk
from chatapp.ui.settings import OPENED, General
from tests.fakes import HashEmbeddings, ready_engine, scripted

REQUEST = gr.Request()
STARTED = Policy(reading=20.0)
NONE = [None] * len(NUMBERS)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    settings = parse(["--data", str(tmp_path), "--lang", "en"], {})
    engine = ready_engine(scripted(context=2048))
    library, store = Library(tmp_path / "kb", HashEmbeddings), Store(tmp_path / "conversations.db")
    chat = Chat(engine, library, store, Chosen(tmp_path / NAME, STARTED))
    return Desk(settings, chat, Startup(settings, engine))


@pytest.fixture
def general(desk: Desk) -> General:
    return General(desk)


@pytest.fixture
def replies(desk: Desk) -> Replies:
    return Replies(desk)


def opened(general: General, conversation: str | None = None) -> dict:
    values = general.open(conversation, REQUEST)
    assert len(values) == len(OPENED)
    return dict(zip(OPENED, values, strict=True))


def test_the_sheet_shows_what_the_model_recommends_and_what_was_chosen(general: General, desk: Desk) -> None:
    shown = opened(general)
    recommended = desk.chat.engine.recommended["temperature"]
    assert shown["temperature"]["value"] is None
    assert shown["temperature"]["placeholder"] == f"{recommended:g} (recommended)"
    assert shown["window"]["placeholder"] == "2,048 (all there is)"
    assert (shown["reading"]["value"], shown["reading"]["placeholder"]) == (None, "20 (as started)")
    desk.chat.choose_for_all(window=512)
    id = desk.chat.prefer(None, temperature=0.25, system="Sing.")
    shown = opened(general, id)
    assert (shown["temperature"]["value"], shown["system"], shown["window"]["value"]) == (0.25, "Sing.", 512)
    assert opened(general)["temperature"]["value"] is None


def test_sampling_is_kept_for_a_conversation_or_for_new_ones_and_goes_back(replies: Replies, desk: Desk) -> None:
    id, said = replies.keep(None, 0.5, 0.9, 20.0, 1.1, 64.0, 7.0, REQUEST)
    kept = desk.chat.preferences(id)
    assert (kept.temperature, kept.top_k, kept.max_tokens, kept.seed) == (0.5, 20, 64, 7) and "next message" in said
    assert desk.chat.preferences(None).temperature is None
    assert "New conversations" in replies.keep_for_new(1.0, *NONE[1:], REQUEST)
    assert desk.chat.preferences(desk.chat.begin()).temperature == 1.0
    again, _, *numbers = replies.reset(id, REQUEST)
    assert again == id and [number["value"] for number in numbers] == NONE
    assert desk.chat.preferences(id).options() == {}


@pytest.mark.parametrize(("at", "value"), [(0, 2.5), (0, -1), (1, 0), (3, 0.1), (4, 3)])
def test_numbers_that_cannot_be_are_said_and_change_nothing(
    replies: Replies, desk: Desk, at: int, value: float
) -> None:
    numbers = [*NONE]
    numbers[at] = value
    id = desk.chat.begin()
    _, said = replies.keep(id, *numbers, REQUEST)
    assert "can be" in said and "alert" in said and "can be" in replies.keep_for_new(*numbers, REQUEST)
    assert desk.chat.preferences(id).options() == {} == desk.chat.preferences(None).options()


def test_roles_are_made_renamed_and_deleted(replies: Replies, desk: Desk, tmp_path: Path) -> None:
    box, _ = replies.save_role(" 诗人 ", "写诗。", REQUEST)
    assert box["value"] == "诗人" and ("诗人", "诗人") in box["choices"]
    replies.save_role("诗人", "只写绝句。", REQUEST)
    assert replies.choose_role("诗人", REQUEST) == ("诗人", "只写绝句。")
    assert "already" in replies.rename_role("诗人", "Plain language", REQUEST)[1]
    box, _ = replies.rename_role("诗人", "Poet", REQUEST)
    assert [name for name, _ in box["choices"]].count("Poet") == 1 and ("诗人", "诗人") not in box["choices"]
    assert [role.name for role in Chosen(tmp_path / NAME).now.roles] == ["Poet"]
    assert "of your own" in replies.delete_role("Plain language", REQUEST)[1]
    replies.delete_role("Poet", REQUEST)
    assert desk.chat.chosen.now.roles == ()


def test_a_role_that_comes_with_the_app_can_be_changed_and_comes_back(replies: Replies) -> None:
    name, prompt = replies.choose_role("Code reviewer", REQUEST)
    assert "code" in prompt
    replies.save_role(name, "Only look for bugs.", REQUEST)
    assert replies.choose_role(name, REQUEST)[1] == "Only look for bugs."
    replies.delete_role(name, REQUEST)
    assert replies.choose_role(name, REQUEST) == (name, prompt)


@pytest.mark.parametrize(("name", "system"), [("", "x"), ("x", " "), ("x" * 61, "x")])
def test_a_role_needs_a_name_and_a_prompt(replies: Replies, desk: Desk, name: str, system: str) -> None:
    assert "needs a name" in replies.save_role(name, system, REQUEST)[1]
    assert desk.chat.chosen.now.roles == ()


def test_a_system_prompt_goes_to_one_conversation_or_to_new_ones(replies: Replies, desk: Desk) -> None:
    id, _ = replies.keep_system(None, " Be brief. ", REQUEST)
    assert desk.chat.preferences(id).system == "Be brief."
    assert replies.keep_system(id, "", REQUEST)[0] == id
    assert desk.chat.preferences(id).system is None
    replies.keep_system_for_new("Sing.", REQUEST)
    assert desk.chat.preferences(None).system == "Sing."


def test_the_context_policy_is_chosen_and_goes_back_to_the_start(general: General, desk: Desk) -> None:
    full, window, *_ = general.keep_context("summarise", 1024.0, 20, 20, REQUEST)
    assert full == "summarise" and window["value"] == 1024
    assert desk.chat.chosen.policy == Policy(True, 1024, 20, 20.0)
    assert desk.chat.chosen.now.reading is None  # as started: it follows the next start
    assert (desk.chat.engine.window, desk.chat.engine.reading) == (1024, 20.0)
    *_, said = general.keep_context("drop", 10, None, None, REQUEST)
    assert "Window can be 256" in said and desk.chat.chosen.policy.window == 1024
    general.reset_context(REQUEST)
    assert desk.chat.chosen.policy == STARTED and desk.chat.engine.window is None


def test_new_conversations_search_as_was_chosen(general: General, desk: Desk) -> None:
    general.keep_search(7, 0.4, "words", "off", REQUEST)
    kept = desk.chat.preferences(desk.chat.begin())
    assert kept.retrieval == Retrieving(passages=7, threshold=0.4, method="words") and kept.followups == "off"
    shown = opened(general)
    assert (shown["new_passages"], shown["new_method"], shown["new_followups"]) == (7, "words", "off")


def test_the_chosen_language_wins_over_the_command_line(general: General, desk: Desk) -> None:
    assert desk.language(REQUEST) == "en"
    general.speak("zh", REQUEST)
    assert desk.language(REQUEST) == "zh"
    general.speak("auto", REQUEST)
    assert desk.language(REQUEST) == "en"


def test_a_damaged_file_is_said_on_the_sheet(desk: Desk, tmp_path: Path) -> None:
    (tmp_path / NAME).write_text("{")
    chat = Chat(desk.chat.engine, desk.chat.library, desk.chat.store, Chosen(tmp_path / NAME))
    assert DAMAGED in opened(General(Desk(desk.settings, chat, desk.startup)))["general_note"]


# The document


@pytest.fixture
def client(desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TestClient:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    settings = parse(["--data", str(tmp_path)], {})
    app = build(desk.chat, mount(settings, desk.chat, desk.startup))
    return TestClient(app, base_url="http://127.0.0.1", headers={"accept-encoding": "gzip, br"})


@pytest.mark.parametrize(("accept", "tag"), [("zh-TW,en", "zh-CN"), ("fr-FR, zh;q=0.5", "zh-CN"), ("de", "en")])
def test_the_document_is_in_the_language_that_the_server_speaks(client: TestClient, accept: str, tag: str) -> None:
    html = client.get("/", headers={"accept-language": accept}).text
    assert f'lang="{tag}"' in html and f'get: () => "{tag}"' in html
    assert html.count("<title>Quatrain</title>") == 1 and html.rstrip().endswith("</html>")


def test_the_document_has_the_theme_from_the_first_paint_on(client: TestClient, desk: Desk) -> None:
    assert "theme_mode" not in client.get("/").text.split("<body")[1]
    for theme in ("dark", "light"):
        desk.chat.choose_for_all(theme=theme)
        html = client.get("/").text
        assert f'<gradio-app theme_mode="{theme}"' in html and f"color-scheme: {theme}" in html
        assert ('<body class="dark"' in html) == (theme == "dark")


def test_other_answers_pass_as_they_are() -> None:
    assert dressed("<p>no document", Look("en", "auto")) == "<p>no document"


def test_the_manifest_names_icons_that_are_there(client: TestClient) -> None:
    answer = client.get("/manifest.json", headers={"accept-language": "zh"})
    manifest = json.loads(answer.content)
    assert answer.headers["content-type"] == "application/manifest+json"
    assert (manifest["lang"], manifest["start_url"], manifest["display"]) == ("zh-CN", "/", "standalone")
    for icon in manifest["icons"]:
        found = client.get(icon["src"])
        assert (found.status_code, found.headers["content-type"]) == (200, icon["type"])
        if icon["type"] == "image/png":
            assert "{}x{}".format(*Image.open(BytesIO(found.content)).size) == icon["sizes"]
    assert client.get("/favicon.ico").status_code == client.get("/offline.html").status_code == 200
    assert "javascript" in client.get("/sw.js").headers["content-type"]


# The self-check


class Wrong:
    level = "avx2"

    def multiply(self, x: torch.Tensor, weight: object, bias: None) -> torch.Tensor:
        return torch.zeros(x.shape[0], models.selfcheck.ROWS)

    multiply_halves = multiply


@pytest.mark.parametrize(("kernel", "names"), [(Wrong(), ["FP16", "INT4", "INT8"]), (None, [])])
def test_wrong_kernels_are_found(kernel: object, names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert models.selfcheck.wrong_products() == []
    monkeypatch.setattr(models.selfcheck, "kernel", lambda: kernel)
    assert models.selfcheck.wrong_products() == names


def test_what_does_not_work_is_found(desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk.startup, "embeddings", HashEmbeddings)
    for name in ("good", "秘密"):
        desk.chat.library.create(name)
    assert all(each.good for each in checkup.checks(desk.settings, desk.chat, desk.startup))

    monkeypatch.setattr(HashEmbeddings, "embed_query", lambda *_: [0.0, 0.0])
    opening = desk.chat.library.open

    def broken(name: str) -> object:
        if name == "秘密":
            raise sqlite3.DatabaseError("malformed")
        return opening(name)

    monkeypatch.setattr(desk.chat.library, "open", broken)
    desk.chat.store.close()
    outcomes = list(checkup.checks(desk.settings, desk.chat, desk.startup))
    assert [each.good for each in outcomes] == [True, False, False, False, True]
    assert outcomes[3].private == ("秘密",)
    text = checkup.report(checkup.facts(), outcomes)
    assert text.count("BAD ") == 3 and "Quatrain 0." in text
    assert "秘密" not in text and str(tmp_path) not in text


def test_a_damaged_file_of_conversations_is_found(desk: Desk, tmp_path: Path) -> None:
    desk.chat.store.check()
    desk.chat.store.close()
    with pytest.raises(StoreError):
        desk.chat.store.check()
