"""GGUF files: each family as it was, each storage type as the gguf package decodes it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
import torch
from gguf import GGMLQuantizationType as Kind

import models
from models import CheckpointError
from models.formats import open_checkpoint
from models.formats.gguf_file import GGUFFile
from models.formats.gguf_metadata import Metadata
from models.formats.gguf_types import ENCODINGS, READERS
from models.quantize import quantize
from tests import gguf_sources
from tests.tiny import CHATML_CONTROLS, LINES, LLAMA, build, byte_level_tokenizer, write_gguf


def exact(blocks: torch.Tensor) -> torch.Tensor:
    return torch.zeros(1)


def half(blocks: torch.Tensor) -> torch.Tensor:
    return blocks.abs() * 2**-11


def q8_0(blocks: torch.Tensor) -> torch.Tensor:
    """Half a step of absmax/127, and the fp16 rounding of the scale."""
    largest = blocks.abs().amax(-1, keepdim=True)
    return largest / 127 / 2 + largest * 2**-11


def q4_0(blocks: torch.Tensor) -> torch.Tensor:
    """Steps of absmax/8 from -8 to 7: half a step, or a whole one at the far end of the side without an eighth."""
    largest = blocks.abs().amax(-1, keepdim=True)
    return largest / 8 + largest * 2**-11


def q4_1(blocks: torch.Tensor) -> torch.Tensor:
    """Half of fifteen steps from the smallest to the largest value, scale and minimum rounded to fp16."""
    span = blocks.amax(-1, keepdim=True) - blocks.amin(-1, keepdim=True)
    return span / 15 / 2 + (span + blocks.abs().amax(-1, keepdim=True)) * 2**-11


ROUNDING = {Kind.F32: exact, Kind.F16: half, Kind.Q4_0: q4_0, Kind.Q4_1: q4_1, Kind.Q8_0: q8_0}


@pytest.mark.parametrize("kind", ROUNDING, ids=lambda kind: kind.name)
def test_storage_types(tmp_path: Path, kind: Kind) -> None:
    source = build(LLAMA)
    write_gguf(tmp_path / "tiny.gguf", source, LLAMA, kind)
    read = models.load(tmp_path / "tiny.gguf", tier="fp32").model.state_dict()
    assert read.keys() == source.state_dict().keys()
    for name, tensor in source.state_dict().items():
        if tensor.ndim == 1:
            assert torch.equal(read[name], tensor)
            continue
        blocks = tensor.unflatten(-1, (-1, 32))
        error = (read[name].unflatten(-1, (-1, 32)) - blocks).abs()
        assert (error <= ROUNDING[kind](blocks) + 1e-7).all(), name
        assert kind is Kind.F32 or error.max() > 0


@pytest.mark.parametrize(
    "changes",
    [{}, {"tie_word_embeddings": True}, {"num_key_value_heads": 8, "rope_theta": 500000.0}],
    ids=["gqa", "tied", "mha"],
)
def test_whole_model(tmp_path: Path, changes: dict) -> None:
    """The config comes back too: the same logits as before the file was written."""
    source = build(LLAMA | changes)
    write_gguf(tmp_path / "tiny.gguf", source, LLAMA | changes)
    loaded = models.load(tmp_path / "tiny.gguf", tier="fp32")
    assert (loaded.family, loaded.context) == ("llama", 256)
    ids = torch.randint(320, (1, 50), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(loaded.model(ids), source(ids), atol=1e-5, rtol=0)


def test_llama3_frequency_factors(tmp_path: Path) -> None:
    """Llama 3.1 files carry the scaled frequencies as divisors; the result is that of the config's rule."""
    rule = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    config = LLAMA | {"rope_scaling": rule}
    source = build(config)
    scaled = source.frequencies(torch.zeros(1, 1, dtype=torch.int64), None)
    plain = build(LLAMA).frequencies(torch.zeros(1, 1, dtype=torch.int64), None)
    write_gguf(tmp_path / "tiny.gguf", source, config, extra={"rope_freqs.weight": (plain / scaled).numpy()})
    ids = torch.randint(320, (1, 200), generator=torch.Generator().manual_seed(0))
    ours = models.load(tmp_path / "tiny.gguf", tier="fp32").model(ids)
    torch.testing.assert_close(ours, source(ids), atol=1e-4, rtol=0)


def test_linear_scaling(tmp_path: Path) -> None:
    config = LLAMA | {"rope_scaling": {"type": "linear", "factor": 4.0}}
    source = build(config)
    write_gguf(tmp_path / "tiny.gguf", source, config)
    ids = torch.randint(320, (1, 50), generator=torch.Generator().manual_seed(0))
    ours = models.load(tmp_path / "tiny.gguf", tier="fp32").model(ids)
    torch.testing.assert_close(ours, source(ids), atol=1e-5, rtol=0)


@pytest.mark.parametrize("adds_bos", [False, True])
def test_tokenizer_inside(tmp_path: Path, adds_bos: bool) -> None:
    inner = byte_level_tokenizer()
    write_gguf(tmp_path / "tiny.gguf", build(LLAMA), LLAMA, tokenizer=inner, adds_bos=adds_bos)
    tokenizer = models.load_tokenizer(tmp_path / "tiny.gguf")
    for line in LINES:
        assert tokenizer.encode(line) == inner.encode(line).ids
        assert tokenizer.decode(tokenizer.encode(line)) == line
    assert tokenizer.controls == {name: number for number, name in enumerate(CHATML_CONTROLS)}
    assert tokenizer.prefix_ids == ([0] if adds_bos else [])
    assert not set(tokenizer.encode(" ".join(CHATML_CONTROLS))) & set(tokenizer.controls.values())
    assert tokenizer.eos_id == LLAMA["eos_token_id"]


@pytest.mark.parametrize("name", gguf_sources.SOURCES)
def test_every_family_is_as_its_source(name: str, tmp_path: Path) -> None:
    source = gguf_sources.SOURCES[name]()
    loaded = models.load(gguf_sources.write(tmp_path / "tiny.gguf", source), tier="fp32")
    ids = torch.randint(300, (1, 64), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(loaded.model(ids), source.logits(ids).float(), atol=1e-4, rtol=0)
    assert (loaded.family, loaded.context) == (source.architecture, gguf_sources.CONTEXT)


def state(path: Path, source: gguf_sources.Source, kind: Kind | Callable[[str], Kind]) -> dict[str, torch.Tensor]:
    return models.load(gguf_sources.write(path, source, kind), tier="fp32").model.state_dict()


@pytest.mark.parametrize("kind", [*READERS, *ENCODINGS], ids=lambda kind: kind.name)
def test_every_type_is_what_the_package_decodes(kind: Kind, tmp_path: Path) -> None:
    source = gguf_sources.llama(hidden=256, inner=256)
    ours = state(tmp_path / "tiny.gguf", source, kind)
    for name, wanted in state(tmp_path / "floats.gguf", gguf_sources.decoded(source, kind), Kind.F32).items():
        assert torch.equal(ours[name], wanted), name


def mixed(name: str) -> Kind:
    """As quantizers do: some tensors finer than others, q, k and v of one block among them."""
    return {"attn_v.weight": Kind.Q8_0, "attn_k.weight": Kind.Q5_1, "output.weight": Kind.F16}.get(
        name.removeprefix("blk.0."), Kind.Q4_0
    )


KINDS = [pytest.param(kind, id=getattr(kind, "name", "mixed")) for kind in (Kind.F16, Kind.Q4_0, Kind.Q5_0, mixed)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["bloom", "baichuan-7b", "chatglm", "glm"])
def test_rows_are_put_back_in_every_type(name: str, kind: Kind | Callable[[str], Kind], tmp_path: Path) -> None:
    source = gguf_sources.SOURCES[name]()
    ours = state(tmp_path / "tiny.gguf", source, kind)
    for name, wanted in state(tmp_path / "floats.gguf", gguf_sources.decoded(source, kind), Kind.F32).items():
        assert torch.equal(ours[name], wanted), name


@pytest.mark.parametrize("kind", [Kind.Q8_0, Kind.Q5_1], ids=["taken over", "encoded"])
def test_baichuan2_s_quantized_head_is_normalised(kind: Kind, tmp_path: Path) -> None:
    source = gguf_sources.baichuan2_7b()
    path = gguf_sources.write(
        tmp_path / "tiny.gguf", source, lambda name: kind if name == "output.weight" else Kind.F16
    )
    head = gguf_sources.decoded(source, kind).tensors["output.weight"]
    ours = models.load(path, tier="fp32").model.lm_head.weight
    torch.testing.assert_close(ours, head / head.norm(dim=1, keepdim=True), atol=2**-24, rtol=2**-10)  # halves


def test_joined_matrices_are_taken_over(tmp_path: Path) -> None:
    source = gguf_sources.baichuan_7b()
    wanted = state(tmp_path / "floats.gguf", gguf_sources.decoded(source, Kind.Q4_1), Kind.F32)
    loaded = models.load(gguf_sources.write(tmp_path / "tiny.gguf", source, Kind.Q4_1), tier="int4")
    packed = loaded.model.get_submodule("model.layers.0.self_attn.W_pack").weight
    assert packed.bits == 4
    assert torch.equal(packed.dequantize(), wanted["model.layers.0.self_attn.W_pack.weight"])


@pytest.mark.parametrize("bits", [4, 8])
def test_encoded_matrices_are_quantized_from_their_values(bits: int, tmp_path: Path) -> None:
    source = gguf_sources.llama(hidden=256, inner=256)
    path = gguf_sources.write(tmp_path / "tiny.gguf", source, Kind.Q6_K)
    floats = models.load(path, tier="fp32").model.state_dict()
    loaded = models.load(path, tier=f"int{bits}").model
    for name in ("model.layers.1.self_attn.q_proj", "model.layers.2.mlp.down_proj"):
        wanted = quantize(floats[f"{name}.weight"], bits)
        assert torch.equal(loaded.get_submodule(name).weight.dequantize(), wanted.dequantize())


@pytest.mark.parametrize(
    ("kind", "tier", "kept"),
    [
        (Kind.Q4_0, "int4", False),
        (Kind.Q4_0, "int8", False),
        (Kind.Q8_0, "int8", False),
        (Kind.Q8_0, "int4", True),
        (Kind.Q4_K, "int4", True),
        (Kind.F16, "int8", True),
    ],
)
def test_what_had_to_be_quantized_is_kept(kind: Kind, tier: str, kept: bool, tmp_path: Path) -> None:
    path = gguf_sources.write(tmp_path / "tiny.gguf", gguf_sources.llama(hidden=256, inner=256), kind)
    first = models.load(path, tier=tier, store=tmp_path / "store")
    assert (tmp_path / "store").exists() == kept
    again = models.load(path, tier=tier, store=tmp_path / "store")
    ids = torch.arange(20)[None]
    assert torch.equal(first.model(ids), again.model(ids))


@pytest.mark.parametrize(
    ("kind", "quantized", "precision"),
    [
        (Kind.F32, 0, 16), (Kind.BF16, 0, 16), (Kind.Q8_0, 8, 8), (Kind.Q4_1, 4, 4),
        (Kind.Q6_K, 0, 8), (Kind.Q5_0, 0, 8), (Kind.Q4_K, 0, 8), (Kind.Q3_K, 0, 4), (Kind.TQ2_0, 0, 4),
        (lambda name: Kind.Q6_K if name == "output.weight" else Kind.Q4_0, 4, 4),
    ],
)  # fmt: skip
def test_what_a_file_is_worth(kind: Kind, quantized: int, precision: int, tmp_path: Path) -> None:
    path = gguf_sources.write(tmp_path / "tiny.gguf", gguf_sources.llama(hidden=256, inner=256), kind)
    checkpoint = open_checkpoint(path)
    assert (checkpoint.quantized, checkpoint.precision) == (quantized, precision)


def test_bloom_without_a_length_gets_the_family_s(tmp_path: Path) -> None:
    """llama.cpp's converter writes the hidden size then."""
    source = gguf_sources.bloom()
    path = gguf_sources.write(tmp_path / "tiny.gguf", source, values={"arch.context_length": 96})
    assert models.load(path).context == 2048


def test_ids_that_end_a_reply(tmp_path: Path) -> None:
    names = ("eos", "eot", "eom", "bos")
    ends = {f"tokenizer.ggml.{name}_token_id": number for number, name in enumerate(names, 5)}
    loaded = models.load(gguf_sources.write(tmp_path / "tiny.gguf", gguf_sources.glm(), values=ends))
    assert loaded.stop_ids == loaded.checkpoint.chat_hints().eos_ids == {5, 6, 7}


def test_older_files_call_the_linear_factor_otherwise(tmp_path: Path) -> None:
    path = gguf_sources.write(tmp_path / "tiny.gguf", gguf_sources.llama(), values={"arch.rope.scale_linear": 4.0})
    assert open_checkpoint(path).config["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}


def test_chatglm2_32k_divides_positions(tmp_path: Path) -> None:
    """Its ratio of 16 is written as a base, which no converter can tell from the others'."""
    path = gguf_sources.write(tmp_path / "tiny.gguf", gguf_sources.glm(ratio=16.0))
    assert models.load(path).model.args.rope_ratio_scales == "positions"


def test_no_tokenizer_inside(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", build(LLAMA), LLAMA)
    loaded = models.load(tmp_path / "tiny.gguf")
    with pytest.raises(CheckpointError, match="tiny.gguf carries a tokenizer of kind 'none'"):
        loaded.tokenizer.encode("text")


def test_texts_of_the_header_are_read_when_wanted(tmp_path: Path) -> None:
    inner = byte_level_tokenizer()
    write_gguf(tmp_path / "tiny.gguf", build(LLAMA), LLAMA, tokenizer=inner)
    assert open_checkpoint(tmp_path / "tiny.gguf").config["vocab_size"] == LLAMA["vocab_size"]
    metadata = Metadata(tmp_path / "tiny.gguf", GGUFFile(tmp_path / "tiny.gguf").values)
    assert metadata.value("tokenizer.ggml.tokens")[:3] == list(CHATML_CONTROLS)
    reader = gguf.GGUFReader(tmp_path / "tiny.gguf")
    for key, field in reader.fields.items():
        if not key.startswith("GGUF."):
            assert metadata.value(key) == field.contents()
