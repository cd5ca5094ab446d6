"""Published vectors on published tokenizer files: the committed ones always, the others where they are at hand."""

from __future__ import annotations

import json
import random
from pathlib import Path

import gguf
import pytest
import sentencepiece
from tokenizers import Tokenizer

import models.tokenizer
from models.base import CheckpointError
from models.tokenizer import FastTokenizer, PieceTokenizer
from models.tokenizers import model_proto
from models.tokenizers.reading import read_tokenizer
from tests.made_tokenizers import DATA, PUBLISHED

EXPECTED = json.loads((DATA / "expected.json").read_text(encoding="utf-8"))["tokenizers"]
CONFIGS = {
    "chatglm-6b": {"model_type": "chatglm", "vocab_size": 130528},
    "chatglm2-6b": {"model_type": "chatglm"},
    "baichuan2-7b": {"model_type": "baichuan"},
}


def vectors(folder: Path) -> list:
    """The encodings of expected.json whose file lies in the folder."""
    return [
        pytest.param(folder / name, case, id=f"{name}-{at}")
        for name, entry in EXPECTED.items()
        for at, case in enumerate(entry["encode"])
        if (folder / name).is_file()
    ]


def read(file: Path) -> models.tokenizer.Tokenizer:
    """The tokenizer of one file, by the folder's reader where the file is what that reads."""
    if file.name == "chinese_sp.model":
        return PieceTokenizer(file.read_bytes())
    if file.match("llama/tokenizer.json"):
        return FastTokenizer(Tokenizer.from_file(str(file)))
    return read_tokenizer(file.parent, CONFIGS.get(file.parent.name, {}))


@pytest.mark.parametrize("file, case", [*vectors(DATA), *(vectors(PUBLISHED) if PUBLISHED else [])])
def test_published_encodings(file, case):
    tokenizer, text = read(file), case["text"]
    if file.name == "ice_text.model":  # the vectors are the model's own; our whitespace pieces come before it
        official = sentencepiece.SentencePieceProcessor(model_proto=file.read_bytes())
        assert official.encode(text) == case["ids"]
        text = text.replace("\n", "<n>").replace("\t", "<|tab|>").replace("  ", "<|blank_2|>")
        case = case | {"ids": official.encode(text)}
    start = tokenizer.prefix_ids if file.name == "tokenizer.json" else []
    assert [*start, *tokenizer.encode(case["text"])] == case["ids"]
    if "decoded" in case and file.name != "ice_text.model":
        assert tokenizer.decode(case["ids"]) == case["decoded"]


# What follows needs files that can't be committed; without them it is not collected (see made_tokenizers.ASSETS).
if PUBLISHED:

    def published(name: str) -> models.tokenizer.Tokenizer:
        return read_tokenizer(PUBLISHED / name, CONFIGS.get(name, {}))

    GREETING = "def main():\n    print('hello world')\t# greeting"
    ENCODED = [
        ("chatglm-6b", GREETING, [1616, 594, 125936, 4, 130011, 2274, 89, 7283, 398, 125686, 130008, 61, 25672]),
        ("chatglm-6b", "👋", [5, 130328, 130247, 130233, 130227]),
        ("chatglm2-6b", "\n", [30910, 13]),
        ("llama", " Hello world", [29871, 15043, 3186]),
        ("llama", "\n", [29871, 13]),
        ("llama", "  ", [1678]),
        ("llama", "Äpfel", [11585, 7810, 295]),
        ("llama", "ied 4 ½ months", [474, 287, 29871, 29946, 29871, 30226, 7378]),
        ("baichuan2-7b", "你好吗", [16829, 93122]),
        ("baichuan2-7b", "What is your name?", [3167, 1414, 1597, 2896, 74]),
        ("baichuan2-7b", "\n", [5]),
        ("baichuan2-7b", "你是谁", [92067]),
    ]

    @pytest.mark.parametrize("name, text, ids", ENCODED)
    def test_known_encodings(name, text, ids):
        assert published(name).encode(text) == ids
        assert published(name).decode(ids) == text

    CONTROLS = [
        ("chatglm-6b", {"[MASK]": 130000, "[gMASK]": 130001, "<sop>": 130004, "<eop>": 130005}),
        ("chatglm2-6b", {"[gMASK]": 64790, "sop": 64792, "eop": 64793}),
        ("chinese-alpaca-49954", {"[PAD]": 49953}),
        ("baichuan2-7b", {"<reserved_106>": 195, "<reserved_107>": 196}),
    ]

    @pytest.mark.parametrize("name, controls", CONTROLS)
    def test_control_ids(name, controls):
        tokenizer = published(name)
        assert controls.items() <= tokenizer.controls.items()
        for text in controls:
            ids = tokenizer.encode(f"a{text}b")
            assert not set(tokenizer.controls.values()).intersection(ids)
            assert tokenizer.decode(ids) == f"a{text}b"

    def test_gguf_vocabulary_equals_the_model():
        reader = gguf.GGUFReader(PUBLISHED / "llama" / "ggml-vocab-llama-spm.gguf")
        tokens, scores, kinds = (
            reader.get_field(f"tokenizer.ggml.{key}").contents() for key in ("tokens", "scores", "token_type")
        )
        proto = model_proto.build(list(zip(tokens, scores, kinds, strict=True)), bos_id=1, eos_id=2)
        rebuilt, original = PieceTokenizer(proto), published("llama")
        assert (rebuilt.controls, rebuilt.prefix_ids, rebuilt.eos_id) == (original.controls, [1], 2)
        draw = random.Random(0)
        parts = [
            "你好",
            "鱻",
            "😀",
            "the ",
            "ing",
            " tion",
            " ",
            "  ",
            "\n",
            "1234",
            "é",
            "'s",
            "<s>",
            "<0x41>",
            "\x00",
        ]
        for text in ("".join(draw.choices(parts, k=20)) for _ in range(500)):
            for place in ("start", "text"):
                assert rebuilt.encode(text, place) == original.encode(text, place)

    def test_damage_is_named(tmp_path):
        model = (PUBLISHED / "llama" / "tokenizer.model").read_bytes()
        (tmp_path / "tokenizer.model").write_bytes(model[:100_001])
        with pytest.raises(CheckpointError, match="tokenizer.model is damaged"):
            read_tokenizer(tmp_path, {})
