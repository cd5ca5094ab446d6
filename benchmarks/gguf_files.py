"""GGUF files that llama.cpp and we can both read, made from other checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind

import models
from tests import tiny

CONTEXT = 2048  #: positions, as LLaMA 7B was published


def as_floats(source: Path, target: Path) -> Path:
    """The same file with every tensor decoded to float32."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "llama")
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            kinds = field.types
            writer.add_key_value(key, field.contents(), kinds[0], kinds[-1] if len(kinds) > 1 else None)
    for tensor in reader.tensors:
        decoded = gguf.dequantize(tensor.data, tensor.tensor_type)
        writer.add_tensor(tensor.name, np.ascontiguousarray(decoded, dtype=np.float32), raw_dtype=Kind.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def as_q4_0(folder: Path, target: Path) -> Path:
    """A LLaMA's weights with every matrix in Q4_0, head and embedding too: llama.cpp can't read fewer bytes of them."""
    loaded = models.load(folder, "fp16")
    config = loaded.checkpoint.config
    known = {"num_key_value_heads": config["num_attention_heads"], "max_position_embeddings": CONTEXT}
    tiny.write_gguf(target, loaded.model, known | config, Kind.Q4_0)
    return target


def once(target: Path, make: Callable[[Path], Path]) -> Path:
    """The file, made unless it is there; one that was interrupted is made anew."""
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        make(target.with_suffix(".part")).rename(target)
    return target
