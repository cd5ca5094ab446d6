"""How fast this machine reads memory: it looks for the largest number in a buffer much larger than the caches."""

from __future__ import annotations

import time

import torch

from .protocol import serve


class Engine:
    def open(self, threads: int, nbytes: int) -> None:
        torch.set_num_threads(threads)
        self._buffer = torch.ones(nbytes // 8, dtype=torch.int64)

    def read(self, seconds: float) -> float:
        """Bytes a second, over about so many seconds."""
        done, started = 0, time.perf_counter()
        while (taken := time.perf_counter() - started) < seconds or not done:
            self._buffer.max()  # nothing that PyTorch computes of a buffer came faster, a sum included
            done += self._buffer.nbytes
        return done / taken


if __name__ == "__main__":
    serve(Engine())
