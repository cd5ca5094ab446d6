"""Downloads of checkpoints: one queue on disk that survives a kill, one at a time, nothing half that looks finished.

A download is a file <data>/downloads/<id>.json; what has arrived of it lies in <data>/checkpoints/.downloads/<id>/, on
the same disk as the place that it is moved to in one step once all files are there and verified.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from . import hubs
from .fetching import UNFINISHED, Fetch, Interrupted, matches
from .hub_notes import Texts, Tokens
from .hubs import HubError, Repository
from .jobs import RUNNING, Job, Progress

#: Seconds over which the speed is an average.
WINDOW = 8.0
#: Free on the disk beyond what a download takes, in bytes.
SPARE = 2**30
PARTS = ".downloads"  #: in the folder of the checkpoints, which looks into no hidden one


@dataclass
class _Active:
    """What the working thread is at; `stop` ends it."""

    id: str
    done: int
    stop: threading.Event = field(default_factory=threading.Event)
    samples: deque[tuple[float, int]] = field(default_factory=deque)
    retry: tuple[float, HubError] | None = None  #: when, in monotonic time, and why

    def arrived(self, count: int) -> None:
        self.done += count
        now = time.monotonic()
        self.samples.append((now, max(count, 0)))
        while now - self.samples[0][0] > WINDOW:
            self.samples.popleft()

    @property
    def waits(self) -> tuple[float, HubError] | None:
        """Seconds until the next try, and why."""
        retry = self.retry
        return None if retry is None else (max(retry[0] - time.monotonic(), 0.0), retry[1])

    @property
    def speed(self) -> float:
        """Bytes in a second."""
        now, samples = time.monotonic(), list(self.samples)
        recent = [(at, count) for at, count in samples if now - at <= WINDOW]
        return sum(count for _, count in recent) / max(now - recent[0][0], 0.5) if recent else 0.0


class Downloads:
    """All downloads of a data folder. Methods raise HubError for what can't be done."""

    def __init__(self, data: Path, client: Callable[[], httpx.Client] = hubs.client, hurry: float = 1.0) -> None:
        self.checkpoints = data / "checkpoints"
        self.tokens = Tokens(data / "tokens.json")
        self.addresses = Texts(data / "hubs.json")  #: by kind of hub, where the user gave another one; "last" is a kind
        self._folder = data / "downloads"
        self._parts = self.checkpoints / PARTS
        self._client = client
        self._hurry = hurry  #: waits between tries are divided by it
        self._changed = threading.Condition()
        self._active: _Active | None = None
        self._ending = threading.Event()
        self._jobs: dict[str, Job] = {}
        self._thread = threading.Thread(target=self._work, name="downloads", daemon=True)
        for job in self._read():
            self._jobs[job.id] = job

    def start(self) -> None:
        for left in self._parts.glob("*"):  # by a kill while something was deleted or looked up
            if not (self._folder / f"{left.name}.json").exists():
                shutil.rmtree(left, ignore_errors=True)
        self._thread.start()

    @property
    def scratch(self) -> Path:
        """A folder for temporary files, on the checkpoints' disk."""
        return self._parts

    def stop(self, seconds: float) -> None:
        """Ends the work; what has arrived is kept and the next start goes on with it."""
        self._ending.set()
        with self._changed:
            if self._active is not None:
                self._active.stop.set()
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(seconds)

    # What the page does

    def list(self) -> list[Progress]:
        """All downloads, the latest first."""
        with self._changed:
            jobs = sorted(self._jobs.values(), key=lambda job: job.created, reverse=True)
            return [self._progress(job) for job in jobs]

    def add(self, repository: Repository, name: str, form: str, copy: int = 0, tier: str = "auto") -> str:
        """Begins to download all files that `repository` lists, behind those that wait; returns the download's id.

        They become the folder `name` below their owner's; `form` is a Variant's, `copy` the bytes of a tier that will
        be kept beside them.
        """
        owner = repository.id.rpartition("/")[0]
        target = f"{owner}/{name}" if owner else name
        job = Job(uuid.uuid4().hex[:12], repository, target, form, copy, tier, created=time.time())
        with self._changed:
            if (self.checkpoints / target).exists():
                raise HubError("download_exists", name=target)
            if any(other.target == target and other.state != "done" for other in self._jobs.values()):
                raise HubError("download_twice", name=target)
            self._refuse_full(job)
            self._put(job)
        return job.id

    def pause(self, id: str) -> None:
        with self._changed:
            job = self._jobs.get(id)
            if job is not None and job.state in RUNNING:
                self._put(dataclasses.replace(job, state="done" if self._is_here(job) else "paused"))
                self._interrupt(id)

    def resume(self, id: str) -> None:
        """Goes on with what was paused or has failed; files that a check found changed are fetched again."""
        with self._changed:
            job = self._jobs.get(id)
            if job is None or job.state not in ("paused", "failed"):
                return
            self._refuse_full(job)
            if job.damaged and self._is_here(job):
                self._take_back(job)
            self._put(dataclasses.replace(job, state="waiting", failure=None, damaged=()))

    def verify(self, id: str) -> None:
        """Reads a finished checkpoint's files again and holds them against the checksums of its hub."""
        with self._changed:
            job = self._jobs.get(id)
            if job is not None and job.state == "done" and self._is_here(job):
                self._put(dataclasses.replace(job, state="waiting"))

    def delete(self, id: str) -> None:
        """Forgets a download with all that has arrived of it; a checkpoint that was finished stays."""
        with self._changed:
            self._jobs.pop(id, None)
            (self._folder / f"{id}.json").unlink(missing_ok=True)
            self._interrupt(id)
            self._changed.wait_for(lambda: self._active is None or self._active.id != id, 60)
        shutil.rmtree(self._parts / id, ignore_errors=True)

    def pending(self) -> int:
        """Bytes that unfinished downloads will still take, with the tiers that are made of them."""
        with self._changed:
            jobs = [job for job in self._jobs.values() if job.state != "done"]
            return sum(job.size + job.copy - self._progress(job).done for job in jobs)

    def places(self) -> dict[str, Path]:
        """Where what has arrived of unfinished downloads lies, by what they become."""
        with self._changed:
            jobs = list(self._jobs.values())
        return {job.target: place for job in jobs if (place := self._parts / job.id).is_dir()}

    # The queue on disk

    def _read(self) -> Iterator[Job]:
        for path in sorted(self._folder.glob("*.json")):
            try:
                job = Job.from_json(json.loads(path.read_text(encoding="utf-8")))
            except (OSError, ValueError, KeyError, TypeError):
                continue  # damaged, or of another version: it is not ours to delete
            running = job.state in RUNNING
            yield dataclasses.replace(job, state="waiting") if running else job

    def _put(self, job: Job) -> None:
        """Keeps a job; whoever waits for one is told."""
        self._folder.mkdir(parents=True, exist_ok=True)
        new = self._folder / f".{job.id}.new"
        with new.open("w", encoding="utf-8") as file:
            json.dump(job.to_json(), file, ensure_ascii=False)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._folder / f"{job.id}.json")
        self._jobs[job.id] = job
        self._changed.notify_all()

    def _progress(self, job: Job) -> Progress:
        path = self._path(job) if job.state == "done" and self._is_here(job) else None
        active = self._active
        if active is not None and active.id == job.id and job.state in RUNNING:
            return Progress(job, min(active.done, job.size), active.speed, active.waits, path)
        return Progress(job, job.size if self._is_here(job) else self._arrived(job), path=path)

    def _path(self, job: Job) -> Path:
        """What is loaded: a folder, or the first file of a GGUF model."""
        folder = self.checkpoints / job.target
        if job.form != "gguf":
            return folder
        return folder / min(file.name for file in job.repository.files if file.path.lower().endswith(".gguf"))

    def _is_here(self, job: Job) -> bool:
        return job.placed and (self.checkpoints / job.target).is_dir() and not (self._parts / job.id).exists()

    def _arrived(self, job: Job) -> int:
        """Bytes that lie on the disk."""
        folder = self._parts / job.id
        names = [name for file in job.repository.files for name in (file.name, file.name + UNFINISHED)]
        return sum(path.stat().st_size for name in names if (path := folder / name).is_file())

    def _refuse_full(self, job: Job) -> None:
        others = self.pending() - (0 if job.id not in self._jobs else job.size + job.copy - self._arrived(job))
        needed = job.size - self._arrived(job) + job.copy + others + SPARE
        free = room(self.checkpoints)
        if needed > free:
            raise HubError("download_no_room", needed=gb(needed), free=gb(free), folder=str(self.checkpoints))

    def _interrupt(self, id: str) -> None:
        if self._active is not None and self._active.id == id:
            self._active.stop.set()

    def _take_back(self, job: Job) -> None:
        """Makes a checkpoint unfinished again, without the files that are damaged."""
        folder = self._parts / job.id
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            (self.checkpoints / job.target).rename(folder)
        except OSError as error:
            raise HubError("download_disk", reason=error.strerror or str(error)) from error
        for name in job.damaged:
            (folder / name).unlink(missing_ok=True)

    # The working thread

    def _work(self) -> None:
        while (job := self._next()) is not None:
            try:
                self._run(job)
            finally:
                with self._changed:
                    self._active = None
                    self._changed.notify_all()

    def _next(self) -> Job | None:
        """The download that has waited longest, once there is one; None when the app ends."""
        with self._changed:
            while not self._ending.is_set():
                waiting = [job for job in self._jobs.values() if job.state == "waiting"]
                if waiting:
                    job = min(waiting, key=lambda job: job.created)
                    self._active = _Active(job.id, self._arrived(job))
                    return job
                self._changed.wait()
        return None

    def _run(self, job: Job) -> None:
        with self._failing(job.id):
            if self._is_here(job):
                self._check(job)
                return
            self._state(job.id, "downloading")
            with self._client() as client:
                self._fetch(client, job)
            self._place(job)

    @contextmanager
    def _failing(self, id: str) -> Iterator[None]:
        try:
            yield
        except Interrupted:
            pass  # whoever interrupted has said what becomes of it
        except HubError as error:
            self._state(id, "failed", (error.key, error.values))
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            values = {"free": gb(room(self.checkpoints))} if full else {"reason": error.strerror or str(error)}
            self._state(id, "failed", ("download_full" if full else "download_disk", values))

    def _fetch(self, client: httpx.Client, job: Job) -> None:
        repository, active, folder = job.repository, self._active, self._parts / job.id
        folder.mkdir(parents=True, exist_ok=True)
        token = self.tokens.get(repository.hub.address)
        active.retry = None

        def waiting(seconds: float, why: HubError | None) -> None:
            active.retry = None if why is None else (time.monotonic() + seconds, why)

        def wait(seconds: float) -> bool:
            return active.stop.wait(seconds / self._hurry) if seconds else active.stop.is_set()

        fetch = Fetch(client, repository.hub, repository.id, token, active.arrived, waiting, wait)
        for file in repository.files:
            target = folder / file.name
            if not target.is_file():  # it is there only once it has been verified
                fetch.file(repository.url(file.path), file, target)

    def _place(self, job: Job) -> None:
        """Makes what has arrived a checkpoint; nobody can pause or delete it meanwhile."""
        with self._changed:
            if self._active.stop.is_set():
                raise Interrupted
            place = self.checkpoints / job.target
            place.parent.mkdir(parents=True, exist_ok=True)
            if place.exists():
                raise HubError("download_exists", name=job.target)
            self._put(dataclasses.replace(self._jobs[job.id], placed=True))
            (self._parts / job.id).rename(place)
            self._put(dataclasses.replace(self._jobs[job.id], state="done", failure=None))

    def _check(self, job: Job) -> None:
        active = self._active
        active.done = 0
        self._state(job.id, "verifying")
        damaged = []
        for file in job.repository.files:
            if not matches(self.checkpoints / job.target / file.name, file, active.stop.is_set):
                damaged.append(file.name)
            active.done += file.size
        if damaged:
            names = ", ".join(damaged)
            self._state(job.id, "failed", ("download_damaged", {"names": names}), tuple(damaged))
        else:
            self._state(job.id, "done")

    def _state(
        self, id: str, state: str, failure: tuple[str, Mapping[str, Any]] | None = None, damaged: tuple[str, ...] = ()
    ) -> None:
        """Unless somebody has paused or deleted it meanwhile."""
        with self._changed:
            if id not in self._jobs or self._jobs[id].state not in RUNNING:
                return
            job = dataclasses.replace(self._jobs[id], state=state, failure=failure, damaged=damaged)
            try:
                self._put(job)
            except OSError:  # a full disk takes no word of it either; the next start finds it running, and goes on
                self._jobs[id] = job
                self._changed.notify_all()


def room(folder: Path) -> int:
    """Free bytes on the disk of a folder that may not be there yet."""
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    return shutil.disk_usage(there).free


def gb(size: float) -> str:
    """Gigabytes as hubs and disks count them."""
    return f"{size / 1e9:,.2f}" if size < 1e9 else f"{size / 1e9:,.1f}"
