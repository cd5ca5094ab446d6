"""BLOOM, BLOOMZ and their fine-tunes: BELLE-7B, Phoenix, XuanYuan-176B.

Source: Scao et al. 2022 and the published checkpoints. Attribute names are the checkpoints' names.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from .base import BaseArgs, BaseModel, CacheShape, Place
from .cache import KVCache
from .layers import Embedding, LayerNorm, Linear, alibi_slopes, attend, project


@dataclass(frozen=True, kw_only=True)
class ModelArgs(BaseArgs):
    hidden_size: int
    n_layer: int
    n_head: int
    vocab_size: int
    layer_norm_epsilon: float = 1e-5
    seq_length: int = 2048  #: what it was trained with; ALiBi itself has no end
    apply_residual_connection_post_layernorm: bool = False
    tie_word_embeddings: bool = True

    aliases = {"n_embed": "hidden_size", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"}

    def __post_init__(self) -> None:
        self.require(self.hidden_size % self.n_head == 0, "hidden_size")
        self.require(not self.apply_residual_connection_post_layernorm, "apply_residual_connection_post_layernorm")

    @property
    def cache_shape(self) -> CacheShape:
        return CacheShape(self.n_layer, self.n_head, self.hidden_size // self.n_head)

    @property
    def alibi(self) -> bool:
        return True

    @property
    def query_heads(self) -> int:
        return self.n_head

    @property
    def context(self) -> int:
        return self.seq_length


class Attention(nn.Module):
    def __init__(self, args: ModelArgs, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.heads = args.n_head
        self.query_key_value = Linear(args.hidden_size, 3 * args.hidden_size)
        self.dense = Linear(args.hidden_size, args.hidden_size)

    def forward(self, x: torch.Tensor, slopes: torch.Tensor, cache: KVCache | None) -> torch.Tensor:
        # Rows are sorted by head: its query, its key, its value.
        q, k, v = project(x, self.query_key_value).unflatten(-1, (self.heads, -1)).chunk(3, dim=-1)
        return project(attend(q, k, v, cache, self.layer, slopes=slopes), self.dense)


class MLP(nn.Module):
    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.dense_h_to_4h = Linear(args.hidden_size, 4 * args.hidden_size)
        self.dense_4h_to_h = Linear(4 * args.hidden_size, args.hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return project(F.gelu(project(x, self.dense_h_to_4h), approximate="tanh"), self.dense_4h_to_h)


class Block(nn.Module):
    def __init__(self, args: ModelArgs, layer: int) -> None:
        super().__init__()
        self.input_layernorm = LayerNorm(args.hidden_size, args.layer_norm_epsilon)
        self.self_attention = Attention(args, layer)
        self.post_attention_layernorm = LayerNorm(args.hidden_size, args.layer_norm_epsilon)
        self.mlp = MLP(args)

    def forward(self, x: torch.Tensor, slopes: torch.Tensor, cache: KVCache | None) -> torch.Tensor:
        x = x + self.self_attention(self.input_layernorm(x), slopes, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Transformer(nn.Module):
    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.word_embeddings = Embedding(args.vocab_size, args.hidden_size)
        self.word_embeddings_layernorm = LayerNorm(args.hidden_size, args.layer_norm_epsilon)
        self.h = nn.ModuleList(Block(args, layer) for layer in range(args.n_layer))
        self.ln_f = LayerNorm(args.hidden_size, args.layer_norm_epsilon)


class Model(BaseModel):
    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.args = args
        self.transformer = Transformer(args)
        if not args.tie_word_embeddings:
            self.lm_head = Linear(args.hidden_size, args.vocab_size, bias=False)

    def forward(self, ids: torch.Tensor, cache: KVCache | None = None, last: bool = False) -> torch.Tensor:
        slopes = alibi_slopes(self.args.n_head, ids.device)
        x = self.transformer.word_embeddings_layernorm(self.transformer.word_embeddings(ids))
        for block in self.transformer.h:
            x = block(x, slopes, cache)
        if cache is not None:
            cache.advance(ids.shape[1])
        x = self.transformer.ln_f(x[:, -1:] if last else x)
        return self.head(x).float()

    def head(self, x: torch.Tensor) -> torch.Tensor:
        if self.args.tie_word_embeddings:
            return self.transformer.word_embeddings.as_linear(x)
        return project(x, self.lm_head)

    def is_leftover(self, name: str) -> bool:
        is_copy = name == "lm_head.weight" and self.args.tie_word_embeddings
        return is_copy or super().is_leftover(name)

    def sanitize(self, name: str, tensor: torch.Tensor) -> tuple[str, torch.Tensor] | None:
        return super().sanitize(self.place(name).name, tensor)

    def place(self, name: str) -> Place:
        # Checkpoints saved from the part without a head lack the prefix.
        return Place(name if name == "lm_head.weight" else "transformer." + name.removeprefix("transformer."))
