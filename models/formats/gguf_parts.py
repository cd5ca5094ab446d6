"""GGUF models in one file or in several, named NAME-00001-of-00003.gguf."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from ..base import CheckpointError
from ..files import refuse_stand_in
from .gguf_file import MAGIC, GGUFFile

NUMBERED = re.compile(r"(.+)-(\d{5})-of-(\d{5})")
SUFFIX = ".gguf"


def model_name(path: Path) -> str:
    """A file's name without its suffix, and without its number where it is one of several."""
    match = NUMBERED.fullmatch(path.stem)
    return match[1] if match else path.stem


def siblings(path: Path) -> list[Path]:
    """All the files of the model that a file belongs to, in order, whether they are there or not."""
    match = NUMBERED.fullmatch(path.stem)
    if match is None:
        return [path]
    name, _, count = match.groups()
    return [path.with_name(f"{name}-{number:05}-of-{count}{SUFFIX}") for number in range(1, int(count) + 1)]


def models_among(paths: Iterable[Path]) -> list[Path]:
    """One file, the first, of each model."""
    first: dict[tuple[Path, str], Path] = {}
    for path in sorted(paths):
        first.setdefault((path.parent, model_name(path)), path)
    return list(first.values())


def find_model(path: Path) -> Path:
    """The file to open for a file or for a folder with one model. Raises CheckpointError for a folder with several."""
    if path.is_file():
        return path
    found = models_among(path.glob(f"*{SUFFIX}"))
    if not found:
        raise CheckpointError(f"{path} is neither a file nor a folder with GGUF files; download it again.")
    if len(found) > 1:
        names = ", ".join(model.name for model in found)
        raise CheckpointError(f"{path} holds several GGUF models; choose one of {names}.")
    return found[0]


def present(path: Path) -> list[Path]:
    """All the files of the model that a file belongs to. Raises CheckpointError where one is missing."""
    paths = siblings(path)
    for each in paths:
        if not each.is_file():
            raise CheckpointError(
                f"{each.name} is missing in {path.parent}: the model is in {len(paths)} files; download it too."
            )
    return paths


def open_files(path: Path) -> list[GGUFFile]:
    """The file with all that belong to it. Raises CheckpointError where one is missing, damaged or of another model."""
    paths = present(path)
    files = [_open(each) for each in paths]
    for number, (each, file) in enumerate(zip(paths, files, strict=True)):
        found = file.values.get("split.no", 0), file.values.get("split.count", 1)
        if found != (number, len(paths)) and found != (0, 0):
            raise CheckpointError(
                f"{each} has a split.no of {found[0]!r} and a split.count of {found[1]!r}, where its name asks for "
                f"{number} and {len(paths)}; give the files their names back, or download them again."
            )
    _check_count(paths[0], files)
    return files


def _check_count(path: Path, files: list[GGUFFile]) -> None:
    found = sum(len(file.tensors) for file in files)
    counted = files[0].values.get("split.tensors.count", found)
    if counted != found:
        raise CheckpointError(
            f"{path} has a split.tensors.count of {counted}, but {found} tensors are in its {len(files)} files; "
            "download them again."
        )


def _open(path: Path) -> GGUFFile:
    refuse_stand_in(path)
    with path.open("rb") as file:
        magic = file.read(len(MAGIC))
    if magic != MAGIC:
        raise CheckpointError(f"{path} is not a GGUF file, or damaged at its start; download it again.")
    try:
        return GGUFFile(path)
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged or incomplete ({error}); download it again.") from error
