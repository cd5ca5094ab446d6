"""The C kernels beside the specification in PyTorch, at every level that this machine has; and their absence.

The kernels round each group of 32 activations to bytes (steps of absmax/127). Beside PyTorch's product of the same
rounded numbers they differ by the order of adding only; beside that of the numbers themselves by half a step for each
weight: 0.8 % of the output's size at most here, .5 % typically.
"""

from __future__ import annotations

import platform
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from kernel_checks import ADDING, agrees, agrees_halves, random, rounded, sizes

from models import kernels, layers
from models import quantize as quantizing
from models.kernels import Kernel
from models.quantize import GROUP, PackedMatrix, QuantizedLinear, quantize
from tests.threads import at_once

SHAPES = [(1, 1), (7, 31), (8, 32), (9, 33), (33, 100), (64, 576), (300, 1056)]
COUNTS = [1, 2, 3, 4, 5, 7, 16, 17, 300]


#: The levels that a processor like this one may have.
ARM = platform.machine().lower() in {"arm64", "aarch64"}
POSSIBLE = [level for level in kernels.LEVELS if level == "portable" or level.startswith("neon") == ARM]
#: Processors with AVX-512 run the 256-bit instructions of AVX-VNNI in another encoding: that build tests them there.
OTHER_ENCODING = ("-DTRY_AVX_VNNI",)


@pytest.fixture(scope="module")
def library() -> Path:
    return kernels.build()


@pytest.fixture(scope="module")
def made(library: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """For each level that this machine can run, a library that has it."""
    found = dict.fromkeys(kernels.levels(library), library)
    if "avx512_vnni" in found and "avx_vnni" not in found:
        found["avx_vnni"] = tmp_path_factory.mktemp("other") / library.name
        kernels.compile_with(kernels.compilers()[0], found["avx_vnni"], *OTHER_ENCODING)
    return found


@pytest.fixture(scope="module", params=POSSIBLE)
def fast(request: pytest.FixtureRequest, made: dict[str, Path]) -> Kernel:
    if request.param not in made:
        pytest.skip(f"this processor has no {request.param}")
    return Kernel(made[request.param], threads=3, level=request.param)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", SHAPES)
def test_product_of_packed(fast: Kernel, bits: int, shape: tuple[int, int]) -> None:
    weight, bias = quantize(random(*shape), bits), random(shape[0], seed=2)
    dense = weight.dequantize()
    for count in COUNTS:
        x = random(count, shape[1], seed=1)
        found = fast.multiply(x, weight, bias)
        assert (found.shape, found.dtype) == ((count, shape[0]), torch.float32)
        assert agrees(found, x, weight, bias)
    # Half a step for each weight of a group.
    steps = F.pad(x, (0, -shape[1] % GROUP)).unflatten(1, (-1, GROUP)).abs().amax(-1) / 127
    half = steps.repeat_interleave(GROUP, 1)[:, : shape[1]].double() / 2 @ dense.double().abs().T
    assert ((found - (x @ dense.T + bias)).abs() <= half + ADDING * (sizes(x, weight) + bias.abs())).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_error_of_rounding_activations(fast: Kernel, bits: int) -> None:
    weight, x = quantize(random(300, 1056), bits), random(64, 1056, seed=1)
    wanted = x @ weight.dequantize().T
    assert 0.002 < (fast.multiply(x, weight, None) - wanted).norm() / wanted.norm() < 0.008


@pytest.mark.parametrize("shape", SHAPES)
def test_product_of_halves(fast: Kernel, shape: tuple[int, int]) -> None:
    weight, bias = random(*shape).half(), random(shape[0], seed=2)
    for count in COUNTS:
        x = random(count, shape[1], seed=1)
        assert agrees_halves(fast.multiply_halves(x, weight, bias), x, weight, bias)


def test_every_half_is_read(fast: Kernel) -> None:
    """All 65,536 of them, the infinite, the subnormal and those that are no numbers as well."""
    halves = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.float16)
    found = fast.multiply_halves(torch.ones(1, 1), halves[:, None].contiguous(), None)[0]
    assert torch.equal(found.nan_to_num(7), halves.float().nan_to_num(7))
    assert torch.equal(found.isnan(), halves.isnan())


@pytest.mark.parametrize("shape", SHAPES)
def test_rows_equal_single_rows(fast: Kernel, shape: tuple[int, int]) -> None:
    """Bit for bit: a token that was guessed and checked among others is the one that would have come alone."""
    x, bias = random(37, shape[1], seed=1), random(shape[0], seed=2)
    half = random(*shape).half()
    packed = [quantize(half, bits) for bits in (4, 8)]
    products: list[Callable] = [partial(fast.multiply_halves, weight=half, bias=bias)]
    products += [partial(fast.multiply, weight=weight, bias=bias) for weight in packed]
    for product in products:
        single = torch.cat([product(row) for row in x.split(1)])
        for count in [*range(2, 18), 37]:
            assert torch.equal(product(x[:count]), single[:count])


def test_every_level_gives_the_same(made: dict[str, Path]) -> None:
    """Sums of a group are whole numbers, and floats are added in one order: with fused additions it is bit for bit."""
    x, bias = random(21, 1056, seed=1), random(300, seed=2)
    for bits in (4, 8):
        weight = quantize(random(300, 1056), bits)
        found = {level: Kernel(path, threads=2, level=level).multiply(x, weight, bias) for level, path in made.items()}
        portable = found.pop("portable")
        for product in found.values():
            assert torch.equal(product, found[max(found)])
            assert ((product - portable).abs() <= ADDING * (sizes(x, weight) + bias.abs())).all()


def test_levels(library: Path) -> None:
    available = kernels.levels(library)
    assert available[0] == "portable" and set(available) <= set(POSSIBLE)
    assert Kernel(library, threads=1).level == available[-1]
    with pytest.raises(ValueError, match="no level avx1; choose from portable"):
        Kernel(library, threads=1, level="avx1")


@pytest.mark.parametrize("bits", [4, 8])
def test_nothing_in_nothing_out(fast: Kernel, bits: int) -> None:
    weight, bias = random(20, 96), random(20, seed=2)
    weight[:10] = 0
    weight[10:, 32:64] = 0
    packed = quantize(weight, bits)
    assert torch.equal(fast.multiply(torch.zeros(3, 96), packed, bias), bias.expand(3, 20))
    assert torch.equal(fast.multiply(random(3, 96), packed, None)[:, :10], torch.zeros(3, 10))
    middle = torch.zeros(1, 96)
    middle[:, 32:64] = random(1, 32)
    assert torch.equal(fast.multiply(middle, packed, None), torch.zeros(1, 20))
    assert fast.multiply(random(0, 96), packed, bias).shape == (0, 20)
    assert fast.multiply_halves(random(0, 96), weight.half(), bias).shape == (0, 20)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("size", [1e-45, 1e-37, 1e-30, 1e30])
def test_huge_and_tiny_activations(fast: Kernel, bits: int, size: float) -> None:
    weight = quantize(random(9, 64), bits)
    x = random(2, 64, seed=1)
    found = fast.multiply(x * size, weight, None)
    # Below 1e-36 a group counts as zero.
    assert ((found - size * (rounded(x) @ weight.dequantize().double().T)).abs() <= 1e-34 + size * 2e-3).all()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_a_number_stays_in_its_row(fast: Kernel, bits: int, value: float) -> None:
    weight, x = quantize(random(9, 100), bits), random(6, 100, seed=1)
    right = fast.multiply(x, weight, None)
    x[2, 99] = value
    found = fast.multiply(x, weight, None)
    assert found[2].isnan().all()
    others = [0, 1, 3, 4, 5]
    assert torch.equal(found[others], right[others])
    assert not fast.multiply_halves(x, random(9, 100).half(), None)[2].isfinite().any()


def test_broken_weights_do_not_crash(fast: Kernel) -> None:
    for value in (float("nan"), float("inf")):
        weight = random(9, 100)
        weight[4, 50] = value
        for bits in (4, 8):
            packed = PackedMatrix.empty(bits, 9, 100)
            fast.quantize(weight, packed)
            found = fast.multiply(random(1, 100), packed, None)
            assert torch.equal(found[:, :4], fast.multiply(random(1, 100), quantize(weight[:4], bits), None))
        assert not fast.multiply_halves(random(1, 100), weight.half(), None)[0, 4].isfinite()


def test_sizes_that_do_not_match_are_refused(fast: Kernel) -> None:
    weight = quantize(random(9, 100), 8)
    for x, bias in ((random(1, 99), None), (random(1, 100), random(8)), (random(1, 100), random(9, 1))):
        with pytest.raises(ValueError, match="don't match a matrix of 9 rows and 100 columns"):
            fast.multiply(x, weight, bias)
        with pytest.raises(ValueError, match="don't match a matrix of 9 rows and 100 columns"):
            fast.multiply_halves(x, random(9, 100).half(), bias)


def test_out_of_memory(fast: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast, "_library", SimpleNamespace(quatrain_multiply=lambda *arguments: -1))
    with pytest.raises(MemoryError, match="Memory ran out"):
        fast.multiply(random(1, 100), quantize(random(9, 100), 8), None)


def test_operands_that_lie_otherwise(fast: Kernel) -> None:
    """Transposed, every second one, and with more dimensions."""
    weight, x = quantize(random(9, 100), 8), random(2, 3, 100)
    bias = random(18)[::2]
    found = fast.multiply(x, weight, bias)
    assert torch.equal(fast.multiply(x.transpose(0, 1), weight, bias), found.transpose(0, 1))
    assert torch.equal(found, fast.multiply(x.view(6, 100), weight, bias.clone()).view(2, 3, 9))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", SHAPES)
def test_quantizing_as_specified(fast: Kernel, bits: int, shape: tuple[int, int]) -> None:
    """INT8 is the same to the bit. INT4 adds up in another order, so that a weight in the middle between two levels may
    go to either and the line through them turns a little: the error of the whole is the same within a thousandth."""
    weight = random(*shape)
    found, wanted = (PackedMatrix.empty(bits, *shape) for _ in range(2))
    fast.quantize(weight, found)
    quantizing._fill(weight, wanted)
    if bits == 8:
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(found.parts(), wanted.parts(), strict=True))
    errors = [(packed.dequantize() - weight).norm().item() for packed in (found, wanted)]
    assert errors[0] == pytest.approx(errors[1], rel=1e-3, abs=1e-6)
    equal = [(ours == theirs).float().mean() for ours, theirs in zip(found.parts(), wanted.parts(), strict=True)]
    assert min(equal) > 0.98


def test_several_threads_at_once(fast: Kernel) -> None:
    weights = [quantize(random(300, 576, seed=seed), 4 + 4 * (seed % 2)) for seed in range(4)]
    x = random(5, 576)
    wanted = [fast.multiply(x, weight, None) for weight in weights]
    wrong = []

    def multiply(number: int) -> None:
        for _ in range(100):
            if not torch.equal(fast.multiply(x, weights[number], None), wanted[number]):
                wrong.append(number)

    at_once(multiply)
    assert not wrong


FORK = """
import os, torch
from models.kernels import Kernel, build
fast = Kernel(build(), threads=3)
x, weight = torch.ones(1, 4096), torch.ones(512, 4096).half()
fast.multiply_halves(x, weight, None)
child = os.fork()
right = bool((fast.multiply_halves(x, weight, None) == 4096).all())
if child == 0:
    os._exit(0 if right else 3)
assert right and os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


def test_after_a_fork() -> None:
    """Threads stay behind in the parent; the child starts its own. The process ends while they sleep."""
    root = Path(kernels.__file__).parents[2]
    subprocess.run([sys.executable, "-c", FORK], cwd=root, timeout=120, check=True)


def test_layers_take_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """FP16 weights are multiplied where they lie; nothing else goes to C."""
    made = []
    monkeypatch.setattr(layers, "kernel", lambda: made.append(None))
    linear = layers.Linear(100, 9)
    linear.weight.data, linear.bias.data = random(9, 100), random(9)
    linear(random(1, 100))  # float32
    linear.half()(random(1, 100).half())
    layers.multiply(random(1, 9), linear.weight.t())  # not row after row
    assert made == []
    linear(random(300, 100))
    embedding = layers.Embedding(9, 100)
    embedding.weight.data = random(9, 100).half()
    embedding.as_linear(random(1, 1, 100))
    assert len(made) == 2


@torch.no_grad()
def test_fp16_layer_equals_the_widened_one(monkeypatch: pytest.MonkeyPatch) -> None:
    linear = layers.Linear(100, 9)
    linear.weight.data, linear.bias.data = random(9, 100).half(), random(9)
    x = random(1, 5, 100)
    found = linear(x)
    monkeypatch.setattr(layers, "kernel", lambda: None)
    torch.testing.assert_close(found, linear(x), atol=1e-5, rtol=1e-6)


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A machine where nothing was built yet and no compiler is installed; returns the folder of its programs."""
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setattr(kernels.platformdirs, "user_cache_path", lambda *_, **__: tmp_path / "cache")
    monkeypatch.setattr(kernels.importlib.util, "find_spec", lambda name: None)
    for cached in (kernels.kernel, kernels._kernel):
        cached.cache_clear()
    yield programs
    for cached in (kernels.kernel, kernels._kernel):
        cached.cache_clear()


def compiler(programs: Path, name: str, *lines: str) -> None:
    (programs / name).write_text("\n".join(["#!/bin/sh", *lines]))
    (programs / name).chmod(0o755)


def works_without(named: str) -> None:
    """There is one warning, and PyTorch multiplies."""
    weight, bias = quantizing.Quants.of(8, torch.arange(20 * 96).view(20, 96) % 99, random(20, 3)).pack(), random(20)
    x = random(3, 96)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(3):
            assert kernels.kernel() is None
            found = QuantizedLinear(weight, torch.nn.Parameter(bias))(x)
            assert torch.equal(found, F.linear(x, weight.dequantize()) + bias)
    assert len(seen) == 1
    text = str(seen[0].message)
    assert named in text and "slower" in text and "\n" not in text


def test_without_a_compiler(fresh: Path) -> None:
    works_without("pip install ziglang")


@pytest.mark.parametrize(
    ("lines", "named"),
    [
        (["echo 'first line' >&2", "echo 'boom: no such header' >&2", "exit 1"], "boom: no such header"),
        (["exit 3"], "cc ended with 3"),
        (["exec /bin/sleep 30"], "cc was not done after 0.5 seconds"),
        (["while [ $1 != -o ]; do shift; done", "echo rubbish > $2"], "can't be used"),
        ([], "can't be used"),
    ],
    ids=["fails", "fails silently", "hangs", "writes rubbish", "writes nothing"],
)
def test_broken_compiler(fresh: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str], named: str) -> None:
    monkeypatch.setattr(kernels, "PATIENCE", 0.5)
    compiler(fresh, "cc", *lines)
    works_without(named)
    left = list((fresh.parent / "cache").rglob("*"))
    assert [path.name for path in left] == ["kernels"]


def test_no_place_to_build_in(fresh: Path) -> None:
    (fresh.parent / "cache").write_text("a file where the folder would be")
    compiler(fresh, "cc", "exit 0")
    works_without("can't be used")


def test_the_next_compiler_is_tried(
    library: Path, fresh: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    """And what it built is found again without any."""
    compiler(fresh, "cc", "exit 1")
    compiler(fresh, "gcc", "while [ $1 != -o ]; do shift; done", f"exec /bin/cp {library} $2")
    assert isinstance(kernels.kernel(), Kernel)
    for program in fresh.iterdir():
        program.unlink()
    kernels.kernel.cache_clear()
    kernels._kernel.cache_clear()
    assert isinstance(kernels.kernel(), Kernel)
    assert not recwarn.list
