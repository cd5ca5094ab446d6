"""Which real checkpoints suit this machine and the user's language, better than the small one that comes along."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from models import Footprint, footprint
from models.footprint import TIERS

from ..hardware import Machine
from ..planner import Plan, known_checkpoints, plan_footprint

#: Chat models, for each language the better answers first: their ids at both hubs, what their licence is called at the
#: hubs, whether an account has to ask for them (at Hugging Face), and the languages that they speak well.
TABLE = Path(__file__).with_name("recommended.json")

#: Bytes in a second that weights are read at, by the kind of device: a desktop's memory, and a middling card's. Each
#: token reads all of them once, so that this makes an estimate of the speed.
BANDWIDTH = {"cpu": 20e9, "cuda": 300e9}
#: Tokens in a second from which on a speed is of that class.
SPEEDS = (("fast", 10.0), ("steady", 3.0), ("slow", 0.0))
SLOW = SPEEDS[-1][0]
SHOWN = 3


@dataclass(frozen=True)
class Recommendation:
    """A checkpoint by its id at Hugging Face, and at ModelScope where it is there, with its plan for this machine.

    `size` is what is downloaded, in bytes, and about right: weights in half precision.
    """

    checkpoint: str
    modelscope: str | None
    licence: str
    gated: bool
    size: int
    plan: Plan
    speed: str

    @property
    def name(self) -> str:
        return self.checkpoint.rpartition("/")[2]

    def id_at(self, kind: str) -> str | None:
        """Its id at a kind of hub."""
        return self.modelscope if kind == "modelscope" else self.checkpoint


class Recommender:
    """The table of checkpoints, whose memory is counted once."""

    def recommendations(self, machine: Machine, language: str, here: Collection[str] = ()) -> list[Recommendation]:
        """The best few that fit and speak the language: those that answer at a bearable speed first.

        `here` are names of checkpoints that are on the machine already, without their owners.
        """
        there = {name.casefold() for name in here}
        fitting = [found for found in self._fitting(machine, language) if found.name.casefold() not in there]
        return sorted(fitting, key=lambda found: found.speed == SLOW)[:SHOWN]

    def _fitting(self, machine: Machine, language: str) -> Iterator[Recommendation]:
        for row, needs in self._rows:
            if language not in row["languages"]:
                continue
            plan = bearable(needs, machine)
            if plan.tier is not None and plan.device is not None:
                yield Recommendation(
                    row["checkpoint"],
                    row["modelscope"],
                    row["licence"],
                    row["gated"],
                    needs.weights(needs.kept or "fp16"),
                    plan,
                    speed(plan),
                )

    @cached_property
    def _rows(self) -> list[tuple[dict[str, Any], Footprint]]:
        known = known_checkpoints()
        rows = json.loads(TABLE.read_text(encoding="utf-8"))
        return [(row, footprint(known[row["checkpoint"]])) for row in rows]


def bearable(needs: Footprint, machine: Machine) -> Plan:
    """The planner's choice, or the best lower tier with which a reply does not come slower than it is read."""
    chosen = plan_footprint(needs, machine)
    if needs.kept is not None or chosen.tier not in TIERS or speed(chosen) != SLOW:
        return chosen
    lower = (plan_footprint(needs, machine, tier) for tier in TIERS[TIERS.index(chosen.tier) + 1 :])
    return next((plan for plan in lower if plan.tier is not None and speed(plan) != SLOW), chosen)


def speed(plan: Plan) -> str:
    """The class of a plan's speed, by how long reading all weights takes."""
    kind = str(plan.device).partition(":")[0]
    rate = BANDWIDTH[kind] / plan.memory.weights
    return next(name for name, least in SPEEDS if rate >= least)


def first_time(data: Path, notice: str) -> bool:
    """Whether a notice has not been given yet in this data folder; from now on it has."""
    try:
        (data / "notices").mkdir(parents=True, exist_ok=True)
        (data / "notices" / notice).touch(exist_ok=False)
    except OSError:  # given before, or nothing can be written: it must not come with every message then
        return False
    return True
