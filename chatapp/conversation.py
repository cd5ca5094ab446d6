"""What of a conversation goes into the window: exact tokens, whole turns, nothing left out silently."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
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
#: instruction, each passage, and the question. A passage without text stands further up already.
Wording = Callable[[Sequence[Passage]], Sequence[str]]
#: The same of any question.
Quoting = Callable[[str, Sequence[Passage]], Sequence[str]]


class QuestionTooLong(ValueError):
    """The question, or what must go with it, does not fit; the text says how long it may be."""


@dataclass(frozen=True)
class Turn:
    """A message that was said. `ids` are a reply's tokens as they were generated, by the model named `model`.

    `passages` are those that went with a question.
    """

    role: str
    content: str
    ids: tuple[int, ...] | None = None
    model: str | None = None
    passages: tuple[Passage, ...] = ()

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
    lasting: int = 0  #: how many exchanges would be in it if it were filled anew, with room for what comes

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
    quoting: Quoting | None = None,
) -> Plan:
    """Fits a turn into the window, whole messages only; what is left out is in the ledger.

    While there is room, it stands behind all that the turns before it had in the window, word for word: what was read
    for them is not read again. Passages that are still there are not told again; `quoting` says how earlier questions
    were put, without it they stand alone. Where there is no room, the window is filled anew, without the passages of
    earlier turns: first come the question and its best passage, then the newest exchange, then the other passages from
    the best down, then older exchanges from the newest back until half of the window is full. The effort bounds
    passages and exchanges. A summary goes with the system message. Raises QuestionTooLong.
    """
    room = loaded.context - reply_budget(loaded.context, reply)
    draft = _Draft(loaded, system, _exchanges(history), question, summary, quoting)
    timely = passages[: effort.timely]
    allowed = list(timely[: effort.passages])
    longest = len(draft.exchanges) if effort.exchanges is None else min(effort.exchanges, len(draft.exchanges))

    sizes = Sizes(draft, room)
    standing = sizes.standing(allowed)
    kept, quoted = 0, allowed
    if standing is not None:
        draft = replace(draft, bare=standing.bare)
        kept = min(longest, len(draft.exchanges) - standing.start)
    if standing is None or not draft.fits(kept, quoted, room):
        draft = replace(draft, bare=len(draft.exchanges))
        kept, quoted = _filled_anew(draft, sizes, room, longest, allowed)
    fitted = draft.prompt(kept, quoted)
    left_out = (
        *_exchanges_left_out(draft.exchanges, kept, longest),
        *(_passage_left_out(passage, "room") for passage in allowed[len(quoted) :]),
        *(_passage_left_out(passage, "memory") for passage in timely[len(allowed) :]),
        *(_passage_left_out(passage, "reading time") for passage in passages[len(timely) :]),
    )
    entries = draft.entries(fitted, kept, quoted)
    ledger = Ledger(loaded.context, min(reply, loaded.context - len(fitted.ids)), entries, left_out, summary)
    return Plan(fitted, tuple(quoted), kept, ledger, lasting=min(kept, sizes.kept(len(draft.exchanges), quoted)))


def _filled_anew(
    draft: _Draft, sizes: Sizes, room: int, longest: int, allowed: Sequence[Passage]
) -> tuple[int, list[Passage]]:
    """How many exchanges, all bare, and which passages stand in a window that begins anew. Raises QuestionTooLong."""
    least = allowed[:1]
    if not draft.fits(0, least, room):
        raise QuestionTooLong(_refusal(draft, least, room))
    newest = 1 if longest and draft.fits(1, least, room) else 0
    quoted = list(allowed)
    while not draft.fits(newest, quoted, room):
        quoted.pop()
    kept = min(longest, sizes.kept(len(draft.exchanges), quoted))
    while kept > newest and not draft.fits(kept, quoted, room):
        kept -= 1
    return max(kept, newest), quoted


def summarising(
    loaded: LoadedModel, history: Sequence[Turn], make: Callable[[Summary | None], Plan], kept: Summary | None
) -> Plan:
    """The plan with a summary of what has no room, if something has none.

    The one that was kept is used while it covers all of that; otherwise the plan asks for a new one. It covers all but
    what stands in a window that is filled anew, half of which stays free, so that it lasts for some turns.
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
    longest = summaries.longest(loaded.context)
    most = max(len(exchanges) - plain.lasting, 1)
    start = kept.exchanges if kept is not None and kept.exchanges < most else 0
    least = min(max(plain.dropped_turns, start + 1), most)
    earlier, room = kept if start else None, loaded.context - longest
    # From the first on, as far as the request has room; where even what was left out has none, the newest of that.
    pieces = [(start, last) for last in range(most, least - 1, -1)] + [(first, least) for first in range(start, least)]
    for first, covered in pieces:
        prompt = _summary_prompt(loaded, exchanges[first:covered], earlier)
        if len(prompt.ids) <= room:
            return replace(plain, aside=Aside(prompt, longest, partial(_with_summary, make, covered, len(exchanges))))
    return plain


def _with_summary(make: Callable[[Summary | None], Plan], covered: int, bare: int, text: str) -> Plan:
    return make(Summary(text, covered, bare))


def _summary_prompt(loaded: LoadedModel, exchanges: Sequence[Sequence[Turn]], earlier: Summary | None) -> Prompt:
    said = [(turn.role, turn.content) for exchange in exchanges for turn in exchange]
    return loaded.chat_prompt([Turn("user", summaries.request(said, earlier)).message()])


@dataclass(frozen=True)
class _Draft:
    """What a prompt could be made of. The exchanges from `bare` on stand with the passages of their questions."""

    loaded: LoadedModel
    system: str | None
    exchanges: Sequence[Sequence[Turn]]
    question: Wording
    summary: Summary | None = None
    quoting: Quoting | None = None
    bare: int = 0

    def before(self, kept: int) -> list[Turn]:
        """The messages in front of the question, with the newest `kept` exchanges."""
        told = [part for part in (self.system, self.summary and self.summary.message()) if part]
        opening = [Turn("system", "\n\n".join(told))] if told else []
        return [*opening, *self._standing(kept)[0]]

    def prompt(self, kept: int, passages: Sequence[Passage]) -> Prompt:
        return self.saying("".join(self.asked(kept, passages)), kept)

    def fits(self, kept: int, passages: Sequence[Passage], room: int) -> bool:
        return len(self.prompt(kept, passages).ids) <= room

    def asked(self, kept: int, passages: Sequence[Passage]) -> Sequence[str]:
        """The parts of the question behind so many exchanges."""
        return self.question(_unless(self._standing(kept)[1], passages))

    def _standing(self, kept: int) -> tuple[list[Turn], set[Passage]]:
        """The turns of the newest exchanges, and the passages that stand in them."""
        turns: list[Turn] = []
        seen: set[Passage] = set()
        first = len(self.exchanges) - kept
        for number, exchange in enumerate(self.exchanges[first:], first):
            for turn in exchange:
                quotes = self.quoting is not None and number >= self.bare and turn.passages
                turns.append(replace(turn, content="".join(self.quoted(turn, seen))) if quotes else turn)
                seen |= set(map(_known, turn.passages)) if quotes else set()
        return turns, seen

    def quoted(self, turn: Turn, seen: Collection[Passage]) -> Sequence[str]:
        """The parts of an earlier question with its passages."""
        return self.quoting(turn.content, _unless(seen, turn.passages)) if turn.passages else [turn.content]

    def saying(self, text: str, kept: int = 0) -> Prompt:
        """The prompt with this text as the last message."""
        turns = [*self.before(kept), Turn("user", text)]
        return self.loaded.chat_prompt([turn.message() for turn in turns])

    def entries(self, prompt: Prompt, kept: int, passages: Sequence[Passage]) -> tuple[Entry, ...]:
        """What the tokens of a prompt are spent on."""
        messages = [_turn_entry(turn) for turn in self.before(kept)]
        quoting = [Entry("instruction"), *map(_passage_entry, passages)] if passages else []
        texts = self.asked(kept, passages)
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


def _known(passage: Passage) -> Passage:
    """What of a passage is told to the model."""
    return replace(passage, score=0.0, document="", label=None)


def _unless(seen: Collection[Passage], passages: Sequence[Passage]) -> list[Passage]:
    """Passages as they are told; those that stand in the window already lose their text."""
    return [replace(passage, text="") if _known(passage) in seen else passage for passage in passages]


@dataclass(frozen=True)
class Standing:
    """What of a conversation is in the window: exchanges from `start` on, from `bare` on with their passages."""

    start: int = 0
    bare: int = 0


class Sizes:
    """What each exchange takes of a window, counted apart and once, so that a long conversation is no work.

    All is counted from the first turn on: every turn finds the window as the one before it left it. Where texts meet
    their tokens may join, so that a sum is rarely less than what a prompt takes; if it is, the window is filled anew a
    turn earlier than the next turn believes, which then reads it again.
    """

    def __init__(self, draft: _Draft, room: int) -> None:
        self._draft = draft
        self._room = room
        self._encode = draft.loaded.tokenizer.encode
        empty = draft.loaded.chat_prompt([turn.message() for turn in (*draft.before(0), Turn("user", "?"))])
        pair = [Turn("user", "?"), Turn("assistant", "?"), Turn("user", "?")]
        longer = draft.loaded.chat_prompt([turn.message() for turn in (*draft.before(0), *pair)])
        self._frame = len(empty.ids)
        self._between = max(len(longer.ids) - len(empty.ids), 0)

    def standing(self, passages: Sequence[Passage]) -> Standing | None:
        """What stands in the window if the question with its passages is added; None if that has no room."""
        exchanges, summary = self._draft.exchanges, self._draft.summary
        state = Standing(summary.exchanges, summary.bare) if summary else Standing()
        used, seen = self._frame, set()
        for number, exchange in enumerate(exchanges[state.start :], state.start):
            if number < state.bare:
                used += self._plain_size(number)
                continue
            asked = self._asked(exchange, seen)
            if used + asked > self._room:
                kept = self._newest(number, self._asked(exchange, ()))
                state, used, seen = Standing(number - kept, number), self._frame + self._plain(number, kept), set()
                asked = self._asked(exchange, seen)
            used += asked + self._replied(exchange) + self._between
            seen |= {_known(passage) for turn in exchange for passage in turn.passages}
        asked = self._count("".join(self._draft.question(_unless(seen, passages))))
        return state if used + asked <= self._room else None

    def kept(self, count: int, passages: Sequence[Passage]) -> int:
        """How many of the newest exchanges before the `count`th, bare, stand beside the question in a new window."""
        return self._newest(count, self._count("".join(self._draft.question(passages))))

    def _newest(self, count: int, asked: int) -> int:
        used, kept = self._frame + asked, 0
        while kept < count:
            used += self._plain_size(count - kept - 1)
            if used > (self._room // 2 if kept else self._room):
                break
            kept += 1
        return kept

    def _plain(self, count: int, kept: int) -> int:
        return sum(self._plain_size(number) for number in range(count - kept, count))

    def _plain_size(self, number: int) -> int:
        exchange = self._draft.exchanges[number]
        return sum(map(self._content, exchange)) + self._between

    def _asked(self, exchange: Sequence[Turn], seen: Collection[Passage]) -> int:
        """Tokens of an exchange's question as it was put."""
        turn = exchange[0]
        if turn.role != "user":
            return 0
        quotes = self._draft.quoting is not None and turn.passages
        return self._count("".join(self._draft.quoted(turn, seen))) if quotes else self._content(turn)

    def _replied(self, exchange: Sequence[Turn]) -> int:
        return sum(self._content(turn) for turn in exchange if turn.role != "user")

    def _content(self, turn: Turn) -> int:
        return len(turn.ids) if turn.ids else self._count(turn.content)

    def _count(self, text: str) -> int:
        return len(self._encode(text, "text"))


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
