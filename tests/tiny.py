"""Tiny checkpoints for the tests: random weights, and tokenizers trained on a few lines in a moment."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import sentencepiece
import tokenizers
import torch
from safetensors.torch import save_file
from tokenizers import decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from torch import nn

from models import registry
from models.base import BaseModel

LINES = (
    "Once upon a time there was a little town by the sea, and in the town there was a clock.",
    "The quick brown fox jumps over the lazy dog. 0123456789",
    "检索增强生成：先找到相关段落，再回答问题。大模型在本机运行，不需要网络。",
    "你好，世界！今天的天气很好，我们去公园看花吧。",
)
CHATML_CONTROLS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 320,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "eos_token_id": 2,
}


CHATGLM = {
    "architectures": ["ChatGLMModel"],
    "model_type": "chatglm",
    "hidden_size": 64,
    "inner_hidden_size": 96,
    "num_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 320,
    "layernorm_epsilon": 1e-5,
    "max_sequence_length": 256,
    "position_encoding_2d": True,
    "mask_token_id": 310,
    "gmask_token_id": 311,
    "bos_token_id": 314,
    "eos_token_id": 315,
}
CHATGLM2 = {
    "architectures": ["ChatGLMModel"],
    "model_type": "chatglm",
    "hidden_size": 64,
    "ffn_hidden_size": 96,
    "num_layers": 3,
    "num_attention_heads": 8,
    "kv_channels": 8,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "padded_vocab_size": 320,
    "seq_length": 256,
    "layernorm_epsilon": 1e-5,
    "add_qkv_bias": True,
    "add_bias_linear": False,
    "rmsnorm": True,
    "original_rope": True,
    "tie_word_embeddings": False,
    "eos_token_id": 2,
}
BLOOM = {
    "architectures": ["BloomForCausalLM"],
    "model_type": "bloom",
    "hidden_size": 64,
    "n_layer": 3,
    "n_head": 8,
    "vocab_size": 320,
    "layer_norm_epsilon": 1e-5,
    "eos_token_id": 2,
}
BAICHUAN_13B = {
    "architectures": ["BaichuanForCausalLM"],
    "model_type": "baichuan",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "vocab_size": 320,
    "model_max_length": 256,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "eos_token_id": 2,
}
BAICHUAN_7B = BAICHUAN_13B | {"architectures": ["BaiChuanForCausalLM"], "max_position_embeddings": 256}


def randomize(module: nn.Module, seed: int = 0) -> None:
    """Fills every parameter so that activations keep their size, biases and norms included."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            parameter.data = noise / math.sqrt(parameter.shape[-1])
        else:
            parameter.data = noise * 0.1 + (0.0 if name.endswith("bias") else 1.0)


def build(config: Mapping[str, Any], seed: int = 0) -> BaseModel:
    """The model that a config.json describes, in float32 with random weights."""
    module = registry.resolve(config).module()
    model = module.Model(module.ModelArgs.from_dict(config))
    randomize(model, seed)
    return model.eval().requires_grad_(False)


def save_folder(folder: Path, config: Mapping[str, Any], tokenizer: tokenizers.Tokenizer | None = None) -> BaseModel:
    """Writes a random checkpoint in the Hugging Face form; returns the model with the same weights."""
    model = build(config)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(model.state_dict(), folder / "model.safetensors")
    if tokenizer is not None:
        tokenizer.save(str(folder / "tokenizer.json"))
    return model


def write_lora(folder: Path, shapes: dict[str, tuple[int, int]], **settings: Any) -> dict[str, torch.Tensor]:
    """A LoRA adapter for modules of these shapes; returns what it adds to each."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": "made/tiny", **settings}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(2)
    tensors, added = {}, {}
    for module, (rows, columns) in shapes.items():
        down, up = (0.3 * torch.randn(shape, generator=generator) for shape in ((4, columns), (rows, 4)))
        tensors[f"base_model.model.{module}.lora_A.weight"] = down
        tensors[f"base_model.model.{module}.lora_B.weight"] = up
        added[f"{module}.weight"] = 2 * up @ down
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, folder / "adapter_model.safetensors")
    return added


def byte_level_tokenizer(vocabulary: int = 320) -> tokenizers.Tokenizer:
    """A byte-level BPE with ChatML's control tokens as ids 0, 1 and 2."""
    tokenizer = tokenizers.Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(CHATML_CONTROLS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(LINES, trainer)
    return tokenizer


def piece_model(vocabulary: int = 400) -> bytes:
    """A SentencePiece BPE like LLaMA's: byte fallback, a dummy prefix, text kept as it is."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES),
        model_writer=written,
        model_type="bpe",
        vocab_size=vocabulary,
        byte_fallback=True,
        character_coverage=0.98,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return written.getvalue()


def write_gguf(
    path: Path,
    model: BaseModel,
    config: Mapping[str, Any],
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    tokenizer: tokenizers.Tokenizer | None = None,
    *,
    adds_bos: bool = False,
    architecture: str = "llama",
    extra: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Writes a LLaMA as llama.cpp's converter does: q and k with neighbouring pairs, matrices in `kind`."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_rope_freq_base(config.get("rope_theta", 10000.0))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    if (config.get("rope_scaling") or {}).get("type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config["rope_scaling"]["factor"])
    if tokenizer is None:
        writer.add_vocab_size(config["vocab_size"])
        writer.add_tokenizer_model("none")
    else:
        _write_gguf_tokenizer(writer, config, tokenizer, adds_bos)
    for name, tensor in model.state_dict().items():
        values = tensor.numpy()
        heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
        for part, count in heads.items():
            if part in name:
                values = values.reshape(count, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        stored = kind if values.ndim > 1 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(gguf_name(name), gguf.quantize(np.ascontiguousarray(values), stored), raw_dtype=stored)
    for name, values in (extra or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_gguf_tokenizer(
    writer: gguf.GGUFWriter, config: Mapping[str, Any], tokenizer: tokenizers.Tokenizer, adds_bos: bool
) -> None:
    inner = json.loads(tokenizer.to_str())
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    control = {token["content"] for token in inner["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if token in control else gguf.TokenType.NORMAL for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in inner["model"]["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_add_bos_token(adds_bos)


GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    """llama.cpp's name of a Hugging Face LLaMA tensor."""
    name = name.removesuffix(".weight")
    if not name.startswith("model.layers."):
        return f"{GGUF_NAMES[name]}.weight"
    number, rest = name.removeprefix("model.layers.").split(".", 1)
    return f"blk.{number}.{GGUF_NAMES[rest]}.weight"
