"""Which tokenizer a Hugging Face folder has, decided by its files and its config."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from ..base import CheckpointError, end_ids, impossible
from ..files import read_object, read_whole
from .base import TextTokenizer
from .bpe import FastTokenizer, rank_tokenizer
from .pieces import IceTokenizer, PieceTokenizer

#: ChatGLM's control tokens are in no file: they take the ids behind the vocabulary, in the order that each repository's
#: tokenization_chatglm.py lists them.
MASKS = ("[MASK]", "[gMASK]", "[sMASK]")
ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
CHATGLM2_SPECIALS = (*MASKS, "sop", "eop")
CHATGLM3_SPECIALS = (*CHATGLM2_SPECIALS, *ROLES)
GLM4_SPECIALS = (
    "<|endoftext|>", *MASKS, "<sop>", "<eop>", *ROLES,
    "<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>",
)  # fmt: skip
#: Llama 3's, as 3.1 names them, behind the 128,000 of its tiktoken file; those that mean nothing are numbered.
LLAMA3_SPECIALS = (
    "<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>", "<|step_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>",
    "<|python_tag|>", *(f"<|reserved_special_token_{number}|>" for number in range(2, 247)),
)  # fmt: skip
#: The first public ChatGLM-6B kept 20,000 ids in front of the text for images; its padded vocabulary shows it.
TEXT_ONLY_VOCABULARY = 130528


@dataclass(frozen=True)
class Source:
    """A folder, its config.json and its tokenizer_config.json."""

    folder: Path
    config: Mapping[str, Any]
    settings: Mapping[str, Any]

    def bytes(self, name: str) -> bytes:
        return read_whole(self.folder / name)

    @cached_property
    def added(self) -> dict[str, int]:
        """Tokens that were added to the vocabulary, by the newer and the older way of writing them down."""
        decoder = self.settings.get("added_tokens_decoder", {})
        try:
            newer = {str(token["content"]): int(number) for number, token in decoder.items() if token.get("special")}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise impossible(self.folder / "tokenizer_config.json", "added_tokens_decoder", decoder) from error
        older = read_settings(self.folder / "added_tokens.json")
        for name, number in older.items():
            if type(number) is not int:
                raise impossible(self.folder / "added_tokens.json", name, number)
        return older | newer

    @cached_property
    def names(self) -> tuple[str, ...]:
        """What the checkpoint is called, the folder's name last: it only decides where the files leave it open."""
        named = (self.config.get("_name_or_path"), self.settings.get("name_or_path"), self.folder.name)
        return tuple(name.lower() for name in named if isinstance(name, str) and name)


@dataclass(frozen=True)
class Reader:
    file: str
    matches: Callable[[Source], bool]
    read: Callable[[Source], TextTokenizer]


def _any(source: Source) -> bool:
    return True


def _is_chatglm(source: Source) -> bool:
    return source.config.get("model_type") == "chatglm"


def _is_glm4(source: Source) -> bool:
    return _is_chatglm(source) and _holds_ranks(source)


def _is_chatglm3(source: Source) -> bool:
    """ChatGLM2 and ChatGLM3 share the file and the module tree; only what is written around them differs."""
    named = [version for name in source.names for version in re.findall(r"chatglm(\d)", name)]
    classifies = "AutoModelForSequenceClassification" in str(source.config.get("auto_map"))
    return _is_chatglm(source) and ("<|user|>" in source.added or (named[0] == "3" if named else classifies))


def _is_pieces(source: Source) -> bool:
    return not _holds_ranks(source)


def _holds_ranks(source: Source) -> bool:
    with (source.folder / "tokenizer.model").open("rb") as file:
        return re.fullmatch(rb"[A-Za-z0-9+/]+=* \d+\r?\n", file.readline(1000)) is not None


def _ice(source: Source) -> TextTokenizer:
    padded = source.config.get("vocab_size", TEXT_ONLY_VOCABULARY)
    offset = source.settings.get("num_image_tokens", max(0, padded - TEXT_ONLY_VOCABULARY))
    return IceTokenizer(source.bytes("ice_text.model"), offset=offset)


def _glm4(source: Source) -> TextTokenizer:
    data = source.bytes("tokenizer.model")
    return rank_tokenizer(data, GLM4_SPECIALS, prefix=("[gMASK]", "<sop>"), eos="<|endoftext|>")


def _llama3(source: Source) -> TextTokenizer:
    data = source.bytes("tokenizer.model")
    return rank_tokenizer(data, LLAMA3_SPECIALS, prefix=("<|begin_of_text|>",), eos="<|end_of_text|>")


def _chatglm(specials: Sequence[str]) -> Callable[[Source], TextTokenizer]:
    def read(source: Source) -> TextTokenizer:
        proto = source.bytes("tokenizer.model")
        return PieceTokenizer(proto, adds_bos=False, specials=specials, prefix=("[gMASK]", "sop"))

    return read


def _llama(source: Source) -> TextTokenizer:
    adds_bos = source.settings.get("add_bos_token", source.config.get("model_type") != "baichuan")
    legacy = source.settings.get("legacy") is not False
    return PieceTokenizer(source.bytes("tokenizer.model"), adds_bos=adds_bos, added=source.added, legacy=legacy)


def _fast(source: Source) -> TextTokenizer:
    path = source.folder / "tokenizer.json"
    try:
        inner = tokenizers.Tokenizer.from_str(source.bytes(path.name).decode("utf-8"))
    except CheckpointError:
        raise
    except Exception as error:  # the package has no other class for a file that it can't parse
        raise CheckpointError(f"{path} is damaged ({error}); download it again.") from error
    return FastTokenizer(inner, next(iter(end_ids(source.config)), None))


#: The first row whose file is there and whose condition holds.
READERS = (
    Reader("ice_text.model", _any, _ice),
    Reader("tokenizer.model", _is_glm4, _glm4),
    Reader("tokenizer.model", _is_chatglm3, _chatglm(CHATGLM3_SPECIALS)),
    Reader("tokenizer.model", _is_chatglm, _chatglm(CHATGLM2_SPECIALS)),
    Reader("tokenizer.model", _is_pieces, _llama),
    Reader("tokenizer.json", _any, _fast),
    Reader("tokenizer.model", _holds_ranks, _llama3),
)


def read_tokenizer(folder: Path, config: Mapping[str, Any]) -> TextTokenizer:
    """The tokenizer of a Hugging Face folder; raises CheckpointError where its files are missing or damaged."""
    source = Source(folder, config, read_settings(folder / "tokenizer_config.json"))
    for reader in READERS:
        if (folder / reader.file).is_file() and reader.matches(source):
            return _read(reader, source)
    files = " or ".join(dict.fromkeys(reader.file for reader in READERS))
    raise CheckpointError(f"{files} is missing in {folder}; download it from the same repository.")


def holds_tokenizer(folder: Path) -> bool:
    """Whether a folder has a tokenizer's file at all."""
    return any((folder / reader.file).is_file() for reader in READERS)


def _read(reader: Reader, source: Source) -> TextTokenizer:
    try:
        return reader.read(source)
    except CheckpointError:
        raise
    # What sentencepiece raises on a file it can't parse, what a rank file or a text of the wrong kind runs into.
    except (RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(f"{source.folder / reader.file} is damaged; download it again.") from error


def read_settings(path: Path) -> dict[str, Any]:
    """A JSON object beside a tokenizer, empty where it is not there."""
    return read_object(path) if path.is_file() else {}
