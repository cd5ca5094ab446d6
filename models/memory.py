"""Memory that has run out: how it is told, and how what is free goes back to the system."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterable, Iterator
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
MADV_COLLAPSE = 25  #: Linux' advice, by its header mman.h, to use large pages for memory that was written to


def move_to_large_pages(tensors: Iterable[torch.Tensor]) -> None:
    """Moves what these tensors hold to large pages, on Linux where there are any; their addresses stay.

    Weights are read from end to end for every token. With pages of 4 KB a virtual machine spends a third of that time
    looking addresses up.
    """
    madvise = getattr(ctypes.CDLL(None), "madvise", None) if sys.platform == "linux" else None
    if madvise is None:
        return
    for start, end in _spans(tensors):
        # One page at a time: the system may refuse a part, such as a gap, or run out of large pages. It is only advice.
        for page in range(-(-start // LARGE_PAGE) * LARGE_PAGE, end - LARGE_PAGE + 1, LARGE_PAGE):
            madvise(ctypes.c_void_p(page), ctypes.c_size_t(LARGE_PAGE), MADV_COLLAPSE)


def _spans(tensors: Iterable[torch.Tensor]) -> Iterator[tuple[int, int]]:
    """Where tensors lie in the CPU's memory, those with less than a large page between them as one."""
    places = sorted((each.data_ptr(), each.data_ptr() + each.nbytes) for each in tensors if each.device.type == "cpu")
    if not places:
        return
    start, end = places[0]
    for first, last in places[1:]:
        if first - end >= LARGE_PAGE:
            yield start, end
            start = first
        end = max(end, last)
    yield start, end
