"""ChatGLM2-6B, ChatGLM3-6B, GLM-4-9B, and their long-context variants.

Source: the published checkpoints. Attribute names are the checkpoints' names; those in transformers' form (model_type
"glm") are renamed while they are loaded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .base import PREFIX_ENCODER, BaseArgs, BaseModel, CacheShape, Place, section
from .cache import KVCache
from .layers import (
    Embedding,
    Linear,
    RMSNorm,
    attend,
    gated,
    positions,
    project,
    rope_angles,
    rope_frequencies,
    rotate_pairs,
)

Angles = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class ModelArgs(BaseArgs):
    hidden_size: int
    ffn_hidden_size: int
    num_layers: int
    num_attention_heads: int
    padded_vocab_size: int
    kv_channels: int = 128
    multi_query_attention: bool = True
    multi_query_group_num: int = 2
    seq_length: int = 2048
    layernorm_epsilon: float = 1e-5
    add_qkv_bias: bool = True
    add_bias_linear: bool = False
    rmsnorm: bool = True
    post_layer_norm: bool = True
    apply_residual_connection_post_layernorm: bool = False
    tie_word_embeddings: bool = False
    rope_theta: float = 10000.0
    partial_rotary_factor: float = 0.5
    rope_ratio: float = 1.0
    #: What rope_ratio multiplies: "base", or "positions", which it divides. Decided in from_dict unless config.json
    #: says it; no published file does.
    rope_ratio_scales: str = "base"

    aliases = {
        "intermediate_size": "ffn_hidden_size",
        "num_hidden_layers": "num_layers",
        "vocab_size": "padded_vocab_size",
        "head_dim": "kv_channels",
        "num_key_value_heads": "multi_query_group_num",
        "max_position_embeddings": "seq_length",
        "rms_norm_eps": "layernorm_epsilon",
        "attention_bias": "add_qkv_bias",
    }

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> ModelArgs:
        rope = section(config, "rope_parameters")  # transformers 5 keeps these together
        newer = {key: rope[key] for key in ("rope_theta", "partial_rotary_factor") if key in rope}
        scales = "positions" if _is_chatglm2_32k(config) else "base"
        return super().from_dict({"rope_ratio_scales": scales, **config, **newer})

    def __post_init__(self) -> None:
        self.require(self.num_attention_heads % self.kv_heads == 0, "multi_query_group_num")
        self.require(self.partial_rotary_factor <= 1, "partial_rotary_factor")
        self.require(self.rotary_size % 2 == 0, "kv_channels")
        self.require(self.rope_ratio_scales in ("base", "positions"), "rope_ratio_scales")
        self.require(self.rmsnorm, "rmsnorm")
        self.require(self.post_layer_norm, "post_layer_norm")
        self.require(not self.apply_residual_connection_post_layernorm, "apply_residual_connection_post_layernorm")

    @property
    def kv_heads(self) -> int:
        return self.multi_query_group_num if self.multi_query_attention else self.num_attention_heads

    @property
    def rotary_size(self) -> int:
        return int(self.kv_channels * self.partial_rotary_factor)

    @property
    def cache_shape(self) -> CacheShape:
        return CacheShape(self.num_layers, self.kv_heads, self.kv_channels)

    @property
    def query_heads(self) -> int:
        return self.num_attention_heads

    @property
    def context(self) -> int:
        return self.seq_length


def _is_chatglm2_32k(config: Mapping[str, Any]) -> bool:
    """chatglm2-6b-32k divides positions by its ratio of 16; ChatGLM3 and GLM-4 multiply the base by theirs."""
    return "chatglm2" in str(config.get("_name_or_path", "")).lower() or config.get("rope_ratio") == 16


class Attention(nn.Module):
    def __init__(self, args: ModelArgs, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_size = args.kv_channels
        self.rows = [heads * args.kv_channels for heads in (args.num_attention_heads, args.kv_heads, args.kv_heads)]
        self.query_key_value = Linear(args.hidden_size, sum(self.rows), bias=args.add_qkv_bias or args.add_bias_linear)
        self.dense = Linear(self.rows[0], args.hidden_size, bias=args.add_bias_linear)

    def forward(self, x: torch.Tensor, angles: Angles, cache: KVCache | None) -> torch.Tensor:
        # All queries come first, then all keys, then all values.
        q, k, v = project(x, self.query_key_value).split(self.rows, dim=-1)
        q, k, v = (t.unflatten(-1, (-1, self.head_size)) for t in (q, k, v))  # [1, time, heads, head_size]
        q, k = rotate_pairs(q, angles), rotate_pairs(k, angles)
        return project(attend(q, k, v, cache, self.layer), self.dense)


class MLP(nn.Module):
    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.dense_h_to_4h = Linear(args.hidden_size, 2 * args.ffn_hidden_size, bias=args.add_bias_linear)
        self.dense_4h_to_h = Linear(args.ffn_hidden_size, args.hidden_size, bias=args.add_bias_linear)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = project(x, self.dense_h_to_4h).chunk(2, dim=-1)
        return project(gated(gate, up), self.dense_4h_to_h)


class Block(nn.Module):
    def __init__(self, args: ModelArgs, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(args.hidden_size, args.layernorm_epsilon)
        self.self_attention = Attention(args, layer)
        self.post_attention_layernorm = RMSNorm(args.hidden_size, args.layernorm_epsilon)
        self.mlp = MLP(args)

    def forward(self, x: torch.Tensor, angles: Angles, cache: KVCache | None) -> torch.Tensor:
        x = x + self.self_attention(self.input_layernorm(x), angles, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Embeddings(nn.Module):
    """The part that checkpoints call `transformer.embedding`."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.word_embeddings = Embedding(args.padded_vocab_size, args.hidden_size)


class Encoder(nn.Module):
    """The part that checkpoints call `transformer.encoder`; it is a decoder."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(args, layer) for layer in range(args.num_layers))
        self.final_layernorm = RMSNorm(args.hidden_size, args.layernorm_epsilon)


class Transformer(nn.Module):
    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.embedding = Embeddings(args)
        self.encoder = Encoder(args)
        if not args.tie_word_embeddings:
            self.output_layer = Linear(args.hidden_size, args.padded_vocab_size, bias=False)


class Model(BaseModel):
    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.args = args
        self.transformer = Transformer(args)
        self._parts: dict[str, dict[str, torch.Tensor]] = {}

    def forward(self, ids: torch.Tensor, cache: KVCache | None = None, last: bool = False) -> torch.Tensor:
        angles = rope_angles(positions(ids, cache), self.frequencies(ids.device))
        x = self.transformer.embedding.word_embeddings(ids)
        for block in self.transformer.encoder.layers:
            x = block(x, angles, cache)
        if cache is not None:
            cache.advance(ids.shape[1])
        x = self.transformer.encoder.final_layernorm(x[:, -1:] if last else x)
        return self.head(x).float()

    def head(self, x: torch.Tensor) -> torch.Tensor:
        if self.args.tie_word_embeddings:
            return self.transformer.embedding.word_embeddings.as_linear(x)
        return project(x, self.transformer.output_layer)

    def frequencies(self, device: torch.device) -> torch.Tensor:
        args = self.args
        base, scaling = args.rope_theta * args.rope_ratio, None
        if args.rope_ratio_scales == "positions":
            base, scaling = args.rope_theta, {"rope_type": "linear", "factor": args.rope_ratio}
        return rope_frequencies(args.rotary_size, base, scaling, args.context, args.context, device)

    def is_leftover(self, name: str) -> bool:
        is_copy = renamed(name)[0] == "transformer.output_layer.weight" and self.args.tie_word_embeddings
        return is_copy or name.startswith(PREFIX_ENCODER) or super().is_leftover(name)

    def sanitize(self, name: str, tensor: torch.Tensor) -> tuple[str, torch.Tensor] | None:
        name, part = renamed(name)
        return super().sanitize(name, tensor) if part is None else self._joined(name, part, tensor)

    def place(self, name: str) -> Place:
        if not name.startswith(("model.", "lm_head.")):
            return Place(name)
        name, part = renamed(name)
        queries, keys = (heads * self.args.kv_channels for heads in (self.args.num_attention_heads, self.args.kv_heads))
        rows = {None: (), "q": (0, queries), "k": (queries, keys), "v": (queries + keys, keys)}
        return Place(name, *rows[part])

    def _joined(self, name: str, part: str, tensor: torch.Tensor) -> tuple[str, torch.Tensor] | None:
        """Keeps the parts of a fused tensor until the last has come, whatever their order in the file.

        A part that does not fit to the others is given out alone: the loader says which shape it should have.
        """
        parts = self._parts.setdefault(name, {})
        parts[part] = tensor
        if len(parts) < len("qkv"):
            return None
        del self._parts[name]
        columns = {each.shape[1:] if each.ndim else None for each in parts.values()}
        return name, tensor if len(columns) > 1 else torch.cat([parts[part] for part in "qkv"])


#: transformers' name of a tensor -> the published name.
RENAMED = {
    r"model\.embed_tokens\.": "transformer.embedding.word_embeddings.",
    r"model\.layers\.(\d+)\.self_attn\.[qkv]_proj\.": r"transformer.encoder.layers.\1.self_attention.query_key_value.",
    r"model\.layers\.(\d+)\.self_attn\.o_proj\.": r"transformer.encoder.layers.\1.self_attention.dense.",
    r"model\.layers\.(\d+)\.mlp\.gate_up_proj\.": r"transformer.encoder.layers.\1.mlp.dense_h_to_4h.",
    r"model\.layers\.(\d+)\.mlp\.down_proj\.": r"transformer.encoder.layers.\1.mlp.dense_4h_to_h.",
    r"model\.layers\.(\d+)\.": r"transformer.encoder.layers.\1.",
    r"model\.norm\.": "transformer.encoder.final_layernorm.",
    r"lm_head\.": "transformer.output_layer.",
}


def renamed(name: str) -> tuple[str, str | None]:
    """The published name of a tensor in transformers' form, and which part of it the tensor is: q, k, v or None."""
    part = re.search(r"\.([qkv])_proj\.", name)
    for pattern, replacement in RENAMED.items():
        if re.match(pattern, name):
            return re.sub(pattern, replacement, name, count=1), part and part[1]
    return name, None
