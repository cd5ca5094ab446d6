"""A conversation of five turns about a PDF: how soon each reply begins, and how fast it is written.

The first question brings passages of about 3,000 tokens, the second and the fourth one none that are new, the third and
the fifth one about 400 tokens of them. Each engine's own replies go into its next prompts. Ours runs with caches of
earlier prompts and without; llama.cpp with its own prompt cache.

Then tokens a second with drafts and without. A model as small as the default one does not quote reliably, so the
extractive answers are forced, as llama.cpp's lookup benchmarks do: whatever is computed, the text that is chosen is a
short opening, and then a passage of the prompt. Free chat is what the model says, by its authors' sampling.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import models
from chatapp.answering import wording
from chatapp.conversation import Turn, plan
from chatapp.preferences import PASSAGES
from knowledge import Passage
from knowledge.documents import load
from knowledge.splitter import split
from models import LoadedModel, shared
from models.formats import open_checkpoint

from . import subjects
from .engines.child import Child, find_peer
from .ingest import FOLDER
from .results import Result
from .settings import Settings
from .subjects import Subject
from .turns import LLAMA_CPP, OURS, engines

PDF = "en_tracemonkey_two_column.pdf"
SYSTEM = "Answer from the report, briefly."
QUESTIONS = (
    "What is a trace, and when is one recorded?",
    "How are nested loops handled?",
    "Which benchmarks became slower?",
    "What does that mean for short loops?",
    "Who wrote this?",
)
#: Tokens of passages that a turn brings along; 0: some of the same ones again.
NEW = (3000, 0, 400, 0, 400)
REPLY = 24  #: tokens, so that a reading counts
WINDOW = 6144  #: tokens
SLIP = 16  #: tokens that may be read again beside the new ones
FASTER = {False: "goal 8", True: "goal 5"}  #: by whether a follow-up brings passages
AGAIN = "ours, read anew"
PLAIN = "ours, without drafts"

OPENING = "According to the report, this is what it says on the matter:\n\n"
QUOTED = 200  #: tokens
CHATS = (
    "Tell me a story about a lighthouse keeper and her dog.",
    "What makes a good birthday party for a child of six?",
    "Explain to me why the sky is blue.",
)
SPOKEN = 160  #: tokens


@dataclass(frozen=True)
class Case:
    """`chats`: the model has learnt to talk, and so says something else than what it has read."""

    subject: Subject
    rounds: int
    chats: bool = False


CASES = (Case(subjects.SMOLLM2, 3, chats=True), Case(subjects.LLAMA_2_INT4, 1))


def run(settings: Settings) -> Iterator[Result]:
    peer = find_peer()
    talker = models.load(subjects.default_model(settings), "int4")
    for case in CASES:
        if settings.only in case.subject.name:
            yield from compare(case, settings, peer, talker)


def compare(case: Case, settings: Settings, peer: str | None, talker: LoadedModel) -> Iterator[Result]:
    """`talker` has the tokenizer and the chat format of every conversation."""
    vocabulary = models.footprint(open_checkpoint(case.subject.find(settings)).config).vocabulary[0].rows
    script = Script(talker, passages(talker), vocabulary)
    with engines(replace(case.subject, floats=None), settings, peer, WINDOW) as loaded:
        yield from first_tokens(case, script, loaded.children)
        yield from drafts(case, script, loaded.children[OURS])


def passages(talker: LoadedModel) -> list[Passage]:
    """Those of the PDF, in its order."""
    chunks = split(load(FOLDER / PDF), partial(_count, talker))
    return [Passage(PDF, chunk.page, 1.0, chunk.passage, "id") for chunk in chunks]


def _count(talker: LoadedModel, text: str) -> int:
    return len(talker.tokenizer.encode(text))


@dataclass(frozen=True)
class Script:
    """The conversation as ids. A model without a tokenizer reads the same ones, folded into its vocabulary."""

    talker: LoadedModel
    passages: Sequence[Passage]
    vocabulary: int

    def prompts(self, ask: Callable[[list[int]], Sequence[int]]) -> None:
        """Asks with the prompt of each turn; what is answered are the reply's ids, which go into the next one."""
        history: list[Turn] = []
        at, found = 0, []
        for question, new in zip(QUESTIONS, NEW, strict=True):
            found, at = self._next(at, new) if new else (found[:PASSAGES], at)
            prompt = plan(
                self.talker, history, partial(wording, question), found, SYSTEM, REPLY, quoting=wording
            ).prompt
            reply = tuple(ask(self.fold(prompt.ids)))
            history += [Turn("user", question, passages=tuple(found)), Turn("assistant", "-", reply)]

    def fold(self, ids: Sequence[int]) -> list[int]:
        return [id if id < self.vocabulary else id % self.vocabulary for id in ids]

    def _next(self, at: int, tokens: int) -> tuple[list[Passage], int]:
        """The passages from one on that have so many tokens, of the last one a part; and where the next ones begin."""
        found, left, encoder = [], tokens, self.talker.tokenizer
        while left > 0:
            passage = self.passages[at]
            text = encoder.decode(encoder.encode(passage.text)[:left])
            found.append(replace(passage, text=text))
            left -= _count(self.talker, passage.text)
            at += 1
        return found, at


@dataclass(frozen=True)
class Opened:
    """How a reply began: seconds to its first token; the prompt's tokens, those that are new in it, those read."""

    seconds: float
    tokens: int
    new: int
    read: int


def converse(script: Script, child: Child, reuse: bool) -> list[Opened]:
    """The turns of one conversation."""
    child.ask("forget")
    opened: list[Opened] = []
    known: list[int] = []

    def ask(ids: list[int]) -> Sequence[int]:
        if not reuse:
            child.ask("forget")
        answer = child.ask("reply", ids=ids, new=REPLY)
        opened.append(Opened(answer["first"], len(ids), len(ids) - shared(ids, known), answer["read"]))
        known[:] = [*ids, *answer["ids"]]
        return answer["ids"]

    script.prompts(ask)
    return opened


def first_tokens(case: Case, script: Script, children: dict[str, Child]) -> Iterator[Result]:
    """Rows for each turn: seconds beside reading anew and beside llama.cpp, and the tokens that were read."""
    sides = {OURS: (OURS, True), AGAIN: (OURS, False), LLAMA_CPP: (LLAMA_CPP, True)}
    found: dict[str, list[list[Opened]]] = {side: [] for side in sides}
    for _ in range(case.rounds):
        for side, (name, reuse) in sides.items():
            if name in children:
                found[side].append(converse(script, children[name], reuse))
    for turn, brought in enumerate(NEW):
        own = found[OURS][0][turn]
        name = f"{case.subject.name}, turn {turn + 1}, {own.tokens:,} tokens, {own.new:,} of them new"
        seconds = {side: _median(rounds, turn) for side, rounds in found.items() if rounds}
        target = FASTER[brought > 0] if turn else ""
        yield Result.less_is_better(f"{name}: first token", seconds[OURS], seconds[AGAIN], AGAIN, "s", target)
        yield Result.less_is_better(f"{name}: first token", seconds[OURS], seconds.get(LLAMA_CPP), LLAMA_CPP, "s")
        if turn:
            allowed = float(own.new + SLIP)
            yield Result.less_is_better(f"{name}: read", float(own.read), allowed, f"new + {SLIP}", "tokens", "floor 1")


def _median(rounds: Sequence[Sequence[Opened]], turn: int) -> float:
    return statistics.median(opened[turn].seconds for opened in rounds)


def drafts(case: Case, script: Script, child: Child) -> Iterator[Result]:
    """Tokens a second with drafts and without, in turns."""
    ids = script.fold(script.talker.tokenizer.encode(OPENING))
    quote = script.fold(script.talker.tokenizer.encode(script.passages[2].text + script.passages[3].text))[:QUOTED]
    found, _ = script._next(0, 1000)
    prompt = plan(script.talker, [], partial(wording, QUESTIONS[0]), found, SYSTEM, quoting=wording).prompt
    extract = {"ids": script.fold(prompt.ids), "forced": [*ids, *quote], "new": len(ids) + len(quote)}
    yield _beside(f"{case.subject.name}, extractive answer", [extract], child, case.rounds, "goal 1.5")
    if case.chats:
        talker = script.talker
        spoken = [
            {
                "ids": talker.chat_prompt([{"role": "user", "content": text}]).ids,
                "new": SPOKEN,
                "options": {**talker.chat_format.sampling, "seed": seed},
            }
            for seed, text in enumerate(CHATS)
        ]
        yield _beside(f"{case.subject.name}, free chat", spoken, child, case.rounds, "floor 0.97")


def _beside(name: str, replies: Sequence[dict[str, Any]], child: Child, rounds: int, target: str) -> Result:
    rates: dict[bool, list[float]] = {True: [], False: []}
    right: list[float] = []
    for reply in replies:
        child.ask("reply", **reply)  # its prompt is read; the rounds then begin with the same cache
        figures: dict[bool, list[float]] = {True: [], False: []}
        for number in range(2 * (rounds + 1)):
            draft = number % 2 == 0
            answer = child.ask("reply", **reply, draft=draft)
            if number > 1:
                figures[draft].append((len(answer["ids"]) - 1) / answer["seconds"])
            right += [answer["acceptance"]] if answer["acceptance"] is not None else []
        for draft, each in figures.items():
            rates[draft].append(statistics.median(each))
    share = f", {statistics.mean(right):.0%} of the guesses right" if right else ", nothing guessed"
    return Result.more_is_better(
        f"{name}{share}", statistics.mean(rates[True]), statistics.mean(rates[False]), PLAIN, "tok/s", target
    )
