"""Which files of a repository make a checkpoint here: one form of the weights, the tokenizer, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from models.formats import gguf_parts

from .hubs import HubError, RemoteFile, is_plain

#: Weights of a folder, the better first; where there are several, their names say how many.
WEIGHTS = (
    re.compile(r"model(?:-(\d{5})-of-(\d{5}))?\.safetensors"),
    re.compile(r"pytorch_model(?:-(\d{5})-of-(\d{5}))?\.bin"),
    re.compile(r"(?!adapter_|consolidated|optimizer|.*lora)[\w.+-]+?(?:-(\d{5})-of-(\d{5}))?\.safetensors"),
)
INDEX = ".index.json"
META = re.compile(r"consolidated\.\d\d\.pth")
ADAPTER = ("adapter_model.safetensors", "adapter_model.bin")
#: What is no model among GGUF files: images' encoders, and what guided the quantizing.
BESIDE = re.compile(r"mmproj|imatrix", re.IGNORECASE)
#: Configs, tokenizers and chat templates.
SMALL = re.compile(r"(?!trainer_state|training_args|.*\.index\.json).*\.(json|model|txt|jinja|tiktoken)")
LARGEST_SMALL = 64 * 2**20
#: What says under which terms a model may be used.
TERMS = re.compile(r"(.*licen[cs]e.*|.*许可.*|notice.*|.*policy.*|readme\.md)", re.IGNORECASE)


@dataclass(frozen=True)
class Variant:
    """Files that make one checkpoint together, named as they are here: without folders. `form` is "folder", "gguf",
    "adapter" or "meta"; `name` is the repository's, or a GGUF model's own."""

    name: str
    form: str
    files: tuple[RemoteFile, ...]

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def weights(self) -> int:
        """Bytes of what is no small file."""
        return sum(file.size for file in self.files if not SMALL.fullmatch(file.name) and not _is_terms(file))


def variants(id: str, files: tuple[RemoteFile, ...]) -> list[Variant]:
    """What can be had of a repository: its folder, then each GGUF model, the smallest first. Raises HubError."""
    name = id.rpartition("/")[2]
    root = {file.path: file for file in files if "/" not in file.path and is_plain(file.path)}
    terms = tuple(file for file in root.values() if _is_terms(file))
    small = tuple(file for file in root.values() if SMALL.fullmatch(file.path) and file.size <= LARGEST_SMALL)
    found = [Variant(name, form, (*weights, *_distinct(small, terms))) for form, weights in _whole(id, root)]
    found += [Variant(model, "gguf", (*parts, *terms)) for model, parts in _gguf(id, files)]
    if not found:
        raise HubError("hub_no_weights", id=id)
    for variant in found:
        _refuse_twins(variant, id)
    return found


def _whole(id: str, root: Mapping[str, RemoteFile]) -> Iterator[tuple[str, tuple[RemoteFile, ...]]]:
    """The weights of the whole repository, where it is a checkpoint or an adapter, and in which form."""
    if "config.json" in root:
        weights = _weights(id, root)
        if weights:
            yield "folder", weights
            return
    adapter = next((root[name] for name in ADAPTER if name in root), None)
    if adapter is not None and "adapter_config.json" in root:
        yield "adapter", (adapter,)
        return
    meta = tuple(file for name, file in sorted(root.items()) if META.fullmatch(name))
    if meta and "params.json" in root:
        yield "meta", meta


def _weights(id: str, root: Mapping[str, RemoteFile]) -> tuple[RemoteFile, ...]:
    incomplete = None
    for pattern in WEIGHTS:
        matches = {name: match for name in root if (match := pattern.fullmatch(name))}
        numbered = {name: match for name, match in matches.items() if match[1]}
        index = next((name for name in root if name.endswith(INDEX) and pattern.fullmatch(name[: -len(INDEX)])), None)
        plain = sorted(matches.keys() - numbered.keys())
        missing = _missing(numbered)
        if numbered and missing is None and (index or not plain):
            beside = (root[index],) if index else ()
            return (*(root[name] for name in sorted(numbered)), *beside)
        if plain:
            return tuple(root[name] for name in plain)
        incomplete = incomplete or missing
    if incomplete is not None:
        raise HubError("hub_incomplete", id=id, name=incomplete)
    return ()


def _missing(numbered: Mapping[str, re.Match[str]]) -> str | None:
    """A file that the names of others tell of and that is not there."""
    for name, match in numbered.items():
        for number in range(1, int(match[2]) + 1):
            start, end = match.span(1)
            other = f"{name[:start]}{number:05}{name[end:]}"
            if other not in numbered:
                return other
    return None


def _gguf(id: str, files: tuple[RemoteFile, ...]) -> Iterator[tuple[str, tuple[RemoteFile, ...]]]:
    """The GGUF models by name, each with all of its files, in whatever folders they are."""
    paths = {PurePosixPath(file.path): file for file in files if file.path.lower().endswith(gguf_parts.SUFFIX)}
    usable = [path for path in paths if is_plain(path.name) and not BESIDE.search(path.name)]
    found = []
    for first in gguf_parts.models_among(usable):
        parts = gguf_parts.siblings(first)
        missing = next((part.name for part in parts if part not in paths), None)
        if missing is not None:
            raise HubError("hub_incomplete", id=id, name=missing)
        found.append((gguf_parts.model_name(first), tuple(paths[part] for part in parts)))
    yield from sorted(found, key=lambda model: sum(part.size for part in model[1]))


def _is_terms(file: RemoteFile) -> bool:
    return TERMS.fullmatch(file.name) is not None and file.size <= LARGEST_SMALL


def _distinct(*groups: tuple[RemoteFile, ...]) -> tuple[RemoteFile, ...]:
    return tuple(dict.fromkeys(file for group in groups for file in group))


def _refuse_twins(variant: Variant, id: str) -> None:
    """Two names that differ in case only are one file on some systems."""
    names = [file.name.casefold() for file in variant.files]
    if len(set(names)) < len(names):
        raise HubError("hub_twins", id=id)
