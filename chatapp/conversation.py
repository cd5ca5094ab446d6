"""What of a conversation goes into the window: exact tokens, whole turns, nothing left out silently."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from knowledge import Passage
from models import LoadedModel, Prompt

from . import summary as summaries
from .effort import Effort
from .ledger import Entry, Ledger, LeftOut, attribute
from .summary import Summary

#: A reply may always be this long, in tokens, or a quarter of a window that is smaller.
REPLY = 512
#: Characters by which a turn is known in lists.
TITLE = 60
ALL_THAT_FITS = Effort()

#: The parts of the message that asks, put together without anything between them: the question alone, or an
#: instruction, each passage, and the question.
Wording = Callable[[Sequence[Passage]], Sequence[str]]


class QuestionTooLong(ValueError):
    """The question, or what must go with it, does not fit; the text says how long it may be."""


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
class Aside:
    """A summary that the model is to write before the reply; `planned` makes the plan with what it has written."""

    prompt: Prompt
    longest: int  #: tokens
    planned: Callable[[str], Plan]


@dataclass(frozen=True)
class Plan:
    """The prompt of one turn, and the ledger of what went into it and what did not."""

    prompt: Prompt
    passages: tuple[Passage, ...]
    exchanges: int  #: how many are in it
    ledger: Ledger
    aside: Aside | None = None

    @property
    def reply(self) -> int:
        """Tokens that the reply may take."""
        return self.ledger.reply

    @property
    def dropped_turns(self) -> int:
        """How many of the oldest exchanges were left out."""
        return self.ledger.missing("exchange")

    @property
    def dropped_passages(self) -> int:
        """How many of the weakest passages were left out."""
        return self.ledger.missing("passage")

    def continued(self, begun: Sequence[int]) -> Plan:
        """The plan with what the reply has written so far behind its prompt."""
        if not begun:
            return self
        return replace(self, prompt=self.prompt.continued(begun), ledger=self.ledger.begun(len(begun)))

    def reusing(self, tokens: int) -> Plan:
        """The plan with so many tokens of its prompt that need not be read."""
        return replace(self, ledger=replace(self.ledger, reused=tokens))


def reply_budget(context: int, wanted: int = REPLY) -> int:
    """Tokens that are kept free for the reply, whatever else wants to go into the window."""
    return min(wanted, max(context // 4, 1))


def plan(
    loaded: LoadedModel,
    history: Sequence[Turn],
    question: Wording,
    passages: Sequence[Passage] = (),
    system: str | None = None,
    reply: int = REPLY,
    effort: Effort = ALL_THAT_FITS,
    summary: Summary | None = None,
) -> Plan:
    """Fits a turn into the window, whole messages only; what is left out is in the ledger.

    First come the question and its best passage, then the newest exchange, then the other passages from the best down,
    then older exchanges from the newest back; of neither more than the effort allows. A summary goes with the system
    message. Raises QuestionTooLong.
    """
    room = loaded.context - reply_budget(loaded.context, reply)
    draft = _Draft(loaded, system, _exchanges(history), question, summary)
    allowed = list(passages[: effort.passages])
    longest = len(draft.exchanges) if effort.exchanges is None else min(effort.exchanges, len(draft.exchanges))

    def fits(kept: int, passages: Sequence[Passage]) -> bool:
        return len(draft.prompt(kept, passages).ids) <= room

    least = allowed[:1]
    if not fits(0, least):
        raise QuestionTooLong(_refusal(draft, least, room))
    newest = 1 if longest and fits(1, least) else 0
    quoted = list(allowed)
    while not fits(newest, quoted):
        quoted.pop()
    # From the newest back: rendering all of a long conversation again and again would hold up the queue.
    kept = newest
    while 0 < kept < longest and fits(kept + 1, quoted):
        kept += 1
    fitted = draft.prompt(kept, quoted)
    left_out = (
        *_exchanges_left_out(draft.exchanges, kept, longest),
        *(_passage_left_out(passage, "room") for passage in allowed[len(quoted) :]),
        *(_passage_left_out(passage, "memory") for passage in passages[len(allowed) :]),
    )
    entries = draft.entries(fitted, kept, quoted)
    ledger = Ledger(loaded.context, min(reply, loaded.context - len(fitted.ids)), entries, left_out, summary)
    return Plan(fitted, tuple(quoted), kept, ledger)


def summarising(
    loaded: LoadedModel, history: Sequence[Turn], make: Callable[[Summary | None], Plan], kept: Summary | None
) -> Plan:
    """The plan with a summary of what has no room, if something has none.

    The one that was kept is used while it covers all of that; otherwise the plan asks for a new one. It covers some of
    the exchanges that still fit as well, so that it lasts for some turns.
    """
    plain = make(None)
    if not plain.dropped_turns:
        return plain
    if kept is not None:
        try:
            made = make(kept)
        except QuestionTooLong:
            return plain
        if made.dropped_turns <= kept.exchanges:
            return made
    exchanges = _exchanges(history)
    covered = plain.dropped_turns + (plain.exchanges + 1) // 2
    start = kept.exchanges if kept is not None and kept.exchanges < covered else 0
    longest = summaries.longest(loaded.context)
    prompt = _summary_prompt(loaded, exchanges[start:covered], kept if start else None, loaded.context - longest)
    if prompt is None:
        return plain
    return replace(plain, aside=Aside(prompt, longest, lambda text: make(Summary(text, covered))))


def _summary_prompt(
    loaded: LoadedModel, exchanges: Sequence[Sequence[Turn]], earlier: Summary | None, room: int
) -> Prompt | None:
    """What asks for a summary of the newest exchanges that fit; None where not even one does."""
    for first in range(len(exchanges)):
        said = [(turn.role, turn.content) for exchange in exchanges[first:] for turn in exchange]
        prompt = loaded.chat_prompt([Turn("user", summaries.request(said, earlier)).message()])
        if len(prompt.ids) <= room:
            return prompt
    return None


@dataclass(frozen=True)
class _Draft:
    """What a prompt could be made of."""

    loaded: LoadedModel
    system: str | None
    exchanges: Sequence[Sequence[Turn]]
    question: Wording
    summary: Summary | None = None

    def before(self, kept: int) -> list[Turn]:
        """The messages in front of the question, with the newest `kept` exchanges."""
        newest = self.exchanges[len(self.exchanges) - kept :]
        told = [part for part in (self.system, self.summary and self.summary.message()) if part]
        opening = [Turn("system", "\n\n".join(told))] if told else []
        return [*opening, *(turn for exchange in newest for turn in exchange)]

    def prompt(self, kept: int, passages: Sequence[Passage]) -> Prompt:
        return self.saying("".join(self.question(passages)), kept)

    def saying(self, text: str, kept: int = 0) -> Prompt:
        """The prompt with this text as the last message."""
        turns = [*self.before(kept), Turn("user", text)]
        return self.loaded.chat_prompt([turn.message() for turn in turns])

    def entries(self, prompt: Prompt, kept: int, passages: Sequence[Passage]) -> tuple[Entry, ...]:
        """What the tokens of a prompt are spent on."""
        messages = [_turn_entry(turn) for turn in self.before(kept)]
        quoting = [Entry("instruction"), *map(_passage_entry, passages)] if passages else []
        texts = self.question(passages)
        spent = attribute(prompt, messages, [*quoting, Entry("question")], texts, partial(self.saying, kept=kept))
        return spent if self.summary is None else self._with_summary(spent, prompt, kept, texts)

    def _with_summary(
        self, spent: tuple[Entry, ...], prompt: Prompt, kept: int, texts: Sequence[str]
    ) -> tuple[Entry, ...]:
        """The entries with the summary's tokens, which are those that the prompt would not have without it."""
        frame, system, *rest = spent
        without = replace(self, summary=None).saying("".join(texts), kept)
        tokens = min(max(len(prompt.ids) - len(without.ids), 0), system.tokens) if self.system else system.tokens
        own = [replace(system, tokens=system.tokens - tokens)] if self.system else []
        return (frame, *own, Entry("summary", tokens, title(self.summary.text)), *rest)


def _turn_entry(turn: Turn) -> Entry:
    if turn.role == "system":
        return Entry("system")
    return Entry("turn", title=title(turn.content), role=turn.role)


def _passage_entry(passage: Passage) -> Entry:
    return Entry("passage", title=passage.name, page=passage.page, score=round(passage.score, 4))


def _passage_left_out(passage: Passage, reason: str) -> LeftOut:
    return LeftOut("passage", reason, passage.name, passage.page, round(passage.score, 4))


def _exchanges_left_out(exchanges: Sequence[Sequence[Turn]], kept: int, longest: int) -> Iterator[LeftOut]:
    """From the oldest; of the newest `longest` those that are not kept had no room."""
    for newer, exchange in zip(range(len(exchanges), kept, -1), exchanges, strict=False):
        yield LeftOut("exchange", "memory" if newer > longest else "room", title(exchange[0].content))


def title(text: str) -> str:
    """How a message begins, for lists."""
    first = " ".join(text[: 2 * TITLE].split())
    return first if len(first) <= TITLE else f"{first[: TITLE - 1]}…"


def _refusal(draft: _Draft, least: Sequence[Passage], room: int) -> str:
    """Why even the question alone does not fit, and how long it may be."""
    *quoted, asked = draft.question(least)
    total = len(draft.prompt(0, least).ids)
    without = len(draft.saying("".join(quoted)).ids)
    if without < room:
        what = "The question beside the best passage" if quoted else "The question"
        return _too_long(what, asked, total - without, room - without)
    if quoted and len(draft.saying("").ids) < room:
        return (
            f"The best passage takes {without} tokens and the window has room for {room}; ask without the documents, "
            "or give the model a longer window."
        )
    bare = len(replace(draft, system=None).saying("").ids)
    if draft.system and bare < room:
        return _too_long("The system prompt", draft.system, len(draft.saying("").ids) - bare, room - bare)
    return (
        f"The chat format alone takes {bare} tokens and the window has room for {room}; give the model a longer "
        "window, or choose another format."
    )


def _too_long(what: str, text: str, tokens: int, allowed: int) -> str:
    characters = max(len(text) * allowed // tokens, 1)
    step = 10 ** max(len(str(characters)) - 2, 0)
    return (
        f"{what} takes {tokens} tokens and the window has room for {allowed}, about {characters // step * step} "
        f"characters; shorten it by {tokens - allowed} tokens."
    )


def continuing(loaded: LoadedModel, begun: Turn, make_plan: Callable[[LoadedModel], Plan]) -> Plan:
    """The plan of a reply that goes on where it ended; what it has written takes its room in the window.

    `begun` is the reply so far. Raises QuestionTooLong where that fills the window.
    """
    ids = begun.ids or loaded.reply_ids(begun.content)
    try:
        made = make_plan(loaded.within(loaded.context - len(ids)))
    except QuestionTooLong as error:
        raise QuestionTooLong("The reply fills the window with its question; it can't be continued.") from error
    whole = replace(made.ledger, context=loaded.context, reply=made.reply + len(ids))
    return replace(made, ledger=whole).continued(ids)


def _exchanges(history: Sequence[Turn]) -> list[list[Turn]]:
    """The turns grouped so that each group starts with a user's message."""
    groups: list[list[Turn]] = []
    for turn in history:
        if turn.role == "user" or not groups:
            groups.append([])
        groups[-1].append(turn)
    return groups
