"""One file from a hub to the disk: in parts, taken up again where they ended, and verified."""

from __future__ import annotations

import hashlib
import os
import random
import re
from collections.abc import Callable
from pathlib import Path

import httpx

from .hubs import Hub, HubError, RemoteFile, refusal, unreachable

PIECE = 2**20  #: bytes that are read for a checksum at once
#: Tries in a row that bring not a byte; between them so many seconds, twice as long each time.
TRIES, FIRST_WAIT, LONGEST_WAIT = 8, 1.0, 60.0
#: Answers after which it is worth asking again.
PASSING = {408, 425, 429, 500, 502, 503, 504}
UNFINISHED = ".part"


class Interrupted(Exception):
    """Somebody paused or deleted the download, or the app ends."""


class Fetch:
    """How files of one repository are fetched. `arrived` is told of bytes that came, or with a negative number of those
    that were thrown away; `waiting` of seconds until the next try and why; `wait` sleeps so long and says whether to
    stop."""

    def __init__(
        self,
        client: httpx.Client,
        hub: Hub,
        id: str,
        token: str | None,
        arrived: Callable[[int], None],
        waiting: Callable[[float, HubError | None], None],
        wait: Callable[[float], bool],
    ) -> None:
        self._client = client
        self._hub = hub
        self._id = id
        self._token = token
        self._arrived = arrived
        self._waiting = waiting
        self._wait = wait

    def file(self, url: str, remote: RemoteFile, target: Path) -> None:
        """Puts a file at `target`, which is there only once it is whole and right. Raises HubError, OSError and
        Interrupted; what has come by then stays beside it and is not fetched again."""
        part = target.with_name(target.name + UNFINISHED)
        for last in (False, True):
            self._fill(url, remote, part)
            if matches(part, remote, self._stop):
                break
            self._discard(part)
            if last:
                raise HubError("hub_wrong_bytes", host=self._hub.host, name=target.name)
        part.replace(target)

    def _fill(self, url: str, remote: RemoteFile, part: Path) -> None:
        tries = 0
        while (before := _size(part)) != remote.size or not part.exists():
            delay = None
            try:
                self._append(url, remote, part)
                failure = HubError("hub_cut", host=self._hub.host, name=remote.path)
            except httpx.TransportError as error:
                failure = unreachable(self._hub, error)
            except _PassingError as passing:
                failure, delay = passing.failure, passing.delay
            if _size(part) == remote.size:
                break
            tries = 0 if _size(part) > before else tries + 1
            if tries == TRIES:
                raise failure
            # Not all at the same moment after a hub was down.
            pause = delay or min(LONGEST_WAIT, FIRST_WAIT * 2 ** max(tries - 1, 0)) * random.uniform(0.8, 1.2)
            self._waiting(pause, failure)
            if self._wait(pause):
                raise Interrupted
            self._waiting(0, None)

    def _append(self, url: str, remote: RemoteFile, part: Path) -> None:
        """One request for what is missing. Raises _PassingError, httpx.TransportError, HubError and Interrupted."""
        have = _size(part)
        if have > remote.size:
            self._discard(part)
            have = 0
        headers = self._hub.headers(self._token) | ({"range": f"bytes={have}-"} if have else {})
        try:
            with self._client.stream("GET", url, headers=headers) as response:
                start = self._start(response, remote, have)
                with part.open("r+b" if part.exists() else "wb") as file:
                    if start < have:  # the hub gives the whole file or nothing
                        self._arrived(start - have)
                    file.truncate(start)
                    file.seek(start)
                    self._write(response, file, remote.size - start)
                    file.flush()
                    os.fsync(file.fileno())
        except httpx.InvalidURL as error:
            raise unreachable(self._hub, error) from error
        except (httpx.TooManyRedirects, httpx.DecodingError) as error:
            raise unreachable(self._hub, error) from error

    def _write(self, response: httpx.Response, file: object, missing: int) -> None:
        for piece in response.iter_raw():
            if self._stop():
                raise Interrupted
            missing -= len(piece)
            if missing < 0:
                raise HubError("hub_changed", id=self._id)
            file.write(piece)
            self._arrived(len(piece))

    def _start(self, response: httpx.Response, remote: RemoteFile, have: int) -> int:
        """The place in the file where an answer begins. Raises what `_append` does."""
        if response.status_code in PASSING:
            failure = refusal(response, self._hub, self._id, self._token)
            raise _PassingError(failure, _retry_after(response.headers.get("retry-after", "")))
        if response.status_code == 206:
            found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("content-range", "").strip())
            if found is None or int(found[1]) != have or found[2] not in ("*", str(remote.size)):
                raise HubError("hub_changed", id=self._id)
            return have
        if response.status_code == 200:
            length = response.headers.get("content-length", "")
            if length.isdigit() and int(length) != remote.size and "content-encoding" not in response.headers:
                raise HubError("hub_changed", id=self._id)
            return 0
        if response.status_code in (404, 410, 416):
            raise HubError("hub_changed", id=self._id)
        raise refusal(response, self._hub, self._id, self._token)

    def _discard(self, part: Path) -> None:
        self._arrived(-_size(part))
        part.unlink(missing_ok=True)

    def _stop(self) -> bool:
        return self._wait(0)


class _PassingError(Exception):
    def __init__(self, failure: HubError, delay: float | None) -> None:
        super().__init__(str(failure))
        self.failure = failure
        self.delay = delay


def matches(path: Path, remote: RemoteFile, stop: Callable[[], bool] = lambda: False) -> bool:
    """Whether a file has the length and the checksum that its hub told; raises Interrupted when told to stop."""
    if not path.is_file() or path.stat().st_size != remote.size:
        return False
    if remote.sha256 is None and remote.blob is None:
        return True
    digest = hashlib.sha256() if remote.sha256 else hashlib.sha1(b"blob %d\0" % remote.size, usedforsecurity=False)
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            if stop():
                raise Interrupted
            digest.update(piece)
    return digest.hexdigest() == (remote.sha256 or remote.blob)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _retry_after(text: str) -> float | None:
    """Seconds that a hub asks for; dates are left to our own patience."""
    return min(float(text), LONGEST_WAIT) if text.isdigit() and int(text) else None
