"""The products of quantized matrices in C, built at first use; without a compiler PyTorch does the work, slower."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs
import torch

if TYPE_CHECKING:
    from ..quantize import PackedMatrix

SOURCE = Path(__file__).with_name("quantized.c")
FLAGS = ("-O3", "-std=c11", "-shared", "-fPIC", "-pthread")
SUFFIX = {"Windows": ".dll", "Darwin": ".dylib"}


class KernelError(RuntimeError):
    """The C kernels can't be built; the text says why and what to do."""


class Kernel:
    """The built library and its threads."""

    def __init__(self, library: Path, threads: int, portable: bool = False) -> None:
        self._library = ctypes.CDLL(str(library))
        self._portable = int(portable)
        pointer, long = ctypes.c_void_p, ctypes.c_long
        self._library.quatrain_open.restype = pointer
        self._library.quatrain_multiply.argtypes = [
            *(
                pointer,
                ctypes.c_int,
                ctypes.c_int,
                long,
                long,
                pointer,
                pointer,
                pointer,
                pointer,
                long,
                pointer,
                pointer,
            )
        ]
        self._pool = self._library.quatrain_open(threads)

    def multiply(self, x: torch.Tensor, weight: PackedMatrix, bias: torch.Tensor | None) -> torch.Tensor:
        """x float32 [.., columns] times the matrix's rows, plus bias float32 [rows] -> float32 [.., rows]."""
        x = x.contiguous()
        y = torch.empty(*x.shape[:-1], weight.rows)
        minimums = None if weight.minimums is None else weight.minimums.data_ptr()
        failed = self._library.quatrain_multiply(
            self._pool,
            self._portable,
            weight.bits,
            weight.rows,
            weight.columns,
            weight.blocks.data_ptr(),
            weight.scales.data_ptr(),
            minimums,
            x.data_ptr(),
            x.numel() // weight.columns,
            None if bias is None else bias.data_ptr(),
            y.data_ptr(),
        )
        if failed:
            raise MemoryError("Memory ran out in a matrix product; ask a shorter question or choose a smaller model.")
        return y


@functools.cache
def kernel() -> Kernel | None:
    """The kernel for this machine, or None, with one warning, where it can't be had."""
    try:
        return Kernel(build(), torch.get_num_threads())
    except (KernelError, OSError) as error:
        warnings.warn(f"{error} Replies are slower without it.", stacklevel=2)
        return None


def build(compiler: tuple[str, ...] | None = None) -> Path:
    """The library's file, compiled unless this source was compiled here before. Raises KernelError."""
    folder = platformdirs.user_cache_path("quatrain", appauthor=False) / "kernels"
    target = folder / (_key() + SUFFIX.get(platform.system(), ".so"))
    if not target.is_file():
        compiler = compiler or find_compiler()
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            made = Path(scratch) / target.name
            _compile([*compiler, *FLAGS, "-o", str(made), str(SOURCE), "-lm"])
            os.replace(made, target)
    return target


def find_compiler() -> tuple[str, ...]:
    """The system's C compiler, else that of the package ziglang. Raises KernelError."""
    for name in ("cc", "gcc", "clang"):
        if path := shutil.which(name):
            return (path,)
    if importlib.util.find_spec("ziglang") is not None:
        return (sys.executable, "-m", "ziglang", "cc")
    raise KernelError("The fast kernels need a C compiler: install one, or run 'pip install ziglang'.")


def _key() -> str:
    seen = f"{platform.machine()} {FLAGS}".encode() + SOURCE.read_bytes()
    return hashlib.sha256(seen).hexdigest()[:24]


def _compile(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        lines = result.stderr.strip().splitlines()
        raise KernelError(f"The fast kernels could not be compiled ({lines[-1] if lines else 'no message'}).")
