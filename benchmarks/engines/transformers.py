"""transformers in float32, with the weights of the same GGUF file or folder."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
import transformers

from .protocol import decode, serve


class Engine:
    def open(self, path: str, threads: int, length: int) -> None:
        """The cache grows by itself: `length` is not needed."""
        torch.set_num_threads(threads)
        found = Path(path)
        folder, place = (found.parent, {"gguf_file": found.name}) if found.is_file() else (found, {})
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **place)
        self._model = model.eval()
        self._ids: list[int] = []

    @torch.inference_mode()
    def decode(self, ids: list[int], new: int) -> dict[str, Any]:
        kept = len(ids) - 1 if ids == self._ids else 0
        self._start(ids, kept)
        return decode(self._next, ids[kept:], new)

    @torch.inference_mode()
    def prefill(self, ids: list[int]) -> float:
        self._start(ids, 0)
        started = time.perf_counter()
        self._next(ids)
        return time.perf_counter() - started

    def _start(self, ids: list[int], kept: int) -> None:
        """A cache that holds the first `kept` of ids."""
        self._ids = ids
        if kept:
            self._cache.crop(kept - self._cache.get_seq_length())
        else:
            self._cache = transformers.DynamicCache(config=self._model.config)

    def _next(self, ids: list[int]) -> int:
        """Reads ids and chooses the one that follows."""
        result = self._model(torch.tensor([ids]), past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        return int(result.logits[0, -1].argmax())


if __name__ == "__main__":
    serve(Engine())
