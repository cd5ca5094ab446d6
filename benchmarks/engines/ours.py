"""Our engine, through the public functions of `models`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

import models
from models import Read, Sampling, Token
from models.generate import generate_tokens
from models.layers import Embedding
from models.quantize import QuantizedEmbedding

from .protocol import serve

EVERYTHING = 2**62  #: bytes: no cache is given up
generate = import_module("models.generate")  # the module: the package has a function of that name


class Engine:
    def open(self, path: str, threads: int, length: int, tier: str, store: str, text: bool) -> int:
        """`text`: tokens become text as they come, which a checkpoint without a tokenizer can't do.

        Returns the bytes of weights that a token reads.
        """
        torch.set_num_threads(threads)
        self._loaded = models.load(path, tier, store=Path(store))
        self._text = text
        self._cache = self._loaded.new_cache(length)
        self._pool = models.CachePool(self._loaded, EVERYTHING)
        self._draft = models.Lookup()
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

    def forget(self) -> None:
        self._pool.clear()

    def reply(
        self,
        ids: list[int],
        new: int,
        draft: bool = False,
        forced: list[int] | None = None,
        options: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """`forced` are chosen whatever is computed; `options` are those of sampling."""
        written, times = [], []
        sampling = Sampling(**{"temperature": 0.0} | (options or {}) | {"max_tokens": new})
        lookup = self._draft if draft else None
        started = time.perf_counter()
        with _forcing(len(ids), forced), self._pool.lend(ids, len(ids) + new) as loan:
            read = len(ids) - loan.cache.length
            for step in generate_tokens(self._loaded.model, ids, sampling, loan.cache, (), draft=lookup):
                if type(step) is int:
                    times.append(time.perf_counter())
                    written.append(step)
                    loan.ids.append(step)
        acceptance = None if lookup is None else lookup.acceptance
        first, seconds = times[0] - started, times[-1] - times[0]
        return {"ids": written, "first": first, "read": read, "seconds": seconds, "acceptance": acceptance}

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


@contextmanager
def _forcing(prompt: int, forced: list[int] | None) -> Iterator[None]:
    """Within it these tokens are chosen, one behind the other."""
    if forced is None:
        yield
        return
    with patch.object(generate, "make_sampler", lambda sampling: lambda logits, seen: forced[len(seen) - prompt]):
        yield


def bytes_per_token(loaded: models.LoadedModel) -> int:
    """Bytes of weights that a step of decoding reads: of an embedding that is not the head as well, only a row."""
    embedding = next(module for module in loaded.model.modules() if isinstance(module, Embedding | QuantizedEmbedding))
    return loaded.nbytes - (embedding.weight.nbytes if len(loaded.needs.vocabulary) > 1 else 0)


if __name__ == "__main__":
    serve(Engine())
