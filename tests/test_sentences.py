"""Every sentence that the program can say to a user has a Chinese form, and the forms hold what the sentences hold."""

from __future__ import annotations

import ast
import errno
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from chatapp.checkpoints import FAMILIES
from chatapp.downloads.hubs import HubError
from chatapp.hardware import Machine
from chatapp.planner import known_checkpoints, plan
from chatapp.sentences import HOLE, TABLES, Sentence, Table, localised
from knowledge.documents import load
from knowledge.pages import DocumentError
from models import CheckpointError, inspect
from models.formats import open_checkpoint

ROOT = Path(__file__).parent.parent
PACKAGES = ("models", "knowledge", "chatapp")
TABLE: dict[str, dict[str, str]] = json.loads(TABLES["zh"].read_text(encoding="utf-8"))
OURS, OTHERS = TABLE["ours"], TABLE["others"]

#: What only programmers, the command line or clients of the API meet, and texts of the catalogue.
APART = {
    *("models/cache.py", "models/chatglm.py", "models/fill.py", "models/quantize.py", "models/prompts.py"),
    *("chatapp/settings.py", "chatapp/inspection.py", "chatapp/texts.py", "chatapp/api.py", "chatapp/server.py"),
    *("knowledge/__main__.py", "knowledge/evaluate.py"),
}
#: Whole sentences that are no messages: prompts for models, and what the console says.
PROMPTS = ("A chat between", "Below is an", "Answer the question from", "Summarise th", "These are summaries")
CONSOLE = ("{} is ready.", "{} is no machine; say for example cuda:6GB or cpu:16GB.")
#: Names of units, formats and programs, which Chinese texts write as they are.
NAMES = (
    *(
        "B",
        "CPU",
        "CSV",
        "ChatGLM",
        "FP16",
        "GGUF",
        "GiB",
        "INT4",
        "INT8",
        "JSON",
        "LORA",
        "LoRA",
        "MB",
        "MiB",
        "NVIDIA",
    ),
    *("OCR", "Office", "P-Tuning", "PDF", "PEFT", "Python", "PyTorch", "Quatrain", "UTF-8", "base64"),
)


def filled(node: ast.AST) -> str | None:
    """A string of the source with holes for its values; None for what is no string. Holes side by side are one."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if not isinstance(node, ast.JoinedStr):
        return None
    template = "".join(part.value if isinstance(part, ast.Constant) else HOLE for part in node.values)
    return re.sub(r"\{\}(?:\.?\{\})+", HOLE, template)


def said(node: ast.AST, raised: str = "") -> Iterator[tuple[str, str]]:
    """(template, the error that says it or "") for each string below a node of the source; docstrings are none."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return
    if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
        raised = ast.unparse(node.exc.func)
    elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Error"):
        raised = ast.unparse(node.func)
    template = filled(node)
    if template is not None:
        yield template, raised
        raised = ""  # a value in a sentence is none
    for child in ast.iter_child_nodes(node):
        if not (isinstance(node, ast.JoinedStr) and isinstance(child, ast.Constant)):
            yield from said(child, raised)


def of_documents(template: str) -> str:
    """What DocumentError makes of its reason."""
    return f"{HOLE} {template}."


def wanted(template: str, raised: str) -> str | None:
    """The template that a string must have in the table; None if it is no message."""
    if " " not in template.strip() or template.startswith(PROMPTS) or template in CONSOLE:
        return None
    if raised.endswith(("DocumentError", "PasswordError")):
        return of_documents(template)
    whole = template.endswith(".") and template[:1] in "{ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    return template if (raised or whole) and re.search("[a-z]{2}", template.replace(HOLE, "")) else None


def strings(apart: bool) -> Iterator[tuple[str, str, str]]:
    """(file, template, error) of all strings in the program, with the files that are apart or without."""
    for file in sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py")):
        name = file.relative_to(ROOT).as_posix()
        if apart or name not in APART:
            for template, raised in said(ast.parse(file.read_text(encoding="utf-8"))):
                yield name, template, raised


def test_every_sentence_of_the_program_has_a_translation() -> None:
    missing = {
        f"{name}: {key!r}"
        for name, template, raised in strings(apart=False)
        if (key := wanted(template, raised)) and key not in OURS
    }
    assert not missing, "Add these to chatapp/sentences_zh.json:\n" + "\n".join(sorted(missing))


def test_no_translation_is_of_a_sentence_that_nothing_says() -> None:
    there = {template for _, template, _ in strings(apart=True)}
    there |= {of_documents(template) for template in there}
    unused = OURS.keys() - there
    assert not unused, "Take these out of chatapp/sentences_zh.json:\n" + "\n".join(sorted(unused))


def test_the_table_is_sorted_so_that_two_additions_seldom_meet() -> None:
    assert list(OURS) == sorted(OURS)
    assert not OURS.keys() & OTHERS.keys()


@pytest.mark.parametrize("sentence", [*OURS, *OTHERS])
def test_a_translation_is_chinese_and_takes_every_value(sentence: str) -> None:
    values = [f"‹{number}›" for number in range(sentence.count(HOLE))]
    chinese = {**OURS, **OTHERS}[sentence].format(*values)
    if sentence in OURS:  # of others' sentences numbers are left out
        assert all(value in chinese for value in values)
    assert not re.search(r"[,;:!?]\s|[,;:!?]$|\.$", chinese), "Chinese has its own punctuation"
    assert sentence.endswith(".") == chinese.endswith("。")


def filled_in(sentence: str) -> tuple[str, list[str]]:
    parts = sentence.split(HOLE)
    values = [f"value{number}" for number in range(len(parts) - 1)]
    return "".join(part + value for part, value in zip(parts, [*values, ""], strict=True)), values


@pytest.mark.parametrize("sentence", OURS)
def test_a_sentence_is_read_as_itself_and_no_other(sentence: str) -> None:
    said, values = filled_in(sentence)
    assert localised(said, "zh") == OURS[sentence].format(*values)


@pytest.mark.parametrize("sentence", [key for key in OURS if key.endswith(".")])
def test_a_sentence_inside_another_is_read_too(sentence: str) -> None:
    said, values = filled_in(sentence)
    assert localised(f"m could not be loaded: {said}", "zh") == f"无法加载 m：{OURS[sentence].format(*values)}"


def test_what_is_not_known_stays_as_it_is() -> None:
    assert localised("Something else went wrong.", "zh") == "Something else went wrong."
    assert localised("{0} is {missing} in %s", "zh") == "{0} is {missing} in %s"


def test_english_stays_english() -> None:
    assert localised("There is nothing to undo.", "en") == "There is nothing to undo."


def test_a_value_keeps_its_braces_and_line_ends() -> None:
    assert localised("a {0}\nb.pdf has no text; check that it is the right file.", "zh").startswith("a {0}\nb.pdf 没有")


def test_the_longest_known_part_wins() -> None:
    table = Table({"{} is {}.": "{0}是{1}。", "{} is {} and red.": "{0}是{1}和红色。", "green": "绿色"})
    assert table.read("it is green and red.").text == "it是绿色和红色。"


def latin(text: str, *allowed: object) -> str:
    """The Latin words in a text that are neither names, nor files or keys (dots, underscores), nor what is allowed."""
    for value in sorted(map(str, allowed), key=len, reverse=True):
        text = text.replace(value, "")
    text = re.sub(r"[A-Za-z0-9]*[._][\w.]+", "", text, flags=re.ASCII)
    return " ".join(word for word in re.findall(r"[A-Za-z][\w-]*", text) if word not in NAMES)


@pytest.mark.parametrize("machine", ["cuda:6GB", "cpu:16GB", "cpu:2GB", "cuda:1GB,cpu:3GB"])
@pytest.mark.parametrize("tier", ["auto", "fp16"])
def test_why_a_model_does_not_fit_is_said_in_chinese(machine: str, tier: str) -> None:
    refused = 0
    for name, config in known_checkpoints().items():
        made = plan(config, Machine.assume(machine), tier)
        if made.tier is None:
            refused += 1
            said = localised(f"{name} could not be loaded: {made.reason}", "zh")
            assert said.startswith(f"无法加载 {name}：")
            assert not latin(said, name)
            assert f"{made.window:,}" in said
    assert refused or machine == "cpu:16GB" or tier == "auto"


BROKEN = {
    "empty.pdf": b"",
    "blank.txt": b"  \n ",
    "broken.pdf": b"%PDF-1.7\n1 0 obj\n<<",
    "broken.docx": b"PK\x03\x04 and no more",
    "old.doc": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600),
    "noise.txt": bytes([0xFF, 0xFE, 0xFD]) + bytes(range(128, 256)),
    "blank.csv": b"\n\n",
    "blank.html": b"<html><body></body></html>",
    "kind.xyz": b"some",
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_wrong_with_a_document_is_said_in_chinese(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_bytes(BROKEN[name])
    with pytest.raises(DocumentError) as caught:
        load(file)
    chinese = localised(str(caught.value), "zh")
    assert name in chinese
    assert not latin(chinese, name, "UTF-16", "GB18030")


def checkpoints(folder: Path) -> Iterator[tuple[str, Path]]:
    def made(name: str, files: dict[str, bytes]) -> Path:
        place = folder / name
        place.mkdir()
        for file, content in files.items():
            (place / file).write_bytes(content)
        return place

    llama = json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}).encode()
    yield "nothing", folder / "absent"
    yield "no checkpoint", made("bare", {"notes.txt": b"none"})
    yield "no JSON", made("broken", {"config.json": b"{"})
    yield "no UTF-8", made("noise", {"config.json": b"\xff\xff"})
    yield "no object", made("listed", {"config.json": b"[]"})
    yield "a pointer", made("lfs", {"config.json": b"version https://git-lfs.github.com/spec/v1\n"})
    yield "a page", made("page", {"config.json": b"<!DOCTYPE html><html>"})
    yield "another architecture", made("other", {"config.json": b'{"model_type": "mamba"}'})
    yield "keys missing", made("short", {"config.json": llama})
    yield "no weights", made("light", {"config.json": llama})
    yield "damaged GGUF", made("bad", {"bad.gguf": b"none of it"}) / "bad.gguf"
    yield "cut GGUF", made("cut", {"cut.gguf": b"GGUF\x03\x00\x00\x00\x01"}) / "cut.gguf"


def test_what_is_wrong_with_a_checkpoint_is_said_in_chinese(tmp_path: Path) -> None:
    for what, path in checkpoints(tmp_path):
        problems = inspect(path).problems
        assert problems, what
        for problem in problems:
            chinese = localised(problem, "zh")
            values = re.findall(r"'\w+'|lacks [\w, ]+", problem)
            words = [word for value in values for word in re.findall(r"\w+", value)]
            assert not latin(chinese, path, "Git LFS", "0xff", "architectures", "None", *FAMILIES, *words), what
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path / "absent")
    assert localised(str(caught.value), "zh") == f"{tmp_path / 'absent'} 不存在；请指定模型文件夹或 .gguf 文件。"


@pytest.mark.parametrize("code", ["ENOENT", "EACCES", "ENOSPC", "EISDIR", "ENOTDIR", "EIO", "EROFS", "EMFILE"])
def test_what_the_system_says_is_chinese(code: str) -> None:
    reason = os.strerror(getattr(errno, code))
    assert not latin(localised(f"/a.bin can't be read ({reason}); check its permissions and its disk.", "zh"), "/a.bin")


def test_texts_of_the_catalogue_translate_the_sentences_in_them() -> None:
    inside = "config.json lacks vocab_size; download it again from the model's page."
    assert HubError("hub_unusable", id="a/b", reason=inside).said("zh") == (
        "a/b 无法在此使用：config.json 缺少 vocab_size，请从模型页面重新下载。"
    )
    assert "没有权限" in Sentence("storage_failed", name="x", reason="Permission denied").said("zh")
