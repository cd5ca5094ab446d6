"""Safetensors files read a tensor at a time: every type, files larger than memory, and what is damaged."""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import save_file

from models import CheckpointError
from models.formats.shards import TYPES, read_shard


def write(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(**changes: object) -> dict:
    return {"weight": {"dtype": "F16", "shape": [2, 3], "data_offsets": [0, 12]} | changes}


@pytest.mark.parametrize("name", TYPES)
def test_every_type(name: str, tmp_path: Path) -> None:
    saved = {"a": (torch.arange(15) % 2).to(TYPES[name]).view(3, 5), "b": torch.ones(4, dtype=TYPES[name])}
    save_file(saved, tmp_path / "one.safetensors", metadata={"format": "pt"})
    read = dict(read_shard(tmp_path / "one.safetensors"))
    assert read.keys() == saved.keys()
    for key, tensor in saved.items():
        assert read[key].dtype == tensor.dtype and torch.equal(read[key], tensor)


def test_no_dimensions_no_numbers_and_a_header_of_odd_length(tmp_path: Path) -> None:
    header = {
        "one": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]},
        "none": {"dtype": "F32", "shape": [0, 8], "data_offsets": [4, 4]},
    }
    for blanks in range(4):
        path = write(tmp_path / "odd.safetensors", json.dumps(header).encode() + b" " * blanks, struct.pack("<f", 2.5))
        read = dict(read_shard(path))
        assert read["one"].item() == 2.5 and read["none"].shape == (0, 8)


def test_a_tensor_outlives_its_file(tmp_path: Path) -> None:
    """The FP16 tier keeps what was mapped; another download may replace the file meanwhile."""
    path = tmp_path / "one.safetensors"
    save_file({"a": torch.arange(100.0)}, path)
    (_, kept), *_ = read_shard(path)
    if sys.platform != "win32":  # where a mapped file can't be deleted
        path.unlink()
    assert torch.equal(kept, torch.arange(100.0))


@pytest.mark.skipif(sys.platform != "linux", reason="makes a file with holes")
def test_a_file_larger_than_memory(tmp_path: Path) -> None:
    most = 2 * psutil.virtual_memory().total // 2 * 2
    header = {
        "huge": {"dtype": "F16", "shape": [most // 2], "data_offsets": [0, most]},
        "small": {"dtype": "F16", "shape": [4], "data_offsets": [most, most + 8]},
    }
    path = write(tmp_path / "huge.safetensors", dict(reversed(header.items())))
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + most + 8)
    name, tensor = next(read_shard(path))
    assert name == "small" and tensor.tolist() == [0, 0, 0, 0]


DAMAGED = {
    "not JSON": b"{",
    "not text": b"\xff\xfe",
    "a list": [1],
    "nested without end": b"[" * 100_000,
    "no type": {"weight": {"shape": [2, 3], "data_offsets": [0, 12]}},
    "no numbers": entry(shape=["2", 3]),
    "less than nothing": entry(shape=[-2, -3]),
    "half a row": entry(shape=[1.5, 4]),
    "too few bytes": entry(data_offsets=[0, 10]),
    "before its start": entry(data_offsets=[-12, 0]),
    "one offset": entry(data_offsets=[0]),
}


@pytest.mark.parametrize("header", DAMAGED.values(), ids=DAMAGED)
def test_headers_that_make_no_sense(header: object, tmp_path: Path) -> None:
    path = write(tmp_path / "bad.safetensors", header, bytes(12))
    with pytest.raises(CheckpointError, match="bad.safetensors is damaged or incomplete"):
        list(read_shard(path))


@pytest.mark.parametrize("length", [10**6, 2**63, 2**64 - 1])
def test_a_header_longer_than_its_file(length: int, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="header is cut off"):
        list(read_shard(write(tmp_path / "bad.safetensors", entry(), bytes(12), length)))


def test_truncated(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.safetensors", entry(), bytes(12)).read_bytes()
    for size in range(len(whole)):
        path = tmp_path / "cut.safetensors"
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match="cut.safetensors is damaged or incomplete"):
            list(read_shard(path))


def test_a_type_that_can_not_be_read(tmp_path: Path) -> None:
    path = write(tmp_path / "new.safetensors", entry(dtype="F8_E4M3", data_offsets=[0, 6]), bytes(6))
    with pytest.raises(CheckpointError, match="weight as F8_E4M3"):
        list(read_shard(path))
