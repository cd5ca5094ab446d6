"""Which file runs a checkpoint, decided from its config alone."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch

from .base import BaseModel, CheckpointError


@dataclass(frozen=True)
class Architecture:
    """`name` is the file in this package; `family` is what users choose by."""

    name: str
    family: str
    matches: Callable[[Mapping[str, Any]], bool]

    def module(self) -> ModuleType:
        """The file's module, with its ModelArgs and Model."""
        return importlib.import_module(f".{self.name}", __package__)


def _says(config: Mapping[str, Any], model_type: str) -> bool:
    """Whether a config names a model type, or, where it lacks one, an architecture that begins with the name."""
    if config.get("model_type"):
        return config["model_type"] == model_type
    named = config.get("architectures")
    return isinstance(named, list) and any(str(name).lower().startswith(model_type) for name in named)


def _is_chatglm(config: Mapping[str, Any]) -> bool:
    return _says(config, "chatglm") and "inner_hidden_size" in config


def _is_chatglm2(config: Mapping[str, Any]) -> bool:
    # ChatGLM-6B says "chatglm" as well, and the GLM of 2021 "glm": the keys tell them apart.
    if _says(config, "glm"):
        return "num_key_value_heads" in config
    return _says(config, "chatglm") and "padded_vocab_size" in config


def _is_llama(config: Mapping[str, Any]) -> bool:
    return _says(config, "llama")


def _is_bloom(config: Mapping[str, Any]) -> bool:
    return _says(config, "bloom")


def _is_baichuan(config: Mapping[str, Any]) -> bool:
    return _says(config, "baichuan")


ARCHITECTURES = (
    Architecture("chatglm", "chatglm", _is_chatglm),
    Architecture("chatglm2", "chatglm", _is_chatglm2),
    Architecture("llama", "llama", _is_llama),
    Architecture("bloom", "bloom", _is_bloom),
    Architecture("baichuan", "baichuan", _is_baichuan),
)


def resolve(config: Mapping[str, Any]) -> Architecture:
    """The architecture of a config.json; raises CheckpointError naming what was seen and what is supported."""
    for architecture in ARCHITECTURES:
        if architecture.matches(config):
            return architecture
    seen = f"model_type {config.get('model_type')!r}, architectures {config.get('architectures')!r}"
    supported = ", ".join(architecture.name for architecture in ARCHITECTURES)
    raise CheckpointError(f"This architecture can't be run here: {seen}; supported are {supported}.")


def empty_model(config: Mapping[str, Any]) -> BaseModel:
    """The model of a config.json without its weights, on the meta device. Raises CheckpointError."""
    module = resolve(config).module()
    with torch.device("meta"):
        return module.Model(module.ModelArgs.from_dict(config))
