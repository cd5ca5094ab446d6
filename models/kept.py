"""Tiers made from larger checkpoints, kept on disk as the kernels read them: the next start only copies them.

A kept tier is a folder with model.safetensors and config.json, which says what it was made from. It is written under
another name and renamed when it is whole, so that an interrupted load leaves nothing that looks finished.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch

from .base import CheckpointError
from .formats import Checkpoint
from .formats.shards import open_shard
from .quantize import GROUP, PackedMatrix

#: Raised when the meaning of the bytes changes: older files are made anew.
LAYOUT = 1
TYPES = {torch.uint8: "U8", torch.float16: "F16", torch.float32: "F32"}
PARTS = ("blocks", "scales", "minimums")
UNFINISHED = ".making-"
HEADER = 2**20 - 8  #: bytes; with its length before it the weights begin at the start of a page
EDGE = 65_536  #: bytes at both ends of a file that its fingerprint reads

Stored = torch.Tensor | PackedMatrix


class DamagedError(ValueError):
    """A kept tier is incomplete or was changed; it must be made anew."""


def place(store: Path, checkpoint: Checkpoint, bits: int) -> Path:
    """Where the tier of this checkpoint belongs: another version of the same files goes elsewhere."""
    name = checkpoint.path.resolve().name
    return store / f"{name}-int{bits}-{fingerprint(checkpoint.files())[:12]}"


def fingerprint(files: Iterable[Path]) -> str:
    """A hash of the files' names, sizes, times and both ends; reading all of them would take minutes."""
    digest = hashlib.sha256(str(LAYOUT).encode())
    for path in sorted(files):
        status = path.stat()
        digest.update(f"{path.name} {status.st_size} {status.st_mtime_ns} ".encode())
        with path.open("rb") as file:
            digest.update(file.read(EDGE))
            file.seek(max(0, status.st_size - EDGE))
            digest.update(file.read(EDGE))
    return digest.hexdigest()


def read(folder: Path) -> Iterator[tuple[str, Stored]]:
    """Names and weights, mapped one by one and not copied. Raises DamagedError."""
    described = _described(folder)
    try:
        shard = open_shard(folder / "model.safetensors")
        for name, about in described["tensors"].items():
            yield name, _stored(about, [shard[part]() for part in about["parts"]])
    except (CheckpointError, OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise DamagedError(f"{folder} can't be read ({error})") from error


def _stored(about: dict[str, Any], parts: list[torch.Tensor]) -> Stored:
    if [_checksum(part) for part in parts] != about["checksums"]:
        raise DamagedError(f"{about['parts'][0]} was changed")
    return parts[0] if about["bits"] is None else PackedMatrix(about["bits"], *about["shape"], *parts)


def _described(folder: Path) -> dict[str, Any]:
    try:
        described = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DamagedError(f"{folder} can't be read ({error})") from error
    if not isinstance(described, dict) or described.get("layout") != LAYOUT:
        raise DamagedError(f"{folder} was written by another version")
    return described


def write(folder: Path, weights: Iterable[tuple[str, Stored]], bits: int, source: str) -> None:
    """Keeps a tier, a weight at a time, and never more than one of them in memory. Raises OSError.

    What was made from an earlier version of the same source goes: nothing would ever read it again.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in folder.parent.glob(f"{UNFINISHED}*"):  # by a load that was killed
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=folder.parent, ignore_cleanup_errors=True) as scratch:
        made = Path(scratch) / "made"
        made.mkdir()
        with (made / "model.safetensors").open("wb") as file:
            tensors = _write_tensors(file, weights)
        quantization = {"bits": bits, "group_size": GROUP}
        about = {"layout": LAYOUT, "quantization": quantization, "source": source, "tensors": tensors}
        (made / "config.json").write_text(json.dumps(about), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)
    for other in _earlier(folder, about):
        shutil.rmtree(other, ignore_errors=True)


def _earlier(folder: Path, about: dict[str, Any]) -> Iterator[Path]:
    """The other folders that were made at the same bits from the same source."""
    for other in folder.parent.iterdir():
        try:
            described = _described(other)
        except DamagedError:
            continue  # not ours, or not to be judged
        if other != folder and all(described.get(key) == about[key] for key in ("source", "quantization")):
            yield other


def _write_tensors(file: BinaryIO, weights: Iterable[tuple[str, Stored]]) -> dict[str, Any]:
    """Writes a safetensors file whose header comes last, into room that was left for it; returns what is in it."""
    header: dict[str, Any] = {}
    tensors: dict[str, Any] = {}
    at = 0
    file.seek(8 + HEADER)
    for name, weight in weights:
        named = _parts(name, weight)
        for part, tensor in named.items():
            data = tensor.contiguous().flatten().view(torch.uint8).numpy()
            file.write(data)
            shape = list(tensor.shape)
            header[part] = {"dtype": TYPES[tensor.dtype], "shape": shape, "data_offsets": [at, at + data.nbytes]}
            at += data.nbytes
        tensors[name] = {
            "parts": list(named),
            "checksums": [_checksum(tensor) for tensor in named.values()],
            "bits": weight.bits if isinstance(weight, PackedMatrix) else None,
            "shape": list(weight.shape),
        }
    text = json.dumps(header).encode()
    if len(text) > HEADER:
        raise OSError(f"the names of {len(tensors)} tensors need more than {HEADER} bytes")
    file.seek(0)
    file.write(struct.pack("<Q", HEADER) + text.ljust(HEADER))
    return tensors


def _parts(name: str, weight: Stored) -> dict[str, torch.Tensor]:
    if isinstance(weight, torch.Tensor):
        return {name: weight}
    parts = {part: getattr(weight, part) for part in PARTS}
    return {f"{name}.{part}": tensor for part, tensor in parts.items() if tensor is not None}


def _checksum(tensor: torch.Tensor) -> int:
    return zlib.crc32(tensor.contiguous().flatten().view(torch.uint8).numpy())
