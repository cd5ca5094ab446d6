"""`python app.py --inspect PATH`: what a path is, and what it lacks, in agreement with what loading it says."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import models
from chatapp import inspection
from chatapp.settings import SettingsError, parse
from models import CheckpointError, formats
from models.formats import StoredCheckpoint, open_checkpoint
from models.registry import empty_model
from tests import gguf_sources, test_meta, test_parts, tiny
from tests.configs import CHECKPOINTS
from tests.tiny import BLOOM, CHATGLM2, LLAMA

CODE = Path(__file__).parent.parent
WEIGHTS = "model.safetensors"


def folder(path: Path, config: dict = LLAMA) -> Path:
    tiny.save_folder(path, config, tiny.byte_level_tokenizer())
    return path


def gguf(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    tiny.write_gguf(path, tiny.build(LLAMA), LLAMA, tokenizer=tiny.byte_level_tokenizer())
    return path


def change(path: Path, **tensors: torch.Tensor | None) -> None:
    """Puts tensors into a folder's weights, or takes them out."""
    changed = load_file(path / WEIGHTS) | {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    save_file({name: tensor for name, tensor in changed.items() if tensor is not None}, path / WEIGHTS)


def pickled(path: Path) -> Path:
    folder(path)
    torch.save(load_file(path / WEIGHTS), path / "pytorch_model.bin")
    (path / WEIGHTS).unlink()
    return path


def published_int4(path: Path) -> Path:
    """As the ChatGLM authors wrote it."""
    path.mkdir()
    test_parts.save(path, CHATGLM2, 4)
    tiny.byte_level_tokenizer().save(str(path / "tokenizer.json"))
    return path


def meta(path: Path) -> Path:
    """In two shards."""
    path.mkdir()
    test_meta.save(path, test_meta.llama(), shards=2)
    (path / "tokenizer.model").write_bytes(tiny.piece_model())
    return path


FORMS = {
    "safetensors": (folder, "Hugging Face folder", "BPE"),
    "bin": (pickled, "Hugging Face folder", "BPE"),
    "int4": (published_int4, "Hugging Face folder", "BPE"),
    "gguf": (lambda path: gguf(path / "tiny.gguf"), "GGUF file", "BPE"),
    "gguf folder": (lambda path: gguf(path / "tiny.gguf").parent, "GGUF file", "BPE"),
    "meta": (meta, "folder in Meta's form", "SentencePiece"),
}


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> str:
    return request.param


def test_a_checkpoint_of_each_form(form: str, tmp_path: Path) -> None:
    write, name, tokenizer = FORMS[form]
    path = write(tmp_path / "tiny")
    report = models.inspect(path)
    assert (report.problems, report.kind, report.path, report.form) == ((), "checkpoint", path, name)
    loaded = models.load(path)
    assert (report.family, report.architecture, report.context) == (loaded.family, loaded.architecture, loaded.context)
    assert report.parameters == models.footprint(loaded.checkpoint.config).parameters
    assert report.nbytes == loaded.checkpoint.nbytes()
    assert (report.tokenizer, report.vocabulary) == (tokenizer, len(loaded.tokenizer))
    assert report.chat_format == loaded.chat_format.title
    assert (report.leftovers, report.unread, report.inside, report.prefix_rows) == ((), {}, (), 0)


def test_an_outline_has_the_names_and_shapes_that_are_read(form: str, tmp_path: Path) -> None:
    same_outline(open_checkpoint(FORMS[form][0](tmp_path / "tiny")))


def same_outline(checkpoint: StoredCheckpoint) -> None:
    outline = {name: tensor.shape for name, tensor in checkpoint.outline()}
    assert outline == {name: weight.shape for name, weight in checkpoint.tensors()}
    assert all(tensor.is_meta for _, tensor in checkpoint.outline())


@pytest.mark.parametrize("name", gguf_sources.SOURCES)
def test_gguf_of_every_family(name: str, tmp_path: Path) -> None:
    path = gguf_sources.write(tmp_path / "tiny.gguf", gguf_sources.SOURCES[name]())
    same_outline(open_checkpoint(path))
    report = models.inspect(path)
    assert (report.architecture, report.leftovers) == (models.load(path).architecture, ())
    assert ["tokenizer" in problem for problem in report.problems] == [True]


def test_every_form_is_tried() -> None:
    assert {name for _, name, _ in FORMS.values()} == {form.form for form in formats.FORMS}


def without_a_tensor(path: Path) -> None:
    change(path, model__norm__weight=None)


def with_a_stranger(path: Path) -> None:
    change(path, model__extra=torch.ones(2))


def with_another_shape(path: Path) -> None:
    change(path, model__norm__weight=torch.ones(3))


def without_weights(path: Path) -> None:
    (path / WEIGHTS).unlink()


def without_a_shard(path: Path) -> None:
    (path / WEIGHTS).rename(path / "model-00001-of-00002.safetensors")


def cut_off(path: Path) -> None:
    data = (path / WEIGHTS).read_bytes()
    (path / WEIGHTS).write_bytes(data[:-10])


def with_a_damaged_config(path: Path) -> None:
    (path / "config.json").write_text("{")


def quantized_by_others(path: Path) -> None:
    (path / "config.json").write_text(json.dumps(LLAMA | {"quantization_config": {"quant_method": "gptq"}}))


def with_tensors_of_others(path: Path) -> None:
    change(path, model__layers__0__self_attn__q_proj__qweight=torch.ones(4, 4, dtype=torch.int32))


def with_integers(path: Path) -> None:
    change(path, model__norm__weight=torch.ones(64, dtype=torch.int32))


def of_another_architecture(path: Path) -> None:
    (path / "config.json").write_text(json.dumps(LLAMA | {"model_type": "qwen2"}))


BREAK = (
    without_a_tensor,
    with_a_stranger,
    with_another_shape,
    without_weights,
    without_a_shard,
    cut_off,
    with_a_damaged_config,
    quantized_by_others,
    with_tensors_of_others,
    with_integers,
    of_another_architecture,
)


@pytest.mark.parametrize("damage", BREAK, ids=lambda damage: damage.__name__)
def test_what_is_wrong_is_what_loading_says(damage: Callable[[Path], None], tmp_path: Path) -> None:
    path = folder(tmp_path / "tiny")
    damage(path)
    with pytest.raises(CheckpointError) as caught:
        models.load(path)
    assert models.inspect(path).problems == (str(caught.value),)


def test_one_problem_does_not_hide_another(tmp_path: Path) -> None:
    path = folder(tmp_path / "tiny")
    without_a_tensor(path)
    (path / "tokenizer.json").unlink()
    report = models.inspect(path)
    tensors, tokenizer = report.problems
    assert "1 tensors are missing" in tensors and "model.norm.weight" in tensors
    assert "tokenizer.json is missing" in tokenizer
    assert report.parameters and report.nbytes and report.chat_format is None


def test_what_will_be_ignored(tmp_path: Path) -> None:
    path = folder(tmp_path / "tiny", BLOOM)
    head = load_file(path / WEIGHTS)["transformer.word_embeddings.weight"].clone()
    change(path, lm_head__weight=head)
    for name in ("modeling_bloom.py", "pytorch_model.bin", "flax_model.msgpack", "README.md", "merges.txt"):
        (path / name).touch()
    report = models.inspect(path)
    assert report.loads
    assert report.leftovers == ("lm_head.weight",)
    assert report.unread == {"weights": ("flax_model.msgpack", "pytorch_model.bin"), "code": ("modeling_bloom.py",)}


def test_parts_of_a_fused_tensor_are_no_leftovers(tmp_path: Path) -> None:
    """Where transformers splits what the published ChatGLM2 fuses."""
    config = CHATGLM2 | {"num_key_value_heads": 2, "model_type": "glm", "architectures": ["GlmForCausalLM"]}
    path = folder(tmp_path / "tiny", config)
    fused, first = load_file(path / WEIGHTS), "transformer.encoder.layers.0.self_attention.query_key_value"
    parts = {kind: fused[f"{first}.{kind}"].split([64, 16, 16]) for kind in ("weight", "bias")}
    split = {
        f"model.layers.0.self_attn.{part}_proj.{kind}": tensor.clone()
        for kind, tensors in parts.items()
        for part, tensor in zip("qkv", tensors, strict=True)
    }
    save_file({name: tensor for name, tensor in fused.items() if first not in name} | split, path / WEIGHTS)
    report = models.inspect(path)
    assert (report.problems, report.leftovers) == ((), ())


def prefixed(path: Path, rows: int = 5) -> dict[str, torch.Tensor]:
    """A P-tuning folder for the tiny ChatGLM2."""
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(CHATGLM2 | {"pre_seq_len": rows, "prefix_projection": False}))
    tensors = {"transformer.prefix_encoder.embedding.weight": torch.ones(rows, 3 * 2 * 2 * 8)}
    save_file(tensors, path / WEIGHTS)
    return tensors


def test_a_prefix_and_a_checkpoint_with_one(tmp_path: Path) -> None:
    tensors = prefixed(tmp_path / "prefix")
    report = models.inspect(tmp_path / "prefix")
    assert (report.kind, report.architecture, len(report.problems)) == ("adapter", None, 1)
    assert "is no model" in report.problems[0]
    whole = folder(tmp_path / "whole", CHATGLM2 | {"pre_seq_len": 5})
    assert "prefix_encoder.embedding.weight is missing" in models.inspect(whole).problems[0]
    save_file(load_file(whole / WEIGHTS) | tensors, whole / WEIGHTS)
    report = models.inspect(whole)
    assert (report.problems, report.prefix_rows, report.leftovers) == ((), 5, ())


def test_an_adapter_says_of_what(tmp_path: Path) -> None:
    about = {"peft_type": "LORA", "base_model_name_or_path": "huggyllama/llama-7b"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(about))
    report = models.inspect(tmp_path)
    assert (report.kind, len(report.problems)) == ("adapter", 1)
    assert "changes huggyllama/llama-7b and is no model" in report.problems[0]
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "IA3"}))
    why, what = models.inspect(tmp_path).problems
    assert "type IA3" in why and "a model that it does not name" in what


def test_a_delta_is_no_model(tmp_path: Path) -> None:
    assert models.inspect(folder(tmp_path / "vicuna-7b-delta-v1.1")).kind == "adapter"


def test_a_folder_of_checkpoints_lists_them(tmp_path: Path) -> None:
    wanted = {
        folder(tmp_path / "one"),
        folder(tmp_path / "org" / "two"),
        gguf(tmp_path / "quantized" / "a.gguf"),
        gguf(tmp_path / "quantized" / "b.gguf"),
        gguf(tmp_path / "alone" / "c.gguf").parent,
    }
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").touch()
    report = models.inspect(tmp_path)
    assert (report.kind, set(report.inside)) == ("collection", wanted)
    assert "no checkpoint itself" in report.problems[0]
    assert len(models.inspect(tmp_path / "quantized").inside) == 2


def test_a_split_model_is_one(tmp_path: Path) -> None:
    (tmp_path / "split").mkdir()
    first = gguf_sources.write(tmp_path / "split" / "tiny.gguf", gguf_sources.llama(), split=13)
    for path in (first, first.parent):
        assert models.inspect(path).architecture == "llama"
    assert models.inspect(tmp_path).inside == (first.parent,)
    max(first.parent.iterdir()).unlink()
    assert "00003-of-00003.gguf is missing" in models.inspect(first).problems[0]


def test_a_part_names_the_whole(tmp_path: Path) -> None:
    path = folder(tmp_path / "tiny")
    report = models.inspect(path / WEIGHTS)
    assert (report.kind, report.inside) == ("part", (path,))


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("paper.pdf", "unknown", "neither a folder nor a .gguf file"),
        ("empty", "unknown", "a folder without config.json"),
        ("nowhere", "unknown", "does not exist"),
        ("fake.gguf", "checkpoint", "not a GGUF file"),
    ],
)
def test_what_is_nothing_of_this(name: str, kind: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "paper.pdf").write_bytes(b"%PDF-1.4")
    (tmp_path / "fake.gguf").write_bytes(b"%PDF-1.4")
    report = models.inspect(tmp_path / name)
    assert (report.kind, report.loads, report.architecture) == (kind, False, None)
    assert said in report.problems[0] and len(report.problems) == 1


def test_only_headers_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """131 GB of LLaMA-65B, none of which is on the disk: a file with a hole behind its header."""
    config = CHECKPOINTS["huggyllama/llama-65b"].config
    header, end = {}, 0
    for name, parameter in empty_model(config).named_parameters():
        start, end = end, end + 2 * parameter.numel()
        header[name] = {"dtype": "F16", "shape": list(parameter.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    (tmp_path / "config.json").write_text(json.dumps(config))
    tiny.byte_level_tokenizer().save(str(tmp_path / "tokenizer.json"))
    with (tmp_path / WEIGHTS).open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    monkeypatch.setattr(np, "memmap", None)
    report = models.inspect(tmp_path)
    assert report.problems == ()
    assert report.nbytes > 130e9 and report.parameters == CHECKPOINTS["huggyllama/llama-65b"].parameters


# What is printed


def answer(path: Path, *arguments: str) -> tuple[str, bool]:
    return inspection.inspect(parse(["--inspect", str(path), "--assume", "cuda:6GB", *arguments], {}))


def test_text_for_people(tmp_path: Path) -> None:
    path = folder(tmp_path / "tiny")
    for number in range(6):
        (path / f"code{number}.py").touch()
    text, loads = answer(path)
    lines = text.splitlines()
    assert loads and lines[0] == f"{path} can be loaded."
    facts = {line[:12].strip(): line[13:] for line in lines[2:10]}
    assert facts["model"] == "LLaMA (llama), a Hugging Face folder"
    assert facts["window"] == "256 tokens"
    assert facts["tokenizer"] == "BPE, 320 tokens"
    assert facts["ignored"] == "code0.py, code1.py, code2.py, code3.py and 2 more (code, which is never run)"
    assert "cuda:0: assumed 6 GB, 6.0 of 6.0 GiB free" in lines
    tiers = [line.split()[0] for line in lines if " cuda:0 " in line]
    assert tiers == ["fp16", "int8", "int4"]
    assert lines[-1].startswith("FP16 with its whole window of 256 tokens")


def test_a_tier_that_does_not_fit_says_why(tmp_path: Path) -> None:
    path = folder(tmp_path / "tiny")
    (path / "config.json").write_text(json.dumps(CHECKPOINTS["huggyllama/llama-7b"].config))
    text, loads = answer(path)
    assert not loads and f"{path} can't be loaded." in text
    fp16, int4 = (next(line for line in text.splitlines() if line.startswith(tier)) for tier in ("fp16", "int4"))
    assert "needs" in fp16 and int4.split()[1:3] == ["2,048", "cuda:0"]


def test_what_is_no_checkpoint_has_no_plan(tmp_path: Path) -> None:
    inside = folder(tmp_path / "tiny")
    text, loads = answer(tmp_path)
    assert (text.splitlines()[2:], loads) == ([f"  {inside}"], False)


def test_json_for_programs(tmp_path: Path) -> None:
    path = folder(tmp_path / "tiny")
    found = json.loads(answer(path, "--json")[0])
    assert (found["loads"], found["path"], found["kind"], found["family"]) == (True, str(path), "checkpoint", "llama")
    assert found["chosen"]["tier"] == "fp16"
    assert [row["tier"] for row in found["tiers"].values()] == list(found["tiers"]) == ["fp16", "int8", "int4"]
    assert found["machine"]["gpus"][0]["free"] == 6 * 2**30
    nothing = json.loads(answer(tmp_path / "nowhere", "--json")[0])
    assert (nothing["loads"], nothing["chosen"], nothing["tiers"]) == (False, None, {})
    assert nothing.keys() == found.keys()


def test_the_command_says_by_its_status_whether_it_loads(tmp_path: Path) -> None:
    path, data = folder(tmp_path / "tiny"), tmp_path / "data"
    for place, status in ((path, 0), (tmp_path / "nowhere", 1)):
        command = [sys.executable, "app.py", "--inspect", str(place), "--data", str(data)]
        finished = subprocess.run(command, cwd=CODE, capture_output=True, encoding="utf-8", timeout=120)
        assert (finished.returncode, finished.stderr) == (status, "")
        assert str(place) in finished.stdout
    assert not data.exists()


def test_inspecting_is_not_planning() -> None:
    with pytest.raises(SettingsError, match="choose one"):
        parse(["--plan", "--inspect", "x"], {})
    with pytest.raises(SettingsError, match="--table"):
        parse(["--inspect", "x", "--table"], {})
