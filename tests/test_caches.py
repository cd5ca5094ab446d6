"""Checkpoints in the caches of Hugging Face and ModelScope, laid out as those programs lay them out."""

import json
import shutil
from pathlib import Path

import gguf
import pytest

from chatapp import caches, checkpoints
from chatapp.caches import Place, cached, hugging_face_folder, modelscope_folders
from tests.tiny import BLOOM, CHATGLM, LLAMA, build, save_folder, write_gguf

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


class Cache:
    """A Hugging Face cache to put files into; without `links`, as on Windows, they are no links but the files."""

    def __init__(self, folder: Path, links: bool = True):
        self.folder = folder
        self._links = links

    def repository(self, name: str) -> Path:
        return self.folder / f"models--{name.replace('/', '--')}"

    def put(self, name: str, file: str, content: bytes, revision: str = "aaa", main: bool = True) -> Path:
        root = self.repository(name)
        blob, snapshot = root / "blobs" / f"{abs(hash(content)):x}", root / "snapshots" / revision
        (snapshot / file).parent.mkdir(parents=True, exist_ok=True)
        blob.parent.mkdir(exist_ok=True)
        if self._links:
            blob.write_bytes(content)
            (snapshot / file).symlink_to(blob)
        else:
            (snapshot / file).write_bytes(content)
        if main:
            (root / "refs").mkdir(exist_ok=True)
            (root / "refs" / "main").write_text(revision)
        return snapshot

    def checkpoint(self, name: str, config: dict, *files: str, **more) -> Path:
        for file in files:
            self.put(name, file, b"weights " + file.encode(), **more)
        return self.put(name, "config.json", json.dumps(config).encode(), **more)

    def interrupt(self, name: str) -> None:
        blobs = self.repository(name) / "blobs"
        blobs.mkdir(parents=True, exist_ok=True)
        (blobs / "0123.incomplete").write_bytes(b"half")


@pytest.fixture(params=[True, False], ids=["links", "files"])
def cache(tmp_path: Path, request: pytest.FixtureRequest) -> Cache:
    return Cache(tmp_path / "huggingface" / "hub", request.param)


def survey(cache: Cache) -> dict[str, checkpoints.Found]:
    environment = {"HF_HOME": str(cache.folder.parent), "MODELSCOPE_CACHE": str(cache.folder / "none")}
    return {found.name: found for found in checkpoints.survey([], cached(environment))}


def find(cache: Cache) -> dict[str, Path]:
    return {name: found.path for name, found in survey(cache).items() if found.offered}


# Hugging Face


def test_repositories_are_found_by_their_own_names(cache: Cache) -> None:
    chatglm = cache.checkpoint("THUDM/chatglm-6b", CHATGLM, "pytorch_model.bin")
    cache.checkpoint("bigscience/bloomz-7b1-mt", BLOOM, "model.safetensors")
    cache.checkpoint("bert-base-chinese", {"model_type": "bert"}, "pytorch_model.bin")
    assert find(cache).keys() == {"THUDM/chatglm-6b", "bigscience/bloomz-7b1-mt"}
    found = survey(cache)["THUDM/chatglm-6b"]
    assert (found.path, found.family, found.origin) == (chatglm, "chatglm", "huggingface")
    assert found.place.root == cache.repository("THUDM/chatglm-6b")


def test_the_revision_of_main_counts(cache: Cache) -> None:
    main = cache.checkpoint("a/b", LLAMA, "model.safetensors", revision="older")
    newest = cache.checkpoint("a/b", LLAMA, "model.safetensors", revision="zzz", main=False)
    assert find(cache) == {"a/b": main}
    (cache.repository("a/b") / "refs" / "main").write_text("gone")
    (newest / "touched").write_bytes(b"")
    assert find(cache) == {"a/b": newest}
    shutil.rmtree(cache.repository("a/b") / "refs")
    assert find(cache) == {"a/b": newest}


@pytest.mark.parametrize("main", ["", "..", "../..", "/"])
def test_a_revision_never_leads_elsewhere(cache: Cache, main: str) -> None:
    snapshot = cache.checkpoint("a/b", LLAMA, "model.safetensors")
    (cache.repository("a/b") / "refs" / "main").write_text(main)
    assert find(cache) == {"a/b": snapshot}


def test_what_lacks_a_shard_is_not_offered_and_it_is_said_why(cache: Cache) -> None:
    cache.checkpoint("a/half", LLAMA, SHARDS[0])
    cache.checkpoint("a/config-only", LLAMA)
    cache.interrupt("a/half")
    assert find(cache) == {}
    half, config = survey(cache)["a/half"], survey(cache)["a/config-only"]
    assert f"{SHARDS[1]} is missing" in half.lacks and half.partial
    assert "No weights" in config.lacks and not config.partial
    cache.put("a/half", SHARDS[1], b"weights")
    assert find(cache).keys() == {"a/half"}


def test_a_link_to_a_blob_that_is_gone_is_a_missing_file(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "hub")
    snapshot = cache.checkpoint("a/b", LLAMA, "model.safetensors")
    (snapshot / "model.safetensors").resolve().unlink()
    assert find(cache) == {} and "model.safetensors is missing" in survey(cache)["a/b"].lacks


def test_a_download_of_which_nothing_is_there_yet_is_known(cache: Cache) -> None:
    cache.interrupt("TheBloke/Llama-2-7B-GGUF")
    found = survey(cache)["TheBloke/Llama-2-7B-GGUF"]
    assert found.partial and not found.offered and found.path == cache.repository("TheBloke/Llama-2-7B-GGUF")


def test_gguf_files_are_found_by_their_own_names(cache: Cache, tmp_path: Path) -> None:
    write_gguf(tmp_path / "made.gguf", build(LLAMA), LLAMA)
    content = (tmp_path / "made.gguf").read_bytes()
    for name in ("llama.Q4_K_M.gguf", "llama.Q8_0.gguf", "split/big-00001-of-00002.gguf"):
        snapshot = cache.put("TheBloke/Llama-GGUF", name, content + name.encode())
    cache.put("TheBloke/Llama-GGUF", "README.md", b"#")
    assert find(cache) == {f"llama.{kind}": snapshot / f"llama.{kind}.gguf" for kind in ("Q4_K_M", "Q8_0")}
    assert "big-00002-of-00002.gguf is missing" in survey(cache)["big"].lacks
    assert checkpoints.find([], cached({"HF_HUB_CACHE": str(cache.folder)}))[0].path.suffix == ".gguf"


def test_embedding_models_and_other_files_are_no_checkpoints(cache: Cache) -> None:
    cache.checkpoint("intfloat/e5", LLAMA, "model.safetensors", "modules.json")
    cache.put("a/data", "notes.txt", b"-")
    cache.folder.joinpath("version.txt").write_text("1")
    cache.folder.joinpath(".locks", "models--a--b").mkdir(parents=True)
    assert survey(cache) == {}


def test_the_same_name_in_two_places_is_told_apart(cache: Cache, tmp_path: Path) -> None:
    cache.checkpoint("THUDM/chatglm-6b", CHATGLM, "pytorch_model.bin")
    own = tmp_path / "own"
    for folder in (own / "THUDM" / "chatglm-6b", tmp_path / "scope" / "models" / "THUDM" / "chatglm-6b"):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(CHATGLM))
        (folder / "pytorch_model.bin").write_bytes(b"weights")
    environment = {"HF_HOME": str(cache.folder.parent), "MODELSCOPE_CACHE": str(tmp_path / "scope")}
    names = [found.name for found in checkpoints.find([own], cached(environment))]
    assert names == ["THUDM/chatglm-6b", "THUDM/chatglm-6b (Hugging Face)", "THUDM/chatglm-6b (ModelScope)"]


def test_a_cache_that_is_given_as_a_folder_is_known_for_one(cache: Cache) -> None:
    snapshot = cache.checkpoint("a/b", LLAMA, "model.safetensors")
    for folder in (cache.folder, cache.folder.parent, cache.repository("a/b")):
        (found,) = checkpoints.find([folder])
        assert (found.name, found.path, found.origin) == ("a/b", snapshot, "huggingface")


# ModelScope


@pytest.mark.parametrize("inside", ["", "models", "hub", "hub/models"])
def test_modelscopes_repositories_are_found_where_its_versions_put_them(tmp_path: Path, inside: str) -> None:
    folder = tmp_path / inside / "LLM-Research"
    save_folder(folder / "Meta-Llama-3___1-8B", LLAMA)
    (folder / "Meta-Llama-3.1-8B").symlink_to(folder / "Meta-Llama-3___1-8B", target_is_directory=True)
    (folder.parent / "datasets" / "x").mkdir(parents=True)
    environment = {"MODELSCOPE_CACHE": str(tmp_path), "HF_HOME": str(tmp_path / "none")}
    (found,) = checkpoints.survey([], cached(environment))
    assert (found.name, found.origin, found.offered) == ("LLM-Research/Meta-Llama-3.1-8B", "modelscope", True)
    assert found.path == folder / "Meta-Llama-3___1-8B" and not found.partial


def test_modelscopes_downloads_that_are_not_whole_are_not_offered(tmp_path: Path) -> None:
    begun = tmp_path / "models" / "ZhipuAI" / "chatglm3-6b"
    begun.mkdir(parents=True)
    (begun / "config.json").write_text(json.dumps(CHATGLM))
    for name in ("chatglm3-6b", "chatglm2-6b"):
        waiting = tmp_path / "models" / "._____temp" / "ZhipuAI" / name
        waiting.mkdir(parents=True)
        (waiting / "pytorch_model.bin").write_bytes(b"half")
    environment = {"MODELSCOPE_CACHE": str(tmp_path), "HF_HOME": str(tmp_path / "none")}
    found = {found.name: found for found in checkpoints.survey([], cached(environment))}
    assert found.keys() == {"ZhipuAI/chatglm3-6b", "ZhipuAI/chatglm2-6b"}
    assert all(each.partial and not each.offered for each in found.values())


# Where they are


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({}, "~/.cache/huggingface/hub"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/huggingface/hub"),
        ({"XDG_CACHE_HOME": "/x", "HF_HOME": "/h"}, "/h/hub"),
        ({"HF_HOME": "/h", "HUGGINGFACE_HUB_CACHE": "/old"}, "/old"),
        ({"HF_HOME": "/h", "HUGGINGFACE_HUB_CACHE": "/old", "HF_HUB_CACHE": "/new"}, "/new"),
        ({"HF_HOME": ""}, "~/.cache/huggingface/hub"),
    ],
)
def test_variables_say_where_hugging_faces_cache_is(environment: dict[str, str], folder: str) -> None:
    assert hugging_face_folder(environment) == Path(folder).expanduser()


def test_a_variable_says_where_modelscopes_cache_is() -> None:
    assert Path("~/.cache/modelscope/hub").expanduser() in modelscope_folders({})
    assert modelscope_folders({"MODELSCOPE_CACHE": "/m"})[:2] == [Path("/m"), Path("/m/models")]


def test_caches_that_are_not_there_hold_nothing(tmp_path: Path) -> None:
    assert list(cached({"HF_HOME": str(tmp_path / "a"), "MODELSCOPE_CACHE": str(tmp_path / "b")})) == []
    assert list(caches.places_in(tmp_path)) == [Place(tmp_path)]


def test_pointers_of_git_lfs_are_no_weights(tmp_path: Path) -> None:
    folder = tmp_path / "chatglm-6b"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CHATGLM))
    (folder / "pytorch_model.bin").write_text("version https://git-lfs.github.com/spec/v1\n")
    (found,) = checkpoints.find([tmp_path])
    assert "Git LFS pointer" in found.lacks


def test_a_gguf_file_of_no_family_is_listed_where_the_user_keeps_it(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "mamba.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert [(found.name, found.family) for found in checkpoints.find([tmp_path])] == [("mamba", "")]
