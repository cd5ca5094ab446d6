"""Knowledge bases by name, in folders under the data folder, opened with the embedded embedding model."""

from __future__ import annotations

import json
import logging
import shutil
import sqlite3
import threading
import unicodedata
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from langchain_core.embeddings import Embeddings

import knowledge
from knowledge import Ingested, KnowledgeBase, KnowledgeBaseError, Several
from knowledge.database import UNFINISHED, StoredDocument, is_unfinished
from knowledge.index import DATABASE_NAME

from .checkpoints import FetchError
from .preferences import Asked, names_of
from .words import whole_characters

NAME_FILE = "name.json"
REMOVED = ".removed"  #: what a folder's name ends with whose knowledge base is gone
LONGEST_NAME = 80


class LibraryError(ValueError):
    """A knowledge base can't be made or opened; the text is one sentence for the user."""


@dataclass(frozen=True)
class Batch:
    """Files of a knowledge base that are worked on together: how many, how many of them are done and have failed,
    and the share of the work that is done, 0 to 1. seconds: until all are embedded, where that can be told."""

    files: int
    done: int
    failed: int
    share: float
    seconds: float | None


class Library:
    """`embeddings` is called once, when a knowledge base is first opened."""

    def __init__(self, folder: Path, embeddings: Callable[[], Embeddings]) -> None:
        self._folder = folder
        self._make_embeddings = embeddings
        self._embeddings: Embeddings | None = None
        self._open: dict[str, KnowledgeBase] = {}
        self._batches: dict[str, set[str]] = {}  # ids of files that were not finished when that was last looked at
        self._naming = threading.Lock()
        self._opening = threading.Lock()  # another one: the first opening may wait for a download

    def names(self) -> list[str]:
        """All knowledge bases, by name in alphabetical order."""
        return sorted(self._folders(), key=str.lower)

    def folders(self) -> dict[str, Path]:
        """The folder of each knowledge base by its name."""
        return self._folders()

    def create(self, name: str) -> str:
        """Makes an empty knowledge base, of any name in any script, and returns the name as kept."""
        name = _checked(name)
        with self._naming:
            self._check_free(name)
            folder = self._folder / uuid.uuid4().hex[:12]
            folder.mkdir(parents=True)
            _write_names(folder, [name])
        return name

    def rename(self, name: str, new: str) -> str:
        """Gives a knowledge base another name, and returns it as kept. By its former name it is found as well, since
        conversations and other programs know it by that."""
        new = _checked(new)
        with self._opening, self._naming:
            old, folder = self._find(name)
            if new != old:
                self._check_free(new)
                _write_names(folder, [new, *(former for former in _names(folder / NAME_FILE) if former != new)])
                if old in self._open:
                    self._open[new] = self._open.pop(old)
        return new

    def remove(self, name: str) -> None:
        """Removes a knowledge base with all its documents for good, once what is being done with them has stopped."""
        with self._opening:
            with self._naming:
                name, folder = self._find(name)
            if name in self._open:
                self._open.pop(name).end()
            gone = folder.with_name(f"{folder.name}{REMOVED}")
            folder.rename(gone)  # at once, or not at all: what a kill leaves goes at the next start
        shutil.rmtree(gone)

    def current(self, name: str | None) -> str | None:
        """The name that a knowledge base has now; None if there is none."""
        with suppress(LibraryError):
            return self._find(name or "")[0]
        return None

    def ask(self, asked: Asked) -> KnowledgeBase | Several | None:
        """The knowledge base of that name, several as one, or None where none is asked. Raises as `open` does."""
        bases = {name: self.open(name) for name in names_of(asked)}
        return Several(bases) if len(bases) > 1 else next(iter(bases.values()), None)

    def add(
        self, name: str, sources: Iterable[tuple[Path, str]], hurry: bool = False
    ) -> list[StoredDocument | Ingested]:
        """Takes (path, name) files into a knowledge base, which are read and embedded behind: of each the document that
        it is, or what there is to say of it already. hurry: somebody waits for them."""
        base = self.open(name)
        taken = base.add(sources)
        if hurry:
            base.hurry([file.id for file in taken if isinstance(file, StoredDocument)])
        _carry_on_behind(base)
        return taken

    def batch(self, name: str) -> Batch:
        """How far a knowledge base is with its files that are not finished, and with those that were, while there have
        been any without a break."""
        status = self.open(name).status()
        unfinished = {file.id for file in status.files if file.state in UNFINISHED}
        batch = self._batches.get(name, set()) | unfinished if unfinished else set()
        self._batches[name] = batch
        files = [file for file in status.files if file.id in batch]
        share = sum(map(_share, files)) / len(files) if files else 1.0
        done, failed = (sum(file.state == state for file in files) for state in ("done", "failed"))
        return Batch(len(files), done, failed, share, status.seconds)

    def read_again(self, name: str, document: str) -> None:
        """Lets a file of a knowledge base be read anew, behind."""
        base = self.open(name)
        base.read_again([document])
        _carry_on_behind(base)

    def _check_free(self, name: str) -> None:
        if name in self._folders():
            raise LibraryError(f"There is already a knowledge base named {name!r}; choose another name.")

    def _find(self, name: str) -> tuple[str, Path]:
        """The present name of a knowledge base, which may be asked for by a former one, and its folder."""
        folders = self._folders()
        for present, folder in folders.items():
            if name == present:
                return present, folder
        for present, folder in folders.items():
            if name in _names(folder / NAME_FILE):
                return present, folder
        raise LibraryError(f"There is no knowledge base named {name!r}.")

    def open(self, name: str) -> KnowledgeBase:
        """The knowledge base of that name.

        Raises LibraryError if there is none, and what opening it and getting the embedding model raise: FetchError and
        KnowledgeBaseError.
        """
        with self._opening:
            if name not in self._open:
                name, folder = self._find(name)
            if name not in self._open:
                self._embeddings = self._embeddings or self._make_embeddings()
                self._open[name] = base = knowledge.open(folder, self._embeddings)
                if base.unfinished:
                    _carry_on_behind(base)
            return self._open[name]

    def stop(self, name: str) -> bool:
        """Stops the work on a knowledge base's files; whether there was any."""
        base = self.open(name)
        unfinished = base.unfinished
        base.cancel()
        return unfinished

    def resume(self, name: str) -> None:
        """Goes on, behind, with the files of a knowledge base that were stopped."""
        base = self.open(name)
        base.resume([file.id for file in base.status().files if file.state == "cancelled"])
        _carry_on_behind(base)

    def unlock(self, name: str, password: str) -> None:
        """Tries, behind, the files of a knowledge base that need a password with this one."""
        base = self.open(name)
        base.resume([file.id for file in base.status().files if file.locked], password)
        _carry_on_behind(base)

    def carry_on(self) -> None:
        """Opens the knowledge bases in which files are not finished, so that work on them goes on behind; what is left
        of those that were removed goes."""
        for gone in self._folder.glob(f"*{REMOVED}"):
            shutil.rmtree(gone, ignore_errors=True)
        for name, folder in self._folders().items():
            # What is wrong with one is said when the user opens it.
            with suppress(sqlite3.Error, OSError, LibraryError, FetchError, KnowledgeBaseError):
                if is_unfinished(folder / DATABASE_NAME):
                    self.open(name)

    def _folders(self) -> dict[str, Path]:
        files = sorted(self._folder.glob(f"*/{NAME_FILE}")) if self._folder.is_dir() else ()
        return {_names(file)[0]: file.parent for file in files if not file.parent.name.endswith(REMOVED)}


def _share(file: StoredDocument) -> float:
    """How much of the work on a file is done, 0 to 1, reading being a fifth of it."""
    if file.state == "embedding":
        return 0.2 + 0.8 * file.embedded / max(file.chunks, 1)
    return {"waiting": 0.0, "reading": 0.1}.get(file.state, 1.0)


def _carry_on_behind(base: KnowledgeBase) -> None:
    threading.Thread(target=_carry_on, args=(base,), name=f"ingesting {base.name}", daemon=True).start()


def _carry_on(base: KnowledgeBase) -> None:
    try:
        base.work()
    except KnowledgeBaseError:
        return  # it has been removed
    except (sqlite3.Error, OSError, MemoryError, RuntimeError):
        logging.exception("Work on the files of a knowledge base has stopped; it goes on after the next start")


def _checked(name: str) -> str:
    """A name as it is kept. Raises LibraryError for one that can't be."""
    name = unicodedata.normalize("NFC", " ".join(whole_characters(name).split()))
    if not name:
        raise LibraryError("A knowledge base needs a name.")
    if len(name) > LONGEST_NAME:
        raise LibraryError(f"The name has {len(name)} characters; {LONGEST_NAME} are possible.")
    return name


def _write_names(folder: Path, names: list[str]) -> None:
    """The name, and former ones. They are data inside a file, never a path. The file appears whole: a kill leaves no
    damaged one."""
    present, *former = names
    partial = folder / f"{NAME_FILE}.partial"
    partial.write_text(json.dumps({"name": present, "former": former}, ensure_ascii=False), encoding="utf-8")
    partial.replace(folder / NAME_FILE)


def _names(file: Path) -> list[str]:
    """The names in a file, the present one first; where that is damaged the folder's, so that its documents can still
    be reached."""
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        names = [kept["name"], *kept.get("former", ())]
    except (ValueError, LookupError, TypeError, AttributeError, OSError):
        return [file.parent.name]
    return names if all(isinstance(name, str) for name in names) else [file.parent.name]
