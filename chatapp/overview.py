"""What `python app.py --plan` prints: the machine, and for each known checkpoint its tier, window and memory."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from models import CheckpointError, Footprint, footprint

from . import checkpoints
from .hardware import GIB, GPU, Machine, detect
from .planner import Memory, Plan, gib, known_checkpoints, plan_footprint, plan_for
from .settings import Settings
from .shelf import Shelf

#: The cards of docs/memory.md, in GiB that are free.
SIZES = (4, 6, 8, 10, 12, 16, 24, 48, 80)


def report(settings: Settings) -> str:
    """The answer to --plan in the form that was asked for."""
    if settings.table:
        return memory_page()
    machine = settings.machine() or detect()
    plans = make_plans(settings, machine)
    return as_json(machine, plans) if settings.json else as_text(machine, plans)


def make_plans(settings: Settings, machine: Machine) -> dict[str, Plan]:
    """A plan for each known checkpoint and for each one on this machine, by name."""
    tier, context = settings.tier, settings.context
    plans = {name: plan_footprint(needs, machine, tier, context) for name, needs in known_footprints().items()}
    return plans | {found.name: _plan_found(found, settings, machine) for found in _on_disk(settings)}


def known_footprints() -> dict[str, Footprint]:
    return {name: footprint(config) for name, config in known_checkpoints().items()}


def _on_disk(settings: Settings) -> Iterator[checkpoints.Found]:
    yield from Shelf(settings).found()
    if settings.model is not None:
        yield checkpoints.Found(checkpoints.name_of(settings.model), settings.model)


def _plan_found(found: checkpoints.Found, settings: Settings, machine: Machine) -> Plan:
    try:
        return plan_for(found.path, machine, settings.tier, settings.context)
    except (CheckpointError, OSError) as error:
        return Plan(None, 0, None, Memory(0, 0, 0, 0), str(error))


def as_json(machine: Machine, plans: Mapping[str, Plan]) -> str:
    """Sizes are bytes; a checkpoint that can't be had has the tier null and the context 0."""
    rows = [{"checkpoint": name, **as_row(plan)} for name, plan in plans.items()]
    return json.dumps({"machine": dataclasses.asdict(machine), "plans": rows}, ensure_ascii=False, indent=2)


def as_row(plan: Plan) -> dict[str, Any]:
    return {
        "tier": plan.tier,
        "context": plan.context,
        "device": plan.device,
        "bytes": dataclasses.asdict(plan.memory),
        "reason": plan.reason,
    }


#: What a table says of a plan, by the head of the column; sizes are GiB.
COLUMNS: Mapping[str, Callable[[Plan], str]] = {
    "tier": lambda plan: plan.tier or "-",
    "window": lambda plan: f"{plan.context:,}",
    "device": lambda plan: plan.device or "-",
    "weights": lambda plan: gib(plan.memory.weights),
    "cache": lambda plan: gib(plan.memory.cache),
    "scratch": lambda plan: gib(plan.memory.scratch),
    "margin": lambda plan: gib(plan.memory.margin),
    "total": lambda plan: gib(plan.memory.total),
}


def as_text(machine: Machine, plans: Mapping[str, Plan]) -> str:
    """For people."""
    return "\n".join([*describe(machine), "", *table("checkpoint (GiB)", plans, list(COLUMNS))])


def describe(machine: Machine) -> Iterator[str]:
    for gpu in machine.gpus:
        yield f"{gpu.device}: {gpu.name}, {gib(gpu.free)} of {gib(gpu.total)} GiB free"
    instructions = ", ".join(machine.instructions) or "no vector instructions known"
    memory = f"{gib(machine.ram_free)} of {gib(machine.ram_total)} GiB free"
    yield f"cpu: {machine.cores} cores ({instructions}), {memory}"
    yield from machine.notes


def table(head: str, plans: Mapping[str, Plan], columns: Sequence[str]) -> Iterator[str]:
    """A line for each plan: its parts in columns, or why it can't be had."""
    width = max(map(len, (head, *plans)))
    yield _line(head, columns, width)
    for name, plan in plans.items():
        cells = [COLUMNS[column](plan) for column in columns]
        yield f"{name:{width}}  {plan.reason}" if plan.tier is None else _line(name, cells, width)


def _line(name: str, cells: Sequence[str], width: int) -> str:
    return f"{name:{width}}" + "".join(f"{cell:>10}" for cell in cells)


def memory_page() -> str:
    """docs/memory.md: the plans for all known checkpoints on cards of many sizes."""
    machines = [Machine(gpus=(GPU(0, f"{size} GB", size * GIB, size * GIB),)) for size in SIZES]
    rows = ["| checkpoint | " + " | ".join(f"{size} GB" for size in SIZES) + " |", "|---" * (len(SIZES) + 1) + "|"]
    for name, needs in known_footprints().items():
        cells = (_cell(plan_footprint(needs, machine)) for machine in machines)
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    return PAGE.format(rows="\n".join(rows))


def _cell(plan: Plan) -> str:
    return "-" if plan.tier is None else f"{plan.tier.upper()}, {plan.context:,}"


PAGE = """\
# What fits where

For each checkpoint that Quatrain knows, and for graphics cards with so many GiB free: the best tier that still leaves a
useful window (about 1,700 tokens: a question, five passages and an answer), and the longest window with it, in tokens.
A dash: not on the card; the CPU is tried next.

Weights, keys and values, scratch memory while a prompt is read, and a margin are counted from the config alone;
`python app.py --plan` shows them for your machine, `--assume cuda:6GB` or `--assume cpu:16GB` for another. The figures
for cards are computed, not measured: no card was at hand.

Made by `python app.py --plan --table > docs/memory.md`; a test compares it with what the program says.

{rows}"""
