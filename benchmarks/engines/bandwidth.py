"""How fast this machine reads memory: a sum over a buffer much larger than the caches, on the engines' threads."""

from __future__ import annotations

import time

import torch

from .protocol import serve


class Engine:
    def open(self, threads: int, nbytes: int) -> None:
        torch.set_num_threads(threads)
        self._buffer = torch.ones(nbytes // 8, dtype=torch.int64)  # whole numbers add without waiting for one another

    def read(self) -> float:
        """Bytes a second."""
        started = time.perf_counter()
        self._buffer.sum()
        return self._buffer.nbytes / (time.perf_counter() - started)


if __name__ == "__main__":
    serve(Engine())
