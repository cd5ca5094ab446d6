"""P-tuning prefixes: the same logits as implementations that share no code with ours, in every way a cache is used."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

import models
from chatapp.checkpoints import find, find_adapters
from chatapp.planner import footprint_of
from models import CheckpointError, footprint
from models.formats import is_adapter
from models.generate import prefill
from tests import reference, tiny
from tests.test_parity import CHATGLM_WIDE, TOLERANCE, chat_ids, glm, published_glm, random_ids, save
from tests.tiny import CHATGLM, CHATGLM2, LLAMA

ROWS = 7
CHATGLM2_WIDE = CHATGLM2 | {"hidden_size": 256, "num_attention_heads": 4, "kv_channels": 128, "seq_length": 2048}
#: (ids [1, time], the prefix's numbers [ROWS, ..]) -> logits [1, time, vocabulary]
Reference = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def write_chatglm(folder: Path) -> Reference:
    weights = reference.random_weights(reference.chatglm_shapes(CHATGLM_WIDE))
    weights["lm_head.weight"] = weights["transformer.word_embeddings.weight"].clone()
    save(folder, CHATGLM_WIDE, weights)

    def logits(ids: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        rows = ids[0].tolist()
        return torch.from_numpy(reference.chatglm(weights, CHATGLM_WIDE, rows, len(rows), prefix=numbers))[None]

    return logits


def write_chatglm2(folder: Path) -> Reference:
    model = glm(10000.0, CHATGLM2_WIDE["layernorm_epsilon"])
    save(folder, CHATGLM2_WIDE, dict(published_glm(model.state_dict())))

    def logits(ids: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        """transformers' own cache, filled by hand; positions begin at 0 behind it, and every row sees it."""
        cache, time = transformers.DynamicCache(config=model.config), ids.shape[1]
        for layer, part in enumerate(numbers.chunk(3, dim=1)):
            keys, values = (half.view(1, ROWS, 2, 128).transpose(1, 2) for half in part.chunk(2, dim=1))
            cache.update(keys, values, layer)
        seen = torch.cat([torch.ones(time, ROWS), torch.ones(time, time).tril()], dim=1).bool()
        mask = torch.zeros(seen.shape).masked_fill(~seen, float("-inf"))[None, None]
        place = torch.arange(time)[None]
        return model(ids, attention_mask=mask, position_ids=place, past_key_values=cache, use_cache=True).logits

    return logits


#: How many numbers a row has, and how wide the embedding is where it is projected.
CASES = {
    "chatglm": (write_chatglm, chat_ids, 3 * 2 * 256, 256),
    "chatglm2": (write_chatglm2, random_ids, 3 * 2 * 2 * 128, 3 * 2 * 2 * 128),
}


class Case:
    """A base checkpoint in a folder, a prefix beside it, and what they give together."""

    def __init__(self, name: str, folder: Path, projected: bool = False) -> None:
        write, self.ids, numbers, width = CASES[name]
        self.base, self.adapter = folder / "base", folder / "output" / "checkpoint-3000"
        self.base.mkdir(parents=True)
        self._logits = write(self.base)
        shapes = {"embedding.weight": (ROWS, numbers)}
        if projected:
            shapes = {
                "embedding.weight": (ROWS, width),
                "trans.0.weight": (256, width),
                "trans.0.bias": (256,),
                "trans.2.weight": (numbers, 256),
                "trans.2.bias": (numbers,),
            }
        self.tensors = reference.random_weights(shapes, seed=1)
        self.tensors["embedding.weight"] *= 10
        self.write_adapter(projected)

    def write_adapter(self, projected: bool, **changes: Any) -> None:
        config = json.loads((self.base / "config.json").read_text())
        config |= {"pre_seq_len": ROWS, "prefix_projection": projected} | changes
        self.adapter.mkdir(parents=True, exist_ok=True)
        save(self.adapter, config, {f"transformer.prefix_encoder.{name}": t for name, t in self.tensors.items()})

    def load(self, tier: str = "fp32") -> models.LoadedModel:
        return models.load(self.base, tier, adapter=self.adapter)

    def expected(self, ids: torch.Tensor) -> torch.Tensor:
        rows = self.tensors["embedding.weight"]
        if "trans.0.weight" in self.tensors:
            inner = torch.tanh(rows @ self.tensors["trans.0.weight"].T + self.tensors["trans.0.bias"])
            rows = inner @ self.tensors["trans.2.weight"].T + self.tensors["trans.2.bias"]
        return self._logits(ids, rows)


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    return Case(request.param, tmp_path)


@pytest.mark.parametrize("projected", [False, True], ids=["plain", "projected"])
@pytest.mark.parametrize("name", CASES)
@torch.inference_mode()
def test_parity(name: str, projected: bool, tmp_path: Path, record_property) -> None:
    case = Case(name, tmp_path, projected)
    ids = case.ids(64)
    expected = case.expected(ids)
    loaded = case.load()
    ours = loaded.model(ids, loaded.new_cache(64))
    difference = (ours.double() - expected.double()).abs().max().item()
    record_property("largest difference", difference)
    print(f" {difference:.1e}")
    assert difference <= TOLERANCE
    bare = models.load(case.base, "fp32")
    assert (bare.model(ids, bare.new_cache(64)) - expected).abs().max() > 100 * TOLERANCE


@torch.inference_mode()
def test_chunks_and_single_steps(case: Case) -> None:
    loaded, ids = case.load(), case.ids(600)
    cache = loaded.new_cache(600)
    *_, row = prefill(loaded.model, ids[0, :-20].tolist(), cache)
    ours = torch.cat([row[None, None], *(loaded.model(step, cache) for step in ids[:, -20:].split(1, dim=1))], dim=1)
    assert cache.length == cache.capacity == 600
    torch.testing.assert_close(ours.double(), case.expected(ids)[:, -21:].double(), atol=TOLERANCE, rtol=0)


@torch.inference_mode()
def test_a_cut_cache_keeps_its_prefix(case: Case) -> None:
    """Back to the prompt's end, and back to nothing at all."""
    loaded, ids = case.load(), case.ids(64)
    cache = loaded.new_cache(64)
    first = loaded.model(ids, cache)
    cache.truncate(50)
    again = loaded.model(ids[:, 50:], cache)
    torch.testing.assert_close(again, first[:, 50:], atol=TOLERANCE, rtol=0)
    cache.truncate(0)
    assert torch.equal(loaded.model(ids, cache), first)
    with pytest.raises(ValueError, match="64 positions, 65"):
        loaded.model(ids[:, :1], cache)


@pytest.mark.parametrize("tier", ["fp16", "int8", "int4"])
def test_every_tier_brings_it(case: Case, tier: str) -> None:
    loaded = case.load(tier)
    cache = loaded.new_cache(20)
    assert cache.keys.dtype == torch.float16 and cache.capacity == 20 and cache.length == 0
    first_key = case.tensors["embedding.weight"][:, :128].half()
    torch.testing.assert_close(cache.keys[0, 0, 0, :ROWS], first_key, atol=0, rtol=0)
    assert not cache.keys[:, :, :, ROWS:].any()


@torch.inference_mode()
def test_a_checkpoint_with_its_own_prefix(case: Case, tmp_path: Path) -> None:
    """The first P-tuning scripts saved the whole model; a tier that is kept on disk must not lose the prefix."""
    loaded, ids = case.load("int8"), case.ids(30)
    whole = tmp_path / "whole"
    whole.mkdir()
    tensors = load_file(case.base / "model.safetensors") | load_file(case.adapter / "model.safetensors")
    save(whole, json.loads((case.adapter / "config.json").read_text()), tensors)
    expected = loaded.model(ids, loaded.new_cache(30))
    for _ in range(2):  # made, then read from the store
        own = models.load(whole, "int8", store=tmp_path / "store")
        assert torch.equal(own.model(ids, own.new_cache(30)), expected)


@pytest.mark.parametrize("tier", ["fp32", "fp16"])
def test_memory_is_counted(case: Case, tier: str) -> None:
    loaded = case.load(tier)
    config = json.loads((case.adapter / "config.json").read_text())
    needs, bare = footprint(config), footprint(config | {"pre_seq_len": None})
    assert needs.cache(tier, 40) == loaded.new_cache(40).nbytes == bare.cache(tier, 40 + ROWS)
    assert needs.weights(tier) == loaded.nbytes
    assert needs.weights(tier) - bare.weights(tier) == bare.cache(tier, ROWS)


def test_the_weight_file_may_be_named(case: Case) -> None:
    assert is_adapter(case.adapter) and is_adapter(case.adapter / "model.safetensors")
    assert not is_adapter(case.base) and not is_adapter(case.base / "nowhere") and not is_adapter(case.adapter.parent)
    named = models.load(case.base, adapter=case.adapter / "model.safetensors")
    assert named.prefix.rows == ROWS


@torch.inference_mode()
def test_as_the_training_scripts_save_it(case: Case) -> None:
    """pytorch_model.bin beside config.json; either the folder or the file may be named."""
    expected = case.load().prefix
    tensors = load_file(case.adapter / "model.safetensors")
    (case.adapter / "model.safetensors").unlink()
    torch.save(tensors, case.adapter / "pytorch_model.bin")
    for adapter in (case.adapter, case.adapter / "pytorch_model.bin"):
        found = models.load(case.base, "fp32", adapter=adapter).prefix
        assert torch.equal(found.keys, expected.keys) and torch.equal(found.values, expected.values)


def said(base: Path, adapter: Path | None = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        models.load(base, adapter=adapter)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_prefix_alone_is_no_model(case: Case) -> None:
    assert "holds a P-tuning prefix and no model" in said(case.adapter)


def test_a_prefix_of_another_model(case: Case, tmp_path: Path) -> None:
    other = tmp_path / "other"
    tiny.save_folder(other, CHATGLM)
    assert "instead of [7, " in said(other, case.adapter)
    tiny.save_folder(tmp_path / "llama", LLAMA)
    assert "is for a ChatGLM, and the base is none" in said(tmp_path / "llama", case.adapter)


def test_what_is_wrong_with_a_prefix_is_said(case: Case) -> None:
    case.write_adapter(projected=False, pre_seq_len=8)
    assert "has the shape [7, " in said(case.base, case.adapter)
    case.write_adapter(projected=False, pre_seq_len="many")
    assert "impossible pre_seq_len: 'many'" in said(case.base, case.adapter)
    case.tensors["embedding.weight"][3, 3] = float("nan")
    case.write_adapter(projected=False)
    assert "not numbers" in said(case.base, case.adapter)
    del case.tensors["embedding.weight"]
    case.write_adapter(projected=False)
    assert "embedding.weight is missing" in said(case.base, case.adapter)


def test_a_projection_without_its_linears(tmp_path: Path) -> None:
    case = Case("chatglm2", tmp_path)
    case.write_adapter(projected=True)
    assert "transformer.prefix_encoder.trans.0.weight is missing" in said(case.base, case.adapter)


def test_a_config_that_says_more_than_its_weights(case: Case) -> None:
    config = json.loads((case.base / "config.json").read_text())
    (case.base / "config.json").write_text(json.dumps(config | {"pre_seq_len": ROWS}))
    assert "transformer.prefix_encoder.embedding.weight is missing" in said(case.base)


def test_a_damaged_prefix(case: Case) -> None:
    whole = (case.adapter / "model.safetensors").read_bytes()
    (case.adapter / "model.safetensors").write_bytes(whole[:-10])
    assert "lies behind its end" in said(case.base, case.adapter)
    (case.adapter / "config.json").write_text("{")
    assert "is no adapter" in said(case.base, case.adapter)


@torch.inference_mode()
def test_it_is_switched_without_reading_the_model_again(case: Case, tmp_path: Path) -> None:
    """And no second INT4 tier is kept, since no weight changes."""
    plain = models.load(case.base, "int4", store=tmp_path / "store")
    tuned = models.load(case.base, "int4", store=tmp_path / "store", adapter=case.adapter)
    assert len(list((tmp_path / "store").iterdir())) == 1
    ids = case.ids(30)
    switched = plain.with_adapter(case.adapter)
    assert switched.model is plain.model
    assert torch.equal(switched.model(ids, switched.new_cache(30)), tuned.model(ids, tuned.new_cache(30)))
    assert switched.with_adapter(None).prefix is tuned.with_adapter(None).prefix is None
    assert tuned.accepts(case.adapter)


def test_what_the_application_makes_of_it(case: Case) -> None:
    folders = [case.base.parent]
    assert [found.path for found in find(folders)] == [case.base]
    assert [found.path for found in find_adapters(folders)] == [case.adapter]
    tuned, plain = footprint_of(case.base, case.adapter), footprint_of(case.base)
    assert (tuned.prefix, plain.prefix) == (ROWS, 0)
    assert tuned.cache("fp16", 100) == plain.cache("fp16", 100 + ROWS)
