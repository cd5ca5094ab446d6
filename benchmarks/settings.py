"""Where benchmarks find and leave things."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Settings:
    """`data` is the app's data folder; `scratch` holds what benchmarks make and may use again; `only` picks cases;
    `model` is a checkpoint that takes the place of the embedded chat model."""

    data: Path
    scratch: Path
    only: str = ""
    model: Path | None = None
