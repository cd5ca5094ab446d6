"""What a path is, from headers alone: quick for 100 GB, and nothing of the weights is held."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch

from .base import PREFIX_ENCODER, BaseModel, CheckpointError
from .footprint import footprint
from .formats import (
    Encoder,
    StoredCheckpoint,
    is_adapter,
    is_checkpoint,
    open_adapter,
    open_checkpoint,
    prefix_rows,
)
from .formats.gguf_parts import SUFFIX, models_among
from .loader import LoadedModel, refuse_misplaced, refuse_missing
from .registry import empty_model, resolve

Result = TypeVar("Result")

#: What files are whose suffix nothing here reads beside a checkpoint.
UNREAD = {
    ".py": "code",
    ".safetensors": "weights",
    ".bin": "weights",
    ".pt": "weights",
    ".pth": "weights",
    ".h5": "weights",
    ".msgpack": "weights",
    ".onnx": "weights",
    ".gguf": "weights",
}


@dataclass(frozen=True)
class Report:
    """What a path is. It can be loaded where `problems`, sentences for the user, is empty.

    `kind` is "checkpoint"; "adapter", "collection" or "part", which are none; or "unknown". What can't be told is None.
    """

    path: Path
    kind: str
    problems: tuple[str, ...] = ()
    inside: tuple[Path, ...] = ()  #: the checkpoints to be had in place of a path that is none
    form: str | None = None
    family: str | None = None
    architecture: str | None = None
    parameters: int | None = None
    context: int | None = None  #: the model's own window in tokens
    nbytes: int | None = None  #: of the files of the weights
    tokenizer: str | None = None
    vocabulary: int | None = None
    chat_format: str | None = None
    prefix_rows: int = 0
    leftovers: tuple[str, ...] = ()  #: tensors that will be ignored
    unread: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  #: files that will be, by what they are

    @property
    def loads(self) -> bool:
        return not self.problems


def inspect(path: str | Path) -> Report:
    """Says what a path is, and what it lacks. Raises nothing: what can't be read is one of the problems."""
    path = Path(path)
    try:
        other = next(filter(None, (recognise(path) for recognise in OTHERS)), None)
        return other or _describe(path, open_checkpoint(path))
    except CheckpointError as error:
        return Report(path, "checkpoint" if is_checkpoint(path) else "unknown", (str(error),))
    except OSError as error:
        return Report(path, "unknown", (f"{path} can't be read ({error.strerror or error}).",))


def _describe(path: Path, checkpoint: StoredCheckpoint) -> Report:
    form, problems = checkpoint.form, _Problems()
    needs = problems.ask(lambda: footprint(checkpoint.config))
    if needs is None:
        return Report(path, "checkpoint", problems.said, form=form)
    model = empty_model(checkpoint.config)
    loaded = LoadedModel(model, resolve(checkpoint.config), checkpoint, "fp16", torch.device("meta"), needs.context)
    leftovers = problems.ask(lambda: _match(model, checkpoint))
    files = problems.ask(checkpoint.files)
    tokenizer = problems.ask(lambda: loaded.tokenizer)
    chat = tokenizer and problems.ask(lambda: loaded.chat_format)
    if needs.prefix:
        problems.ask(lambda: Encoder.of(checkpoint, checkpoint.outline()).check(model.args))
    return Report(
        path,
        "checkpoint",
        problems.said,
        form=form,
        family=loaded.family,
        architecture=loaded.architecture,
        parameters=needs.parameters,
        context=needs.context,
        nbytes=problems.ask(checkpoint.nbytes),
        tokenizer=tokenizer and tokenizer.kind,
        vocabulary=tokenizer and len(tokenizer),
        chat_format=chat and chat.title,
        prefix_rows=needs.prefix,
        leftovers=leftovers or (),
        unread=_unread(path, files or []),
    )


class _Problems:
    """Collects the sentences of what fails, so that one does not hide the others."""

    def __init__(self) -> None:
        self._said: dict[str, None] = {}

    def ask(self, part: Callable[[], Result]) -> Result | None:
        try:
            return part()
        except CheckpointError as error:
            self.say(str(error))
            return None

    def say(self, sentence: str) -> None:
        self._said[sentence] = None

    @property
    def said(self) -> tuple[str, ...]:
        return tuple(self._said)


def _match(model: BaseModel, checkpoint: StoredCheckpoint) -> tuple[str, ...]:
    """Holds the names and shapes of a checkpoint's tensors against the model's; returns what will be ignored."""
    expected = {name: parameter.shape for name, parameter in model.named_parameters()}
    missing, leftovers = set(expected), []
    has_prefix = prefix_rows(checkpoint.config) > 0
    for name, tensor in checkpoint.outline():
        if has_prefix and name.startswith(PREFIX_ENCODER):
            continue
        if model.is_leftover(name):
            leftovers.append(name)
        elif (placed := model.sanitize(name, tensor)) is not None:
            refuse_misplaced(*placed, expected, missing, checkpoint)
            missing.discard(placed[0])
    refuse_missing(missing, checkpoint)
    return tuple(leftovers)


def _unread(path: Path, used: list[Path]) -> dict[str, tuple[str, ...]]:
    """The files beside a folder's weights that nothing will read, by what they are."""
    if not path.is_dir():
        return {}
    names = {file.name for file in used}
    found = sorted(file for file in path.iterdir() if file.suffix in UNREAD and file.name not in names)
    kinds = dict.fromkeys(UNREAD[file.suffix] for file in found)
    return {kind: tuple(file.name for file in found if UNREAD[file.suffix] == kind) for kind in kinds}


# What is no checkpoint, though it has to do with one.


def _adapter(path: Path) -> Report | None:
    if not is_adapter(path):
        return None
    problems = _Problems()
    of = problems.ask(lambda: open_adapter(path).base) or "a model that it does not name"
    problems.say(f"{path} changes {of} and is no model; load that one, with this folder as the adapter.")
    return Report(path, "adapter", problems.said)


def _collection(path: Path) -> Report | None:
    if not path.is_dir() or _is_one(path) or not (inside := tuple(_checkpoints_in(path))):
        return None
    return Report(path, "collection", (f"{path} is no checkpoint itself; give one of those that are in it.",), inside)


def _is_one(folder: Path) -> bool:
    """Whether a folder can be opened, and not merely has GGUF files of several models in it."""
    several = len(models_among(folder.glob(f"*{SUFFIX}"))) > 1 and not (folder / "config.json").is_file()
    return is_checkpoint(folder) and not several


def _checkpoints_in(folder: Path, levels: int = 2) -> Iterator[Path]:
    """The checkpoints in a folder, and in those that it holds: as deep as a download cache has them."""
    entries = sorted(folder.iterdir()) if levels else []
    yield from models_among(entry for entry in entries if entry.suffix == SUFFIX and entry.is_file())
    for inner in (entry for entry in entries if entry.is_dir()):
        yield from [inner] if _is_one(inner) else _checkpoints_in(inner, levels - 1)


def _part(path: Path) -> Report | None:
    if not path.is_file() or is_checkpoint(path) or path.suffix not in UNREAD or not is_checkpoint(path.parent):
        return None
    return Report(path, "part", (f"{path} is only a part of a checkpoint; give its folder.",), (path.parent,))


OTHERS: tuple[Callable[[Path], Report | None], ...] = (_adapter, _collection, _part)
