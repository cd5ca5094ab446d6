"""Adapters: what PEFT merges is what is loaded, beside the weights it is the same, and deltas give their target."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BloomConfig, GlmConfig, LlamaConfig, PreTrainedModel

import models
from models import CheckpointError
from models.formats.huggingface import HuggingFaceCheckpoint
from tests.made_tokenizers import make_folder
from tests.test_parity import published_glm
from tests.tiny import BAICHUAN_7B, CHATGLM, CHATGLM2, LLAMA, build, randomize, save_folder, write_gguf, write_lora

IDS = torch.tensor([[5, 17, 300, 42, 7, 99, 3]])
CLOSE = {"rtol": 0, "atol": 1e-5}

COMMON = {"vocab_size": 320, "hidden_size": 64, "eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0}
CONFIGS = {
    "llama": LlamaConfig(
        **COMMON, intermediate_size=96, num_hidden_layers=2, num_attention_heads=8, num_key_value_heads=4
    ),
    "llama-tied": LlamaConfig(
        **COMMON, intermediate_size=96, num_hidden_layers=2, num_attention_heads=8, tie_word_embeddings=True
    ),
    "llama-biased": LlamaConfig(
        **COMMON, intermediate_size=96, num_hidden_layers=2, num_attention_heads=8, attention_bias=True
    ),
    "bloom": BloomConfig(**COMMON, n_layer=2, n_head=8),
    "glm": GlmConfig(
        **COMMON,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=8,
        attention_bias=True,
    ),
}


def base_folder(folder: Path, kind: str) -> Path:
    model = AutoModelForCausalLM.from_config(CONFIGS[kind])
    randomize(model)
    model.tie_weights()
    model.save_pretrained(folder)
    return folder


def read_base(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def train(
    base: Path, folder: Path, *, resize: int | None = None, safetensors: bool = True, **options: Any
) -> torch.Tensor:
    """Saves an adapter with random numbers; returns the logits of PEFT's own merge."""
    model = read_base(base)
    if resize is not None:
        model.resize_token_embeddings(resize)
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **{"r": 4, "lora_alpha": 12, **options}))
    generator = torch.Generator().manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad:  # what PEFT fills at random is filled anew: B is zero to begin with
            kept = 0.0 if "lora_A" in name or "lora_embedding" in name else 1.0
            size = 0.01 if "magnitude" in name else 0.2
            parameter.data = kept * parameter.data + size * torch.randn(parameter.shape, generator=generator)
    adapted.save_pretrained(folder, safe_serialization=safetensors)
    merged = adapted.merge_and_unload().eval()
    with torch.no_grad():
        return merged(IDS).logits


@torch.no_grad()
def logits(loaded: models.LoadedModel) -> torch.Tensor:
    return loaded.model(IDS)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("bases")

    def base(kind: str) -> Path:
        return root / kind if (root / kind).exists() else base_folder(root / kind, kind)

    return base


LINEARS = ["q_proj", "v_proj", "o_proj", "gate_proj", "down_proj"]
ADAPTERS = {
    "plain": ("llama", {"target_modules": ["q_proj", "v_proj"]}),
    "every linear": ("llama", {"target_modules": "all-linear"}),
    "a pattern": ("llama", {"target_modules": r".*layers\.1\..*(k|up)_proj"}),
    "some layers": ("llama", {"target_modules": LINEARS, "layers_to_transform": [1]}),
    "rslora": ("llama", {"target_modules": LINEARS, "use_rslora": True}),
    "ranks and alphas": (
        "llama",
        {
            "target_modules": LINEARS,
            "rank_pattern": {"v_proj": 2, r"1\.mlp\.gate_proj": 6},
            "alpha_pattern": {"q_proj": 3},
        },
    ),
    "dora": ("llama", {"target_modules": LINEARS, "use_dora": True}),
    "biases": ("llama-biased", {"target_modules": ["q_proj"], "bias": "all"}),
    "biases of its own": ("llama-biased", {"target_modules": ["q_proj"], "bias": "lora_only"}),
    "embedding and head": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}),
    "a norm": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["input_layernorm"]}),
    "larger vocabulary": (
        "llama",
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"], "resize": 337},
    ),
    "resized, not trained": ("llama", {"target_modules": ["q_proj"], "resize": 337}),
    "changed embedding": ("llama", {"target_modules": ["q_proj", "embed_tokens"]}),
    "head of its own": ("llama-tied", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "head": ("llama", {"target_modules": ["lm_head", "q_proj"]}),
    "bin": ("llama", {"target_modules": ["q_proj"], "safetensors": False}),
    "bloom": ("bloom", {"target_modules": ["query_key_value", "dense_h_to_4h"]}),
    "bloom, every linear, biases": ("bloom", {"target_modules": "all-linear", "bias": "all"}),
    "glm": ("glm", {"target_modules": ["q_proj", "v_proj", "gate_up_proj"]}),
    "glm, all parts": (
        "glm",
        {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"], "rank_pattern": {"k_proj": 2}},
    ),
}
#: Those that can stay beside the weights.
BESIDE = {
    "plain", "every linear", "a pattern", "some layers", "rslora", "ranks and alphas", "bin", "bloom", "glm",
    "glm, all parts",
}  # fmt: skip


@pytest.mark.parametrize("name", ADAPTERS)
def test_merged_as_by_peft_and_the_same_beside(bases: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    kind, options = ADAPTERS[name]
    expected = train(bases(kind), tmp_path / "adapter", **options)
    plain = models.load(bases(kind), tier="fp32")
    merged = models.load(bases(kind), tier="fp32", adapter=tmp_path / "adapter")
    assert (logits(plain)[..., :320] - expected[..., :320]).abs().max() > 0.05  # it changes something
    torch.testing.assert_close(logits(merged), expected, **CLOSE)
    assert plain.accepts(tmp_path / "adapter")
    assert plain.can_switch(tmp_path / "adapter") == (name in BESIDE)
    if name in BESIDE:
        torch.testing.assert_close(logits(plain.with_adapter(tmp_path / "adapter")), expected, **CLOSE)
    else:
        with pytest.raises(CheckpointError, match="can't be switched"):
            plain.with_adapter(tmp_path / "adapter")


@pytest.mark.parametrize("tier", ["fp16", "int8", "int4"])
@pytest.mark.parametrize("kind", ["llama", "bloom"])
def test_a_tier_with_an_adapter_is_the_tier_of_the_merged_checkpoint(
    bases: Callable[[str], Path], tmp_path: Path, kind: str, tier: str
) -> None:
    """Merging comes first, in float32; then the tier rounds, as if the merged weights had been published."""
    whole = train(bases(kind), tmp_path / "adapter", target_modules="all-linear")
    merged = PeftModel.from_pretrained(read_base(bases(kind)), tmp_path / "adapter").merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    published = logits(models.load(tmp_path / "merged", tier=tier))
    found = logits(models.load(bases(kind), tier=tier, adapter=tmp_path / "adapter"))
    beside = logits(models.load(bases(kind), tier=tier, adapter=tmp_path / "adapter", beside=True))
    # Sums in another order round a few weights the other way.
    assert distance(found, published) < 0.5 * TIER_BOUNDS[tier]
    assert distance(published, whole) < TIER_BOUNDS[tier]
    assert distance(found, whole) < TIER_BOUNDS[tier]
    assert distance(beside, whole) < TIER_BOUNDS[tier]


#: How far a tier's logits may be from float32's, relative, on these random weights.
TIER_BOUNDS = {"fp16": 2e-3, "int8": 0.08, "int4": 0.4}


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("kind", ["F32", "Q8_0", "Q4_0", "Q5_0"])
def test_gguf_bases(tmp_path: Path, kind: str) -> None:
    """Touched matrices of a quantized file are made whole, changed, and quantized again; the others stay."""
    model = save_folder(tmp_path / "base", LLAMA)
    write_gguf(tmp_path / "base.gguf", model, LLAMA, gguf.GGMLQuantizationType[kind])
    train(tmp_path / "base", tmp_path / "adapter", target_modules=["q_proj", "down_proj"])
    plain = models.load(tmp_path / "base.gguf", tier="fp32")
    adapted = models.load(tmp_path / "base.gguf", tier="fp32", adapter=tmp_path / "adapter")
    torch.testing.assert_close(logits(plain.with_adapter(tmp_path / "adapter")), logits(adapted), **CLOSE)
    assert (logits(plain) - logits(adapted)).abs().max() > 0.05
    packed = models.load(tmp_path / "base.gguf", tier="int8", adapter=tmp_path / "adapter")
    assert distance(logits(packed), logits(adapted)) < TIER_BOUNDS["int8"]


def rename(folder: Path, change: Callable[[str], str]) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file({change(name): tensor for name, tensor in tensors.items()}, folder / "adapter_model.safetensors")


@pytest.mark.parametrize(
    "change",
    [
        lambda name: name.removeprefix("base_model.model."),
        lambda name: name.replace(".weight", ".default.weight") if "lora" in name else name,
        lambda name: name.replace("embed_tokens.weight", "embed_tokens.modules_to_save.default.weight"),
        lambda name: name.replace("lm_head.weight", "lm_head.modules_to_save.weight"),
    ],
    ids=["no prefix", "default", "modules_to_save.default", "modules_to_save"],
)
def test_spellings(bases: Callable[[str], Path], tmp_path: Path, change: Callable[[str], str]) -> None:
    options = {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}
    expected = train(bases("llama"), tmp_path, **options)
    rename(tmp_path, change)
    torch.testing.assert_close(logits(models.load(bases("llama"), tier="fp32", adapter=tmp_path)), expected, **CLOSE)


@pytest.mark.parametrize("published", ["without", "with"])
def test_blooms_optional_prefix(bases: Callable[[str], Path], tmp_path: Path, published: str) -> None:
    """Base and adapter may each have the prefix or lack it."""
    expected = train(bases("bloom"), tmp_path / "adapter", target_modules=["query_key_value"])
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_bytes((bases("bloom") / "config.json").read_bytes())
    tensors = load_file(bases("bloom") / "model.safetensors")
    save_file(
        {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}, bare / "model.safetensors"
    )
    if published == "without":
        rename(tmp_path / "adapter", lambda name: name.replace("model.transformer.", "model."))
    for base in (bare, bases("bloom")):
        torch.testing.assert_close(
            logits(models.load(base, tier="fp32", adapter=tmp_path / "adapter")), expected, **CLOSE
        )


# Written by hand: fused matrices, whose modelling code PEFT would have to be given


FUSED = {
    "chatglm": (CHATGLM, "transformer.layers.{}.attention.query_key_value", (192, 64)),
    "chatglm2": (CHATGLM2, "transformer.encoder.layers.{}.self_attention.query_key_value", (96, 64)),
    "baichuan": (BAICHUAN_7B, "model.layers.{}.self_attn.W_pack", (192, 64)),
}


@pytest.mark.parametrize("family", FUSED)
def test_fused_targets(tmp_path: Path, family: str) -> None:
    config, module, shape = FUSED[family]
    model = save_folder(tmp_path / "base", config)
    added = write_lora(tmp_path / "adapter", {module.format(layer): shape for layer in (0, 2)})
    for name, matrix in added.items():
        model.get_parameter(name).data += matrix
    ids = torch.tensor([[5, 17, 42, 311, 314]])
    expected = model(ids)
    plain = models.load(tmp_path / "base", tier="fp32")
    merged = models.load(tmp_path / "base", tier="fp32", adapter=tmp_path / "adapter")
    torch.testing.assert_close(merged.model(ids), expected, **CLOSE)
    torch.testing.assert_close(plain.with_adapter(tmp_path / "adapter").model(ids), expected, **CLOSE)


def test_an_adapter_in_transformers_form_on_a_published_glm_and_the_other_way(
    bases: Callable[[str], Path], tmp_path: Path
) -> None:
    """GLM-4 was published in two forms; adapters of either fit both."""
    expected = train(bases("glm"), tmp_path / "parts", target_modules=["k_proj", "v_proj", "down_proj"])
    config = CHATGLM2 | {"num_layers": 2, "seq_length": 131072, "layernorm_epsilon": CONFIGS["glm"].rms_norm_eps}
    published = tmp_path / "published"
    published.mkdir()
    (published / "config.json").write_text(json.dumps(config))
    save_file(
        {name: tensor.contiguous() for name, tensor in published_glm(read_base(bases("glm")).state_dict())},
        published / "model.safetensors",
    )
    for loaded in (
        models.load(published, tier="fp32", adapter=tmp_path / "parts"),
        models.load(published, tier="fp32").with_adapter(tmp_path / "parts"),
    ):
        torch.testing.assert_close(logits(loaded), expected, **CLOSE)
    write_lora(tmp_path / "fused", {"transformer.encoder.layers.1.self_attention.query_key_value": (96, 64)})
    torch.testing.assert_close(
        logits(models.load(bases("glm"), tier="fp32", adapter=tmp_path / "fused")),
        logits(models.load(published, tier="fp32", adapter=tmp_path / "fused")),
        **CLOSE,
    )


def test_a_head_is_changed_before_baichuan2_norms_it(tmp_path: Path) -> None:
    config = BAICHUAN_7B | {"vocab_size": 125696, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    config |= {"num_attention_heads": 2, "num_key_value_heads": 2}
    model = save_folder(tmp_path / "base", config)
    added = write_lora(tmp_path / "adapter", {"lm_head": (125696, 8)})
    head = torch.nn.functional.normalize(model.lm_head.weight + added["lm_head.weight"], dim=-1)
    merged = models.load(tmp_path / "base", tier="fp32", adapter=tmp_path / "adapter")
    torch.testing.assert_close(merged.model.lm_head.weight.data, head, **CLOSE)


# Switching


def weights(loaded: models.LoadedModel) -> set[int]:
    return {parameter.data_ptr() for parameter in loaded.model.parameters()}


@pytest.mark.parametrize("tier", ["fp32", "int4"])
def test_switching_shares_the_weights_and_leaves_the_former_as_it_was(tmp_path: Path, tier: str) -> None:
    save_folder(tmp_path / "base", LLAMA)
    for name, module in {"a": "q_proj", "b": "o_proj"}.items():
        write_lora(tmp_path / name, {f"model.layers.1.self_attn.{module}": (64, 64)})
    plain = models.load(tmp_path / "base", tier=tier)
    before = logits(plain)
    first = plain.with_adapter(tmp_path / "a")
    second = first.with_adapter(tmp_path / "b")
    assert first.nbytes == second.nbytes == plain.nbytes + 4 * 4 * 128
    assert len(weights(second) - weights(plain)) == 2 and weights(plain) <= weights(second)
    assert not torch.equal(logits(first), before) and not torch.equal(logits(second), logits(first))
    assert torch.equal(logits(plain.with_adapter(tmp_path / "b")), logits(second))
    assert torch.equal(logits(second.with_adapter(None)), before) and torch.equal(logits(plain), before)
    assert second.with_chat_format("plain").with_adapter(None).wanted_format == "plain"


def test_what_was_merged_is_not_switched(tmp_path: Path) -> None:
    save_folder(tmp_path / "base", LLAMA)
    write_lora(tmp_path / "a", {"model.layers.1.self_attn.q_proj": (64, 64)})
    merged = models.load(tmp_path / "base", adapter=tmp_path / "a")
    assert not merged.can_switch(None) and not merged.can_switch(tmp_path / "a") and merged.accepts(tmp_path / "a")


def test_kept_tiers_belong_to_an_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_folder(tmp_path / "base", LLAMA)
    write_lora(tmp_path / "a", {"model.layers.1.self_attn.q_proj": (64, 64)})
    store = tmp_path / "quantized"

    def load(adapter: Path | None) -> torch.Tensor:
        return logits(models.load(tmp_path / "base", tier="int4", store=store, adapter=adapter))

    plain, adapted = load(None), load(tmp_path / "a")
    assert not torch.equal(plain, adapted) and len(list(store.iterdir())) == 2
    with monkeypatch.context() as closed:
        closed.setattr(HuggingFaceCheckpoint, "tensors", lambda self: pytest.fail("the base was read again"))
        assert torch.equal(load(None), plain) and torch.equal(load(tmp_path / "a"), adapted)
    write_lora(tmp_path / "a", {"model.layers.2.self_attn.q_proj": (64, 64)})
    assert not torch.equal(load(tmp_path / "a"), adapted)
    assert len(list(store.iterdir())) == 2  # the one of the former adapter is gone, the base's is not


# Tokenizers and formats


def test_a_chinese_alpaca_brings_vocabulary_tokenizer_and_format(tmp_path: Path) -> None:
    """As it was published: 49,954 rows of embedding and head, its tokenizer beside them."""
    make_folder("llama", tmp_path / "base")
    config = LLAMA | {"vocab_size": 32000, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    config |= {"num_attention_heads": 2, "num_key_value_heads": 2}
    save_folder(tmp_path / "base", config)
    adapter = make_folder("chinese-alpaca", tmp_path / "chinese-alpaca-lora-7b")
    (adapter / "config.json").unlink()
    write_lora(adapter, {"model.layers.0.self_attn.q_proj": (8, 8)}, modules_to_save=["embed_tokens", "lm_head"])
    tensors = load_file(adapter / "adapter_model.safetensors")
    rows = {f"base_model.model.{name}.weight": torch.randn(49954, 8) for name in ("model.embed_tokens", "lm_head")}
    save_file({**tensors, **rows}, adapter / "adapter_model.safetensors")
    loaded = models.load(tmp_path / "base", tier="fp32", adapter=adapter)
    assert loaded.model.args.vocab_size == loaded.checkpoint.config["vocab_size"] == 49954
    assert torch.equal(loaded.model.lm_head.weight, rows["base_model.model.lm_head.weight"])
    assert loaded.chat_format.name == "chinese-alpaca"
    own = (adapter / "tokenizer.model").read_bytes()
    assert own != (tmp_path / "base" / "tokenizer.model").read_bytes()
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "tokenizer.model").write_bytes(own)
    (tmp_path / "alone" / "config.json").write_text(json.dumps(config))
    assert loaded.tokenizer.encode("今天的天气很好") == models.load_tokenizer(tmp_path / "alone").encode(
        "今天的天气很好"
    )
    assert not models.load(tmp_path / "base").can_switch(adapter)


def test_the_base_keeps_its_tokenizer_and_the_adapters_name_chooses_the_format(tmp_path: Path) -> None:
    make_folder("llama", tmp_path / "llama-7b")
    save_folder(tmp_path / "llama-7b", LLAMA | {"vocab_size": 700})
    write_lora(tmp_path / "alpaca-lora-7b", {"model.layers.0.self_attn.q_proj": (64, 64)})
    plain = models.load(tmp_path / "llama-7b")
    adapted = plain.with_adapter(tmp_path / "alpaca-lora-7b")
    assert (plain.chat_format.name, adapted.chat_format.name) == ("plain", "alpaca")
    assert adapted.tokenizer.encode("hello") == plain.tokenizer.encode("hello")


# Deltas


def write_delta(folder: Path, config: dict[str, Any], base: dict[str, torch.Tensor], dtype: torch.dtype) -> None:
    """The difference between a random target and a base with fewer rows, as it was published."""
    target = build(config, seed=9).state_dict()
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    for name, tensor in target.items():
        known = base[name]
        rows = torch.zeros(len(tensor) - len(known), *tensor.shape[1:])
        target[name] = (tensor - torch.cat((known, rows))).to(dtype)
    save_file(target, folder / "model.safetensors")


@pytest.mark.parametrize("rows", [0, 1], ids=["v1.1", "v0"])
@pytest.mark.parametrize("form", ["folder", "gguf", "reversed"])
def test_base_and_delta_give_the_target(tmp_path: Path, rows: int, form: str) -> None:
    model = save_folder(tmp_path / "base", LLAMA)
    config = LLAMA | {"vocab_size": 320 + rows, "max_position_embeddings": 512}
    delta = tmp_path / "vicuna-7b-delta-v1.1"
    write_delta(delta, config, model.state_dict(), torch.float32)
    base = tmp_path / "base"
    if form == "gguf":
        base = tmp_path / "base.gguf"
        write_gguf(base, model, LLAMA)
    if form == "reversed":  # two shards, the other way round than the base's one
        (delta / "model.safetensors").rename(delta / "z.safetensors")
        tensors = load_file(delta / "z.safetensors")
        late = {name: tensors.pop(name) for name in list(tensors)[:5]}
        save_file(tensors, delta / "a.safetensors")
        save_file(late, delta / "z.safetensors")
    loaded = models.load(base, tier="fp32", adapter=delta)
    torch.testing.assert_close(logits(loaded), build(config, seed=9)(IDS), **CLOSE)
    assert loaded.context == 512
    assert not models.load(base).can_switch(delta)


def test_a_deltas_tokenizer_and_name_win(tmp_path: Path) -> None:
    make_folder("llama-new", tmp_path / "llama-7b")
    model = save_folder(tmp_path / "llama-7b", LLAMA | {"vocab_size": 700})
    delta = tmp_path / "vicuna-7b-delta-v1.1"
    write_delta(delta, LLAMA | {"vocab_size": 700}, model.state_dict(), torch.float16)
    (delta / "tokenizer.model").write_bytes((tmp_path / "llama-7b" / "tokenizer.model").read_bytes())
    loaded = models.load(tmp_path / "llama-7b", adapter=delta)
    assert loaded.chat_format.name == "vicuna"
    assert loaded.tokenizer.encode(" hello") == models.load_tokenizer(delta).encode(" hello")


# Whatever is wrong is a sentence


def sentence(base: Path, adapter: Path) -> str:
    """What loading says; a switch at run time says the same."""
    with pytest.raises(CheckpointError) as merged:
        models.load(base, tier="fp32", adapter=adapter)
    with pytest.raises(CheckpointError) as beside:
        models.load(base, tier="fp32", adapter=adapter, beside=True)
    assert str(beside.value) == str(merged.value)
    text = str(merged.value)
    assert text.endswith(".") and "\n" not in text
    return text


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A base and a good adapter, which a test then spoils."""
    save_folder(tmp_path / "base", LLAMA)
    write_lora(tmp_path / "adapter", {"model.layers.1.self_attn.q_proj": (64, 64)})
    models.load(tmp_path / "base", adapter=tmp_path / "adapter")
    return tmp_path / "base", tmp_path / "adapter"


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, folder / "adapter_model.safetensors")


A, B = (f"base_model.model.model.layers.1.self_attn.q_proj.lora_{side}.weight" for side in "AB")
Q = "model.layers.1.self_attn.q_proj"
DAMAGES: dict[str, tuple[Callable[[dict[str, torch.Tensor]], Any], str]] = {
    "one side is missing": (lambda t: t.pop(B), f"{Q}.lora_B is missing in .*adapter_model.safetensors"),
    "another rank": (lambda t: t.update({A: torch.ones(2, 64), B: torch.ones(64, 2)}), rf"{Q} .*\[2, 64\].* r = 4"),
    "sides of two ranks": (lambda t: t.update({A: torch.ones(3, 64)}), rf"{Q} .*\[3, 64\] and \[64, 4\]"),
    "a vector": (lambda t: t.update({A: torch.ones(64)}), Q),
    "more columns": (
        lambda t: t.update({A: torch.ones(4, 80)}),
        rf"{Q}, \[64, 80\] .*it is for made/tiny",
    ),
    "fewer rows": (lambda t: t.update({B: torch.ones(32, 4)}), rf"{Q}, \[32, 64\] .* \[64, 64\]"),
    "another module": (
        lambda t: t.update({A.replace("q_proj", "W_pack"): t[A], B.replace("q_proj", "W_pack"): t[B]}),
        "self_attn.W_pack, which this base does not have",
    ),
    "a further layer": (
        lambda t: t.update({A.replace(".1.", ".7.", 1): t[A], B.replace(".1.", ".7.", 1): t[B]}),
        "layers.7.self_attn.q_proj, which this base does not have",
    ),
    "no numbers": (lambda t: t[A].fill_(float("nan")), f"{Q} .*not numbers"),
    "integers": (lambda t: t.update({A: torch.ones(4, 64, dtype=torch.int8)}), f"{Q} .*int8"),
    "another kind of part": (lambda t: t.update({"base_model.model.ia3_l": torch.ones(4)}), "ia3_l, which is no part"),
    "nothing": (lambda t: t.clear(), "holds no tensors"),
    "a replacement of another size": (
        lambda t: t.update({"base_model.model.model.norm.weight": torch.ones(63)}),
        r"model.norm.weight, \[63\] .* \[64\]",
    ),
    "a longer embedding without its head": (
        lambda t: t.update({"base_model.model.model.embed_tokens.weight": torch.ones(330, 64)}),
        "lm_head.weight",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_tensors(pair: tuple[Path, Path], damage: str) -> None:
    change, expected = DAMAGES[damage]
    edit(pair[1], change)
    text = sentence(*pair)

    assert re.search(expected, text), text


SETTINGS = {
    "IA3": ({"peft_type": "IA3"}, "type IA3"),
    "prompts": ({"peft_type": "PROMPT_TUNING"}, "type PROMPT_TUNING"),
    "AdaLoRA": ({"peft_type": "ADALORA"}, "type ADALORA"),
    "the oldest form": ({"enable_lora": [True, False, True]}, "older than 0.3"),
    "biases": ({"lora_bias": True}, "biases"),
    "PiSSA": ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4"),
    "LoftQ": ({"init_lora_weights": "loftq"}, "loftq"),
    "no rank": ({"r": 0}, "impossible r: 0"),
    "no alpha": ({"lora_alpha": None}, "impossible lora_alpha: None"),
    "alpha as text": ({"alpha_pattern": {"q_proj": "8"}}, "impossible lora_alpha: '8'"),
    "a list of ranks": ({"rank_pattern": [4]}, "impossible rank_pattern"),
    "a broken pattern": ({"rank_pattern": {"(": 4}}, "impossible rank_pattern"),
    "repeated layers": ({"layer_replication": [[0, 1]]}, "repeats layers"),
}


@pytest.mark.parametrize("kind", SETTINGS)
def test_kinds_that_can_not_be_applied(pair: tuple[Path, Path], kind: str) -> None:
    settings, expected = SETTINGS[kind]
    write_lora(pair[1], {Q: (64, 64)}, **settings)
    assert expected in sentence(*pair)


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b"\xff\xfe"])
def test_damaged_settings(pair: tuple[Path, Path], content: bytes) -> None:
    (pair[1] / "adapter_config.json").write_bytes(content)
    assert "adapter_config.json" in sentence(*pair)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_model.bin"])
def test_cut_files(pair: tuple[Path, Path], name: str, share: float) -> None:
    whole = pair[1] / "adapter_model.safetensors"
    if name.endswith(".bin"):
        torch.save(load_file(whole), pair[1] / name)
        whole.unlink()
    data = (pair[1] / name).read_bytes()
    (pair[1] / name).write_bytes(data[: int(share * len(data))])
    assert f"{name} is damaged" in sentence(*pair)


def test_a_bin_that_would_run_code_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    (pair[1] / "adapter_model.safetensors").unlink()
    torch.save({"weight": Evil()}, pair[1] / "adapter_model.bin")
    assert "adapter_model.bin wants to run" in sentence(*pair)
    assert not (tmp_path / "ran").exists()


def test_files_in_the_form_before_zip(pair: tuple[Path, Path]) -> None:
    expected = logits(models.load(pair[0], tier="fp32", adapter=pair[1]))
    torch.save(
        load_file(pair[1] / "adapter_model.safetensors"),
        pair[1] / "adapter_model.bin",
        _use_new_zipfile_serialization=False,
    )
    (pair[1] / "adapter_model.safetensors").unlink()
    assert torch.equal(logits(models.load(pair[0], tier="fp32", adapter=pair[1])), expected)


def test_no_adapter(pair: tuple[Path, Path], tmp_path: Path) -> None:
    assert "nowhere is no adapter" in sentence(pair[0], tmp_path / "nowhere")
    assert "base is no adapter" in sentence(pair[0], pair[0])
    (pair[1] / "adapter_model.safetensors").unlink()
    assert "adapter_model.safetensors or .bin is missing" in sentence(*pair)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda t: t.pop("model.layers.1.mlp.up_proj.weight"), "model.layers.1.mlp.up_proj.weight is missing in"),
        (lambda t: t.update({"model.layers.1.mlp.up_proj.weight": torch.ones(95, 64)}), r"up_proj.weight .*\[95, 64\]"),
        (lambda t: t["model.norm.weight"].fill_(float("inf")), "model.norm.weight .*not numbers"),
    ],
    ids=["missing", "shape", "numbers"],
)
def test_damaged_deltas(tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], Any], expected: str) -> None:

    model = save_folder(tmp_path / "base", LLAMA)
    delta = tmp_path / "tiny-delta"
    write_delta(delta, LLAMA, model.state_dict(), torch.float32)
    tensors = load_file(delta / "model.safetensors")
    change(tensors)
    save_file(tensors, delta / "model.safetensors")
    assert re.search(expected, sentence(tmp_path / "base", delta))


def test_a_delta_to_another_model(tmp_path: Path) -> None:
    model = save_folder(tmp_path / "base", LLAMA)
    delta = tmp_path / "tiny-delta"
    write_delta(delta, LLAMA, model.state_dict(), torch.float32)
    save_folder(tmp_path / "other", LLAMA | {"hidden_size": 128})
    assert "its hidden_size is 64, the base's 128" in sentence(tmp_path / "other", delta)
    assert not models.load(tmp_path / "other").accepts(delta) and models.load(tmp_path / "base").accepts(delta)
