"""A model hub on a loopback port that speaks Hugging Face's interface and ModelScope's, and misbehaves when told to."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

PAGE = 3  #: entries of a list of files that come at once
LARGE = 1000  #: bytes from which a file is in Git LFS, with a SHA-256
SHA = "c0ffee" + "0" * 34


@dataclass
class Mischief:
    """What is done to requests for one file."""

    statuses: list[int] = field(default_factory=list)  #: answered first, one a request
    cuts: list[int] = field(default_factory=list)  #: bytes after which a connection is broken, one a request
    whole: bool = False  #: parts are not given
    wrong: int = 0  #: so many answers have a byte changed
    replaced: bytes | None = None  #: another content than the list told of
    pause: float = 0.0  #: seconds before each piece of 64 KiB
    retry_after: str | None = None


@dataclass
class FakeRepository:
    files: dict[str, bytes]
    licence: str = "apache-2.0"
    token: str | None = None  #: without it, no file is given
    card: dict[str, Any] = field(default_factory=dict)
    mischief: dict[str, Mischief] = field(default_factory=dict)


class FakeHub:
    """`asked` counts requests for files by their path, `sent` the bytes of them; `ranges` are those asked for."""

    def __init__(self) -> None:
        self.repositories: dict[str, FakeRepository] = {}
        self.asked: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()
        self.ranges: list[tuple[str, str | None]] = []
        self.tokens: set[str] = set()  #: all that were shown
        self.address = ""
        self.failing = 0  #: the status that everything is answered with

    def add(self, id: str, files: Mapping[str, bytes], **about: Any) -> FakeRepository:
        self.repositories[id] = FakeRepository(dict(files), **about)
        return self.repositories[id]

    def add_folder(self, id: str, folder: Path, **about: Any) -> FakeRepository:
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        return self.add(id, files, **about)


@contextmanager
def serving_hub(port: int = 0) -> Iterator[FakeHub]:
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", port), type("Bound", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        self.questions = {name: values[0] for name, values in parse_qs(parts.query).items()}
        path = unquote(parts.path)
        if self.hub.failing:
            self._json({"error": "down"}, self.hub.failing)
            return
        for pattern, answer in ROUTES:
            if match := re.fullmatch(pattern, path):
                id, *more = match.groups()
                repository = self.hub.repositories.get(id)
                if repository is None:
                    self._missing(path)
                else:
                    answer(self, id, repository, *more)
                return
        self._json({"error": "no such page"}, 404)

    # Hugging Face

    def about(self, id: str, repository: FakeRepository, revision: str) -> None:
        gated = "manual" if repository.token else False
        card = {"license": repository.licence, **repository.card}
        self._json({"id": id, "sha": SHA, "gated": gated, "cardData": card, "tags": [f"license:{repository.licence}"]})

    def tree(self, id: str, repository: FakeRepository, revision: str) -> None:
        assert revision == SHA, "the list is asked for at the commit that was named"
        entries = [_entry(path, content) for path, content in repository.files.items()]
        entries += [{"type": "directory", "path": folder, "size": 0, "oid": "0" * 40} for folder in _folders(entries)]
        start = int(self.questions.get("cursor", 0))
        headers = {}
        if start + PAGE < len(entries):
            # A mirror passes on the address of the hub behind it.
            headers["link"] = f'<http://hub.invalid/api?recursive=true&cursor={start + PAGE}>; rel="next"'
        self._json(entries[start : start + PAGE], headers=headers)

    def resolve(self, id: str, repository: FakeRepository, revision: str, path: str) -> None:
        assert revision == SHA, "files are asked for at the commit that was named"
        self._file(repository, path)

    # ModelScope

    def scope_about(self, id: str, repository: FakeRepository) -> None:
        self._json({"Code": 200, "Success": True, "Data": {"Path": id, "License": repository.licence}})

    def scope_files(self, id: str, repository: FakeRepository) -> None:
        assert self.questions == {"Revision": "master", "Recursive": "true"}
        files = [
            {
                "Path": path,
                "Name": path.rpartition("/")[2],
                "Type": "blob",
                "Size": len(content),
                "Sha256": _sha(content),
            }
            for path, content in repository.files.items()
        ]
        files += [{"Path": folder, "Name": folder, "Type": "tree", "Size": 0} for folder in _folders(files, "Path")]
        self._json({"Code": 200, "Success": True, "Data": {"Files": files}})

    def scope_file(self, id: str, repository: FakeRepository) -> None:
        assert self.questions["Revision"] == "master"
        self._file(repository, self.questions["FilePath"])

    # Both

    def _file(self, repository: FakeRepository, path: str) -> None:
        self.hub.asked[path] += 1
        self.hub.ranges.append((path, self.headers.get("range")))
        shown = self.headers.get("authorization", "").removeprefix("Bearer ")
        self.hub.tokens.add(shown)
        if repository.token and shown != repository.token:
            status = 403 if shown and shown != "expired" else 401
            self._json({"error": "gated"}, status, {"x-error-code": "GatedRepo"})
            return
        if path not in repository.files:
            self._json({"error": "no such file"}, 404, {"x-error-code": "EntryNotFound"})
            return
        mischief = repository.mischief.get(path, Mischief())
        if mischief.statuses:
            headers = {} if mischief.retry_after is None else {"retry-after": mischief.retry_after}
            self._json({"error": "later"}, mischief.statuses.pop(0), headers)
            return
        content = repository.files[path] if mischief.replaced is None else mischief.replaced
        if mischief.wrong:
            mischief.wrong -= 1
            content = content[:-1] + bytes([content[-1] ^ 1])
        self._send(path, content, mischief)

    def _send(self, path: str, content: bytes, mischief: Mischief) -> None:
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range") or "")
        if found is None or mischief.whole:
            start, end = 0, len(content)
            self.send_response(200)
        else:
            start, end = int(found[1]), min(int(found[2] or len(content)) + 1, len(content))
            if start >= len(content):
                self._json({}, 416)
                return
            self.send_response(206)
            self.send_header("content-range", f"bytes {start}-{end - 1}/{len(content)}")
        self.send_header("content-length", str(end - start))
        self.end_headers()
        stop = start + mischief.cuts.pop(0) if mischief.cuts else end
        while start < min(stop, end):
            time.sleep(mischief.pause)
            piece = content[start : min(start + 65_536, stop, end)]
            try:
                self.wfile.write(piece)
            except OSError:  # whoever asked has gone
                self.close_connection = True
                return
            self.hub.sent[path] += len(piece)
            start += len(piece)
        self.close_connection = self.close_connection or stop < end

    def _missing(self, path: str) -> None:
        if path.startswith("/api/v1/"):
            self._json({"Code": 10010205001, "Success": False, "Message": "record not found"}, 404)
        else:  # Hugging Face does not tell strangers what is private and what does not exist
            self._json({"error": "Repository not found"}, 401, {"x-error-code": "RepoNotFound"})

    def _json(self, answer: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


ID = r"([\w.-]+/[\w.-]+)"
ROUTES = (
    (rf"/api/models/{ID}/revision/([\w.-]+)", Handler.about),
    (rf"/api/models/{ID}/tree/([\w.-]+)", Handler.tree),
    (rf"/api/v1/models/{ID}", Handler.scope_about),
    (rf"/api/v1/models/{ID}/repo/files", Handler.scope_files),
    (rf"/api/v1/models/{ID}/repo", Handler.scope_file),
    (rf"/{ID}/resolve/([\w.-]+)/(.+)", Handler.resolve),
)


def _entry(path: str, content: bytes) -> dict[str, Any]:
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": blob}
    if len(content) >= LARGE:
        entry |= {"oid": "f" * 40, "lfs": {"oid": _sha(content), "size": len(content), "pointerSize": 134}}
    return entry


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _folders(entries: list[dict[str, Any]], key: str = "path") -> set[str]:
    return {entry[key].rpartition("/")[0] for entry in entries} - {""}
