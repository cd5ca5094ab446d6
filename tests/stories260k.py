"""The trained LLaMA of 260,000 parameters in tests/data, converted from llama2.c's form to the Hugging Face form."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

STORIES = Path(__file__).parent / "data" / "models" / "stories260K"
#: Field numbers and types of SentencePiece's ModelProto that the vocabulary needs.
PIECES, TRAINER, BPE, BYTE = 1, 2, 2, 6


def save_folder(folder: Path) -> Path:
    """Writes the checkpoint with its tokenizer; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    config, tensors = read_llama2c(STORIES / "stories260K.bin")
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    pieces = read_pieces(STORIES / "tok512.bin", config["vocab_size"])
    (folder / "tokenizer.model").write_bytes(sentencepiece_proto(pieces))
    return folder


def read_llama2c(path: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    """llama2.c's first format: seven int32, then float32 tensors, each kind of all layers together."""
    data = path.read_bytes()
    hidden, inner, layers, heads, kv_heads, vocabulary, context = struct.unpack("<7i", data[:28])
    values = np.frombuffer(data, dtype="<f4", offset=28)
    kv = hidden // heads * kv_heads
    position = 0

    def take(*shape: int) -> torch.Tensor:
        nonlocal position
        size = int(np.prod(shape))
        taken = values[position : position + size].reshape(shape)
        position += size
        return torch.from_numpy(taken.copy())

    tensors = {"model.embed_tokens.weight": take(abs(vocabulary), hidden)}
    stacks = {
        "input_layernorm": take(layers, hidden),
        "self_attn.q_proj": halves(take(layers, hidden, hidden), heads),
        "self_attn.k_proj": halves(take(layers, kv, hidden), kv_heads),
        "self_attn.v_proj": take(layers, kv, hidden),
        "self_attn.o_proj": take(layers, hidden, hidden),
        "post_attention_layernorm": take(layers, hidden),
        "mlp.gate_proj": take(layers, inner, hidden),
        "mlp.down_proj": take(layers, hidden, inner),
        "mlp.up_proj": take(layers, inner, hidden),
    }
    for name, stack in stacks.items():
        tensors |= {f"model.layers.{layer}.{name}.weight": stack[layer].clone() for layer in range(layers)}
    tensors["model.norm.weight"] = take(hidden)
    config = {
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": abs(vocabulary),  # its sign says whether the head is tied
        "max_position_embeddings": context,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": vocabulary > 0,
    }
    return config, tensors


def halves(stack: torch.Tensor, heads: int) -> torch.Tensor:
    """Meta rotates neighbouring rows of a head, the Hugging Face form the rows i and i + d/2."""
    layers, rows, columns = stack.shape
    pairs = stack.view(layers, heads, rows // heads // 2, 2, columns)
    return pairs.transpose(2, 3).reshape(layers, rows, columns)


def read_pieces(path: Path, count: int) -> list[tuple[str, float]]:
    data, position = path.read_bytes(), 4
    pieces = []
    for _ in range(count):
        score, length = struct.unpack_from("<fi", data, position)
        position += 8 + length
        pieces.append((data[position - length : position].decode("utf-8"), score))
    return pieces


def sentencepiece_proto(pieces: list[tuple[str, float]]) -> bytes:
    """A BPE model in SentencePiece's protocol-buffer form; its first pieces are <unk>, <s>, </s> and the 256 bytes."""
    named = [("<unk>", 2), ("<s>", 3), ("</s>", 3)] + [(f"<0x{byte:02X}>", BYTE) for byte in range(256)]
    named += [(text.replace(" ", "▁"), 1) for text, _ in pieces[len(named) :]]
    encoded = b""
    for (text, kind), (_, score) in zip(named, pieces, strict=True):
        message = field(1, text.encode()) + struct.pack("<Bf", 2 << 3 | 5, score) + field(3, kind)
        encoded += field(PIECES, message)
    return encoded + field(TRAINER, field(3, BPE) + field(35, 1))


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def varint(value: int) -> bytes:
    low, rest = value & 127, value >> 7
    return bytes([low | 128]) + varint(rest) if rest else bytes([low])
