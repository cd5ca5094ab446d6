"""The list of all checkpoints: folders that are added, what is remembered, how each would run."""

import json
from pathlib import Path

import pytest

from chatapp import checkpoints, shelf
from chatapp.folders import NAME, Folders
from chatapp.hardware import Machine
from chatapp.sentences import Sentence
from chatapp.settings import parse
from chatapp.shelf import Shelf
from models import CheckpointError
from tests.tiny import LLAMA, save_folder

NOWHERE = {"HF_HOME": "/nowhere", "MODELSCOPE_CACHE": "/nowhere"}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "数据 data"


def shelf_of(data: Path, *arguments: str) -> Shelf:
    return Shelf(parse(["--data", str(data), *arguments], {}), NOWHERE)


# Folders


def test_folders_are_kept_in_the_order_in_which_they_were_added(data: Path) -> None:
    folders = Folders(data)
    assert folders.all() == []
    for name in ("b", "模型", "a", "b"):
        folders.add(Path("/x") / name)
    assert Folders(data).all() == [Path("/x/b"), Path("/x/模型"), Path("/x/a")]
    folders.remove(Path("/x/模型"))
    assert Folders(data).all() == [Path("/x/b"), Path("/x/a")]
    assert [path.name for path in data.iterdir()] == [NAME]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"folders": 3}', '{"folders": [3, null]}', "\xff"])
def test_a_damaged_file_of_folders_is_an_empty_list(data: Path, content: str) -> None:
    data.mkdir()
    (data / NAME).write_bytes(content.encode("latin-1"))
    assert Folders(data).all() == []
    Folders(data).add(Path("/x"))
    assert Folders(data).all() == [Path("/x")]


def test_a_folder_is_added_as_it_is_pasted_and_its_checkpoints_are_found(data: Path, tmp_path: Path) -> None:
    save_folder(tmp_path / "模型 库" / "tiny", LLAMA)
    assert shelf_of(data).add(f' "{tmp_path / "模型 库"}" ') == tmp_path / "模型 库"
    again = shelf_of(data)
    assert again.added == [tmp_path / "模型 库"]
    assert [(found.name, found.family) for found in again.found()] == [("tiny", "llama")]
    again.remove(tmp_path / "模型 库")
    assert again.found() == [] and (tmp_path / "模型 库" / "tiny").is_dir()


def test_why_a_folder_is_not_added_is_a_sentence_in_both_languages(data: Path, tmp_path: Path) -> None:
    shelf, empty = shelf_of(data), tmp_path / "空"
    empty.mkdir()
    (tmp_path / "file").write_text("")
    (data / "checkpoints").mkdir(parents=True)
    for text, english, chinese in [
        ("  ", "Give the path", "请输入"),
        ("models", "no whole path", "不是完整路径"),
        (str(tmp_path / "gone"), "is no folder", "没有文件夹"),
        (str(tmp_path / "file"), "is no folder", "没有文件夹"),
        (str(empty), "No checkpoint is in", "没有模型"),
        (str(data / "checkpoints"), "looked in already", "查找范围"),
    ]:
        with pytest.raises(Sentence, match=english) as caught:
            shelf.add(text)
        assert chinese in caught.value.said("zh")
    assert shelf.added == []


def test_a_list_that_can_not_be_written_is_a_sentence(data: Path, tmp_path: Path) -> None:
    save_folder(tmp_path / "models" / "tiny", LLAMA)
    data.write_text("a file where the folder should be")
    with pytest.raises(Sentence, match="could not be kept"):
        shelf_of(data).add(str(tmp_path / "models"))


def test_a_folder_that_is_gone_at_the_moment_stays_on_the_list(data: Path, tmp_path: Path) -> None:
    save_folder(tmp_path / "disk" / "tiny", LLAMA)
    shelf = shelf_of(data)
    shelf.add(str(tmp_path / "disk"))
    (tmp_path / "disk").rename(tmp_path / "unplugged")
    assert shelf.added == [tmp_path / "disk"] and shelf.found() == []


# What is remembered


def test_nothing_is_read_twice_until_it_changes(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = data / "checkpoints" / "tiny"
    save_folder(folder, LLAMA)
    looks = []
    monkeypatch.setattr(checkpoints, "examine", lambda path: (looks.append(path), ("llama", ""))[1])
    shelf = shelf_of(data)
    for _ in range(3):
        shelf.found()
    assert looks == [folder]
    (folder / "tokenizer.json").write_text("{}")
    shelf.found()
    assert looks == [folder, folder]


def test_a_plan_is_made_from_what_was_read_once(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = data / "checkpoints" / "tiny"
    save_folder(folder, LLAMA)
    reads, whole = [], shelf.footprint_of
    monkeypatch.setattr(shelf, "footprint_of", lambda path: (reads.append(path), whole(path))[1])
    shelved = shelf_of(data)
    assert not shelved.is_known(folder)
    assert shelved.plan(folder, Machine.assume("cpu:8GB")).tier == "fp32"
    assert shelved.plan(folder, Machine.assume("cpu:8GB"), "int8").tier == "int8"
    assert shelved.plan(folder, Machine.assume("cpu:0.5GB")).tier is None
    assert len(reads) == 1 and shelved.is_known(folder)


def test_what_can_not_be_planned_is_remembered_too(data: Path) -> None:
    folder = data / "checkpoints" / "bert"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    shelf = shelf_of(data)
    for _ in range(2):
        with pytest.raises(CheckpointError, match="bert"):
            shelf.plan(folder, Machine.assume("cpu:8GB"))
    assert shelf.is_known(folder)


def test_the_windows_of_plans_are_narrowed_as_the_user_asked(data: Path) -> None:
    save_folder(data / "checkpoints" / "tiny", LLAMA)
    plan = shelf_of(data, "--context", "128").plan(data / "checkpoints" / "tiny", Machine.assume("cpu:8GB"))
    assert plan.context == 128
