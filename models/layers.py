"""Leaf operations that the families share. Heavy work goes through `project`, `attend` and `gated`: kernels hang there.

Shapes: activations are [1, time, hidden]; heads are split to [1, time, heads, head_dim].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .base import is_number
from .cache import KVCache
from .kernels import kernel


class Linear(nn.Linear):
    """A Linear whose weight may be stored narrower than the activations; it is widened for the product."""

    def reset_parameters(self) -> None:
        """Nothing: weights are read, and random ones would take most of the time of building a large model."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return multiply(x, self.weight, bias)


class Embedding(nn.Embedding):
    """Token vectors. On the CPU they enter the model as float32, elsewhere as they are stored."""

    def reset_parameters(self) -> None:
        """Nothing, as in Linear."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        rows = F.embedding(ids, self.weight)
        return rows.float() if ids.device.type == "cpu" else rows

    def as_linear(self, x: torch.Tensor) -> torch.Tensor:
        """The product with a tied head: the embedding's own weight used as a Linear."""
        return multiply(x, self.weight)


def multiply(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x [.., columns] times the rows of a matrix that may be stored narrower, plus a bias -> [.., rows]."""
    if _kernel_takes(x, weight) and (fast := kernel()) is not None:
        return fast.multiply_halves(x, weight, bias)
    return F.linear(x, weight.to(x.dtype), bias)


def _kernel_takes(x: torch.Tensor, weight: torch.Tensor) -> bool:
    return (
        (x.dtype, weight.dtype) == (torch.float32, torch.float16)
        and x.device.type == weight.device.type == "cpu"
        and weight.is_contiguous()
    )


class RMSNorm(nn.Module):
    """x / rms(x) * weight, the mean of squares taken in float32 (Zhang and Sennrich, 2019)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return normed.to(x.dtype) * self.weight.to(x.dtype)


class LayerNorm(nn.Module):
    """(x - mean) / deviation * weight + bias, in float32 whatever x is: checkpoints publish these weights so."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = F.layer_norm(x.float(), self.weight.shape, self.weight.float(), self.bias.float(), self.eps)
        return normed.to(x.dtype)


def project(x: torch.Tensor, *linears: nn.Module) -> Any:
    """The products of x with each Linear: one tensor for one Linear, a tuple for several."""
    outputs = tuple(linear(x) for linear in linears)
    return outputs if len(outputs) > 1 else outputs[0]


def gated(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up, the inner part of a gated MLP."""
    return F.silu(gate) * up


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cache: KVCache | None,
    layer: int,
    *,
    slopes: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of q [1, time, heads, d] over the cached and the new k, v [1, time, kv_heads, d].

    Returns [1, time, heads * d]. Causal unless a boolean `mask` [time, columns] (True = may be seen) is given, which is
    about the last columns: every row sees those before them. `slopes` [heads] adds ALiBi. Query head h uses key/value
    head h // (heads / kv_heads); scores are scaled by 1/sqrt(d).
    """
    time, heads = q.shape[1], q.shape[2]
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))  # [1, heads, time, d]
    if cache is not None:
        k, v = (t.to(q.dtype) for t in cache.append(layer, k, v))
    total = k.shape[2]
    bias = _bias(time, total, slopes, mask, q)
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=bias, is_causal=bias is None and time > 1, enable_gqa=heads != k.shape[1]
    )
    return out.transpose(1, 2).reshape(1, time, -1)


def _bias(
    time: int, total: int, slopes: torch.Tensor | None, mask: torch.Tensor | None, like: torch.Tensor
) -> torch.Tensor | None:
    """What is added to the scores (or a boolean mask); None where plain causal attention says the same."""
    if slopes is None and mask is None and (time == 1 or time == total):
        return None
    columns = torch.arange(total, device=like.device)
    rows = torch.arange(total - time, total, device=like.device)[:, None]
    mask = columns <= rows if mask is None else F.pad(mask, (total - mask.shape[1], 0), value=True)
    if slopes is None:
        return mask
    # Softmax is the same with the distance as with the key's index, and far from zero half precision would round.
    alibi = slopes[:, None, None] * (columns - rows).float()
    return alibi.masked_fill(~mask, float("-inf")).to(like.dtype)


def positions(ids: torch.Tensor, cache: KVCache | None) -> torch.Tensor:
    """The positions [time] that ids take behind what the cache holds."""
    start = 0 if cache is None else cache.length
    return torch.arange(start, start + ids.shape[1], device=ids.device)


def rope_angles(position: torch.Tensor, frequencies: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin, each [time, 1, d/2], of position x frequency (Su et al., 2021)."""
    angles = position.float()[:, None, None] * frequencies
    return angles.cos(), angles.sin()


def rotate_half(x: torch.Tensor, angles: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Rotates the pairs (i, i + d/2) of x [1, time, heads, d], as LLaMA does."""
    cos, sin = (t.to(x.dtype) for t in angles)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def rotate_pairs(x: torch.Tensor, angles: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Rotates the pairs (2i, 2i + 1) of the first dimensions of x [1, time, heads, d], two for each angle.

    The other dimensions pass unchanged, as in ChatGLM2.
    """
    cos, sin = (t.to(x.dtype) for t in angles)
    turned, kept = x.tensor_split([2 * cos.shape[-1]], dim=-1)
    even, odd = turned[..., 0::2], turned[..., 1::2]
    turned = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2)
    return torch.cat((turned, kept), dim=-1)


def alibi_slopes(heads: int, device: torch.device) -> torch.Tensor:
    """How much each head's score falls with each step of distance, float32 [heads] (Press et al., 2022).

    The slopes are 2^(-8k/c), k = 1 .. c, for the largest power of two c <= heads; heads beyond c take every other one
    of the twice as fine series 2^(-4k/c), k = 1, 3, 5, ...
    """
    power = 2 ** (heads.bit_length() - 1)
    own = 1 + torch.arange(power, dtype=torch.float32, device=device)
    between = 1 + 2 * torch.arange(heads - power, dtype=torch.float32, device=device)
    return torch.exp2(torch.cat((-8 * own / power, -4 * between / power)))


def rope_frequencies(
    head_dim: int, base: float, scaling: Mapping[str, Any] | None, context: int, length: int, device: torch.device
) -> torch.Tensor:
    """Rotary frequencies [d/2] with the scaling of a config's `rope_scaling`.

    `context` is the window that the model was trained for; `length`, how long the sequence may become, matters to
    dynamic scaling only.
    """
    rule = ROPE_SCALING[rope_rule(scaling)]
    return rule.frequencies(head_dim, base, scaling or {}, context, length).to(device)


def rope_rule(scaling: Mapping[str, Any] | None) -> str:
    """The name of a `rope_scaling`'s rule: newer configs say rope_type, older ones type."""
    return (scaling or {}).get("rope_type") or (scaling or {}).get("type") or "default"


def can_scale_rope(scaling: Mapping[str, Any] | None) -> bool:
    """Whether a config's `rope_scaling` has a known rule and every number that the rule needs."""
    name = rope_rule(scaling)
    if not isinstance(name, str) or name not in ROPE_SCALING:
        return False
    return all(_are_numbers((scaling or {}).get(key)) for key in ROPE_SCALING[name].needs)


def _are_numbers(found: Any) -> bool:
    return all(map(is_number, found)) if isinstance(found, list) else is_number(found)


def _plain(head_dim: int, base: float, scaling: Mapping[str, Any], context: int, length: int) -> torch.Tensor:
    return base ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)


def _linear(head_dim: int, base: float, scaling: Mapping[str, Any], context: int, length: int) -> torch.Tensor:
    return _plain(head_dim, base, scaling, context, length) / scaling["factor"]


def _dynamic(head_dim: int, base: float, scaling: Mapping[str, Any], context: int, length: int) -> torch.Tensor:
    factor = scaling["factor"]
    if length > context:
        base = base * (factor * length / context - (factor - 1)) ** (head_dim / (head_dim - 2))
    return _plain(head_dim, base, scaling, context, length)


def _llama3(head_dim: int, base: float, scaling: Mapping[str, Any], context: int, length: int) -> torch.Tensor:
    """Long waves are stretched by the factor, short ones kept, those between blended (Llama 3.1)."""
    plain = _plain(head_dim, base, scaling, context, length)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * plain / (2 * math.pi)
    share = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - share) * plain / scaling["factor"] + share * plain


def _factors(head_dim: int, base: float, scaling: Mapping[str, Any], context: int, length: int) -> torch.Tensor:
    """GGUF files carry the result of a scaling rule as one divisor per frequency."""
    return _plain(head_dim, base, scaling, context, length) / torch.tensor(scaling["factors"], dtype=torch.float32)


@dataclass(frozen=True)
class RopeRule:
    """A way of scaling; `needs` are the keys of rope_scaling that it reads."""

    frequencies: Callable[[int, float, Mapping[str, Any], int, int], torch.Tensor]
    needs: tuple[str, ...] = ()


ROPE_SCALING = {
    "default": RopeRule(_plain),
    "linear": RopeRule(_linear, ("factor",)),
    "dynamic": RopeRule(_dynamic, ("factor",)),
    "llama3": RopeRule(_llama3, ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")),
    "factors": RopeRule(_factors, ("factors",)),
}
