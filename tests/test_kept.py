"""Kept tiers: the second start maps what the first one made; whatever is wrong with it, it is made anew."""

from __future__ import annotations

import json
import os
import struct
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import models
from models import CheckpointError, kept
from models.formats.huggingface import HuggingFaceCheckpoint
from models.loader import LoadedModel
from models.quantize import QuantizedEmbedding, QuantizedLinear
from tests.tiny import LLAMA, save_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_folder(tmp_path / "tiny", LLAMA)
    return tmp_path / "tiny"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "quantized"


def tensors(loaded: LoadedModel) -> dict[str, torch.Tensor]:
    """Every tensor of a model, those inside packed matrices too."""
    found = dict(loaded.model.state_dict())
    for name, module in loaded.model.named_modules():
        if isinstance(module, QuantizedLinear | QuantizedEmbedding):
            found |= {f"{name}.{number}": part for number, part in enumerate(module.weight.parts())}
    return found


def equal(ours: LoadedModel, theirs: LoadedModel) -> bool:
    first, second = tensors(ours), tensors(theirs)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def only(store: Path) -> Path:
    """The one tier in the store."""
    (found,) = store.iterdir()
    return found


def loads_once(folder: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> LoadedModel:
    """Loads where the source's weights must not be read."""
    with monkeypatch.context() as closed:
        closed.setattr(HuggingFaceCheckpoint, "tensors", lambda self: pytest.fail("the source's weights were read"))
        return models.load(folder, tier="int4", store=store)


@pytest.mark.parametrize("tier", ["int8", "int4"])
def test_kept_is_what_was_made(folder: Path, store: Path, tier: str) -> None:
    made = models.load(folder, tier=tier)
    first = models.load(folder, tier=tier, store=store)
    second = models.load(folder, tier=tier, store=store)
    assert equal(made, first) and equal(made, second)
    assert only(store).name.startswith(f"tiny-{tier}-")
    ids = torch.arange(20)[None]
    assert torch.equal(made.model(ids), second.model(ids))


@pytest.mark.parametrize("tier", ["fp32", "fp16"])
def test_whole_tiers_are_not_kept(folder: Path, store: Path, tier: str) -> None:
    models.load(folder, tier=tier, store=store)
    assert not store.exists()


def test_second_load_maps_the_file(folder: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors lie in memory as in the file, one behind the other, from the start of a page."""
    models.load(folder, tier="int4", store=store)
    loaded = loads_once(folder, store, monkeypatch)
    data = (only(store) / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    assert (8 + length) % 4096 == 0
    header = json.loads(data[8 : 8 + length])
    head = loaded.model.get_submodule("lm_head").weight
    norm = loaded.model.get_parameter("model.norm.weight")
    places = {name: header[name]["data_offsets"][0] for name in ("lm_head.weight.blocks", "model.norm.weight")}
    distance = places["model.norm.weight"] - places["lm_head.weight.blocks"]
    assert norm.data_ptr() - head.blocks.data_ptr() == distance


def test_config_says_what_it_is(folder: Path, store: Path) -> None:
    models.load(folder, tier="int4", store=store)
    about = json.loads((only(store) / "config.json").read_text(encoding="utf-8"))
    assert about["quantization"] == {"bits": 4, "group_size": 32}
    assert about["source"] == str(folder.resolve())
    assert load_file(only(store) / "model.safetensors").keys() == {
        part for tensor in about["tensors"].values() for part in tensor["parts"]
    }


def test_changed_source(folder: Path, store: Path) -> None:
    """It is made anew, and what the earlier version was made into goes."""
    first = models.load(folder, tier="int4", store=store)
    models.load(folder, tier="int8", store=store)
    changed = load_file(folder / "model.safetensors")
    changed["model.layers.1.mlp.up_proj.weight"] *= 2
    save_file(changed, folder / "model.safetensors")
    second = models.load(folder, tier="int4", store=store)
    assert not equal(first, second)
    assert equal(second, models.load(folder, tier="int4"))
    assert sorted(path.name[:10] for path in store.iterdir()) == ["tiny-int4-", "tiny-int8-"]


def test_only_the_times_tell(folder: Path, store: Path) -> None:
    """A change in the middle of a large file leaves size and both ends as they were."""
    models.load(folder, tier="int4", store=store)
    before = only(store)
    status = (folder / "model.safetensors").stat()
    os.utime(folder / "model.safetensors", ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000_000))
    models.load(folder, tier="int4", store=store)
    assert only(store) != before


def test_two_checkpoints_of_one_name(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [tmp_path / owner / "tiny" for owner in ("first", "second")]
    for number, folder in enumerate(folders):
        save_folder(folder, LLAMA | {"intermediate_size": 96 + 32 * number})
        models.load(folder, tier="int4", store=store)
    assert len(list(store.iterdir())) == 2
    for folder in folders:
        assert equal(loads_once(folder, store, monkeypatch), models.load(folder, tier="int4"))


def cut(share: float) -> Callable[[Path], None]:
    def damage(tier: Path) -> None:
        data = (tier / "model.safetensors").read_bytes()
        (tier / "model.safetensors").write_bytes(data[: int(len(data) * share)])

    return damage


def flip(share: float) -> Callable[[Path], None]:
    def damage(tier: Path) -> None:
        data = bytearray((tier / "model.safetensors").read_bytes())
        start = 8 + kept.HEADER
        data[start + int((len(data) - start) * share)] ^= 1
        (tier / "model.safetensors").write_bytes(data)

    return damage


def reword(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def damage(tier: Path) -> None:
        about = json.loads((tier / "config.json").read_text())
        change(about)
        (tier / "config.json").write_text(json.dumps(about))

    return damage


NAME = "model.layers.0.mlp.up_proj.weight"
DAMAGES = {
    "empty": cut(0),
    "cut in the header": cut(0.1),
    "cut in the weights": cut(0.999),
    "flipped first byte": flip(0),
    "flipped byte": flip(0.5),
    "flipped last byte": flip(0.999999),
    "no weights": lambda tier: (tier / "model.safetensors").unlink(),
    "no config": lambda tier: (tier / "config.json").unlink(),
    "bad JSON": lambda tier: (tier / "config.json").write_text("{"),
    "bad text": lambda tier: (tier / "config.json").write_bytes(b"\xff\xfe"),
    "other JSON": lambda tier: (tier / "config.json").write_text("[]"),
    "other layout": reword(lambda about: about.update(layout=kept.LAYOUT + 1)),
    "no tensors": reword(lambda about: about.pop("tensors")),
    "tensors that are none": reword(lambda about: about.update(tensors=[1])),
    "a tensor less": reword(lambda about: about["tensors"].pop(NAME)),
    "other rows": reword(lambda about: about["tensors"][NAME].update(shape=[9600, 64])),
    "other bits": reword(lambda about: about["tensors"][NAME].update(bits=8)),
    "a part less": reword(
        lambda about: (about["tensors"][NAME]["parts"].pop(), about["tensors"][NAME]["checksums"].pop())
    ),
    "an unknown part": reword(lambda about: about["tensors"][NAME]["parts"].append("other")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_tiers_are_made_anew(
    folder: Path, store: Path, damage: str, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    made = models.load(folder, tier="int4", store=store)
    wanted = {name: tensor.clone() for name, tensor in tensors(made).items()}
    DAMAGES[damage](only(store))
    again = tensors(models.load(folder, tier="int4", store=store))
    assert all(torch.equal(again[name], tensor) for name, tensor in wanted.items())
    assert equal(loads_once(folder, store, monkeypatch), models.load(folder, tier="int4"))
    assert not recwarn.list


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[BaseException], None]]:
    """Sets what happens in the middle of writing."""

    def stop(error: BaseException) -> None:
        usual, calls = kept._checksum, []

        def checksum(tensor: torch.Tensor) -> int:
            calls.append(tensor)
            if len(calls) == 20:
                raise error
            return usual(tensor)

        monkeypatch.setattr(kept, "_checksum", checksum)

    yield stop


def test_interrupted(folder: Path, store: Path, stopped: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        models.load(folder, tier="int4", store=store)
    assert list(store.iterdir()) == []
    models.load(folder, tier="int4", store=store)
    loads_once(folder, store, monkeypatch)


def test_killed(folder: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody cleaned up: what lies there is never taken for a tier, and goes with the next one that is made."""
    left = store / f"{kept.UNFINISHED}abc"
    (left / "made").mkdir(parents=True)
    (left / "made" / "model.safetensors").write_bytes(b"half")
    models.load(folder, tier="int4", store=store)
    assert only(store).name.startswith("tiny-int4-")
    loads_once(folder, store, monkeypatch)


def test_full_disk(folder: Path, store: Path, stopped: Callable) -> None:
    stopped(OSError(28, "No space left on device"))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        loaded = models.load(folder, tier="int4", store=store)
    assert [str(warning.message) for warning in seen] == [
        "tiny is not kept at INT4 (No space left on device): it loads slowly again."
    ]
    assert list(store.iterdir()) == []
    assert equal(loaded, models.load(folder, tier="int4"))


def test_no_place(folder: Path, store: Path) -> None:
    store.write_text("a file where the folder would be")
    with pytest.warns(UserWarning, match="tiny is not kept at INT4"):
        loaded = models.load(folder, tier="int4", store=store)
    assert equal(loaded, models.load(folder, tier="int4"))


def refusal(folder: Path, store: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        models.load(folder, tier="int4", store=store)
    text = str(caught.value)
    assert "\n" not in text and text.endswith(".")
    assert not store.exists() or list(store.iterdir()) == []
    return text


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_a_number_is_named(folder: Path, store: Path, value: float) -> None:
    broken = load_file(folder / "model.safetensors")
    broken[NAME][3, 5] = value
    save_file(broken, folder / "model.safetensors")
    assert f"{NAME} in {folder} holds values that are not numbers" in refusal(folder, store)


def test_truncated_shard_is_named(folder: Path, store: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    for number, part in enumerate((names[:9], names[9:]), start=1):
        save_file({name: weights[name] for name in part}, folder / f"model-0000{number}-of-00002.safetensors")
    second = folder / "model-00002-of-00002.safetensors"
    second.write_bytes(second.read_bytes()[:-100])
    assert f"{second} is damaged or incomplete" in refusal(folder, store)
