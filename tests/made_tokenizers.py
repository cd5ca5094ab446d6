"""Small tokenizers of every published kind, built with the same options and stored in the same file forms."""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers.models import BPE

from models.tokenizers.bpe import BLOOM_SPLIT, BYTE_LETTERS, LLAMA3_SPLIT
from models.tokenizers.reading import GLM4_SPECIALS

DATA = Path(__file__).parent / "data" / "tokenizers"
#: A folder whose tokenizers/ holds published tokenizer files, which can't be committed here. Unset, what needs them is
#: not collected: it would only be skipped, and a skip hides more than it tells.
ASSETS = os.environ.get("QUATRAIN_TEST_ASSETS")
PUBLISHED = Path(ASSETS) / "tokenizers" if ASSETS else None


def text_lines() -> list[str]:
    return (DATA / "text.txt").read_text(encoding="utf-8").splitlines()


def piece_model(**options: Any) -> bytes:
    """A sentencepiece model trained on text.txt."""
    model = io.BytesIO()
    common = {"vocab_size": 700, "character_coverage": 0.98, "byte_fallback": True, "minloglevel": 2, "pad_id": -1}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text_lines()), model_writer=model, **(common | options)
    )
    return model.getvalue()


IDENTITY = {"model_type": "bpe", "normalization_rule_name": "identity", "remove_extra_whitespaces": False}
ICE_CONTROLS = ["[MASK]", "[gMASK]", "[sMASK]", "<unused_0>", "<sop>", "<eop>", "<ENC>", "<dBLOCK>"]
ICE_BLANKS = ["<n>", "<|tab|>", *(f"<|blank_{size}|>" for size in range(2, 81))]


def _ice(folder: Path) -> None:
    options = {"model_type": "unigram", "normalization_rule_name": "nmt_nfkc", "pad_id": 3, "hard_vocab_limit": False}
    proto = piece_model(**options, control_symbols=ICE_CONTROLS, user_defined_symbols=ICE_BLANKS)
    (folder / "ice_text.model").write_bytes(proto)


def _pieces(settings: Mapping[str, Any] | None = None, **options: Any) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        (folder / "tokenizer.model").write_bytes(piece_model(**IDENTITY, **options))
        if settings is not None:
            (folder / "tokenizer_config.json").write_text(json.dumps(settings))

    return build


def byte_level(specials: list[str], pattern: str, vocabulary: int = 600) -> Tokenizer:
    inner = Tokenizer(BPE())
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    inner.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator(text_lines(), trainer)
    return inner


BLOOM_CONTROLS = ["<unk>", "<s>", "</s>", "<pad>"]
CHATML_CONTROLS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
LLAMA3_CONTROLS = [
    "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
]  # fmt: skip


def _bloom(folder: Path) -> None:
    byte_level(BLOOM_CONTROLS, BLOOM_SPLIT).save(str(folder / "tokenizer.json"))


def _chatml(folder: Path) -> None:
    byte_level(CHATML_CONTROLS, LLAMA3_SPLIT).save(str(folder / "tokenizer.json"))


def _llama3(folder: Path) -> None:
    _begun(LLAMA3_CONTROLS, ["<|begin_of_text|>"]).save(str(folder / "tokenizer.json"))


def _glm4_json(folder: Path) -> None:
    """GLM-4's tokenizer as its repositories in transformers' form hold it."""
    _begun(list(GLM4_SPECIALS), ["[gMASK]", "<sop>"]).save(str(folder / "tokenizer.json"))


def _begun(specials: list[str], prefix: list[str]) -> Tokenizer:
    """A byte-level BPE that puts control tokens in front of every sequence."""
    inner = byte_level(specials, LLAMA3_SPLIT)
    inner.post_processor = processors.TemplateProcessing(
        single=" ".join([*prefix, "$A"]), special_tokens=[(name, inner.token_to_id(name)) for name in prefix]
    )
    return inner


def _llama_json(folder: Path) -> None:
    """LLaMA's tokenizer.json as Hugging Face converts it: "▁" in front of every text, byte fallback."""
    inner = Tokenizer(BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=["<unk>", "<s>", "</s>", *fallback], show_progress=False
    )
    inner.train_from_iterator(text_lines(), trainer)
    spec = json.loads(inner.to_str())  # the bytes are ordinary tokens, only the trainer wants them to be special
    spec["added_tokens"] = [token for token in spec["added_tokens"] if token["content"] not in fallback]
    (folder / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")


def rank_lines() -> dict[bytes, int]:
    """A tiktoken vocabulary: the 256 bytes, then what a byte-level BPE learns."""
    letters = {letter: byte for byte, letter in BYTE_LETTERS.items()}
    vocabulary = byte_level([], LLAMA3_SPLIT, 900).get_vocab()
    learned = [bytes(letters[letter] for letter in token) for token in sorted(vocabulary, key=vocabulary.get)]
    tokens = [*(bytes([byte]) for byte in range(256)), *(token for token in learned if len(token) > 1)]
    return {token: rank for rank, token in enumerate(tokens)}


def _glm4(folder: Path) -> None:
    lines = (b"%s %d\n" % (base64.b64encode(token), rank) for token, rank in rank_lines().items())
    (folder / "tokenizer.model").write_bytes(b"".join(lines))


@dataclass(frozen=True)
class Kind:
    """`architecture` is the file in models/ that runs such checkpoints; `folds`: encoding loses spaces and forms."""

    architecture: str
    config: Mapping[str, Any]
    build: Callable[[Path], None]
    folds: bool = False


GLM = {"model_type": "chatglm"}
RESERVED1 = ["<SEP>", "<CLS>", "\n", "\t", "<h2>", "<reserved_102>", "<reserved_103>"]
RESERVED2 = ["<SEP>", "<CLS>", "\n", "\t", "<h2>", "<reserved_106>", "<reserved_107>"]
KINDS = {
    "chatglm": Kind("chatglm", GLM | {"vocab_size": 130528, "position_encoding_2d": True}, _ice, folds=True),
    "chatglm-v0": Kind("chatglm", GLM | {"vocab_size": 150528, "position_encoding_2d": True}, _ice, folds=True),
    "chatglm2": Kind("chatglm2", GLM | {"_name_or_path": "THUDM/chatglm2-6b"}, _pieces()),
    "chatglm3": Kind("chatglm2", GLM | {"_name_or_path": "THUDM/chatglm3-6b"}, _pieces()),
    "glm4": Kind("chatglm2", GLM | {"seq_length": 131072}, _glm4),
    "glm4-json": Kind("chatglm2", {"model_type": "glm", "eos_token_id": [0]}, _glm4_json),
    "llama": Kind("llama", {"model_type": "llama"}, _pieces()),
    "llama-new": Kind("llama", {"model_type": "llama"}, _pieces({"legacy": False, "add_bos_token": True})),
    "llama-json": Kind("llama", {"model_type": "llama", "eos_token_id": 2}, _llama_json),
    "llama-3": Kind("llama", {"model_type": "llama", "eos_token_id": [1, 4]}, _llama3),
    "chatml": Kind("llama", {"model_type": "llama", "eos_token_id": 2}, _chatml),
    "chinese-alpaca": Kind(
        "llama", {"model_type": "llama", "vocab_size": 49954}, _pieces(user_defined_symbols="[PAD]")
    ),
    "bloom": Kind("bloom", {"model_type": "bloom", "eos_token_id": 2}, _bloom),
    "baichuan": Kind("baichuan", {"model_type": "baichuan"}, _pieces(user_defined_symbols=RESERVED1)),
    "baichuan2": Kind(
        "baichuan", {"model_type": "baichuan"}, _pieces(user_defined_symbols=RESERVED2, add_dummy_prefix=False)
    ),
}
#: The kind that a chat format's models have; the others have "llama".
KIND_OF = {
    "chatglm": "chatglm", "chatglm2": "chatglm2", "chatglm3": "chatglm3", "glm4": "glm4",
    "llama-3": "llama-3", "chatml": "chatml", "chinese-alpaca": "chinese-alpaca", "vicuna": "llama-new",
    "tinyllama": "llama-json", "belle": "bloom", "phoenix": "bloom", "bloomz": "bloom",
    "baichuan": "baichuan", "baichuan2": "baichuan2",
}  # fmt: skip


def make_folder(name: str, folder: Path) -> Path:
    """Writes config.json and the tokenizer files of one kind."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(KINDS[name].config))
    KINDS[name].build(folder)
    return folder
