"""What the speed benchmarks run: a checkpoint at a tier, and the same for the peers that can run it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from chatapp import checkpoints

from . import gguf_files, shapes
from .settings import Settings

Find = Callable[[Settings], Path]


@dataclass(frozen=True)
class Subject:
    """`find` is what we load, `gguf` what llama.cpp does, `floats` what transformers does; either may be missing.

    `text`: there is a tokenizer, and tokens become text as they come.
    """

    name: str
    find: Find
    tier: str
    gguf: Find | None = None
    floats: Find | None = None
    text: bool = False


def default_model(settings: Settings) -> Path:
    return checkpoints.ensure_default_model(settings.data)


def default_floats(settings: Settings) -> Path:
    """The default model's weights as floats, for a tier to be made of."""
    target = settings.scratch / "SmolLM2-135M-floats.gguf"
    return gguf_files.once(target, partial(gguf_files.as_floats, default_model(settings)))


def shape(name: str, checkpoint: str, **changes: int) -> Find:
    """A made checkpoint; its folder has the name."""
    return lambda settings: shapes.make(shapes.Shape(checkpoint, changes), settings.scratch / name)


def q4_0(name: str, find: Find) -> Find:
    """A made checkpoint as llama.cpp's Q4_0."""

    def made(settings: Settings) -> Path:
        return gguf_files.once(settings.scratch / f"{name}-Q4_0.gguf", partial(gguf_files.as_q4_0, find(settings)))

    return made


LLAMA = "LLaMA-7B-8-layers"
llama_shape = shape(LLAMA, "huggyllama/llama-7b", num_hidden_layers=8)
LLAMA_2 = "LLaMA-7B-2-layers"
llama_2_shape = shape(LLAMA_2, "huggyllama/llama-7b", num_hidden_layers=2)

SMOLLM2 = Subject("SmolLM2-135M Q4_1", default_model, "int4", default_model, default_model, text=True)
SMOLLM2_INT4 = Subject("SmolLM2-135M INT4", default_floats, "int4", default_model, text=True)
LLAMA_INT4 = Subject(f"{LLAMA} INT4", llama_shape, "int4", q4_0(LLAMA, llama_shape))
LLAMA_2_INT4 = Subject(f"{LLAMA_2} INT4", llama_2_shape, "int4", q4_0(LLAMA_2, llama_2_shape))
LLAMA_INT8 = Subject(f"{LLAMA} INT8", llama_shape, "int8")
LLAMA_FP16 = Subject(f"{LLAMA} FP16", llama_shape, "fp16")
CHATGLM2, BLOOM, BAICHUAN = (
    Subject(f"{name} INT4", shape(name, checkpoint, **{layers: 4}), "int4")
    for name, checkpoint, layers in (
        ("ChatGLM2-6B-4-layers", "THUDM/chatglm2-6b", "num_layers"),
        ("BLOOM-7B1-4-layers", "bigscience/bloom-7b1", "n_layer"),
        ("Baichuan-13B-4-layers", "baichuan-inc/Baichuan-13B-Chat", "num_hidden_layers"),
    )
)
