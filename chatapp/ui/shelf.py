"""The files of knowledge bases as the page lists them: states, what can be done with each, and those put beside a
question. Everything that is not ours is escaped; buttons become events through scripts/documents/."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import quote

from knowledge import Ingested
from knowledge.database import StoredDocument

from ..library import Batch
from ..sentences import localised
from ..session import Beside
from ..texts import say
from .escaping import escape

#: What is said of a file that is not done.
STATES = {
    "waiting": "ingest_waiting",
    "reading": "ingest_reading",
    "embedding": "ingest_embedding",
    "failed": "ingest_failed",
    "cancelled": "ingest_cancelled",
}
#: Which files come first: those that need the user, those that are worked on, then the others, the newest first.
ORDER = {"failed": 0, "reading": 1, "embedding": 1, "waiting": 2, "cancelled": 3, "done": 4}
UNITS = ("B", "KB", "MB", "GB")


@dataclass(frozen=True)
class Shelf:
    """A knowledge base and its files, in any state."""

    base: str
    files: Sequence[StoredDocument]


def listing(shelves: Sequence[Shelf], language: str) -> str:
    """The files of each knowledge base; their names above them where there are several."""
    if not shelves:
        return f'<p class="hint">{say(language, "documents_choose")}</p>'
    return "".join(_shelf(shelf, len(shelves) > 1, language) for shelf in shelves)


def _shelf(shelf: Shelf, named: bool, language: str) -> str:
    files = sorted(shelf.files, key=lambda file: (ORDER[file.state], -file.added))
    count = say(language, "documents_one") if len(files) == 1 else say(language, "documents_count", count=len(files))
    head = f"<h3>{escape(shelf.base)} <small>{count}</small></h3>" if named else ""
    rows = "".join(_row(shelf.base, file, language) for file in files)
    return head + (
        f'<ul class="files">{rows}</ul>' if rows else f'<p class="hint">{say(language, "documents_none")}</p>'
    )


def _row(base: str, file: StoredDocument, language: str) -> str:
    version = f" ({file.version})" if file.version > 1 else ""
    folder, _, name = file.name.rpartition("/")
    where = f"<small>{escape(folder)}/</small>" if folder else ""
    original = f"/documents/{quote(base, safe='')}/{file.id}/original"
    title = f'<a href="{original}" target="_blank" rel="noopener">{escape(name)}</a>' if file.chunks else escape(name)
    reason = f'<small class="reason">⚠ {escape(localised(file.reason, language))}</small>' if file.reason else ""
    names = {"data-base": base, "data-file": file.id}
    marks = " ".join(f'{key}="{escape(value)}"' for key, value in names.items())
    return (
        f'<li class="{file.state}" {marks}><div class="name">{where}{title}{version}</div>'
        f"<small>{_about(file, language)}</small>{_bar(file)}{reason}{_tools(file, language)}</li>"
    )


def _about(file: StoredDocument, language: str) -> str:
    """Its state or, once it is done, its pages; its size and the day on which it came."""
    day = datetime.fromtimestamp(file.added).date().isoformat()
    if file.state == "done":
        state = _pages(file.pages, language) if file.pages else ""
    else:
        state = f"<b>{say(language, STATES[file.state], done=file.embedded, total=file.chunks)}</b>"
    return " · ".join(filter(None, [state, size(file.size), day]))


def _pages(count: int, language: str) -> str:
    return say(language, "ingest_page") if count == 1 else say(language, "ingest_pages", pages=count)


def _bar(file: StoredDocument) -> str:
    if file.state == "embedding":
        return f'<progress value="{file.embedded}" max="{max(file.chunks, 1)}"></progress>'
    return "<progress></progress>" if file.state == "reading" else ""


def _tools(file: StoredDocument, language: str) -> str:
    """What can be done with a file; removing it asks back first."""
    failed = file.state == "failed"
    shown = []
    if file.state == "done":
        hint = say(language, "summarise_info")
        shown.append(f'<a href="#q-summarise-{number_of(file)}" title="{hint}">{say(language, "summarise")}</a>')
    if file.state in ("done", "failed", "cancelled") and not file.locked:
        again = say(language, "file_retry" if failed else "file_again")
        shown.append(_button("again", again, say(language, "file_again_info")))
    shown.append(_button("ask", say(language, "file_remove"), say(language, "file_remove_info")))
    sure = [_button("remove", say(language, "file_remove")), _button("keep", say(language, "cancel"))]
    return (
        f'<div class="tools">{"".join(shown)}</div>'
        f'<div class="sure">{say(language, "file_remove_sure")} {"".join(sure)}</div>'
    )


def _button(do: str, label: str, hint: str = "") -> str:
    title = f' title="{hint}"' if hint else ""
    return f'<button type="button" data-do="{do}"{title}>{label}</button>'


def number_of(file: StoredDocument) -> int:
    """A number for links, which JavaScript can hold; it stays the document's own however the list changes."""
    return int(file.id[:12], 16)


def size(count: int) -> str:
    """Bytes in a unit that fits: "3 KB", "1.2 MB"."""
    value, unit = float(count), 0
    while value >= 1000 and unit < len(UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.1f} {UNITS[unit]}" if unit > 1 and value < 10 else f"{value:.0f} {UNITS[unit]}"


def notes(outcomes: Iterable[Any], language: str) -> str:
    """What is to be said at once of files that were just added: those that can't be read, and those that are here."""
    told = [_note(each, language) for each in outcomes if isinstance(each, Ingested)]
    return f'<ul class="outcomes">{"".join(told)}</ul>' if told else ""


def _note(outcome: Ingested, language: str) -> str:
    if outcome.state == "known":
        return f'<li class="known">{say(language, "ingest_known", name=escape(outcome.name))}</li>'
    return f'<li class="{outcome.state}">⚠ {escape(localised(outcome.reason or outcome.name, language))}</li>'


def working(batches: Sequence[Batch], language: str) -> str:
    """How far the files are that are being read and embedded, all together."""
    count, failed = sum(batch.files for batch in batches), sum(batch.failed for batch in batches)
    if not count:
        return ""
    share = sum(batch.share * batch.files for batch in batches) / count
    line = say(language, "ingest_working", done=sum(batch.done for batch in batches), total=count)
    line += f" · {say(language, 'ingest_unread', count=failed)}" if failed else ""
    seconds = [batch.seconds for batch in batches if batch.files]
    left = "" if None in seconds else f" · {left_of(sum(seconds), language)}"
    return f'<p class="hint">{line}{left}</p><progress value="{share:.3f}" max="1"></progress>'


def left_of(seconds: float, language: str) -> str:
    return say(language, "ingest_left", minutes=max(1, round(seconds / 60)))


def target(base: str, kinds: Sequence[str], language: str) -> str:
    """Where files go that are added, and the button for a whole folder."""
    hint = say(language, "folder_info")
    return (
        f'<p class="hint">{say(language, "files_into", name=escape(base))} '
        f'<button type="button" data-do="folder" data-kinds="{" ".join(kinds)}" title="{hint}">'
        f"{say(language, 'folder_add')}</button></p>"
    )


def chips(beside: Sequence[Beside], files: Sequence[StoredDocument], language: str) -> str:
    """The files beside the question that is being written, with how far each is read."""
    states = {file.id: file for file in files}
    return "".join(_chip(at, each, states.get(each.id), language) for at, each in enumerate(beside))


def _chip(at: int, beside: Beside, file: StoredDocument | None, language: str) -> str:
    name = escape(beside.name.rpartition("/")[2])
    state, about, bar = "gone", say(language, "chip_gone"), ""
    if file is not None:
        state, about = file.state, say(language, "chip_ready")
        if not file.chunks:
            about = say(language, STATES[file.state], done=0, total=0)
            bar = "" if file.state in ("failed", "cancelled") else "<progress></progress>"
    reason = f' title="{escape(localised(file.reason, language))}"' if file is not None and file.reason else ""
    hint = say(language, "chip_remove", name=name)
    return (
        f'<span class="chip {state}"{reason}><b>{name}</b><small>{about}</small>{bar}'
        f'<button type="button" data-do="detach" data-at="{at}" aria-label="{hint}" title="{hint}">✕</button></span>'
    )
