"""A checkpoint's own chat_template: Jinja text that someone else wrote, run in a sandbox and within bounds.

Message contents never enter it. The template sees a mark in the place of each content, so that control tokens are only
looked for in what the template itself wrote, and each message is known exactly in the result.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from .prompts import ChatFormat, ChatHints, Message, Piece, Prompt, Shown, assemble, is_begun
from .tokenizer import Tokenizer

LONGEST_SOURCE = 100_000  #: characters; the longest published templates have about 20,000
LONGEST_TEXT = 200_000  #: of the result and of every text made on the way
LONGEST_RANGE = 10_000
MOST_LINES = 200_000  #: lines of the compiled template that one rendering may run
MOST_SECONDS = 5.0
#: What stands for content n. The template may trim contents: it then loses the separator on that side, which counts as
#: white space, and the content is trimmed in the same way.
MARK = "\x1f\ue000{}\ue001\x1f"
MARKS = re.compile("(\x1f?)\ue000(\\d+)\ue001(\x1f?)")
FILENAME = "<chat_template>"


class TemplateError(ValueError):
    """The template can't be used; the text says why."""


#: What a template that is wrong, or wrong for a conversation, runs into: its code is ordinary Python in the end.
BREAKS = (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError, RecursionError)
#: None of these makes a text much longer than what goes in.
TEXT_METHODS = {
    "capitalize", "count", "endswith", "find", "index", "lower", "lstrip", "removeprefix", "removesuffix", "rsplit",
    "rstrip", "split", "splitlines", "startswith", "strip", "title", "upper",
}  # fmt: skip
FILTERS = (
    "capitalize", "default", "dictsort", "first", "int", "items", "last", "length", "list", "lower", "map", "max",
    "min", "reject", "rejectattr", "reverse", "select", "selectattr", "string", "title", "trim", "upper",
)  # fmt: skip


def _joined(parts: Iterable[Any], separator: str = "") -> str:
    texts = [str(part) for part in parts]
    if sum(map(len, texts)) + len(separator) * len(texts) > LONGEST_TEXT:
        raise TemplateError("it makes texts that are too long")
    return separator.join(texts)


def _replaced(text: str, old: str, new: str) -> str:
    if not old:
        raise TemplateError("it replaces empty text")
    return _joined(text.split(old), new)


def _tojson(value: Any, indent: int | None = None) -> str:
    """Non-ASCII text and "<" stay as they are, unlike with Jinja's own filter."""
    return json.dumps(value, ensure_ascii=False, indent=indent and min(indent, 8))


def _range(*bounds: int) -> range:
    made = range(*bounds)
    if len(made) > LONGEST_RANGE:
        raise TemplateError("it counts too far")
    return made


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, with everything that makes long texts out of short ones bounded or left out."""

    intercepted_binops = frozenset({"*", "**", "%", "+"})
    concat = staticmethod(_joined)

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
        self.filters = {name: self.filters[name] for name in FILTERS}
        self.filters |= {"tojson": _tojson, "join": _joined, "replace": _replaced}
        self.globals = {
            "namespace": self.globals["namespace"],
            "dict": dict,
            "range": _range,
            "raise_exception": _refuse,
            "strftime_now": _now,
        }

    def compiled(self, source: str) -> jinja2.Template:
        tree = _JoinTexts().visit(self.parse(source))
        return jinja2.Template.from_code(self, self.compile(tree, filename=FILENAME), self.make_globals(None))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        sized = [len(side) for side in (left, right) if hasattr(side, "__len__")]
        if operator == "**" or sum(sized) > LONGEST_TEXT or (sized and operator != "+"):
            raise TemplateError(f"it uses {operator} in a way that is not allowed")
        return super().call_binop(context, operator, left, right)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        allowed = not isinstance(obj, str) or attr in TEXT_METHODS
        return allowed and super().is_safe_attribute(obj, attr, value)


class _JoinTexts(NodeTransformer):
    """Lets `a ~ b` go through the bounded filter."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:
        self.generic_visit(node)
        return nodes.Filter(nodes.List(node.nodes), "join", [], [], None, None)


@contextmanager
def _bounded() -> Iterator[None]:
    """Stops template code, which may loop within loops, by counting the lines it runs.

    Python's trace function is the only thing that sees them from the same thread; the previous one is put back.
    """
    lines, deadline = 0, time.monotonic() + MOST_SECONDS

    def line(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal lines
        lines += event == "line"
        if lines > MOST_LINES or time.monotonic() > deadline:
            raise TemplateError("it takes too long")
        return line

    def call(frame: FrameType, event: str, argument: Any) -> Any:
        return line if frame.f_code.co_filename == FILENAME else None

    previous = sys.gettrace()
    sys.settrace(call)
    try:
        yield
    finally:
        sys.settrace(previous)


@dataclass(frozen=True, kw_only=True)
class TemplateFormat:
    """A chat_template, with what it can't say (sampling, further stop ids) from `row`, the table's own format.

    A conversation that the template refuses or breaks on is put into the row's format, and the prompt says so.
    """

    template: jinja2.Template
    values: Mapping[str, str]  #: bos_token and the like
    row: ChatFormat
    stops: tuple[str, ...] = ()  #: the control tokens that close an answer
    question: str | None = None  #: what stands in front of a question that is not the first
    name: str = "template"
    base: bool = False
    sampling: Mapping[str, float] = field(default_factory=dict)
    shown: Shown = field(default_factory=Shown)
    notice: str | None = None

    @classmethod
    def of(cls, hints: ChatHints, tokenizer: Tokenizer, row: ChatFormat) -> ChatFormat:
        """The template's format once it has rendered a question; the row with a notice where it can't."""
        try:
            chat = cls(template=_compile(hints.template), values=hints.special_tokens, row=row)
            chat._pieces([_PROBE_QUESTION], tokenizer)
        except TemplateError as error:
            return _noting(row, error)
        sampling = {} if row.base else row.sampling
        return dataclasses.replace(chat, **chat._frames(tokenizer), sampling=sampling)

    @property
    def title(self) -> str:
        return "The checkpoint's own chat_template" if self.row.base else f"{self.row.title}, by its own template"

    def fits(self, tokenizer: Tokenizer) -> bool:
        return True

    def render(self, messages: Sequence[Message], tokenizer: Tokenizer) -> Prompt:
        """The prompt of a conversation; a system message's span holds what the template opens it with."""
        try:
            pieces = self._pieces(messages, tokenizer)
        except TemplateError as error:
            return _noting(self.row, error).render(messages, tokenizer)
        ids, spans = assemble(pieces, len(messages), tokenizer, (), "control")
        return Prompt(ids, spans, self._stop_ids(tokenizer), () if self.row.base else self.row.stop_texts)

    def _stop_ids(self, tokenizer: Tokenizer) -> frozenset[int]:
        names = [*self.stops, *self.row.stops, self.values.get("eos_token", "")]
        ids = {tokenizer.controls[name] for name in names if name in tokenizer.controls}
        return frozenset(ids if tokenizer.eos_id is None else ids | {tokenizer.eos_id})

    def _frames(self, tokenizer: Tokenizer) -> dict[str, Any]:
        """What the template itself writes behind an answer and in front of the next question."""
        try:
            answered = self._run([_PROBE_QUESTION, _PROBE_ANSWER], asks=False)
            asked = self._run([_PROBE_QUESTION, _PROBE_ANSWER, _PROBE_QUESTION], asks=False)
        except TemplateError:
            return {}  # it has no form for answers
        behind = answered[list(MARKS.finditer(answered))[-1].end() :]
        first = next(iter(_by_controls(behind, tokenizer)), "")
        question = (
            asked[len(answered) : list(MARKS.finditer(asked))[-1].start()] if asked.startswith(answered) else None
        )
        return {"stops": (first,) if first in tokenizer.controls else (), "question": question}

    def _run(self, messages: Sequence[Message], asks: bool) -> str:
        """The conversation as text, a mark in the place of each content."""
        marked = [
            {"role": ROLES.get(message["role"], message["role"]), "content": MARK.format(at)}
            for at, message in enumerate(messages)
        ]
        try:
            with _bounded():
                parts = self.template.generate(**self.values, messages=marked, add_generation_prompt=asks, tools=None)
                return _joined(_taken(parts))
        except BREAKS as error:
            raise TemplateError(str(error) or type(error).__name__) from error

    def _pieces(self, messages: Sequence[Message], tokenizer: Tokenizer) -> list[Piece]:
        begun = is_begun(messages)
        text = self._run(messages, asks=not begun)
        marks = list(MARKS.finditer(text))
        if [int(mark[2]) for mark in marks] != list(range(len(messages))):
            raise TemplateError("it does not show every message once and in order")
        at = self._head(messages, text[: marks[0].start()]) if marks else 0
        pieces = _literals(-1, text[:at], tokenizer)
        for owner, message in enumerate(messages):
            mark = marks[owner]
            pieces += _literals(owner, text[at : self._opening(messages, owner, text, mark)], tokenizer)
            pieces.append(_content(owner, message, mark))
            if begun and owner == len(messages) - 1:
                return pieces
            at = self._closing(messages, owner, text, marks)
            pieces += _literals(owner, text[mark.end() : at], tokenizer)
        return pieces + _literals(len(messages), text[at:], tokenizer)

    def _head(self, messages: Sequence[Message], before: str) -> int:
        """How long what opens every conversation is, such as a default system message, in front of a question."""
        asked = messages[0]["role"] == "user" and self.question is not None and before.endswith(self.question)
        return len(before) - len(self.question or "") if asked else 0

    def _opening(self, messages: Sequence[Message], owner: int, text: str, mark: re.Match[str]) -> int:
        """Where what stands in front of a content ends: an answer in ids follows what had asked for it, nothing else,
        so that a conversation is continued by its next prompt."""
        if messages[owner].get("ids") is not None:
            asked = self._run(messages[:owner], asks=True)
            if text.startswith(asked) and len(asked) <= mark.start():
                return len(asked)
        return mark.start()

    def _closing(self, messages: Sequence[Message], owner: int, text: str, marks: Sequence[re.Match[str]]) -> int:
        """Where a message ends in the text: where the conversation so far, rendered alone, ends."""
        try:
            so_far = self._run(messages[: owner + 1], asks=False)
        except TemplateError:
            return marks[owner].end()  # a system message alone, say
        limit = marks[owner + 1].start() if owner + 1 < len(marks) else len(text)
        inside = marks[owner].end() <= len(so_far) <= limit and text.startswith(so_far)
        return len(so_far) if inside else marks[owner].end()


_PROBE_QUESTION = {"role": "user", "content": "?"}
_PROBE_ANSWER = {"role": "assistant", "content": "!"}
ROLES = {"observation": "tool"}  #: what templates call it


def _compile(source: str | None) -> jinja2.Template:
    if source is None:
        raise TemplateError("there is none")
    if len(source) > LONGEST_SOURCE:
        raise TemplateError("it is too long")
    try:
        return Sandbox().compiled(source)
    except (jinja2.TemplateError, RecursionError) as error:
        raise TemplateError(str(error)) from error


def _taken(parts: Iterable[str]) -> Iterator[str]:
    length = 0
    for part in parts:
        length += len(part)
        if length > LONGEST_TEXT:
            raise TemplateError("it makes texts that are too long")
        yield part


def _noting(row: ChatFormat, error: TemplateError) -> ChatFormat:
    reason = str(error).splitlines()[0].rstrip(".")[:200]
    sentence = f"The checkpoint's own chat template can't be used ({reason}); the format {row.name} is used instead."
    return dataclasses.replace(row, notice=sentence)


def _content(owner: int, message: Message, mark: re.Match[str]) -> Piece:
    if message.get("ids") is not None:
        return Piece(owner, ids=tuple(message["ids"]))
    text = message["content"]
    text = text if mark[1] else text.lstrip()
    return Piece(owner, text if mark[3] else text.rstrip())


def _literals(owner: int, text: str, tokenizer: Tokenizer) -> list[Piece]:
    return [
        Piece(owner, ids=(tokenizer.controls[part],), control=True)
        if part in tokenizer.controls
        else Piece(owner, part)
        for part in _by_controls(text, tokenizer)
    ]


def _by_controls(text: str, tokenizer: Tokenizer) -> Iterator[str]:
    """The text in parts, each a control token's name or free of them."""
    names = sorted(tokenizer.controls, key=len, reverse=True)
    return filter(None, re.split(f"({'|'.join(map(re.escape, names))})", text)) if names else iter([text])
