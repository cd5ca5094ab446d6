"""What runs here, and whether it works: versions, machine, and a self-check. Nothing of it names private data."""

from __future__ import annotations

import importlib.metadata
import math
import platform
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from knowledge import KnowledgeBaseError
from models import selfcheck

from . import __version__
from .checkpoints import FetchError
from .hardware import GIB, detect
from .library import LibraryError
from .sentences import Sentence
from .session import Chat
from .settings import Settings
from .startup import Startup
from .store import StoreError

#: Packages whose versions tell most.
PACKAGES = ("torch", "gradio", "langchain-core", "faiss-cpu", "sentence-transformers")
LEAST_DISK = 2 * GIB  #: bytes: a small checkpoint, and a file that is being read

#: What opening or asking a part may end with.
FAILURES = (
    FetchError,
    KnowledgeBaseError,
    LibraryError,
    StoreError,
    sqlite3.Error,
    OSError,
    MemoryError,
    RuntimeError,
)


@dataclass(frozen=True)
class Outcome:
    """Of one check; `said` tells it in a sentence. `private` are names that stay on the page."""

    good: bool
    said: Sentence
    private: tuple[str, ...] = ()


@dataclass(frozen=True)
class Facts:
    """(name, value) pairs that are the same in every language."""

    versions: tuple[tuple[str, str], ...]
    processor: str
    cores: int
    instructions: tuple[str, ...]
    memory: tuple[int, int]  #: bytes free and in all
    cards: tuple[str, ...]
    notes: tuple[str, ...]
    kernel: str | None


def facts() -> Facts:
    """What this program consists of, and what it runs on."""
    machine = detect()
    versions = [("Quatrain", __version__), ("Python", platform.python_version())]
    versions += [(name, _version(name)) for name in PACKAGES]
    cards = tuple(f"{gpu.name}, {gpu.free / GIB:.1f} / {gpu.total / GIB:.1f} GB" for gpu in machine.gpus)
    return Facts(
        tuple(versions),
        f"{platform.system()} {platform.machine()}",
        machine.cores,
        machine.instructions,
        (machine.ram_free, machine.ram_total),
        cards,
        machine.notes,
        selfcheck.kernel_level(),
    )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "–"


def checks(settings: Settings, chat: Chat, startup: Startup) -> Iterator[Outcome]:
    """Each as it is done: together they may take some seconds."""
    yield _kernels()
    yield _trying("check_store_bad", lambda: (chat.store.check(), Outcome(True, Sentence("check_store")))[1])
    yield _trying("check_embedder_bad", lambda: _embedder(startup))
    yield _bases(chat)
    yield _trying("check_disk_bad", lambda: _disk(settings))


def report(found: Facts, outcomes: list[Outcome]) -> str:
    """For a bug report, in English: no path, no name of a file, of a knowledge base or of a person."""
    rows = [f"{name} {version}" for name, version in found.versions]
    free, total = (size / GIB for size in found.memory)
    rows += [f"{found.processor}, {found.cores} cores, {' '.join(found.instructions)}"]
    rows += [f"memory {free:.1f} / {total:.1f} GB free", *found.cards, *found.notes]
    rows += [f"kernels: {found.kernel or 'PyTorch'}"]
    return "\n".join([*rows, *(f"{'ok ' if each.good else 'BAD'} {each.said}" for each in outcomes)])


def _kernels() -> Outcome:
    wrong, level = selfcheck.wrong_products(), selfcheck.kernel_level()
    if wrong:
        return Outcome(False, Sentence("check_kernels_bad", names=", ".join(wrong)))
    if level is None:
        return Outcome(True, Sentence("check_kernels_none"))
    return Outcome(True, Sentence("check_kernels", level=level))


def _embedder(startup: Startup) -> Outcome:
    vector = startup.embeddings().embed_query("check")
    length = math.hypot(*vector)
    if not (math.isfinite(length) and length > 0):
        return Outcome(False, Sentence("check_embedder_bad"))
    return Outcome(True, Sentence("check_embedder", dimension=len(vector)))


def _bases(chat: Chat) -> Outcome:
    """Searches each knowledge base, which opens its text, its keywords and its vectors."""
    names, broken = chat.library.names(), []
    for name in names:
        try:
            chat.library.open(name).find("check", 1)
        except FAILURES:
            broken.append(name)
    if broken:
        return Outcome(False, Sentence("check_bases_bad", broken=len(broken), count=len(names)), tuple(broken))
    return Outcome(True, Sentence("check_bases", count=len(names)))


def _disk(settings: Settings) -> Outcome:
    free = shutil.disk_usage(settings.data).free
    key = "check_disk" if free >= LEAST_DISK else "check_disk_little"
    return Outcome(free >= LEAST_DISK, Sentence(key, free=f"{free / 1e9:.1f}"))


def _trying(failed: str, check: Callable[[], Outcome]) -> Outcome:
    """The reason of a failure may name a path, so that it stays on the page."""
    try:
        return check()
    except FAILURES as error:
        return Outcome(False, Sentence(failed), (str(error),))
