"""Tiny models of each family as GGUF files, converted by the arithmetic that llama.cpp's converters publish.

The weights come from transformers' models and from the plain reference, which also say what the logits must be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from gguf import GGMLQuantizationType as Kind

from tests import reference
from tests.tiny import BAICHUAN_13B, GGUF_NAMES, LLAMA, gguf_name, randomize

VOCABULARY = 320
CONTEXT = 512
HIDDEN, INNER, HEADS = 64, 96, 8
#: What a file says of itself, in place of "arch." the architecture's name.
Values = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """`logits`: ids [1, time] -> [1, time, vocabulary]."""

    architecture: str
    values: Values
    tensors: dict[str, torch.Tensor]
    logits: Callable[[torch.Tensor], torch.Tensor]


def llama(hidden: int = HIDDEN, inner: int = INNER) -> Source:
    config = transformers.LlamaConfig(**LLAMA | {"hidden_size": hidden, "intermediate_size": inner})
    model = _ready(transformers.LlamaForCausalLM(config))
    heads = {"q_proj": LLAMA["num_attention_heads"], "k_proj": LLAMA["num_key_value_heads"]}
    tensors = {gguf_name(name): _paired(name, tensor, heads) for name, tensor in model.state_dict().items()}
    values = _values(3, hidden=hidden, inner=inner, kv_heads=4) | {
        "arch.rope.dimension_count": hidden // HEADS,
        "arch.rope.freq_base": 10000.0,
        "arch.attention.layer_norm_rms_epsilon": 1e-5,
    }
    return Source("llama", values, tensors, _logits(model))


def bloom() -> Source:
    """Six heads: the slopes that no power of two gives are in use."""
    heads, hidden = 6, 96
    config = transformers.BloomConfig(vocab_size=VOCABULARY, hidden_size=hidden, n_layer=3, n_head=heads)
    model = _ready(transformers.BloomForCausalLM(config))
    names = {
        "word_embeddings": "token_embd",
        "word_embeddings_layernorm": "token_embd_norm",
        "ln_f": "output_norm",
        "input_layernorm": "attn_norm",
        "self_attention.query_key_value": "attn_qkv",
        "self_attention.dense": "attn_output",
        "post_attention_layernorm": "ffn_norm",
        "mlp.dense_h_to_4h": "ffn_up",
        "mlp.dense_4h_to_h": "ffn_down",
    }
    tensors = dict(_renamed(model.transformer.state_dict(), names, "h."))
    for name, tensor in tensors.items():
        if "attn_qkv" in name:
            by_head = tensor.view(heads, 3, hidden // heads, *tensor.shape[1:])
            tensors[name] = torch.cat([by_head[:, part].flatten(0, 1) for part in range(3)])
    values = _values(3, hidden=hidden, inner=4 * hidden, heads=heads)
    return Source("bloom", values | {"arch.attention.layer_norm_epsilon": 1e-5}, tensors, _logits(model))


def baichuan_7b(vocabulary: int = VOCABULARY) -> Source:
    """As many layers as llama.cpp wants to see. With Baichuan2's vocabulary the reference has a head of unit rows."""
    layers = 32
    changes = {
        "num_hidden_layers": layers,
        "num_key_value_heads": HEADS,
        "vocab_size": vocabulary,
        "rms_norm_eps": 1e-6,
    }
    model = _ready(transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA | changes)))
    parts = {"q_proj": HEADS, "k_proj": HEADS}
    tensors = {gguf_name(name): _paired(name, tensor, parts) for name, tensor in model.state_dict().items()}
    tensors["output.weight"] = tensors["output.weight"].clone()
    if vocabulary != VOCABULARY:
        model.lm_head.weight.data /= model.lm_head.weight.norm(dim=1, keepdim=True)
    return Source("baichuan", _baichuan_values(layers, vocabulary), tensors, _logits(model))


def baichuan2_7b() -> Source:
    return baichuan_7b(125696)


def baichuan_13b() -> Source:
    layers = 40
    config = BAICHUAN_13B | {"num_hidden_layers": layers}
    weights = reference.random_weights(reference.baichuan_shapes(config))
    split = {
        name.replace("W_pack", f"{part}_proj"): rows
        for name, tensor in weights.items()
        for part, rows in (zip("qkv", tensor.chunk(3), strict=True) if "W_pack" in name else [("", tensor)])
    }
    tensors = {gguf_name(name): _paired(name, each, {"q_proj": HEADS, "k_proj": HEADS}) for name, each in split.items()}

    def logits(ids: torch.Tensor) -> torch.Tensor:
        rows = reference.baichuan_alibi(weights, config, ids[0].tolist(), ids.shape[1], norm_head=False)
        return torch.from_numpy(rows)[None]

    return Source("baichuan", _baichuan_values(layers, VOCABULARY), tensors, logits)


def _baichuan_values(layers: int, vocabulary: int) -> Values:
    return _values(layers, vocabulary=vocabulary) | {
        "arch.rope.dimension_count": HIDDEN // HEADS,
        "arch.attention.layer_norm_rms_epsilon": 1e-6,
    }


def glm(ratio: float = 50.0) -> Source:
    """transformers' form of GLM-4: q, k and v apart; chatglm3-6b-32k's base of 500,000."""
    hidden, heads = 256, 4
    config = transformers.GlmConfig(
        hidden_size=hidden,
        intermediate_size=INNER,
        num_hidden_layers=3,
        num_attention_heads=heads,
        num_key_value_heads=2,
        head_dim=hidden // heads,
        vocab_size=VOCABULARY,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-5,
        attention_bias=True,
        tie_word_embeddings=False,
        pad_token_id=0,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0 * ratio, "partial_rotary_factor": 0.5},
    )
    model = _ready(transformers.GlmForCausalLM(config))
    values = _values(3, hidden=hidden, heads=heads, kv_heads=2) | {
        "arch.rope.dimension_count": hidden // heads // 2,
        "arch.rope.freq_base": 10000.0 * ratio,
        "arch.attention.layer_norm_rms_epsilon": 1e-5,
    }
    tensors = dict(_renamed(model.state_dict(), GGUF_NAMES | {"mlp.gate_up_proj": "ffn_up"}, "model.layers."))
    return Source("chatglm", values, tensors, _logits(model))


def chatglm() -> Source:
    """The published form: q, k and v in one."""
    parts = glm()
    tensors = {}
    for name, tensor in parts.tensors.items():
        if "attn_q." in name:
            packed = [parts.tensors[name.replace("attn_q", f"attn_{part}")] for part in "qkv"]
            tensors[name.replace("attn_q", "attn_qkv")] = torch.cat(packed)
        elif "attn_k." not in name and "attn_v." not in name:
            tensors[name] = tensor
    return Source(parts.architecture, parts.values, tensors, parts.logits)


def decoded(source: Source, kind: Kind | Callable[[str], Kind]) -> Source:
    """The same with the values that its matrices have in a file of this kind."""
    tensors = {name: _decoded(tensor, name, kind) for name, tensor in source.tensors.items()}
    return Source(source.architecture, source.values, tensors, source.logits)


def _decoded(tensor: torch.Tensor, name: str, kind: Kind | Callable[[str], Kind]) -> torch.Tensor:
    stored = kind if isinstance(kind, Kind) else kind(name)
    if tensor.ndim == 1 or stored is Kind.F64:
        return tensor
    return torch.from_numpy(gguf.dequantize(encode(tensor.numpy(), stored), stored))


SOURCES: Mapping[str, Callable[[], Source]] = {
    "llama": llama,
    "bloom": bloom,
    "baichuan-7b": baichuan_7b,
    "baichuan2-7b": baichuan2_7b,
    "baichuan-13b": baichuan_13b,
    "chatglm": chatglm,
    "glm": glm,
}


def _ready(model: transformers.PreTrainedModel) -> transformers.PreTrainedModel:
    randomize(model)
    model.tie_weights()
    return model.eval().requires_grad_(False)


def _logits(model: transformers.PreTrainedModel) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda ids: model(ids).logits


def _values(
    layers: int,
    *,
    hidden: int = HIDDEN,
    inner: int = INNER,
    heads: int = HEADS,
    kv_heads: int | None = None,
    vocabulary: int = VOCABULARY,
) -> Values:
    return {
        "arch.context_length": CONTEXT,
        "arch.embedding_length": hidden,
        "arch.block_count": layers,
        "arch.feed_forward_length": inner,
        "arch.attention.head_count": heads,
        "arch.attention.head_count_kv": kv_heads or heads,
        "arch.vocab_size": vocabulary,
        "tokenizer.ggml.model": "none",
    }


def _paired(name: str, tensor: torch.Tensor, heads: Mapping[str, int]) -> torch.Tensor:
    """The rows of q and k with the partners of a rotation side by side."""
    for part, count in heads.items():
        if part in name:
            return tensor.view(count, 2, -1, tensor.shape[1]).transpose(1, 2).reshape(tensor.shape)
    return tensor


def _renamed(
    state: Mapping[str, torch.Tensor], names: Mapping[str, str], blocks: str
) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in state.items():
        part, kind = name.rsplit(".", 1)
        if part.startswith(blocks):
            number, rest = part.removeprefix(blocks).split(".", 1)
            yield f"blk.{number}.{names[rest]}.{kind}", tensor
        else:
            yield f"{names[part]}.{kind}", tensor


def write(
    path: Path,
    source: Source,
    kind: Kind | Callable[[str], Kind] = Kind.F32,
    *,
    values: Values | None = None,
    split: int = 0,
) -> Path:
    """Writes the matrices as `kind`, or as it says for each name; `split` is how many tensors go into a file.

    A value that is None is left out. Returns the file, or the first of several.
    """
    writer = gguf.GGUFWriter(path, source.architecture, split_max_tensors=split)
    for key, value in (source.values | (values or {})).items():
        if value is not None:
            add_value(writer, key.replace("arch.", f"{source.architecture}.", 1), value)
    for name, tensor in source.tensors.items():
        stored = kind if isinstance(kind, Kind) else kind(name)
        stored = stored if tensor.ndim > 1 else Kind.F32
        writer.add_tensor(name, encode(tensor.numpy(), stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path if not split else min(path.parent.glob(f"{path.stem}-*"))


def add_value(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    add = {str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
    add.get(type(value), writer.add_array)(key, value)


def encode(values: np.ndarray, kind: Kind) -> np.ndarray:
    """The nearest encoding; random bytes where the gguf package can only decode a kind.

    Below 64 every pair of bytes is a finite half.
    """
    if kind is Kind.F64:
        return values.astype(np.float64)
    try:
        return gguf.quantize(np.ascontiguousarray(values), kind)
    except NotImplementedError:
        shape = gguf.quant_shape_to_byte_shape(values.shape, kind)
        return np.random.default_rng(0).integers(0, 64, shape, dtype=np.uint8)
