"""Which tier a checkpoint runs at. Memory is not planned yet: that comes with the INT4 and INT8 tiers."""

from __future__ import annotations

from pathlib import Path

#: Up to this many bytes on disk a model runs in float32: PyTorch's products are several times faster in it on a CPU,
#: and twice a small model's memory is still little.
SMALL = 500_000_000


def choose_tier(path: Path, asked: str) -> str:
    """The tier asked for, or for "auto" the one that is fastest here."""
    if asked != "auto":
        return asked
    return "fp32" if _bytes_on_disk(path) <= SMALL else "fp16"


def _bytes_on_disk(path: Path) -> int:
    files = [path] if path.is_file() else path.glob("*.safetensors")
    return sum(file.stat().st_size for file in files)
