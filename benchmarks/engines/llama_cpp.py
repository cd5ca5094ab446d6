"""llama.cpp in a Python that has llama-cpp-python; imports nothing of ours but the protocol.

Decoding and prefill call llama.cpp's own functions with its default settings, choice of the token included: the
package's class adds work in Python that users of llama.cpp's programs don't have. Loading is measured through that
class.
"""

from __future__ import annotations

import time
from typing import Any

import llama_cpp

from .protocol import decode, serve

BATCH = 2048  #: tokens that llama.cpp reads in one go by default


class Engine:
    def open(self, path: str, threads: int, length: int) -> None:
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = length
        params.n_threads = params.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        self._choose = llama_cpp.llama_sampler_init_greedy()
        self._ids: list[int] = []

    def first(self, path: str, threads: int, text: str) -> float:
        started = time.perf_counter()
        llama = llama_cpp.Llama(path, n_threads=threads, n_threads_batch=threads, verbose=False)
        messages = [{"role": "user", "content": text}]
        chunks = llama.create_chat_completion(messages, temperature=0, max_tokens=1, stream=True)
        next(chunk for chunk in chunks if "role" not in chunk["choices"][0]["delta"])  # which comes before any token
        return time.perf_counter() - started

    def decode(self, ids: list[int], new: int) -> dict[str, Any]:
        kept = len(ids) - 1 if ids == self._ids else 0
        self._forget(kept)
        self._ids = ids
        return decode(self._next, ids[kept:], new)

    def prefill(self, ids: list[int]) -> float:
        self._forget(0)
        self._ids = ids
        started = time.perf_counter()
        self._next(ids)
        return time.perf_counter() - started

    def forget(self) -> None:
        self._ids = []

    def reply(self, ids: list[int], new: int) -> dict[str, Any]:
        """It goes on where its last prompt and reply differ from this one, as llama.cpp's server does."""
        pairs = enumerate(zip(self._ids, ids[:-1], strict=False))
        kept = next((at for at, (one, other) in pairs if one != other), min(len(self._ids), len(ids) - 1))
        started = time.perf_counter()
        self._forget(kept)
        for start in range(kept, len(ids), BATCH):
            token = self._next(ids[start : start + BATCH])
        first = time.perf_counter()
        answer = decode(self._next, [token], new - 1)
        written = [token, *answer["ids"]]
        self._ids = [*ids, *written[:-1]]
        return {"ids": written, "first": first - started, "read": len(ids) - kept}

    def _forget(self, kept: int) -> None:
        """All but the first positions."""
        llama_cpp.llama_memory_seq_rm(llama_cpp.llama_get_memory(self._context), 0, kept, -1)

    def _next(self, ids: list[int]) -> int:
        """Reads ids and chooses the one that follows."""
        tokens = (llama_cpp.llama_token * len(ids))(*ids)  # the batch only points to it
        if llama_cpp.llama_decode(self._context, llama_cpp.llama_batch_get_one(tokens, len(ids))) != 0:
            raise RuntimeError(f"llama.cpp can't read {len(ids)} tokens")
        return llama_cpp.llama_sampler_sample(self._choose, self._context, -1)


if __name__ == "__main__":
    serve(Engine())
