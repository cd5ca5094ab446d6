"""Loading, a visible pipeline: config -> arguments -> empty model -> each tensor read and placed -> strict check."""

from __future__ import annotations

import copy
import ctypes
import dataclasses
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import kept
from .base import BaseModel, CheckpointError
from .cache import KVCache
from .chat_formats import Facts, chat_formats, choose_format
from .formats import Checkpoint, Weight, glance, open_checkpoint
from .kept import Stored
from .layers import Embedding
from .prompts import ChatFormat, Message, Prompt
from .quantize import QuantizedEmbedding, QuantizedLinear, quantize
from .registry import Architecture, resolve
from .tokenizer import Tokenizer

#: Bits of a weight in each tier.
TIERS = {"fp32": 32, "fp16": 16, "int8": 8, "int4": 4}
QUANTIZED = (QuantizedLinear, QuantizedEmbedding)
FLOATS = {32: torch.float32, 16: torch.float16}
Progress = Callable[[int, int], None]


@dataclass
class LoadedModel:
    """A model ready to run, with its tokenizer and chat format, which are read when first used."""

    model: BaseModel
    architecture_row: Architecture
    checkpoint: Checkpoint
    tier: str
    device: torch.device
    context: int
    wanted_format: str | None = None  #: the chat format that the user chose; by default the checkpoint's

    @property
    def family(self) -> str:
        return self.architecture_row.family

    @property
    def architecture(self) -> str:
        return self.architecture_row.name

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return self.checkpoint.tokenizer()

    @cached_property
    def chat_format(self) -> ChatFormat:
        """Raises CheckpointError where the wanted format needs control tokens that the tokenizer lacks."""
        tokenizer, checkpoint = self.tokenizer, self.checkpoint
        facts = Facts(self.architecture, checkpoint.config, tokenizer.controls, checkpoint.chat_hints())
        return choose_format(facts, tokenizer, self.wanted_format)

    def with_chat_format(self, name: str | None) -> LoadedModel:
        """The same model talking in another format of `models.chat_formats()`; None is the checkpoint's own."""
        return dataclasses.replace(self, wanted_format=name)

    @property
    def stop_ids(self) -> frozenset[int]:
        """The ids that end a text according to config.json."""
        eos = self.checkpoint.config.get("eos_token_id")
        return frozenset(eos if isinstance(eos, list) else [] if eos is None else [eos])

    def chat_prompt(self, messages: Sequence[Message]) -> Prompt:
        """The ids of a conversation in the checkpoint's chat format, asking for a reply."""
        prompt = self.chat_format.render(messages, self.tokenizer)
        return dataclasses.replace(prompt, stop_ids=prompt.stop_ids | self.stop_ids)

    def reply_ids(self, text: str) -> list[int]:
        """The ids of a reply that another model wrote, as this one would have begun its own with them."""
        if self.tokenizer.suffix_ids:
            return self.tokenizer.encode(text, "control")  # the reply stands behind these
        before = [{"role": role, "content": "?"} for role in ("user", "assistant", "user")]
        asked = self.chat_prompt(before).ids
        begun = self.chat_prompt([*before, {"role": "assistant", "content": text, "begun": True}]).ids
        follows = begun[: len(asked)] == asked
        return begun[len(asked) :] if follows else self.tokenizer.encode(text, "text")

    def within(self, context: int) -> LoadedModel:
        """The same model with another window."""
        other = copy.copy(self)  # what it has read once goes along, such as the tokenizer
        other.context = context
        return other

    @property
    def nbytes(self) -> int:
        """Bytes of the weights, packed or not."""
        packed = [module.weight for module in self.model.modules() if isinstance(module, QUANTIZED)]
        return sum(parameter.nbytes for parameter in self.model.parameters()) + sum(each.nbytes for each in packed)

    def new_cache(self, length: int | None = None) -> KVCache:
        """A cache for `length` positions (the whole window by default): fp16, or fp32 in tier fp32."""
        dtype = torch.float32 if self.tier == "fp32" else torch.float16
        return self.model.new_cache(length or self.context, dtype, self.device)


def load(
    path: str | Path,
    tier: str = "fp16",
    device: str = "cpu",
    context: int | None = None,
    adapter: str | Path | None = None,
    progress: Progress | None = None,
    chat_format: str | None = None,
    store: Path | None = None,
) -> LoadedModel:
    """Loads a checkpoint (a Hugging Face folder or a GGUF file).

    `store` is a folder where the INT8 and INT4 tiers made from larger weights are kept. `context` narrows the window;
    `progress` is called with (bytes read, bytes in all); `chat_format` is a name of `models.chat_formats()` in place of
    the one that config and tokenizer ask for. Raises CheckpointError, whose text is one sentence, when the checkpoint
    can't be used.
    """
    if tier not in TIERS:
        raise CheckpointError(f"There is no tier {tier!r}; there are {', '.join(TIERS)}.")
    if adapter is not None:
        raise CheckpointError(f"Adapters can't be applied yet; merge {adapter} into its base checkpoint first.")
    if chat_format is not None and chat_format not in chat_formats():
        raise CheckpointError(f"There is no chat format {chat_format!r}; there are {', '.join(chat_formats())}.")
    checkpoint = open_checkpoint(Path(path))
    architecture = resolve(checkpoint.config)
    model = _empty(architecture, checkpoint.config)
    for name, weight in _kept_or_made(model, checkpoint, TIERS[tier], store, progress):
        _place(model, name, weight.to(torch.device(device)))
        _give_back()
    window = min(context or model.args.context, model.args.context)
    return LoadedModel(model.eval(), architecture, checkpoint, tier, torch.device(device), window, chat_format)


def family_of(path: str | Path) -> str:
    """The family of a checkpoint, from a glance at it. Raises CheckpointError where none of ours can run it."""
    try:
        return resolve(glance(Path(path))).family
    except OSError as error:
        raise CheckpointError(f"{path} can't be read ({error.strerror or error}).") from error


def load_tokenizer(path: str | Path) -> Tokenizer:
    """A checkpoint's tokenizer without its weights."""
    return open_checkpoint(Path(path)).tokenizer()


def _empty(architecture: Architecture, config: dict[str, Any]) -> BaseModel:
    module = architecture.module()
    with torch.device("meta"):
        return module.Model(module.ModelArgs.from_dict(config))


def _kept_or_made(
    model: BaseModel, checkpoint: Checkpoint, bits: int, store: Path | None, progress: Progress | None
) -> Iterator[tuple[str, Stored]]:
    """The weights of a tier: those of INT8 and INT4 are made once, kept in the store, and mapped from there."""
    if store is None or bits >= 16 or checkpoint.quantized:
        return _weights(model, checkpoint, bits, progress)
    folder = kept.place(store, checkpoint, bits)
    found = _read_kept(folder, model)
    if found is None:
        try:
            kept.write(folder, _weights(model, checkpoint, bits, progress), bits, checkpoint.path)
        except OSError as error:
            reason = error.strerror or error
            message = f"{checkpoint.path.name} is not kept at INT{bits} ({reason}): it loads slowly again."
            warnings.warn(message, stacklevel=3)
        else:
            found = _read_kept(folder, model)
    return _weights(model, checkpoint, bits, progress) if found is None else iter(found)


def _read_kept(folder: Path, model: BaseModel) -> list[tuple[str, Stored]] | None:
    """A kept tier's weights, or None where it was not made yet, or is no longer whole."""
    try:
        found = list(kept.read(folder))
    except kept.DamagedError:
        return None
    expected = {name: parameter.shape for name, parameter in model.named_parameters()}
    return found if {name: weight.shape for name, weight in found} == expected else None


def _weights(
    model: BaseModel, checkpoint: Checkpoint, bits: int, progress: Progress | None
) -> Iterator[tuple[str, Stored]]:
    """Each of the model's weights as the tier keeps it, one at a time; in the end all were there, and nothing else."""
    expected = {name: parameter.shape for name, parameter in model.named_parameters()}
    tokens = {module.num_embeddings for module in model.modules() if isinstance(module, Embedding)}
    missing = set(expected)
    done, total = 0, checkpoint.nbytes()
    for name, weight in checkpoint.tensors():
        done += weight.nbytes
        if progress is not None:
            progress(min(done, total), total)
        placed = model.sanitize(name, weight)
        if placed is None:
            continue
        name, weight = placed
        _check(name, weight, expected, checkpoint)
        # A row for each token: the embedding, or the head. INT4 would cost accuracy there.
        yield name, stored(weight, max(bits, 8) if weight.shape[0] in tokens else bits)
        missing.discard(name)
    if missing:
        shown = ", ".join(sorted(missing)[:3]) + (", ..." if len(missing) > 3 else "")
        raise CheckpointError(f"{len(missing)} tensors are missing in {checkpoint.path}: {shown}; download it again.")


def _check(name: str, weight: Weight, expected: dict[str, torch.Size], checkpoint: Checkpoint) -> None:
    if name not in expected:
        raise CheckpointError(f"{checkpoint.path} holds {name}, which its config.json has no place for.")
    if weight.shape != expected[name]:
        shapes = f"{list(weight.shape)} instead of {list(expected[name])}"
        raise CheckpointError(f"{name} in {checkpoint.path} has the shape {shapes}; config and weights don't match.")
    # Not isfinite of every weight, which takes longer than quantizing them; what is not a number wins in both ends.
    if isinstance(weight, torch.Tensor) and not torch.stack(weight.aminmax()).isfinite().all():
        raise CheckpointError(f"{name} in {checkpoint.path} holds values that are not numbers; download it again.")


def stored(weight: Weight, bits: int) -> Stored:
    """A weight as the tier keeps it: floats, or packed. What a file brings at these bits or fewer is taken as it is.

    Norms and biases stay float32: they are small, and some are published so.
    """
    if len(weight.shape) < 2:
        return weight.float()
    if bits >= 16:
        return weight.to(FLOATS[bits]) if isinstance(weight, torch.Tensor) else weight.pack().expand(FLOATS[bits])
    if isinstance(weight, torch.Tensor):
        return quantize(weight, bits)
    return weight.pack() if weight.bits <= bits else quantize(weight.dequantize(), bits)


def _give_back() -> None:
    """Returns freed memory to the system: what comes and goes while small matrices are read leaves holes between them
    that take as much as half of a small model, and that glibc would keep."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _place(model: nn.Module, name: str, weight: Stored) -> None:
    path, _, attribute = name.rpartition(".")
    owner = model.get_submodule(path)
    if isinstance(weight, torch.Tensor):
        setattr(owner, attribute, nn.Parameter(weight, requires_grad=False))
        return
    swapped = QuantizedEmbedding(weight) if isinstance(owner, Embedding) else QuantizedLinear(weight, owner.bias)
    parent, _, own = path.rpartition(".")
    setattr(model.get_submodule(parent), own, swapped)
