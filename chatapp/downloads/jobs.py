"""A download as it is kept on disk, and as it is at a moment."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .hubs import Hub, HubError, RemoteFile, Repository

#: What a download can be. Those that run are taken up again by the next start of the app.
RUNNING = ("waiting", "downloading", "verifying")
STATES = (*RUNNING, "paused", "failed", "done")
FORMAT = 1  #: raised when the meaning of what is kept changes


@dataclass(frozen=True)
class Job:
    """A download as it is on disk. `target` is the folder that it becomes, from the checkpoints' one on.

    `failure` is a text of the catalogue with its values; `damaged` names files that a check found changed.
    """

    id: str
    repository: Repository
    target: str
    form: str
    copy: int = 0
    tier: str = "auto"  #: that it is to be loaded with
    state: str = "waiting"
    failure: tuple[str, Mapping[str, Any]] | None = None
    damaged: tuple[str, ...] = ()
    placed: bool = False  #: it was about to become a checkpoint, or has become one: what is at its target is its own
    created: float = 0.0

    @property
    def size(self) -> int:
        return sum(file.size for file in self.repository.files)

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, found: Any) -> Job:
        """Raises KeyError, TypeError and ValueError for what is none of ours."""
        if not isinstance(found, dict):
            raise TypeError("it is no object")
        about = {key: value for key, value in found.items() if key != "format"}
        if found["format"] != FORMAT or about["state"] not in STATES:
            raise ValueError("it was written by another version")
        repository = dict(about.pop("repository"))
        hub, files = Hub(**repository.pop("hub")), tuple(RemoteFile(**file) for file in repository.pop("files"))
        failure, damaged = about.pop("failure"), tuple(about.pop("damaged"))
        return cls(
            **about,
            repository=Repository(hub, files=files, **repository),
            failure=None if failure is None else (failure[0], failure[1]),
            damaged=damaged,
        )


@dataclass(frozen=True)
class Progress:
    """A download as it is now: bytes that are here, bytes in a second, and the seconds until the next try with the
    reason for it where the hub can't be had."""

    job: Job
    done: int
    speed: float = 0.0
    retry: tuple[float, HubError] | None = None
    path: Path | None = None  #: the checkpoint, once it is done and still there

    @property
    def seconds(self) -> float | None:
        """How long it will still take."""
        return (self.job.size - self.done) / self.speed if self.speed else None

    @property
    def failure(self) -> HubError | None:
        return None if self.job.failure is None else HubError(self.job.failure[0], **self.job.failure[1])
