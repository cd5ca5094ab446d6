"""A GGUF file's header, and its tensors mapped one by one.

The gguf package's reader makes objects of each of a vocabulary's pieces: for a model of 100 MB it takes 200 MB more,
and seconds. Source: the GGUF specification (docs/gguf.md in ggml's repository).
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterable, Iterator
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
#: Beyond any real file: a damaged number must not make us read the weights as if they were the header.
MOST_TENSORS = MOST_VALUES = 2**16
MOST_IN_LIST = 2**24
LONGEST_TEXT = 2**24  #: bytes
LENGTH = struct.Struct("<Q")

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

KINDS = {kind.value: kind for kind in GGMLQuantizationType}

#: Tensors whose bytes are numbers one by one.
NUMBER_TYPES = {
    GGMLQuantizationType.F64: "<f8",
    GGMLQuantizationType.F32: "<f4",
    GGMLQuantizationType.F16: "<f2",
    GGMLQuantizationType.BF16: "<i2",  # numpy has no such type: the bits
}


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies; `shape` is in torch's order of dimensions."""

    path: Path
    name: str
    shape: tuple[int, ...]
    tensor_type: GGMLQuantizationType
    start: int

    @property
    def size(self) -> int:
        """How many weights it has."""
        return math.prod(self.shape)

    @property
    def n_bytes(self) -> int:
        size, nbytes = GGML_QUANT_SIZES[self.tensor_type]
        return self.size // size * nbytes

    @property
    def data(self) -> np.ndarray:
        """Numbers in the tensor's shape, or bytes, a row for each of its rows: mapped while the array is there.

        PyTorch warns of arrays that can't be written to; what is written to this one never reaches the file.
        """
        mapped = np.memmap(self.path, np.uint8, "c", self.start, (self.n_bytes,))
        if self.tensor_type in NUMBER_TYPES:
            return mapped.view(NUMBER_TYPES[self.tensor_type]).reshape(self.shape)
        return mapped.reshape(*self.shape[:-1], -1)


@dataclass(frozen=True)
class Texts:
    """Where a list of texts lies. A vocabulary is needed once, for the tokenizer, and takes megabytes."""

    path: Path
    start: int
    count: int

    def __len__(self) -> int:
        return self.count

    def read(self, first: int | None = None) -> list[str]:
        """All texts, or so many of the first."""
        with _mapped(self.path) as mapped:
            return _Cursor(mapped, self.start).texts("a piece", self.count if first is None else first)


class GGUFFile:
    """Raises ValueError for a file that is none, ends early, or makes no sense.

    `values` are the metadata: numbers, texts, arrays of numbers, and Texts.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with _mapped(path) as mapped:
            cursor = _Cursor(mapped)
            tensors, values = cursor.start()
            self.values: dict[str, Any] = dict(cursor.pair(path) for _ in range(values))
            found = [cursor.tensor() for _ in range(tensors)]
            alignment = self.values.get("general.alignment", ALIGNMENT)
            base, size = cursor.aligned(alignment), len(mapped)
        self.tensors = {name: Tensor(path, name, shape, kind, base + start) for name, shape, kind, start in found}
        if len(self.tensors) < tensors:
            raise ValueError("two of its tensors have the same name")
        _check_places(self.tensors.values(), alignment, base, size)


def _check_places(tensors: Iterable[Tensor], alignment: int, base: int, size: int) -> None:
    """Each tensor lies at an aligned place, behind the one before it, within the file."""
    end = base
    for tensor in sorted(tensors, key=lambda tensor: tensor.start):
        if tensor.start % alignment != base % alignment or tensor.start < end:
            raise ValueError(f"{tensor.name} lies at an impossible place")
        end = tensor.start + tensor.n_bytes
        if end > size:
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
        if magic != MAGIC:
            raise ValueError("it does not begin as GGUF does")
        if int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS:
            raise ValueError("its numbers are big-endian, which can't be read")
        if version not in VERSIONS:
            raise ValueError(f"version {version} of the form is not {' or '.join(map(str, VERSIONS))}")
        return _at_most(MOST_TENSORS, tensors, "tensors"), _at_most(MOST_VALUES, values, "metadata values")

    def pair(self, path: Path) -> tuple[str, Any]:
        key, (kind,) = self.text("a key"), self.unpack("<I")
        if kind != LIST:
            return key, self.text(key) if kind == STRING else self.numbers(key, kind, 1)[0].item()
        kind, count = self.unpack("<IQ")
        _at_most(MOST_IN_LIST, count, f"entries of {key}")
        if kind != STRING:
            return key, self.numbers(key, kind, count)
        start = self.at
        self.texts(key, count)  # a file that is damaged says so at once
        return key, Texts(path, start, count)

    def tensor(self) -> tuple[str, tuple[int, ...], GGMLQuantizationType, int]:
        name, (dimensions,) = self.text("a tensor's name"), self.unpack("<I")
        if dimensions > DIMENSIONS:
            raise ValueError(f"{name} has {dimensions} dimensions")
        shape = self.unpack(f"<{dimensions}Q")
        number, start = self.unpack("<IQ")
        if number not in KINDS:
            raise ValueError(f"{name} is of type {number}, which is unknown")
        kind = KINDS[number]
        if dimensions == 0 or 0 in shape or shape[0] % GGML_QUANT_SIZES[kind][0]:
            raise ValueError(f"{name} has the shape {list(shape)}")
        return name, shape[::-1], kind, start

    def aligned(self, alignment: Any) -> int:
        """The next place that is a multiple."""
        if type(alignment) is not int or alignment < 1:
            raise ValueError(f"general.alignment is {alignment!r}")
        return self.at + -self.at % alignment

    def text(self, what: str) -> str:
        return self.texts(what, 1)[0]

    def texts(self, what: str, count: int) -> list[str]:
        """As many texts as there are: a vocabulary has 100,000, so that each must cost little."""
        found, mapped, at, end = [], self.mapped, self.at, len(self.mapped)
        for _ in range(count):
            try:
                (length,) = LENGTH.unpack_from(mapped, at)
            except struct.error as error:
                raise ValueError("it ends in its header") from error
            start = at + LENGTH.size
            at = start + length
            if length > LONGEST_TEXT:
                raise ValueError(f"its header counts {length} bytes of {what}")
            if at > end:
                raise ValueError("it ends in its header")
            try:
                found.append(str(mapped[start:at], "utf-8"))
            except UnicodeDecodeError as error:
                raise ValueError(f"{what} is no UTF-8") from error
        self.at = at
        return found

    def numbers(self, key: str, kind: int, count: int) -> np.ndarray:
        if kind not in NUMBERS:
            raise ValueError(f"{key} is of type {kind}, which can't be read")
        dtype = np.dtype(NUMBERS[kind])
        return np.frombuffer(self.take(count * dtype.itemsize), dtype)

    def unpack(self, form: str) -> tuple[Any, ...]:
        return struct.unpack(form, self.take(struct.calcsize(form)))

    def take(self, length: int) -> bytes:
        if length > len(self.mapped) - self.at:
            raise ValueError("it ends in its header")
        self.at += length
        return self.mapped[self.at - length : self.at]


def _at_most(limit: int, count: int, what: str) -> int:
    if count > limit:
        raise ValueError(f"its header counts {count} {what}")
    return count
