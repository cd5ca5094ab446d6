"""The structures of quantized.c that describe a model and a step of it. Each field is 8 bytes, in the same order."""

from __future__ import annotations

import ctypes
from ctypes import Structure, c_double, c_int64, c_void_p

SECTIONS = 2  #: of a head, that may be rotated by positions of their own
WIDEST_HEAD = 512


class Weights(Structure):
    """A matrix of 4, 8, 16 or 32 bits a weight, and its bias."""

    _fields_ = [
        *((name, c_int64) for name in ("bits", "rows", "columns")),
        *((name, c_void_p) for name in ("values", "scales", "minimums", "bias")),
    ]


class Norm(Structure):
    """LayerNorm; RMSNorm where there is no bias; nothing where there is no weight."""

    _fields_ = [("weight", c_void_p), ("bias", c_void_p), ("eps", c_double)]


class Layer(Structure):
    """Matrices without rows are parts of the one before them."""

    _fields_ = [
        *((name, Norm) for name in ("before_attention", "before_mlp")),
        *((name, Weights) for name in ("queries", "keys", "values", "dense", "gate", "up", "down")),
    ]


class Heads(Structure):
    """Where the heads of queries, keys or values begin in a row of their product, and how far apart they are."""

    _fields_ = [("first", c_int64), ("stride", c_int64)]


class Model(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("layers", "hidden", "heads", "kv_heads", "head_size", "inner", "gated")),
        *((name, c_int64) for name in ("sections", "pairs", "apart")),
        ("alpha", c_double),
        *((name, Heads) for name in ("queries", "keys", "values")),
        ("slopes", c_void_p),
        *((name, Norm) for name in ("after_embedding", "last")),
        *((name, Weights) for name in ("embedding", "head")),
        ("layer", ctypes.POINTER(Layer)),
    ]


class Step(Structure):
    _fields_ = [
        ("ids", c_void_p),
        *((name, c_int64) for name in ("count", "wanted")),
        ("frequencies", c_void_p),
        *((name, c_int64 * SECTIONS) for name in ("positions", "steps")),
        *((name, c_void_p) for name in ("keys", "values")),
        *((name, c_int64) for name in ("cache_bits", "capacity", "start")),
        ("logits", c_void_p),
        ("room", c_void_p),
    ]
