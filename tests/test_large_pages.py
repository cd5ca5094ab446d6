"""Weights in large pages: what they hold, and where, stays the same."""

from __future__ import annotations

import sys

import pytest
import torch

from models.memory import LARGE_PAGE, _spans, move_to_large_pages


def test_what_tensors_hold_stays() -> None:
    held = [torch.arange(count) for count in (0, 3, 2**20, 2**16, 2**19 + 1)]
    wanted, places = [each.clone() for each in held], [each.data_ptr() for each in held]
    move_to_large_pages(held)
    assert all(torch.equal(mine, before) for mine, before in zip(held, wanted, strict=True))
    assert [each.data_ptr() for each in held] == places
    move_to_large_pages([])


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system doesn't take such advice")
def test_the_system_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it has large pages to give is its own matter; here each whole one is asked for."""
    asked = []

    class Library:
        def __init__(self, name: None) -> None:
            self.madvise = lambda page, size, advice: asked.append((page.value, size.value, advice))

    monkeypatch.setattr("models.memory.ctypes.CDLL", Library)
    tensor = torch.zeros(5 * LARGE_PAGE, dtype=torch.uint8)
    move_to_large_pages([tensor])
    start, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
    assert len(asked) in (4, 5)
    assert all(page % LARGE_PAGE == 0 and start <= page and page + size <= end for page, size, _ in asked)


def test_neighbours_are_one_span() -> None:
    whole = torch.zeros(8 * LARGE_PAGE, dtype=torch.uint8)
    first, second, far = whole[:1000], whole[2000:3000], whole[6 * LARGE_PAGE :]
    start = whole.data_ptr()
    expected = [(start, start + 3000), (start + 6 * LARGE_PAGE, start + 8 * LARGE_PAGE)]
    assert list(_spans([far, second, first])) == expected
