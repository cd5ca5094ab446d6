"""Meta's own LLaMA folders, made from transformers' models by the published permutation and cuts."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import models
from models import CheckpointError, footprint
from models.formats import open_checkpoint
from models.formats.meta import MetaCheckpoint
from models.tokenizers.reading import LLAMA3_SPECIALS
from tests.made_tokenizers import rank_lines
from tests.tiny import LLAMA, piece_model, randomize

IDS = torch.randint(300, (1, 40), generator=torch.Generator().manual_seed(1))
PARAMS = {"dim": 64, "n_layers": 3, "n_heads": 8, "multiple_of": 32, "norm_eps": 1e-5, "vocab_size": -1}
INNER = 192  #: two thirds of 4 x 64 are 170; the next multiple of 32

#: Hugging Face's ending of a name -> Meta's, and the dimension that several files share.
NAMES = {
    "self_attn.q_proj": ("attention.wq", 0),
    "self_attn.k_proj": ("attention.wk", 0),
    "self_attn.v_proj": ("attention.wv", 0),
    "self_attn.o_proj": ("attention.wo", 1),
    "mlp.gate_proj": ("feed_forward.w1", 0),
    "mlp.down_proj": ("feed_forward.w2", 1),
    "mlp.up_proj": ("feed_forward.w3", 0),
    "input_layernorm": ("attention_norm", None),
    "post_attention_layernorm": ("ffn_norm", None),
    "embed_tokens": ("tok_embeddings", 1),
    "norm": ("norm", None),
    "lm_head": ("output", 0),
}


def llama(**changes: Any) -> transformers.LlamaForCausalLM:
    config = {**LLAMA, "num_key_value_heads": 8, "intermediate_size": INNER, **changes}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config)).eval()
    randomize(model)
    model.tie_weights()
    return model.requires_grad_(False)


def meta_name(name: str) -> tuple[str, int | None]:
    ours, dim = next(NAMES[ending] for ending in NAMES if name.endswith(f"{ending}.weight"))
    layer = name.split(".")[2] if ".layers." in name else None
    return (f"layers.{layer}.{ours}.weight" if layer else f"{ours}.weight"), dim


def save(
    folder: Path, model: transformers.LlamaForCausalLM, shards: int = 1, cut_tokens: bool = False, **changes: Any
) -> Path:
    """Writes params.json and the files; `cut_tokens`: the embedding is cut by rows, as in Llama 3."""
    folder.mkdir(parents=True, exist_ok=True)
    given = {key: value for key, value in (PARAMS | changes).items() if value is not None}
    (folder / "params.json").write_text(json.dumps(given))
    states: list[dict] = [{"rope.freqs": torch.ones(4)} for _ in range(shards)]
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = tensor.shape[0] // 8
            tensor = tensor.view(heads, 2, 4, 64).transpose(1, 2).reshape(tensor.shape)
        ours, dim = meta_name(name)
        dim = 0 if cut_tokens and ours == "tok_embeddings.weight" else dim
        parts = [tensor] * shards if dim is None else tensor.chunk(shards, dim)
        for state, part in zip(states, parts, strict=True):
            state[ours] = part.clone()
    for number, state in enumerate(states):
        torch.save(state, folder / f"consolidated.{number:02}.pth")
    return folder


def assert_same(folder: Path, model: transformers.LlamaForCausalLM) -> None:
    loaded = models.load(folder, tier="fp32")
    assert (loaded.family, loaded.architecture) == ("llama", "llama")
    assert (loaded.model(IDS) - model(IDS).logits).abs().max() <= 1e-4


@pytest.mark.parametrize("shards", [1, 2, 4])
@pytest.mark.parametrize("kv_heads", [8, 4])
def test_logits_are_those_of_the_source(shards: int, kv_heads: int, tmp_path: Path) -> None:
    model = llama(num_key_value_heads=kv_heads)
    assert_same(save(tmp_path, model, shards, n_kv_heads=None if kv_heads == 8 else kv_heads), model)
    assert models.load(tmp_path, tier="int4").model(IDS).isfinite().all()


def test_llama_3(tmp_path: Path) -> None:
    """Rows of the embedding are cut, the rotation is stretched, the head is the embedding."""
    scaling = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    model = llama(num_key_value_heads=4, rope_parameters=scaling, tie_word_embeddings=True)
    about = {"n_kv_heads": 4, "rope_theta": 500000.0, "use_scaled_rope": True, "vocab_size": 320}
    assert_same(save(tmp_path, model, 2, cut_tokens=True, **about), model)
    assert models.load(tmp_path).context == 131072


LLAMA1 = {"dim": 4096, "multiple_of": 256, "n_heads": 32, "n_layers": 32, "norm_eps": 1e-6, "vocab_size": -1}
LLAMA1_65B = {"dim": 8192, "multiple_of": 256, "n_heads": 64, "n_layers": 80, "norm_eps": 1e-5, "vocab_size": -1}
LLAMA2 = LLAMA1 | {"norm_eps": 1e-5}
LLAMA2_70B = LLAMA1_65B | {"multiple_of": 4096, "n_kv_heads": 8, "ffn_dim_multiplier": 1.3}
LLAMA3 = {
    "dim": 4096, "n_layers": 32, "n_heads": 32, "n_kv_heads": 8, "vocab_size": 128256, "multiple_of": 1024,
    "ffn_dim_multiplier": 1.3, "norm_eps": 1e-05, "rope_theta": 500000.0,
}  # fmt: skip
LLAMA32_1B = LLAMA3 | {
    "dim": 2048, "n_layers": 16, "multiple_of": 256, "ffn_dim_multiplier": 1.5, "use_scaled_rope": True,
}  # fmt: skip
CODE_LLAMA = LLAMA1 | {"norm_eps": 1e-5, "rope_theta": 1000000}
#: params.json as published, the folder's name, and what must come of it: window, inner size, end of text.
PUBLISHED = {
    "LLaMA 7B": (LLAMA1, "7B", 2048, 11008, 2),
    "LLaMA 13B": (LLAMA1 | {"dim": 5120, "n_heads": 40, "n_layers": 40}, "13B", 2048, 13824, 2),
    "LLaMA 30B": (LLAMA1 | {"dim": 6656, "n_heads": 52, "n_layers": 60}, "30B", 2048, 17920, 2),
    "LLaMA 65B": (LLAMA1_65B, "65B", 2048, 22016, 2),
    "LLaMA 2 7B": (LLAMA2, "llama-2-7b", 4096, 11008, 2),
    "LLaMA 2 7B, early": (LLAMA1, "llama-2-7b-chat", 4096, 11008, 2),
    "LLaMA 2 70B": (LLAMA2_70B, "llama-2-70b", 4096, 28672, 2),
    "Code Llama 7B": (CODE_LLAMA, "CodeLlama-7b", 16384, 11008, 2),
    "Llama 3 8B": (LLAMA3, "Meta-Llama-3-8B", 8192, 14336, [128001, 128008, 128009]),
    "Llama 3.1 8B": (LLAMA3 | {"use_scaled_rope": True}, "original", 131072, 14336, [128001, 128008, 128009]),
    "Llama 3.2 1B": (LLAMA32_1B, "Llama3.2-1B", 131072, 8192, [128001, 128008, 128009]),
}


@pytest.mark.parametrize(("params", "name", "window", "inner", "eos"), PUBLISHED.values(), ids=PUBLISHED)
def test_published_params(params: dict, name: str, window: int, inner: int, eos: object, tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir()
    (folder / "params.json").write_text(json.dumps(params))
    dim, tokens = params["dim"], 128256 if params["vocab_size"] > 0 else 32000
    empty = torch.zeros(1).half()
    state = {  # shapes are all that is looked at
        "tok_embeddings.weight": empty.expand(tokens, dim),
        "layers.0.attention.wq.weight": empty.expand(dim, dim),
        "output.weight": empty.expand(tokens, dim),
    }
    torch.save(state, folder / "consolidated.00.pth")
    config = open_checkpoint(folder).config
    assert (config["max_position_embeddings"], config["intermediate_size"]) == (window, inner)
    assert (config["vocab_size"], config["eos_token_id"]) == (tokens, eos)
    assert footprint(config).context == window
    scaling = config["rope_scaling"]
    assert (scaling and scaling["factor"]) == {"Llama3.2-1B": 32.0, "original": 8.0}.get(name)


# Tokenizers


@pytest.mark.parametrize("above", [False, True])
def test_sentencepiece_model_beside_or_above(above: bool, tmp_path: Path) -> None:
    folder = save(tmp_path / "llama" / "7B", llama())
    (folder.parent if above else folder).joinpath("tokenizer.model").write_bytes(piece_model())
    loaded = models.load(folder)
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("the sea")) == "the sea"
    assert [*loaded.tokenizer.prefix_ids] == [1] and loaded.stop_ids == {2}


def test_llama_3_has_a_tiktoken_file(tmp_path: Path) -> None:
    folder = save(tmp_path / "Meta-Llama-3-8B-Instruct", llama(), rope_theta=500000.0)
    lines = (b"%s %d\n" % (base64.b64encode(token), rank) for token, rank in rank_lines().items())
    (folder / "tokenizer.model").write_bytes(b"".join(lines))
    loaded = models.load(folder)
    first = len(rank_lines())
    named = {control: loaded.tokenizer.controls[control] - first for control in ("<|eom_id|>", "<|eot_id|>")}
    assert named == {"<|eom_id|>": 8, "<|eot_id|>": 9} and len(loaded.tokenizer.controls) == len(LLAMA3_SPECIALS) == 256
    assert [*loaded.tokenizer.prefix_ids] == [first] and loaded.tokenizer.eos_id == first + 1
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("你好, the sea <|eot_id|>")) == "你好, the sea <|eot_id|>"
    assert loaded.chat_format.name == "llama-3"


def test_without_a_tokenizer(tmp_path: Path) -> None:
    loaded = models.load(save(tmp_path / "7B", llama()))
    with pytest.raises(CheckpointError, match=r"tokenizer\.model.* is missing in .*7B"):
        loaded.tokenizer.encode("text")


# Damage


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        models.load(folder, tier="fp32")
    text = str(caught.value)
    assert "\n" not in text and text.endswith(".")
    return text


def change(folder: Path, number: int, **changes: torch.Tensor | None) -> None:
    file = folder / f"consolidated.{number:02}.pth"
    state = torch.load(file, weights_only=True) | {name.replace("__", "."): value for name, value in changes.items()}
    torch.save({name: value for name, value in state.items() if value is not None}, file)


def test_a_missing_shard_is_named_even_the_last(tmp_path: Path) -> None:
    folder = save(tmp_path, llama(), 4)
    (folder / "consolidated.03.pth").unlink()
    assert "consolidated.03.pth is missing" in refusal(folder)
    (folder / "consolidated.00.pth").unlink()
    assert not MetaCheckpoint.recognises(folder)


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    file = save(tmp_path, llama(), 2) / "consolidated.01.pth"
    file.write_bytes(file.read_bytes()[:-100])
    assert "consolidated.01.pth is damaged" in refusal(tmp_path)


@pytest.mark.parametrize("shards", [1, 2])
def test_wrong_tensors_are_named(shards: int, tmp_path: Path) -> None:
    folder, last = save(tmp_path, llama(), shards), shards - 1
    change(folder, last, layers__1__attention__wk__weight=torch.ones(7, 64))
    assert "wk" in (text := refusal(folder)) or "k_proj" in text
    save(folder, llama(), shards)
    change(folder, last, layers__1__attention__wk__weight=torch.ones(7))
    assert "[7]" in refusal(folder)
    save(folder, llama(), shards)
    change(folder, last, layers__1__feed_forward__w2__weight=None)
    assert "missing" in (text := refusal(folder)) and ("w2" in text or "down_proj" in text)
    save(folder, llama(), shards)
    change(folder, 0, layers__0__attention__wq__weight=torch.ones(3, 5))
    assert "layers.0.attention.wq.weight" in refusal(folder)
    change(folder, 0, layers__0__attention__wq__weight=None)
    assert "layers.0.attention.wq.weight is missing" in refusal(folder)
    save(folder, llama(), shards)
    change(folder, 0, layers__0__gate=torch.ones(3, 5))
    assert "layers.0.gate" in refusal(folder)


@pytest.mark.parametrize(
    ("name", "value"),
    [("dim", None), ("dim", "64"), ("n_heads", 0), ("n_layers", True), ("n_kv_heads", 1.5), ("rope_theta", "big")],
)
def test_impossible_params_are_named(name: str, value: object, tmp_path: Path) -> None:
    assert f"params.json has an impossible {name}" in refusal(save(tmp_path, llama(), **{name: value}))


def test_other_params_do_not_match_the_weights(tmp_path: Path) -> None:
    assert "gate_proj" in refusal(save(tmp_path, llama(), multiple_of=256))
    assert "n_heads" in refusal(save(tmp_path, llama(), n_heads=7))
    assert "o_proj" not in refusal(save(tmp_path, llama(), n_kv_heads=4))
