"""What a repository is to this machine before anything large is fetched: family, tier, licence, room on the disk."""

from __future__ import annotations

import dataclasses
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

import models
from models import CheckpointError, Footprint
from models.files import read_object
from models.footprint import TIERS
from models.formats import glance
from models.formats.gguf import WORTH_FP16, WORTH_INT8
from models.formats.gguf_parts import SUFFIX
from models.registry import resolve

from ..hardware import Machine
from ..planner import Plan, footprint_of, plan_footprint
from .hubs import Asking, Hub, HubError, RemoteFile, Repository, describe
from .recommend import bearable
from .selection import TERMS, Variant, variants

#: Bytes of a GGUF file's start that are asked for first, and at most: its header holds the vocabulary.
HEADER, LONGEST_HEADER = 2**20, 2**26
#: Bytes of a licence that are shown, and of a README or a config that are read.
LONGEST_TERMS, LONGEST_CONFIG = 200_000, 4 * 2**20
#: Encodings of GGUF that are taken over as they are, by the model's name, and their tiers.
TAKEN_OVER = ((re.compile(r"q8_0", re.IGNORECASE), "int8"), (re.compile(r"q4_[01]", re.IGNORECASE), "int4"))


@dataclass(frozen=True)
class Choice:
    """A variant as it would run here: its plan, and the bytes of the tier that is kept beside it after the first load.

    What is no checkpoint by itself has no plan.
    """

    variant: Variant
    plan: Plan | None = None
    copy: int = 0
    tier: str = "auto"  #: that is asked for when it is loaded

    @property
    def disk(self) -> int:
        """Bytes that it will take on the disk."""
        return self.variant.size + self.copy


@dataclass(frozen=True)
class Offer:
    """A repository with what can be had of it; `best` is the choice that suits this machine.

    `family` is one of models', `parameters` their number; None where nothing tells. `base` names the model that an
    adapter is for. `terms` is the text of the licence, or empty.
    """

    repository: Repository
    choices: tuple[Choice, ...]
    best: int
    family: str | None = None
    parameters: int | None = None
    base: str | None = None
    terms: str = ""


def look_up(
    client: httpx.Client,
    hub: Hub,
    id: str,
    machine: Machine,
    folder: Path,
    revision: str | None = None,
    token: str | None = None,
) -> Offer:
    """Asks a hub for a repository. Small files are put into a temporary folder below `folder` meanwhile.

    Raises HubError: also for what can't be run here, so that nobody fetches gigabytes of it.
    """
    repository = describe(client, hub, id, revision, token)
    found = variants(id, repository.files)
    reader = _Reader(client, repository, token)
    terms = reader.terms()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".looking-", dir=folder) as scratch:
        # The folder's name is the repository's: deltas are known by it.
        place = Path(scratch) / found[0].name
        place.mkdir()
        try:
            return _OFFERS[found[0].form](reader, found, place, machine, terms)
        except CheckpointError as error:
            reason = str(error).replace(str(place.resolve()), id).replace(str(place), id)
            raise HubError("hub_unusable", id=id, reason=reason) from error


class _Reader:
    """Small files of a repository, and the starts of large ones."""

    def __init__(self, client: httpx.Client, repository: Repository, token: str | None) -> None:
        self.client = client
        self.repository = repository
        self.token = token

    def fetch(self, file: RemoteFile, folder: Path) -> Path:
        if file.size > LONGEST_CONFIG:
            raise HubError("hub_odd", host=self.repository.hub.host)
        path = folder / file.name
        path.write_bytes(self._read(file, file.size))
        return path

    def terms(self) -> str:
        """The licence's text where the repository has it as one."""
        named = [file for file in self.repository.files if "/" not in file.path and TERMS.fullmatch(file.path)]
        texts = [
            file for file in named if re.fullmatch(r"(?i)(?!readme).*?(\.txt|\.md)?", file.path) and _is_text(file)
        ]
        if not texts:
            return ""
        return self._read(min(texts, key=_licence_first), LONGEST_TERMS).decode("utf-8", "replace")

    def sparse(self, files: Sequence[RemoteFile], folder: Path) -> Footprint:
        """The footprint of a GGUF model: only its files' headers are fetched, the rest of them here is a hole."""
        length = HEADER
        while True:
            for file in files:
                with (folder / file.name).open("wb") as here:
                    here.write(self._read(file, min(length, file.size)))
                    here.truncate(file.size)
            try:
                return _footprint(folder / files[0].name, self.repository.id)
            except CheckpointError:
                if length >= min(LONGEST_HEADER, max(file.size for file in files)):
                    raise
                length *= 8

    def _read(self, file: RemoteFile, length: int) -> bytes:
        """The first bytes of a file; all of it where the hub gives no part."""
        repository = self.repository
        headers = repository.hub.headers(self.token)
        if length < file.size:
            headers["range"] = f"bytes=0-{length - 1}"
        asking = Asking(self.client, repository.hub, self.token)
        return asking.start(repository.url(file.path), repository.id, headers, length)


def _folder(reader: _Reader, found: Sequence[Variant], place: Path, machine: Machine, terms: str) -> Offer:
    variant = found[0]
    config = next(file for file in variant.files if file.path == "config.json")
    path = reader.fetch(config, place)
    needs = _footprint(path.parent, reader.repository.id)
    choices = [_choice(variant, needs, machine, keeps=needs.kept is None)]
    choices += [_gguf_choice(other, needs, machine) for other in found[1:]]
    return Offer(reader.repository, tuple(choices), 0, models.family_of(path.parent), needs.parameters, terms=terms)


def _footprint(path: Path, id: str) -> Footprint:
    """Raises HubError for an architecture that nothing here can run, CheckpointError for another reason."""
    config = glance(path)
    try:
        resolve(config)
    except CheckpointError as error:
        named = config.get("architectures")
        seen = config.get("model_type") or (named[0] if isinstance(named, list) and named else "?")
        raise HubError("hub_architecture", id=id, name=str(seen)[:100]) from error
    return footprint_of(path)


def _gguf(reader: _Reader, found: Sequence[Variant], place: Path, machine: Machine, terms: str) -> Offer:
    smallest = found[0]
    files = [file for file in smallest.files if file.path.endswith(SUFFIX)]
    needs = reader.sparse(files, place)
    choices = [_gguf_choice(variant, needs, machine) for variant in found]
    family = models.family_of(place / files[0].name)
    return Offer(reader.repository, tuple(choices), _best(choices), family, needs.parameters, terms=terms)


def _gguf_choice(variant: Variant, needs: Footprint, machine: Machine) -> Choice:
    """What a file holds is told from its size: the headers of all would be tens of megabytes."""
    taken = next((tier for pattern, tier in TAKEN_OVER if pattern.search(variant.name)), None)
    finest = taken or _finest(8 * variant.weights / needs.parameters)
    return _choice(variant, dataclasses.replace(needs, finest=finest), machine, keeps=taken is None)


def _adapter(reader: _Reader, found: Sequence[Variant], place: Path, machine: Machine, terms: str) -> Offer:
    config = next(file for file in found[0].files if file.path == "adapter_config.json")
    base = read_object(reader.fetch(config, place)).get("base_model_name_or_path")
    return Offer(reader.repository, (Choice(found[0]),), 0, base=str(base or ""), terms=terms)


def _meta(reader: _Reader, found: Sequence[Variant], place: Path, machine: Machine, terms: str) -> Offer:
    return Offer(reader.repository, (Choice(found[0]),), 0, "llama", terms=terms)


_OFFERS = {"folder": _folder, "gguf": _gguf, "adapter": _adapter, "meta": _meta}


def _choice(variant: Variant, needs: Footprint, machine: Machine, keeps: bool = True) -> Choice:
    plan, usual = bearable(needs, machine), plan_footprint(needs, machine)
    made = keeps and plan.tier in ("int8", "int4")
    return Choice(variant, plan, plan.memory.weights if made else 0, plan.tier if plan.tier != usual.tier else "auto")


def _finest(bits: float) -> str:
    """The best tier that is worth its memory for a file of so many bits a weight."""
    return "int4" if bits < WORTH_INT8 else "int8" if bits < WORTH_FP16 else "fp16"


def _best(choices: Sequence[Choice]) -> int:
    """Of those that fit, one that runs at the best tier and brings no more than that; the smallest if none fits."""

    def rank(index: int) -> tuple[int, int, int]:
        choice = choices[index]
        if choice.plan is None or choice.plan.tier is None:
            return (-1, 0, 0)
        tier = len(TIERS) - TIERS.index(choice.plan.tier) if choice.plan.tier in TIERS else len(TIERS) + 1
        return (tier, -choice.copy, choice.variant.size)

    return max(range(len(choices)), key=rank)


def _is_text(file: RemoteFile) -> bool:
    return Path(file.path).suffix.lower() in ("", ".txt", ".md") and file.size <= LONGEST_TERMS


def _licence_first(file: RemoteFile) -> tuple[int, str]:
    order = ("model_license", "license", "licence")
    return next((at for at, name in enumerate(order) if file.path.lower().startswith(name)), len(order)), file.path
