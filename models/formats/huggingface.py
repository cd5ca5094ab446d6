"""A Hugging Face folder: config.json, safetensors or PyTorch's own files (sharded or not), tokenizer files."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..base import CheckpointError, end_ids, impossible
from ..files import read_object, read_whole
from ..prompts import ChatHints
from ..quantize import Quants
from ..tokenizer import Tokenizer, read_tokenizer
from ..tokenizers.reading import read_settings
from .parts import UNPACK, foreign, join, outline
from .pickles import outline_pickled, read_pickled
from .shards import outline_shard, read_shard

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")
#: The first converter of LLaMA wrote these defaults of the config's class into it; the tokenizer's ids are others.
EARLY_IDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": -1}
TRUE_IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}


@dataclass(frozen=True)
class Kind:
    """A kind of weight files: what one file for all is called, where there are several `pattern` finds them."""

    whole: str
    pattern: str
    read: Callable[[Path], Iterator[tuple[str, torch.Tensor]]]
    outline: Callable[[Path], Iterator[tuple[str, torch.Tensor]]]

    @property
    def index(self) -> str:
        return f"{self.whole}.index.json"


#: The better one first.
KINDS = (
    Kind("model.safetensors", "*.safetensors", read_shard, outline_shard),
    Kind("pytorch_model.bin", "pytorch_model*.bin", read_pickled, outline_pickled),
)
NUMBERED = re.compile(r"(.+)-\d{5}-of-(\d{5})(\.\w+)")
PLAIN = re.compile(r"[\w.+-]{1,200}", re.ASCII)  #: names of files that an index may give


class HuggingFaceCheckpoint:
    form = "Hugging Face folder"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.origin = str(path.resolve())
        config = read_object(path / "config.json")
        if config.get("quantization_bit") not in (None, 0, *UNPACK):
            raise impossible(path / "config.json", "quantization_bit", config["quantization_bit"])
        end_ids(config, path / "config.json")
        if isinstance(others := config.get("quantization_config"), dict):
            raise foreign(path, others.get("quant_method", "bitsandbytes"))
        self.config: dict[str, Any] = config | TRUE_IDS if config.items() >= EARLY_IDS.items() else config

    @staticmethod
    def recognises(path: Path) -> bool:
        return (path / "config.json").is_file()

    @staticmethod
    def glance(path: Path) -> dict[str, Any]:
        return read_object(path / "config.json")

    @classmethod
    def located(cls, path: Path) -> list[Path]:
        """The files of a checkpoint. Raises CheckpointError for one that is missing."""
        return cls(path).files()

    @property
    def quantized(self) -> int:
        return self.config.get("quantization_bit") or 0

    @property
    def precision(self) -> int:
        return self.quantized or 16

    def tensors(self) -> Iterator[tuple[str, torch.Tensor | Quants]]:
        kind, shards = self._weights()
        tensors = (pair for shard in shards for pair in kind.read(shard))
        return join(tensors, self.config.get("quantization_bit"), self.path)

    def outline(self) -> Iterator[tuple[str, torch.Tensor]]:
        kind, shards = self._weights()
        tensors = (pair for shard in shards for pair in kind.outline(shard))
        return outline(tensors, self.config.get("quantization_bit"), self.path)

    def nbytes(self) -> int:
        return sum(shard.stat().st_size for shard in self._weights()[1])

    def files(self) -> list[Path]:
        return [self.path / "config.json", *self._weights()[1]]

    def tokenizer(self) -> Tokenizer:
        return read_tokenizer(self.path, self.config)

    def chat_hints(self) -> ChatHints:
        return read_hints(self.path, self.config)

    def _weights(self) -> tuple[Kind, list[Path]]:
        """The first set of weight files that is complete. Raises CheckpointError naming what is missing."""
        sets = [(kind, shards) for kind in KINDS for shards in _sets(self.path, kind) if shards]
        if not sets:
            kinds = " or ".join(kind.pattern for kind in KINDS)
            raise CheckpointError(f"No weights ({kinds}) are in {self.path}; download them from the same repository.")
        missing = [next((shard for shard in shards if not shard.is_file()), None) for _, shards in sets]
        if None not in missing:
            raise CheckpointError(f"{missing[0].name} is missing in {self.path}; download it from the same repository.")
        return sets[missing.index(None)]


def _sets(folder: Path, kind: Kind) -> Iterator[list[Path]]:
    """Which files of a kind may be all of the weights: those that the index names, one for all, whatever is there.

    The index comes first, since folders may hold other files beside its own; it may be a stale one.
    """
    if (folder / kind.index).is_file():
        yield _indexed(folder / kind.index, Path(kind.whole).suffix)
    if (folder / kind.whole).is_file():
        yield [folder / kind.whole]
    names = {name for file in folder.glob(kind.pattern) for name in _siblings(file.name)}
    yield [folder / name for name in sorted(names)]


def _indexed(index: Path, suffix: str) -> list[Path]:
    """The files that an index names, each beside it and of its kind."""
    files = read_object(index).get("weight_map")
    if not isinstance(files, dict):
        raise CheckpointError(f"{index} is damaged (it says of no tensor where it is); download it again.")
    for tensor, name in files.items():
        if not isinstance(name, str) or not PLAIN.fullmatch(name) or not name.endswith(suffix):
            raise CheckpointError(
                f"{index} is damaged (it says that {tensor} is in {name!r}, which is no {suffix} file beside it); "
                "download it again."
            )
    return sorted({index.parent / name for name in files.values()})


def _siblings(name: str) -> list[str]:
    """A file's name with all that its number says there are, whether they are there or not."""
    match = NUMBERED.fullmatch(name)
    if match is None:
        return [name]
    start, count, end = match.groups()
    numbers = (f"{number:0{len(count)}}" for number in range(1, int(count) + 1))
    return [f"{start}-{number}-of-{count}{end}" for number in numbers]


def read_hints(folder: Path, config: Mapping[str, Any]) -> ChatHints:
    """What the files beside a tokenizer say, and the names that a folder goes by."""
    settings = read_settings(folder / "tokenizer_config.json")
    generation = read_settings(folder / "generation_config.json")
    ends = generation if "eos_token_id" in generation else config
    names = (config.get("_name_or_path"), settings.get("name_or_path"), folder.resolve().name)
    return ChatHints(
        template=_template(folder, settings),
        special_tokens={key: _content(folder, key, settings[key]) for key in SPECIAL_TOKENS if settings.get(key)},
        names=tuple(name.lower() for name in names if isinstance(name, str) and name),
        eos_ids=frozenset(end_ids(ends, folder / "generation_config.json")),
        generation=generation,
    )


def _template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    """chat_template.jinja in newer folders, in older ones a text, or several by name, in tokenizer_config.json."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return read_whole(file).decode("utf-8", errors="replace")
    given = found = settings.get("chat_template")
    if isinstance(found, list):
        named = (entry for entry in found if isinstance(entry, dict) and entry.get("name") == "default")
        found = next((entry.get("template") for entry in named), None)
    if found is not None and not isinstance(found, str):
        raise impossible(folder / "tokenizer_config.json", "chat_template", given)
    return found


def _content(folder: Path, key: str, token: Any) -> str:
    text = token.get("content") if isinstance(token, dict) else token
    if not isinstance(text, str):
        raise impossible(folder / "tokenizer_config.json", key, token)
    return text
