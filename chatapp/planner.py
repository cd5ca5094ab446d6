"""Tier and context window chosen together, from a config and the machine alone, before anything is loaded."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from models import Footprint, adapted, footprint
from models.footprint import TIERS
from models.formats import open_checkpoint

from .hardware import GIB, Machine
from .texts import say

#: Up to this many bytes of FP16 weights a model runs in float32 on the CPU: PyTorch's products are several times faster
#: in it there, and twice a small model's memory is still little.
SMALL = 500_000_000

#: What a useful window holds, in tokens: the chat format's own, a question, five passages, an answer.
CHAT_FRAME, QUESTION, PASSAGES, ANSWER = 88, 100, 5 * 200, 512
USEFUL = CHAT_FRAME + QUESTION + PASSAGES + ANSWER
#: Windows are whole multiples of this, unless they are the model's own.
STEP = 64

#: Kept free: bytes, and a share of the weights for what allocators waste. On the CPU documents need the embedding model
#: with its library; on a card it is PyTorch's own workspaces.
MARGIN = {"cuda": 256 * 2**20, "cpu": GIB}
MARGIN_SHARE = 0.02

TIER_OF_BITS = {16: "fp16", 8: "int8", 4: "int4"}

KNOWN = Path(__file__).with_name("known_checkpoints.json")


@dataclass(frozen=True)
class Memory:
    """Bytes by part."""

    weights: int
    cache: int
    scratch: int
    margin: int

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.scratch + self.margin


@dataclass(frozen=True)
class Plan:
    """How a checkpoint runs; `reason` says in a sentence why so.

    Where it can't run, tier and device are None, context is 0, and `memory` is the least that it needs.
    """

    tier: str | None
    context: int
    device: str | None
    memory: Memory
    reason: str
    left: int = 0  #: bytes that are free beyond that
    option: Option | None = None  #: what was chosen; where nothing fits, what comes nearest
    passed: Option | None = None  #: the next best, which does not fit
    window: int = 0  #: tokens that the sentence names
    whole: bool = False  #: they are all that the model was made for
    lower: bool = False  #: nothing fits, and a lower tier might


@dataclass(frozen=True)
class Place:
    """Somewhere a model can be: a device as PyTorch names it, and its free bytes."""

    device: str
    free: int

    @property
    def kind(self) -> str:
        return self.device.partition(":")[0]


@dataclass(frozen=True)
class Option:
    """A tier at a place, with the memory that the smallest window worth having takes there."""

    place: Place
    tier: str
    memory: Memory

    @property
    def fits(self) -> bool:
        return self.memory.total <= self.place.free


def plan(config: Mapping[str, Any], machine: Machine, tier: str = "auto", context: int | None = None) -> Plan:
    """The plan for a config.json. Raises CheckpointError for a config that can't be run here."""
    return plan_footprint(footprint(config), machine, tier, context)


def plan_for(
    path: Path, machine: Machine, tier: str = "auto", context: int | None = None, adapter: Path | None = None
) -> Plan:
    """The plan for a checkpoint on disk, with an adapter or without. Raises CheckpointError."""
    return plan_footprint(footprint_of(path, adapter), machine, tier, context)


def footprint_of(path: Path, adapter: Path | None = None) -> Footprint:
    """The memory of a checkpoint on disk: only its config or its files' headers are read. Raises CheckpointError."""
    checkpoint = open_checkpoint(path)
    finest, beside = TIER_OF_BITS[checkpoint.precision], 0
    if adapter is not None:
        checkpoint = adapted(checkpoint, adapter)
        beside = checkpoint.adapter.numbers if checkpoint.adapter.switchable else 0  # float32, like norms and biases
    needs = footprint(checkpoint.config)
    return dataclasses.replace(needs, finest=finest, vectors=needs.vectors + beside)


def plan_footprint(needs: Footprint, machine: Machine, tier: str = "auto", context: int | None = None) -> Plan:
    """The best tier that leaves a useful window, at the best place, with the longest window that fits there.

    `tier` ("fp32", "fp16", "int8", "int4") leaves no choice of tier; `context` asks for that window, or for the model's
    own where it is shorter. What was asked for and can't be had is refused, never changed.
    """
    longest = needs.context if context is None else min(context, needs.context)
    least = longest if context is not None else min(USEFUL, longest)
    options = [
        Option(place, each, measure(needs, each, place.kind, least))
        for place in _places(machine)
        for each in _tiers(needs, place.kind, tier)
    ]
    chosen = next((option for option in options if option.fits), None)
    if chosen is None:
        return _refusal(options, least, asked_tier=tier)
    window = _longest_window(needs, chosen, least, longest)
    memory = measure(needs, chosen.tier, chosen.place.kind, window)
    passed = options[: options.index(chosen)]
    made = Plan(chosen.tier, window, chosen.place.device, memory, "", chosen.place.free - memory.total)
    told = {"option": chosen, "passed": passed[-1] if passed else None, "window": window}
    return _told(dataclasses.replace(made, **told, whole=window == needs.context))


def measure(needs: Footprint, tier: str, kind: str, window: int) -> Memory:
    """What a tier with a window takes on a kind of device, "cpu" or "cuda"."""
    weights = needs.weights(tier)
    margin = MARGIN[kind] + int(MARGIN_SHARE * weights)
    return Memory(weights, needs.cache(tier, window), needs.scratch(tier, kind, window), margin)


def known_checkpoints() -> dict[str, dict[str, Any]]:
    """The config of every checkpoint that Quatrain names, by its repository: the keys that matter to models/."""
    return json.loads(KNOWN.read_text(encoding="utf-8"))


def gib(size: int) -> str:
    return f"{size / GIB:,.1f}"


def _places(machine: Machine) -> Iterator[Place]:
    """Where to try, in order: the card with the most free memory, then the CPU."""
    if machine.gpus:
        card = max(machine.gpus, key=lambda gpu: gpu.free)
        yield Place(card.device, card.free)
    if machine.ram_free or not machine.gpus:
        yield Place("cpu", machine.ram_free)


def _tiers(needs: Footprint, kind: str, asked: str) -> tuple[str, ...]:
    """The tiers to try, best first."""
    if asked != "auto":
        return (asked,)
    if needs.kept is not None:
        return (needs.kept,)  # no other tier would bring back what quantizing took
    small = kind == "cpu" and needs.weights("fp16") <= SMALL
    return ("fp32", *TIERS) if small and needs.finest == "fp16" else TIERS[TIERS.index(needs.finest) :]


def _longest_window(needs: Footprint, option: Option, least: int, longest: int) -> int:
    """The longest window in tokens that fits, found by halving; `least` is known to fit."""
    fits = partial(_fits, needs, option)
    if fits(longest):
        return longest
    low, high = least, longest  # low fits, high does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return max(least, low // STEP * STEP)


def _fits(needs: Footprint, option: Option, window: int) -> bool:
    return measure(needs, option.tier, option.place.kind, window).total <= option.place.free


def _refusal(options: list[Option], least: int, asked_tier: str) -> Plan:
    nearest = min(options, key=lambda option: option.memory.total - option.place.free)
    lower = asked_tier not in ("auto", TIERS[-1])
    return _told(Plan(None, 0, None, nearest.memory, "", option=nearest, window=least, lower=lower))


def _told(plan: Plan) -> Plan:
    return dataclasses.replace(plan, reason=explain(plan, "en"))


def explain(plan: Plan, language: str) -> str:
    """Why so, in a sentence; in English where it is no plan but what kept one from being made."""
    if plan.option is None:
        return plan.reason
    figures = _figures(plan.option, plan.memory, language) | {"window": f"{plan.window:,}"}
    if plan.tier is None:
        return say(language, "plan_refused_tier" if plan.lower else "plan_refused", **figures)
    sentence = say(language, "plan_whole" if plan.whole else "plan_part", **figures)
    if plan.passed is None:
        return sentence + say(language, "plan_end")
    figures = _figures(plan.passed, plan.passed.memory, language)
    if plan.passed.place != plan.option.place:
        return sentence + say(language, "plan_next_elsewhere", **figures)
    return sentence + say(language, "plan_next", tier=figures["tier"], total=figures["total"])


def _figures(option: Option, memory: Memory, language: str) -> dict[str, str]:
    place = say(language, "place_cpu" if option.place.kind == "cpu" else "place_card")
    return {"tier": option.tier.upper(), "total": gib(memory.total), "free": gib(option.place.free), "place": place}


#: The parts of a device's memory as `shares` gives them.
PARTS = ("weights", "cache", "work", "others", "free")


def shares(plan: Plan, machine: Machine) -> dict[str, int]:
    """What of its device's memory a plan takes, other programs have, and stays free: bytes by PARTS.

    `machine` is as it is without the model. Empty where nothing runs, or the device is not there.
    """
    sizes = {gpu.device: (gpu.free, gpu.total) for gpu in machine.gpus} | {"cpu": (machine.ram_free, machine.ram_total)}
    free, total = sizes.get(plan.device or "", (0, 0))
    if not total:
        return {}
    memory = plan.memory
    used = (memory.weights, memory.cache, memory.scratch + memory.margin, max(total - free, 0))
    return dict(zip(PARTS, (*used, max(total - sum(used), 0)), strict=True))
