"""Byte-level and other BPE vocabularies, run by the `tokenizers` package: tokenizer.json, GGUF's, GLM-4's rank file."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing

from ..base import CheckpointError
from .base import BRACKETED, Place, TextTokenizer

HIGHEST_RANK = 2**24  #: beyond any vocabulary
#: What stands for the space in front of a word: sentencepiece's sign and the byte-level alphabet's.
WORD_STARTS = ("▁", "Ġ")


class FastTokenizer(TextTokenizer):
    """A tokenizer.json, or one made in its terms; its post-processor says what sequences start with."""

    kind = "BPE"

    def __init__(self, inner: tokenizers.Tokenizer, eos_id: int | None = None) -> None:
        inner.no_truncation()
        inner.no_padding()
        bracketed = [
            token
            for token in inner.get_added_tokens_decoder().values()
            if not token.special and BRACKETED.fullmatch(token.content)
        ]
        inner.add_special_tokens([AddedToken(token.content, normalized=False) for token in bracketed])
        added = inner.get_added_tokens_decoder()
        controls = {token.content: number for number, token in added.items() if token.special}
        super().__init__(controls, inner.encode("").ids, eos_id)
        self._inner = inner
        self._marks_start = _starts_word(inner, "a")
        self._marks_after_control = self._marks_start and _starts_word(inner, next(iter(controls), "") + "a")
        inner.encode_special_tokens = True  # special tokens in text are text

    def _encode(self, text: str, after: Place) -> list[int]:
        marks = {"start": True, "control": self._marks_after_control, "text": False}[after]
        inner = self._inner if marks or not self._marks_start else self._continuing
        return inner.encode(text, add_special_tokens=False).ids

    @cached_property
    def _continuing(self) -> tokenizers.Tokenizer:
        """A copy that puts no word start in front of a text."""
        inner = tokenizers.Tokenizer.from_str(json.dumps(_unmarked(json.loads(self._inner.to_str()))))
        inner.encode_special_tokens = True
        return inner

    def decode(self, ids: Sequence[int]) -> str:
        return self._inner.decode(list(ids), skip_special_tokens=True)

    def __len__(self) -> int:
        return self._inner.get_vocab_size()


def _starts_word(inner: tokenizers.Tokenizer, text: str) -> bool:
    return any(token.startswith(WORD_STARTS) for token in inner.encode(text, add_special_tokens=False).tokens)


def _unmarked(spec: Any) -> Any:
    """The parts of a tokenizer.json without what marks the start of a text; the vocabulary is passed through."""
    if isinstance(spec, list):
        return [_unmarked(part) for part in spec if not _prepends(part)]
    if not isinstance(spec, dict) or "vocab" in spec:
        return spec
    changed = {"prepend_scheme": "never", "add_prefix_space": False}
    return {key: changed.get(key, _unmarked(value)) for key, value in spec.items() if not _prepends(value)}


def _prepends(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "Prepend"


CONTRACTIONS = "'s|'t|'re|'ve|'m|'ll|'d"
GPT2_SPLIT = rf"{CONTRACTIONS}| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|\s+(?!\S)|\s+"
#: Llama-3 and GLM-4 cut alike.
LLAMA3_SPLIT = (
    rf"(?i:{CONTRACTIONS})|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BLOOM_SPLIT = r" ?[^(\s|[.,!?…。，、।۔،])]+"


def _split(pattern: str) -> list[pre_tokenizers.PreTokenizer]:
    return [pre_tokenizers.Split(Regex(pattern), "isolated")]


#: How GGUF's `tokenizer.ggml.pre` cuts text into words before the merges.
SPLITS = {
    "default": _split(GPT2_SPLIT),
    "gpt-2": _split(GPT2_SPLIT),
    "smollm": [pre_tokenizers.Digits(individual_digits=True), *_split(GPT2_SPLIT)],
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "smaug-bpe"), _split(LLAMA3_SPLIT)),
    "chatglm-bpe": _split(LLAMA3_SPLIT),
    "glm4": _split(LLAMA3_SPLIT),
    "bloom": _split(BLOOM_SPLIT),
}
WHOLE_WORDS_FIRST = {"llama-bpe", "llama3", "llama-v3", "glm4"}  #: words that are tokens are taken before any merge

CONTROL, USER_DEFINED = 3, 4  # token types in GGUF


def byte_level_tokenizer(
    tokens: Sequence[str],
    kinds: Sequence[int],
    merges: Sequence[str],
    split: str,
    prefix: Sequence[str] = (),
    eos_id: int | None = None,
) -> FastTokenizer:
    """The byte-level BPE that a GGUF file carries; raises CheckpointError for a way of splitting that is not known.

    Every sequence starts with the tokens named `prefix`.
    """
    if split not in SPLITS:
        raise CheckpointError(f"The GGUF tokenizer splits text by {split!r}; known are {', '.join(SPLITS)}.")
    vocabulary = {token: number for number, token in enumerate(tokens)}
    pairs = [tuple(merge.split(" ", 1)) for merge in merges]
    inner = _byte_level(BPE(vocab=vocabulary, merges=pairs, ignore_merges=split in WHOLE_WORDS_FIRST), split)
    marked = [(token, kind) for token, kind in zip(tokens, kinds, strict=True) if kind in (CONTROL, USER_DEFINED)]
    inner.add_special_tokens([AddedToken(token, normalized=False) for token, kind in marked if kind == CONTROL])
    inner.add_tokens([AddedToken(token, normalized=False) for token, kind in marked if kind == USER_DEFINED])
    if prefix:
        _start_with(inner, prefix)
    return FastTokenizer(inner, eos_id)


def _start_with(inner: tokenizers.Tokenizer, names: Sequence[str]) -> None:
    ids = [(name, inner.token_to_id(name)) for name in names]
    inner.post_processor = TemplateProcessing(single=[*names, "$A"], special_tokens=ids)


def _byte_level(model: BPE, split: str) -> tokenizers.Tokenizer:
    inner = tokenizers.Tokenizer(model)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.pre_tokenizer = pre_tokenizers.Sequence([*SPLITS[split], byte_level])
    inner.decoder = decoders.ByteLevel()
    return inner


def rank_tokenizer(data: bytes, specials: Sequence[str], prefix: Sequence[str], eos: str) -> FastTokenizer:
    """A tiktoken file: lines of base64 bytes and rank. `specials` take the ids behind the last rank.

    Words that are tokens are taken whole. In others the pair whose union has the lowest rank is merged first, so every
    cut of a token into two tokens is a merge of its rank. Raises ValueError for a file that is not of this kind.
    """
    ranks = dict(_rank_lines(data))
    vocabulary = {_letters(token): rank for token, rank in ranks.items()}
    merges = [
        (_letters(token[:cut]), _letters(token[cut:]))
        for token in sorted(ranks, key=ranks.__getitem__)
        for cut in range(1, len(token))
        if token[:cut] in ranks and token[cut:] in ranks
    ]
    inner = _byte_level(BPE(vocab=vocabulary, merges=merges, ignore_merges=True), "glm4")
    inner.add_special_tokens([AddedToken(name, normalized=False) for name in specials])
    _start_with(inner, prefix)
    return FastTokenizer(inner, inner.token_to_id(eos))


def _rank_lines(data: bytes) -> Iterator[tuple[bytes, int]]:
    for line in data.splitlines():
        if line:
            token, number = line.split()
            try:
                piece, rank = base64.b64decode(token, validate=True), int(number)
            except binascii.Error as error:
                raise ValueError(f"{token!r} is not base64") from error
            if not 0 <= rank < HIGHEST_RANK:
                raise ValueError(f"{rank} is no rank")
            yield piece, rank


def _letters(token: bytes) -> str:
    return "".join(map(BYTE_LETTERS.__getitem__, token))


def _byte_letters() -> Mapping[int, str]:
    """GPT-2's alphabet: a visible letter for each byte, the byte's own where it is printable in Latin-1."""
    own = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = sorted(set(range(256)) - set(own))
    return {byte: chr(byte) for byte in own} | {byte: chr(256 + at) for at, byte in enumerate(others)}


BYTE_LETTERS = _byte_letters()
