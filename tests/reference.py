"""Plain references in float64 for architectures that transformers does not have: whole sequences, no cache, no tricks.

Written from descriptions of the models, and unlike models/ on purpose: heads one by one, rotation as a product of
complex numbers, ALiBi on the key's absolute index. Weights go by their published names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

Weights = Mapping[str, np.ndarray]


def chatglm_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tensors of ChatGLM-6B, the leftover frequencies and the copy of the embedding included."""
    hidden, inner = config["hidden_size"], config["inner_hidden_size"]
    linears = {
        "attention.query_key_value": (3 * hidden, hidden),
        "attention.dense": (hidden, hidden),
        "mlp.dense_h_to_4h": (inner, hidden),
        "mlp.dense_4h_to_h": (hidden, inner),
    }
    shapes: dict[str, tuple[int, ...]] = {"transformer.word_embeddings.weight": (config["vocab_size"], hidden)}
    for layer in range(config["num_layers"]):
        block = f"transformer.layers.{layer}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes |= {f"{block}.{norm}.weight": (hidden,), f"{block}.{norm}.bias": (hidden,)}
        for name, shape in linears.items():
            shapes |= {f"{block}.{name}.weight": shape, f"{block}.{name}.bias": shape[:1]}
        shapes[f"{block}.attention.rotary_emb.inv_freq"] = (hidden // config["num_attention_heads"] // 4,)
    shapes |= {f"transformer.final_layernorm.{part}": (hidden,) for part in ("weight", "bias")}
    return shapes | {"lm_head.weight": (config["vocab_size"], hidden)}


def baichuan_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tensors of every Baichuan."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    parts = {
        "input_layernorm": (hidden,),
        "self_attn.W_pack": (3 * hidden, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "post_attention_layernorm": (hidden,),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    layers = range(config["num_hidden_layers"])
    blocks = {f"model.layers.{layer}.{name}.weight": shape for layer in layers for name, shape in parts.items()}
    table = (config["vocab_size"], hidden)
    return {"model.embed_tokens.weight": table, **blocks, "model.norm.weight": (hidden,), "lm_head.weight": table}


def random_weights(shapes: Mapping[str, Sequence[int]], seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights that keep activations at their size; norms and biases are random too."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes.items():
        values = torch.randn(tuple(shape), generator=generator)
        if len(shape) == 2:
            weights[name] = values / shape[1] ** 0.5
        else:
            weights[name] = values * 0.1 + (0 if name.endswith("bias") else 1)
    return weights


def wide(weights: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.double().numpy() for name, tensor in weights.items()}


def softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def turn(rows: np.ndarray, positions: Sequence[int], frequencies: np.ndarray) -> np.ndarray:
    """Rows [time, 2n] as n complex numbers each, the second half imaginary, turned by position x frequency."""
    count = len(frequencies)
    numbers = rows[:, :count] + 1j * rows[:, count:]
    numbers = numbers * np.exp(1j * np.outer(positions, frequencies))
    return np.concatenate([numbers.real, numbers.imag], axis=1)


# ChatGLM-6B


def layer_norm(x: np.ndarray, weights: Weights, name: str, eps: float) -> np.ndarray:
    centred = x - x.mean(axis=-1, keepdims=True)
    scale = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + eps)
    return centred / scale * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def affine(x: np.ndarray, weights: Weights, name: str) -> np.ndarray:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(0.7978845608028654 * (x + 0.044715 * x**3)))


def chatglm_positions(ids: Sequence[int], mask_id: int, sop_id: int) -> tuple[list[int], list[int]]:
    """Both positions of every token: its place and 0 in the prompt; in the reply the blank's place and 1, 2, ..."""
    end, blank = ids.index(sop_id), ids.index(mask_id)
    first = [place if place < end else blank for place in range(len(ids))]
    second = [0] * end + list(range(1, len(ids) - end + 1))
    return first, second


def chatglm(
    tensors: Mapping[str, torch.Tensor],
    config: Mapping[str, Any],
    ids: Sequence[int],
    rows: int,
    half_frequencies: bool = True,
    prefix: torch.Tensor | None = None,
) -> np.ndarray:
    """Logits [rows, vocabulary] of ChatGLM-6B for the last rows of a sequence.

    A P-tuning prefix is [count, 2 * layers * hidden]: for each layer keys, then values, all heads of each side by side.
    """
    weights, eps = wide(tensors), config["layernorm_epsilon"]
    heads, size = config["num_attention_heads"], config["hidden_size"] // config["num_attention_heads"]
    mask_id = config["gmask_token_id"] if config["gmask_token_id"] in ids else config["mask_token_id"]
    first, second = chatglm_positions(ids, mask_id, config["bos_token_id"])
    frequencies = 10000.0 ** (-np.arange(0, size // 2, 2) / (size // 2))
    if half_frequencies:
        frequencies = frequencies.astype(np.float16).astype(np.float64)
    seen = np.tri(len(ids), dtype=bool)
    seen[:, : ids.index(config["bos_token_id"])] = True
    learned = np.zeros((0, 2 * config["num_layers"] * heads * size)) if prefix is None else prefix.double().numpy()
    seen = np.concatenate([np.ones((len(ids), len(learned)), dtype=bool), seen], axis=1)

    def turned(rows: np.ndarray) -> np.ndarray:
        left, right = rows[:, : size // 2], rows[:, size // 2 :]
        return np.concatenate([turn(left, first, frequencies), turn(right, second, frequencies)], axis=1)

    x = weights["transformer.word_embeddings.weight"][list(ids)]
    for layer in range(config["num_layers"]):
        block = f"transformer.layers.{layer}"
        normed = layer_norm(x, weights, f"{block}.input_layernorm", eps)
        packed = affine(normed, weights, f"{block}.attention.query_key_value")
        results = []
        for head in range(heads):
            start = 3 * head * size
            q, k, v = (packed[:, start + part * size : start + (part + 1) * size] for part in range(3))
            at = 2 * layer * heads * size + head * size
            k = np.concatenate([learned[:, at : at + size], turned(k)])
            v = np.concatenate([learned[:, at + heads * size :][:, :size], v])
            scores = turned(q) @ k.T / np.sqrt(size)
            results.append(softmax(np.where(seen, scores, -1e30)) @ v)
        attended = affine(np.concatenate(results, axis=1), weights, f"{block}.attention.dense")
        x = np.sqrt(2 * 28) * normed + attended
        normed = layer_norm(x, weights, f"{block}.post_attention_layernorm", eps)
        inner = gelu(affine(normed, weights, f"{block}.mlp.dense_h_to_4h"))
        x = np.sqrt(2 * 28) * normed + affine(inner, weights, f"{block}.mlp.dense_4h_to_h")
    final = layer_norm(x[-rows:], weights, "transformer.final_layernorm", eps)
    return final @ weights["transformer.word_embeddings.weight"].T


# Baichuan-13B and Baichuan2-13B


def slopes(heads: int) -> list[float]:
    """ALiBi's slopes; where heads is no power of two, the missing ones are every other slope of twice as many."""

    def series(count: int) -> list[float]:
        return [2.0 ** (-8 * (number + 1) / count) for number in range(count)]

    power = 1
    while 2 * power <= heads:
        power *= 2
    return series(power) + series(2 * power)[::2][: heads - power]


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + eps) * weight


def baichuan_alibi(
    tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any], ids: Sequence[int], rows: int, norm_head: bool
) -> np.ndarray:
    """Logits [rows, vocabulary] of a Baichuan with ALiBi for the last rows of a sequence; norm_head is Baichuan2's."""
    weights, eps = wide(tensors), config["rms_norm_eps"]
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    size, time = hidden // heads, len(ids)
    future = ~np.tri(time, dtype=bool)
    x = weights["model.embed_tokens.weight"][list(ids)]
    for layer in range(config["num_hidden_layers"]):
        block = {
            name.removeprefix(f"model.layers.{layer}.").removesuffix(".weight"): value
            for name, value in weights.items()
            if name.startswith(f"model.layers.{layer}.")
        }
        normed = rms_norm(x, block["input_layernorm"], eps)
        queries, keys, values = (normed @ part.T for part in np.split(block["self_attn.W_pack"], 3))
        results = []
        for head, slope in enumerate(slopes(heads)):
            own = slice(head * size, (head + 1) * size)
            scores = queries[:, own] @ keys[:, own].T / np.sqrt(size) + slope * np.arange(time)
            scores[future] = -1e30
            results.append(softmax(scores) @ values[:, own])
        x = x + np.concatenate(results, axis=1) @ block["self_attn.o_proj"].T
        normed = rms_norm(x, block["post_attention_layernorm"], eps)
        gate, up = normed @ block["mlp.gate_proj"].T, normed @ block["mlp.up_proj"].T
        x = x + (gate / (1 + np.exp(-gate)) * up) @ block["mlp.down_proj"].T
    head = weights["lm_head.weight"]
    if norm_head:
        head = head / np.sqrt((head**2).sum(axis=1, keepdims=True))
    return rms_norm(x[-rows:], weights["model.norm.weight"], eps) @ head.T
