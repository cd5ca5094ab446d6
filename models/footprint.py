"""What a checkpoint takes of memory, from its config alone: nothing is read, the model is built without its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn

from .base import BaseArgs
from .formats import prefix_rows
from .generate import CHUNK
from .quantize import EXPANDED, GROUP, ROWS
from .registry import empty_model

#: Best first.
TIERS = ("fp16", "int8", "int4")

#: Bytes of one weight where a tier keeps them as numbers.
ITEM_BYTES = {"fp32": 4, "fp16": 2}
#: Bytes of one row's group of columns: its integers, a scale in half precision, and in INT4 a minimum as well.
GROUP_BYTES = {"int8": 32 + 2, "int4": 16 + 2 + 2}
#: Quantizing the embedding and the head to INT4 would cost accuracy.
VOCABULARY_TIER = {"int4": "int8"}
VECTOR_BYTES = 4  #: norms and biases stay in float32 in every tier

#: Bytes of one activation, by the kind of device; in tier fp32 always 4.
ACTIVATION_BYTES = {"cpu": 4, "cuda": 2}
#: Bytes that one weight takes while its matrix is widened for a product, and how many are at once. The CPU kernels
#: multiply packed matrices as they are; PyTorch's products need both sides in one precision.
WIDENED = {("cpu", "fp16"): (4, 2**62), ("cuda", "int8"): (10, EXPANDED), ("cuda", "int4"): (10, EXPANDED)}

# Counted from the forward passes, and measured on the CPU with blocks of full shape: LLaMA 7B, Llama-3.1 8B,
# ChatGLM-6B, ChatGLM2-6B, BLOOM 7B1, Baichuan2-13B.
MLP_VECTORS = 4  #: of the hidden size, alive while the MLP runs: residual, its input, its output, the sum
ATTENTION_VECTORS = 12  #: the same for attention: queries, keys, values, turned and laid out anew
SCORE_TABLES = 3  #: float32 tables of every head's scores that are alive at once where attention makes any


class Matrix(NamedTuple):
    rows: int
    columns: int

    @property
    def size(self) -> int:
        return self.rows * self.columns

    def nbytes(self, tier: str) -> int:
        """Bytes of the matrix as `tier` stores it."""
        if tier in ITEM_BYTES:
            return self.size * ITEM_BYTES[tier]
        return -(-self.rows // ROWS) * ROWS * -(-self.columns // GROUP) * GROUP_BYTES[tier]


@dataclass(frozen=True)
class Footprint:
    """The memory of one checkpoint in bytes. Devices are "cpu" and "cuda", windows are counted in tokens."""

    args: BaseArgs
    causal_prompt: bool
    layers: tuple[Matrix, ...]  #: all matrices of all blocks
    vocabulary: tuple[Matrix, ...]  #: embedding and head; one matrix where they are tied
    vectors: int  #: numbers in norms and biases
    #: The tier that a published quantized checkpoint brings and keeps, or None.
    kept: str | None = None
    #: The tier of its embedding and head, where they differ from those of the tiers that are made here.
    kept_vocabulary: str | None = None
    #: Rows of a P-tuning prefix, which are kept with the weights and stand before every window.
    prefix: int = 0
    #: The best tier that is worth its memory: a higher one would bring nothing back that a file has lost.
    finest: str = "fp16"

    @property
    def parameters(self) -> int:
        return sum(matrix.size for matrix in self.layers + self.vocabulary) + self.vectors

    @property
    def context(self) -> int:
        """The model's own window."""
        return self.args.context

    def weights(self, tier: str) -> int:
        """Bytes of the finished model."""
        outer = self._vocabulary_tier(tier)
        inner = self._layer_tier(tier)
        matrices = sum(matrix.nbytes(inner) for matrix in self.layers)
        vocabulary = sum(matrix.nbytes(outer) for matrix in self.vocabulary)
        return matrices + vocabulary + self.vectors * VECTOR_BYTES + self._positions(tier, self.prefix)

    def cache(self, tier: str, window: int) -> int:
        """Bytes of keys and values: float16, or float32 in tier fp32."""
        return self._positions(tier, self.prefix + window)

    def scratch(self, tier: str, device: str, window: int, chunk: int = CHUNK) -> int:
        """Bytes that come and go while the last `chunk` tokens of a prompt that fills the window are read.

        Attention, MLP and head follow one another, so the largest of them counts.
        """
        rows = min(chunk, window) if self.causal_prompt else window
        return max(
            self._mlp(tier, device, rows), self._attention(tier, device, rows, window), self._head(tier, device, rows)
        )

    def _mlp(self, tier: str, device: str, rows: int) -> int:
        inner = max(matrix.columns for matrix in self.layers)
        # LLaMA's gate and up, or one matrix for both, or BLOOM's single one; then the activation of as much again.
        outputs = sum(matrix.rows for matrix in self.layers if matrix.rows in (inner, 2 * inner))
        numbers = MLP_VECTORS * self._hidden + 2 * outputs // self.args.cache_shape.layers
        return rows * numbers * _activation_bytes(tier, device) + self._widened(self.layers, tier, device)

    def _attention(self, tier: str, device: str, rows: int, window: int) -> int:
        shape, heads = self.args.cache_shape, self.args.query_heads
        activations = rows * ATTENTION_VECTORS * self._hidden * _activation_bytes(tier, device)
        # With a mask and fewer heads of keys than of queries, CUDA has PyTorch's plain attention only, in float32.
        plain = device == "cuda" and shape.kv_heads != heads
        mask = 1 + _activation_bytes(tier, device)  # bytes, and the same as numbers that are added
        scores = SCORE_TABLES * heads * 4 if self.args.alibi or plain else mask
        widens = plain or (device == "cpu" and tier != "fp32")
        keys = self._keys_and_values(heads if plain else shape.kv_heads, "fp32") if widens else 0
        return activations + (rows * scores + keys) * (self.prefix + window)

    def _head(self, tier: str, device: str, rows: int) -> int:
        logits = 2 * 4 * self.vocabulary[0].rows
        activations = 2 * rows * self._hidden * _activation_bytes(tier, device)
        # A single row goes through the head, and a CPU kernel reads FP16 as it is for so few.
        widened = 0 if device == "cpu" else self._widened(self.vocabulary, self._vocabulary_tier(tier), device)
        return activations + logits + widened

    def _widened(self, matrices: tuple[Matrix, ...], stored: str, device: str) -> int:
        nbytes, at_once = WIDENED.get((device, stored), (0, 0))
        return min(max(matrix.size for matrix in matrices), at_once) * nbytes

    def _positions(self, tier: str, count: int) -> int:
        """Bytes of keys and values in all layers."""
        return self._keys_and_values(self.args.cache_shape.kv_heads, tier) * self.args.cache_shape.layers * count

    def _keys_and_values(self, heads: int, tier: str) -> int:
        """Bytes of one position in one layer."""
        return 2 * heads * self.args.cache_shape.head_dim * ITEM_BYTES.get(tier, 2)

    def _layer_tier(self, tier: str) -> str:
        """What the authors quantized to INT4 stays so in INT8, which could bring nothing back."""
        return self.kept if self.kept_vocabulary and (self.kept, tier) == ("int4", "int8") else tier

    def _vocabulary_tier(self, tier: str) -> str:
        if tier not in ITEM_BYTES and self.kept_vocabulary:
            return self.kept_vocabulary
        return VOCABULARY_TIER.get(tier, tier)

    @property
    def _hidden(self) -> int:
        return self.vocabulary[0].columns


def footprint(config: Mapping[str, Any]) -> Footprint:
    """The footprint of a config.json; raises CheckpointError for one that can't be run here."""
    model = empty_model(config)
    matrices = [_matrix(module) for module in model.modules() if isinstance(module, nn.Linear | nn.Embedding)]
    tokens = next(module.num_embeddings for module in model.modules() if isinstance(module, nn.Embedding))
    layers = tuple(matrix for matrix in matrices if matrix.rows != tokens)
    vocabulary = tuple(matrix for matrix in matrices if matrix.rows == tokens)
    vectors = sum(parameter.numel() for parameter in model.parameters() if parameter.ndim == 1)
    kept = {8: "int8", 4: "int4"}.get(config.get("quantization_bit"))  # THUDM's published files
    kept_vocabulary = kept if config.get("quantization_embeddings") or kept is None else "fp16"
    prefix = prefix_rows(config)
    return Footprint(model.args, model.causal_prompt, layers, vocabulary, vectors, kept, kept_vocabulary, prefix)


def _activation_bytes(tier: str, device: str) -> int:
    return 4 if tier == "fp32" else ACTIVATION_BYTES[device]


def _matrix(module: nn.Linear | nn.Embedding) -> Matrix:
    return Matrix(*module.weight.shape)
