"""What `python app.py --inspect PATH` prints: what a path is, what it takes of this machine, what it lacks."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import models
from models import Report
from models.footprint import TIERS

from .checkpoints import FAMILIES
from .hardware import Machine, detect
from .overview import COLUMNS, as_row, describe, table
from .planner import Plan, footprint_of, gib, plan_footprint
from .settings import Settings

#: What is said of files that nothing will read.
UNREAD = {"code": "code, which is never run", "weights": "other files of weights"}
#: How many names of a kind are shown.
SHOWN = 4


@dataclass(frozen=True)
class Inspection:
    """A path's report, and the plans for it: the one that would be chosen, and one for each tier, best first."""

    report: Report
    machine: Machine
    chosen: Plan | None
    tiers: dict[str, Plan]


def inspect(settings: Settings) -> tuple[str, bool]:
    """The answer to --inspect in the form that was asked for, and whether the path can be loaded."""
    found = examine(settings, settings.machine() or detect())
    return as_json(found) if settings.json else "\n".join(as_lines(found)), found.report.loads


def examine(settings: Settings, machine: Machine) -> Inspection:
    report = models.inspect(settings.inspect)
    if report.architecture is None:
        return Inspection(report, machine, None, {})
    needs = footprint_of(report.path)
    chosen, *tiers = (plan_footprint(needs, machine, tier, settings.context) for tier in (settings.tier, *TIERS))
    return Inspection(report, machine, chosen, dict(zip(TIERS, tiers, strict=True)))


def as_json(found: Inspection) -> str:
    """The report's fields; sizes are bytes. `tiers` is empty and `chosen` null where nothing can be planned."""
    answer = {
        "loads": found.report.loads,
        **dataclasses.asdict(found.report),
        "machine": dataclasses.asdict(found.machine),
        "chosen": found.chosen and as_row(found.chosen),
        "tiers": {tier: as_row(plan) for tier, plan in found.tiers.items()},
    }
    return json.dumps(answer, default=str, ensure_ascii=False, indent=2)


def as_lines(found: Inspection) -> Iterator[str]:
    """For people: sizes are GiB."""
    report = found.report
    yield f"{report.path} can be loaded." if report.loads else f"{report.path} can't be loaded."
    yield from (f"- {problem}" for problem in report.problems)
    yield from (f"  {path}" for path in report.inside)
    if report.architecture is not None:
        yield ""
        yield from _facts(report)
    if found.chosen is not None:
        yield ""
        yield from describe(found.machine)
        yield ""
        yield from table("tier (GiB)", found.tiers, [column for column in COLUMNS if column != "tier"])
        yield ""
        yield found.chosen.reason


def _facts(report: Report) -> Iterator[str]:
    yield _fact("model", f"{FAMILIES[report.family]} ({report.architecture}), a {report.form}")
    yield _fact("parameters", f"{report.parameters:,}")
    yield _fact("window", f"{report.context:,} tokens")
    if report.nbytes is not None:
        bits = 8 * report.nbytes / report.parameters
        yield _fact("on disk", f"{gib(report.nbytes)} GiB, {bits:.1f} bits a parameter")
    if report.tokenizer is not None:
        yield _fact("tokenizer", f"{report.tokenizer}, {report.vocabulary:,} tokens")
    if report.chat_format is not None:
        yield _fact("chat format", report.chat_format)
    if report.prefix_rows:
        yield _fact("prefix", f"{report.prefix_rows} rows of P-tuning")
    if report.leftovers:
        yield _fact("ignored", f"{_names(report.leftovers)} (tensors that are not needed)")
    for kind, names in report.unread.items():
        yield _fact("ignored", f"{_names(names)} ({UNREAD[kind]})")


def _fact(name: str, value: str) -> str:
    return f"{name:12} {value}"


def _names(names: Sequence[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more:,} more" if more > 0 else "")
