"""Loading, a visible pipeline: config -> arguments -> empty model -> each tensor read and placed -> strict check."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .base import BaseModel, CheckpointError
from .cache import KVCache
from .chat_formats import Facts, chat_formats, choose_format
from .formats import Checkpoint, glance, open_checkpoint
from .prompts import ChatFormat, Message, Prompt
from .registry import Architecture, resolve
from .tokenizer import Tokenizer

#: What weights are stored in. int4 and int8 are not made yet.
TIERS = {"fp32": torch.float32, "fp16": torch.float16}
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

    def new_cache(self, length: int | None = None) -> KVCache:
        """A cache for `length` positions (the whole window by default): fp16, or fp32 in tier fp32."""
        return self.model.new_cache(length or self.context, TIERS[self.tier], self.device)


def load(
    path: str | Path,
    tier: str = "fp16",
    device: str = "cpu",
    context: int | None = None,
    adapter: str | Path | None = None,
    progress: Progress | None = None,
    chat_format: str | None = None,
) -> LoadedModel:
    """Loads a checkpoint (a Hugging Face folder or a GGUF file).

    `context` narrows the window; `progress` is called with (bytes read, bytes in all); `chat_format` is a name of
    `models.chat_formats()` in place of the one that config and tokenizer ask for. Raises CheckpointError, whose
    text is one sentence, when the checkpoint can't be used.
    """
    if tier not in TIERS:
        raise CheckpointError(f"Tier {tier!r} can't be made yet; {' and '.join(TIERS)} can.")
    if adapter is not None:
        raise CheckpointError(f"Adapters can't be applied yet; merge {adapter} into its base checkpoint first.")
    if chat_format is not None and chat_format not in chat_formats():
        raise CheckpointError(f"There is no chat format {chat_format!r}; there are {', '.join(chat_formats())}.")
    checkpoint = open_checkpoint(Path(path))
    architecture = resolve(checkpoint.config)
    model = _empty(architecture, checkpoint.config)
    _fill(model, checkpoint, TIERS[tier], torch.device(device), progress)
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


def _fill(
    model: BaseModel, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, progress: Progress | None
) -> None:
    expected = dict(model.named_parameters())
    missing = set(expected)
    done, total = 0, checkpoint.nbytes()
    for name, tensor in checkpoint.tensors():
        done += tensor.nbytes
        if progress is not None:
            progress(min(done, total), total)
        placed = model.sanitize(name, tensor)
        if placed is None:
            continue
        name, tensor = placed
        _check(name, tensor, expected, checkpoint)
        _place(model, name, _stored(tensor, dtype).to(device))
        missing.discard(name)
    if missing:
        shown = ", ".join(sorted(missing)[:3]) + (", ..." if len(missing) > 3 else "")
        raise CheckpointError(f"{len(missing)} tensors are missing in {checkpoint.path}: {shown}; download it again.")


def _check(name: str, tensor: torch.Tensor, expected: dict[str, nn.Parameter], checkpoint: Checkpoint) -> None:
    if name not in expected:
        raise CheckpointError(f"{checkpoint.path} holds {name}, which its config.json has no place for.")
    if tensor.shape != expected[name].shape:
        shapes = f"{list(tensor.shape)} instead of {list(expected[name].shape)}"
        raise CheckpointError(f"{name} in {checkpoint.path} has the shape {shapes}; config and weights don't match.")


def _stored(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Matrices in the tier's precision; norms and biases stay float32: they are small, and some are published so."""
    return tensor.to(dtype if tensor.ndim > 1 else torch.float32)


def _place(model: nn.Module, name: str, tensor: torch.Tensor) -> None:
    owner, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(owner), attribute, nn.Parameter(tensor, requires_grad=False))
