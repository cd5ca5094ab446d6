"""PyTorch's own files: what they hold however it is stored, code that never runs, one sentence for what is wrong."""

from __future__ import annotations

import json
import os
import pickle
import random
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
import transformers
from safetensors.torch import save_file

import models
from models import CheckpointError
from models.formats import glance
from models.formats.pickles import PickledFile, read_pickled
from models.registry import resolve
from tests.tiny import BLOOM, LLAMA, piece_model, randomize

#: torch says so of files whose second byte was changed.
pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol")

Tensors = dict[str, torch.Tensor]
BIN, INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"


def save_old(state: object, path: Path) -> None:
    torch.save(state, path, _use_new_zipfile_serialization=False)


def save_compressed(state: object, path: Path) -> None:
    torch.save(state, path)
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)


WRITERS = {"zip": torch.save, "old": save_old, "compressed": save_compressed}


@pytest.fixture(params=WRITERS.values(), ids=WRITERS)
def write(request: pytest.FixtureRequest) -> Callable[[object, Path], None]:
    return request.param


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        list(read_pickled(path))
    return sentence(caught.value)


def sentence(error: CheckpointError) -> str:
    text = str(error)
    assert "\n" not in text and text.endswith(".") and len(text) < 400
    return text


# Tensors


def test_views_of_one_storage(write: Callable, tmp_path: Path) -> None:
    base = torch.randn(6, 8)
    views = {
        "whole": base,
        "again": base,
        "turned": base.t(),
        "rows": base[2:4],
        "columns": base[:, 1::3],
        "one": base[3, 5],
        "none": base[:0],
        "repeated": base[:1].expand(3, 8),
        "parameter": torch.nn.Parameter(base[1:]),
    }
    write(views, tmp_path / "a.bin")
    read = dict(read_pickled(tmp_path / "a.bin"))
    assert read.keys() == views.keys()
    for name, tensor in views.items():
        assert torch.equal(read[name], tensor.detach()) and read[name].is_contiguous() and not read[name].requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int8, torch.int64, torch.bool])
def test_types(dtype: torch.dtype, write: Callable, tmp_path: Path) -> None:
    saved = (torch.arange(15) % 2).to(dtype).view(3, 5)
    write({"a": saved}, tmp_path / "a.bin")
    read = dict(read_pickled(tmp_path / "a.bin"))["a"]
    assert read.dtype == dtype and torch.equal(read, saved)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 3, "optimizer": {"step": torch.ones(1)}},
        lambda state: {"model": state, "args": {"lr": 1e-4}},
        lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
        lambda state: {"module": {f"module.{name}": tensor for name, tensor in state.items()}},
        lambda state: state | {"_metadata": None, "version": 2, "names": ["a"]},
    ],
)
def test_what_training_scripts_put_around(wrap: Callable, write: Callable, tmp_path: Path) -> None:
    state = {"a.weight": torch.ones(2, 3), "a.bias": torch.zeros(2)}
    write(wrap(state), tmp_path / "a.bin")
    assert dict(read_pickled(tmp_path / "a.bin")).keys() == state.keys()


@pytest.mark.skipif(sys.platform != "linux", reason="counts mapped pages")
def test_only_one_tensor_is_in_memory(tmp_path: Path) -> None:
    torch.save({str(number): torch.full((4, 2**20), float(number)) for number in range(12)}, tmp_path / "a.bin")
    process = psutil.Process()
    before, most = process.memory_info().rss, 0
    for name, tensor in read_pickled(tmp_path / "a.bin"):
        assert tensor.sum().item() == float(name) * 2**22
        most = max(most, process.memory_info().rss - before)
    assert most < 2.5 * 4 * 2**22  # of twelve


# Code


class Evil:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("place", ["value", "key's neighbour", "whole"])
def test_code_is_named_and_never_run(place: str, write: Callable, tmp_path: Path) -> None:
    evil = Evil(tmp_path / "ran")
    state = {"value": {"a": evil}, "key's neighbour": {"a": torch.ones(2), "b": [evil]}, "whole": evil}[place]
    write(state, tmp_path / "a.bin")
    text = refusal(tmp_path / "a.bin")
    assert "a.bin wants to run" in text and "mkdir" in text and "safetensors" in text
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_pickles_are_never_run(protocol: int, tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(pickle.dumps(Evil(tmp_path / "ran"), protocol))
    assert "a.bin" in refusal(tmp_path / "a.bin")
    assert not (tmp_path / "ran").exists()


def test_code_from_python_itself_is_named(tmp_path: Path) -> None:
    class Builtin:
        def __reduce__(self) -> tuple:
            return eval, ("1",)

    torch.save({"a": Builtin()}, tmp_path / "a.bin")
    assert "wants to run eval" in refusal(tmp_path / "a.bin")


# Damage


@pytest.mark.parametrize(
    "content",
    [b"", b"<!DOCTYPE html><html>", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", bytes(4096), b"PK"],
    ids=["empty", "html", "lfs", "zeros", "two letters"],
)
def test_other_files(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(content)
    text = refusal(tmp_path / "a.bin")
    assert "no file of weights; download it again" in text or "download the real file" in text


@pytest.mark.parametrize("state", [[torch.ones(2)], torch.ones(2), {}, {"epoch": 1}, None, 3])
def test_no_state_dict(state: object, write: Callable, tmp_path: Path) -> None:
    write(state, tmp_path / "a.bin")
    assert "a.bin holds no weights" in refusal(tmp_path / "a.bin")


def test_what_holds_itself(tmp_path: Path) -> None:
    state: dict = {}
    state["model"] = state
    torch.save(state, tmp_path / "a.bin")
    assert "holds no weights" in refusal(tmp_path / "a.bin")


def test_kinds_of_tensors_that_are_no_weights(tmp_path: Path) -> None:
    torch.save({"a": torch.eye(3).to_sparse()}, tmp_path / "a.bin")
    assert "holds a as torch.sparse_coo" in refusal(tmp_path / "a.bin")
    torch.save({"a": torch.ones(3, dtype=torch.complex64)}, tmp_path / "a.bin")
    assert "complex64" in refusal(tmp_path / "a.bin")


def test_one_number_repeated_without_end(write: Callable, tmp_path: Path) -> None:
    write({"a": torch.ones(1).expand(10**6, 10**6)}, tmp_path / "a.bin")
    assert "damaged" in refusal(tmp_path / "a.bin")


def test_every_damage_is_one_sentence(write: Callable, tmp_path: Path) -> None:
    write({"a": torch.randn(5, 7), "b": torch.randn(4)}, tmp_path / "whole.bin")
    whole, changed = (tmp_path / "whole.bin").read_bytes(), random.Random(0)
    outcomes = {"read": 0, "refused": 0}
    for trial in range(600):
        data = bytearray(whole)
        if trial % 2:
            data = data[: changed.randrange(len(data))]
        else:
            for _ in range(changed.choice((1, 2, 5))):
                data[changed.randrange(len(data))] = changed.randrange(256)
        (tmp_path / "a.bin").write_bytes(data)
        try:
            list(read_pickled(tmp_path / "a.bin"))
            outcomes["read"] += 1
        except CheckpointError as error:
            sentence(error)
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 20, outcomes


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "a.bin")
    with pytest.raises(CheckpointError, match=r"b is missing in .*a\.bin"):
        PickledFile(tmp_path / "a.bin").read("b")


# Folders


def llama(**changes: object) -> transformers.LlamaForCausalLM:
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**LLAMA, **changes})).eval()
    randomize(model)
    return model.requires_grad_(False)


def save_folder(folder: Path, config: dict, state: Tensors, shards: int = 1) -> None:
    """What transformers wrote before safetensors: one file, or several and an index."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        torch.save(state, folder / BIN)
        return
    files = {
        name: f"pytorch_model-{1 + at * shards // len(state):05}-of-{shards:05}.bin" for at, name in enumerate(state)
    }
    for file in set(files.values()):
        torch.save({name: state[name].clone() for name in state if files[name] == file}, folder / file)
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": files}))


def folder_refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        models.load(folder, tier="fp32")
    return sentence(caught.value)


IDS = torch.randint(300, (1, 40), generator=torch.Generator().manual_seed(1))


def assert_same_logits(folder: Path, expected: torch.Tensor, most: float = 1e-4) -> None:
    assert (models.load(folder, tier="fp32").model(IDS) - expected).abs().max() <= most


@pytest.fixture(scope="module")
def source() -> transformers.LlamaForCausalLM:
    return llama()


@pytest.mark.parametrize("shards", [1, 2, 3])
def test_llama_as_transformers_wrote_it(shards: int, source: transformers.LlamaForCausalLM, tmp_path: Path) -> None:
    state = source.state_dict()
    for layer in range(3):
        state[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_folder(tmp_path, LLAMA, state, shards)
    assert_same_logits(tmp_path, source(IDS).logits)
    assert models.load(tmp_path, tier="int4").model(IDS).isfinite().all()


@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_bloom_as_transformers_wrote_it(prefix: str, tmp_path: Path) -> None:
    model = transformers.BloomForCausalLM(transformers.BloomConfig(**BLOOM)).eval()
    randomize(model)
    model.tie_weights()
    state = {name.replace("transformer.", prefix, 1): tensor for name, tensor in model.state_dict().items()}
    state |= {f"{prefix}h.0.self_attention.masked_bias": torch.tensor(-1e4)}
    save_folder(tmp_path, BLOOM, state)  # the head as a second name of the embedding's storage
    assert_same_logits(tmp_path, model(IDS).logits.detach())


def test_mixed_precisions(source: transformers.LlamaForCausalLM, tmp_path: Path) -> None:
    state = {
        name: tensor if tensor.ndim == 1 else tensor.to(torch.bfloat16 if "mlp" in name else torch.float16)
        for name, tensor in source.state_dict().items()
    }
    rounded = llama()
    rounded.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    save_folder(tmp_path, LLAMA, state, 2)
    assert_same_logits(tmp_path, rounded(IDS).logits)


def test_a_head_that_config_promises(source: transformers.LlamaForCausalLM, tmp_path: Path) -> None:
    state = source.state_dict()
    del state["lm_head.weight"]
    save_folder(tmp_path, LLAMA, state)
    assert "1 tensors are missing" in (text := folder_refusal(tmp_path)) and "lm_head.weight" in text


@pytest.mark.parametrize(
    ("weight", "said"),
    [
        (torch.ones(64, 96, dtype=torch.int64), "torch.int64"),
        (torch.ones(96, 64), "[96, 64] instead of [64, 96]"),
        (torch.full((64, 96), torch.nan), "not numbers"),
        (torch.ones(64, 96, dtype=torch.int8), "down_proj.weight_scale is missing"),
    ],
)
def test_wrong_weights_are_named(
    weight: torch.Tensor, said: str, source: transformers.LlamaForCausalLM, tmp_path: Path
) -> None:
    name = "model.layers.1.mlp.down_proj.weight"
    save_folder(tmp_path, LLAMA, source.state_dict() | {name: weight})
    assert name in (text := folder_refusal(tmp_path)) and said in text


def test_a_damaged_shard_is_named(source: transformers.LlamaForCausalLM, tmp_path: Path) -> None:
    save_folder(tmp_path, LLAMA, source.state_dict(), 2)
    shard = tmp_path / "pytorch_model-00002-of-00002.bin"
    shard.write_bytes(shard.read_bytes()[:-1000])
    assert "pytorch_model-00002-of-00002.bin is damaged" in folder_refusal(tmp_path)


# Which files are the weights


def test_a_missing_shard_is_named_with_and_without_an_index(
    source: transformers.LlamaForCausalLM, tmp_path: Path
) -> None:
    save_folder(tmp_path, LLAMA, source.state_dict(), 3)
    (tmp_path / "pytorch_model-00003-of-00003.bin").unlink()
    assert "pytorch_model-00003-of-00003.bin is missing" in folder_refusal(tmp_path)
    (tmp_path / INDEX).unlink()
    assert "pytorch_model-00003-of-00003.bin is missing" in folder_refusal(tmp_path)


def test_shards_without_an_index(source: transformers.LlamaForCausalLM, tmp_path: Path) -> None:
    save_folder(tmp_path, LLAMA, source.state_dict(), 3)
    (tmp_path / INDEX).unlink()
    torch.save(Evil(tmp_path / "ran"), tmp_path / "training_args.bin")
    assert_same_logits(tmp_path, source(IDS).logits)


def test_an_index_that_puts_tensors_elsewhere(source: transformers.LlamaForCausalLM, tmp_path: Path) -> None:
    save_folder(tmp_path, LLAMA, source.state_dict(), 2)
    index = json.loads((tmp_path / INDEX).read_text())
    first, *rest = index["weight_map"].values()
    index["weight_map"] = dict(zip(index["weight_map"], [*rest, first], strict=True))
    (tmp_path / INDEX).write_text(json.dumps(index))
    assert_same_logits(tmp_path, source(IDS).logits)


@pytest.mark.parametrize("suffix", ["bin", "safetensors"])
def test_a_stale_index_beside_a_whole_file(suffix: str, source: transformers.LlamaForCausalLM, tmp_path: Path) -> None:
    save_folder(tmp_path, LLAMA, source.state_dict())
    whole = {"bin": "pytorch_model", "safetensors": "model"}[suffix]
    if suffix == "safetensors":
        save_file(source.state_dict(), tmp_path / "model.safetensors")
        (tmp_path / BIN).unlink()
    index = {"weight_map": {"model.norm.weight": f"{whole}-00001-of-00002.{suffix}"}}
    (tmp_path / f"{whole}.{suffix}.index.json").write_text(json.dumps(index))
    assert_same_logits(tmp_path, source(IDS).logits)


@pytest.mark.parametrize("content", ["[]", '{"weight_map": []}', '{"weight_map": {"a": 3}}', "{}"])
def test_a_damaged_index(content: str, source: transformers.LlamaForCausalLM, tmp_path: Path) -> None:
    save_folder(tmp_path, LLAMA, source.state_dict(), 2)
    (tmp_path / INDEX).write_text(content)
    assert f"{INDEX} " in folder_refusal(tmp_path)


def test_safetensors_are_preferred_where_they_are_whole(source: transformers.LlamaForCausalLM, tmp_path: Path) -> None:
    save_folder(tmp_path, LLAMA, source.state_dict() | {"model.norm.weight": torch.zeros(64)})
    whole = tmp_path / "model.safetensors"
    save_file(source.state_dict(), whole)
    assert_same_logits(tmp_path, source(IDS).logits)
    whole.rename(tmp_path / "model-00001-of-00002.safetensors")
    assert models.load(tmp_path, tier="fp32").model(IDS).abs().max() == 0  # those of the .bin file


# Early configs


def test_architectures_without_model_type() -> None:
    for name in ("LLaMAForCausalLM", "LlamaForCausalLM"):
        assert resolve({"architectures": [name]}).name == "llama"


def test_ids_of_the_first_converter_are_not_believed(source: transformers.LlamaForCausalLM, tmp_path: Path) -> None:
    early = {"architectures": ["LLaMAForCausalLM"], "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": -1}
    save_folder(tmp_path, LLAMA | early, source.state_dict())
    (tmp_path / "tokenizer.model").write_bytes(piece_model())
    loaded = models.load(tmp_path)
    assert loaded.stop_ids == {2} == {loaded.tokenizer.eos_id}
    assert loaded.chat_prompt([{"role": "user", "content": "sea"}]).stop_ids == {2}


@pytest.mark.parametrize(
    ("changes", "window"),
    [
        ({"max_sequence_length": 512, "max_position_embeddings": None}, 512),
        ({"max_sequence_length": 1024, "rope_scaling": {"type": "linear", "factor": 4.0}}, 1024),
        ({"max_position_embeddings": None}, 2048),
    ],
)
def test_windows_of_early_configs(changes: dict, window: int) -> None:
    config = LLAMA | changes
    assert models.footprint(config).context == window


def test_vicuna_16k_runs_at_a_quarter_of_its_positions(tmp_path: Path) -> None:
    """Its config says both lengths; positions are divided whatever the window is."""
    scaling = {"type": "linear", "factor": 4.0}
    model = llama(rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0})
    save_folder(tmp_path, LLAMA | {"max_sequence_length": 1024, "rope_scaling": scaling}, model.state_dict())
    loaded = models.load(tmp_path, tier="fp32")
    ids = torch.randint(300, (1, 600), generator=torch.Generator().manual_seed(2))
    assert loaded.context == 1024
    assert (loaded.model(ids) - model(ids).logits).abs().max() <= 1e-4


# What others quantized


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", None])
def test_other_quantizations_are_named(
    method: str | None, source: transformers.LlamaForCausalLM, tmp_path: Path
) -> None:
    about = {"load_in_4bit": True} | ({"quant_method": method} if method else {})
    save_folder(tmp_path, LLAMA | {"quantization_config": about}, source.state_dict())
    assert f"is quantized by {method or 'bitsandbytes'}" in (text := folder_refusal(tmp_path)) and "GGUF" in text
    assert resolve(glance(tmp_path)).family == "llama"


@pytest.mark.parametrize("ending", ["q_proj.qweight", "q_proj.weight.data", "q_proj.SCB"])
def test_tensors_of_other_quantizations(ending: str, source: transformers.LlamaForCausalLM, tmp_path: Path) -> None:
    extra = {f"model.layers.0.self_attn.{ending}": torch.ones(8, dtype=torch.int32)}
    save_folder(tmp_path, LLAMA, source.state_dict() | extra)
    assert "can't be read here; get the model's FP16 checkpoint" in folder_refusal(tmp_path)
