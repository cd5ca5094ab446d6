"""Loading, a visible pipeline: config -> arguments -> empty model -> each tensor read and placed -> strict check."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from . import kept
from .base import BaseModel, CheckpointError, end_ids, refuse_no_floats, refuse_no_numbers
from .cache import KVCache, Prefix
from .chat_formats import Facts, chat_formats, choose_format
from .files import readable
from .footprint import Footprint, footprint
from .formats import (
    AdaptedCheckpoint,
    Adapter,
    Checkpoint,
    Encoder,
    PrefixAdapter,
    Weight,
    glance,
    is_alone,
    open_adapter,
    open_checkpoint,
    prefix_rows,
)
from .kept import Stored
from .layers import Embedding
from .memory import LargePages, trim
from .prompts import ChatFormat, Message, Prompt
from .quantize import PackedMatrix, QuantizedEmbedding, QuantizedLinear, Quants, quantize
from .registry import Architecture, empty_model, resolve
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
    prefix: Prefix | None = None  #: of P-tuning; every new cache begins with it
    plain: LoadedModel | None = None  #: the same without the adapter that is beside its weights

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

    def with_adapter(self, adapter: str | Path | None) -> LoadedModel:
        """The same model with an adapter beside its weights, which both share; None takes it away.

        In float32 it agrees with merging up to the order of sums. Raises CheckpointError for an adapter of another
        model, or one that `can_switch` denies.
        """
        plain = self.plain or self
        if not self.can_switch(adapter):
            raise CheckpointError(f"{adapter or plain.checkpoint.path} can't be switched; load the base again for it.")
        if adapter is None:
            return dataclasses.replace(plain, wanted_format=self.wanted_format)
        checkpoint, _ = _adapted(plain.checkpoint, Path(adapter))
        model = checkpoint.adapter.beside(plain.model, plain.device).eval()
        changed = dataclasses.replace(
            plain, model=model, checkpoint=checkpoint, plain=plain, wanted_format=self.wanted_format
        )
        return _with_prefix(changed)

    def can_switch(self, adapter: str | Path | None) -> bool:
        """Whether `with_adapter` can do it: neither the adapter here nor that one has to be merged into the weights.

        Raises CheckpointError for what is no adapter, or a damaged one.
        """
        merged = isinstance((self.plain or self).checkpoint, AdaptedCheckpoint)
        return not merged and (adapter is None or open_adapter(Path(adapter)).switchable)

    def accepts(self, adapter: str | Path) -> bool:
        """Whether an adapter is for this model, by its shapes."""
        try:
            _adapted(_base((self.plain or self).checkpoint), Path(adapter))
        except (CheckpointError, OSError):
            return False
        return True

    @property
    def stop_ids(self) -> frozenset[int]:
        """The ids that end a text according to config.json."""
        return frozenset(end_ids(self.checkpoint.config))

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
        """Bytes of the weights, packed or not, and of the prefix."""
        beside = [] if self.prefix is None else [self.prefix]
        return sum(weight.nbytes for weight in (*_tensors(self.model), *beside))

    @property
    def cache_dtype(self) -> torch.dtype:
        """Of keys and values: fp16, or fp32 in tier fp32."""
        return torch.float32 if self.tier == "fp32" else torch.float16

    @cached_property
    def needs(self) -> Footprint:
        """What the model takes of memory beside its weights."""
        return footprint(self.checkpoint.config)

    def scratch(self, window: int, chunk: int) -> int:
        """Bytes that come and go while `chunk` tokens at the end of a window are read."""
        return self.needs.scratch(self.tier, self.device.type, window, chunk)

    def new_cache(self, length: int | None = None) -> KVCache:
        """A cache for `length` positions (the whole window by default)."""
        return self.model.new_cache(length or self.context, self.cache_dtype, self.device, self.prefix)


def load(
    path: str | Path,
    tier: str = "fp16",
    device: str = "cpu",
    context: int | None = None,
    adapter: str | Path | None = None,
    progress: Progress | None = None,
    chat_format: str | None = None,
    store: Path | None = None,
    beside: bool = False,
) -> LoadedModel:
    """Loads a checkpoint (a Hugging Face folder, one of Meta's LLaMA folders, or a GGUF file).

    `adapter` is a folder that changes it: LoRA in PEFT's form, a delta, or a P-tuning prefix in place of one that the
    checkpoint may hold itself. What can be is merged into the weights; with `beside` it stays beside them where it can,
    to be switched by `LoadedModel.with_adapter`.
    `store` is a folder where the INT8 and INT4 tiers made from larger weights are kept. `context` narrows the window;
    `progress` is called with (bytes read, bytes in all); `chat_format` is a name of `models.chat_formats()` in place of
    the one that config and tokenizer ask for. Raises CheckpointError, whose text is one sentence, when the checkpoint
    can't be used.
    """
    if tier not in TIERS:
        raise CheckpointError(f"There is no tier {tier!r}; there are {', '.join(TIERS)}.")
    if chat_format is not None and chat_format not in chat_formats():
        raise CheckpointError(f"There is no chat format {chat_format!r}; there are {', '.join(chat_formats())}.")
    if adapter is not None and _stays_beside(open_adapter(Path(adapter)), beside):
        _adapted(open_checkpoint(Path(path)), Path(adapter))  # a wrong one is refused before the weights are read
        return load(path, tier, device, context, None, progress, chat_format, store).with_adapter(adapter)
    checkpoint, model = _opened(Path(path), adapter)
    architecture = resolve(checkpoint.config)
    pages = LargePages()
    for name, weight in _kept_or_made(model, checkpoint, TIERS[tier], store, progress):
        _place(model, name, _held(weight.to(torch.device(device)), pages))
    trim()
    window = min(context or model.args.context, model.args.context)
    loaded = LoadedModel(model.eval(), architecture, checkpoint, tier, torch.device(device), window, chat_format)
    return _with_prefix(loaded)


def _tensors(model: nn.Module) -> Iterator[torch.Tensor]:
    """All that the weights consist of, packed or not."""
    yield from model.parameters()
    for module in model.modules():
        if isinstance(module, QUANTIZED):
            yield from module.weight.parts()


def family_of(path: str | Path) -> str:
    """The family of a checkpoint, from a glance at it. Raises CheckpointError where none of ours can run it."""
    with readable(Path(path)):
        return resolve(glance(Path(path))).family


def load_tokenizer(path: str | Path) -> Tokenizer:
    """A checkpoint's tokenizer without its weights."""
    return open_checkpoint(Path(path)).tokenizer()


def adapted(base: Checkpoint, adapter: Path) -> AdaptedCheckpoint:
    """A base as its adapter changes it; raises CheckpointError where they don't belong together."""
    return _adapted(base, adapter)[0]


def _opened(path: Path, adapter: str | Path | None) -> tuple[Checkpoint, BaseModel]:
    """A checkpoint, and its model without weights."""
    checkpoint = open_checkpoint(path)
    if is_alone(checkpoint):
        raise CheckpointError(
            f"{path} holds a P-tuning prefix and no model; load the ChatGLM that it was trained on, with this as its "
            "adapter."
        )
    return (checkpoint, empty_model(checkpoint.config)) if adapter is None else _adapted(checkpoint, Path(adapter))


def _adapted(base: Checkpoint, folder: Path) -> tuple[AdaptedCheckpoint, BaseModel]:
    """A base with an adapter that belongs to it, and its model without weights."""
    adapter = open_adapter(folder)
    config = adapter.config(base.config)
    model = empty_model(config)
    adapter.check(model)
    return AdaptedCheckpoint(base, adapter, config, model), model


def _stays_beside(adapter: Adapter, wanted: bool) -> bool:
    return adapter.switchable and (wanted or not adapter.mergeable)


def _with_prefix(loaded: LoadedModel) -> LoadedModel:
    """The same model with the P-tuning prefix of its adapter, or of its own, or with none."""
    encoder = _encoder(loaded.checkpoint)
    if encoder is None:
        return loaded
    encoder.check(loaded.model.args)
    prefix = encoder.encode(loaded.model.args.cache_shape, loaded.cache_dtype, loaded.device)
    return dataclasses.replace(loaded, prefix=prefix)


def _encoder(checkpoint: Checkpoint) -> Encoder | None:
    if isinstance(checkpoint, AdaptedCheckpoint):
        adapter = checkpoint.adapter
        return adapter.encoder if isinstance(adapter, PrefixAdapter) else _encoder(checkpoint.base)
    return Encoder.of(checkpoint, checkpoint.tensors()) if prefix_rows(checkpoint.config) else None


def _base(checkpoint: Checkpoint) -> Checkpoint:
    return checkpoint.base if isinstance(checkpoint, AdaptedCheckpoint) else checkpoint


def _kept_or_made(
    model: BaseModel, checkpoint: Checkpoint, bits: int, store: Path | None, progress: Progress | None
) -> Iterator[tuple[str, Stored]]:
    """The weights of a tier: those of INT8 and INT4 are made once, kept in the store, and copied from there."""
    if store is None or bits >= 16 or 0 < checkpoint.quantized <= bits:
        return _weights(model, checkpoint, bits, progress)
    folder = kept.place(store, checkpoint, bits)
    found = _read_kept(folder, model)
    if found is None:
        try:
            kept.write(folder, _weights(model, checkpoint, bits, progress), bits, checkpoint.origin)
        except OSError as error:
            reason = error.strerror or error
            message = f"{checkpoint.path.name} is not kept at INT{bits} ({reason}): it loads slowly again."
            warnings.warn(message, stacklevel=3)
        else:
            found = _read_kept(folder, model)
    return _weights(model, checkpoint, bits, progress) if found is None else _taken(found)


def _taken(weights: list[tuple[str, Stored]]) -> Iterator[tuple[str, Stored]]:
    """Each in turn; the list lets go of it, so that it is not there twice when it is copied."""
    weights.reverse()
    while weights:
        yield weights.pop()


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
        refuse_misplaced(name, weight, expected, missing, checkpoint)
        if isinstance(weight, torch.Tensor):
            refuse_no_numbers(name, weight, checkpoint.path)
        # A row for each token: the embedding, or the head.
        yield name, stored(weight, _vocabulary_bits(weight, bits, checkpoint) if weight.shape[0] in tokens else bits)
        missing.discard(name)
    refuse_missing(missing, checkpoint)


def refuse_missing(missing: Collection[str], checkpoint: Checkpoint) -> None:
    """Raises CheckpointError where tensors are missing."""
    if missing:
        shown = ", ".join(sorted(missing)[:3]) + (", ..." if len(missing) > 3 else "")
        raise CheckpointError(f"{len(missing)} tensors are missing in {checkpoint.path}: {shown}; download it again.")


def _vocabulary_bits(weight: Weight, bits: int, checkpoint: Checkpoint) -> int:
    """INT4 would cost accuracy in the embedding and the head; what the ChatGLM authors left at FP16 stays so."""
    left_whole = isinstance(weight, torch.Tensor) and checkpoint.config.get("quantization_bit")
    return max(bits, 16 if left_whole else 8)


def refuse_misplaced(
    name: str, weight: Weight, expected: Mapping[str, torch.Size], missing: Collection[str], checkpoint: Checkpoint
) -> None:
    """Raises CheckpointError for a weight that the model has no place for, or not one of its shape or kind."""
    if name not in expected:
        raise CheckpointError(
            f"{checkpoint.path} holds {name}, which its config.json has no place for; download both again."
        )
    if name not in missing:
        raise CheckpointError(f"{checkpoint.path} holds {name} twice; keep the files of one download only.")
    if weight.shape != expected[name]:
        shapes = f"{list(weight.shape)} instead of {list(expected[name])}"
        raise CheckpointError(f"{name} in {checkpoint.path} has the shape {shapes}; config and weights don't match.")
    if isinstance(weight, torch.Tensor):
        refuse_no_floats(name, weight, checkpoint.path)


def stored(weight: Weight, bits: int) -> Stored:
    """A weight as the tier keeps it: floats, or packed. What a file brings at these bits or fewer is taken as it is.

    Norms and biases stay float32: they are small, and some are published so.
    """
    if len(weight.shape) < 2:
        return weight.float()
    if bits >= 16:
        return weight.to(FLOATS[bits]) if isinstance(weight, torch.Tensor) else weight.expand(FLOATS[bits])
    return weight.pack() if isinstance(weight, Quants) and weight.bits <= bits else quantize(weight, bits)


def _held(weight: Stored, pages: LargePages) -> Stored:
    if isinstance(weight, torch.Tensor):
        return pages.keep(weight)
    return PackedMatrix(weight.bits, *weight.shape, *map(pages.keep, weight.parts()))


def _place(model: nn.Module, name: str, weight: Stored) -> None:
    path, _, attribute = name.rpartition(".")
    owner = model.get_submodule(path)
    if isinstance(weight, torch.Tensor):
        setattr(owner, attribute, nn.Parameter(weight, requires_grad=False))
        return
    swapped = QuantizedEmbedding(weight) if isinstance(owner, Embedding) else QuantizedLinear(weight, owner.bias)
    parent, _, own = path.rpartition(".")
    setattr(model.get_submodule(parent), own, swapped)
