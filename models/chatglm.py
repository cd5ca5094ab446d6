"""ChatGLM-6B: its prompt attends both ways, positions have two dimensions, residuals start from the normed input.

Source: Du et al. 2022 (GLM) and the published checkpoint. Attribute names are the checkpoint's names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from .base import PREFIX_ENCODER, BaseArgs, BaseModel, CacheShape
from .cache import KVCache
from .layers import (
    Embedding,
    LayerNorm,
    Linear,
    attend,
    positions,
    project,
    rope_angles,
    rope_frequencies,
    rotate_half,
)

#: Every residual is scaled by sqrt(2 x 28): the published code never passes on how many layers there are.
ALPHA = 56**0.5
#: The first release kept 20,000 ids for image tokens in front of the text's.
FIRST_RELEASE_VOCABULARY, FIRST_RELEASE_SHIFT = 150528, 20000

Angles = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class ModelArgs(BaseArgs):
    hidden_size: int
    inner_hidden_size: int
    num_attention_heads: int
    num_layers: int
    vocab_size: int
    mask_token_id: int  #: [MASK], a blank of a few words
    gmask_token_id: int  #: [gMASK], a blank at the end: the reply
    bos_token_id: int  #: <sop>, behind which a blank is filled
    eos_token_id: int  #: <eop>
    layernorm_epsilon: float = 1e-5
    max_sequence_length: int = 2048
    position_encoding_2d: bool = True
    tie_word_embeddings: bool = True

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> ModelArgs:
        shift = FIRST_RELEASE_SHIFT if config.get("vocab_size") == FIRST_RELEASE_VOCABULARY else 0
        published = {"mask_token_id": 130000, "gmask_token_id": 130001, "bos_token_id": 130004, "eos_token_id": 130005}
        given = {key: value for key, value in config.items() if value is not None}
        return super().from_dict({key: number + shift for key, number in published.items()} | given)

    def __post_init__(self) -> None:
        # A head is cut in two for the two dimensions of position, and each half in two for the rotation.
        self.require(self.hidden_size % (4 * self.num_attention_heads) == 0, "hidden_size")
        self.require(self.position_encoding_2d, "position_encoding_2d")

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def cache_shape(self) -> CacheShape:
        return CacheShape(self.num_layers, self.num_attention_heads, self.head_size)

    @property
    def query_heads(self) -> int:
        return self.num_attention_heads

    @property
    def context(self) -> int:
        return self.max_sequence_length


class Blank(NamedTuple):
    """Where the blank that is being filled stands in the prompt, and where <sop> ends the prompt."""

    mask: int
    sop: int


class Attention(nn.Module):
    def __init__(self, args: ModelArgs, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.heads = args.num_attention_heads
        self.query_key_value = Linear(args.hidden_size, 3 * args.hidden_size)
        self.dense = Linear(args.hidden_size, args.hidden_size)

    def forward(self, x: torch.Tensor, angles: tuple[Angles, Angles], cache: KVCache | None, mask: torch.Tensor | None):
        # Rows are sorted by head: its query, its key, its value.
        q, k, v = project(x, self.query_key_value).unflatten(-1, (self.heads, -1)).chunk(3, dim=-1)
        q, k = rotate_2d(q, angles), rotate_2d(k, angles)
        return project(attend(q, k, v, cache, self.layer, mask=mask), self.dense)


def rotate_2d(x: torch.Tensor, angles: tuple[Angles, Angles]) -> torch.Tensor:
    """Rotates the halves of x [1, time, heads, d] by one dimension of position each."""
    return torch.cat([rotate_half(half, own) for half, own in zip(x.chunk(2, dim=-1), angles, strict=True)], dim=-1)


class MLP(nn.Module):
    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.dense_h_to_4h = Linear(args.hidden_size, args.inner_hidden_size)
        self.dense_4h_to_h = Linear(args.inner_hidden_size, args.hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return project(F.gelu(project(x, self.dense_h_to_4h), approximate="tanh"), self.dense_4h_to_h)


class Block(nn.Module):
    def __init__(self, args: ModelArgs, layer: int) -> None:
        super().__init__()
        self.input_layernorm = LayerNorm(args.hidden_size, args.layernorm_epsilon)
        self.attention = Attention(args, layer)
        self.post_attention_layernorm = LayerNorm(args.hidden_size, args.layernorm_epsilon)
        self.mlp = MLP(args)

    def forward(self, x: torch.Tensor, angles: tuple[Angles, Angles], cache: KVCache | None, mask: torch.Tensor | None):
        x = self.input_layernorm(x)
        x = ALPHA * x + self.attention(x, angles, cache, mask)
        x = self.post_attention_layernorm(x)
        return ALPHA * x + self.mlp(x)


class Transformer(nn.Module):
    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.word_embeddings = Embedding(args.vocab_size, args.hidden_size)
        self.layers = nn.ModuleList(Block(args, layer) for layer in range(args.num_layers))
        self.final_layernorm = LayerNorm(args.hidden_size, args.layernorm_epsilon)


class Model(BaseModel):
    causal_prompt = False
    fills_blanks = True

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.args = args
        self.transformer = Transformer(args)
        if not args.tie_word_embeddings:
            self.lm_head = Linear(args.hidden_size, args.vocab_size, bias=False)

    def forward(self, ids: torch.Tensor, cache: KVCache | None = None, last: bool = False) -> torch.Tensor:
        """As BaseModel says; a cache's first call must hold the whole prompt, up to <sop>."""
        blank = self.blank(ids, cache)
        position = positions(ids, cache)
        angles, mask = self.angles(position, blank), visible(position, blank)
        x = self.transformer.word_embeddings(ids)
        for block in self.transformer.layers:
            x = block(x, angles, cache, mask)
        if cache is not None:
            cache.advance(ids.shape[1])
        x = self.transformer.final_layernorm(x[:, -1:] if last else x)
        return self.head(x).float()

    def head(self, x: torch.Tensor) -> torch.Tensor:
        if self.args.tie_word_embeddings:
            return self.transformer.word_embeddings.as_linear(x)
        return project(x, self.lm_head)

    def blank(self, ids: torch.Tensor, cache: KVCache | None) -> Blank:
        """Found in the prompt, then remembered with its cache. Raises ValueError where a prompt has none."""
        if cache is None or cache.length == 0:
            blank = self._find_blank(ids[0].tolist())
            if cache is not None:
                cache.memory.update(blank._asdict())
            return blank
        blank = Blank(cache.memory["mask"], cache.memory["sop"])
        if cache.length < blank.sop:
            raise ValueError("a prompt that attends both ways can't be continued from its middle")
        return blank

    def _find_blank(self, ids: list[int]) -> Blank:
        mask = self.args.gmask_token_id if self.args.gmask_token_id in ids else self.args.mask_token_id
        if mask not in ids or self.args.bos_token_id not in ids:
            raise ValueError("a prompt for ChatGLM-6B needs [gMASK] or [MASK], and <sop> at its end")
        return Blank(ids.index(mask), ids.index(self.args.bos_token_id))

    def angles(self, position: torch.Tensor, blank: Blank) -> tuple[Angles, Angles]:
        """For both dimensions: where a token stands in the prompt (all of a reply: at its blank), and in the reply."""
        in_reply = position >= blank.sop
        first = torch.where(in_reply, blank.mask, position)
        second = torch.where(in_reply, position - blank.sop + 1, 0)
        frequencies = self.frequencies(position.device)
        return rope_angles(first, frequencies), rope_angles(second, frequencies)

    def frequencies(self, device: torch.device) -> torch.Tensor:
        half = self.args.head_size // 2
        # The checkpoint was trained with frequencies rounded to half precision.
        return rope_frequencies(half, 10000.0, None, self.args.context, self.args.context, device).half().float()

    def is_leftover(self, name: str) -> bool:
        is_copy = name == "lm_head.weight" and self.args.tie_word_embeddings
        return is_copy or name.startswith(PREFIX_ENCODER) or super().is_leftover(name)


def visible(position: torch.Tensor, blank: Blank) -> torch.Tensor | None:
    """What each row may see, bool [time, time]: the whole prompt before <sop>, and what is not later than itself.

    None behind the prompt, where attention is plainly causal.
    """
    if int(position[0]) >= blank.sop:
        return None
    return (position < blank.sop) | (position <= position[:, None])
