"""A GGUF file's header, and its tensors mapped one by one.

The gguf package's reader makes objects of each of a vocabulary's pieces: for a model of 100 MB it takes 200 MB more,
and seconds. Source: the GGUF specification (docs/gguf.md in ggml's repository).
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32  #: bytes, unless general.alignment says otherwise
DIMENSIONS = 4  #: at most

#: The types of metadata values by number; strings and lists are not of one size.
NUMBERS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
STRING, LIST = 8, 9

FLOATS = {GGMLQuantizationType.F32: "<f4", GGMLQuantizationType.F16: "<f2"}


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies; `shape` is in torch's order of dimensions."""

    path: Path
    name: str
    shape: tuple[int, ...]
    tensor_type: GGMLQuantizationType
    start: int

    @property
    def n_bytes(self) -> int:
        size, nbytes = GGML_QUANT_SIZES[self.tensor_type]
        return math.prod(self.shape) // size * nbytes

    @property
    def data(self) -> np.ndarray:
        """Numbers in the tensor's shape, or bytes, a row for each of its rows: mapped while the array is there."""
        mapped = np.memmap(self.path, np.uint8, "r", self.start, (self.n_bytes,))
        if self.tensor_type in FLOATS:
            return mapped.view(FLOATS[self.tensor_type]).reshape(self.shape)
        return mapped.reshape(*self.shape[:-1], -1)


@dataclass(frozen=True)
class Texts:
    """Where a list of texts lies. A vocabulary is needed once, for the tokenizer, and takes megabytes."""

    path: Path
    start: int
    count: int

    def __len__(self) -> int:
        return self.count

    def read(self) -> list[str]:
        with _mapped(self.path) as mapped:
            cursor = _Cursor(mapped, self.start)
            return [cursor.text() for _ in range(self.count)]


class GGUFFile:
    """Raises ValueError for a file that is none, ends early, or makes no sense.

    `values` are the metadata: numbers, texts, lists of numbers, and Texts.
    """

    def __init__(self, path: Path) -> None:
        with _mapped(path) as mapped:
            cursor = _Cursor(mapped)
            tensors, values = cursor.start()
            self.values: dict[str, Any] = dict(cursor.pair(path) for _ in range(values))
            found = [cursor.tensor() for _ in range(tensors)]
            base, size = cursor.aligned(self.values.get("general.alignment", ALIGNMENT)), len(mapped)
        self.tensors = {name: Tensor(path, name, shape, kind, base + start) for name, shape, kind, start in found}
        for tensor in self.tensors.values():
            if tensor.start + tensor.n_bytes > size:
                raise ValueError(f"{tensor.name} lies behind its end")


@contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap]:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        yield mapped


class _Cursor:
    """Reads a mapped file from a place on, at most to its end."""

    def __init__(self, mapped: mmap.mmap, at: int = 0) -> None:
        self.mapped = mapped
        self.at = at

    def start(self) -> tuple[int, int]:
        """The number of tensors, and of metadata values."""
        magic, version, tensors, values = self.unpack("<4sIQQ")
        if magic != MAGIC or version not in VERSIONS:
            raise ValueError(f"version {version} of the form is not {' or '.join(map(str, VERSIONS))}")
        return tensors, values

    def pair(self, path: Path) -> tuple[str, Any]:
        key, (kind,) = self.text(), self.unpack("<I")
        if kind != LIST:
            return key, self.text() if kind == STRING else self.numbers(kind, 1)[0]
        kind, count = self.unpack("<IQ")
        return key, self.texts(path, count) if kind == STRING else self.numbers(kind, count)

    def texts(self, path: Path, count: int) -> Texts:
        start = self.at
        for _ in range(count):
            self.text()  # a file that is damaged says so at once
        return Texts(path, start, count)

    def tensor(self) -> tuple[str, tuple[int, ...], GGMLQuantizationType, int]:
        name, (dimensions,) = self.text(), self.unpack("<I")
        if dimensions > DIMENSIONS:
            raise ValueError(f"{name} has {dimensions} dimensions")
        shape = self.unpack(f"<{dimensions}Q")
        number, start = self.unpack("<IQ")
        kind = GGMLQuantizationType(number)
        if dimensions == 0 or 0 in shape or shape[0] % GGML_QUANT_SIZES[kind][0]:
            raise ValueError(f"{name} has the shape {shape}")
        return name, shape[::-1], kind, start

    def aligned(self, alignment: Any) -> int:
        """The next place that is a multiple."""
        if type(alignment) is not int or alignment < 1:
            raise ValueError(f"{alignment!r} is no alignment")
        return self.at + -self.at % alignment

    def text(self) -> str:
        (length,) = self.unpack("<Q")
        return self.take(length).decode("utf-8")

    def numbers(self, kind: int, count: int) -> list[Any]:
        if kind not in NUMBERS:
            raise ValueError(f"{kind} is no type of a value")
        dtype = np.dtype(NUMBERS[kind])
        return np.frombuffer(self.take(count * dtype.itemsize), dtype).tolist()

    def unpack(self, form: str) -> tuple[Any, ...]:
        return struct.unpack(form, self.take(struct.calcsize(form)))

    def take(self, length: int) -> bytes:
        if length > len(self.mapped) - self.at:
            raise ValueError("it ends in its header")
        self.at += length
        return self.mapped[self.at - length : self.at]
