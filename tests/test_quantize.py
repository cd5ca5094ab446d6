"""Packed INT8 and INT4: the layout, the rounding beside GGUF's own formats, and what files bring taken over exactly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
import torch
from gguf import GGMLQuantizationType as Kind

from models import quantize as quantizing
from models.formats import GGUFCheckpoint
from models.quantize import GROUP, PackedMatrix, Quants, quantize
from tests.tiny import LLAMA, build, write_gguf

SHAPES = [(1, 1), (7, 31), (8, 32), (9, 33), (40, 100), (64, 96)]


def random_quants(bits: int, rows: int, columns: int, seed: int = 0) -> tuple[Quants, torch.Tensor]:
    """Random integers, scales and minimums; and integer * scale + minimum, written down without any layout."""
    generator = torch.Generator().manual_seed(seed)
    low, high = (0, 16) if bits == 4 else (-128, 128)
    integers = torch.randint(low, high, (rows, columns), generator=generator)
    scales, minimums = (torch.randn(rows, -(-columns // GROUP), generator=generator).half() for _ in range(2))
    wide, lowest = (part.float().repeat_interleave(GROUP, 1)[:, :columns] for part in (scales, minimums))
    if bits == 8:
        return Quants.of(bits, integers, scales), integers * wide
    return Quants.of(bits, integers, scales, minimums), integers * wide + lowest


def normal(rows: int, columns: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(1)) / columns**0.5


def heavy_tailed(rows: int, columns: int) -> torch.Tensor:
    """Student's t with three degrees of freedom: a few weights are far outside, as in real models."""
    parts = torch.randn(4, rows, columns, generator=torch.Generator().manual_seed(2))
    return parts[0] / (parts[1:].pow(2).mean(0)).sqrt() / columns**0.5


def relative_error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((found - wanted).norm() / wanted.norm()).item()


@pytest.fixture(params=["kernel", "specification"])
def fill(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Quantizing by the kernel, and as without one."""
    if request.param == "specification":
        monkeypatch.setattr(quantizing, "kernel", lambda: None)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", SHAPES)
def test_packing_changes_no_number(bits: int, shape: tuple[int, int]) -> None:
    quants, plain = random_quants(bits, *shape)
    packed = quants.pack()
    assert packed.shape == quants.shape == shape
    assert torch.equal(packed.dequantize(), plain)
    assert torch.equal(quants.float(), plain)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", SHAPES)
def test_some_rows(bits: int, shape: tuple[int, int]) -> None:
    quants, plain = random_quants(bits, *shape)
    rows = torch.tensor([shape[0] - 1, 0, shape[0] // 2, 0])
    assert torch.equal(quants.pack().select(rows), plain[rows])
    assert torch.equal(quants[rows].float(), plain[rows])


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("weights", [1, 800, 1700, 10**9])
def test_parts_are_the_whole(bits: int, weights: int) -> None:
    packed = random_quants(bits, 43, 100)[0].pack()
    parts = list(packed.split(weights))
    assert all(part.rows % 8 == 0 for part in parts[:-1])
    assert torch.equal(torch.cat([part.dequantize() for part in parts]), packed.dequantize())


def test_bits_of_a_weight() -> None:
    assert quantize(normal(64, 256), 4).nbytes * 8 / (64 * 256) == 5
    assert quantize(normal(64, 256), 8).nbytes * 8 / (64 * 256) == 8.5


@pytest.mark.parametrize("bits", [4, 8])
def test_parts_of_other_sizes_are_refused(bits: int) -> None:
    """The C kernels trust them."""
    whole = quantize(normal(16, 64), bits)
    blocks, scales, *minimums = whole.parts()
    for rows, columns in ((17, 64), (8, 64), (16, 65)):
        with pytest.raises(ValueError, match="can't have the parts"):
            PackedMatrix(bits, rows, columns, blocks, scales, *minimums)
    with pytest.raises(ValueError, match="can't have the parts"):
        PackedMatrix(12 - bits, 16, 64, blocks, scales, *minimums)
    with pytest.raises(ValueError, match="can't have the parts"):
        PackedMatrix(bits, 16, 64, blocks, scales.float(), *minimums)
    with pytest.raises(ValueError, match="can't have the parts"):
        PackedMatrix(bits, 16, 64, blocks.transpose(3, 4).contiguous().transpose(3, 4), scales, *minimums)


@pytest.mark.parametrize("made", [normal, heavy_tailed])
@pytest.mark.parametrize(("bits", "kind", "share"), [(4, Kind.Q4_0, 0.95), (4, Kind.Q4_1, 1.0), (8, Kind.Q8_0, 1.01)])
def test_error_beside_gguf(fill: None, made: Callable, bits: int, kind: Kind, share: float) -> None:
    """INT4 is no worse than Q4_1 of the same 5 bits, INT8 than Q8_0 of the same 8.5; Q4_0 has 4.5 bits."""
    weight = made(256, 512)
    theirs = torch.from_numpy(gguf.dequantize(gguf.quantize(weight.numpy(), kind), kind))
    ours = quantize(weight, bits).dequantize()
    assert 0 < relative_error(ours, weight) <= share * relative_error(theirs, weight)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", SHAPES)
def test_each_weight_is_near(fill: None, bits: int, shape: tuple[int, int]) -> None:
    """INT8: half a step of absmax/127 and the scale's rounding. INT4 may give up a little at the ends for the sum of
    squares, which is no larger than that of rounding to 15 even steps."""
    weight = normal(*shape)
    off = (quantize(weight, bits).dequantize() - weight).abs()
    for start in range(0, shape[1], GROUP):
        group, part = weight[:, start : start + GROUP], off[:, start : start + GROUP]
        if bits == 8:
            largest = group.abs().amax(1, keepdim=True)
            assert (part <= largest / 127 / 2 * 1.001 + largest * 2**-11).all()
        else:  # the last group is filled up with zeros
            span = group.amax(1).clamp(min=0) - group.amin(1).clamp(max=0)
            bound = span / 15 / 2 + span * 2**-10
            assert (part.pow(2).sum(1) <= GROUP * bound.pow(2) + 1e-12).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_nothing_and_constants(fill: None, bits: int) -> None:
    weight = torch.zeros(24, 96)
    weight[3] = 0.75
    weight[4] = -2.5
    weight[5, 32:64] = 1024
    found = quantize(weight, bits).dequantize()
    assert torch.equal(found[:3], weight[:3]) and torch.equal(found[6:], weight[6:])
    # INT4's minimum is the constant; INT8's scale, a 127th of it, is rounded.
    torch.testing.assert_close(found, weight, atol=0, rtol=0 if bits == 4 else 2**-11)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("size", [1e-30, 1e-6, 1e3])
def test_tiny_and_large_weights(fill: None, bits: int, size: float) -> None:
    """Scales are multiples of 2^-24: below that weights become zeros, and their errors stay as small."""
    weight = normal(16, 64) * size
    error = (quantize(weight, bits).dequantize() - weight).abs().max()
    assert error <= max(weight.abs().max() / (14 if bits == 4 else 250), 127 * 2**-25)


@pytest.mark.parametrize("bits", [4, 8])
def test_weights_beyond_half_precision(fill: None, bits: int) -> None:
    """Scales and minimums end at 65504: what is larger is cut off, and stays a number with its sign."""
    weight = normal(16, 64) * 1e38
    weight[:, ::2] = weight[:, ::2].abs()
    weight[:, 1::2] = -weight[:, 1::2].abs()
    found = quantize(weight, bits).dequantize()
    assert found.isfinite().all()
    assert (found.sign() == weight.sign()).all()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_sources(fill: None, bits: int, dtype: torch.dtype) -> None:
    weight = normal(40, 100).to(dtype)
    assert torch.equal(quantize(weight, bits).dequantize(), quantize(weight.float(), bits).dequantize())


@pytest.mark.parametrize("bits", [4, 8])
def test_part_by_part_is_the_same(fill: None, bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = quantize(normal(43, 100), bits)
    monkeypatch.setattr(quantizing, "AT_ONCE", 1000)
    parts = quantize(normal(43, 100).t().contiguous().t(), bits)  # columns first in memory
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(parts.parts(), whole.parts(), strict=True))


@pytest.mark.parametrize("kind", [Kind.Q4_0, Kind.Q4_1, Kind.Q8_0], ids=lambda kind: kind.name)
def test_gguf_is_taken_over_exactly(tmp_path: Path, kind: Kind) -> None:
    source = build(LLAMA)
    for parameter in source.parameters():
        parameter.data[..., ::17] *= 100  # outliers, and weights of every sign at the scale's end
    write_gguf(tmp_path / "tiny.gguf", source, LLAMA, kind)
    reader = gguf.GGUFReader(tmp_path / "tiny.gguf")
    matrices = [tensor for tensor in reader.tensors if tensor.tensor_type is kind]
    assert len(matrices) == 2 + 7 * LLAMA["num_hidden_layers"]
    checkpoint = GGUFCheckpoint(tmp_path / "tiny.gguf")
    for tensor in matrices:
        wanted = torch.from_numpy(gguf.dequantize(tensor.data, kind))
        assert torch.equal(checkpoint.read(tensor.name).pack().dequantize(), wanted)
