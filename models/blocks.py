"""Keys and values on disk: a conversation that is opened again tomorrow, or a document, need not be read again.

They lie in blocks of BLOCK tokens, a file each. A file's name is the hash of all that its keys and values depend on:
the model as it was loaded, the block before it, and its own ids. So what begins alike is stored once, a conversation
that goes on adds files and changes none, and for another model there is nothing to find. A block is written under
another name and renamed when it is whole; one whose bytes are not as they were written is deleted.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from .cache import KVCache
from .kept import fingerprint

if TYPE_CHECKING:
    from .loader import LoadedModel

#: Raised when the meaning of the bytes changes: older files are never found again, and go in time.
LAYOUT = 1
BLOCK = 64  #: tokens
SUFFIX, UNFINISHED = ".kv", ".making-"
#: What a file begins with: a mark, the hash that names it, and the length and the checksum of what follows.
HEADER = struct.Struct("<8s32sQI")
MARK = b"QUATRAIN"
START = 64  #: bytes before the keys

#: Bytes a second that any disk reads, and how much sooner than the model it has to be.
DISK, SOONER = 200e6, 4
#: Tokens of a reading that are enough to measure it.
MEASURED = 64
#: Bytes of the disk that stay free.
ROOM = 2**30
#: Text that tells tokenizers apart.
PROBE = "The quick brown fox, 0123456789; 检索增强生成！\n\tdef f(x): return x\n"


class Blocks:
    """The blocks of one model in a folder that models share, `limit` bytes in all; what was unused longest goes first.

    Raises OSError where the folder can't be made.
    """

    def __init__(self, folder: Path, limit: int, identity: bytes, bytes_per_token: int) -> None:
        self._folder = folder
        self._limit = limit
        self._identity = identity
        self._bytes = bytes_per_token
        self._seconds: float | None = None  # of reading a token
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(f"{UNFINISHED}*"):  # by a program that was killed
            left.unlink(missing_ok=True)

    def measured(self, tokens: int, seconds: float) -> None:
        """The model has read so many tokens in that time."""
        if tokens >= MEASURED:
            self._seconds = seconds / tokens

    @property
    def pays(self) -> bool:
        """Whether a disk gives tokens back much sooner than the model reads them; not known before it has read any."""
        return self._seconds is not None and self._bytes / DISK * SOONER < self._seconds

    def held(self, ids: Sequence[int], scaled_for: int = 0) -> int:
        """How many of the first ids are here, for caches whose positions are scaled for that length."""
        return BLOCK * sum(1 for _ in self._present(ids, scaled_for))

    def load(self, ids: Sequence[int], cache: KVCache, scaled_for: int = 0) -> None:
        """Adds what is here of the first ids to a cache that holds the beginning of them already."""
        first = cache.length // BLOCK
        present = list(self._present(ids, scaled_for))[: cache.capacity // BLOCK]
        if len(present) <= first:
            return
        cache.truncate(first * BLOCK)
        for number, (path, digest) in enumerate(present[first:], first):
            rows = cache.rows(number * BLOCK, (number + 1) * BLOCK)
            stored = _read(path, digest, sum(part.nbytes for part in rows))
            if stored is None:
                path.unlink(missing_ok=True)
                break
            keys, values = np.split(stored, 2)
            for part, numbers in zip(rows, (keys, values), strict=True):
                part.copy_(torch.from_numpy(numbers).view(part.dtype).view(part.shape))
            cache.advance(BLOCK)
        self._touch([path for path, _ in present])

    def keep(self, ids: Sequence[int], cache: KVCache, scaled_for: int = 0) -> None:
        """Writes the whole blocks of what a cache holds, where that pays and they are not here; a full disk ends it."""
        blocks = list(self._named(ids[: cache.length], scaled_for))
        if not self.pays or len(blocks) * BLOCK * self._bytes > self._limit:
            return
        missing = [(number, path, digest) for number, (path, digest) in enumerate(blocks) if not path.is_file()]
        self._touch([path for path, _ in blocks])
        self._prune(len(missing) * (START + BLOCK * self._bytes))
        for number, path, digest in missing:
            try:
                _write(path, digest, cache.rows(number * BLOCK, (number + 1) * BLOCK))
            except OSError:
                return  # the reply is what counts; it is read again then
        self._touch([path for path, _ in blocks])

    @property
    def nbytes(self) -> int:
        """Bytes of all models' blocks."""
        return sum(size for _, size, _ in self._files())

    def _named(self, ids: Sequence[int], scaled_for: int) -> Iterator[tuple[Path, bytes]]:
        """The file of each whole block of ids, and the hash that names it."""
        digest = hashlib.sha256(self._identity + struct.pack("<qq", LAYOUT, scaled_for)).digest()
        for start in range(0, len(ids) - BLOCK + 1, BLOCK):
            digest = hashlib.sha256(digest + struct.pack(f"<{BLOCK}q", *ids[start : start + BLOCK])).digest()
            yield self._folder / f"{digest.hex()[:40]}{SUFFIX}", digest

    def _present(self, ids: Sequence[int], scaled_for: int) -> Iterator[tuple[Path, bytes]]:
        for path, digest in self._named(ids, scaled_for):
            if not path.is_file():
                return
            yield path, digest

    def _touch(self, paths: Sequence[Path]) -> None:
        """They were used now, each a moment earlier than the one before it: without that it is of no use."""
        now = time.time_ns()
        for number, path in enumerate(paths):
            if path.is_file():
                os.utime(path, ns=(now - number * 1000, now - number * 1000))

    def _prune(self, coming: int) -> None:
        """Makes room for so many bytes."""
        files = sorted(self._files())
        total = sum(size for _, size, _ in files) + coming
        free = shutil.disk_usage(self._folder).free - coming - ROOM
        for _, size, path in files:
            if total <= self._limit and free >= 0:
                return
            path.unlink(missing_ok=True)
            total, free = total - size, free + size

    def _files(self) -> Iterator[tuple[int, int, Path]]:
        for path in self._folder.glob(f"*{SUFFIX}"):
            status = path.stat()
            yield status.st_mtime_ns, status.st_size, path


def clear_blocks(folder: Path) -> None:
    """Deletes the blocks of all models, and what a killed program left of some."""
    for pattern in (f"*{SUFFIX}", f"{UNFINISHED}*"):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)


def identity(loaded: LoadedModel) -> bytes:
    """What keys and values depend on besides the ids, and what the ids depend on: weights, adapter, tier, tokenizer,
    chat format."""
    tokenizer = loaded.tokenizer
    parts = (
        loaded.architecture,
        loaded.checkpoint.origin,
        fingerprint(loaded.checkpoint.files()),
        loaded.tier,
        str(loaded.cache_dtype),
        loaded.device.type,
        loaded.chat_format.name,
        len(tokenizer),
        sorted(tokenizer.controls.items()),
        tokenizer.encode(PROBE),
    )
    return hashlib.sha256(repr(parts).encode()).digest()


def _read(path: Path, digest: bytes, nbytes: int) -> np.ndarray | None:
    """The keys and values of a block as bytes, mapped; None for a file that is not what its name says, or not whole."""
    try:
        mapped = np.memmap(path, np.uint8, "c")
    except (OSError, ValueError):  # not there, or empty
        return None
    if mapped.size != START + nbytes:
        return None
    mark, named, length, checksum = HEADER.unpack(mapped[: HEADER.size].tobytes())
    stored = mapped[START:]
    whole = (mark, named, length) == (MARK, digest, nbytes) and zlib.crc32(stored) == checksum
    return stored if whole else None


def _write(path: Path, digest: bytes, rows: Sequence[torch.Tensor]) -> None:
    data = b"".join(part.contiguous().cpu().flatten().view(torch.uint8).numpy().tobytes() for part in rows)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=UNFINISHED, delete=False) as file:
        try:
            file.write(HEADER.pack(MARK, digest, len(data), zlib.crc32(data)).ljust(START, b"\0"))
            file.write(data)
            file.close()  # Windows renames no open file
            os.replace(file.name, path)
        except BaseException:
            file.close()
            Path(file.name).unlink(missing_ok=True)
            raise
