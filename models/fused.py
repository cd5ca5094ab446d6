"""Whole steps of a model in one call of C: the ids of a few consecutive tokens -> their logits.

Between the products of a small model PyTorch and Python take longer than the products themselves. `Layout` says where a
family keeps its parts and how they work together; what a family's forward does stays the specification, and does the
work wherever something doesn't fit.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .cache import KVCache
from .kernels import kernel, structures
from .layers import Embedding, LayerNorm, Linear, RMSNorm, alibi_slopes
from .quantize import PackedMatrix, QuantizedEmbedding, QuantizedLinear

if TYPE_CHECKING:
    from .base import BaseModel

#: Rows of a step. Drafts are no longer, and longer pieces are multiplied faster in one product after another.
MOST_ROWS = 16

BITS = {torch.float16: 16, torch.float32: 32}


class Unfit(Exception):
    """Something of a model is not as the C code wants it."""


def _plain_positions(cache: KVCache) -> Sequence[tuple[int, int]] | None:
    return ((cache.length, 1),)


def _positions_of_reply(cache: KVCache) -> Sequence[tuple[int, int]] | None:
    """ChatGLM-6B: the blank's position for all of the reply, and the position in the reply. None within the prompt."""
    mask, sop = cache.memory.get("mask"), cache.memory.get("sop")
    return None if sop is None or cache.length < sop else ((mask, 0), (cache.length - sop + 1, 1))


def _frequencies(model: Any, ids: torch.Tensor, cache: KVCache) -> torch.Tensor:
    return model.frequencies(ids.device)


@dataclass(frozen=True)
class Layout:
    """Where an architecture keeps its parts (attributes, dotted), and how they work together."""

    embedding: str
    blocks: str
    norm: str  #: the last one
    head: str  #: where it is not tied
    attention: str
    qkv: Sequence[str]  #: one Linear that holds all three, or three
    dense: str
    mlp: Sequence[str]  #: gate and up, or one Linear
    down: str
    by_head: bool = False  #: a packed q/k/v is sorted by head: its query, its key, its value
    gated: bool = True  #: silu(gate) * up; else GELU
    norm_of_embedding: str | None = None
    residual_scale: float = 0.0  #: residuals start from the normed input, times this; 0: from the input itself
    pairs: str = "half"  #: how dimensions are paired for rotation: i with i + d/2, or "next" to each other
    frequencies: Callable[[Any, torch.Tensor, KVCache], torch.Tensor] = _frequencies
    #: First position and step for each part of a head that is rotated by positions of its own.
    positions: Callable[[KVCache], Sequence[tuple[int, int]] | None] = _plain_positions
    sections: int = 1  #: how many such parts there are


#: By the architecture's file.
LAYOUTS = {
    "llama": Layout(
        embedding="model.embed_tokens",
        blocks="model.layers",
        norm="model.norm",
        head="lm_head",
        attention="self_attn",
        qkv=("q_proj", "k_proj", "v_proj"),
        dense="o_proj",
        mlp=("gate_proj", "up_proj"),
        down="down_proj",
        frequencies=lambda model, ids, cache: model.frequencies(ids, cache),
    ),
    "baichuan": Layout(
        embedding="model.embed_tokens",
        blocks="model.layers",
        norm="model.norm",
        head="lm_head",
        attention="self_attn",
        qkv=("W_pack",),
        dense="o_proj",
        mlp=("gate_proj", "up_proj"),
        down="down_proj",
    ),
    "bloom": Layout(
        embedding="transformer.word_embeddings",
        norm_of_embedding="transformer.word_embeddings_layernorm",
        blocks="transformer.h",
        norm="transformer.ln_f",
        head="lm_head",
        attention="self_attention",
        qkv=("query_key_value",),
        by_head=True,
        dense="dense",
        mlp=("dense_h_to_4h",),
        gated=False,
        down="dense_4h_to_h",
    ),
    "chatglm": Layout(
        embedding="transformer.word_embeddings",
        blocks="transformer.layers",
        norm="transformer.final_layernorm",
        head="lm_head",
        attention="attention",
        qkv=("query_key_value",),
        by_head=True,
        dense="dense",
        mlp=("dense_h_to_4h",),
        gated=False,
        down="dense_4h_to_h",
        residual_scale=56**0.5,
        positions=_positions_of_reply,
        sections=2,
    ),
    "chatglm2": Layout(
        embedding="transformer.embedding.word_embeddings",
        blocks="transformer.encoder.layers",
        norm="transformer.encoder.final_layernorm",
        head="transformer.output_layer",
        attention="self_attention",
        qkv=("query_key_value",),
        dense="dense",
        mlp=("dense_h_to_4h",),
        down="dense_4h_to_h",
        pairs="next",
    ),
}


class Fused:
    """A model as C sees it. It holds on to all that C reads, and knows when the model has changed since."""

    def __init__(self, model: BaseModel, layout: Layout) -> None:
        self._layout = layout
        self._seen: list[tuple[dict[str, Any], str, Any]] = []  # an object's place in its owner, and the object
        self._tensors: list[torch.Tensor] = []
        self._layers = self._describe_layers(model)
        self._model = self._describe(model)
        self._pointers = [tensor.data_ptr() for tensor in self._tensors]
        self._held = [tensor.detach() for tensor in self._tensors]  # other data can't come to lie where theirs do
        self.trains = any(tensor.requires_grad for tensor in self._tensors)
        self._frequencies: tuple[int, torch.Tensor] | None = None

    def is_of(self, model: BaseModel) -> bool:
        """Whether all modules and weights are still those that were seen, and nobody listens to a module."""
        return (
            all(owner.get(name) is found for owner, name, found in self._seen)
            and self._pointers == [tensor.data_ptr() for tensor in self._tensors]
            and not any(map(_is_listened_to, model.modules()))
        )

    def logits(self, model: BaseModel, ids: torch.Tensor, cache: KVCache, last: bool) -> torch.Tensor | None:
        """As the model's forward, or None where that has to do it."""
        positions = self._layout.positions(cache)
        count, rows = ids.shape[1], cache.keys.shape[3]
        numbers = ids[0].tolist()
        fits = (
            positions is not None
            and cache.length + count <= cache.capacity
            and 0 <= min(numbers)
            and max(numbers) < self._model.embedding.rows
        )
        fast = kernel()
        if not fits or fast is None:
            return None
        if cache.on_layer is not None:  # all are asked before the first: a step is short, and coming back to ask is not
            for layer in range(self._model.layers):
                cache.on_layer(layer)
        frequencies = self._frequencies_for(model, ids, cache)
        wanted = 1 if last else count
        logits = torch.empty(1, wanted, self._model.head.rows)
        step = structures.Step(
            ids=ids.data_ptr(),
            count=count,
            wanted=wanted,
            frequencies=None if frequencies is None else frequencies.data_ptr(),
            positions=tuple(first for first, _ in positions),
            steps=tuple(step for _, step in positions),
            keys=cache.keys.data_ptr(),
            values=cache.values.data_ptr(),
            cache_bits=BITS[cache.keys.dtype],
            capacity=rows,
            start=rows - cache.capacity + cache.length,
            logits=logits.data_ptr(),
        )
        fast.step(self._model, step)
        cache.advance(count)
        return logits

    def _frequencies_for(self, model: BaseModel, ids: torch.Tensor, cache: KVCache) -> torch.Tensor | None:
        """Those of the last cache, where it had the same room: dynamic scaling depends on it."""
        if self._model.apart == 0:
            return None
        found = self._frequencies
        if found is None or found[0] != cache.capacity:
            found = (cache.capacity, self._layout.frequencies(model, ids, cache).contiguous())
            self._frequencies = found
        return found[1]

    def _describe(self, model: BaseModel) -> structures.Model:
        layout, args = self._layout, model.args
        shape = args.cache_shape
        heads, size = args.query_heads, shape.head_dim
        embedding = self._weights(self._part(model, layout.embedding), (Embedding, QuantizedEmbedding))
        tied = getattr(args, "tie_word_embeddings", False)
        head = embedding if tied else self._linear(model, layout.head)
        pairs, apart = self._rotation(model)
        slopes = alibi_slopes(heads, torch.device("cpu")) if args.alibi else None
        if size > structures.WIDEST_HEAD:
            raise Unfit
        return structures.Model(
            layers=len(self._layers),
            hidden=embedding.columns,
            heads=heads,
            kv_heads=shape.kv_heads,
            head_size=size,
            inner=self._layers[0].down.columns,
            gated=layout.gated,
            sections=layout.sections,
            pairs=pairs,
            apart=apart,
            alpha=layout.residual_scale,
            **self._heads(heads, shape.kv_heads, size),
            slopes=None if slopes is None else self._address(slopes),
            after_embedding=self._norm(model, layout.norm_of_embedding),
            last=self._norm(model, layout.norm),
            embedding=embedding,
            head=head,
            layer=self._layers,
        )

    def _rotation(self, model: BaseModel) -> tuple[int, int]:
        """Pairs that are rotated in each section of a head, and how far apart the two of a pair are; 0: none are."""
        if model.args.alibi:
            return 0, 0
        ids = torch.zeros(1, 1, dtype=torch.int64)
        pairs = len(self._layout.frequencies(model, ids, None))
        return pairs, 1 if self._layout.pairs == "next" else pairs

    def _heads(self, heads: int, kv_heads: int, size: int) -> dict[str, structures.Heads]:
        """Where queries, keys and values are in their products."""
        layout, names = self._layout, ("queries", "keys", "values")
        if layout.by_head:
            places = [(part * size, 3 * size) for part in range(3)]
        elif len(layout.qkv) == 1:
            places = [(0, size), (heads * size, size), ((heads + kv_heads) * size, size)]
        else:
            places = [(0, size)] * 3
        return {name: structures.Heads(*place) for name, place in zip(names, places, strict=True)}

    def _describe_layers(self, model: BaseModel) -> ctypes.Array:
        blocks = self._part(model, self._layout.blocks)
        layers = [self._describe_layer(self._part(blocks, name)) for name, _ in blocks.named_children()]
        return (structures.Layer * len(layers))(*layers)

    def _describe_layer(self, block: nn.Module) -> structures.Layer:
        layout = self._layout
        attention, mlp = self._part(block, layout.attention), self._part(block, "mlp")
        queries, keys, values = self._linears(attention, layout.qkv, 3)
        gate, up = self._linears(mlp, layout.mlp, 2)
        return structures.Layer(
            before_attention=self._norm(block, "input_layernorm"),
            before_mlp=self._norm(block, "post_attention_layernorm"),
            queries=queries,
            keys=keys,
            values=values,
            dense=self._linear(attention, layout.dense),
            gate=gate,
            up=up,
            down=self._linear(mlp, layout.down),
        )

    def _linears(self, owner: nn.Module, names: Sequence[str], places: int) -> Iterable[structures.Weights]:
        found = [self._linear(owner, name) for name in names]
        return found + [structures.Weights()] * (places - len(found))

    def _linear(self, owner: nn.Module, name: str) -> structures.Weights:
        return self._weights(self._part(owner, name), (Linear, QuantizedLinear))

    def _weights(self, module: nn.Module, kinds: tuple[type, ...]) -> structures.Weights:
        """Raises Unfit for a module of another kind, such as one with an adapter beside it."""
        if type(module) not in kinds:
            raise Unfit
        weight, bias = self._attribute(module, "weight"), self._attribute(module, "bias")
        found = structures.Weights(bias=self._address(bias, torch.float32))
        if isinstance(weight, PackedMatrix):
            found.bits, found.rows, found.columns = weight.bits, weight.rows, weight.columns
            found.values, found.scales = self._address(weight.blocks), self._address(weight.scales)
            found.minimums = self._address(weight.minimums)
        else:
            found.values = self._address(weight, torch.float16, torch.float32)
            found.bits, (found.rows, found.columns) = BITS[weight.dtype], weight.shape
        return found

    def _norm(self, owner: nn.Module, name: str | None) -> structures.Norm:
        if name is None:
            return structures.Norm()
        norm = self._part(owner, name)
        if type(norm) not in (RMSNorm, LayerNorm):
            raise Unfit
        weight, bias = self._attribute(norm, "weight"), self._attribute(norm, "bias")
        return structures.Norm(self._address(weight, torch.float32), self._address(bias, torch.float32), norm.eps)

    def _part(self, module: nn.Module, path: str) -> Any:
        """The module at a dotted path below another."""
        for name in path.split("."):
            owner, module = module, module.get_submodule(name)
            self._seen.append((owner._modules, name, module))
        return module

    def _attribute(self, module: nn.Module, name: str) -> Any:
        found = getattr(module, name, None)
        owner = module._parameters if name in module._parameters else vars(module)
        self._seen.append((owner, name, found))
        return found

    def _address(self, tensor: torch.Tensor | None, *types: torch.dtype) -> int | None:
        """Raises Unfit where C can't read it."""
        if tensor is None:
            return None
        if tensor.device.type != "cpu" or not tensor.is_contiguous() or (types and tensor.dtype not in types):
            raise Unfit
        self._tensors.append(tensor)
        return tensor.data_ptr()


def step(model: BaseModel, ids: torch.Tensor, cache: KVCache | None, last: bool) -> torch.Tensor | None:
    """The logits of a few tokens that continue a cache, as the model's forward gives them; None where it has to."""
    if type(cache) is not KVCache or not _fits(ids, cache) or kernel() is None:
        return None
    fused = _fused(model, cache)
    if fused is None or (fused.trains and torch.is_grad_enabled()):
        return None
    return fused.logits(model, ids, cache, last)


def runs(model: BaseModel, cache: KVCache) -> bool:
    """Whether the steps that follow a prompt are made here: then each of up to MOST_ROWS rows is bitwise as alone."""
    ids = torch.zeros(1, 1, dtype=torch.int64)
    return (
        type(cache) is KVCache
        and "forward" not in vars(model)
        and _fits(ids, cache)
        and kernel() is not None
        and _fused(model, cache) is not None
    )


def _fits(ids: torch.Tensor, cache: KVCache) -> bool:
    return (
        ids.dtype == torch.int64
        and ids.shape[0] == 1
        and 0 < ids.shape[1] <= MOST_ROWS
        and ids.device.type == cache.keys.device.type == "cpu"
        and ids.is_contiguous()
        and cache.keys.dtype in BITS
    )


class Known:
    """What was found of a model when a sequence began: how C sees it, or that C can't run it.

    It is asked once for each sequence: that takes as long as a few of a small model's products.
    """

    def __init__(self, cache: KVCache, fused: Fused | None) -> None:
        self.cache = weakref.ref(cache)
        self.fused = fused

    def __reduce__(self) -> tuple[type, tuple[()]]:
        """None: a copy of a model has other weights."""
        return type(None), ()


def _fused(model: BaseModel, cache: KVCache) -> Fused | None:
    """The model as it is now, described once; None where C can't run it."""
    known = model.known_to_c
    if known is not None and known.cache() is cache:
        return known.fused
    fused = None if known is None else known.fused
    if fused is None or not fused.is_of(model):
        fused = _described(model)
    model.known_to_c = Known(cache, fused)
    return fused


def _described(model: BaseModel) -> Fused | None:
    layout = LAYOUTS.get(type(model).__module__.rpartition(".")[2])
    if layout is None or any(map(_is_listened_to, model.modules())):
        return None
    try:
        return Fused(model, layout)
    except Unfit:
        return None


def _is_listened_to(module: nn.Module) -> bool:
    """Whether hooks wait for a module's forward, which a step in C would not call."""
    return bool(module._forward_hooks or module._forward_pre_hooks)
