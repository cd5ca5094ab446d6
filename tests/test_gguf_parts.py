"""GGUF models in several files: any of them, or their folder, opens the whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import models
from chatapp.checkpoints import Found, find
from chatapp.hardware import Machine
from chatapp.planner import plan_for
from models import CheckpointError
from models.formats import open_checkpoint
from tests import gguf_sources
from tests.tiny import LLAMA, save_folder


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    """Three files of a model, in a folder of their own."""
    folder = tmp_path / "split"
    folder.mkdir()
    gguf_sources.write(folder / "tiny-chat.gguf", gguf_sources.llama(), split=13)
    return sorted(folder.iterdir())


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        models.load(path)
    text = str(caught.value)
    assert "\n" not in text and text.endswith(".")
    return text


def test_any_part_and_the_folder_open_the_whole(parts: list[Path]) -> None:
    assert [part.name for part in parts] == [f"tiny-chat-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    ids = torch.arange(30)[None]
    wanted = gguf_sources.llama().logits(ids)
    for path in (*parts, parts[0].parent):
        loaded = models.load(path, tier="fp32")
        torch.testing.assert_close(loaded.model(ids), wanted, atol=1e-4, rtol=0)
        assert loaded.checkpoint.files() == parts
        assert loaded.checkpoint.nbytes() == sum(each.numel() * 4 for each in gguf_sources.llama().tensors.values())
        assert models.family_of(path if path.is_dir() else parts[0]) == "llama"
        assert plan_for(path, Machine.assume("cpu:2GB")).tier == "fp32"
        assert loaded.checkpoint.chat_hints().names == ("tiny-chat",)


def test_a_split_model_is_listed_once(parts: list[Path]) -> None:
    folder = parts[0].parent
    assert find([folder.parent]) == [Found("tiny-chat", parts[0], "llama")]
    gguf_sources.write(folder / "other.gguf", gguf_sources.bloom())
    assert [found.name for found in find([folder.parent])] == ["other", "tiny-chat"]


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_missing_part_is_named(missing: int, parts: list[Path]) -> None:
    parts[missing].unlink()
    for path in (part for part in parts if part.exists()):
        text = refusal(path)
        assert parts[missing].name in text and "3 files" in text
    assert [found.name for found in find([parts[0].parent])] == ["tiny-chat"]


def test_parts_under_wrong_names_are_refused(parts: list[Path]) -> None:
    first, second, third = (part.read_bytes() for part in parts)
    for contents in ((second, first, third), (first, first, third)):
        for part, content in zip(parts, contents, strict=True):
            part.write_bytes(content)
        assert "split.no" in refusal(parts[2])
    (parts[0].parent / "alone.gguf").write_bytes(first)
    text = refusal(parts[0].parent / "alone.gguf")
    assert "alone.gguf" in text and "split.count of 3" in text


def test_a_wrong_number_of_tensors_is_refused(parts: list[Path]) -> None:
    data = parts[0].read_bytes()
    at = data.index(b"split.tensors.count") + len(b"split.tensors.count") + 4
    parts[0].write_bytes(data[:at] + (99).to_bytes(4, "little") + data[at + 4 :])
    assert "split.tensors.count of 99" in refusal(parts[1])


def test_a_damaged_part_is_named(parts: list[Path]) -> None:
    parts[1].write_bytes(parts[1].read_bytes()[:-100])
    assert parts[1].name in refusal(parts[0])


def test_a_folder_with_one_model(tmp_path: Path) -> None:
    path = gguf_sources.write(tmp_path / "one.gguf", gguf_sources.llama())
    assert open_checkpoint(tmp_path).path == path
    gguf_sources.write(tmp_path / "two.gguf", gguf_sources.llama())
    text = refusal(tmp_path)
    assert "one.gguf, two.gguf" in text


def test_a_folder_of_another_form_stays_what_it_is(tmp_path: Path) -> None:
    save_folder(tmp_path, LLAMA)
    gguf_sources.write(tmp_path / "made-from-it.gguf", gguf_sources.bloom())
    assert models.load(tmp_path).family == "llama"
