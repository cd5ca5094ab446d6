"""Loading a Hugging Face folder: what is read, and one clear sentence for whatever is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import models
from models import CheckpointError, registry
from tests.tiny import LLAMA, byte_level_tokenizer, piece_model, save_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_folder(tmp_path / "tiny", LLAMA, byte_level_tokenizer())
    return tmp_path / "tiny"


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def reconfigure(folder: Path, **changes) -> None:
    config = {**LLAMA, **changes}
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value != "absent"}))


def refusal(path: Path, **options) -> str:
    with pytest.raises(CheckpointError) as caught:
        models.load(path, **{"tier": "fp32", **options})
    text = str(caught.value)
    assert "\n" not in text and text.endswith(".")
    return text


def test_what_is_loaded(folder: Path) -> None:
    seen = []
    loaded = models.load(folder, tier="fp16", progress=lambda done, total: seen.append((done, total)))
    assert (loaded.family, loaded.architecture, loaded.tier, loaded.context) == ("llama", "llama", "fp16", 256)
    assert loaded.stop_ids == {2}
    saved = load_file(folder / "model.safetensors")
    state = loaded.model.state_dict()
    assert state.keys() == saved.keys()
    for name, tensor in state.items():
        # Norms stay float32: they are small, and some are published so.
        assert tensor.dtype == (torch.float16 if tensor.ndim > 1 else torch.float32)
        assert torch.equal(tensor, saved[name].to(tensor.dtype))
    assert all(before <= after for (before, _), (after, _) in zip(seen, seen[1:], strict=False))
    assert 0.9 < seen[-1][0] / seen[-1][1] <= 1


def test_context_can_only_be_narrowed(folder: Path) -> None:
    assert models.load(folder, context=100).new_cache().capacity == 100
    assert models.load(folder, context=10_000).context == 256


def test_several_stop_ids(folder: Path) -> None:
    reconfigure(folder, eos_token_id=[2, 5])
    assert models.load(folder).stop_ids == {2, 5}
    reconfigure(folder, eos_token_id="absent")
    assert models.load(folder).stop_ids == frozenset()


def test_leftover_buffers_are_ignored(folder: Path) -> None:
    rewrite(folder, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}))
    models.load(folder)


def test_copy_of_a_tied_head_is_ignored(tmp_path: Path) -> None:
    config = LLAMA | {"tie_word_embeddings": True}
    save_folder(tmp_path, config)
    rewrite(tmp_path, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    assert "lm_head.weight" not in models.load(tmp_path).model.state_dict()


def test_missing_path(tmp_path: Path) -> None:
    assert "nowhere does not exist" in refusal(tmp_path / "nowhere")


def test_no_checkpoint(tmp_path: Path) -> None:
    assert "a folder without config.json" in refusal(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    assert "neither a folder nor a .gguf file" in refusal(tmp_path / "notes.txt")


@pytest.mark.parametrize(("content", "reason"), [("{", "damaged"), ("[1]", "JSON object"), ("\udc80", "damaged")])
def test_broken_config(folder: Path, content: str, reason: str) -> None:
    (folder / "config.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    text = refusal(folder)
    assert reason in text and "config.json" in text


def test_missing_config_values_are_named(folder: Path) -> None:
    reconfigure(folder, hidden_size="absent", vocab_size="absent")
    assert "lacks hidden_size, vocab_size" in refusal(folder)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_key_value_heads", 3),
        ("num_attention_heads", 0),
        ("num_hidden_layers", -2),
        ("hidden_size", "big"),
        ("hidden_size", 63),
        ("vocab_size", 2.5),
        ("hidden_act", "relu"),
        ("rope_scaling", {"type": "yarn", "factor": 4.0}),
        ("rope_scaling", {"type": "linear"}),
        ("rope_scaling", {"rope_type": "llama3", "factor": 8.0}),
    ],
)
def test_impossible_config_values_are_named(folder: Path, name: str, value: object) -> None:
    reconfigure(folder, **{name: value})
    text = refusal(folder)
    assert name in text and repr(value) in text


def test_unknown_architecture(folder: Path) -> None:
    reconfigure(folder, model_type="gpt_neox", architectures=["GPTNeoXForCausalLM"])
    text = refusal(folder)
    assert "gpt_neox" in text and "GPTNeoXForCausalLM" in text
    assert all(architecture.name in text for architecture in registry.ARCHITECTURES)


@pytest.mark.parametrize(("options", "named"), [({"tier": "int3"}, "int3"), ({"adapter": "lora"}, "lora is no")])
def test_what_can_not_be_made(folder: Path, options: dict, named: str) -> None:
    assert named in refusal(folder, **options)


def test_missing_tensor(folder: Path) -> None:
    rewrite(folder, lambda t: t.pop("model.layers.1.mlp.up_proj.weight"))
    assert "1 tensors are missing" in (text := refusal(folder))
    assert "model.layers.1.mlp.up_proj.weight" in text


def test_leftover_tensor(folder: Path) -> None:
    rewrite(folder, lambda t: t.update({"model.layers.9.mlp.up_proj.weight": torch.ones(2, 2)}))
    assert "model.layers.9.mlp.up_proj.weight, which its config.json has no place for" in refusal(folder)


def test_wrong_shape(folder: Path) -> None:
    rewrite(folder, lambda t: t.update({"model.norm.weight": torch.ones(63)}))
    assert "model.norm.weight" in (text := refusal(folder))
    assert "[63] instead of [64]" in text


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_truncated_weights(folder: Path, share: float) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    assert "model.safetensors is damaged or incomplete" in refusal(folder)


def test_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "No weights" in refusal(folder)


def test_missing_shard(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = {name: f"model-0000{1 + number % 2}-of-00002.safetensors" for number, name in enumerate(tensors)}
    for shard in set(names.values()):
        save_file({name: tensor for name, tensor in tensors.items() if names[name] == shard}, folder / shard)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": names}))
    assert models.load(folder).model.state_dict().keys() == tensors.keys()
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors is missing" in refusal(folder)


def test_an_index_can_not_reach_outside(folder: Path) -> None:
    outside = folder.parent / "model.safetensors"
    (folder / "model.safetensors").rename(outside)
    index = {"weight_map": {"model.norm.weight": "../model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model.safetensors.index.json is damaged" in refusal(folder)


def test_folder_without_tokenizer_loads_and_says_so_on_use(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    loaded = models.load(folder)
    assert loaded.model(torch.tensor([[1, 2]])).shape == (1, 2, LLAMA["vocab_size"])
    with pytest.raises(CheckpointError, match=r"tokenizer.json is missing in .*download it from the same repository\."):
        loaded.tokenizer.encode("text")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model", "tokenizer_config.json"])
@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b"\xff\xfe\x00"])
def test_damaged_tokenizer(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{name} (is damaged|should hold a JSON object)"):
        models.load_tokenizer(folder)


def test_tokenizer_alone(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    (tmp_path / "tokenizer.model").write_bytes(piece_model())
    assert models.load_tokenizer(tmp_path).decode(models.load_tokenizer(tmp_path).encode("the sea")) == "the sea"
