"""Measuring in a process of its own: its memory and its time, from Linux's /proc."""

from __future__ import annotations

import multiprocessing
import os
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Memory:
    """Bytes that are resident: `peak` since the last reset; `own` pages, and those of mapped `files`, both as of now.

    A page of a mapped file counts from when it is first touched. Linux can drop it again and read it anew, so `files`
    is memory that the process uses but does not hold on to.
    """

    peak: int
    own: int
    files: int

    def __sub__(self, before: Memory) -> Memory:
        return Memory(self.peak - before.peak, self.own - before.own, self.files - before.files)


def memory() -> Memory:
    """This process's memory now; the peak is at least what is resident."""
    text = STATUS.read_text(encoding="ascii")
    sizes = {name: int(size) * 1024 for name, size in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)}
    return Memory(sizes["VmHWM"], sizes["RssAnon"], sizes["RssFile"])


def reset_peak() -> None:
    """From here on the peak is counted anew."""
    CLEAR.write_text("5", encoding="ascii")


def in_child(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a module's function in a fresh Python process, so that nothing that ran before is measured with it.

    Raises BrokenProcessPool where Linux killed the child, which is what it does when memory runs out.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def forget_files(folder: Path) -> None:
    """Drops a folder's files from Linux's page cache: what is read next comes from the disk, as after a restart."""
    for path in [folder] if folder.is_file() else folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)  # only clean pages can be dropped
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)
