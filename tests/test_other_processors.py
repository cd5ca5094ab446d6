"""The kernels for machines that the tests don't run on: they compile, and under an emulator they are right."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch
from kernel_checks import agrees, agrees_halves, random

from models import kernels
from models.quantize import quantize

ZIG = (sys.executable, "-m", "ziglang", "cc")
DRIVER = Path(__file__).with_name("product_driver.c")


@pytest.mark.parametrize(
    "target",
    [
        "x86_64-windows-gnu",
        "aarch64-windows-gnu",
        "x86_64-macos",
        "aarch64-macos",
        "x86_64-linux-musl",
        "aarch64-linux",
    ],
)
def test_compiles_for(target: str, tmp_path: Path) -> None:
    """Without a warning; linking would build the other system's library first, which takes minutes."""
    kernels.compile_with(ZIG, tmp_path / "quantized.o", "-target", target, "-c", "-Wall", "-Wextra", "-Werror")


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command of a program for 64-bit Arm that multiplies."""
    emulator = shutil.which("qemu-aarch64")
    assert emulator, "qemu-aarch64 is missing: install Debian's package qemu-user"
    program = tmp_path_factory.mktemp("arm") / "driver"
    flags = [flag for flag in kernels.FLAGS if flag != "-shared"]
    sources = [str(DRIVER), str(kernels.SOURCE)]
    subprocess.run([*ZIG, "-target", "aarch64-linux-musl", *flags, *sources, "-o", str(program), "-lm"], check=True)
    return [emulator, str(program)]


def products(command: list[str], bits: int, parts: list[torch.Tensor], x: torch.Tensor, bias: torch.Tensor) -> dict:
    """What each level of the emulated processor gives."""
    sizes = numpy.array([bits, len(bias), x.shape[1], len(x)], dtype=numpy.int32)
    sent = b"".join([sizes.tobytes(), *(part.numpy().tobytes() for part in (*parts, x, bias))])
    answer = subprocess.run(command, input=sent, capture_output=True, check=True).stdout
    found = torch.frombuffer(bytearray(answer), dtype=torch.int32).view(-1, 1 + len(x) * len(bias))
    assert len(found)
    return {kernels.LEVELS[row[0]]: row[1:].view(torch.float32).view(len(x), -1) for row in found}


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 1), (9, 33), (33, 100), (300, 576)])
@pytest.mark.parametrize("count", [1, 3, 7, 17, 60])
def test_arm(emulated: list[str], shape: tuple[int, int], count: int) -> None:
    dense, x, bias = random(*shape), random(count, shape[1], seed=1), random(shape[0], seed=2)
    for bits in (4, 8):
        weight = quantize(dense, bits)
        found = products(emulated, bits, weight.parts(), x, bias)
        assert list(found) == ["portable", "neon_dotprod"]
        for product in found.values():
            assert agrees(product, x, weight, bias)
        first = products(emulated, bits, weight.parts(), x[:1], bias)
        assert all(torch.equal(first[level], found[level][:1]) for level in found)
    for product in products(emulated, 16, [dense.half()], x, bias).values():
        assert agrees_halves(product, x, dense.half(), bias)
