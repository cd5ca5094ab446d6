"""A cross-encoder from a folder on this machine, which reads question and passage together: better and much slower."""

import functools
import os
import threading
from collections.abc import Sequence
from pathlib import Path


class LocalReranker:
    """Scores passages for a question, as `knowledge.open(..., rerank=...)` takes it; bge-reranker-base is an example.

    The model is loaded at the first question, which takes some seconds; the network is never used.
    """

    def __init__(self, folder: str | os.PathLike, device: str = "cpu"):
        self.folder = Path(folder)
        self.device = device
        self._lock = threading.Lock()
        if not (self.folder / "config.json").is_file():
            raise FileNotFoundError(f"{self.folder} is not a cross-encoder's folder: it has no config.json")

    def __call__(self, question: str, passages: Sequence[str]) -> list[float]:
        """One score for each passage, higher where it answers better."""
        with self._lock:
            return self._model.predict([(question, passage) for passage in passages]).tolist()

    @functools.cached_property
    def _model(self):
        from sentence_transformers import CrossEncoder  # brings torch: 7 s

        return CrossEncoder(str(self.folder), device=self.device, local_files_only=True)
