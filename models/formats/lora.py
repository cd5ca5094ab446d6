"""LoRA adapters in PEFT's form: adapter_config.json with adapter_model.safetensors or adapter_model.bin."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from ..base import BaseModel, CheckpointError, Place, impossible, is_number, refuse_no_numbers
from ..files import read_object
from ..low_rank import LowRank, beside
from .base import Checkpoint, Weight, floats
from .pickles import PickledFile
from .shards import open_shard

#: Settings that change what the tensors mean, with what is said of each. (fan_in_fan_out does not: PEFT heeds it for
#: layers that store their matrices turned, and none of ours do.)
UNSUPPORTED = {
    "enable_lora": "it was written by a PEFT older than 0.3",
    "lora_bias": "it adds biases to its matrices",
    "layer_replication": "it repeats layers of its base",
    "target_parameters": "it changes experts",
    "trainable_token_indices": "it changes single rows of the embedding",
    "alora_invocation_tokens": "it works behind certain tokens only",
    "use_qalora": "it was trained on a pooled input",
    "use_bdlora": "its matrices are made of blocks",
    "arrow_config": "it mixes several adapters",
    "velora_config": "it is of the kind VeLoRA",
    "monteclora_config": "it is of the kind MonteCLoRA",
    "kasa_config": "it is of the kind KaSA",
}
#: Ways of starting that took something out of the base's weights, so that the published base is not what was trained.
CHANGES_BASE = ("pissa", "corda", "olora", "loftq", "lora_ga", "mica")

PART = re.compile(
    r"(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)"
    r"(?:\.(?!weight$|bias$)[^.]+)?(?:\.weight)?"  # the adapter's own name, which newer files leave out
)
SAVED = re.compile(r"\.modules_to_save(?:\.[^.]+)?(?=\.(?:weight|bias)$)|\.base_layer(?=\.(?:weight|bias)$)")

EMBEDDINGS = ("embed_tokens.weight", "word_embeddings.weight")
HEADS = ("lm_head.weight", "output_layer.weight")
VOCABULARIES = ("padded_vocab_size", "vocab_size")

DEFAULT = 8  #: what r and lora_alpha are where adapter_config.json leaves them out

Read = Callable[[], torch.Tensor]


class LoraAdapter:
    mergeable = True

    def __init__(self, path: Path) -> None:
        self.path = path
        self._settings_file = path / "adapter_config.json"
        self._settings = read_object(self._settings_file)
        self.base = self._settings.get("base_model_name_or_path") or None
        self._refuse_unsupported()

    @staticmethod
    def recognises(path: Path) -> bool:
        return (path / "adapter_config.json").is_file()

    def _refuse_unsupported(self) -> None:
        settings = self._settings
        kind = str(settings.get("peft_type", "LORA"))
        if kind.upper() != "LORA":
            raise CheckpointError(
                f"{self.path} is an adapter of the type {kind}, which can't be applied here; LORA can."
            )
        reasons = [reason for key, reason in UNSUPPORTED.items() if settings.get(key)]
        start = str(settings.get("init_lora_weights", "")).lower()
        if start.startswith(CHANGES_BASE):
            reasons.append(f"it began by changing its base ({start}), and was not converted when it was saved")
        if reasons:
            raise CheckpointError(f"{self.path} can't be applied here: {reasons[0]}; merge it with PEFT instead.")

    # What is in it

    @cached_property
    def _file(self) -> Path:
        for name in ("adapter_model.safetensors", "adapter_model.bin"):
            if (self.path / name).is_file():
                return self.path / name
        raise CheckpointError(
            f"adapter_model.safetensors or .bin is missing in {self.path}; download it from the same repository."
        )

    @cached_property
    def _sorted(self) -> tuple[dict[str, dict[str, Read]], dict[str, Read]]:
        """The parts of each changed module, and what replaces whole tensors; nothing is read yet."""
        parts: dict[str, dict[str, Read]] = defaultdict(dict)
        replaced: dict[str, Read] = {}
        for key, read in _open(self._file).items():
            name = key.removeprefix("base_model.model.")
            if ".original_module." in name:
                continue
            if found := PART.fullmatch(name):
                parts[found["module"]][found["part"]] = read
            elif name.endswith((".weight", ".bias")):
                replaced[SAVED.sub("", name)] = read
            else:
                raise CheckpointError(f"{self._file} holds {key}, which is no part of a LoRA adapter; get one.")
        if not parts and not replaced:
            raise CheckpointError(f"{self._file} holds no tensors; download it again.")
        return parts, replaced

    @property
    def _parts(self) -> Mapping[str, Mapping[str, Read]]:
        return self._sorted[0]

    @property
    def _replaced(self) -> Mapping[str, Read]:
        return self._sorted[1]

    @cached_property
    def switchable(self) -> bool:
        """No more than products beside matrices. Heads stay out: Baichuan2's is normed with the change in it."""
        linear = all(parts.keys() <= {"lora_A", "lora_B"} for parts in self._parts.values())
        return linear and not self._replaced and not any(f"{name}.weight".endswith(HEADS) for name in self._parts)

    @property
    def numbers(self) -> int:
        return sum(matrix.numel() for module in self._parts for matrix in self._pair(module))

    def files(self) -> list[Path]:
        return [self._settings_file, self._file]

    def nbytes(self) -> int:
        return self._file.stat().st_size

    # One change

    def _pair(self, module: str) -> tuple[torch.Tensor, torch.Tensor]:
        """up [rows, r] and down [r, columns] as they are in the file; embeddings are written the other way round."""
        embeds = any("embedding" in part for part in self._parts[module])
        down, up = (self._part(module, ("lora_embedding_" if embeds else "lora_") + side)() for side in "AB")
        rank = self._setting("r", "rank_pattern", module)
        if up.ndim != 2 or down.ndim != 2 or not up.shape[1] == down.shape[0] == rank:
            shapes = f"{list(down.shape)} and {list(up.shape)}"
            raise CheckpointError(
                f"{module} in {self._file} has {shapes}, but adapter_config.json says r = {rank}; download both again."
            )
        return (down.T, up.T) if embeds else (up, down)

    def _change(self, module: str, first: int = 0) -> LowRank:
        """The change of a module, scaled, to be added from a row on."""
        up, down = (self._numbers(module, matrix) for matrix in self._pair(module))
        rank = down.shape[0]
        alpha = self._setting("lora_alpha", "alpha_pattern", module)
        scale = alpha / (math.sqrt(rank) if self._settings.get("use_rslora") else rank)
        return LowRank(up * scale, down, first, self._magnitude(module, len(up)))

    def _magnitude(self, module: str, rows: int) -> torch.Tensor | None:
        if "lora_magnitude_vector" not in self._parts[module]:
            return None
        magnitude = self._numbers(module, self._part(module, "lora_magnitude_vector")()).flatten()
        if len(magnitude) != rows or "lora_A" not in self._parts[module]:
            raise CheckpointError(
                f"{module}.lora_magnitude_vector in {self._file} does not belong to {rows} rows; download it again."
            )
        return magnitude

    def _part(self, module: str, part: str) -> Read:
        if part not in self._parts[module]:
            raise CheckpointError(f"{module}.{part} is missing in {self._file}; download it again.")
        return self._parts[module][part]

    def _numbers(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_floating_point() or tensor.numel() == 0:
            kind = f"{tensor.dtype} {list(tensor.shape)}".removeprefix("torch.")
            raise CheckpointError(f"{name} in {self._file} is {kind}, which can't be applied; get it as floats.")
        refuse_no_numbers(name, tensor, self._file)
        return tensor.float()

    def _setting(self, key: str, patterns: str, module: str) -> float:
        """A number of adapter_config.json for a module: by the first pattern that its name ends in, or everybody's."""
        try:
            special = (self._settings.get(patterns) or {}).items()
            matching = (value for pattern, value in special if re.fullmatch(rf"(.*\.)?({pattern})", module))
            value = next(matching, self._settings.get(key, DEFAULT))
        except (AttributeError, re.error) as error:
            raise impossible(self._settings_file, patterns, self._settings[patterns]) from error
        if not is_number(value):
            raise impossible(self._settings_file, key, value)
        return value

    # Applying it

    def config(self, base: dict[str, Any]) -> dict[str, Any]:
        """Replaced embeddings bring their vocabulary, a replaced head is one of its own."""
        changed = dict(base)
        for name, read in self._replaced.items():
            if name.endswith(EMBEDDINGS):
                key = next(key for key in VOCABULARIES if key in base)
                changed[key] = self._rows(name, read())
            elif name.endswith(HEADS):
                changed["tie_word_embeddings"] = False
        return changed

    def _rows(self, name: str, embedding: torch.Tensor) -> int:
        if embedding.ndim != 2 or not embedding.numel():
            shape = list(embedding.shape)
            raise CheckpointError(f"{name} in {self._file} has the shape {shape}; download it again.")
        return len(embedding)

    def check(self, model: BaseModel) -> None:
        shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        for module in self._parts:
            up, down = self._pair(module)
            self._check(module, (up.shape[0], down.shape[1]), model.place(f"{module}.weight"), shapes)
        for name, read in self._replaced.items():
            self._check(name, tuple(read().shape), model.place(name), shapes)

    def _check(self, name: str, shape: tuple[int, ...], place: Place, shapes: Mapping[str, tuple[int, ...]]) -> None:
        made_for = self._settings.get("base_model_name_or_path") or "another model"
        if place.name not in shapes:
            raise CheckpointError(f"{self._file} changes {name}, which this base does not have; it is for {made_for}.")
        whole = shapes[place.name]
        expected = whole if place.rows is None else (place.rows, *whole[1:])
        if shape != expected:
            found = f"{list(shape)} where this base has {list(expected)}"
            raise CheckpointError(f"{self._file} changes {name}, {found}; it is for {made_for}.")

    def tensors(self, base: Checkpoint, model: BaseModel) -> Iterator[tuple[str, Weight]]:
        changes = self._by_place(model)
        replaced = {model.place(name): name for name in self._replaced}
        for name, weight in base.tensors():
            place = model.place(name)
            if place in replaced:
                weight = self._replacement(replaced.pop(place))
            if place.name in changes:
                weight = floats(weight)
                for module, first in changes[place.name]:
                    self._change(module, first).add_to(weight, place.first)
            yield name, weight
        for name in replaced.values():  # the head of a base that had none of its own
            yield name, self._replacement(name)

    def _replacement(self, name: str) -> torch.Tensor:
        return self._numbers(name, self._replaced[name]())

    def beside(self, model: BaseModel, device: torch.device) -> BaseModel:
        changes = {
            place.removesuffix(".weight"): [self._change(module, first) for module, first in modules]
            for place, modules in self._by_place(model).items()
        }
        return beside(model, changes, device)

    def _by_place(self, model: BaseModel) -> dict[str, list[tuple[str, int]]]:
        """Which modules change each of the model's matrices, and from which row on."""
        changes = defaultdict(list)
        for module in self._parts:
            place = model.place(f"{module}.weight")
            changes[place.name].append((module, place.first))
        return changes


def _open(path: Path) -> dict[str, Read]:
    if path.suffix == ".safetensors":
        return open_shard(path)
    file = PickledFile(path)
    return {name: partial(file.read, name) for name in file}
