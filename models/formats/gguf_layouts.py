"""How each architecture of GGUF corresponds to the Hugging Face form: its config, its names, the order of its rows.

Names and orders: llama.cpp's converters. "glm4" (GLM-4-0414) is another architecture than ChatGLM's: it has two more
norms in each block.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from ..base import CheckpointError
from .gguf_metadata import Metadata
from .gguf_types import Weight
from .rotary import halves_from_pairs

FACTORS = "rope_freqs.weight"  #: divisors of the rotary frequencies, read into the config
Order = Callable[[int], torch.Tensor]
"""The number of rows in a file's tensor -> the file's row for each of ours."""


@dataclass(frozen=True)
class Header:
    """What a file says without its weights; `factors` are the divisors of Llama 3.1's frequencies."""

    metadata: Metadata
    tensors: Collection[str]
    factors: Weight | None

    def holds(self, name: str) -> bool:
        return name in self.tensors


@dataclass(frozen=True)
class Layout:
    """Names are those behind "blk.N."; the N goes into the pattern.

    `joined` are tensors that follow each other in one of ours, which is named after the first. `orders` says for a
    config in which order the rows of some tensors come.
    """

    config: Callable[[Header], dict[str, Any]]
    names: Mapping[str, str]
    joined: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    orders: Callable[[Mapping[str, Any]], Mapping[str, Order]] = lambda config: {}


def _shape(metadata: Metadata) -> tuple[int, int, int]:
    """Attention heads, heads of keys and values, the size of a head."""
    heads = metadata.count("{arch}.attention.head_count")
    kv_heads = metadata.count("{arch}.attention.head_count_kv", heads)
    embedding = metadata.count("{arch}.embedding_length")
    if embedding % heads and "{arch}.attention.key_length" not in metadata:
        raise metadata.impossible("{arch}.attention.head_count", heads)
    if heads % kv_heads:
        raise metadata.impossible("{arch}.attention.head_count_kv", kv_heads)
    return heads, kv_heads, metadata.count("{arch}.attention.key_length", embedding // heads)


def ends(metadata: Metadata) -> list[int]:
    """Ids that end a text, a turn or a message."""
    found = map(metadata.token_id, ("eos", "eot", "eom"))
    return list(dict.fromkeys(end for end in found if end is not None))


def _llama_config(header: Header) -> dict[str, Any]:
    metadata = header.metadata
    heads, kv_heads, head_dim = _shape(metadata)
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": metadata.count("{arch}.embedding_length"),
        "intermediate_size": metadata.count("{arch}.feed_forward_length"),
        "num_hidden_layers": metadata.count("{arch}.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "vocab_size": metadata.vocabulary,
        "max_position_embeddings": metadata.count("{arch}.context_length"),
        "rms_norm_eps": metadata.number("{arch}.attention.layer_norm_rms_epsilon"),
        "rope_theta": metadata.number("{arch}.rope.freq_base", 10000.0),
        "rope_scaling": _rope_scaling(header, head_dim),
        "tie_word_embeddings": not header.holds("output.weight"),
        "bos_token_id": metadata.token_id("bos"),
        "eos_token_id": ends(metadata),
    }


def _rope_scaling(header: Header, head_dim: int) -> dict[str, Any] | None:
    metadata, factors = header.metadata, header.factors
    if factors is not None:
        if tuple(factors.shape) != (head_dim // 2,):
            shapes = f"{list(factors.shape)} instead of {[head_dim // 2]}"
            raise CheckpointError(f"{FACTORS} in {metadata.path} has the shape {shapes}; download it again.")
        return {"rope_type": "factors", "factors": factors.tolist()}
    earlier = metadata.number("{arch}.rope.scale_linear", 1.0)  # what older files call the linear factor
    kind = metadata.text("{arch}.rope.scaling.type", "none" if earlier == 1.0 else "linear")
    if kind == "none":
        return None
    return {"rope_type": kind, "factor": metadata.number("{arch}.rope.scaling.factor", earlier)}


def _llama_orders(config: Mapping[str, Any]) -> Mapping[str, Order]:
    return {
        "attn_q.weight": partial(halves_from_pairs, config["num_attention_heads"]),
        "attn_k.weight": partial(halves_from_pairs, config["num_key_value_heads"]),
    }


LLAMA_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    "attn_norm.weight": "model.layers.{}.input_layernorm.weight",
    "attn_q.weight": "model.layers.{}.self_attn.q_proj.weight",
    "attn_k.weight": "model.layers.{}.self_attn.k_proj.weight",
    "attn_v.weight": "model.layers.{}.self_attn.v_proj.weight",
    "attn_output.weight": "model.layers.{}.self_attn.o_proj.weight",
    "ffn_norm.weight": "model.layers.{}.post_attention_layernorm.weight",
    "ffn_gate.weight": "model.layers.{}.mlp.gate_proj.weight",
    "ffn_up.weight": "model.layers.{}.mlp.up_proj.weight",
    "ffn_down.weight": "model.layers.{}.mlp.down_proj.weight",
}
QKV = ("attn_q", "attn_k", "attn_v")

#: llama.cpp tells Baichuan-13B, which has ALiBi, from the 7B by this number alone.
ALIBI_LAYERS = 40


def _baichuan_config(header: Header) -> dict[str, Any]:
    metadata = header.metadata
    heads, _, _ = _shape(metadata)
    layers, context = metadata.count("{arch}.block_count"), metadata.count("{arch}.context_length")
    return {
        "model_type": "baichuan",
        "architectures": ["BaichuanForCausalLM"],
        "hidden_size": metadata.count("{arch}.embedding_length"),
        "intermediate_size": metadata.count("{arch}.feed_forward_length"),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "vocab_size": metadata.vocabulary,
        "model_max_length": context,
        "max_position_embeddings": None if layers == ALIBI_LAYERS else context,
        "rms_norm_eps": metadata.number("{arch}.attention.layer_norm_rms_epsilon"),
        "bos_token_id": metadata.token_id("bos"),
        "eos_token_id": ends(metadata),
    }


def _baichuan_orders(config: Mapping[str, Any]) -> Mapping[str, Order]:
    order = partial(halves_from_pairs, config["num_attention_heads"])
    return {"attn_q.weight": order, "attn_k.weight": order}


BAICHUAN_NAMES = {
    **{name: pattern for name, pattern in LLAMA_NAMES.items() if name not in ("attn_k.weight", "attn_v.weight")},
    "attn_q.weight": "model.layers.{}.self_attn.W_pack.weight",
}


def _bloom_config(header: Header) -> dict[str, Any]:
    metadata = header.metadata
    heads, _, _ = _shape(metadata)
    embedding, context = metadata.count("{arch}.embedding_length"), metadata.count("{arch}.context_length")
    return {
        "model_type": "bloom",
        "architectures": ["BloomForCausalLM"],
        "hidden_size": embedding,
        "n_layer": metadata.count("{arch}.block_count"),
        "n_head": heads,
        "vocab_size": metadata.vocabulary,
        # Where a config has no length, llama.cpp's converter writes this in its place.
        "seq_length": None if context == embedding else context,
        "layer_norm_epsilon": metadata.number("{arch}.attention.layer_norm_epsilon"),
        "tie_word_embeddings": not header.holds("output.weight"),
        "bos_token_id": metadata.token_id("bos"),
        "eos_token_id": ends(metadata),
    }


def _by_head(heads: int, rows: int) -> torch.Tensor:
    """GGUF has all queries, all keys, all values; BLOOM's own form has them head by head."""
    return torch.arange(rows).view(3, heads, -1).transpose(0, 1).flatten()


def _bloom_orders(config: Mapping[str, Any]) -> Mapping[str, Order]:
    order = partial(_by_head, config["n_head"])
    return {"attn_qkv.weight": order, "attn_qkv.bias": order}


BLOOM_PARTS = {
    "token_embd": "transformer.word_embeddings",
    "token_embd_norm": "transformer.word_embeddings_layernorm",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
    "attn_norm": "transformer.h.{}.input_layernorm",
    "attn_qkv": "transformer.h.{}.self_attention.query_key_value",
    "attn_output": "transformer.h.{}.self_attention.dense",
    "ffn_norm": "transformer.h.{}.post_attention_layernorm",
    "ffn_up": "transformer.h.{}.mlp.dense_h_to_4h",
    "ffn_down": "transformer.h.{}.mlp.dense_4h_to_h",
}


def _chatglm_config(header: Header) -> dict[str, Any]:
    metadata = header.metadata
    heads, groups, size = _shape(metadata)
    return {
        "model_type": "chatglm",
        "architectures": ["ChatGLMModel"],
        "hidden_size": metadata.count("{arch}.embedding_length"),
        "ffn_hidden_size": metadata.count("{arch}.feed_forward_length"),
        "num_layers": metadata.count("{arch}.block_count"),
        "num_attention_heads": heads,
        "multi_query_group_num": groups,
        "kv_channels": size,
        "padded_vocab_size": metadata.vocabulary,
        "seq_length": metadata.count("{arch}.context_length"),
        "layernorm_epsilon": metadata.number("{arch}.attention.layer_norm_rms_epsilon"),
        "partial_rotary_factor": metadata.count("{arch}.rope.dimension_count", size // 2) / size,
        # The ratio, and not the base: the family knows which checkpoint's ratio means something else.
        "rope_ratio": metadata.number("{arch}.rope.freq_base", 10000.0) / 10000.0,
        "add_qkv_bias": header.holds("blk.0.attn_qkv.bias") or header.holds("blk.0.attn_q.bias"),
        "tie_word_embeddings": not header.holds("output.weight"),
        "eos_token_id": ends(metadata),
    }


#: Converted from the published form q, k and v are one tensor, from transformers' form three.
CHATGLM_PARTS = {
    "token_embd": "transformer.embedding.word_embeddings",
    "output_norm": "transformer.encoder.final_layernorm",
    "output": "transformer.output_layer",
    "attn_norm": "transformer.encoder.layers.{}.input_layernorm",
    "attn_qkv": "transformer.encoder.layers.{}.self_attention.query_key_value",
    "attn_q": "transformer.encoder.layers.{}.self_attention.query_key_value",
    "attn_output": "transformer.encoder.layers.{}.self_attention.dense",
    "ffn_norm": "transformer.encoder.layers.{}.post_attention_layernorm",
    "ffn_up": "transformer.encoder.layers.{}.mlp.dense_h_to_4h",
    "ffn_down": "transformer.encoder.layers.{}.mlp.dense_4h_to_h",
}


def _both(parts: Mapping[str, str]) -> dict[str, str]:
    """Names of weights and biases."""
    return {f"{ours}.{kind}": f"{theirs}.{kind}" for ours, theirs in parts.items() for kind in ("weight", "bias")}


JOINED = {f"attn_q.{kind}": tuple(f"{part}.{kind}" for part in QKV) for kind in ("weight", "bias")}

LAYOUTS = {
    "llama": Layout(_llama_config, LLAMA_NAMES, orders=_llama_orders),
    "bloom": Layout(_bloom_config, _both(BLOOM_PARTS), orders=_bloom_orders),
    "baichuan": Layout(_baichuan_config, BAICHUAN_NAMES, JOINED, _baichuan_orders),
    "chatglm": Layout(_chatglm_config, _both(CHATGLM_PARTS), JOINED),
}
