"""The products of quantized and FP16 matrices, and the quantizing, in C that is built at first use.

Without a compiler PyTorch does the work, slower.
"""

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
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs
import torch

from . import structures

if TYPE_CHECKING:
    from ..quantize import PackedMatrix

SOURCE = Path(__file__).with_name("quantized.c")
#: Without contraction a * b + c is rounded twice everywhere, as in PyTorch, except where the source asks for one.
FLAGS = ("-O3", "-std=c11", "-ffp-contract=off", "-shared", "-pthread")
POSITION_INDEPENDENT = () if platform.system() == "Windows" else ("-fPIC",)  # there it always is, and clang refuses
SUFFIX = {"Windows": ".dll", "Darwin": ".dylib"}
PATIENCE = 300  #: seconds that a compiler may take
POINTER, INT, LONG = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
#: The instruction sets that the products are compiled for, slowest first; the numbers are those of quantized.c.
LEVELS = ("portable", "avx2", "avx_vnni", "avx512_vnni", "neon_dotprod")
#: The C functions: what they return and take. The first arguments are the pool and the level.
FUNCTIONS = {
    "quatrain_levels": (INT, []),
    "quatrain_open": (POINTER, [INT]),
    "quatrain_multiply": (INT, [POINTER, INT, INT, LONG, LONG, *[POINTER] * 4, LONG, POINTER, POINTER]),
    "quatrain_multiply_halves": (None, [POINTER, INT, LONG, LONG, POINTER, POINTER, LONG, POINTER, POINTER]),
    "quatrain_quantize": (None, [POINTER, INT, INT, LONG, LONG, *[POINTER] * 4]),
    "quatrain_step_room": (LONG, [POINTER, POINTER]),
    "quatrain_step": (None, [POINTER, INT, POINTER, POINTER]),
}


class KernelError(RuntimeError):
    """The C kernels can't be built; the text says why and what to do."""


def levels(library: Path) -> list[str]:
    """The levels of a built library that this machine has, slowest first."""
    return _levels(_opened(library))


def _levels(opened: ctypes.CDLL) -> list[str]:
    known = opened.quatrain_levels()
    return [level for number, level in enumerate(LEVELS) if known >> number & 1]


def _opened(library: Path) -> ctypes.CDLL:
    """Raises OSError, AttributeError for what is no such library."""
    opened = ctypes.CDLL(str(library))
    for name, (result, arguments) in FUNCTIONS.items():
        function = getattr(opened, name)
        function.restype, function.argtypes = result, arguments
    return opened


class Kernel:
    """The built library and its threads, which sleep until the process ends."""

    def __init__(self, library: Path, threads: int, level: str | None = None) -> None:
        """level: one of levels(library), the fastest of them by default. Raises ValueError for another one."""
        self._library = _opened(library)
        available = _levels(self._library)
        if level is not None and level not in available:
            raise ValueError(f"This machine has no level {level}; choose from {', '.join(available)}.")
        self.level = level or available[-1]
        self._level = LEVELS.index(self.level)
        self._threads = threads
        self._open()
        if hasattr(os, "register_at_fork"):  # threads stay behind in the parent, and locks may be held there
            os.register_at_fork(after_in_child=self._open)

    def _open(self) -> None:
        self._pool = self._library.quatrain_open(self._threads)

    def multiply(self, x: torch.Tensor, weight: PackedMatrix, bias: torch.Tensor | None) -> torch.Tensor:
        """x float32 [.., columns] times the matrix's rows, plus bias float32 [rows] -> float32 [.., rows]."""
        x, bias, y = _operands(x, weight.rows, weight.columns, bias)
        failed = self._library.quatrain_multiply(
            self._pool,
            self._level,
            weight.bits,
            weight.rows,
            weight.columns,
            weight.blocks.data_ptr(),
            weight.scales.data_ptr(),
            _address(weight.minimums),
            x.data_ptr(),
            x.numel() // weight.columns,
            _address(bias),
            y.data_ptr(),
        )
        if failed:
            raise MemoryError("Memory ran out in a matrix product; ask a shorter question or choose a smaller model.")
        return y

    def multiply_halves(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """The same for a matrix float16 [rows, columns] that lies row after row."""
        rows, columns = weight.shape
        x, bias, y = _operands(x, rows, columns, bias)
        self._library.quatrain_multiply_halves(
            self._pool,
            self._level,
            rows,
            columns,
            weight.data_ptr(),
            x.data_ptr(),
            x.numel() // columns,
            _address(bias),
            y.data_ptr(),
        )
        return y

    def step(self, model: structures.Model, step: structures.Step) -> None:
        """Runs a model over the step's tokens: their keys and values go to the cache, their logits where it says."""
        room = torch.empty(self._library.quatrain_step_room(ctypes.byref(model), ctypes.byref(step)), dtype=torch.uint8)
        step.room = room.data_ptr()
        self._library.quatrain_step(self._pool, self._level, ctypes.byref(model), ctypes.byref(step))

    def quantize(self, weight: torch.Tensor, packed: PackedMatrix) -> None:
        """Fills a packed matrix with the nearest to a float matrix of its shape."""
        weight = weight.float().contiguous()
        self._library.quatrain_quantize(
            self._pool,
            self._level,
            packed.bits,
            packed.rows,
            packed.columns,
            weight.data_ptr(),
            packed.blocks.data_ptr(),
            packed.scales.data_ptr(),
            _address(packed.minimums),
        )


def _operands(
    x: torch.Tensor, rows: int, columns: int, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """x and bias as C reads them, and room for the result. C trusts sizes: a wrong one would read foreign memory."""
    if x.shape[-1] != columns or (bias is not None and bias.shape != (rows,)):
        raise ValueError(f"x {list(x.shape)} and bias don't match a matrix of {rows} rows and {columns} columns")
    return x.contiguous(), None if bias is None else bias.contiguous(), torch.empty(*x.shape[:-1], rows)


def _address(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


@functools.cache
def kernel() -> Kernel | None:
    """The kernel for this machine, or None, with one warning, where it can't be had."""
    with ONE_BUILD:  # threads that ask at once get the same one
        return _kernel()


ONE_BUILD = threading.Lock()


@functools.cache
def _kernel() -> Kernel | None:
    try:
        return _loaded(build())
    except KernelError as error:
        warnings.warn(f"{error} Replies are slower without them.", stacklevel=4)
    except (OSError, AttributeError) as error:  # no place to build in; not loadable, or not what was built
        warnings.warn(f"The fast kernels can't be used ({error}). Replies are slower without them.", stacklevel=4)
    return None


def _loaded(library: Path) -> Kernel:
    """Raises OSError, AttributeError; then the file is removed, so that the next start builds it anew."""
    try:
        return Kernel(library, torch.get_num_threads())
    except (OSError, AttributeError):
        library.unlink(missing_ok=True)
        raise


def build() -> Path:
    """The library's file, compiled unless this source was compiled here before. Raises KernelError, OSError."""
    folder = platformdirs.user_cache_path("quatrain", appauthor=False) / "kernels"
    target = folder / (_key() + SUFFIX.get(platform.system(), ".so"))
    if not target.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as scratch:
            made = Path(scratch) / target.name
            _compile(made)
            os.replace(made, target)
    return target


def _key() -> str:
    seen = f"{platform.system()} {platform.machine()} {FLAGS}".encode() + SOURCE.read_bytes()
    return hashlib.sha256(seen).hexdigest()[:24]


def _compile(target: Path) -> None:
    """With the first compiler that can: on a new Mac, cc is there but only offers to install itself."""
    found = compilers()
    if not found:
        raise KernelError("The fast kernels need a C compiler: install one, or run 'pip install ziglang'.")
    failures = []
    for compiler in found:
        try:
            return compile_with(compiler, target)
        except KernelError as error:
            failures.append(str(error))
    raise KernelError(f"The fast kernels could not be compiled ({'; '.join(failures)}).")


def compilers() -> list[tuple[str, ...]]:
    """The system's C compilers, then that of the package ziglang."""
    found = [(path,) for name in ("cc", "gcc", "clang") if (path := shutil.which(name))]
    if importlib.util.find_spec("ziglang") is not None:
        found.append((sys.executable, "-m", "ziglang", "cc"))
    return found


def compile_with(compiler: Sequence[str], target: Path, *flags: str) -> None:
    """Makes the library's file. Raises KernelError that says why that failed, in a line."""
    command = [*compiler, *FLAGS, *POSITION_INDEPENDENT, *flags, "-o", str(target), str(SOURCE), "-lm"]
    name = Path(compiler[0]).name
    try:
        result = subprocess.run(command, capture_output=True, timeout=PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        raise KernelError(f"{name} was not done after {PATIENCE} seconds") from None
    except OSError as error:
        raise KernelError(f"{name} can't be run: {error.strerror}") from None
    if result.returncode != 0:
        lines = result.stderr.decode(errors="replace").strip().splitlines()
        raise KernelError(lines[-1] if lines else f"{name} ended with {result.returncode}")
