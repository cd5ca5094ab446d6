"""Tokenizers inside GGUF files, written as llama.cpp's converters do: the same ids, controls and chat formats."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import pytest
import sentencepiece
from gguf import TokenType

import models
from models import registry
from models.chat_formats import Facts, choose_format
from models.formats import open_checkpoint
from models.tokenizer import Tokenizer
from models.tokenizers.reading import CHATGLM2_SPECIALS, CHATGLM3_SPECIALS, GLM4_SPECIALS
from tests import gguf_sources
from tests.made_tokenizers import PUBLISHED, make_folder, text_lines

CHATGLM_PADDING = 9  #: tokens behind the last one that means something


def piece_values(file: Path, specials: tuple[str, ...] | None = None) -> dict[str, Any]:
    """A sentencepiece model; with ChatGLM's special tokens behind it, and its first three pieces by other names."""
    model = sentencepiece.SentencePieceProcessor(model_proto=file.read_bytes())
    tests = {
        model.is_unknown: TokenType.UNKNOWN,
        model.is_control: TokenType.CONTROL,
        model.is_unused: TokenType.UNUSED,
        model.is_byte: TokenType.BYTE,
    }
    numbers = range(model.get_piece_size())
    pieces = [model.id_to_piece(number) for number in numbers]
    kinds = [next((kind for test, kind in tests.items() if test(n)), TokenType.NORMAL) for n in numbers]
    scores = [model.get_score(number) for number in numbers]
    if specials is not None:
        unused = [f"[PAD{number}]" for number in range(CHATGLM_PADDING)]
        pieces = ["<unk>", "<bos>", "<eos>", *pieces[3:], *specials, *unused]
        kinds += [TokenType.CONTROL] * len(specials) + [TokenType.UNUSED] * len(unused)
        scores += [0.0] * (len(specials) + len(unused))
    return _values("llama", pieces, kinds) | {"tokenizer.ggml.scores": scores}


def byte_level_values(file: Path, split: str) -> dict[str, Any]:
    spec = json.loads(file.read_text(encoding="utf-8"))
    vocabulary = spec["model"]["vocab"] | {token["content"]: token["id"] for token in spec["added_tokens"]}
    special = {token["content"] for token in spec["added_tokens"] if token["special"]}
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    kinds = [TokenType.CONTROL if token in special else TokenType.NORMAL for token in tokens]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in spec["model"]["merges"]]
    return _values("gpt2", tokens, kinds) | {"tokenizer.ggml.pre": split, "tokenizer.ggml.merges": merges}


def _values(model: str, tokens: list[str], kinds: list[TokenType]) -> dict[str, Any]:
    return {
        "tokenizer.ggml.model": model,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [int(kind) for kind in kinds],
    }


def write(path: Path, architecture: str, values: Mapping[str, Any]) -> Path:
    """A file without weights: the tokenizer, and what a config needs."""
    source = gguf_sources.SOURCES["baichuan-7b" if architecture == "baichuan" else architecture]()
    source.tensors.clear()
    return gguf_sources.write(path, source, values=values)


#: name: how it is made in tests/made_tokenizers.py, the architecture, and what the converter does of it.
CONVERTED = {
    "llama": ("llama", lambda folder: piece_values(folder / "tokenizer.model")),
    "chinese-alpaca": ("llama", lambda folder: piece_values(folder / "tokenizer.model")),
    "baichuan": ("baichuan", lambda folder: piece_values(folder / "tokenizer.model")),
    "baichuan2": (
        "baichuan",
        lambda folder: piece_values(folder / "tokenizer.model") | {"tokenizer.ggml.add_space_prefix": False},
    ),
    "chatglm2": ("chatglm", lambda folder: piece_values(folder / "tokenizer.model", CHATGLM2_SPECIALS)),
    "chatglm3": ("chatglm", lambda folder: piece_values(folder / "tokenizer.model", CHATGLM3_SPECIALS)),
    "glm4-json": ("chatglm", lambda folder: byte_level_values(folder / "tokenizer.json", "chatglm-bpe")),
    "bloom": ("bloom", lambda folder: byte_level_values(folder / "tokenizer.json", "bloom")),
    "llama-3": ("llama", lambda folder: byte_level_values(folder / "tokenizer.json", "llama-bpe")),
}


@pytest.mark.parametrize("name", CONVERTED)
def test_the_same_as_the_folder_s(name: str, tmp_path: Path) -> None:
    architecture, convert = CONVERTED[name]
    folder = make_folder(name, tmp_path / name)
    original = models.load_tokenizer(folder)
    values = convert(folder) | {"tokenizer.ggml.bos_token_id": original.prefix_ids[0] if name == "llama-3" else 1}
    written = models.load_tokenizer(write(tmp_path / "tiny.gguf", architecture, values))
    compare(written, original)


def compare(written: Tokenizer, original: Tokenizer) -> None:
    assert list(written.prefix_ids) == list(original.prefix_ids)
    assert sorted(written.controls.values()) == sorted(original.controls.values())
    draw = random.Random(0)
    parts = [*text_lines(), "  ", "\n", "\t", "…", "123", "é", "<h2>", *original.controls]
    for text in ("".join(draw.choices(parts, k=4)) for _ in range(100)):
        for place in ("start", "control", "text"):
            ids = original.encode(text, place)
            assert written.encode(text, place) == ids
        assert written.decode(ids) == original.decode(ids)


def test_ids_of_chatglm3(tmp_path: Path) -> None:
    """llama.cpp's converter names <s> and </s> otherwise; what pads the vocabulary is no token of any text."""
    folder = make_folder("chatglm3", tmp_path / "folder")
    values = piece_values(folder / "tokenizer.model", CHATGLM3_SPECIALS)
    tokenizer = models.load_tokenizer(write(tmp_path / "tiny.gguf", "chatglm", values))
    first = len(values["tokenizer.ggml.tokens"]) - CHATGLM_PADDING - len(CHATGLM3_SPECIALS)
    assert [tokenizer.controls[name] for name in CHATGLM3_SPECIALS] == list(range(first, first + 9))
    assert (tokenizer.eos_id, tokenizer.prefix_ids) == (2, [first + 1, first + 3])
    assert max(tokenizer.encode("[PAD3][gMASK]sop<|user|>")) < first


def test_tokens_added_to_pieces_are_control(tmp_path: Path) -> None:
    values = piece_values(make_folder("llama", tmp_path / "folder") / "tokenizer.model")
    size = len(values["tokenizer.ggml.tokens"])
    values["tokenizer.ggml.tokens"] += ["<|im_start|>", "<|im_end|>", "    "]
    values["tokenizer.ggml.token_type"] += [int(TokenType.USER_DEFINED)] * 3
    values["tokenizer.ggml.scores"] += [-1000.0] * 3
    tokenizer = models.load_tokenizer(write(tmp_path / "tiny.gguf", "llama", values))
    assert tokenizer.controls["<|im_end|>"] == size + 1 and "    " not in tokenizer.controls
    assert not {size, size + 1}.intersection(tokenizer.encode("a<|im_start|>b<|im_end|>"))


def test_older_files_do_not_say_how_they_split(tmp_path: Path) -> None:
    values = byte_level_values(make_folder("bloom", tmp_path / "folder") / "tokenizer.json", "bloom")
    wanted = models.load_tokenizer(write(tmp_path / "new.gguf", "bloom", values))
    del values["tokenizer.ggml.pre"]
    found = models.load_tokenizer(write(tmp_path / "old.gguf", "bloom", values))
    assert found.encode("Hello, world! 你好，世界。") == wanted.encode("Hello, world! 你好，世界。")


TEMPLATE = "{% for message in messages %}[gMASK]<sop><|user|>{{ message['content'] }}{% endfor %}"
LONG = {"arch.context_length": 131072}
SHORT = {"arch.context_length": 8192}
#: The tokenizer, what general.name says, other values, the chat format.
CHATS = [
    ("chatglm3", "Chatglm3 6b", SHORT, "chatglm3"),
    ("chatglm3", "Chatglm3 6b Base", SHORT, "plain"),
    ("chatglm2", "chatglm2-6b", {}, "chatglm2"),
    ("glm4-json", "Glm 4 9b Chat", LONG | {"tokenizer.chat_template": TEMPLATE}, "glm4"),
    ("baichuan2", "Baichuan2 7B Chat", {}, "baichuan2"),
    ("baichuan2", "Baichuan2 7B Base", {}, "plain"),
    ("baichuan", "Baichuan 13B Chat", {}, "baichuan"),
    ("baichuan", "Baichuan-7B", {}, "plain"),
    ("bloom", "Bloomz 7b1 Mt", {}, "bloomz"),
    ("bloom", "BELLE 7B 2M", {}, "belle"),
    ("bloom", "Phoenix Inst Chat 7b", {}, "phoenix"),
    ("llama", "Llama 2 7b Chat Hf", {}, "llama-2"),
    ("llama", "Vicuna 7B V1.5", {}, "vicuna"),
    ("llama", "Llama 2 7b", {}, "plain"),
    ("llama-3", "Meta Llama 3 8B Instruct", {}, "llama-3"),
]


@pytest.mark.parametrize("tokenizer, name, values, chat", CHATS)
def test_chat_formats(tokenizer: str, name: str, values: dict, chat: str, tmp_path: Path) -> None:
    architecture, convert = CONVERTED[tokenizer]
    converted = convert(make_folder(tokenizer, tmp_path / "folder"))
    path = write(tmp_path / "model-q4_k_m.gguf", architecture, converted | values | {"general.name": name})
    checkpoint = open_checkpoint(path)
    read = checkpoint.tokenizer()
    runs = registry.resolve(checkpoint.config).name
    assert choose_format(Facts(runs, checkpoint.config, read.controls, checkpoint.chat_hints()), read).name == chat


def test_ids_that_end_glm4_s_turns(tmp_path: Path) -> None:
    values = byte_level_values(make_folder("glm4-json", tmp_path / "folder") / "tokenizer.json", "chatglm-bpe")
    ends = {"eos": GLM4_SPECIALS.index("<|endoftext|>"), "eot": GLM4_SPECIALS.index("<|user|>")}
    values |= {f"tokenizer.ggml.{name}_token_id": number for name, number in ends.items()}
    checkpoint = open_checkpoint(write(tmp_path / "tiny.gguf", "chatglm", values))
    assert checkpoint.config["eos_token_id"] == list(ends.values())


# Published files, where they are at hand (see made_tokenizers.ASSETS)
if PUBLISHED:

    @pytest.mark.parametrize(
        "name, architecture, specials",
        [
            ("llama", "llama", None),
            ("baichuan2-7b", "baichuan", None),
            ("chatglm2-6b", "chatglm", CHATGLM2_SPECIALS),
            ("chinese-alpaca-49954", "llama", None),
        ],
    )
    def test_published_models(name: str, architecture: str, specials: tuple | None, tmp_path: Path) -> None:
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "tokenizer.model").write_bytes((PUBLISHED / name / "tokenizer.model").read_bytes())
        config = {"model_type": architecture, "_name_or_path": name}
        (tmp_path / "folder" / "config.json").write_text(json.dumps(config))
        values = piece_values(tmp_path / "folder" / "tokenizer.model", specials)
        written = models.load_tokenizer(write(tmp_path / "tiny.gguf", architecture, values))
        compare(written, models.load_tokenizer(tmp_path / "folder"))

    def test_published_vocabulary_file() -> None:
        path = PUBLISHED / "llama" / "ggml-vocab-llama-spm.gguf"
        assert len(gguf.GGUFReader(path).tensors) == 0
        tokenizer = models.load_tokenizer(path)
        assert (tokenizer.prefix_ids, tokenizer.eos_id) == ([1], 2)
        assert tokenizer.encode(" Hello world") == [29871, 15043, 3186]
