"""The few bytes of sentencepiece's ModelProto that we write ourselves, in protobuf's wire format.

Field numbers and enums: sentencepiece_model.proto of google/sentencepiece 0.2.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

UNIGRAM, BPE = 1, 2  # TrainerSpec.ModelType
NORMAL, USER_DEFINED, BYTE = 1, 4, 6  # SentencePiece.Type; GGUF's token types are the same numbers


def without_dummy_prefix(proto: bytes) -> bytes:
    """The same model, putting no "▁" in front of a text.

    Serialized messages that follow each other are one merged message, so the setting is overwritten by appending it.
    """
    return proto + _message(3, _number(3, False))


def build(pieces: Sequence[tuple[str, float, int]], *, bos_id: int, eos_id: int, dummy_prefix: bool = True) -> bytes:
    """A byte-fallback BPE model of (piece, score, type); text is not normalised, as in LLaMA's own model."""
    names = [pieces[number][0].encode() for number in (bos_id, eos_id)]
    body = b"".join(
        _message(1, _message(1, piece.encode()) + _float(2, score) + _number(3, kind)) for piece, score, kind in pieces
    )
    trainer = _number(3, BPE) + _number(35, True)  # model_type, byte_fallback
    trainer += _number(40, 0) + _number(41, bos_id) + _number(42, eos_id) + _number(43, -1)  # unk, bos, eos, pad
    trainer += _message(46, names[0]) + _message(47, names[1])  # the library finds both by their pieces
    normalizer = _message(1, b"identity") + _number(3, dummy_prefix) + _number(4, False) + _number(5, True)
    return body + _message(2, trainer) + _message(3, normalizer)


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1  # negative numbers are written as 64 bits
    groups = []
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _float(field: int, value: float) -> bytes:
    return _varint(field << 3 | 5) + struct.pack("<f", value)


def _message(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value
