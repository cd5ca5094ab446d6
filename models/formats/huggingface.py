"""A Hugging Face folder: config.json, safetensors (sharded or not), tokenizer files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from ..base import CheckpointError
from ..prompts import ChatHints
from ..tokenizer import Tokenizer, read_tokenizer
from ..tokenizers.reading import read_settings
from .shards import read_shard

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")
INDEX = "model.safetensors.index.json"


class HuggingFaceCheckpoint:
    quantized = False

    def __init__(self, path: Path) -> None:
        self.path = path
        self.origin = str(path.resolve())
        self.config: dict[str, Any] = read_json(path / "config.json")

    @staticmethod
    def recognises(path: Path) -> bool:
        return (path / "config.json").is_file()

    @staticmethod
    def glance(path: Path) -> dict[str, Any]:
        return read_json(path / "config.json")

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        for shard in self._shards():
            yield from read_shard(shard)

    def nbytes(self) -> int:
        return sum(shard.stat().st_size for shard in self._shards())

    def files(self) -> list[Path]:
        return [self.path / "config.json", *self._shards()]

    def tokenizer(self) -> Tokenizer:
        return read_tokenizer(self.path, self.config)

    def chat_hints(self) -> ChatHints:
        return read_hints(self.path, self.config)

    def _shards(self) -> list[Path]:
        """The weight files; the index says which where there is one, since folders may hold others beside them."""
        index = self.path / INDEX
        if index.is_file():
            names = sorted(set(read_json(index).get("weight_map", {}).values()))
            shards = [self.path / Path(name).name for name in names]
        else:
            shards = sorted(self.path.glob("*.safetensors"))
        missing = [shard.name for shard in shards if not shard.is_file()]
        if missing:
            raise CheckpointError(f"{missing[0]} is missing in {self.path}; download it from the same repository.")
        if not shards:
            raise CheckpointError(
                f"No weights (*.safetensors) are in {self.path}; download them from the same repository."
            )
        return shards


def read_hints(folder: Path, config: Mapping[str, Any]) -> ChatHints:
    """What the files beside a tokenizer say, and the names that a folder goes by."""
    settings = read_settings(folder / "tokenizer_config.json")
    generation = read_settings(folder / "generation_config.json")
    eos = generation.get("eos_token_id", config.get("eos_token_id"))
    names = (config.get("_name_or_path"), settings.get("name_or_path"), folder.resolve().name)
    return ChatHints(
        template=_template(folder, settings),
        special_tokens={key: _content(token) for key, token in settings.items() if key in SPECIAL_TOKENS and token},
        names=tuple(name.lower() for name in names if name),
        eos_ids=frozenset(eos if isinstance(eos, list) else [] if eos is None else [eos]),
        generation=generation,
    )


def _template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    """chat_template.jinja in newer folders, in older ones a text, or several by name, in tokenizer_config.json."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8", errors="replace")
    found = settings.get("chat_template")
    if isinstance(found, list):
        found = {entry["name"]: entry["template"] for entry in found}.get("default")
    return found


def _content(token: str | dict[str, Any]) -> str:
    return token["content"] if isinstance(token, dict) else token


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; raises CheckpointError naming the file if it holds none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); download it again.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} should hold a JSON object; download it again.")
    return value
