"""What a turn's window is spent on, as a bar that opens into a list."""

from __future__ import annotations

from collections.abc import Iterator

from ..ledger import Entry, Ledger, LeftOut
from ..texts import say
from .escaping import escape

#: The bar's segments in their order, and the kinds of entries in each; the reply's place and what is free follow.
SEGMENTS = {
    "system": ("frame", "system"),
    "turns": ("summary", "turn"),
    "passages": ("instruction", "passage"),
    "question": ("question", "begun"),
}
SEGMENT_OF = {kind: segment for segment, kinds in SEGMENTS.items() for kind in kinds}
#: The texts of kinds (of turns: of roles), of what was left out, and of why.
SPENT = {
    "frame": "spent_frame",
    "system": "spent_system",
    "summary": "spent_summary",
    "user": "spent_user",
    "assistant": "spent_assistant",
    "instruction": "spent_instruction",
    "question": "spent_question",
    "begun": "spent_begun",
}
MISSING = {"exchange": "budget_exchange", "passage": "budget_passage"}
WHY = {"room": "reason_room", "memory": "reason_memory", "reading time": "reason_reading"}
SHOWN = 12  #: of what was left out; a long conversation loses hundreds


def bar(ledger: Ledger, language: str) -> str:
    """A slim bar with a line of text; opened, it lists every part with its tokens, and what was left out and why."""
    sizes = {segment: ledger.tokens(*kinds) for segment, kinds in SEGMENTS.items()}
    sizes |= {"reply": ledger.reply, "free": ledger.free}
    segments = "".join(f'<i class="{name}" style="flex-grow:{size}"></i>' for name, size in sizes.items() if size)
    summary = f'<span class="bar" aria-hidden="true">{segments}</span><span>{_line(ledger, language)}</span>'
    rows = "".join(_rows(ledger, language))
    left_out = _left_out(ledger.left_out, language)
    return f'<details class="budget"><summary>{summary}</summary><table>{rows}</table>{left_out}</details>'


def _line(ledger: Ledger, language: str) -> str:
    numbers = say(language, "budget", used=f"{ledger.used:,}", context=f"{ledger.context:,}")
    read = [say(language, "budget_reused", reused=f"{ledger.reused:,}", read=f"{ledger.read:,}")] * bool(ledger.reused)
    counts = {key: ledger.missing(kind) for kind, key in MISSING.items()}
    missing = [say(language, key, count=count) for key, count in counts.items() if count]
    return " · ".join([numbers, *read, *missing])


def _rows(ledger: Ledger, language: str) -> Iterator[str]:
    for entry in ledger.entries:
        yield _row(SEGMENT_OF[entry.kind], _label(entry, language), entry.tokens)
    yield _row("reply", say(language, "spent_reply"), ledger.reply)
    yield _row("free", say(language, "spent_free"), ledger.free)


def _row(segment: str, label: str, tokens: int) -> str:
    return f'<tr><th scope="row"><i class="{segment}"></i>{label}</th><td>{tokens:,}</td></tr>'


def _label(entry: Entry, language: str) -> str:
    if entry.kind == "passage":
        return _passage(entry, language)
    return say(language, SPENT[entry.role or entry.kind], title=escape(entry.title))


def _passage(passage: Entry | LeftOut, language: str) -> str:
    page = "" if passage.page is None else f" · {say(language, 'page', page=passage.page)}"
    score = "" if passage.score is None else f" · {say(language, 'score', score=f'{passage.score:.2f}')}"
    return f"{escape(passage.title)}{page}{score}"


def _left_out(left_out: tuple[LeftOut, ...], language: str) -> str:
    if not left_out:
        return ""
    names = ((_passage(each, language) if each.kind == "passage" else escape(each.title), each) for each in left_out)
    lines = [f"<li>{name} <small>{say(language, WHY[each.reason])}</small></li>" for name, each in names]
    hidden = len(lines) - SHOWN
    more = f"<li>{say(language, 'left_out_more', count=hidden)}</li>" if hidden > 0 else ""
    return f"<b>{say(language, 'left_out')}</b><ul>{''.join(lines[-SHOWN:])}{more}</ul>"
