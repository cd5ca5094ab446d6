"""Replies, sources and states as the page shows them. Everything that is not ours is escaped."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from ..checkpoints import DEFAULT_EMBEDDER, DEFAULT_MODEL
from ..citing import Evidence
from ..engine import Status
from ..ledger import Ledger
from ..sentences import localised
from ..session import Reply
from ..startup import Fetching
from ..store import Hit, StoredMessage
from ..texts import say
from ..tree import Node, Tree
from . import budget, evidence
from .escaping import escape

#: Those and what makes headings, lists, rules and links of a text that was typed.
TYPED = re.compile(r"[&<>\"'\\`*_$\[\]|~^#+=.:@)-]")
SPACES = re.compile(r"(?:^|(?<=<br>))[ \t]+|[ \t]{2,}")
FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})", re.MULTILINE)
CODE = re.compile(r"(`{3,}.*?(?:`{3,}|\Z)|`[^`\n]*`)", re.DOTALL)
#: A formula between single dollars, as most models write it, and no sums of money: no space within, no digit behind.
DOLLARS = re.compile(r"(?<![\\$\w])\$(?=[^\s$])([^$\n]*[^\s$\\])\$(?![$\w])", re.ASCII)
PARAGRAPH = re.compile(r"\n\s*\n")

#: What comes after each of the embedded models has been fetched.
FOLLOWS = {DEFAULT_MODEL: "fetching_model_then", DEFAULT_EMBEDDER: "fetching_embedder_then"}

RECENT = 40  #: messages of a long conversation that are shown,
MORE = 100  #: and how many more on demand

#: States of a kept reply that are said below it.
NOTES = {"stopped": "stopped", "interrupted": "interrupted"}
#: What is said of a reply that the model did not end, by End's reason.
CUT = {"length": "cut_length", "window": "cut_length", "loop": "cut_loop"}
#: States of a growing reply that have a text of their name.
AT_WORK = ("rewriting", "summarising", "writing")
FILES = {"json": "JSON", "markdown": "Markdown"}


def flowing(text: str) -> str:
    """A passage for reading: the line ends that its file had are spaces, its paragraphs stay."""
    paragraphs = (" ".join(paragraph.split()) for paragraph in PARAGRAPH.split(text))
    return "<br>".join(escape(paragraph) for paragraph in paragraphs if paragraph)


def place(source: Mapping[str, Any], language: str, key: str = "page") -> str:
    """Where a passage stands: file and page."""
    name = escape(source["name"])
    return name if source["page"] is None else f"{name} · {say(language, key, page=source['page'])}"


def messages(
    stored: Sequence[StoredMessage], language: str, numbers: Sequence[int | None] = ()
) -> list[dict[str, str]]:
    """A kept conversation for the chat component; `numbers` are those of its messages on disk, as far as they are."""
    return [
        {"role": message.role, "content": asked(message)}
        if message.role == "user"
        else {"role": "assistant", "content": _stored_reply(message, number, language)}
        for message, number in zip_longest(stored, numbers)
    ]


def asked(message: StoredMessage) -> str:
    """A question, below the names of the files that were put beside it."""
    names = "".join(
        f'<span class="beside">{escape(source["name"].rpartition("/")[2])}</span>' for source in message.sources
    )
    return f"{names}\n\n{user(message.content)}" if names else user(message.content)


def user(text: str) -> str:
    """What the user typed, shown as typed, spaces included."""
    return SPACES.sub(lambda match: "&nbsp;" * len(match[0].expandtabs(4)), escape(text, TYPED))


def branch(tree: Tree, language: str, count: int = RECENT) -> list[dict[str, str]]:
    """The last `count` messages of the branch that is shown, with what can be done below each message."""
    path = tree.path[-count:]
    shown = messages([node.message for node in path], language, [node.id for node in path])
    return [
        *earlier(len(tree.path) - len(path), language, count),
        *(
            {**message, "content": f"{_closed(message['content'])}\n\n{_actions(tree, node, language)}"}
            for node, message in zip(path, shown, strict=True)
        ),
    ]


def earlier(hidden: int, language: str, count: int = RECENT) -> list[dict[str, str]]:
    """What stands for messages that are not shown: the chat component draws all it has anew with each token."""
    link = _action("earlier", count + MORE, say(language, "earlier", count=hidden))
    return [{"role": "assistant", "content": f'<div class="earlier">{link}</div>'}] if hidden > 0 else []


def conversation(
    tree: Tree, language: str, progress: str | None = None, count: int = RECENT
) -> tuple[list[dict[str, str]], str, str]:
    """The branch that is shown: messages, sources, and the line below, which `progress` may be instead."""
    sources = () if tree.leaf is None else tree[tree.leaf].message.sources
    line = undone(tree, language) + kept_budget(tree, language) if progress is None else progress
    return branch(tree, language, count), sources_pane(sources, language, tree.leaf), line


def _actions(tree: Tree, node: Node, language: str) -> str:
    """Links that scripts/links.js makes events of. They are harmless: a model could write such links as well."""
    last, message = node.id == tree.leaf, node.message
    offered = {
        "edit": message.role == "user",
        "regenerate": last,
        "continue": last and message.unfinished,
        "undo": last,
    }
    links = [_action(do, node.id, say(language, do)) for do, offer in offered.items() if offer]
    note = [say(language, NOTES[message.state])] if message.state in NOTES else []
    note += [say(language, CUT["loop"])] if message.state == "done" and message.reason == "loop" else []
    return f'<div class="acts {message.role}">{" ".join([*note, *_pager(tree, node), *links])}</div>'


def _pager(tree: Tree, node: Node) -> list[str]:
    """‹ 2/3 › where a message has other versions."""
    ids = [version.id for version in tree.versions(node.id)]
    if len(ids) == 1:
        return []
    at = ids.index(node.id)
    before = _action("choose", ids[at - 1], "‹") if at else "‹"
    after = _action("choose", ids[at + 1], "›") if at + 1 < len(ids) else "›"
    return [f"<span>{before} {at + 1}/{len(ids)} {after}</span>"]


def _action(do: str, message: int, label: str) -> str:
    return f'<a href="#q-{do}-{message}">{label}</a>'


def undone(tree: Tree, language: str) -> str:
    """The way back to what was undone: the newest branch behind the one that is shown."""
    further = tree.children(tree.leaf)
    if not further:
        return ""
    return f'<p class="hint">{say(language, "undone")} {_action("choose", further[-1].id, say(language, "redo"))}</p>'


def editing(language: str) -> str:
    """What sending does while an earlier message is in the input."""
    return f'<p class="hint">{say(language, "editing")} {_action("cancel", 0, say(language, "cancel"))}</p>'


def hit(found: Hit, language: str) -> tuple[str, str]:
    """A conversation that was found, as a choice: its label in two lines, and where to go."""
    title, snippet = found.title or say(language, "untitled"), found.snippet
    if found.message is None:
        return title, found.id
    return f"{title}\n{snippet.before}{snippet.hit}{snippet.behind}", f"{found.id}/{found.message}"


def heading(title: str) -> str:
    """The title over the messages."""
    return f'<h2 id="centre-title">{escape(title)}</h2>'


def exports(conversation: str, language: str) -> str:
    """Links to a conversation's files."""
    address = f"/v1/conversations/{conversation}/export?format="
    links = [f'<a href="{address}{name}" download>{title}</a>' for name, title in FILES.items()]
    return f'<p class="hint">{say(language, "export")}: {" · ".join(links)}</p>'


def _stored_reply(message: StoredMessage, number: int | None, language: str) -> str:
    """A reply on disk; one that failed or was stopped before its first word, or is still being written, says so."""
    beside = Evidence.from_json(message.evidence)
    text = evidence.marked(message.content, beside, number, language)
    if not text and message.state == "nothing_found":
        text = say(language, "nothing_found")
    if message.state == "writing":
        text = f"{_closed(text)}\n\n*{say(language, 'being_written')}*".strip()
    elif not text and not message.failure:
        text = f"*{say(language, 'unanswered')}*"
    return assistant(_with_failure(text, message.failure, language), message.sources, language, beside, number)


def _with_failure(text: str, failure: str, language: str) -> str:
    return f"{_closed(text)}\n\n⚠ {escape(localised(failure, language))}".strip() if failure else text


def reply_message(reply: Reply, language: str) -> dict[str, str]:
    """A growing reply for the chat component."""
    text = evidence.marked(reply.text, reply.evidence, reply.number, language)
    text = text or ("" if reply.state in ("done", "stopped", "failed") else "…")
    if reply.nothing_found and not reply.text:
        text = say(language, "nothing_found")
    text = _with_failure(text, reply.failure, language)
    finished = reply.state in ("done", "stopped", "failed")
    shown = reply.sources if finished else ()
    return {"role": "assistant", "content": assistant(text, shown, language, reply.evidence, reply.number)}


def assistant(
    text: str,
    sources: Sequence[Mapping[str, Any]],
    language: str,
    beside: Evidence | None = None,
    number: int | None = None,
) -> str:
    """The model's Markdown, or that the documents do not say, and below it the passages that were found, folded; what
    was quoted is above the one and below the other."""
    head = "" if beside is None else _head(beside, number, language)
    text = _with_formulas(text)
    text, folded = (_closed(text), _folded(sources, language, number)) if sources else (text, "")
    nearest = beside is not None and evidence.is_nearest(beside.quote)
    order = [text, head, folded] if nearest else [head, text, folded]
    return "\n\n".join(part for part in order if part)


def _with_formulas(text: str) -> str:
    """Markdown whose formulas between single dollars are in the form that the chat component draws, but for code."""
    parts = CODE.split(text)
    parts[::2] = (DOLLARS.sub(r"\\(\1\\)", part) for part in parts[::2])
    return "".join(parts)


def _head(beside: Evidence, number: int | None, language: str) -> str:
    """What was searched for, the quote with its places, and that what follows is a draft."""
    quote, searched = beside.quote, beside.searched_for
    change = "" if number is None else _action("search", number, say(language, "search_edit"))
    lines = [f"<small>{say(language, 'searched_for', text=escape(searched))} {change}</small>"] if searched else []
    called = "nearest" if evidence.is_nearest(quote) else "quote"
    for at, part in enumerate(evidence.parts(quote), start=1):
        where = evidence.link("quote", number if "document" in part else None, at, place(part, language), language)
        more = " …" if part.get("goes_on") else ""
        lines.append(f"<b>{say(language, called)} · {where}</b><br>{flowing(part['text'])}{more}")
    lines += [f"<small>{say(language, 'chat_instead')}</small>"] if beside.chat else []
    lines += [f"<small>{say(language, 'draft')}</small>"] if quote and quote["draft"] else []
    return f'<article class="quote"><p>{"</p><p>".join(lines)}</p></article>' if lines else ""


def _closed(text: str) -> str:
    """The text with a code block that it left open ended, so that what follows is no code."""
    fence = ""
    for mark in FENCE.findall(text):
        if not fence:
            fence = mark
        elif mark[0] == fence[0] and len(mark) >= len(fence):
            fence = ""
    return f"{text}\n{fence}" if fence else text


def _folded(sources: Sequence[Mapping[str, Any]], language: str, message: int | None) -> str:
    entries = [
        f"<li><b>{_linked(at, source, language, message)}</b><br>{flowing(source['text'])}</li>"
        for at, source in enumerate(sources, start=1)
    ]
    short = " · ".join(dict.fromkeys(place(source, language, "page_short") for source in sources))
    summary = f"<summary>{say(language, 'sources')}: {short}</summary>"
    return f'<details class="cited">{summary}<ol>{"".join(entries)}</ol></details>'


def _linked(at: int, source: Mapping[str, Any], language: str, message: int | None) -> str:
    """The place of a message's source, which leads to its page."""
    return evidence.link("source", message, at, place(source, language), language)


def sources_pane(sources: Sequence[Mapping[str, Any]], language: str, message: int | None = None) -> str:
    """The right pane: one card a passage, with file, page and score; by the message's number it leads to its page."""
    if not sources:
        return f'<p class="hint">{say(language, "sources_none")}</p>'
    return "".join(_card(number, source, language, message) for number, source in enumerate(sources, start=1))


def _card(number: int, source: Mapping[str, Any], language: str, message: int | None) -> str:
    score = say(language, "score", score=f"{source['score']:.2f}")
    base = f"<em>{escape(source['base'])}</em>" if source.get("base") else ""
    where = _linked(number, source, language, message)
    title = f'<span class="number">{number}</span><span>{where}{base}</span><small>{score}</small>'
    return f'<article class="card"><header>{title}</header><p tabindex="0">{flowing(source["text"])}</p></article>'


def progress_line(reply: Reply, language: str) -> str:
    """Under the input: what is going on, then how it went; below it what the window is spent on."""
    line = f'<p class="hint">{" · ".join(_progress(reply, language))}</p>'
    return line + budget.bar(reply.plan.ledger, language) if reply.plan is not None else line


def kept_budget(tree: Tree, language: str) -> str:
    """What the window of a kept conversation's last reply was spent on."""
    ledger = tree[tree.leaf].message.ledger if tree.leaf is not None else None
    return "" if ledger is None else budget.bar(Ledger.from_json(ledger), language)


def _progress(reply: Reply, language: str) -> list[str]:
    if reply.state == "waiting":
        return [say(language, "waiting", ahead=reply.ahead) if reply.ahead else say(language, "looking")]
    if reply.state == "opening" and reply.opening is not None:
        return [say(language, "opening", name=escape(reply.opening.name))]
    if reply.state == "loading":
        return [say(language, "state_loading", name=escape(reply.loading))]
    if reply.state in AT_WORK:
        return [say(language, reply.state)]
    if reply.state == "digesting":
        part = {name: f"{value:,}" for name, value in vars(reply.part).items()}
        return [say(language, "digesting", **part)]
    if reply.state == "reading" and reply.read is not None:
        return [say(language, "reading", done=f"{reply.read.done:,}", total=f"{reply.read.total:,}")]
    return [*_outcome(reply, language), *_notices(reply, language)]


def _outcome(reply: Reply, language: str) -> list[str]:
    if reply.state == "stopped":
        return [say(language, "stopped")]
    if reply.end is None:
        return []
    timings = reply.end.timings
    speed = (timings.tokens - 1) / timings.write_seconds if timings.tokens > 1 and timings.write_seconds else 0
    line = say(language, "done", speed=f"{speed:.1f}", first=f"{timings.read_seconds:.1f}", tokens=timings.tokens)
    return [line, say(language, CUT[reply.end.reason])] if reply.end.reason in CUT else [line]


def _notices(reply: Reply, language: str) -> list[str]:
    if reply.plan is None:
        return []
    short = [say(language, "budget_memory")] if reply.plan.ledger.short_of_memory else []
    return [*short, escape(localised(reply.plan.prompt.notice, language))] if reply.plan.prompt.notice else short


def engine_state(status: Status, fetching: Fetching, notes: Sequence[str], embedded: bool, language: str) -> str:
    """The state of the model under its dropdown, below what is being fetched."""
    if fetching.total:
        summary, more = _ready(status, language) if status.state == "ready" else ("", [])
        return _fetching(fetching, language) + _hints([summary, *more])
    if status.state == "loading":
        return _bar(say(language, "state_loading", name=escape(status.name)), status.done, status.total)
    if status.state == "ready":
        summary, more = _ready(status, language)
        more += [f"{say(language, 'small_model')} {_better(language)}"] if embedded else []
        lines = [say(language, "base_model")] if status.base else []
        lines += [f"⚠ {escape(localised(warning, language))}" for warning in (*notes, fetching.failure) if warning]
        return f"<details><summary>{summary}</summary>{_hints(more)}</details>{_hints(lines)}"
    if status.state == "unloaded":
        return _hints(
            [say(language, "state_unloaded", name=escape(status.name)), escape(localised(status.reason, language))]
        )
    reason = status.message or fetching.failure
    if not reason:
        return _hints([say(language, "state_empty")])
    return _hints([f"⚠ {escape(localised(reason, language))}", f"{say(language, 'ways_on')} {_better(language)}"])


def _ready(status: Status, language: str) -> tuple[str, list[str]]:
    """What is loaded, and more about it."""
    shown = {"name": escape(status.writer), "tier": status.tier.upper()}
    more = [
        say(language, "state_format", format=escape(status.chat_format)),
        escape(localised(status.reason, language)),
    ]
    return say(language, "state_ready", **shown), more


def _fetching(fetching: Fetching, language: str) -> str:
    """What is being fetched, how much of it there is, and what comes then."""
    megabytes = {"done": f"{fetching.done / 1e6:.0f}", "total": f"{fetching.total / 1e6:.0f}"}
    bar = _bar(say(language, "fetching", name=fetching.name, **megabytes), fetching.done, fetching.total)
    follows = FOLLOWS.get(fetching.name)
    return bar + _hints([say(language, follows)] if follows else [])


def _hints(lines: Sequence[str]) -> str:
    return "".join(f'<p class="hint">{line}</p>' for line in lines if line)


def _better(language: str) -> str:
    """A link that opens the sheet of the models (scripts/links.js)."""
    return f'<a href="#q-models-0">{say(language, "better_model")}</a>'


def _bar(text: str, done: int, total: int) -> str:
    return f'<p class="hint">{text}</p><progress value="{done}" max="{max(total, 1)}"></progress>'
