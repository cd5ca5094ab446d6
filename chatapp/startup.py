"""Behind the page after a start: fetch the embedded models once, load the chat model, warm the embedder."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from knowledge.embedder import LocalEmbeddings

from . import checkpoints
from .engine import Engine, EngineError, Source
from .planner import choose_tier
from .settings import Settings


@dataclass(frozen=True)
class Fetching:
    """Bytes of an embedded model that have arrived, or the sentence that says why it did not."""

    name: str = ""
    done: int = 0
    total: int = 0
    failure: str = ""


class Startup:
    """Runs once, in a thread of its own; `fetching` is what the page shows meanwhile."""

    def __init__(self, settings: Settings, engine: Engine, say: Callable[[str], None] = print) -> None:
        self._settings = settings
        self._engine = engine
        self._say = say
        self._lock = threading.Lock()
        self._embeddings: LocalEmbeddings | None = None
        self.fetching = Fetching()

    def start(self) -> None:
        threading.Thread(target=self.run, name="startup", daemon=True).start()

    def run(self) -> None:
        self._load_model()
        try:
            self.embeddings().embed_query("warm")  # imports and loads it before it is first needed
        except checkpoints.FetchError as error:
            self._fail(error)

    def embeddings(self) -> LocalEmbeddings:
        """The embedded embedding model, fetched if need be. Raises FetchError."""
        with self._lock:
            if self._embeddings is None:
                folder = checkpoints.ensure_embedder(self._settings.data, self._progress)
                self._embeddings = LocalEmbeddings(folder)
            return self._embeddings

    def source(self, path: Path, name: str) -> Source:
        """A checkpoint as the settings want it loaded."""
        return Source(name, path, choose_tier(path, self._settings.tier), self._settings.context)

    def _load_model(self) -> None:
        try:
            path = self._settings.model or checkpoints.ensure_default_model(self._settings.data, self._progress)
            self._engine.load(self.source(path, checkpoints.name_of(path)))
            self._say(f"{checkpoints.name_of(path)} is ready.")
        except (checkpoints.FetchError, EngineError) as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self.fetching = Fetching(failure=str(error))
        self._say(str(error))

    def _progress(self, name: str, done: int, total: int) -> None:
        before, self.fetching = self.fetching, Fetching(name, done, total)
        tenth = 10 * done // total
        if before.name != name or tenth > 10 * before.done // total:
            self._say(f"Fetching {name}: {done / 1e6:.0f} of {total / 1e6:.0f} MB")
        if done == total:
            self.fetching = Fetching()
