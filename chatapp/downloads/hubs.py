"""What a model hub says of a repository: its files with sizes and checksums, its licence, who may have it.

Two interfaces are spoken: Hugging Face's, which its mirrors speak as well, and ModelScope's. No hub's address is
written here: Hugging Face's is what its own client was set to (HF_ENDPOINT), ModelScope's is in the variable that its
client reads (MODELSCOPE_DOMAIN), and a mirror's is given by the user.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any, Protocol
from urllib.parse import quote, unquote, urlsplit

import httpx
from huggingface_hub import constants

from ..sentences import said
from ..settings import is_loopback

#: Seconds to connect, and between two pieces of an answer.
CONNECT, SILENCE = 15.0, 30.0
#: What an answer that is not a file to be kept may hold, in bytes, and how many pages a list of files may have.
LONGEST_ANSWER, MOST_PAGES = 32 * 2**20, 100

PART = re.compile(r"\w[\w.-]{0,95}", re.ASCII)  #: of a repository's id
#: Where a link to a repository goes on after the id.
INSIDE = ("tree", "blob", "resolve", "raw", "files", "file", "summary")


class HubError(RuntimeError):
    """What went wrong, as a text of the catalogue with its values, so that either language can say it."""

    def __init__(self, key: str, **values: object) -> None:
        super().__init__(key)
        self.key = key
        self.values = values

    def said(self, language: str) -> str:
        return said(language, self.key, self.values)

    def __str__(self) -> str:
        return self.said("en")


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository. `blob` is the SHA-1 that git knows it by, where there is no SHA-256."""

    path: str
    size: int
    sha256: str | None = None
    blob: str | None = None

    @property
    def name(self) -> str:
        """What it is called here, where it is in no folder of its repository."""
        return PurePosixPath(self.path).name


@dataclass(frozen=True)
class Hub:
    """A hub by the interface that it speaks, a key of INTERFACES, and its address, such as "http://127.0.0.1:8000"."""

    kind: str
    address: str

    @property
    def host(self) -> str:
        return urlsplit(self.address).netloc

    @property
    def interface(self) -> Interface:
        return INTERFACES[self.kind]

    def headers(self, token: str | None) -> dict[str, str]:
        """What shows the hub who asks. Raises HubError where anybody on the way could read the token."""
        if not token:
            return {}
        parts = urlsplit(self.address)
        if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
            raise HubError("hub_token_plain", host=self.host)
        if not token.isascii() or not token.isprintable() or " " in token:
            raise HubError("hub_token_odd")
        return self.interface.headers(token)


@dataclass(frozen=True)
class Repository:
    """A repository at one revision: a commit where the hub names it. `licence` is its short name, or empty."""

    hub: Hub
    id: str
    revision: str
    files: tuple[RemoteFile, ...]
    licence: str = ""
    licence_link: str = ""
    gated: bool = False

    def only(self, files: tuple[RemoteFile, ...]) -> Repository:
        """With these files and no others."""
        return replace(self, files=files)

    def url(self, path: str) -> str:
        return self.hub.address + self.hub.interface.file(self.id, self.revision, path)


class Interface(Protocol):
    revision: str  #: what is taken unless another one is asked for

    def headers(self, token: str) -> dict[str, str]: ...

    def file(self, id: str, revision: str, path: str) -> str:
        """Where a file is, from the hub's address on."""

    def describe(self, asking: Asking, id: str, revision: str) -> Repository:
        """Raises HubError."""


@dataclass(frozen=True)
class Asking:
    """Questions to one hub, with a token or without."""

    client: httpx.Client
    hub: Hub
    token: str | None = None

    def object(self, path: str, id: str, **parameters: str) -> dict[str, Any]:
        return self._kind(dict, self._ask(path, id, parameters)[0])

    def pages(self, path: str, id: str, **parameters: str) -> Iterator[list[Any]]:
        """A list with all the pages that its Link headers lead to; only their questions are followed, never their
        hosts: a mirror may pass on the addresses of the hub behind it."""
        for _ in range(MOST_PAGES):
            answer, link = self._ask(path, id, parameters)
            yield self._kind(list, answer)
            if link is None:
                return
            parameters = dict(httpx.URL(link).params)
        raise HubError("hub_odd", host=self.hub.host)

    def start(self, address: str, id: str, headers: Mapping[str, str], length: int) -> bytes:
        """The first bytes of an answer, which may be the whole file or a part of it."""
        return self._read(address, id, headers, {}, length)[0]

    def _ask(self, path: str, id: str, parameters: Mapping[str, str]) -> tuple[bytes, str | None]:
        headers = self.hub.headers(self.token)
        answer, link = self._read(self.hub.address + path, id, headers, parameters, LONGEST_ANSWER)
        if len(answer) == LONGEST_ANSWER:
            raise HubError("hub_odd", host=self.hub.host)
        return answer, link

    def _read(
        self, address: str, id: str, headers: Mapping[str, str], parameters: Mapping[str, str], length: int
    ) -> tuple[bytes, str | None]:
        """At most so many bytes of an answer, and what its Link header calls the next one."""
        try:
            with self.client.stream("GET", address, params=parameters or None, headers=headers) as response:
                if response.status_code not in (200, 206):
                    raise refusal(response, self.hub, id, self.token)
                answer = bytearray()
                for piece in response.iter_bytes():
                    answer += piece
                    if len(answer) >= length:
                        break
                return bytes(answer[:length]), response.links.get("next", {}).get("url")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise unreachable(self.hub, error) from error

    def _kind(self, kind: type, answer: bytes) -> Any:
        try:
            found = json.loads(answer)
        except (ValueError, RecursionError) as error:
            raise HubError("hub_odd", host=self.hub.host) from error
        if not isinstance(found, kind):
            raise HubError("hub_odd", host=self.hub.host)
        return found


class HuggingFace:
    revision = "main"

    def headers(self, token: str) -> dict[str, str]:
        return {"authorization": f"Bearer {token}"}

    def file(self, id: str, revision: str, path: str) -> str:
        return f"/{id}/resolve/{quote(revision, safe='')}/{quote(path)}"

    def describe(self, asking: Asking, id: str, revision: str) -> Repository:
        about = asking.object(f"/api/models/{id}/revision/{quote(revision, safe='')}", id)
        commit = _text(about, "sha") or revision
        pages = asking.pages(f"/api/models/{id}/tree/{quote(commit, safe='')}", id, recursive="true")
        entries = (entry for page in pages for entry in page)
        files = tuple(self._file(entry, asking.hub) for entry in entries if _text(entry, "type") == "file")
        card = about.get("cardData") if isinstance(about.get("cardData"), dict) else {}
        licence = _text(card, "license") or self._tagged(about)
        named = _text(card, "license_name") if licence in ("", "other") else licence
        return Repository(
            asking.hub, id, commit, files, named or licence, _text(card, "license_link"), bool(about.get("gated"))
        )

    def _tagged(self, about: Mapping[str, Any]) -> str:
        tags = about.get("tags") if isinstance(about.get("tags"), list) else []
        found = (str(tag).partition(":") for tag in tags)
        return next((name for kind, _, name in found if kind == "license"), "")

    def _file(self, entry: Mapping[str, Any], hub: Hub) -> RemoteFile:
        stored = entry.get("lfs") if isinstance(entry.get("lfs"), dict) else {}
        sha256 = _hex(stored, "oid", 64) or _hex(stored, "sha256", 64)
        return _remote(hub, entry.get("path"), stored.get("size", entry.get("size")), sha256, _hex(entry, "oid", 40))


class ModelScope:
    revision = "master"

    def headers(self, token: str) -> dict[str, str]:
        return {"authorization": f"Bearer {token}", "cookie": f"m_session_id={token}"}

    def file(self, id: str, revision: str, path: str) -> str:
        return f"/api/v1/models/{id}/repo?Revision={quote(revision, safe='')}&FilePath={quote(path)}"

    def describe(self, asking: Asking, id: str, revision: str) -> Repository:
        about = self._data(asking, f"/api/v1/models/{id}", id, Revision=revision)
        listed = self._data(asking, f"/api/v1/models/{id}/repo/files", id, Revision=revision, Recursive="true")
        entries = listed.get("Files") if isinstance(listed.get("Files"), list) else []
        files = tuple(self._file(entry, asking.hub) for entry in entries if _text(entry, "Type") != "tree")
        return Repository(asking.hub, id, revision, files, _text(about, "License"))

    def _data(self, asking: Asking, path: str, id: str, **parameters: str) -> dict[str, Any]:
        answer = asking.object(path, id, **parameters)
        if answer.get("Success") is False or answer.get("Code", 200) != 200:
            raise HubError("hub_refused", host=asking.hub.host, reason=_text(answer, "Message")[:200] or "?")
        if not isinstance(answer.get("Data"), dict):
            raise HubError("hub_odd", host=asking.hub.host)
        return answer["Data"]

    def _file(self, entry: Mapping[str, Any], hub: Hub) -> RemoteFile:
        return _remote(hub, entry.get("Path"), entry.get("Size"), _hex(entry, "Sha256", 64), None)


INTERFACES: Mapping[str, Interface] = {"huggingface": HuggingFace(), "modelscope": ModelScope()}


def client() -> httpx.Client:
    """For all hubs. Answers come as they are stored: parts of a file are asked for by their places in it.

    Raises HubError for a proxy that the environment names and that can't be used.
    """
    headers = {"user-agent": "quatrain", "accept-encoding": "identity"}
    timeout = httpx.Timeout(SILENCE, connect=CONNECT)
    try:
        return httpx.Client(headers=headers, timeout=timeout, follow_redirects=True)
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        raise HubError("hub_proxy", reason=str(error)[:200]) from error


def default_address(kind: str, environment: Mapping[str, str]) -> str:
    """Where a hub is unless the user says otherwise; empty where nothing says it."""
    if kind == "huggingface":
        return constants.ENDPOINT
    domain = environment.get("MODELSCOPE_DOMAIN", "").strip().rstrip("/")
    return domain if "://" in domain or not domain else f"https://{domain}"


def describe(client: httpx.Client, hub: Hub, id: str, revision: str | None, token: str | None = None) -> Repository:
    """What a repository holds, at its main branch unless another revision is given. Raises HubError."""
    return hub.interface.describe(Asking(client, hub, token), id, revision or hub.interface.revision)


def read_source(kind: str, address: str, text: str) -> tuple[Hub, str, str | None]:
    """The hub, the id and the revision (None: the main branch) that a user means by an id, "id@revision" or a link to a
    repository. Raises HubError."""
    text = text.strip()
    if "://" in text:
        return _read_link(kind, address, text)
    id, _, revision = text.partition("@")
    return Hub(kind, _address(kind, address)), _id(id), revision or None


def _read_link(kind: str, address: str, text: str) -> tuple[Hub, str, str | None]:
    base = address.strip().rstrip("/")
    if base and text.startswith(f"{base}/"):
        root, path = base, text[len(base) :]
    else:
        parts = _split(text)
        root, path = f"{parts.scheme}://{parts.netloc}", parts.path
    parts = [unquote(part) for part in re.split(r"[?#]", path)[0].split("/") if part]
    if parts[:1] == ["models"]:
        kind, parts = "modelscope", parts[1:]
    until = next((at for at, part in enumerate(parts) if at and part in INSIDE), len(parts))
    named = parts[until + 1 : until + 2] if parts[until : until + 1] in (["tree"], ["blob"], ["resolve"]) else []
    return Hub(kind, _address(kind, root)), _id("/".join(parts[:until])), named[0] if named else None


def _id(text: str) -> str:
    parts = text.strip().strip("/").split("/")
    if len(parts) > 2 or not all(PART.fullmatch(part) and is_plain(part) for part in parts):
        raise HubError("hub_id_bad", id=text[:100])
    return "/".join(parts)


def _address(kind: str, text: str) -> str:
    text = text.strip()
    if not text:
        raise HubError("hub_address_missing")
    parts = _split(text if "://" in text else f"https://{text}")
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"


def _split(text: str) -> Any:
    try:
        parts = urlsplit(text)
        fits = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and "@" not in parts.netloc
    except ValueError:
        fits = False
    if not fits or not text.isprintable() or " " in text:
        raise HubError("hub_address_bad", address=text[:100])
    return parts


#: Names that Windows keeps for devices, with any suffix.
DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(1, 10))}


def is_plain(name: str) -> bool:
    """Whether a name that a hub gives can be a file's here and on any system, in the folder that it is put in."""
    return (
        name.isprintable()
        and 0 < len(name.encode()) <= 200
        and name[0] not in ". "
        and name[-1] not in ". "
        and not set(name) & set('<>:"/\\|?*')
        and name.partition(".")[0].lower() not in DEVICES
    )


def refusal(response: httpx.Response, hub: Hub, id: str, token: str | None) -> HubError:
    """What an answer means that does not bring what was asked for."""
    code = response.headers.get("x-error-code", "")
    match response.status_code:
        case 401 if token and code != "RepoNotFound":
            return HubError("hub_token_wrong", host=hub.host)
        case 401 if code == "GatedRepo":
            return HubError("hub_gated", id=id)
        case 401 | 404:
            return HubError("hub_missing", id=id, host=hub.host)
        case 403:
            return HubError("hub_not_granted" if token else "hub_gated", id=id)
        case 429:
            return HubError("hub_busy", host=hub.host)
        case status:
            return HubError("hub_failing", host=hub.host, status=status)


def unreachable(hub: Hub, error: Exception) -> HubError:
    return HubError("hub_unreachable", host=hub.host, reason=str(error)[:200] or type(error).__name__)


def _remote(hub: Hub, path: Any, size: Any, sha256: str | None, blob: str | None) -> RemoteFile:
    if not isinstance(path, str) or not path or type(size) is not int or not 0 <= size < 2**50:
        raise HubError("hub_odd", host=hub.host)
    return RemoteFile(path, size, sha256, None if sha256 else blob)


def _text(about: Any, key: str) -> str:
    value = about.get(key) if isinstance(about, dict) else None
    if isinstance(value, list):  # a card may name several licences
        value = ", ".join(str(entry) for entry in value)
    return value if isinstance(value, str) else ""


def _hex(about: Mapping[str, Any], key: str, length: int) -> str | None:
    value = about.get(key)
    return value.lower() if isinstance(value, str) and re.fullmatch(rf"[0-9a-fA-F]{{{length}}}", value) else None
