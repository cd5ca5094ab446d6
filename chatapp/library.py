"""Knowledge bases by name, in folders under the data folder, opened with the embedded embedding model."""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
import unicodedata
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from langchain_core.embeddings import Embeddings

import knowledge
from knowledge import KnowledgeBase, KnowledgeBaseError
from knowledge.database import is_unfinished
from knowledge.index import DATABASE_NAME

from .checkpoints import FetchError
from .words import whole_characters

NAME_FILE = "name.json"
LONGEST_NAME = 80


class LibraryError(ValueError):
    """A knowledge base can't be made or opened; the text is one sentence for the user."""


class Library:
    """`embeddings` is called once, when a knowledge base is first opened."""

    def __init__(self, folder: Path, embeddings: Callable[[], Embeddings]) -> None:
        self._folder = folder
        self._make_embeddings = embeddings
        self._embeddings: Embeddings | None = None
        self._open: dict[str, KnowledgeBase] = {}
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
        name = unicodedata.normalize("NFC", " ".join(whole_characters(name).split()))
        if not name:
            raise LibraryError("A knowledge base needs a name.")
        if len(name) > LONGEST_NAME:
            raise LibraryError(f"The name has {len(name)} characters; {LONGEST_NAME} are possible.")
        with self._naming:
            if name in self._folders():
                raise LibraryError(f"There is already a knowledge base named {name!r}; choose another name.")
            folder = self._folder / uuid.uuid4().hex[:12]
            folder.mkdir(parents=True)
            # The name is data inside a file, never a path. The file appears whole: a kill leaves no damaged one.
            partial = folder / f"{NAME_FILE}.partial"
            partial.write_text(json.dumps({"name": name}, ensure_ascii=False), encoding="utf-8")
            partial.replace(folder / NAME_FILE)
        return name

    def open(self, name: str) -> KnowledgeBase:
        """The knowledge base of that name.

        Raises LibraryError if there is none, and what opening it and getting the embedding model raise: FetchError and
        KnowledgeBaseError.
        """
        with self._opening:
            if name not in self._open:
                folder = self._folders().get(name)
                if folder is None:
                    raise LibraryError(f"There is no knowledge base named {name!r}.")
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
        """Opens the knowledge bases in which files are not finished, so that work on them goes on behind."""
        for name, folder in self._folders().items():
            # What is wrong with one is said when the user opens it.
            with suppress(sqlite3.Error, OSError, LibraryError, FetchError, KnowledgeBaseError):
                if is_unfinished(folder / DATABASE_NAME):
                    self.open(name)

    def _folders(self) -> dict[str, Path]:
        files = sorted(self._folder.glob(f"*/{NAME_FILE}")) if self._folder.is_dir() else ()
        return {_name(file): file.parent for file in files}


def _carry_on_behind(base: KnowledgeBase) -> None:
    threading.Thread(target=_carry_on, args=(base,), name=f"ingesting {base.name}", daemon=True).start()


def _carry_on(base: KnowledgeBase) -> None:
    try:
        base.work()
    except (sqlite3.Error, OSError, MemoryError, RuntimeError):
        logging.exception("Work on the files of a knowledge base has stopped; it goes on after the next start")


def _name(file: Path) -> str:
    """The name in a file; where that is damaged the folder's, so that its documents can still be reached."""
    try:
        name = json.loads(file.read_text(encoding="utf-8"))["name"]
    except (ValueError, LookupError, TypeError, OSError):
        return file.parent.name
    return name if isinstance(name, str) else file.parent.name
