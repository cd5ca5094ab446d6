"""Small files of a checkpoint, which may be damaged, without end, or something else than their name says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .base import CheckpointError

LARGEST = 2**26  #: bytes; twice the largest tokenizer.json that is published
#: How files begin that are often found in the place of others, in lower case.
STAND_INS = {
    b"version https://git-lfs": "a Git LFS pointer",
    b"<!doctype html": "a web page",
    b"<html": "a web page",
}


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Raises CheckpointError in the place of an OSError that reading a path runs into."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise CheckpointError(f"{path} can't be read ({reason}); check its permissions and its disk.") from error


def refuse_stand_in(path: Path) -> None:
    """Raises CheckpointError for what a download left in the place of a file."""
    with readable(path), path.open("rb") as file:
        start = file.read(100).lstrip().lower()
    for beginning, what in STAND_INS.items():
        if start.startswith(beginning):
            raise CheckpointError(f"{path} is {what} and not the file itself; download the real file.")


def read_whole(path: Path) -> bytes:
    """The bytes of a file that is small if it is whole. Raises CheckpointError."""
    refuse_stand_in(path)
    with readable(path):
        if (size := path.stat().st_size) > LARGEST:
            raise CheckpointError(f"{path} is damaged (it has {size:,} bytes); download it again.")
        return path.read_bytes()


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object that a file holds. Raises CheckpointError."""
    try:
        value = json.loads(read_whole(path).decode("utf-8"))
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:  # no UTF-8, no JSON, numbers without end, or too deep
        raise CheckpointError(f"{path} is damaged ({error}); download it again.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} should hold a JSON object; download it again.")
    return value
