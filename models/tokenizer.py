"""Text to ids and back. Text never yields a control token, and control tokens never show in text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import sentencepiece
import tokenizers
from tokenizers import AddedToken, Regex, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing

from .base import CheckpointError

REPLACEMENT = "\ufffd"
#: A character has at most four bytes; a run of this many tokens without one is damage and is shown as such.
MOST_PENDING = 8


class Tokenizer(Protocol):
    controls: Mapping[str, int]  #: control tokens by name
    prefix_ids: Sequence[int]  #: what every sequence starts with, such as <s>
    eos_id: int | None

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def __len__(self) -> int: ...


class FastTokenizer:
    """A tokenizer.json, or one made in its terms, run by the `tokenizers` package."""

    def __init__(self, inner: tokenizers.Tokenizer, eos_id: int | None = None) -> None:
        self._inner = inner
        self._inner.no_truncation()
        self._inner.no_padding()
        added = inner.get_added_tokens_decoder()
        self.controls = {token.content: number for number, token in added.items() if token.special}
        self.prefix_ids = inner.encode("").ids
        self.eos_id = eos_id
        self._inner.encode_special_tokens = True  # special tokens in text are text

    def encode(self, text: str) -> list[int]:
        return self._inner.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        return self._inner.decode(list(ids), skip_special_tokens=True)

    def __len__(self) -> int:
        return self._inner.get_vocab_size()


class PieceTokenizer:
    """A tokenizer.model, run by the `sentencepiece` package. `added` are control tokens that follow its pieces."""

    def __init__(self, proto: bytes, *, adds_bos: bool = True, added: Mapping[str, int] | None = None) -> None:
        if not proto:
            raise RuntimeError("an empty file")  # sentencepiece would take it for a model without pieces
        self._inner = sentencepiece.SentencePieceProcessor(model_proto=proto)
        pieces = range(self._inner.get_piece_size())
        own = {self._inner.id_to_piece(number): number for number in pieces if self._inner.is_control(number)}
        self.controls = {**own, **(added or {})}
        self._hidden = set(self.controls.values())
        self.prefix_ids = [self._inner.bos_id()] if adds_bos and self._inner.bos_id() >= 0 else []
        self.eos_id = self._inner.eos_id() if self._inner.eos_id() >= 0 else None

    def encode(self, text: str) -> list[int]:
        return self._inner.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        size = self._inner.get_piece_size()
        return self._inner.decode([number for number in ids if number < size and number not in self._hidden])

    def __len__(self) -> int:
        return max([self._inner.get_piece_size(), *(number + 1 for number in self.controls.values())])


def read_tokenizer(folder: Path, config: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of a Hugging Face folder; raises CheckpointError where its files are missing or damaged."""
    settings = _settings(folder / "tokenizer_config.json")
    if (folder / "tokenizer.model").is_file():
        proto = (folder / "tokenizer.model").read_bytes()
        try:
            return PieceTokenizer(proto, adds_bos=settings.get("add_bos_token", True), added=_added(settings))
        except RuntimeError as error:
            raise CheckpointError(f"{folder / 'tokenizer.model'} is damaged; download it again.") from error
    if (folder / "tokenizer.json").is_file():
        return FastTokenizer(_parse(folder / "tokenizer.json"), _first(config.get("eos_token_id")))
    raise CheckpointError(
        f"tokenizer.model or tokenizer.json is missing in {folder}; download it from the same repository."
    )


def _settings(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); download it again.") from error
    if not isinstance(settings, dict):
        raise CheckpointError(f"{path} is damaged (no JSON object); download it again.")
    return settings


def _added(settings: Mapping[str, Any]) -> dict[str, int]:
    decoder = settings.get("added_tokens_decoder", {})
    return {token["content"]: int(number) for number, token in decoder.items() if token.get("special")}


def _parse(path: Path) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the package has no other class for a file that it can't parse
        raise CheckpointError(f"{path} is damaged ({error}); download it again.") from error


def _first(ids: int | Sequence[int] | None) -> int | None:
    return ids[0] if isinstance(ids, (list, tuple)) else ids


GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _split(pattern: str) -> list[pre_tokenizers.PreTokenizer]:
    return [pre_tokenizers.Split(Regex(pattern), "isolated")]


#: How GGUF's `tokenizer.ggml.pre` cuts text into words before the merges.
SPLITS = {
    "default": _split(GPT2_SPLIT),
    "gpt-2": _split(GPT2_SPLIT),
    "smollm": [pre_tokenizers.Digits(individual_digits=True), *_split(GPT2_SPLIT)],
    "llama-bpe": _split(LLAMA3_SPLIT),
}

CONTROL, USER_DEFINED = 3, 4  # token types in GGUF


def byte_level_tokenizer(
    tokens: Sequence[str],
    kinds: Sequence[int],
    merges: Sequence[str],
    split: str,
    bos_id: int | None = None,
    eos_id: int | None = None,
) -> FastTokenizer:
    """The byte-level BPE that a GGUF file carries; raises CheckpointError for a way of splitting that is not known.

    bos_id is given where every sequence starts with it.
    """
    if split not in SPLITS:
        raise CheckpointError(f"The GGUF tokenizer splits text by {split!r}; known are {', '.join(SPLITS)}.")
    vocabulary = {token: number for number, token in enumerate(tokens)}
    pairs = [tuple(merge.split(" ", 1)) for merge in merges]
    inner = tokenizers.Tokenizer(BPE(vocab=vocabulary, merges=pairs, ignore_merges=split == "llama-bpe"))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.pre_tokenizer = pre_tokenizers.Sequence([*SPLITS[split], byte_level])
    inner.decoder = decoders.ByteLevel()
    marked = [(token, kind) for token, kind in zip(tokens, kinds, strict=True) if kind in (CONTROL, USER_DEFINED)]
    inner.add_special_tokens([AddedToken(token, normalized=False) for token, kind in marked if kind == CONTROL])
    inner.add_tokens([AddedToken(token, normalized=False) for token, kind in marked if kind == USER_DEFINED])
    if bos_id is not None:
        bos = tokens[bos_id]
        inner.post_processor = TemplateProcessing(single=[bos, "$A"], special_tokens=[(bos, bos_id)])
    return FastTokenizer(inner, eos_id)


class StreamDecoder:
    """Ids in, text out, a piece at a time and never half a character: a Chinese character can be several tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._context = 0  # where the window starts: decoding needs the token before, for spaces
        self._shown = 0  # how many ids have been given out as text
        self._given = 0  # how many characters of the text behind them have been given out too
        self._waiting = 0  # for how many ids no text has become certain

    def push(self, token: int) -> str:
        """The text that has become certain with this id; empty while a character is incomplete."""
        self._ids.append(token)
        text = self._tail()
        certain = text.rstrip(REPLACEMENT)
        if certain == text or self._waiting == MOST_PENDING:
            return self._all_of(text)
        # A token may complete one character and begin the next: the complete one need not wait.
        piece, self._given = certain[self._given :], len(certain)
        self._waiting = 0 if piece else self._waiting + 1
        return piece

    def flush(self) -> str:
        """What was still held back, a broken character shown as one."""
        return self._all_of(self._tail())

    def _all_of(self, text: str) -> str:
        piece = text[self._given :]
        self._context, self._shown, self._given, self._waiting = self._shown, len(self._ids), 0, 0
        return piece

    def _tail(self) -> str:
        before = self._tokenizer.decode(self._ids[self._context : self._shown])
        return self._tokenizer.decode(self._ids[self._context :])[len(before) :]
