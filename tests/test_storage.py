"""What takes disk, each with its size, and what of it can be deleted."""

import json
import os
from pathlib import Path

import pytest

from chatapp.checkpoints import EMBEDDER, MODEL
from chatapp.downloads.hubs import Hub, Repository
from chatapp.downloads.manager import Downloads, Job
from chatapp.engine import Engine, Source, Status, Warm
from chatapp.library import Library
from chatapp.sentences import Sentence
from chatapp.settings import parse
from chatapp.shelf import Shelf
from chatapp.storage import Item, Storage
from tests.fakes import HashEmbeddings, scripted
from tests.tiny import CHATGLM, LLAMA, build, save_folder, write_gguf, write_lora


class Disk:
    """A data folder, a cache and a folder of the user, and what is in them."""

    def __init__(self, folder: Path):
        self.data, self.cache, self.models = folder / "数据 data", folder / "hub", folder / "my models"
        self.own = self.data / "checkpoints"
        self.own.mkdir(parents=True)
        settings = parse(["--data", str(self.data)], {})
        self.shelf = Shelf(settings, {"HF_HUB_CACHE": str(self.cache), "MODELSCOPE_CACHE": str(folder / "none")})
        self.engine = Engine(lambda path, **options: scripted(), warm=Warm(self.data / "warm", 0))
        self.library = Library(self.data / "kb", HashEmbeddings)
        self.downloads = Downloads(self.data)
        self.storage = Storage(settings, self.shelf, self.engine, self.library, self.downloads)

    def items(self, kind: str) -> dict[str, Item]:
        return {item.name: item for item in self.storage.report().items if item.kind == kind}

    def delete(self, kind: str, name: str = "") -> Item:
        return self.storage.delete(self.items(kind)[name].id)

    def load(self, path: Path, adapter: Path | None = None) -> None:
        self.engine.load(Source(path.name, path, adapter=adapter))

    def put(self, path: Path, size: int = 100) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)
        return path

    def cached(self, name: str, config: dict) -> Path:
        root = self.cache / f"models--{name.replace('/', '--')}"
        blob = self.put(root / "blobs" / "0123", 5000)
        (root / "snapshots" / "aaa").mkdir(parents=True)
        (root / "snapshots" / "bbb").mkdir(parents=True)
        for revision in ("aaa", "bbb"):
            (root / "snapshots" / revision / "model.safetensors").symlink_to(blob)
        self.put(root / "refs" / "main").write_text("bbb")
        (root / "snapshots" / "bbb" / "config.json").write_text(json.dumps(config))
        return root


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path)


def size_of(*paths: Path) -> int:
    return sum(path.stat().st_size for path in paths)


# What there is


def test_everything_is_shown_with_its_size(disk: Disk) -> None:
    save_folder(disk.own / "THUDM" / "tiny", LLAMA)
    save_folder(disk.models / "theirs", LLAMA)
    disk.shelf.add(str(disk.models))
    write_lora(disk.own / "lora", {"model.layers.0.self_attn.q_proj": (64, 64)})
    disk.cached("THUDM/chatglm-6b", CHATGLM)
    disk.put(disk.data / "quantized" / "chatglm-6b-int4-0123456789ab" / "model.safetensors", 700)
    disk.put(disk.data / "warm" / "abc.kv", 300)
    disk.put(disk.own / ".downloads" / "123" / "part", 200)
    repository = Repository(Hub("huggingface", "https://hub.example"), "a/half", "main", ())
    disk.downloads._jobs = {id: Job(id, repository, "a/half", "folder") for id in ("123", "done")}
    disk.put(disk.data / "conversations.db", 1000)
    disk.put(disk.data / "conversations.db-wal", 24)
    disk.put(disk.own / EMBEDDER.name / "modules.json", 50)
    disk.library.create("合同")
    report = disk.storage.report()
    shown = [(item.kind, item.name, item.ours, item.origin) for item in report.items]
    assert sorted(shown[:3]) == [
        ("checkpoint", "THUDM/chatglm-6b", False, "huggingface"),
        ("checkpoint", "THUDM/tiny", True, ""),
        ("checkpoint", "theirs", False, ""),
    ]
    assert shown[3:] == [
        ("adapter", "lora", True, ""),
        ("tier", "chatglm-6b · INT4", True, ""),
        ("embedder", EMBEDDER.name, False, ""),
        ("base", "合同", False, ""),
        ("conversations", "", False, ""),
        ("warm", "", True, ""),
        ("download", "a/half", False, ""),
    ]
    sizes = {(item.kind, item.name): item.size for item in report.items}
    assert sizes["tier", "chatglm-6b · INT4"] == 700 and sizes["conversations", ""] == 1024
    assert sizes["checkpoint", "THUDM/tiny"] == size_of(*(disk.own / "THUDM" / "tiny").iterdir())
    assert report.total == sum(sizes.values()) and report.free > 0
    theirs = sizes["checkpoint", "THUDM/chatglm-6b"] + sizes["checkpoint", "theirs"]
    assert report.ours == report.total - theirs
    assert len({item.id for item in report.items}) == len(report.items)


def test_a_file_counts_once_however_many_links_lead_to_it(disk: Disk) -> None:
    root = disk.cached("THUDM/chatglm-6b", CHATGLM)
    expected = 5000 + size_of(root / "refs" / "main", root / "snapshots" / "bbb" / "config.json")
    assert disk.items("checkpoint")["THUDM/chatglm-6b"].size == expected
    os.symlink(root / "snapshots" / "bbb", disk.own / "linked")
    assert set(disk.items("checkpoint")) == {"linked"}  # one checkpoint, by the path that is ours
    save_folder(disk.own / "tiny", LLAMA)
    (disk.own / "copy").mkdir()
    for file in (disk.own / "tiny").iterdir():
        os.link(file, disk.own / "copy" / file.name)
    items = disk.items("checkpoint")
    assert items["copy"].size == items["tiny"].size
    assert disk.storage.report().total == items["copy"].size + items["linked"].size


def test_links_out_of_a_checkpoint_are_not_followed(disk: Disk, tmp_path: Path) -> None:
    save_folder(disk.own / "tiny", LLAMA)
    before = disk.items("checkpoint")["tiny"].size
    disk.put(tmp_path / "elsewhere" / "large", 9999)
    os.symlink(tmp_path / "elsewhere", disk.own / "tiny" / "out")
    os.symlink(tmp_path / "nowhere", disk.own / "tiny" / "broken")
    assert disk.items("checkpoint")["tiny"].size == before


def test_unfinished_downloads_of_others_are_shown_with_the_reason(disk: Disk) -> None:
    root = disk.cached("a/half", LLAMA)
    (root / "snapshots" / "bbb" / "model.safetensors").unlink()
    disk.put(root / "blobs" / "4567.incomplete", 400)
    disk.put(disk.cache / "models--a--begun" / "blobs" / "89.incomplete", 30)
    disk.cached("bert/base", {"model_type": "bert"})
    items = disk.items("checkpoint")
    assert items.keys() == {"a/half", "a/begun"}
    assert items["a/half"].partial and "No weights" in items["a/half"].lacks
    assert items["a/begun"].partial and items["a/begun"].size == 30


def test_several_models_of_one_repository_are_one_item(disk: Disk, tmp_path: Path) -> None:
    root = disk.cached("TheBloke/Llama-GGUF", LLAMA)
    (root / "snapshots" / "bbb" / "config.json").unlink()
    for name in ("a.gguf", "b.gguf"):
        write_gguf(root / "snapshots" / "bbb" / name, build(LLAMA, seed=ord(name[0])), LLAMA)
    (item,) = disk.items("checkpoint").values()
    assert (item.name, item.family, item.lacks) == ("TheBloke/Llama-GGUF", "llama", "")


# Deleting


def test_our_checkpoint_is_deleted_with_the_folder_that_is_empty_then(disk: Disk) -> None:
    save_folder(disk.own / "THUDM" / "tiny", LLAMA)
    save_folder(disk.own / "other", LLAMA)
    assert disk.delete("checkpoint", "THUDM/tiny").size > 0
    assert [path.name for path in disk.own.iterdir()] == ["other"]
    assert [found.name for found in disk.shelf.found()] == ["other"]


def test_a_gguf_model_is_deleted_with_all_its_parts_and_no_other(disk: Disk) -> None:
    alone = disk.own / "SmolLM2" / "a.gguf"
    for path in (alone, disk.own / "two" / "b-00001-of-00002.gguf", disk.own / "two" / "c.gguf", disk.own / "d.gguf"):
        path.parent.mkdir(exist_ok=True)
        write_gguf(path, build(LLAMA), LLAMA)
    disk.put(disk.own / "two" / "b-00002-of-00002.gguf")
    disk.put(alone.with_name("LICENSE"))
    for name in ("a", "b", "d"):
        disk.delete("checkpoint", name)
    assert [path.relative_to(disk.own).as_posix() for path in disk.own.rglob("*")] == ["two", "two/c.gguf"]


def test_of_a_link_only_the_link_goes(disk: Disk) -> None:
    save_folder(disk.models / "theirs", LLAMA)
    os.symlink(disk.models / "theirs", disk.own / "linked")
    disk.delete("checkpoint", "linked")
    assert list(disk.own.iterdir()) == [] and (disk.models / "theirs" / "config.json").is_file()


def test_a_kept_tier_and_an_adapter_are_deleted(disk: Disk) -> None:
    disk.put(disk.data / "quantized" / "chatglm-6b-int4-0123456789ab" / "model.safetensors")
    write_lora(disk.own / "lora", {"model.layers.0.self_attn.q_proj": (64, 64)})
    disk.delete("tier", "chatglm-6b · INT4")
    disk.delete("adapter", "lora")
    assert list((disk.data / "quantized").glob("*")) == list(disk.own.iterdir()) == []


def test_what_was_read_is_forgotten_in_memory_too(disk: Disk) -> None:
    disk.put(disk.data / "warm" / "abc.kv")
    disk.load(disk.own / "x")
    disk.engine._caches._kept.append(object())
    disk.delete("warm")
    assert len(disk.engine._caches) == 0 and disk.items("warm") == {}


@pytest.mark.parametrize("place", ["cache", "added"])
def test_what_is_others_is_never_deleted(disk: Disk, place: str) -> None:
    name = "a/b" if place == "cache" else "theirs"
    if place == "cache":
        disk.cached("a/b", LLAMA)
    else:
        save_folder(disk.models / "theirs", LLAMA)
        disk.shelf.add(str(disk.models))
    with pytest.raises(Sentence, match=f"{name} lies in .*, where Quatrain changes nothing") as caught:
        disk.delete("checkpoint", name)
    assert "不会改动" in caught.value.said("zh")
    assert name in disk.items("checkpoint")


def test_a_folder_that_is_added_twice_over_is_still_the_users(disk: Disk) -> None:
    """A folder above the data folder shows what is ours as well, and the other way round."""
    save_folder(disk.own / "tiny", LLAMA)
    disk.shelf.add(str(disk.data))
    assert [(item.name, item.ours) for item in disk.items("checkpoint").values()] == [("tiny", True)]


def test_what_is_loaded_is_not_deleted_before_it_is_unloaded(disk: Disk) -> None:
    folder, adapter = disk.own / "THUDM" / "tiny", disk.own / "lora"
    save_folder(folder, LLAMA)
    write_lora(adapter, {"model.layers.0.self_attn.q_proj": (64, 64)})
    disk.load(folder, adapter)
    for kind, name in (("checkpoint", "THUDM/tiny"), ("adapter", "lora")):
        assert disk.storage.is_loaded(disk.items(kind)[name])
        with pytest.raises(Sentence, match="is loaded; unload it first"):
            disk.delete(kind, name)
    disk.engine.unload(lambda _: Source("tiny", folder))
    disk.delete("checkpoint", "THUDM/tiny")
    assert not folder.exists()


@pytest.mark.parametrize(("kind", "busy", "words"), [("checkpoint", False, "being loaded"), ("warm", True, "reply")])
def test_nothing_is_deleted_under_work(
    disk: Disk, kind: str, busy: bool, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_folder(disk.own / "tiny", LLAMA)
    disk.put(disk.data / "warm" / "abc.kv")
    if busy:
        disk.engine._queue.append(object())
    else:
        disk.engine.status = Status("loading", "other")
    with pytest.raises(Sentence, match=words):
        disk.delete(kind, "tiny" if kind == "checkpoint" else "")
    assert disk.items(kind)


def test_what_is_gone_or_can_not_be_deleted_is_a_sentence(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    save_folder(disk.own / "tiny", LLAMA)
    id = disk.items("checkpoint")["tiny"].id

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refuse)
        with pytest.raises(Sentence, match="could not be deleted .Permission denied."):
            disk.storage.delete(id)
    assert (disk.own / "tiny" / "config.json").is_file()
    disk.storage.delete(id)
    with pytest.raises(Sentence, match="not there any more"):
        disk.storage.delete(id)


def test_an_interrupted_deletion_leaves_no_checkpoint_and_goes_with_the_next(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        save_folder(disk.own / name, LLAMA)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("chatapp.storage._delete", interrupt)
        with pytest.raises(KeyboardInterrupt):
            disk.delete("checkpoint", "one")
    assert [found.name for found in disk.shelf.found()] == ["two"]
    disk.delete("checkpoint", "two")
    assert list(disk.own.iterdir()) == []


def test_the_embedded_model_is_fetched_again(disk: Disk) -> None:
    path = disk.own / MODEL.name / Path(MODEL.member).name
    path.parent.mkdir()
    write_gguf(path, build(LLAMA), LLAMA)
    (item,) = disk.items("checkpoint").values()
    assert item.fetched_again and item.ours
