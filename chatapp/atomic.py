"""Small files that are there whole or as they were: a kill in the middle of writing costs nothing."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def write_whole(file: Path, text: str) -> None:
    """Replaces a file, and makes its folder if need be. Raises OSError, and the file is as it was then."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, written = tempfile.mkstemp(prefix=f".{file.name}-", dir=file.parent)
    try:
        with open(handle, "w", encoding="utf-8") as begun:
            begun.write(text)
            begun.flush()
            os.fsync(begun.fileno())
        os.replace(written, file)
    except OSError:
        Path(written).unlink(missing_ok=True)
        raise
