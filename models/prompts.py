"""How a conversation becomes the ids that a model was trained on; models/chat_formats.py is the table of formats."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from .tokenizer import Place, Tokenizer

Message = Mapping[str, Any]
"""{"role": "system" | "user" | "assistant" | "observation", "content": str, optionally "metadata" (ChatGLM3: a tool's
name) and "ids": the tokens as they were generated, which are then used unchanged; the last one may be "begun": an
assistant's text that goes on}"""


@dataclass(frozen=True)
class Prompt:
    """Ids to continue. `spans` are the [start, stop) of each message in them, its frame included.

    The spans follow each other without gaps; before the first stands what opens every conversation, behind the last
    what asks for a reply. Where official code encodes messages in one go, a token that two messages share belongs to
    the later one. `notice` is a sentence for the user when another format than the checkpoint's own had to be used.
    """

    ids: list[int]
    spans: list[tuple[int, int]]
    stop_ids: frozenset[int]
    stop_texts: tuple[str, ...]
    notice: str | None = None
    begun: tuple[int, ...] = ()  #: ids at the end that are the reply's own: what it has written so far

    def continued(self, begun: Sequence[int]) -> Prompt:
        """The prompt with the beginning of its reply behind it."""
        return dataclasses.replace(self, ids=[*self.ids, *begun], begun=(*self.begun, *begun))


@dataclass(frozen=True)
class ChatHints:
    """What a checkpoint's files say about how it wants to be talked to; names are lower case, the folder's last."""

    template: str | None = None  #: its own Jinja chat_template
    special_tokens: Mapping[str, str] = field(default_factory=dict)  #: bos_token, eos_token, ... for the template
    names: tuple[str, ...] = ()
    eos_ids: frozenset[int] = frozenset()
    generation: Mapping[str, Any] = field(default_factory=dict)  #: generation_config.json


@dataclass(frozen=True)
class Shown:
    """What of a reply is shown.

    `replace` are texts with a fixed meaning; `widens` makes half-width marks beside Chinese characters full-width.
    Both undo what ChatGLM's training and its folding of full-width forms do, as process_response in its
    modeling_chatglm.py does.
    """

    strips: bool = True
    replace: Mapping[str, str] = field(default_factory=dict)
    widens: bool = False

    def __call__(self, text: str, done: bool = True) -> str:
        """The shown form of the text so far. While a reply streams, `done` is False: an end that may still change is
        held back, so that what has been shown once is never taken back."""
        held = text if done else text[: len(text) - self._undecided(text)]
        for old, new in self.replace.items():
            held = held.replace(old, new)
        if self.widens:
            held = MARK_BESIDE_CHINESE.sub(lambda mark: FULL_WIDTH[mark[0]], held)
        return held.strip() if self.strips else held

    def _undecided(self, text: str) -> int:
        """How many characters at the end may yet turn into others."""
        open_ends = (overlap(text, old) for old in self.replace)
        held = max(open_ends, default=0)
        before = text[: len(text) - held]
        return held + (self.widens and before.endswith(tuple(FULL_WIDTH)))


FULL_WIDTH = {",": "，", "!": "！", ":": "：", ";": "；", "?": "？"}
MARK_BESIDE_CHINESE = re.compile("(?<=[\u4e00-\u9fff])[,!:;?]|[,!:;?](?=[\u4e00-\u9fff])")


def overlap(text: str, wanted: str) -> int:
    """How many characters at the end of text may be the beginning of `wanted`."""
    longest = min(len(text), len(wanted) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(wanted[:size])), 0)


class ChatFormat(Protocol):
    name: str
    title: str  #: what users choose by
    base: bool  #: the model continues text and was not trained to chat
    sampling: Mapping[str, float]  #: what the model's authors recommend
    shown: Shown
    notice: str | None

    def fits(self, tokenizer: Tokenizer) -> bool:
        """Whether the tokenizer has the control tokens that the format needs."""

    def render(self, messages: Sequence[Message], tokenizer: Tokenizer) -> Prompt:
        """The prompt of a conversation, asking for a reply; raises ValueError for a role that the format lacks."""


@dataclass(frozen=True)
class Piece:
    """A part of a prompt: text, ids, or a cut between texts that are encoded apart. `owner` numbers the message."""

    owner: int
    text: str = ""
    ids: tuple[int, ...] = ()
    control: bool = False
    cut: bool = False


@dataclass(frozen=True, kw_only=True)
class TableFormat:
    """One row of the table.

    Templates hold {content}, {metadata}, {round}, {system} (a system message that goes into the user's turn) and {cut}
    (official code encodes apart what stands on its sides). Each of `controls` in a template is that control token; only
    templates are searched for them, never the content.
    """

    name: str
    title: str
    user: str
    reply: str  #: what asks for a reply; it opens every assistant turn too
    answer: str = "{content}"  #: an answer that is given as text
    end: str = ""  #: what closes an assistant turn
    system: str  #: a turn of its own, or what {system} in `user` becomes
    observation: str | None = None
    alone: str | None = None  #: user and reply of a conversation that has one question only
    head: str = ""
    default_system: str | None = None
    first_round: int = 1
    controls: tuple[str, ...] = ()
    stops: tuple[str, ...] = ()  #: control tokens that end a reply, beside the tokenizer's own
    stop_texts: tuple[str, ...] = ()
    prefix: bool = True  #: whether the tokenizer's prefix_ids come first
    apart: bool = False  #: every text between control tokens is encoded as if it stood alone
    trims: bool = False  #: contents lose the whitespace around them
    base: bool = False
    sampling: Mapping[str, float] = field(default_factory=dict)
    shown: Shown = field(default_factory=Shown)
    notice: str | None = None

    def fits(self, tokenizer: Tokenizer) -> bool:
        return all(control in tokenizer.controls for control in self.controls)

    def render(self, messages: Sequence[Message], tokenizer: Tokenizer) -> Prompt:
        pieces = [*self._parse(-1, self.head, tokenizer), *self._conversation(messages, tokenizer)]
        prefix = tokenizer.prefix_ids if self.prefix else ()
        ids, spans = assemble(pieces, len(messages), tokenizer, prefix, "start" if self.apart else "control")
        return Prompt(ids, spans, self._stop_ids(tokenizer), self.stop_texts, self.notice)

    def _conversation(self, messages: Sequence[Message], tokenizer: Tokenizer) -> Iterator[Piece]:
        waiting = self._opening_system(messages, tokenizer)
        if "{system}" not in self.user:
            yield from waiting
            waiting = []
        rounds = self.first_round
        alone = self.alone is not None and [m["role"] for m in messages if m["role"] != "system"] == ["user"]
        for owner, message in enumerate(messages):
            if message["role"] == "system" and "{system}" in self.user:
                waiting += self._turn(owner, message, self.system, tokenizer)
            elif message["role"] == "user":
                template = self.alone if alone else self.user
                yield from self._turn(owner, message, template, tokenizer, rounds, waiting)
                waiting, rounds = [], rounds + 1
            else:
                yield from self._other_turn(owner, message, tokenizer)
        if waiting:
            raise ValueError(f"the chat format {self.name} needs a user message behind a system message")
        if not alone and not is_begun(messages):
            yield from self._parse(len(messages), self.reply, tokenizer)

    def _opening_system(self, messages: Sequence[Message], tokenizer: Tokenizer) -> list[Piece]:
        if self.default_system is None or any(message["role"] == "system" for message in messages):
            return []
        return list(self._turn(-1, {"content": self.default_system}, self.system, tokenizer))

    def _other_turn(self, owner: int, message: Message, tokenizer: Tokenizer) -> Iterator[Piece]:
        if message["role"] != "assistant":
            template = {"system": self.system, "observation": self.observation}.get(message["role"])
            if template is None:
                raise ValueError(f"the chat format {self.name} has no role {message['role']!r}")
            yield from self._turn(owner, message, template, tokenizer)
        elif message.get("ids") is None:
            head, content, tail = self.answer.partition("{content}")
            behind = "" if message.get("begun") else tail + self.end
            yield from self._turn(owner, message, self.reply + head + content + behind, tokenizer)
        else:
            yield from self._parse(owner, self.reply, tokenizer)
            yield Piece(owner, ids=tuple(message["ids"]))
            yield from self._parse(owner, self.end, tokenizer)

    def _turn(
        self,
        owner: int,
        message: Message,
        template: str,
        tokenizer: Tokenizer,
        number: int = 0,
        system: Sequence[Piece] = (),
    ) -> Iterator[Piece]:
        """The pieces of one turn. What stands in front of a system message inside it counts as the system message's."""
        content = message["content"].strip() if self.trims else message["content"]
        values = {"{content}": content, "{metadata}": message.get("metadata") or "", "{round}": str(number)}
        inside = bool(system)
        for piece in self._parse(system[0].owner if system else owner, template, tokenizer):
            if piece.text == "{system}":
                yield from system
                inside = False
            else:
                text = values.get(piece.text, piece.text)
                yield dataclasses.replace(piece, owner=piece.owner if inside else owner, text=text)

    def _parse(self, owner: int, template: str, tokenizer: Tokenizer) -> Iterator[Piece]:
        marks = [*self.controls, "{content}", "{metadata}", "{round}", "{system}", "{cut}"]
        for part in filter(None, re.split(f"({'|'.join(map(re.escape, marks))})", template)):
            if part in self.controls:
                yield Piece(owner, ids=(tokenizer.controls[part],), control=True)
            elif part == "{cut}":
                yield Piece(owner, cut=True)
            else:
                yield Piece(owner, part)

    def _stop_ids(self, tokenizer: Tokenizer) -> frozenset[int]:
        named = {tokenizer.controls[stop] for stop in self.stops if stop in tokenizer.controls}
        return frozenset(named if tokenizer.eos_id is None else named | {tokenizer.eos_id})


def is_begun(messages: Sequence[Message]) -> bool:
    """Whether the conversation ends within a reply, so that none must be asked for."""
    return bool(messages) and bool(messages[-1].get("begun"))


def assemble(
    pieces: Sequence[Piece], count: int, tokenizer: Tokenizer, prefix: Sequence[int], after_control: Place
) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids of the pieces and the span of each of `count` messages. Neighbouring texts are encoded in one go."""
    ids, starts = list(prefix), {}
    place: Place = "start"
    run: list[Piece] = []
    for piece in [*pieces, Piece(count, cut=True)]:
        if not (piece.ids or piece.cut):
            run.append(piece)
            continue
        for owner, at in _encode_run(run, place, tokenizer, ids):
            starts.setdefault(owner, at)
        run = []
        starts.setdefault(piece.owner, len(ids))
        ids += piece.ids
        place = "start" if piece.cut else after_control if piece.control else "text"
    spans = _spans([starts.get(owner) for owner in range(count + 1)])
    return [*ids, *tokenizer.suffix_ids], spans


def _encode_run(run: Sequence[Piece], place: Place, tokenizer: Tokenizer, ids: list[int]) -> Iterator[tuple[int, int]]:
    """Adds a run of texts to ids; yields each owner and where its part begins."""
    start, text = len(ids), "".join(piece.text for piece in run)
    if not text:
        return
    encoded = tokenizer.encode(text, place)
    ids += encoded
    begun, at, owner = 0, start, None
    for piece in run:
        if piece.owner != owner:
            before = tokenizer.encode(text[:begun], place) if begun else []
            at = max(at, start + shared(before, encoded))
            yield piece.owner, at
            owner = piece.owner
        begun += len(piece.text)


def shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids two sequences have in common at their start."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


def _spans(starts: list[int | None]) -> list[tuple[int, int]]:
    """Spans between the starts; a message of which nothing remained is empty."""
    known = list(starts)
    for owner in range(len(known) - 2, -1, -1):
        known[owner] = known[owner + 1] if known[owner] is None else known[owner]
    return list(zip(known, known[1:], strict=False))
