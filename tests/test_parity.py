"""Our forward passes against implementations that share no code with them: float32, at most 1e-4 apart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers

import models
from tests.tiny import LLAMA, randomize

TOLERANCE = 1e-4
LLAMAS = {
    "mha": {"num_key_value_heads": 8},
    "gqa": {"num_key_value_heads": 2},
    "tied": {"tie_word_embeddings": True},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "head_dim": {"head_dim": 24},
    "theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
    "linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
    "dynamic": {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}},
    "llama3": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    },
}


def random_ids(vocabulary: int, time: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(vocabulary, (1, time), generator=torch.Generator().manual_seed(seed))


def llama_reference(**changes) -> transformers.LlamaForCausalLM:
    reference = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**LLAMA, **changes})).eval()
    randomize(reference)
    reference.tie_weights()
    return reference


@pytest.fixture(params=LLAMAS)
def llama_pair(request: pytest.FixtureRequest, tmp_path: Path):
    """transformers' LLaMA, and ours loaded from what it saved."""
    reference = llama_reference(**LLAMAS[request.param])
    reference.save_pretrained(tmp_path)
    return reference, models.load(tmp_path, tier="fp32")


# 400 tokens are beyond the window of 256: there dynamic scaling changes the base.
@pytest.mark.parametrize("time", [64, 400])
@torch.inference_mode()
def test_llama_equals_transformers(llama_pair, time: int) -> None:
    reference, loaded = llama_pair
    ids = random_ids(LLAMA["vocab_size"], time)
    ours, theirs = loaded.model(ids), reference(ids).logits
    assert theirs.std() > 0.1
    torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=0)


@torch.inference_mode()
def test_llama_steps_equal_transformers(llama_pair) -> None:
    """Prompt in two chunks, then single steps, in a cache made for the whole length."""
    reference, loaded = llama_pair
    ids = random_ids(LLAMA["vocab_size"], 300)
    theirs = reference(ids).logits
    cache = loaded.new_cache(300)
    parts = [ids[:, :100], ids[:, 100:280], *ids[:, 280:].split(1, dim=1)]
    ours = torch.cat([loaded.model(part, cache) for part in parts], dim=1)
    torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=0)


@torch.inference_mode()
def test_sharded_checkpoint(tmp_path: Path) -> None:
    reference = llama_reference()
    reference.save_pretrained(tmp_path, max_shard_size="200KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    ids = random_ids(LLAMA["vocab_size"], 32)
    ours = models.load(tmp_path, tier="fp32").model(ids)
    torch.testing.assert_close(ours, reference(ids).logits, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(
    ("newer", "older"),
    [
        ({"rope_type": "default", "rope_theta": 500000.0}, {"rope_theta": 500000.0}),
        (
            {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
            {"rope_scaling": {"type": "linear", "factor": 4.0}},
        ),
    ],
    ids=["theta", "linear"],
)
@torch.inference_mode()
def test_config_before_transformers_5(tmp_path: Path, newer: dict, older: dict) -> None:
    """Older files say rope_theta and rope_scaling {"type": ...} where newer ones say rope_parameters."""
    reference = llama_reference(rope_parameters=newer)
    reference.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["rope_parameters"], config["head_dim"]
    (tmp_path / "config.json").write_text(json.dumps(config | older))
    ids = random_ids(LLAMA["vocab_size"], 64)
    ours = models.load(tmp_path, tier="fp32").model(ids)
    torch.testing.assert_close(ours, reference(ids).logits, atol=TOLERANCE, rtol=0)


@torch.inference_mode()
def test_half_precision_stays_close(tmp_path: Path) -> None:
    """fp16 weights and cache with float32 arithmetic: rounding shows, and no more than rounding."""
    reference = llama_reference()
    reference.save_pretrained(tmp_path)
    loaded = models.load(tmp_path, tier="fp16")
    ids = random_ids(LLAMA["vocab_size"], 64)
    cache = loaded.new_cache(64)
    assert cache.keys.dtype == torch.float16
    assert loaded.model.model.layers[0].self_attn.q_proj.weight.dtype == torch.float16
    ours = loaded.model(ids, cache)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, reference(ids).logits, atol=2e-2, rtol=0)
