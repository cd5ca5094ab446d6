"""Behind the page after a start: fetch the embedded models once, load the chat model, warm the embedder, and go on with
the downloads of others."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from knowledge.embedder import LocalEmbeddings
from models import CheckpointError

from . import checkpoints
from .choices import LastModel
from .downloads.manager import Downloads
from .engine import Engine, EngineError, Source
from .hardware import Machine, detect
from .planner import plan_for
from .settings import Settings
from .shelf import Shelf

#: The share of the memory that a plan leaves which caches of earlier prompts may take: other programs want some too.
WARM_SHARE = 0.5


@dataclass(frozen=True)
class Fetching:
    """Bytes of an embedded model that have arrived, or the sentence that says why it did not."""

    name: str = ""
    done: int = 0
    total: int = 0
    failure: str = ""


class Startup:
    """Runs in a thread of its own, once unless something could not be had; `fetching` is what the page shows meanwhile.

    `downloads` are those that the user asked for; they have a thread of their own. `last` is loaded unless the settings
    name a model, or it is not there any more.
    """

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        say: Callable[[str], None] = print,
        detect: Callable[[], Machine] = detect,
        last: LastModel | None = None,
    ) -> None:
        self._settings = settings
        self._detect = detect
        self._last = last
        self._engine = engine
        self._say = say
        self._lock = threading.Lock()
        self._embeddings: LocalEmbeddings | None = None
        self._stopping = threading.Event()
        self._thread = self._new_thread()
        self.downloads = Downloads(settings.data)
        self.shelf = Shelf(settings)
        self.fetching = Fetching()
        self.notes: tuple[str, ...] = ()  #: what is in the way of this machine's hardware, in sentences

    def start(self) -> None:
        self._thread.start()
        self.downloads.start()

    def again(self) -> None:
        """Tries once more what could not be fetched or loaded."""
        with self._lock:
            if self._thread.is_alive() or self._stopping.is_set():
                return
            self.fetching = Fetching()
            self._thread = self._new_thread()
            self._thread.start()

    @property
    def at_work(self) -> bool:
        """Whether something is still fetched or loaded by itself."""
        return self._thread.is_alive()

    def _new_thread(self) -> threading.Thread:
        return threading.Thread(target=self.run, name="startup", daemon=True)

    def stop(self, seconds: float) -> None:
        """Ends a fetch that is going on, so that neither pip nor its files outlive the app; waits for that at most."""
        self._stopping.set()
        self.downloads.stop(seconds)
        if self._thread.is_alive():
            self._thread.join(seconds)

    def run(self) -> None:
        self.notes = self._detect().notes
        for note in self.notes:
            self._say(note)
        try:
            if checkpoints.has_embedder(self._settings.data):
                self.embeddings().load_behind()  # beside the model, which the first question waits for as well
            if self._engine.source is None:
                self._load_model()
            self.embeddings().embed_query("warm")  # imports and loads it before it is first needed
        except (checkpoints.FetchError, OSError, RuntimeError) as error:
            self._fail(error)

    def embeddings(self) -> LocalEmbeddings:
        """The embedded embedding model, fetched if need be. Raises FetchError."""
        with self._lock:
            if self._embeddings is None:
                self._embeddings = LocalEmbeddings(self._fetch(checkpoints.ensure_embedder))
            return self._embeddings

    def source(self, path: Path, name: str, tier: str | None = None, adapter: Path | None = None) -> Source:
        """A checkpoint as this machine can hold it now, at `tier` or the settings' one, with an adapter or without.

        Raises EngineError for what can't be a checkpoint, or does not fit.
        """
        settings = self._settings
        asked = tier or settings.tier
        try:
            plan = plan_for(path, self.machine(), asked, settings.context, adapter)
        except (CheckpointError, OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise EngineError(f"{name} could not be loaded: {reason}") from error
        if plan.tier is None or plan.device is None:
            raise EngineError(f"{name} could not be loaded: {plan.reason}")
        return Source(
            name,
            path,
            plan.tier,
            plan.context,
            plan.device,
            settings.data / "quantized",
            plan.reason,
            asked,
            adapter=adapter,
            warm=int(WARM_SHARE * plan.left),
            plan=plan,
        )

    def unload(self) -> None:
        """Unloads the model; the next reply loads it again, as this machine can hold it then."""
        self._engine.unload(self._again)

    def anew(self) -> Source:
        """What was unloaded, as this machine can hold it now. Raises EngineError."""
        return self._again(self._engine.waiting)

    def _again(self, former: Source) -> Source:
        planned = self.source(former.path, former.name, former.asked_tier, former.adapter)
        return replace(planned, chat_format=former.chat_format)

    def with_adapter(self, adapter: Path | None) -> Source:
        """What is loaded, with another adapter or none. Raises EngineError."""
        loaded, source = self._engine.loaded, self._engine.source
        try:
            if loaded.can_switch(adapter):
                return replace(source, adapter=adapter)
        except (CheckpointError, OSError) as error:
            raise EngineError(str(error)) from error
        return self._again(replace(source, adapter=adapter))

    def machine(self) -> Machine:
        """The machine as it is once the loaded model has been released, which comes before another one is read."""
        machine, loaded = self._detect(), self._engine.source
        return machine if loaded is None else machine.after_releasing(loaded.device, self._engine.nbytes)

    def _load_model(self) -> None:
        """Loads the model asked for; one that fails to load is said. Raises FetchError if the default can't be had."""
        settings, last = self._settings, self._last
        if settings.model is None and settings.adapter is None and last is not None and last.path.exists():
            self._load_or_say(last.name, lambda: self._source_of(last))
            return
        path = settings.model or self._fetch(checkpoints.ensure_default_model)
        adapter = settings.adapter and settings.adapter.resolve()
        name = checkpoints.name_of(path)
        self._load_or_say(name, lambda: self.source(path, name, adapter=adapter))

    def _source_of(self, last: LastModel) -> Source:
        """At the tier of then, unless the settings say one."""
        tier = last.tier if self._settings.tier == "auto" else None
        return replace(self.source(last.path, last.name, tier, last.adapter), chat_format=last.chat_format)

    def _load_or_say(self, name: str, source: Callable[[], Source]) -> None:
        try:
            self._engine.load(source())
            self._say(f"{name} is ready.")
        except EngineError as error:
            self._fail(error)

    def _fetch(self, ensure: Callable[[Path, checkpoints.Progress], Path]) -> Path:
        before = self.fetching
        try:
            path = ensure(self._settings.data, self._progress)
        except checkpoints.FetchError:
            self.fetching = before
            raise
        self.fetching = Fetching()
        return path

    def _fail(self, error: Exception) -> None:
        if not self._stopping.is_set():
            self.fetching = Fetching(failure=str(error))
            self._say(str(error))

    def _progress(self, name: str, done: int, total: int) -> None:
        if self._stopping.is_set():
            raise checkpoints.FetchError(f"{name} was not fetched: Quatrain is ending.")
        before, self.fetching = self.fetching, Fetching(name, done, total)
        if before.name != name or 10 * done // total > 10 * before.done // total:
            self._say(f"Fetching {name}: {done / 1e6:.0f} of {total / 1e6:.0f} MB")
