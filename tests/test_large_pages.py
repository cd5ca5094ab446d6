"""Weights in large pages: what they hold stays the same, and nothing is kept longer than they are."""

from __future__ import annotations

import gc
import mmap
import sys
import weakref

import pytest
import torch

from models.memory import ALIGNED, LARGE_PAGE, SEGMENT, LargePages, _segment

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system doesn't take such advice")


def test_what_tensors_hold_stays() -> None:
    pages = LargePages()
    given = [torch.arange(count) for count in (0, 3, 2**20, 1, 2**19 + 1)] + [torch.ones(3, 5).half().T]
    held = [pages.keep(each) for each in given]
    assert all(torch.equal(mine, before) for mine, before in zip(held, given, strict=True))
    assert [each.dtype for each in held] == [each.dtype for each in given]


@on_linux
def test_they_lie_one_behind_the_other() -> None:
    pages = LargePages()
    first, second, large = (pages.keep(torch.zeros(count, dtype=torch.uint8)) for count in (100, 1000, SEGMENT + 1))
    assert first.data_ptr() % LARGE_PAGE == large.data_ptr() % LARGE_PAGE == 0
    assert second.data_ptr() - first.data_ptr() == 2 * ALIGNED
    assert pages.keep(torch.zeros(2)).data_ptr() % ALIGNED == 0


@on_linux
def test_the_system_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it has large pages to give is its own matter."""
    asked = []

    class Mapped(mmap.mmap):
        def madvise(self, advice: int) -> None:
            asked.append((len(self), advice))
            raise OSError("there are none")

    monkeypatch.setattr("models.memory.mmap.mmap", Mapped)
    assert len(_segment(5 * LARGE_PAGE)) == 5 * LARGE_PAGE
    assert asked == [(6 * LARGE_PAGE, mmap.MADV_HUGEPAGE)]


@on_linux
def test_memory_goes_with_the_last_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    alive = []

    class Mapped(mmap.mmap):
        def __init__(self, *arguments: object, **options: object) -> None:
            alive.append(weakref.ref(self))

    monkeypatch.setattr("models.memory.mmap.mmap", Mapped)
    held = LargePages().keep(torch.ones(1000))
    gc.collect()
    assert alive[0]() is not None and held.sum() == 1000
    del held
    gc.collect()
    assert alive[0]() is None


@on_linux
def test_memory_that_is_not_there() -> None:
    with pytest.raises(MemoryError, match="are not free"):
        _segment(2**62)
