"""What a model takes of its device's memory: why so in a sentence, and as a bar with its figures in words."""

from __future__ import annotations

from ..hardware import GIB, Machine
from ..planner import Plan, explain, shares
from ..texts import say

#: The texts of the parts.
TEXTS = {
    "weights": "memory_weights",
    "cache": "memory_cache",
    "work": "memory_work",
    "others": "memory_others",
    "free": "memory_free",
}


def reason(plan: Plan | None, otherwise: str, language: str) -> str:
    """Why a model runs so; in English where there is no plan but a sentence."""
    return explain(plan, language) if plan is not None and plan.option is not None else otherwise


def bar(plan: Plan | None, machine: Machine, language: str) -> str:
    """Weights, cache and the rest as parts of the device's memory; empty where nothing is planned."""
    parts = shares(plan, machine) if plan is not None else {}
    if not parts:
        return ""
    segments = "".join(f'<i class="{name}" style="flex-grow:{size >> 20}"></i>' for name, size in parts.items())
    rows = "".join(
        f'<li><i class="{name}" aria-hidden="true"></i>{say(language, TEXTS[name])} <b>{amount(size)}</b></li>'
        for name, size in parts.items()
    )
    title = "memory_main" if plan.device == "cpu" else "memory_card"
    title = say(language, title, total=amount(sum(parts.values())))
    return (
        f'<div class="memory"><p>{title}</p><div class="bar" aria-hidden="true">{segments}</div><ul>{rows}</ul></div>'
    )


def amount(size: int) -> str:
    """Bytes of memory, in the units of the planner's sentences."""
    return f"{size / GIB:,.1f} GiB" if size >= 0.95 * GIB else f"{size / 2**20:,.0f} MiB"
