"""What a benchmark finds, as a table for people and as JSON for programs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

SMALLEST = 1e-6  #: what a ratio is divided by at least: JSON has no infinity
COLUMNS = ("name", "ours", "peer", "ratio", "unit", "peer_name")


@dataclass(frozen=True)
class Result:
    """One figure of ours beside its peer's; a ratio above 1 means that ours is better."""

    name: str
    ours: float
    peer: float
    peer_name: str
    ratio: float
    unit: str

    @classmethod
    def less_is_better(cls, name: str, ours: float, peer: float, peer_name: str, unit: str) -> Result:
        return cls(name, ours, peer, peer_name, peer / max(ours, SMALLEST), unit)

    @classmethod
    def more_is_better(cls, name: str, ours: float, peer: float, peer_name: str, unit: str) -> Result:
        return cls(name, ours, peer, peer_name, ours / max(peer, SMALLEST), unit)

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def as_json(results: Iterable[Result]) -> str:
    return json.dumps([result.as_json() for result in results], indent=1)


def table_lines(results: Iterable[Result]) -> Iterator[str]:
    """The lines of a Markdown table, each as soon as its result is there."""
    yield f"| {' | '.join(COLUMNS)} |"
    yield "|" + "---|" * len(COLUMNS)
    for result in results:
        cells = (getattr(result, column) for column in COLUMNS)
        yield f"| {' | '.join(f'{cell:,.4g}' if isinstance(cell, float) else cell for cell in cells)} |"
