"""What a turn's window is spent on, to the token, and what was left out of it and why."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

from models import Prompt, shared

from .summary import Summary

#: What entries can be: the format's own words around all messages, a system message, a summary of exchanges that were
#: left out, a turn, what tells the model how to use passages, a passage, the question, the beginning of the reply.
KINDS = ("frame", "system", "summary", "turn", "instruction", "passage", "question", "begun")
#: Why something was left out: the window has no room for it, memory ran out with it, or to read it takes too long.
REASONS = ("room", "memory", "reading time")


@dataclass(frozen=True)
class Entry:
    """A part of the prompt. A turn counts with the format's marks around it: they would go with it."""

    kind: str  #: one of KINDS
    tokens: int = 0
    title: str = ""  #: how a turn begins, or a passage's file
    role: str | None = None  #: of a turn
    page: int | None = None  #: of a passage
    score: float | None = None  #: of a passage


@dataclass(frozen=True)
class LeftOut:
    """An exchange (a question with its reply) or a passage that is not in the prompt."""

    kind: str  #: "exchange" or "passage"
    reason: str  #: one of REASONS
    title: str = ""
    page: int | None = None
    score: float | None = None


@dataclass(frozen=True)
class Ledger:
    """The window of `context` tokens: the entries make up the prompt, `reply` tokens are kept for the answer."""

    context: int
    reply: int
    entries: tuple[Entry, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    summary: Summary | None = None  #: what stands for the oldest exchanges, where one was asked for
    reused: int = 0  #: tokens of the prompt that were read for an earlier one, and are not read again

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Ledger:
        """The ledger that `as_json` was made of."""
        entries = tuple(Entry(**entry) for entry in data["entries"])
        left_out = tuple(LeftOut(**each) for each in data["left_out"])
        summary = Summary(**data["summary"]) if "summary" in data else None
        return cls(data["context"], data["reply"], entries, left_out, summary, data.get("reused", 0))

    @property
    def prompt(self) -> int:
        """Tokens of the prompt."""
        return sum(entry.tokens for entry in self.entries)

    @property
    def used(self) -> int:
        return self.prompt + self.reply

    @property
    def free(self) -> int:
        return self.context - self.used

    def tokens(self, *kinds: str) -> int:
        """Tokens of all entries of these kinds."""
        return sum(entry.tokens for entry in self.entries if entry.kind in kinds)

    def missing(self, kind: str) -> int:
        """How many exchanges or passages were left out."""
        return sum(each.kind == kind for each in self.left_out)

    @property
    def short_of_memory(self) -> bool:
        """Whether something was left out because memory ran out."""
        return any(each.reason == "memory" for each in self.left_out)

    @property
    def read(self) -> int:
        """Tokens of the prompt that are yet to be read."""
        return self.prompt - self.reused

    def begun(self, tokens: int) -> Ledger:
        """The ledger of a prompt behind which a reply has begun; what it has written is no longer to come."""
        return replace(self, reply=self.reply - tokens, entries=(*self.entries, Entry("begun", tokens)))

    def as_json(self) -> dict[str, Any]:
        """The ledger for clients; what an entry has no value for is not there."""
        return {
            "context": self.context,
            "prompt": self.prompt,
            "reply": self.reply,
            "free": self.free,
            "reused": self.reused,
            "read": self.read,
            "entries": [_known(entry) for entry in self.entries],
            "left_out": [_known(each) for each in self.left_out],
            **({"summary": asdict(self.summary)} if self.summary else {}),
        }


def _known(row: Entry | LeftOut) -> dict[str, Any]:
    return {name: value for name, value in asdict(row).items() if value not in (None, "")}


def attribute(
    prompt: Prompt,
    messages: Sequence[Entry],
    parts: Sequence[Entry],
    texts: Sequence[str],
    ask: Callable[[str], Prompt],
) -> tuple[Entry, ...]:
    """Entries with their tokens, which are the prompt's to the last.

    `messages` are the entries of all messages but the last, `parts` those of the last one, which says `texts`, one for
    each part; `ask` makes the same prompt with another text in it. A token that two parts share counts for the later.
    """
    counted = [
        replace(entry, tokens=stop - start)
        for entry, (start, stop) in zip(
            (*messages, *parts), (*prompt.spans[:-1], *pairwise(_cuts(prompt, texts, ask))), strict=True
        )
    ]
    frame = len(prompt.ids) - sum(entry.tokens for entry in counted)
    return (Entry("frame", frame), *counted)


def _cuts(prompt: Prompt, texts: Sequence[str], ask: Callable[[str], Prompt]) -> list[int]:
    """Where in the prompt each part of its last message begins, and where the last one ends.

    A part begins where the prompt with nothing but the parts before it differs from this one.
    """
    begin, stop = prompt.spans[-1]
    nothing = ask("")
    at = min(max(begin, shared(prompt.ids, nothing.ids)), stop)
    closing = nothing.ids[at : nothing.spans[-1][1]]
    end = stop - shared(prompt.ids[at:stop][::-1], closing[::-1])
    cuts = [at]
    for count in range(1, len(texts)):
        before = ask("".join(texts[:count]))
        cuts.append(min(max(cuts[-1], shared(prompt.ids, before.ids)), end))
    return [*cuts, end]
