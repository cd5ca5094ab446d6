"""What this machine has: graphics cards, free memory, cores. Sizes are bytes; "GB" in texts means GiB."""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from types import ModuleType

import psutil

GIB = 2**30

#: Instruction sets that matter to the kernels, as /proc/cpuinfo writes them.
INSTRUCTIONS = (
    *("avx", "avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8"),
    *("neon", "asimd", "asimddp", "i8mm", "sve"),
)

CPU_ONLY_TORCH = (
    "An NVIDIA driver is installed, but this PyTorch runs on the CPU only: reinstall it with the command that "
    "PyTorch's 'Get started' page shows for your CUDA version, with torch==2.13.0 in it."
)


@dataclass(frozen=True)
class GPU:
    """A card that PyTorch can use."""

    index: int
    name: str
    free: int
    total: int

    @property
    def device(self) -> str:
        return f"cuda:{self.index}"


@dataclass(frozen=True)
class Machine:
    """`ram_free` is what this process may still take. `notes` are sentences about what is in the user's way."""

    gpus: tuple[GPU, ...] = ()
    ram_free: int = 0
    ram_total: int = 0
    cores: int = 1
    instructions: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @classmethod
    def assume(cls, text: str) -> Machine:
        """A machine that one does not have: "cuda:6GB" (a card and no memory beside it), "cpu:16GB", or a list of both.

        Raises ValueError, in one sentence, for anything else.
        """
        parts = [_assumed(part) for part in text.split(",")]
        cards = [size for kind, size in parts if kind == "cuda"]
        gpus = tuple(GPU(index, f"assumed {size / GIB:g} GB", size, size) for index, size in enumerate(cards))
        ram = sum(size for kind, size in parts if kind == "cpu")
        return cls(gpus, ram, ram)

    def after_releasing(self, device: str, nbytes: int) -> Machine:
        """The machine when so many bytes of a device have been given back."""
        cards = tuple(replace(gpu, free=gpu.free + nbytes) if gpu.device == device else gpu for gpu in self.gpus)
        return replace(self, gpus=cards, ram_free=self.ram_free + (nbytes if device == "cpu" else 0))


def _assumed(part: str) -> tuple[str, int]:
    match = re.fullmatch(r"(cuda|cpu):(\d+(?:\.\d+)?)GB", part.strip(), re.IGNORECASE)
    if match is None:
        raise ValueError(f"{part!r} is no machine; say for example cuda:6GB or cpu:16GB.")
    return match[1].lower(), int(float(match[2]) * GIB)


def detect(root: Path = Path("/")) -> Machine:
    """This machine, as it is now. `root` is where /proc and /sys are looked for."""
    import torch  # takes a second: only who asks waits for it

    cards, broken = gpus(torch)
    blind = (CPU_ONLY_TORCH,) if torch.version.cuda is None and has_nvidia_driver(root) else ()
    free, total = memory(root)
    return Machine(cards, free, total, cores(), instructions(root), broken + blind)


def gpus(torch: ModuleType) -> tuple[tuple[GPU, ...], tuple[str, ...]]:
    """The cards that answer, and a sentence for each that does not."""
    found, broken = [], []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        try:
            free, total = torch.cuda.mem_get_info(index)
            found.append(GPU(index, torch.cuda.get_device_name(index), free, total))
        except RuntimeError as error:  # what PyTorch raises for a card that has hung or gone
            broken.append(f"Graphics card {index} does not answer ({str(error).splitlines()[0]}); it is not used.")
    return tuple(found), tuple(broken)


def has_nvidia_driver(root: Path = Path("/"), which: Callable[[str], str | None] = shutil.which) -> bool:
    return which("nvidia-smi") is not None or (root / "proc/driver/nvidia").exists()


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def instructions(root: Path = Path("/"), machine: str | None = None) -> tuple[str, ...]:
    """Which of INSTRUCTIONS the processor has; outside Linux as far as PyTorch knows."""
    cpuinfo = root / "proc/cpuinfo"
    if cpuinfo.is_file():
        line = re.search(r"^(?:flags|Features)\s*:(.*)$", cpuinfo.read_text(encoding="utf-8"), re.MULTILINE)
        has = set(line[1].split()) if line else set()
    elif (machine or platform.machine()).lower() in ("arm64", "aarch64"):
        has = {"neon"}
    else:
        has = {_torch_capability()}
    return tuple(name for name in INSTRUCTIONS if name in has)


def _torch_capability() -> str:
    import torch

    capability = torch.backends.cpu.get_cpu_capability().lower()
    return {"avx512": "avx512f"}.get(capability, capability)


def memory(root: Path = Path("/")) -> tuple[int, int]:
    """Bytes of memory that this process may still take, and all of them."""
    now = psutil.virtual_memory()
    return limited(now.available, now.total, root)


def free_memory() -> int:
    """Bytes of memory that this process may still take."""
    return memory()[0]


def limited(free: int, total: int, root: Path = Path("/")) -> tuple[int, int]:
    """Free and total memory with the limits of the control groups that this process is in (containers set them)."""
    for limit, used in _limits(root):
        free, total = min(free, max(limit - used, 0)), min(total, limit)
    return free, total


@dataclass(frozen=True)
class _Version:
    """A version of control groups: where its memory controller lies, and its files of limit and use."""

    mount: str
    limit: str
    used: str
    reclaimable: str  #: cached file pages in memory.stat: counted as used, but given back at need


_VERSIONS = {
    "": _Version("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    "memory": _Version("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def _limits(root: Path) -> Iterator[tuple[int, int]]:
    """(limit, used) of this process's groups and of all groups around them."""
    membership = root / "proc/self/cgroup"
    if not membership.is_file():
        return
    for line in membership.read_text(encoding="utf-8").splitlines():
        _, controllers, group = line.split(":", 2)
        for name in set(controllers.split(",")) & _VERSIONS.keys():
            version = _VERSIONS[name]
            mount = root / version.mount
            # In a container the group's own folder may be the mount itself, and its path lead nowhere.
            inner = PurePosixPath(group.lstrip("/"))
            for folder in (inner, *inner.parents):
                yield from _limit(mount / folder, version)


def _limit(folder: Path, version: _Version) -> Iterator[tuple[int, int]]:
    limit, used = _number(folder / version.limit), _number(folder / version.used)
    if limit is not None and used is not None:
        yield limit, max(used - _reclaimable(folder / "memory.stat", version.reclaimable), 0)


def _number(file: Path) -> int | None:
    """None where there is no such file or it says "max"."""
    text = file.read_text(encoding="utf-8").strip() if file.is_file() else ""
    return int(text) if text.isdigit() else None


def _reclaimable(stat: Path, key: str) -> int:
    text = stat.read_text(encoding="utf-8") if stat.is_file() else ""
    match = re.search(rf"^{key} (\d+)$", text, re.MULTILINE)
    return int(match[1]) if match else 0
