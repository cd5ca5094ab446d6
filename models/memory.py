"""Memory that has run out: how it is told, and how what is free goes back to the system."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import sys
from collections.abc import Callable
from typing import TypeVar

import torch

Result = TypeVar("Result")

#: What tells that memory ran out, if `ran_out` says so too: PyTorch raises a RuntimeError on the CPU.
OUT_OF_MEMORY = (MemoryError, RuntimeError)
#: In lower case: PyTorch's allocator on the CPU, on Linux and on Windows; CUDA; its libraries; C++.
SAID = ("defaultcpuallocator", "not enough memory", "out of memory", "alloc_failed", "bad_alloc")


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory ran out, in Python, on the CPU or on a card."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error).lower() for said in SAID)


def once_more(work: Callable[[], Result]) -> Result:
    """What work returns; if memory runs out, what is free is given back first and it is done a second time."""
    try:
        return work()
    except OUT_OF_MEMORY as error:
        if not ran_out(error):
            raise
    give_back()  # here, not above: until the error has gone, it holds on to what the work had made
    return work()


def give_back() -> None:
    """Returns freed memory to the system: glibc and PyTorch keep it, and other parts of the program can't have it."""
    trim()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def trim() -> None:
    """Returns the freed memory of the CPU, on Linux; elsewhere the system's allocators do it themselves."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if malloc_trim is not None:
        malloc_trim(0)


LARGE_PAGE = 2**21  #: bytes, on x86-64 and on most of ARM
SEGMENT = 2**26  #: bytes that are asked for at once, at least; what nothing is written to takes no memory
ALIGNED = 64  #: bytes: a line of the caches


class LargePages:
    """Holds weights in large pages, on Linux where there are any; elsewhere they stay where they are.

    Weights are read from end to end for every token. With pages of 4 KB, and those of mapped files are never larger, a
    processor spends a fifth of that time looking addresses up.
    """

    def __init__(self) -> None:
        self._left = torch.empty(0, dtype=torch.uint8)

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor, or a copy of it, which is to be used in its place. Raises MemoryError."""
        if tensor.device.type != "cpu" or tensor.nbytes == 0 or not hasattr(mmap, "MADV_HUGEPAGE"):
            return tensor
        if tensor.nbytes > len(self._left):
            self._left = _segment(max(SEGMENT, tensor.nbytes))
        held = self._left[: tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        self._left = self._left[-(-tensor.nbytes // ALIGNED) * ALIGNED :]
        return held.copy_(tensor)


def _segment(nbytes: int) -> torch.Tensor:
    """uint8 [nbytes], at the start of a large page, given back to the system when nothing holds a part of it."""
    try:
        mapped = mmap.mmap(-1, nbytes + LARGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"{nbytes} bytes are not free") from error
    with contextlib.suppress(OSError):  # a system without large pages
        mapped.madvise(mmap.MADV_HUGEPAGE)
    whole = torch.frombuffer(mapped, dtype=torch.uint8)
    start = -whole.data_ptr() % LARGE_PAGE
    return whole[start : start + nbytes]
