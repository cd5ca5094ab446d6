"""The queue of files, which lives in the database: what was begun is carried on after a cancel, a kill or a restart.

Work goes on in steps, each of which reads a file or embeds a few chunks. Whoever waits for files takes the next step of
the whole queue, one at a time, in this process or in another. Files are read first, all of them, so that they can be
searched by their words; embedding comes behind.
"""

import hashlib
import logging
import os
import threading
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from knowledge.database import UNFINISHED, Database, StoredChunk, StoredDocument
from knowledge.dense import Dense
from knowledge.documents import DocumentError, parse, read, suffix_of
from knowledge.formats import ocr
from knowledge.pages import Page
from knowledge.splitter import Chunk, estimate_tokens, split

Tell = Callable[[str, tuple[str, float] | None], None]
"""Told a line on what is done, "" while another does it, and of a file being read its id and how far it is, 0 to 1."""
Progress = Callable[[int, int, str], None]
Source = str | os.PathLike | tuple[str | os.PathLike, str]

_EMBEDDED_AT_ONCE = 8  # half a second of work on two cores: the step of progress, of cancelling, of a question waiting
_LOOKED_UP_AT_ONCE = 512
_WAIT = 0.2  # seconds until somebody who waits for another's step looks again
_READING_SHARE = 0.2  # of a file's work, the rest being embedding; for progress only


@dataclass(frozen=True)
class Ingested:
    """What became of one file. known: its content was here already. failed: `reason` says why, in one sentence; in the
    other states it says what else is to be known.

    `pages` is 0 for a file without pages, such as plain text. document: the id of what is known.
    """

    name: str
    state: Literal["done", "known", "failed", "cancelled"]
    pages: int = 0
    chunks: int = 0
    reason: str | None = None
    document: str | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Status:
    """How far the files of a knowledge base are: passages embedded, of those that there are so far.

    seconds: until all is embedded, where that can be told.
    """

    files: tuple[StoredDocument, ...]
    done: int
    total: int
    seconds: float | None


class _Stopped(Exception):
    """The file that is being read has been cancelled or removed, or its progress raised what is the cause of this."""


class Queue:
    """`dense` gives the vectors that are to be complete; it may be another one from one step to the next."""

    def __init__(self, folder: Path, database: Database, dense: Callable[[], Dense], lock: threading.RLock):
        self._database = database
        self._dense = dense
        self._lock = lock  # over the vectors
        self._originals = folder / "originals"
        self._originals.mkdir(parents=True, exist_ok=True)
        self._step_here = threading.Lock()
        self._step_anywhere = FileLock(folder / "queue.lock")
        self._passwords: dict[str, str] = {}  # in memory only
        self._pending: list[StoredChunk] = []
        self._urgent: list[str] = []  # ids of files that somebody waits for
        self._pace: float | None = None  # seconds a passage takes to be embedded
        self._drop_strays()

    # Files in

    def add(self, source: Source, password: str | None = None) -> StoredDocument | Ingested:
        """Take in a file, as a copy: the document that it is, or what there is to say of it at once."""
        path, name = Path(source[0] if isinstance(source, tuple) else source), name_of(source)
        own = path.absolute() if not isinstance(source, tuple) else None
        try:
            modified = path.stat().st_mtime_ns if path.exists() else 0
            data = read(path, name)
        except DocumentError as error:
            return Ingested(name, "failed", reason=str(error))
        id = hashlib.sha256(data).hexdigest()
        known = self._database.document(id)
        if known is not None and known.state == "failed":
            self.remove(known)  # perhaps only its name was wrong
        with self._database.transaction():
            known = self._database.document(id)
            if known is None:
                # Inside the transaction: nobody takes the copy for one without a document.
                self._original(id, suffix_of(name)).write_bytes(data)
                self._database.add(id, name, suffix_of(name), own and str(own), len(data), modified)
        if password is not None:
            self._passwords[id] = password
        if known is None:
            return self._database.document(id)
        return self._again(known, name, own, modified)

    def _again(self, known: StoredDocument, name: str, path: Path | None, modified: int) -> StoredDocument | Ingested:
        """A file whose content is here already: under its new name, if the file of the old one is gone."""
        renamed = known.name != name and not (known.path and Path(known.path).is_file())
        reason = None
        if renamed:
            reason = f"{name} has the same content as {known.name}, which was renamed to it."
        elif known.name != name:
            reason = _twin(name, known.name)
        if renamed or known.name == name:
            self._database.rename(known.id, name, path and str(path), modified)
        if known.state == "done":
            return Ingested(name, "known", known.pages, known.chunks, reason, known.id)
        self.resume([known.id])
        return self._database.document(known.id)

    def outcome(self, id: str, name: str) -> Ingested:
        document = self._database.document(id)
        if document is None:
            return Ingested(name, "cancelled", reason=f"{name} was removed before it was read.")
        state, reason = document.state, document.reason
        if state not in ("failed", "cancelled"):
            state = "done"
            if document.name != name:
                state, reason = "known", _twin(name, document.name)
        return Ingested(name, state, document.pages, document.chunks, reason)

    # Working

    def work(self, tell: Tell, ids: Sequence[str] | None = None) -> None:
        """Carry on until these documents, or all, are finished. What `tell` raises ends the work, and loses nothing."""
        while self.unfinished(ids):
            with self._turn() as mine:
                if mine:
                    self._step(tell)
                else:
                    tell("", None)
            time.sleep(0.001)  # locks are not fair: lets a question waiting for the embedding model go first
        self._database.remove_other_models(self._dense().model)
        with self._lock:
            self._dense().save()

    def embed_all(self, dense: Dense, tell: Tell, then: Callable[[], None]) -> None:
        """Give all chunks embeddings of another model, and call `then` before anything is added to them."""
        total = self._database.count_without_embedding(dense.model)
        while True:
            with self._turn() as mine:
                if not mine:
                    tell("", None)
                    continue
                chunks = self._database.without_embedding(dense.model, _EMBEDDED_AT_ONCE)
                if not chunks:
                    return then()
                self._embed_some(dense, chunks)
            left = self._database.count_without_embedding(dense.model)
            tell(f"{max(total - left, 0)} of {total} passages embedded anew", None)

    def unfinished(self, ids: Sequence[str] | None = None) -> bool:
        waiting = self._database.states(UNFINISHED)
        return bool(waiting if ids is None else waiting.keys() & set(ids))

    @contextmanager
    def _turn(self) -> Iterator[bool]:
        """Whether a step may be taken inside: then nobody else takes one meanwhile, here or in another process."""
        mine = self._may_step()
        try:
            yield mine
        finally:
            if mine:
                self._step_anywhere.release()
                self._step_here.release()

    def _may_step(self) -> bool:
        if not self._step_here.acquire(timeout=_WAIT):
            return False
        try:
            self._step_anywhere.acquire(timeout=_WAIT)
        except Timeout:
            self._step_here.release()
            return False
        return True

    def _step(self, tell: Tell) -> None:
        """One step. Nobody else is at one, so that a file that is said to be read is one that a kill interrupted."""
        document = self._database.next_to_read(self._urgent)
        if document is not None:
            self._read(document, tell)
        else:
            self._embed(tell)

    def _read(self, document: StoredDocument, tell: Tell) -> None:
        if not self._database.set_state(document.id, "reading", ("waiting", "reading")):
            return
        try:
            pages, chunks = self._parse(document, tell)
        except _Stopped as stop:
            if stop.__cause__ is not None:
                raise stop.__cause__ from None
            return
        except DocumentError as error:
            self._database.set_state(document.id, "failed", ("reading",), str(error))
            return
        except Exception:
            # A mistake in a reader must not keep all other files from being read, now and after every restart.
            logging.exception("%s could not be read", document.name)
            reason = f"{document.name} could not be read, which is a mistake in this program; its log says more."
            self._database.set_state(document.id, "failed", ("reading",), reason)
            return
        before = self._database.chunk_ids(document.id)  # where it is read again
        if self._database.store(document.id, pages, chunks, _note(document.name, pages)):
            with self._lock:
                self._dense().remove(before)
            tell(f"{document.name}: read", (document.id, 1.0))

    def _parse(self, document: StoredDocument, tell: Tell) -> tuple[list[Page], list[Chunk]]:
        name = document.name

        def report(share: float) -> None:
            current = self._database.document(document.id)
            if current is None or current.state != "reading":
                raise _Stopped
            try:
                tell(f"{name}: reading", (document.id, share))
            except Exception as error:
                raise _Stopped from error

        report(0.0)
        try:
            data = self.original(document).read_bytes()
            pages = parse(data, name, self._passwords.get(document.id), report)
            chunks = split(pages, getattr(self._dense().embeddings, "count_tokens", estimate_tokens))
        except OSError as error:
            raise DocumentError(name, f"cannot be opened ({error.strerror}); add it again") from error
        except (MemoryError, RecursionError) as error:
            raise DocumentError(name, "takes more memory than there is; split it into smaller files") from error
        if not chunks:
            raise DocumentError(name, "holds no words that could be searched; check that it is the right file")
        return pages, chunks

    def _embed(self, tell: Tell) -> None:
        dense = self._dense()
        if not self._pending:
            self._pending = self._database.without_embedding(dense.model, _LOOKED_UP_AT_ONCE)
        chunks, self._pending = self._pending[:_EMBEDDED_AT_ONCE], self._pending[_EMBEDDED_AT_ONCE:]
        if chunks:
            self._embed_some(dense, chunks)
        if not self._pending or self._pending[0].document != chunks[0].document:
            self._database.settle(dense.model)
        document = self._database.document(chunks[-1].document) if chunks else None
        if document is not None:
            done = document.chunks if document.state == "done" else document.embedded
            tell(f"{document.name}: {done} of {document.chunks} passages embedded", None)

    def _embed_some(self, dense: Dense, chunks: Sequence[StoredChunk]) -> None:
        dense.measure()  # before the first vector: the first question that finds one must not wait for it
        start = time.monotonic()
        vectors = dense.embed(chunks)
        took = (time.monotonic() - start) / len(chunks)
        self._pace = took if self._pace is None else 0.8 * self._pace + 0.2 * took
        with self._lock:
            still = self._database.chunks(vectors)  # not those that were removed meanwhile
            if still:
                # First where they are found: a vector without a row is left out, a row without a vector never found.
                dense.add(list(still.values()), vectors)
                self._database.add_embeddings(dense.model, vectors)

    # Stopping

    def cancel(self, ids: Iterable[str]) -> None:
        """Stop with these files, where they are not finished: what was read stays, and can be searched."""
        for id in ids:
            self._database.set_state(id, "cancelled", UNFINISHED)
        self._pending = []

    def resume(self, ids: Iterable[str], password: str | None = None) -> None:
        """Go on with files that were cancelled, and try those again that failed."""
        for id in ids:
            if password is not None:
                self._passwords[id] = password
            document = self._database.document(id)
            if document is not None:
                state = "embedding" if document.chunks else "waiting"
                self._database.set_state(
                    id, state, ("cancelled", "failed"), document.reason if document.chunks else None
                )

    def read_again(self, ids: Iterable[str]) -> None:
        """Read files anew, which failed or which were read before: what was read of these is found until then."""
        for id in ids:
            self._database.set_state(id, "waiting", ("embedding", "done", "failed", "cancelled"))
        self._pending = []

    def hurry(self, ids: Iterable[str]) -> None:
        """Read these files before all others."""
        self._urgent += ids

    def end(self) -> None:
        """Stop with all files for good, once what is being done has come to its end."""
        self.cancel(self._database.states(UNFINISHED))
        self._step_here.acquire()

    def remove(self, document: StoredDocument) -> None:
        ids = self._database.chunk_ids(document.id)
        self._database.remove(document.id)
        self._pending = []
        self._passwords.pop(document.id, None)
        self._original(document.id, document.suffix).unlink(missing_ok=True)
        with self._lock:
            self._dense().remove(ids)

    def status(self) -> Status:
        files = self._database.documents()
        read = [file for file in files if file.state in ("embedding", "done")]
        done, total = sum(file.embedded for file in read), sum(file.chunks for file in read)
        unread = any(file.state in ("waiting", "reading") for file in files)
        known = self._pace is not None and not unread
        return Status(tuple(files), done, total, (total - done) * self._pace if known else None)

    def shares(self, reading: Mapping[str, float]) -> dict[str, float]:
        """How much of the work on each unfinished file is done, from 0 to 1, by id.

        reading: how much has been read, from 0 to 1, of files that are being read.
        """
        states = self._database.states(UNFINISHED)
        embedded = self._database.embedded_shares(self._dense().model)
        return {
            id: _READING_SHARE * reading.get(id, 0.0)
            if state != "embedding"
            else _READING_SHARE + (1 - _READING_SHARE) * embedded.get(id, 0.0)
            for id, state in states.items()
        }

    def password(self, id: str) -> str | None:
        """The one that was given for a document in this process; it is kept nowhere else."""
        return self._passwords.get(id)

    def original(self, document: StoredDocument) -> Path:
        return self._original(document.id, document.suffix)

    def _original(self, id: str, suffix: str) -> Path:
        return self._originals / f"{id}{suffix}"

    def _drop_strays(self) -> None:
        """Remove originals that a kill left without a row; inside a transaction, as another process may be adding."""
        with self._database.transaction():
            kept = {self.original(document) for document in self._database.documents()}
            for stray in set(self._originals.iterdir()) - kept:
                stray.unlink()


def _note(name: str, pages: Sequence[Page]) -> str | None:
    """What is to be said of pages that could not be read, in a document whose others could."""
    numbers = [str(page.number) for page in pages if page.scanned]
    if not numbers:
        return None
    reason = ocr.missing() or "has no text that could be recognised"
    return f"{name}, page {', '.join(numbers[:10])}{' …' if len(numbers) > 10 else ''}: {reason}."


def _twin(name: str, known: str) -> str:
    return f"{name} has the same content as {known}, which is here already."


def name_of(source: Source) -> str:
    """What the user calls a file."""
    return clean_name(source[1] if isinstance(source, tuple) else Path(source).name)


def clean_name(name: str) -> str:
    """A name that any database and screen can hold: composed characters, "?" for bytes that were no text."""
    return unicodedata.normalize("NFC", name).encode("utf-8", "replace").decode("utf-8")
