"""LLaMA, LLaMA-2, Llama-3 and everything with their shape: Alpaca, Vicuna, TinyLlama, SmolLM2, ...

Source: Touvron et al. 2023 and the published checkpoints. Attribute names are the checkpoints' names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .base import BaseArgs, BaseModel, CacheShape, section
from .cache import KVCache
from .layers import (
    Embedding,
    Linear,
    RMSNorm,
    attend,
    can_scale_rope,
    gated,
    positions,
    project,
    rope_angles,
    rope_frequencies,
    rope_rule,
    rotate_half,
)


@dataclass(frozen=True, kw_only=True)
class ModelArgs(BaseArgs):
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    vocab_size: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    max_position_embeddings: int | None = None
    max_sequence_length: int | None = None  #: in place of it, or, where positions are scaled, what they become
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: dict[str, Any] | None = None
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    hidden_act: str = "silu"

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> ModelArgs:
        # transformers 5 keeps theta and scaling together in rope_parameters.
        rope = section(config, "rope_parameters")
        newer = {"rope_theta": rope.get("rope_theta"), "rope_scaling": rope or None}
        return super().from_dict({**config, **{key: value for key, value in newer.items() if value is not None}})

    def __post_init__(self) -> None:
        self.require(self.num_attention_heads % self.kv_heads == 0, "num_key_value_heads")
        self.require(self.head_dim is not None or self.hidden_size % self.num_attention_heads == 0, "hidden_size")
        self.require(self.head_size % 2 == 0, "hidden_size" if self.head_dim is None else "head_dim")
        self.require(self.hidden_act == "silu", "hidden_act")
        self.require(can_scale_rope(self.rope_scaling), "rope_scaling")

    @property
    def kv_heads(self) -> int:
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def head_size(self) -> int:
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def cache_shape(self) -> CacheShape:
        return CacheShape(self.num_hidden_layers, self.kv_heads, self.head_size)

    @property
    def query_heads(self) -> int:
        return self.num_attention_heads

    @property
    def context(self) -> int:
        given = [length for length in (self.max_position_embeddings, self.max_sequence_length) if length is not None]
        return max(given, default=2048)

    @property
    def trained_context(self) -> int:
        """The window before any scaling, which dynamic scaling starts from."""
        return self.max_position_embeddings or self.context


class Attention(nn.Module):
    def __init__(self, args: ModelArgs, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_size = args.head_size
        hidden, bias = args.hidden_size, args.attention_bias
        queries, keys = args.num_attention_heads * args.head_size, args.kv_heads * args.head_size
        self.q_proj = Linear(hidden, queries, bias=bias)
        self.k_proj = Linear(hidden, keys, bias=bias)
        self.v_proj = Linear(hidden, keys, bias=bias)
        self.o_proj = Linear(queries, hidden, bias=bias)

    def forward(self, x: torch.Tensor, angles: tuple[torch.Tensor, torch.Tensor], cache: KVCache | None):
        q, k, v = project(x, self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (t.unflatten(-1, (-1, self.head_size)) for t in (q, k, v))  # [1, time, heads, head_size]
        q, k = rotate_half(q, angles), rotate_half(k, angles)
        return project(attend(q, k, v, cache, self.layer), self.o_proj)


class MLP(nn.Module):
    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.gate_proj = Linear(args.hidden_size, args.intermediate_size, bias=args.mlp_bias)
        self.up_proj = Linear(args.hidden_size, args.intermediate_size, bias=args.mlp_bias)
        self.down_proj = Linear(args.intermediate_size, args.hidden_size, bias=args.mlp_bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = project(x, self.gate_proj, self.up_proj)
        return project(gated(gate, up), self.down_proj)


class Block(nn.Module):
    def __init__(self, args: ModelArgs, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(args.hidden_size, args.rms_norm_eps)
        self.self_attn = Attention(args, layer)
        self.post_attention_layernorm = RMSNorm(args.hidden_size, args.rms_norm_eps)
        self.mlp = MLP(args)

    def forward(self, x: torch.Tensor, angles: tuple[torch.Tensor, torch.Tensor], cache: KVCache | None):
        x = x + self.self_attn(self.input_layernorm(x), angles, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """The part that checkpoints call `model`."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.embed_tokens = Embedding(args.vocab_size, args.hidden_size)
        self.layers = nn.ModuleList(Block(args, layer) for layer in range(args.num_hidden_layers))
        self.norm = RMSNorm(args.hidden_size, args.rms_norm_eps)


class Model(BaseModel):
    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.args = args
        self.model = Decoder(args)
        if not args.tie_word_embeddings:
            self.lm_head = Linear(args.hidden_size, args.vocab_size, bias=False)

    def forward(self, ids: torch.Tensor, cache: KVCache | None = None, last: bool = False) -> torch.Tensor:
        angles = rope_angles(positions(ids, cache), self.frequencies(ids, cache))
        x = self.model.embed_tokens(ids)
        for block in self.model.layers:
            x = block(x, angles, cache)
        if cache is not None:
            cache.advance(ids.shape[1])
        x = self.model.norm(x[:, -1:] if last else x)
        return self.head(x).float()

    def head(self, x: torch.Tensor) -> torch.Tensor:
        if self.args.tie_word_embeddings:
            return self.model.embed_tokens.as_linear(x)
        return project(x, self.lm_head)

    def frequencies(self, ids: torch.Tensor, cache: KVCache | None) -> torch.Tensor:
        args = self.args
        # Dynamic scaling takes the length that the cache was made for, so that steps and whole agree.
        length = ids.shape[1] if cache is None else cache.capacity
        return rope_frequencies(
            args.head_size, args.rope_theta, args.rope_scaling, args.trained_context, length, ids.device
        )

    def scaled_for(self, length: int) -> int:
        dynamic = rope_rule(self.args.rope_scaling) == "dynamic"
        return max(length, self.args.trained_context) if dynamic else super().scaled_for(length)

    def is_leftover(self, name: str) -> bool:
        is_copy = name == "lm_head.weight" and self.args.tie_word_embeddings
        return is_copy or super().is_leftover(name)
