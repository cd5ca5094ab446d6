"""Where benchmarks find and leave things."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Settings:
    """`data` is the app's data folder; `scratch` holds what benchmarks make and may use again; `only` picks cases."""

    data: Path
    scratch: Path
    only: str = ""
