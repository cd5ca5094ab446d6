"""Baichuan-7B, Baichuan-13B and both sizes of Baichuan2: like LLaMA, with packed q/k/v; the 13Bs use ALiBi.

Source: the published checkpoints; Yang et al. 2023 (Baichuan2). Attribute names are the checkpoints' names.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from .base import BaseArgs, BaseModel, CacheShape
from .cache import KVCache
from .layers import (
    Embedding,
    Linear,
    RMSNorm,
    alibi_slopes,
    attend,
    gated,
    positions,
    project,
    rope_angles,
    rope_frequencies,
    rotate_half,
)
from .quantize import Rows

#: Baichuan2 scores against the direction of each head row only. Nothing but the vocabulary's size tells it apart.
BAICHUAN2_VOCABULARY = 125696

Angles = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class ModelArgs(BaseArgs):
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    vocab_size: int
    max_position_embeddings: int | None = None
    model_max_length: int | None = None
    rms_norm_eps: float = 1e-6
    hidden_act: str = "silu"

    def __post_init__(self) -> None:
        self.require(self.hidden_size % self.num_attention_heads == 0, "hidden_size")
        self.require(self.alibi or self.head_size % 2 == 0, "hidden_size")
        self.require(self.hidden_act == "silu", "hidden_act")

    @property
    def alibi(self) -> bool:
        """Configs do not say which encoding they use; those with ALiBi have no table of positions to size."""
        return self.max_position_embeddings is None

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def cache_shape(self) -> CacheShape:
        return CacheShape(self.num_hidden_layers, self.num_attention_heads, self.head_size)

    @property
    def query_heads(self) -> int:
        return self.num_attention_heads

    @property
    def context(self) -> int:
        return self.max_position_embeddings or self.model_max_length or 4096


class Attention(nn.Module):
    def __init__(self, args: ModelArgs, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.heads = args.num_attention_heads
        self.W_pack = Linear(args.hidden_size, 3 * args.hidden_size, bias=False)
        self.o_proj = Linear(args.hidden_size, args.hidden_size, bias=False)

    def forward(self, x: torch.Tensor, angles: Angles | None, slopes: torch.Tensor | None, cache: KVCache | None):
        # All queries come first, then all keys, then all values.
        q, k, v = project(x, self.W_pack).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        if angles is not None:
            q, k = rotate_half(q, angles), rotate_half(k, angles)
        return project(attend(q, k, v, cache, self.layer, slopes=slopes), self.o_proj)


class MLP(nn.Module):
    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.gate_proj = Linear(args.hidden_size, args.intermediate_size, bias=False)
        self.up_proj = Linear(args.hidden_size, args.intermediate_size, bias=False)
        self.down_proj = Linear(args.intermediate_size, args.hidden_size, bias=False)

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

    def forward(self, x: torch.Tensor, angles: Angles | None, slopes: torch.Tensor | None, cache: KVCache | None):
        x = x + self.self_attn(self.input_layernorm(x), angles, slopes, cache)
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
        self.lm_head = Linear(args.hidden_size, args.vocab_size, bias=False)

    def forward(self, ids: torch.Tensor, cache: KVCache | None = None, last: bool = False) -> torch.Tensor:
        angles = slopes = None
        if self.args.alibi:
            slopes = alibi_slopes(self.args.num_attention_heads, ids.device)
        else:
            angles = rope_angles(positions(ids, cache), self.frequencies(ids.device))
        x = self.model.embed_tokens(ids)
        for block in self.model.layers:
            x = block(x, angles, slopes, cache)
        if cache is not None:
            cache.advance(ids.shape[1])
        x = self.model.norm(x[:, -1:] if last else x)
        return project(x, self.lm_head).float()

    def frequencies(self, device: torch.device) -> torch.Tensor:
        return rope_frequencies(self.args.head_size, 10000.0, None, self.args.context, self.args.context, device)

    def sanitize(self, name: str, tensor: torch.Tensor) -> tuple[str, torch.Tensor] | None:
        fits = not isinstance(tensor, torch.Tensor) or (tensor.ndim == 2 and tensor.is_floating_point())
        if name == "lm_head.weight" and self.args.vocab_size == BAICHUAN2_VOCABULARY and fits:
            return name, unit_rows(tensor)
        return super().sanitize(name, tensor)


def unit_rows(weight: Rows) -> torch.Tensor:
    """Every row [hidden] divided by its length, taken in float32, as Baichuan2's first forward does (NormHead).

    A few rows at a time: the whole head in float32 would be the largest tensor of the loading.
    """
    dtype = torch.float32 if isinstance(weight, torch.Tensor) and weight.dtype == torch.float32 else torch.float16
    parts = (weight[start : start + 4096].float() for start in range(0, weight.shape[0], 4096))
    return torch.cat([F.normalize(part, dim=-1, eps=1e-12).to(dtype) for part in parts])
