"""The tokenizer inside a GGUF file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from ..base import CheckpointError
from ..tokenizer import PieceTokenizer, Tokenizer, byte_level_tokenizer
from ..tokenizers import model_proto
from ..tokenizers.base import BRACKETED
from .gguf_metadata import TOKENS, Metadata

#: Byte-level tokenizers that start with <s> where the file doesn't say.
BOS_BY_DEFAULT = {"llama-bpe", "llama3", "llama-v3"}
#: Architectures whose pieces do not, other than LLaMA's.
NO_BOS = {"baichuan", "chatglm"}
#: How older files split, which do not say it.
SPLIT_BY_DEFAULT = {"bloom": "bloom", "chatglm": "chatglm-bpe"}
#: What ChatGLM's own code puts first; no file says so.
CHATGLM_PREFIXES = (("[gMASK]", "sop"), ("[gMASK]", "<sop>"))
#: The pieces of Baichuan2, whose own model has no "▁" in front of a text; no file says so.
BAICHUAN2_PIECES = 125696


def read_tokenizer(metadata: Metadata) -> Tokenizer:
    """Raises CheckpointError where there is none that can be read."""
    kind = metadata.text("tokenizer.ggml.model", "none")
    if kind not in TOKENIZERS:
        kinds = " and ".join(map(repr, TOKENIZERS))
        raise CheckpointError(f"{metadata.path} carries a tokenizer of kind {kind!r}; {kinds} can be read.")
    tokens = metadata.texts(TOKENS)
    kinds = metadata.numbers("tokenizer.ggml.token_type", len(tokens))
    try:
        return TOKENIZERS[kind](metadata, tokens, kinds)
    except CheckpointError:
        raise
    # `tokenizers` has no other class for merges that don't fit; sentencepiece raises RuntimeError.
    except Exception as error:
        raise CheckpointError(f"The tokenizer in {metadata.path} is damaged; download it again.") from error


def _byte_level(metadata: Metadata, tokens: Sequence[str], kinds: Sequence[int]) -> Tokenizer:
    split = metadata.text("tokenizer.ggml.pre", SPLIT_BY_DEFAULT.get(metadata.architecture, "default"))
    return byte_level_tokenizer(
        tokens,
        kinds,
        metadata.texts("tokenizer.ggml.merges"),
        split,
        prefix=_chatglm_prefix(metadata, tokens) or _bos(metadata, tokens, split in BOS_BY_DEFAULT),
        eos_id=metadata.token_id("eos"),
    )


def _pieces(metadata: Metadata, tokens: Sequence[str], kinds: Sequence[int]) -> Tokenizer:
    """The sentencepiece model that the file was made from, put together again."""
    architecture = metadata.architecture
    marks = not (architecture == "baichuan" and len(tokens) == BAICHUAN2_PIECES)
    scores = metadata.numbers("tokenizer.ggml.scores", len(tokens))
    proto = model_proto.build(
        list(zip(tokens, scores, _true_kinds(kinds), strict=True)),
        bos_id=metadata.token_id("bos"),
        eos_id=metadata.token_id("eos"),
        dummy_prefix=metadata.flag("tokenizer.ggml.add_space_prefix", marks),
    )
    added = {
        token: number
        for number, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind == model_proto.USER_DEFINED and BRACKETED.fullmatch(token)
    }
    prefix = _chatglm_prefix(metadata, tokens)
    adds_bos = metadata.flag("tokenizer.ggml.add_bos_token", architecture not in NO_BOS)
    return PieceTokenizer(proto, adds_bos=adds_bos and not prefix, added=added, prefix=prefix)


def _true_kinds(kinds: Sequence[int]) -> Iterator[int]:
    """llama.cpp's converter writes user-defined pieces as normal ones, of which no model has any before its bytes.

    Baichuan's user-defined pieces, such as the newline and ASCII's marks, never merge with what is beside them.
    """
    first_byte = kinds.index(model_proto.BYTE) if model_proto.BYTE in kinds else 0
    for number, kind in enumerate(kinds):
        user_defined = number < first_byte and kind == model_proto.NORMAL
        yield model_proto.USER_DEFINED if user_defined else kind


def _bos(metadata: Metadata, tokens: Sequence[str], default: bool) -> Sequence[str]:
    bos = metadata.token_id("bos")
    adds = metadata.flag("tokenizer.ggml.add_bos_token", default)
    return (tokens[bos],) if adds and bos is not None else ()


def _chatglm_prefix(metadata: Metadata, tokens: Sequence[str]) -> Sequence[str]:
    fitting = (prefix for prefix in CHATGLM_PREFIXES if set(prefix) <= set(tokens))
    return next(fitting, ()) if metadata.architecture == "chatglm" else ()


TOKENIZERS: Mapping[str, Callable[[Metadata, Sequence[str], Sequence[int]], Tokenizer]] = {
    "gpt2": _byte_level,
    "llama": _pieces,
}
