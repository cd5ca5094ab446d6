"""What of a conversation goes into the window: exact tokens, whole turns, nothing left out silently."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from knowledge import Passage
from models import LoadedModel, Prompt

#: A reply may always be this long, in tokens, or a quarter of a window that is smaller.
REPLY = 512


class QuestionTooLong(ValueError):
    """The question alone does not fit; the text says how long it may be."""


@dataclass(frozen=True)
class Turn:
    """A message that was said. `ids` are a reply's tokens as they were generated, by the model named `model`."""

    role: str
    content: str
    ids: tuple[int, ...] | None = None
    model: str | None = None

    def seen_by(self, model: str, vocabulary: int) -> Turn:
        """The turn for this model: another one's ids would be other words to it, or none at all.

        A checkpoint of the same name may be another one, and an imported file may say anything.
        """
        known = self.model == model and all(id < vocabulary for id in self.ids or ())
        return self if known else replace(self, ids=None)

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
    """Tokens that are kept free for the reply, whatever else wants to go into the window."""
    return min(wanted, max(context // 4, 1))


def plan(
    loaded: LoadedModel,
    history: Sequence[Turn],
    question: Callable[[Sequence[Passage]], str],
    passages: Sequence[Passage] = (),
    system: str | None = None,
    reply: int = REPLY,
) -> Plan:
    """Fits a turn into the window, whole messages only; what is left out is counted.

    First come the question and its best passage, then the newest exchange, then the other passages from the best down,
    then older exchanges from the newest back. `question` words the turn with the passages that it is given. Raises
    QuestionTooLong.
    """
    room = loaded.context - reply_budget(loaded.context, reply)
    first = [Turn("system", system)] if system else []
    exchanges = _exchanges(history)

    def prompt(kept: int, passages: Sequence[Passage]) -> Prompt:
        newest = exchanges[len(exchanges) - kept :]
        turns = [turn for exchange in newest for turn in exchange]
        return loaded.chat_prompt([turn.message() for turn in (*first, *turns, Turn("user", question(passages)))])

    def fits(kept: int, passages: Sequence[Passage]) -> bool:
        return len(prompt(kept, passages).ids) <= room

    least = passages[:1]
    if not fits(0, least):
        raise QuestionTooLong(_too_long(len(prompt(0, least).ids), room, bool(least)))
    newest = 1 if exchanges and fits(1, least) else 0
    quoted = list(passages)
    while not fits(newest, quoted):
        quoted.pop()
    # From the newest back: rendering all of a long conversation again and again would hold up the queue.
    kept = newest
    while 0 < kept < len(exchanges) and fits(kept + 1, quoted):
        kept += 1
    fitted = prompt(kept, quoted)
    left = loaded.context - len(fitted.ids)
    return Plan(fitted, tuple(quoted), len(exchanges) - kept, len(passages) - len(quoted), min(reply, left))


def continuing(loaded: LoadedModel, begun: Turn, make_plan: Callable[[LoadedModel], Plan]) -> Plan:
    """The plan of a reply that goes on where it ended; what it has written takes its room in the window.

    `begun` is the reply so far. Raises QuestionTooLong where that fills the window.
    """
    ids = begun.ids or loaded.reply_ids(begun.content)
    try:
        made = make_plan(loaded.within(loaded.context - len(ids)))
    except QuestionTooLong as error:
        raise QuestionTooLong("The reply fills the window with its question; it can't be continued.") from error
    return replace(made, prompt=made.prompt.continued(ids))


def _too_long(tokens: int, room: int, quoting: bool) -> str:
    what = "The question with the best passage" if quoting else "The question"
    return f"{what} takes {tokens} tokens and the window has room for {room}; shorten it by {tokens - room} tokens."


def _exchanges(history: Sequence[Turn]) -> list[list[Turn]]:
    """The turns grouped so that each group starts with a user's message."""
    groups: list[list[Turn]] = []
    for turn in history:
        if turn.role == "user" or not groups:
            groups.append([])
        groups[-1].append(turn)
    return groups
