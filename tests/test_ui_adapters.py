"""Adapters on the page: which are offered, switching without reading the base again, and what goes wrong."""

from __future__ import annotations

import html
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
import torch
from safetensors.torch import load_file, save_file

import models
from chatapp.conversation import Turn
from chatapp.engine import Engine, EngineError
from chatapp.library import Library
from chatapp.planner import footprint_of
from chatapp.session import Chat
from chatapp.settings import parse
from chatapp.startup import Startup
from chatapp.store import Store
from chatapp.ui.model import Model
from chatapp.ui.section import AWAY, Desk
from tests.fakes import HashEmbeddings
from tests.tiny import LLAMA, build, byte_level_tokenizer, save_folder, write_lora

IDS = torch.tensor([[5, 17, 42]])
Q = "model.layers.1.self_attn.q_proj"


class App:
    """The application without a browser, and how often checkpoints were read."""

    def __init__(self, data: Path, *arguments: str) -> None:
        self.reads = 0
        settings = parse(["--data", str(data), "--lang", "en", "--tier", "fp16", *arguments], {})
        self.engine = Engine(self._load)
        self.startup = Startup(settings, self.engine)
        self.chat = Chat(self.engine, Library(data / "kb", HashEmbeddings), Store(data / "conversations.db"))
        self.model = Model(Desk(settings, self.chat, self.startup))
        self.folder = data / "checkpoints"

    def _load(self, path: Path, **options: Any) -> models.LoadedModel:
        self.reads += 1
        return models.load(path, **options)

    def start(self) -> None:
        self.engine.load(self.startup.source(self.folder / "tiny", "tiny"))

    def choose(self, adapter: str) -> dict[str, Any]:
        """Chooses in the box; what the box shows then."""
        *_, last = self.model.choose_adapter(adapter, None)
        return last[2]

    def logits(self) -> torch.Tensor:
        return self.engine.loaded.model(IDS)


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    folder = tmp_path / "checkpoints"
    model = save_folder(folder / "tiny", LLAMA, byte_level_tokenizer())
    save_folder(folder / "other", LLAMA | {"hidden_size": 128}, byte_level_tokenizer())
    write_lora(folder / "a", {Q: (64, 64)})
    write_lora(folder / "b", {f"{Q[:-6]}o_proj": (64, 64)})
    write_lora(folder / "elsewhere", {Q: (128, 128)})
    write_lora(folder / "long", {Q: (64, 64)})
    rows = {f"base_model.model.{name}.weight": torch.ones(330, 64) / 8 for name in ("model.embed_tokens", "lm_head")}
    save_file(
        {**load_file(folder / "long" / "adapter_model.safetensors"), **rows},
        folder / "long" / "adapter_model.safetensors",
    )
    target = build(LLAMA, seed=3).state_dict()
    save_folder(folder / "tiny-delta", LLAMA)
    delta = {name: tensor - model.state_dict()[name] for name, tensor in target.items()}
    save_file(delta, folder / "tiny-delta" / "model.safetensors")
    started = App(tmp_path)
    started.start()
    yield started


def test_those_of_the_loaded_model_are_offered(app: App) -> None:
    box = app.model._models("en")[2]
    assert box["choices"] == [("None", ""), *((name, name) for name in ("a", "b", "long", "tiny-delta"))]
    assert box["value"] == "" and AWAY not in box["elem_classes"]
    app.engine.load(app.startup.source(app.folder / "other", "other"))
    assert app.model._models("en")[2]["choices"] == [("None", ""), ("elsewhere", "elsewhere")]
    assert [found.name for found in app.model._found()] == ["other", "tiny"]


def test_the_box_is_hidden_where_there_are_none(tmp_path: Path) -> None:
    save_folder(tmp_path / "checkpoints" / "tiny", LLAMA, byte_level_tokenizer())
    started = App(tmp_path)
    assert AWAY in started.model._models("en")[2]["elem_classes"]
    started.start()
    assert AWAY in started.model._models("en")[2]["elem_classes"]


def test_lora_is_switched_without_reading_the_base_again(app: App) -> None:
    plain = app.logits()
    assert app.choose("a")["value"] == "a"
    assert app.chat.chosen.now.model.adapter == app.folder / "a"  # for the next start
    with_a = app.logits()
    assert app.choose("b")["value"] == "b" and app.engine.status.writer == "tiny + b"
    assert app.choose("a")["value"] == "a" and torch.equal(app.logits(), with_a) and not torch.equal(with_a, plain)
    app.engine.use_chat_format("plain")
    assert app.choose("")["value"] == "" and torch.equal(app.logits(), plain)
    assert app.engine.chat_format == app.engine.loaded.chat_format.name == "plain"
    assert app.reads == 1


def test_what_has_to_be_merged_is_read_anew_and_the_page_does_the_same(app: App) -> None:
    assert app.choose("long")["value"] == "long"
    assert app.engine.loaded.model.args.vocab_size == 330 and app.reads == 2
    assert app.choose("a")["value"] == "a" and app.reads == 3
    assert app.choose("tiny-delta")["value"] == "tiny-delta" and app.reads == 4
    torch.testing.assert_close(app.logits(), build(LLAMA, seed=3)(IDS), rtol=0, atol=2e-2)
    assert app.choose("")["value"] == "" and app.reads == 5


def test_another_tier_keeps_the_adapter_and_another_model_drops_it(app: App) -> None:
    app.choose("a")
    *_, last = app.model.choose_model("tiny", "int8", None)
    assert last[2]["value"] == "a" and app.engine.status.tier == "int8"
    *_, last = app.model.choose_model("other", "int8", None)
    assert last[2]["value"] == "" and app.engine.status.writer == "other"


def test_a_switch_that_fails_leaves_the_former_one(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    warned: list[str] = []
    monkeypatch.setattr(gr, "Warning", lambda text, **_: warned.append(html.unescape(text)))
    app.choose("a")
    before = app.logits()
    (app.folder / "b" / "adapter_model.safetensors").write_bytes(b"broken")
    assert "b" not in dict(app.model._models("en")[2]["choices"])  # what can't be applied is not offered
    with pytest.raises(EngineError, match=r"b.adapter_model\.safetensors is damaged"):
        app.engine.load(app.startup.with_adapter(app.folder / "b"))
    edited = load_file(app.folder / "long" / "adapter_model.safetensors")
    edited["base_model.model.lm_head.weight"].fill_(float("nan"))
    save_file(edited, app.folder / "long" / "adapter_model.safetensors")
    assert app.choose("long")["value"] == "a"
    assert len(warned) == 1 and "head.weight in " in warned[0] and "not numbers" in warned[0]
    assert app.engine.status.state == "ready" and torch.equal(app.logits(), before)


def test_the_command_line_names_one(app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outside = tmp_path / "elsewhere" / "c"
    write_lora(outside, {Q: (64, 64)})
    begun = App(tmp_path, "--model", str(app.folder / "tiny"), "--adapter", str(outside))
    begun.startup._load_model()
    assert begun.engine.status.writer == "tiny + c"
    box = begun.model._models("en")[2]
    assert box["value"] == str(outside) and (str(outside), str(outside)) in box["choices"]
    wrong = App(tmp_path, "--model", str(app.folder / "tiny"), "--adapter", str(app.folder / "elsewhere"))
    wrong.startup._load_model()
    assert "q_proj, [128, 128] where this base has [64, 64]" in wrong.startup.fetching.failure


def test_its_bytes_are_planned(app: App) -> None:
    plain, beside = footprint_of(app.folder / "tiny"), footprint_of(app.folder / "tiny", app.folder / "a")
    assert beside.weights("int4") - plain.weights("int4") == 4 * 4 * (64 + 64)
    longer = footprint_of(app.folder / "tiny", app.folder / "long")
    assert longer.weights("fp16") - plain.weights("fp16") == 2 * 2 * 10 * 64


def test_ids_of_a_reply_belong_to_who_wrote_it(app: App) -> None:
    written = Turn("assistant", "hello", (7, 8), app.engine.status.writer)
    assert written.seen_by(app.engine.status.writer, 320).ids == (7, 8)
    app.choose("long")
    assert written.seen_by(app.engine.status.writer, 320).ids is None
