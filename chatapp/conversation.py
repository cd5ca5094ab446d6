"""What of a conversation goes into the window: exact tokens, whole turns, nothing left out silently."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from knowledge import Passage
from models import LoadedModel, Prompt

#: A reply may always be this long, in tokens, or a quarter of a window that is smaller.
REPLY = 512


class QuestionTooLong(ValueError):
    """The question alone does not fit; the text says how long it may be."""


@dataclass(frozen=True)
class Turn:
    """A message that was said. `ids` are a reply's tokens as they were generated, for the model that wrote them."""

    role: str
    content: str
    ids: tuple[int, ...] | None = None

    def message(self) -> dict[str, Any]:
        return {"role": self.role, "content": self.content, "ids": list(self.ids) if self.ids else None}


@dataclass(frozen=True)
class Plan:
    """The prompt of one turn and what did not fit: exchanges from the oldest, passages from the lowest score."""

    prompt: Prompt
    passages: tuple[Passage, ...]
    dropped_turns: int
    dropped_passages: int
    reply: int  #: tokens that the reply may take


def reply_budget(context: int, wanted: int = REPLY) -> int:
    """Tokens reserved for the reply."""
    return min(wanted, max(context // 4, 1))


def plan(
    loaded: LoadedModel,
    history: Sequence[Turn],
    question: Callable[[Sequence[Passage]], str],
    passages: Sequence[Passage] = (),
    system: str | None = None,
    reply: int = REPLY,
) -> Plan:
    """Fits a turn into the window: passages give way first, from the last, then whole exchanges from the oldest.

    `question` words the turn with the passages that it is given. Raises QuestionTooLong.
    """
    reply = reply_budget(loaded.context, reply)
    room = loaded.context - reply
    exchanges = _exchanges(history)
    kept = list(passages)
    first = [Turn("system", system)] if system else []
    # Passages may take what the question with the newest exchange leaves; older exchanges what these leave.
    newest = exchanges[-1] if exchanges else []
    while kept and len(_prompt(loaded, [*first, *newest, Turn("user", question(kept))]).ids) > room:
        kept.pop()
    asked = Turn("user", question(kept))
    while True:
        turns = [turn for exchange in exchanges for turn in exchange]
        prompt = _prompt(loaded, [*first, *turns, asked])
        if len(prompt.ids) <= room:
            dropped = len(_exchanges(history)) - len(exchanges)
            return Plan(prompt, tuple(kept), dropped, len(passages) - len(kept), reply)
        if not exchanges:
            raise QuestionTooLong(_too_long(len(prompt.ids), room))
        exchanges.pop(0)


def _too_long(tokens: int, room: int) -> str:
    return (
        f"The question takes {tokens} tokens and the window has room for {room}; shorten it by {tokens - room} tokens."
    )


def _prompt(loaded: LoadedModel, turns: Sequence[Turn]) -> Prompt:
    return loaded.chat_prompt([turn.message() for turn in turns])


def _exchanges(history: Sequence[Turn]) -> list[list[Turn]]:
    """The turns grouped so that each group starts with a user's message."""
    groups: list[list[Turn]] = []
    for turn in history:
        if turn.role == "user" or not groups:
            groups.append([])
        groups[-1].append(turn)
    return groups
