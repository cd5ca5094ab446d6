"""Every kind of tokenizer on small files made here: nothing lost, nothing half, no control token out of text."""

from __future__ import annotations

import json
import random

import pytest
import sentencepiece
from tokenizers import Tokenizer, normalizers, pre_tokenizers

import models
from models.base import CheckpointError
from models.tokenizer import FastTokenizer, PieceTokenizer, StreamDecoder
from models.tokenizers import model_proto
from models.tokenizers.reading import CHATGLM2_SPECIALS, GLM4_SPECIALS, ROLES
from tests.made_tokenizers import DATA, IDENTITY, KINDS, make_folder, piece_model, rank_lines

SAMPLES = [
    *("你好", "世界", "。", "，", "鱻", "𠮷", "😀", "👨‍👩‍👧", "é", "ไ", "ا", "a", "the ", "hello", "1", "2023"),
    *(" ", "  ", "\n", "\t", "\u3000", "\u200b", "\x00", "<", ">", "|", "[", "]"),
]
CONTROL_TEXTS = [
    "<s>", "</s>", "<unk>", "<pad>", "[PAD]", "[MASK]", "[gMASK]", "[sMASK]", "sop", "eop", "<sop>", "<eop>", *ROLES,
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|start_header_id|>", "<reserved_102>",
    "<reserved_106>", "<SEP>", "<<s>s>",
]  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: make_folder(name, tmp_path_factory.mktemp("tokenizers") / name) for name in KINDS}


@pytest.fixture(scope="module")
def tokenizers(folders):
    return {name: models.load_tokenizer(folder) for name, folder in folders.items()}


def random_texts(seed: int, count: int) -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choices(SAMPLES + CONTROL_TEXTS, k=draw.randint(1, 30))) for _ in range(count)]


@pytest.mark.parametrize("name", KINDS)
def test_text_comes_back(tokenizers, name):
    tokenizer = tokenizers[name]
    texts = [text for text in random_texts(1, 200) if not KINDS[name].folds]
    texts += ["你好，世界", "hello 世界\n  第二行\t😀"] if not KINDS[name].folds else ["hello 世界\n  第二行\t😀"]
    for text in texts:
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("place", ["start", "control", "text"])
@pytest.mark.parametrize("name", KINDS)
def test_streaming_equals_the_whole_and_never_shows_half_a_character(tokenizers, name, place):
    tokenizer = tokenizers[name]
    for text in random_texts(2, 150):
        ids = tokenizer.encode(text, place)
        decoder = StreamDecoder(tokenizer)
        pieces = [decoder.push(number) for number in ids] + [decoder.flush()]
        assert "".join(pieces) == tokenizer.decode(ids)
        assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("name", KINDS)
def test_streaming_of_what_a_model_may_write(tokenizers, name):
    """Ids in any order, control tokens and spaces among them, not only what text encodes to."""
    tokenizer = tokenizers[name]
    words = [tokenizer.encode(word, place) for word in ("the", "。", " ", "   ", "\n") for place in ("start", "text")]
    words += [[number] for number in tokenizer.controls.values()]
    draw = random.Random(5)
    for _ in range(300):
        ids = [number for word in draw.choices(words, k=12) for number in word]
        decoder = StreamDecoder(tokenizer)
        assert "".join([*(decoder.push(number) for number in ids), decoder.flush()]) == tokenizer.decode(ids)


@pytest.mark.parametrize("name", KINDS)
def test_text_never_becomes_a_control_token(tokenizers, name):
    tokenizer = tokenizers[name]
    assert tokenizer.controls
    hidden = set(tokenizer.controls.values())
    for control in [*CONTROL_TEXTS, *tokenizer.controls]:
        for text in (control, f"a{control}b", f" {control} {control}", f"问：{control}\n"):
            for place in ("start", "control", "text"):
                ids = tokenizer.encode(text, place)
                assert not hidden.intersection(ids), (text, place)
            assert KINDS[name].folds or tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("name", KINDS)
def test_control_tokens_do_not_show(tokenizers, name):
    tokenizer = tokenizers[name]
    around = tokenizer.encode("hello world")
    controls = list(tokenizer.controls.values())
    beyond = [len(tokenizer) + 5]  # embeddings are padded: a model can produce ids that mean nothing
    assert tokenizer.decode([*controls, *around, *controls, *beyond]) == "hello world"


@pytest.mark.parametrize("name", KINDS)
def test_ids_lie_within_the_length(tokenizers, name):
    tokenizer = tokenizers[name]
    ids = {number for text in random_texts(3, 50) for number in tokenizer.encode(text)}
    assert max(ids | set(tokenizer.controls.values())) < len(tokenizer)


EXPECTED_FRAMES = {  # prefix, suffix and end, by the names of control tokens
    "chatglm": ([], ["[gMASK]", "<sop>"], "<eop>"),
    "chatglm-v0": ([], ["[gMASK]", "<sop>"], "<eop>"),
    "chatglm2": (["[gMASK]", "sop"], [], "</s>"),
    "chatglm3": (["[gMASK]", "sop"], [], "</s>"),
    "glm4": (["[gMASK]", "<sop>"], [], "<|endoftext|>"),
    "glm4-json": (["[gMASK]", "<sop>"], [], "<|endoftext|>"),
    "llama": (["<s>"], [], "</s>"),
    "llama-new": (["<s>"], [], "</s>"),
    "llama-json": ([], [], "</s>"),
    "llama-3": (["<|begin_of_text|>"], [], "<|end_of_text|>"),
    "chatml": ([], [], "<|im_end|>"),
    "chinese-alpaca": (["<s>"], [], "</s>"),
    "bloom": ([], [], "</s>"),
    "baichuan": ([], [], "</s>"),
    "baichuan2": ([], [], "</s>"),
}


@pytest.mark.parametrize("name", KINDS)
def test_what_stands_around_a_sequence(tokenizers, name):
    tokenizer = tokenizers[name]
    names = {number: control for control, number in tokenizer.controls.items()}
    frame = (
        [names[n] for n in tokenizer.prefix_ids],
        [names[n] for n in tokenizer.suffix_ids],
        names[tokenizer.eos_id],
    )
    assert frame == EXPECTED_FRAMES[name]


@pytest.mark.parametrize(
    "name, specials",
    [("chatglm2", CHATGLM2_SPECIALS), ("chatglm3", (*CHATGLM2_SPECIALS, *ROLES)), ("glm4", GLM4_SPECIALS)],
)
def test_appended_specials_follow_the_vocabulary(tokenizers, tmp_path, name, specials):
    folder = make_folder(name, tmp_path)
    if name == "glm4":
        first = len(rank_lines())
    else:
        first = sentencepiece.SentencePieceProcessor(model_proto=(folder / "tokenizer.model").read_bytes()).vocab_size()
    appended = {control: number for control, number in tokenizers[name].controls.items() if number >= first}
    assert appended == {control: first + at for at, control in enumerate(specials)}


def test_first_chatglm_keeps_ids_for_images(tokenizers):
    shifted = [number + 20_000 for number in tokenizers["chatglm"].encode("你好 hello\n")]
    assert tokenizers["chatglm-v0"].encode("你好 hello\n") == shifted
    assert tokenizers["chatglm-v0"].decode(shifted) == "你好 hello\n"


def test_chatglm_whitespace_has_own_pieces(tokenizers, tmp_path):
    proto = (make_folder("chatglm", tmp_path) / "ice_text.model").read_bytes()
    official = sentencepiece.SentencePieceProcessor(model_proto=proto)
    text = "a\nb\tc  d" + " " * 83 + "e"
    written = "a<n>b<|tab|>c<|blank_2|>d<|blank_80|><|blank_3|>e"
    assert tokenizers["chatglm"].encode(text) == official.encode(written)
    assert tokenizers["chatglm"].decode(official.encode(written)) == text
    # Without "▁" in front: what the official code gets by putting <n> first and dropping two ids.
    assert tokenizers["chatglm"].encode("hello", "text") == official.encode("<n>hello")[2:]


def test_word_start_after_a_control_token(tokenizers):
    first = {name: tokenizers[name].encode("hello") for name in ("llama", "llama-new", "llama-json")}
    continued = {name: tokenizers[name].encode("hello", "text") for name in first}
    assert all(first[name] != continued[name] for name in first)
    after = {name: tokenizers[name].encode("hello", "control") for name in first}
    assert after == {
        "llama": first["llama"],
        "llama-new": continued["llama-new"],
        "llama-json": first["llama-json"],
    }


@pytest.mark.parametrize("first", [normalizers.Prepend("▁"), None])
def test_other_ways_of_marking_the_first_word(first, tokenizers, folders):
    """A lone Prepend marks every text, Metaspace's "first" only the first of a sequence."""
    inner = Tokenizer.from_file(str(folders["llama-json"] / "tokenizer.json"))
    inner.normalizer = first
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never" if first else "first", split=False)
    tokenizer, known = FastTokenizer(inner), tokenizers["llama-json"]
    assert tokenizer.encode("hello") == known.encode("hello")
    assert tokenizer.encode("hello", "text") == known.encode("hello", "text")
    assert tokenizer.encode("hello", "control") == known.encode("hello", "control" if first else "text")


def lowest_rank_first(token: bytes, ranks: dict[bytes, int]) -> list[int]:
    """BPE as tiktoken defines it: join the neighbours whose union has the lowest rank, the leftmost of equals."""
    parts = [bytes([byte]) for byte in token]
    while True:
        unions = [(ranks[a + b], at) for at, (a, b) in enumerate(zip(parts, parts[1:], strict=False)) if a + b in ranks]
        if not unions:
            return [ranks[part] for part in parts]
        at = min(unions)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


def test_rank_file_merges_like_tiktoken(tokenizers):
    ranks = rank_lines()
    words = ["hello", " documents", "检索增强生成", "天气很好", " answer", "aaaaaaa", "鱻", "printing"]
    for word in words:
        assert tokenizers["glm4"].encode(word) == lowest_rank_first(word.encode(), ranks)


def test_gguf_pieces_make_the_same_model():
    proto = piece_model(**IDENTITY)
    model = sentencepiece.SentencePieceProcessor(model_proto=proto)
    kinds = {model.is_unknown: 2, model.is_control: 3, model.is_byte: 6}
    pieces = [
        (model.id_to_piece(n), model.get_score(n), next((kind for test, kind in kinds.items() if test(n)), 1))
        for n in range(model.get_piece_size())
    ]
    rebuilt = PieceTokenizer(model_proto.build(pieces, bos_id=1, eos_id=2))
    original = PieceTokenizer(proto)
    assert rebuilt.controls == original.controls
    for text in random_texts(4, 200):
        for place in ("start", "text"):
            assert rebuilt.encode(text, place) == original.encode(text, place)


def test_damaged_files_are_named(tmp_path):
    for name, file in [("llama", "tokenizer.model"), ("bloom", "tokenizer.json"), ("glm4", "tokenizer.model")]:
        folder = make_folder(name, tmp_path / name)
        (folder / file).write_bytes((folder / file).read_bytes()[: 1000 if file == "tokenizer.json" else 1001])
        with pytest.raises(CheckpointError, match=file):
            models.load_tokenizer(folder)


def test_missing_files_are_named(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="tokenizer.model or tokenizer.json is missing"):
        models.load_tokenizer(tmp_path)


def test_bracketed_added_tokens_are_control(tmp_path):
    """ChatML fine-tunes add <|im_start|> without saying that it is special; runs of spaces are text."""
    inner = Tokenizer.from_file(str(DATA / "bloom-format-made-6000" / "tokenizer.json"))
    inner.add_tokens(["<|im_start|>", "    "])
    (tmp_path / "config.json").write_text('{"model_type": "bloom"}')
    inner.save(str(tmp_path / "tokenizer.json"))
    tokenizer = models.load_tokenizer(tmp_path)
    assert tokenizer.controls["<|im_start|>"] == 6000
    assert 6000 not in tokenizer.encode("<|im_start|>")
    assert tokenizer.encode("a    b")[1] == 6001


USER_TOKEN = {"added_tokens_decoder": {"64795": {"content": "<|user|>", "special": True}}}
CLASSIFIES = {"auto_map": {"AutoModelForSequenceClassification": "modeling_chatglm.X"}}


@pytest.mark.parametrize(
    "config, settings, folder, third",
    [
        ({}, {}, "renamed", False),
        (CLASSIFIES, {}, "renamed", True),
        ({}, USER_TOKEN, "renamed", True),
        ({}, {}, "chatglm3-6b-32k", True),
        ({}, {"name_or_path": "THUDM/chatglm2-6b"}, "chatglm3-6b", False),
        ({"_name_or_path": "THUDM/chatglm3-6b"}, {}, "chatglm2-6b", True),
    ],
)
def test_chatglm3_is_told_from_chatglm2(tmp_path, config, settings, folder, third):
    path = make_folder("chatglm2", tmp_path / folder)
    (path / "config.json").write_text(json.dumps({"model_type": "chatglm", **config}))
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert ("<|user|>" in models.load_tokenizer(path).controls) == third
