"""What a benchmark finds, as a table for people and as JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

SMALLEST = 1e-6  #: what a ratio is divided by at least: JSON has no infinity
COLUMNS = ("name", "ours", "peer", "ratio", "unit", "peer_name")
TABLE = (*COLUMNS, "target")


@dataclass(frozen=True)
class Result:
    """One figure of ours beside its peer's; a ratio above 1 means that ours is better.

    Where the peer is absent, its figure and the ratio are None. `target` says in words what the ratio should be.
    """

    name: str
    ours: float
    peer: float | None
    peer_name: str
    ratio: float | None
    unit: str
    target: str = ""

    @classmethod
    def less_is_better(
        cls, name: str, ours: float, peer: float | None, peer_name: str, unit: str, target: str = ""
    ) -> Result:
        ratio = None if peer is None else peer / max(ours, SMALLEST)
        return cls(name, ours, peer, peer_name, ratio, unit, target)

    @classmethod
    def more_is_better(
        cls, name: str, ours: float, peer: float | None, peer_name: str, unit: str, target: str = ""
    ) -> Result:
        ratio = None if peer is None else ours / max(peer, SMALLEST)
        return cls(name, ours, peer, peer_name, ratio, unit, target)

    def as_json(self) -> dict[str, Any]:
        return {column: getattr(self, column) for column in COLUMNS}


def as_json(results: Iterable[Result]) -> str:
    return json.dumps([result.as_json() for result in results], indent=1)


def table_lines(results: Iterable[Result]) -> Iterator[str]:
    """The lines of a Markdown table, each as soon as its result is there."""
    yield f"| {' | '.join(TABLE)} |"
    yield "|" + "---|" * len(TABLE)
    for result in results:
        yield f"| {' | '.join(_cell(getattr(result, column)) for column in TABLE)} |"


def _cell(value: float | str | None) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else f"{value:,.4g}"
