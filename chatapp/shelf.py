"""All checkpoints that can be had on this machine, wherever they lie, and how each of them would run here.

Headers are read once: what was found out about a path is remembered until the path changes, so that a list of many is
there at once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from models import CheckpointError, Footprint

from . import caches, checkpoints
from .checkpoints import Found
from .folders import Folders
from .hardware import Machine
from .planner import Plan, footprint_of, plan_footprint
from .sentences import Sentence
from .settings import Settings

T = TypeVar("T")
Stamp = tuple[int, ...]


class Shelf:
    """`environment` says where other programs' caches are."""

    def __init__(self, settings: Settings, environment: Mapping[str, str] = os.environ) -> None:
        self._settings = settings
        self._environment = environment
        self._added = Folders(settings.data)
        self._known: dict[tuple[str, Path], tuple[Stamp, Any]] = {}

    @property
    def added(self) -> list[Path]:
        """The folders that the user added."""
        return self._added.all()

    @property
    def folders(self) -> list[Path]:
        """Where checkpoints are looked for, beside the caches."""
        return [*self._settings.checkpoint_folders, *self.added]

    def survey(self) -> list[Found]:
        """All there is, what can't be loaded as well."""
        return checkpoints.survey(self.folders, caches.cached(self._environment), self._examine)

    def found(self) -> list[Found]:
        """What is offered to be loaded."""
        return [found for found in self.survey() if found.offered]

    def adapters(self) -> list[Found]:
        return checkpoints.find_adapters(self.folders, caches.cached(self._environment))

    def add(self, text: str) -> Path:
        """Adds a folder by its path as it was typed or pasted. Raises Sentence where there is nothing to be found."""
        folder = Path(os.path.expanduser(text.strip().strip("\"'")))
        if not text.strip():
            raise Sentence("folder_which")
        if not folder.is_absolute():
            raise Sentence("folder_relative", path=folder)
        if not folder.is_dir():
            raise Sentence("folder_none", path=folder)
        if any(each.resolve() == folder.resolve() for each in self.folders):
            raise Sentence("folder_known", path=folder)
        if not checkpoints.survey([folder], (), self._examine):
            raise Sentence("folder_empty", path=folder)
        try:
            self._added.add(folder)
        except OSError as error:
            raise Sentence("folder_unkept", reason=error.strerror or error) from error
        return folder

    def remove(self, folder: Path) -> None:
        """Takes a folder off the list; its files stay. Raises Sentence."""
        try:
            self._added.remove(folder)
        except OSError as error:
            raise Sentence("folder_unkept", reason=error.strerror or error) from error

    def plan(self, path: Path, machine: Machine, tier: str = "auto") -> Plan:
        """How a checkpoint would run on this machine. Raises CheckpointError."""
        needs = self._remembered("needs", path, _needs)
        if isinstance(needs, str):
            raise CheckpointError(needs)
        return plan_footprint(needs, machine, tier, self._settings.context)

    def is_known(self, path: Path) -> bool:
        """Whether `plan` answers without reading anything."""
        stamp, _ = self._known.get(("needs", path), ((), None))
        return stamp == _stamp(path)

    def _examine(self, path: Path) -> tuple[str, str]:
        return self._remembered("found", path, checkpoints.examine)

    def _remembered(self, what: str, path: Path, find_out: Callable[[Path], T]) -> T:
        stamp = _stamp(path)
        known, value = self._known.get((what, path), ((), None))
        if known != stamp:
            value = find_out(path)
            self._known[what, path] = stamp, value
        return value


def _needs(path: Path) -> Footprint | str:
    """What a checkpoint takes of memory, or in a sentence why that can't be told."""
    try:
        return footprint_of(path)
    except CheckpointError as error:
        return str(error)
    except OSError as error:
        return f"{path} can't be read ({error.strerror or error})."


def _stamp(path: Path) -> Stamp:
    """Changes with a checkpoint: with its config or its file, and with the names in its folder."""
    stamp: list[int] = []
    for each in (path, path / "config.json") if path.is_dir() else (path, path.parent):
        try:
            status = each.stat()
            stamp += [status.st_mtime_ns, status.st_size, status.st_ino]
        except OSError:
            stamp += [0, 0, 0]
    return tuple(stamp)
