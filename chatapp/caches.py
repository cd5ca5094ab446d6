"""Checkpoints that other programs have downloaded: the caches of Hugging Face and of ModelScope.

A repository of Hugging Face's is models--org--name/ with blobs/, snapshots/<revision>/ (links into blobs/, or the files
themselves where there can't be links) and refs/main, which names a revision. ModelScope's is org/name/, where newer
versions write ___ for a dot. Nothing here is ever changed or deleted: those programs rely on it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

#: Whose caches they are, as they write themselves.
ORIGINS = {"huggingface": "Hugging Face", "modelscope": "ModelScope"}
REPOSITORIES = "models--*"
#: What ModelScope puts a download in until it is whole; what else lies where its repositories do.
TEMPORARY = "._____temp"
NO_OWNERS = ("models", "datasets", "hub", "tmp")


@dataclass(frozen=True)
class Place:
    """A folder in which checkpoints are looked for.

    `name` is what it goes by if it is a repository in a cache, `origin` whose cache that is (a key of ORIGINS).
    """

    folder: Path
    name: str = ""
    origin: str = ""
    root: Path | None = None  #: all that a repository takes; `folder` is one revision of it
    partial: bool = False  #: a download into it was interrupted, or is going on


def cached(environment: Mapping[str, str]) -> Iterator[Place]:
    """The repositories in the caches that these variables name, or in those in their usual places."""
    yield from hugging_face(hugging_face_folder(environment))
    for folder in modelscope_folders(environment):
        yield from modelscope(folder)


def places_in(folder: Path) -> Iterator[Place]:
    """A folder of the user; where it is a cache of Hugging Face's, or in one, the repositories in it as well."""
    if folder.match(REPOSITORIES):
        yield from _repository(folder)
        return
    yield Place(folder)
    for each in (folder, folder / "hub"):
        yield from hugging_face(each)


def hugging_face_folder(environment: Mapping[str, str]) -> Path:
    """Where huggingface_hub keeps what it downloads, by its own rules."""
    home = environment.get("XDG_CACHE_HOME") or "~/.cache"
    hub = environment.get("HF_HUB_CACHE") or environment.get("HUGGINGFACE_HUB_CACHE")
    return _path(hub or os.path.join(environment.get("HF_HOME") or os.path.join(home, "huggingface"), "hub"))


def modelscope_folders(environment: Mapping[str, str]) -> list[Path]:
    """Where ModelScope's versions keep, or kept, repositories."""
    root = _path(environment.get("MODELSCOPE_CACHE") or "~/.cache/modelscope")
    return [root, root / "models", root / "hub", root / "hub" / "models"]


def hugging_face(folder: Path) -> Iterator[Place]:
    """The repositories in a folder, each at the revision that counts."""
    for root in sorted(folder.glob(REPOSITORIES)):
        yield from _repository(root)


def _repository(root: Path) -> Iterator[Place]:
    revision, partial = _revision(root), any(root.glob("blobs/*.incomplete"))
    if revision is not None or partial:
        name = root.name.removeprefix("models--").replace("--", "/")
        yield Place(revision or root, name, "huggingface", root, partial)


def modelscope(folder: Path) -> Iterator[Place]:
    """The repositories in a folder; a link is another name of one of them."""
    waiting = folder / TEMPORARY
    for owner, name in sorted({path.parts[-2:] for each in (folder, waiting) for path in each.glob("[!.]*/[!.]*/")}):
        root = folder / owner / name
        if owner in NO_OWNERS or owner.startswith("models--") or root.is_symlink():
            continue
        partial = any(any(each.glob("*")) for each in (root / TEMPORARY, waiting / owner / name))
        place = root if root.is_dir() else waiting / owner / name
        yield Place(place, f"{owner}/{name.replace('___', '.')}", "modelscope", place, partial)


def _revision(root: Path) -> Path | None:
    """The snapshot of refs/main; where that is not there, the latest one."""
    snapshots = {path.name: path for path in root.glob("snapshots/*/")}
    try:
        main = (root / "refs" / "main").read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        main = ""
    return snapshots.get(main) or max(snapshots.values(), key=lambda path: path.stat().st_mtime_ns, default=None)


def _path(text: str) -> Path:
    return Path(os.path.expandvars(os.path.expanduser(text)))
