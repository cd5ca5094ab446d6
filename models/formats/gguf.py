"""GGUF files, with the config and the tensor names put back into the Hugging Face form."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ..base import CheckpointError
from ..prompts import ChatHints
from ..tokenizer import Tokenizer
from .gguf_file import Tensor
from .gguf_layouts import FACTORS, LAYOUTS, Header, Layout, ends
from .gguf_metadata import TOKENS, Metadata
from .gguf_parts import SUFFIX, find_model, model_name, open_files, present
from .gguf_tokenizers import read_tokenizer
from .gguf_types import TAKEN_OVER, Weight, join, read, refuse_unreadable

#: Bits of a weight, on average over a file, from which INT8 and FP16 keep something that the next lower tier loses.
WORTH_INT8, WORTH_FP16 = 4.3, 12.0


class GGUFCheckpoint:
    """A file, one of several that make a model, or the folder of either."""

    form = "GGUF file"

    def __init__(self, path: Path) -> None:
        files = open_files(find_model(path))
        self._paths = [file.path for file in files]
        self.path = self._paths[0]
        self.origin = str(self.path.resolve())
        self._metadata = Metadata(self.path, files[0].values)
        self._tensors: dict[str, Tensor] = {}
        for file in files:
            self._tensors |= file.tensors
        if self._metadata.architecture not in LAYOUTS:
            raise CheckpointError(
                f"{self.path.name} has the architecture {self._metadata.architecture!r}, which can't be run here; "
                f"try {', '.join(LAYOUTS)}."
            )

    @staticmethod
    def recognises(path: Path) -> bool:
        return any(path.glob(f"*{SUFFIX}")) if path.is_dir() else path.suffix == SUFFIX

    @staticmethod
    def glance(path: Path) -> dict[str, Any]:
        """What names the architecture, from the first bytes: reading the whole header takes seconds."""
        with find_model(path).open("rb") as file:
            start = file.read(512)
        # Writers put general.architecture first: its name, its type (8 is text), the text's length, the text.
        found = re.search(rb"general\.architecture\x08\0\0\0(.)\0{7}", start, re.DOTALL)
        name = start[found.end() : found.end() + found[1][0]].decode("utf-8", "replace") if found else None
        # What tells ChatGLM's siblings apart in a config; ChatGLM-6B has no GGUF form.
        return {"model_type": name, "padded_vocab_size": None}

    @staticmethod
    def located(path: Path) -> list[Path]:
        """The files of a model. Raises CheckpointError for one that is missing."""
        return present(find_model(path))

    @cached_property
    def config(self) -> dict[str, Any]:
        """Raises CheckpointError where the metadata lack something."""
        factors = self.read(FACTORS) if FACTORS in self._tensors else None
        return self._layout.config(Header(self._metadata, self._tensors.keys(), factors))

    def tensors(self) -> Iterator[tuple[str, Weight]]:
        for name, block, parts in self._named():
            yield name, join([self._ordered(block, part) for part in parts])

    def outline(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, block, parts in self._named():
            yield name, torch.cat([self._outlined(block + part) for part in parts])

    def _named(self) -> Iterator[tuple[str, str, Sequence[str]]]:
        """The name of each tensor in the Hugging Face form, its block in the file, and what there makes it."""
        layout = self._layout
        followers = {part for parts in layout.joined.values() for part in parts[1:]}
        for name in self._tensors:
            block, rest = _split(name)
            if name == FACTORS or rest in followers:
                continue
            pattern = layout.names.get(rest)
            ours = name if pattern is None else pattern.format(block.removeprefix("blk.").removesuffix("."))
            parts = layout.joined.get(rest, (rest,))
            for part in parts[1:]:
                if self._find(block + part).shape[1:] != self._find(name).shape[1:]:
                    raise self._misshapen(block + part)
            yield ours, block, parts

    def _misshapen(self, name: str) -> CheckpointError:
        shape = list(self._find(name).shape)
        return CheckpointError(f"{name} in {self.path} has the shape {shape}; config and weights don't match.")

    def _ordered(self, block: str, rest: str) -> Weight:
        weight = self.read(block + rest)
        order = self._layout.orders(self.config).get(rest)
        if order is None:
            return weight
        try:
            return weight[order(weight.shape[0])]
        except RuntimeError as error:  # rows that no number of heads has
            raise self._misshapen(block + rest) from error

    def read(self, name: str) -> Weight:
        """One tensor by its name in the file, its rows in the file's order."""
        return read(self._find(name))

    def _outlined(self, name: str) -> torch.Tensor:
        tensor = self._find(name)
        refuse_unreadable(tensor)
        return torch.empty(tensor.shape, device="meta")

    def _find(self, name: str) -> Tensor:
        if name not in self._tensors:
            raise CheckpointError(f"{self.path} lacks {name}; download it again.")
        return self._tensors[name]

    @property
    def quantized(self) -> int:
        """Bits of the matrices that are taken over as they are, where they are most of the weights, or 0."""
        weights = Counter()
        for tensor in self._matrices():
            weights[TAKEN_OVER.get(tensor.tensor_type, 0)] += tensor.size
        bits, most = max(weights.items(), key=lambda item: item[1], default=(0, 0))
        return bits if 2 * most > weights.total() else 0

    @property
    def precision(self) -> int:
        """Bits of the lowest tier that loses nothing worth having: 16, 8 or 4.

        Q4_0, Q4_1 and Q8_0 are taken over. Other encodings are quantized anew: a Q4_K_M loses nothing in INT8 and a
        little in INT4, a Q2_K has lost more than INT4 could add.
        """
        weights = sum(tensor.size for tensor in self._matrices())
        bits = 8 * sum(tensor.n_bytes for tensor in self._matrices()) / max(weights, 1)
        return self.quantized or (4 if bits < WORTH_INT8 else 8 if bits < WORTH_FP16 else 16)

    def _matrices(self) -> list[Tensor]:
        return [tensor for tensor in self._tensors.values() if len(tensor.shape) > 1]

    @property
    def _layout(self) -> Layout:
        return LAYOUTS[self._metadata.architecture]

    def files(self) -> list[Path]:
        return self._paths

    def nbytes(self) -> int:
        return sum(tensor.n_bytes for tensor in self._tensors.values())

    def tokenizer(self) -> Tokenizer:
        return read_tokenizer(self._metadata)

    def chat_hints(self) -> ChatHints:
        metadata = self._metadata
        names = [metadata.text(f"general.{key}", "") for key in ("name", "basename", "finetune")]
        return ChatHints(
            template=metadata.text("tokenizer.chat_template", "") or None,
            special_tokens=self._special_tokens(),
            # Converters write "Llama 2 7b Chat" for the repository's llama-2-7b-chat.
            names=tuple(name.lower().replace(" ", "-") for name in [*names, model_name(self.path)] if name),
            eos_ids=frozenset(ends(metadata)),
        )

    def _special_tokens(self) -> dict[str, str]:
        if TOKENS not in self._metadata:
            return {}
        found = {f"{name}_token": self._metadata.token_id(name) for name in ("bos", "eos")}
        ids = {name: number for name, number in found.items() if number is not None}
        tokens = self._metadata.texts(TOKENS, 1 + max(ids.values(), default=-1))
        return {name: tokens[number] for name, number in ids.items()}


def _split(name: str) -> tuple[str, str]:
    """ "blk.3.attn_q.weight" -> "blk.3." and "attn_q.weight"; outside of blocks the first is empty."""
    match = re.fullmatch(r"(blk\.\d+\.)(.+)", name)
    return match.groups() if match else ("", name)
