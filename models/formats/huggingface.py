"""A Hugging Face folder: config.json, safetensors (sharded or not), tokenizer files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ..base import CheckpointError
from ..tokenizer import Tokenizer, read_tokenizer

INDEX = "model.safetensors.index.json"


class HuggingFaceCheckpoint:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.config: dict[str, Any] = read_json(path / "config.json")

    @staticmethod
    def recognises(path: Path) -> bool:
        return (path / "config.json").is_file()

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        for shard in self._shards():
            with _opened(shard) as file:
                for name in file.keys():
                    yield name, file.get_tensor(name)

    def nbytes(self) -> int:
        return sum(shard.stat().st_size for shard in self._shards())

    def tokenizer(self) -> Tokenizer:
        return read_tokenizer(self.path, self.config)

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


@contextmanager
def _opened(shard: Path):
    try:
        with safe_open(shard, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise CheckpointError(f"{shard} is damaged or incomplete ({error}); download it again.") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; raises CheckpointError naming the file if it holds none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); download it again.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} should hold a JSON object; download it again.")
    return value
