"""What takes disk on this machine, and the deletion of what is ours.

Ours is what lies under the data folder. What other programs have downloaded, and folders that the user added, are shown
with their place and never touched.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from models.formats import gguf_parts

from .checkpoints import DEFAULT_MODEL, EMBEDDER, Found
from .downloads.manager import Downloads
from .engine import Engine
from .library import Library
from .sentences import Sentence
from .settings import Settings
from .shelf import Shelf

#: What there is, in the order in which it is shown.
KINDS = ("checkpoint", "adapter", "tier", "embedder", "base", "conversations", "warm", "download")
DELETING = (
    ".deleting-"  #: what a folder is called while it goes: an interrupted deletion leaves nothing that looks whole
)

#: Bytes by what tells a file from all others, however many links lead to it.
Files = dict[tuple[int, int], int]


@dataclass(frozen=True)
class Item:
    """Something that takes disk; `paths` are what is deleted with it."""

    kind: str
    name: str
    paths: tuple[Path, ...]
    files: Files = field(repr=False, compare=False)
    ours: bool = False  #: it may be deleted here
    origin: str = ""  #: a key of caches.ORIGINS, where it is theirs
    family: str = ""
    lacks: str = ""  #: why it can't be loaded
    partial: bool = False  #: because its download was not finished
    fetched_again: bool = False  #: by the next start

    @property
    def place(self) -> Path:
        return self.paths[0]

    @property
    def size(self) -> int:
        """Bytes; a file to which several links lead counts once."""
        return sum(self.files.values())

    @property
    def id(self) -> str:
        """What stands for it on the page."""
        return id_of(f"{self.kind} {self.place}")


@dataclass(frozen=True)
class Report:
    """`total` counts a file once that belongs to several items; `ours` is the part under the data folder."""

    items: tuple[Item, ...]
    total: int
    ours: int
    free: int


class Storage:
    """What lies in the data folder, and the checkpoints wherever they lie."""

    def __init__(
        self, settings: Settings, shelf: Shelf, engine: Engine, library: Library, downloads: Downloads
    ) -> None:
        self._data = settings.data
        self._own = settings.data / "checkpoints"
        self._shelf = shelf
        self._engine = engine
        self._library = library
        self._downloads = downloads

    def report(self) -> Report:
        """All that takes disk; for a page, to be called off its event loop."""
        items = tuple(sorted(self._items(), key=lambda item: (KINDS.index(item.kind), -item.size, item.name)))
        ours = _total(item for item in items if not item.origin and item.place.is_relative_to(self._data))
        return Report(items, _total(items), ours, shutil.disk_usage(self._data).free)

    def item(self, id: str) -> Item:
        """Raises Sentence for what is not there any more."""
        found = next((item for item in self._items() if item.id == id), None)
        if found is None:
            raise Sentence("storage_gone")
        return found

    def delete(self, id: str) -> Item:
        """Deletes an item of ours, and returns what it was. Raises Sentence where it may or can not be."""
        item = self.item(id)
        self._check(item)
        try:
            if item.kind == "warm":
                self._engine.forget()
            else:
                self._remove(item.paths)
        except OSError as error:
            raise Sentence("storage_failed", name=item.name, reason=error.strerror or error) from error
        return item

    def is_loaded(self, item: Item) -> bool:
        """Whether the model, or its adapter, is loaded from it."""
        source = self._engine.source
        used = [path.resolve() for path in (source.path, source.adapter) if path is not None] if source else []
        return item.kind in ("checkpoint", "adapter") and any(_holds(item.paths, path) for path in used)

    def _check(self, item: Item) -> None:
        if not item.ours:
            raise Sentence("storage_theirs", name=item.name, place=item.place)
        if item.kind in ("checkpoint", "adapter", "tier") and self._engine.status.state == "loading":
            raise Sentence("storage_loading")
        if item.kind == "warm" and self._engine.busy:
            raise Sentence("storage_busy")
        if self.is_loaded(item):
            raise Sentence("storage_loaded", name=item.name)

    def _remove(self, paths: Iterable[Path]) -> None:
        for path in paths:
            for left in path.parent.glob(f"{DELETING}*"):  # by a deletion that was interrupted
                _delete(left)
            going = path.with_name(f"{DELETING}{uuid.uuid4().hex}")
            path.rename(going)
            _delete(going)
            for parent in path.parents:
                if parent in (self._own, self._data) or self._data not in parent.parents or any(parent.iterdir()):
                    break
                parent.rmdir()

    def _items(self) -> Iterator[Item]:
        survey = self._shelf.survey()
        for found in survey:
            if not found.origin:
                yield self._checkpoint("checkpoint", found, _paths(found, survey, self._own))
        yield from _cached(survey)
        for found in self._shelf.adapters():
            if not found.origin:
                yield self._checkpoint("adapter", found, (found.path,))
        for folder in sorted((self._data / "quantized").glob("[!.]*/")):
            yield _item("tier", _tier_name(folder), (folder,), ours=True)
        yield from (_item("download", name, (folder,)) for name, folder in self._downloads.places().items())
        yield from (_item("base", name, (folder,)) for name, folder in self._library.folders().items())
        conversations = sorted(self._data.glob("conversations.db*"))
        yield from [_item("conversations", "", tuple(conversations))] if conversations else []
        yield from self._single("embedder", self._own / EMBEDDER.name, EMBEDDER.name, ours=False)
        yield from (item for item in self._single("warm", self._data / "warm", "", ours=True) if item.files)

    def _checkpoint(self, kind: str, found: Found, paths: tuple[Path, ...]) -> Item:
        return Item(
            kind,
            found.name,
            paths,
            _files(paths),
            ours=found.path.is_relative_to(self._own) and found.path != self._own,
            family=found.family,
            lacks=found.lacks,
            fetched_again=found.name.startswith(DEFAULT_MODEL) and found.path.is_relative_to(self._own),
        )

    def _single(self, kind: str, path: Path, name: str, ours: bool) -> Iterator[Item]:
        if path.exists():
            yield _item(kind, name, (path,), ours)


def id_of(text: str) -> str:
    """Stands for a text, such as a path, on the page."""
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:12]


def _item(kind: str, name: str, paths: tuple[Path, ...], ours: bool = False) -> Item:
    return Item(kind, name, paths, _files(paths), ours)


def _cached(survey: Sequence[Found]) -> Iterator[Item]:
    """The repositories in caches that are of our families, or of which nothing can be said yet: one item for each."""
    repositories: dict[Path, list[Found]] = {}
    for found in survey:
        if found.origin:
            repositories.setdefault(found.place.root, []).append(found)
    for root, inside in repositories.items():
        known = [found for found in inside if found.family] or [found for found in inside if found.path == root]
        if known:
            place, lacking = known[0].place, "" if any(found.offered for found in known) else known[0].lacks
            waits = place.partial and not any(found.offered for found in known)
            details = {"origin": place.origin, "family": known[0].family, "lacks": lacking, "partial": waits}
            yield Item("checkpoint", place.name, (root,), _files((root,)), **details)


def _paths(found: Found, survey: Sequence[Found], own: Path) -> tuple[Path, ...]:
    """What belongs to a checkpoint: its folder, which is also that of a GGUF model that is alone in one of ours."""
    if found.path.is_dir():
        return (found.path,)
    folder = found.path.parent
    alone = all(other is found or not other.path.is_relative_to(folder) for other in survey)
    if alone and folder != own and folder.is_relative_to(own):
        return (folder,)
    return tuple(path for path in gguf_parts.siblings(found.path) if path.is_file())


def _tier_name(folder: Path) -> str:
    """ "chatglm-6b-int4-0123456789ab" -> "chatglm-6b · INT4" """
    name, _, tier = folder.name.rpartition("-")[0].rpartition("-")
    return f"{name} · {tier.upper()}" if name else folder.name


def _holds(paths: Iterable[Path], path: Path) -> bool:
    return any(path.is_relative_to(each.resolve()) for each in paths)


def _total(items: Iterable[Item]) -> int:
    return sum({key: size for item in items for key, size in item.files.items()}.values())


def _files(paths: Iterable[Path]) -> Files:
    """The files of these paths. Links to folders inside them are not followed: they may lead anywhere."""
    found: Files = {}
    for path in paths:
        names = (os.path.join(parent, name) for parent, _, names in os.walk(path) for name in names)
        for name in names if path.is_dir() else (path,):
            try:
                status = os.stat(name)
            except OSError:  # it has gone, or a link leads nowhere
                continue
            found[status.st_dev, status.st_ino] = status.st_size
    return found


def _delete(path: Path) -> None:
    """A folder with all that is in it, a file, or a link but not what it leads to. Raises OSError."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
