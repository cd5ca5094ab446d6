"""What the user told of model hubs: their addresses, and tokens, in files that only their owner can read."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

OWNER_ONLY = 0o600


class Texts:
    """Texts by name in a file. One that is damaged counts as empty."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> dict[str, str]:
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return {str(key): str(value) for key, value in found.items()} if isinstance(found, dict) else {}

    def write(self, texts: dict[str, str]) -> None:
        """Raises OSError."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        new = self._path.with_suffix(".new")
        new.unlink(missing_ok=True)
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, OWNER_ONLY)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(texts, file, ensure_ascii=False)
        new.replace(self._path)


class Tokens:
    """By the hub's address, so that none is ever sent to another one."""

    def __init__(self, path: Path) -> None:
        self._kept = Texts(path)
        self._lock = threading.Lock()
        self._session: dict[str, str] = {}

    def get(self, address: str) -> str | None:
        return self._session.get(address) or self._kept.read().get(address)

    def put(self, address: str, token: str, keep: bool) -> None:
        """Remembers a token until the app ends, or for good; an empty one is forgotten. Raises OSError."""
        with self._lock:
            kept = self._kept.read()
            changed = {key: value for key, value in kept.items() if key != address}
            self._session.pop(address, None)
            if token:
                (changed if keep else self._session)[address] = token
            if changed != kept:
                self._kept.write(changed)

    def is_kept(self, address: str) -> bool:
        return address in self._kept.read()
