"""The folders with checkpoints that the user added, in a small file under the data folder."""

from __future__ import annotations

import json
import os
import tempfile
import threading
from collections.abc import Iterable
from pathlib import Path

NAME = "folders.json"


class Folders:
    """A list of folders that survives a restart. A file that can't be read is an empty list."""

    def __init__(self, data: Path) -> None:
        self._file = data / NAME
        self._lock = threading.Lock()

    def all(self) -> list[Path]:
        """In the order in which they were added, whether they are there at the moment or not."""
        try:
            kept = json.loads(self._file.read_text(encoding="utf-8"))["folders"]
        except (OSError, ValueError, LookupError, TypeError):
            return []
        return [Path(text) for text in kept if isinstance(text, str)] if isinstance(kept, list) else []

    def add(self, folder: Path) -> None:
        """Raises OSError."""
        with self._lock:
            self._write(dict.fromkeys([*self.all(), folder]))

    def remove(self, folder: Path) -> None:
        """Takes a folder off the list; nothing in it is touched. Raises OSError."""
        with self._lock:
            self._write(each for each in self.all() if each != folder)

    def _write(self, folders: Iterable[Path]) -> None:
        """The file is replaced whole: a kill leaves the old one or the new one."""
        text = json.dumps({"folders": [str(folder) for folder in folders]}, ensure_ascii=False, indent=2)
        self._file.parent.mkdir(parents=True, exist_ok=True)
        handle, written = tempfile.mkstemp(prefix=f".{NAME}-", dir=self._file.parent)
        try:
            with open(handle, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(written, self._file)
        except OSError:
            Path(written).unlink(missing_ok=True)
            raise
