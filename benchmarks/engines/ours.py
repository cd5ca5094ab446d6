"""Our engine, through the public functions of `models`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import models
from models import Read, Sampling, Token
from models.generate import generate_tokens
from models.layers import Embedding
from models.quantize import QuantizedEmbedding

from .protocol import serve


class Engine:
    def open(self, path: str, threads: int, length: int, tier: str, store: str, text: bool) -> int:
        """`text`: tokens become text as they come, which a checkpoint without a tokenizer can't do.

        Returns the bytes of weights that a token reads.
        """
        torch.set_num_threads(threads)
        self._loaded = models.load(path, tier, store=Path(store))
        self._text = text
        self._cache = self._loaded.new_cache(length)
        self._ids: list[int] = []
        return bytes_per_token(self._loaded)

    def first(self, path: str, threads: int, text: str, tier: str, store: str) -> float:
        torch.set_num_threads(threads)
        started = time.perf_counter()
        loaded = models.load(path, tier, store=Path(store))
        prompt = loaded.chat_prompt([{"role": "user", "content": text}])
        events = models.generate(loaded, prompt.ids, Sampling(temperature=0, max_tokens=1), stop_ids=prompt.stop_ids)
        next(event for event in events if not isinstance(event, Read))
        return time.perf_counter() - started

    def decode(self, ids: list[int], new: int) -> dict[str, Any]:
        written, times = [], []
        for token in self._tokens(ids, new):
            times.append(time.perf_counter())
            written.append(token)
        return {"ids": written, "seconds": times[-1] - times[0]}

    def prefill(self, ids: list[int]) -> float:
        self._cache.truncate(0)
        started = time.perf_counter()
        next(self._tokens(ids, 1))
        return time.perf_counter() - started

    def _tokens(self, ids: list[int], new: int) -> Iterator[int]:
        kept = len(ids) - 1 if ids == self._ids and self._loaded.model.causal_prompt else 0
        self._cache.truncate(min(kept, self._cache.length))
        self._ids = ids
        sampling = Sampling(temperature=0, max_tokens=new)
        if self._text:
            events = models.generate(self._loaded, ids, sampling, self._cache, stop_ids=())
            return (event.id for event in events if isinstance(event, Token) and event.id is not None)
        steps = generate_tokens(self._loaded.model, ids, sampling, self._cache, ())
        return (step for step in steps if type(step) is int)


def bytes_per_token(loaded: models.LoadedModel) -> int:
    """Bytes of weights that a step of decoding reads: of an embedding that is not the head as well, only a row."""
    embedding = next(module for module in loaded.model.modules() if isinstance(module, Embedding | QuantizedEmbedding))
    return loaded.nbytes - (embedding.weight.nbytes if len(loaded.needs.vocabulary) > 1 else 0)


if __name__ == "__main__":
    serve(Engine())
