"""Citations as the page shows them: numbers in a reply, and what is behind each of them beside the chat.

Links "#q-<kind>-<message>-<at>-<page>" become events through scripts/links.js; a model could write such links too, so
they only show what is there. Pictures of pages come from this app alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any
from urllib.parse import quote

from knowledge import DocumentError, KnowledgeBase, PasswordError
from knowledge.boxes import Box
from knowledge.cite import Cited
from knowledge.context import Context

from ..citing import Evidence
from ..library import Library
from ..preferences import names_of
from ..store import StoredMessage
from ..texts import say
from .escaping import escape
from .section import told

#: What is said of a sentence's problem, by its kind.
PROBLEMS = {"number": "problem_number", "name": "problem_name", "negation": "problem_negation"}
#: Of a pager: where one is, and what its arrows lead to.
PAGERS = {
    "cite": ("citation_of", "previous_citation", "next_citation"),
    "quote": ("quote_of", "previous_quote", "next_quote"),
    "source": ("source_of", "previous_source", "next_source"),
    "page": ("page_of", "previous_page", "next_page"),
}
AROUND = 120  #: characters before and behind a quote
PICTURE_SCALE = 2.0  #: dots a point: sharp when it is shown twice as large
#: Markdown that goes over the end of a sentence; what would tear it apart is marked at its end only.
PAIRED = re.compile(r"\*\*|__|`|\*|\$|\[|\]|<|>")


def marked(text: str, evidence: Evidence, message: int | None, language: str) -> str:
    """A reply's Markdown with numbers of passages behind its sentences; what nothing supports is dotted."""
    parts, done = [], 0
    for at, cited in enumerate(evidence.cited):
        if not done <= cited.start < cited.end <= len(text):
            continue
        parts.append(text[done : cited.start])
        parts.append(_sentence(text[cited.start : cited.end], cited, at, message, language))
        done = cited.end
    return "".join([*parts, text[done:]])


def _sentence(text: str, cited: Cited, at: int, message: int | None, language: str) -> str:
    citation = cited.citation
    if citation.chatter:
        return text
    if citation.supported:
        hint = say(language, "cited_show")
        return text + "".join(
            f'<a class="mark" href="#q-cite-{message or 0}-{at}" title="{hint}">[{number}]</a>'
            for number in citation.passages
        )
    hint = escape(doubt(cited, language))
    if _whole(text):
        return f'<span class="unsupported" title="{hint}">{text}</span>'
    return f'{text}<sup class="unsupported" title="{hint}">?</sup>'


def _whole(text: str) -> bool:
    """Whether an element may stand around the text without tearing its Markdown apart."""
    found = PAIRED.findall(text)
    return not {"<", ">", "[", "]"} & set(found) and all(found.count(mark) % 2 == 0 for mark in set(found))


def doubt(cited: Cited, language: str) -> str:
    """Why a sentence is marked."""
    problems = cited.citation.problems
    if not cited.citation.spans or not problems:
        return say(language, "unsupported")
    told = [say(language, PROBLEMS[problem.kind], text=problem.text) for problem in problems]
    return f"{say(language, 'unsupported')} {' '.join(dict.fromkeys(told))}"


def link(kind: str, message: int | None, at: int, text: str, language: str) -> str:
    """A text that leads to the page of what it names; only the text while the message has no number."""
    if message is None:
        return text
    return f'<a class="place" href="{_link(kind, message, at)}" title="{say(language, "cited_show")}">{text}</a>'


@dataclass(frozen=True)
class View:
    """What is shown of a reply's evidence: of a kind (a key of PLACES) one, by its number; its page, or another."""

    message: int
    at: int
    page: int | None = None
    kind: str = "cite"


@dataclass(frozen=True)
class Place:
    """Characters `start` to `end` of a passage, which comes as {"name", "page", "text"}, in a document by its id; and
    what it is numbered among the sources."""

    passage: Mapping[str, Any]
    document: str
    start: int
    end: int
    number: int | None = None

    @property
    def text(self) -> str:
        return self.passage["text"][self.start : self.end]


def _cited(stored: StoredMessage, evidence: Evidence) -> dict[int, Place]:
    sources = _sources(stored, evidence)
    spans = ((at, span) for at, span in reversed(evidence.citations) if span.passage in sources)
    return {at: replace(sources[span.passage], start=span.start, end=span.end) for at, span in spans}


def _quoted(stored: StoredMessage, evidence: Evidence) -> dict[int, Place]:
    return dict(enumerate(_entire(parts(evidence.quote)), start=1))


def _sources(stored: StoredMessage, evidence: Evidence) -> dict[int, Place]:
    named = zip_longest(stored.sources, evidence.documents[: len(stored.sources)], fillvalue="")
    placed = _entire({**source, "document": document} for source, document in named)
    return {number: replace(place, number=number) for number, place in enumerate(placed, start=1)}


def _entire(passages: Iterable[Mapping[str, Any]]) -> list[Place]:
    return [Place(passage, passage.get("document", ""), 0, len(passage["text"])) for passage in passages]


#: What of a reply has a place in a document, by its number.
PLACES: Mapping[str, Callable[[StoredMessage, Evidence], dict[int, Place]]] = {
    "cite": _cited,
    "quote": _quoted,
    "source": _sources,
}


def parts(quote: Mapping[str, Any] | None) -> Sequence[Mapping[str, Any]]:
    """Of a quote as answering.quote_data gives it; one that was kept before there were parts is its only one."""
    return quote.get("parts", [quote]) if quote else ()


def is_nearest(quote: Mapping[str, Any] | None) -> bool:
    """Whether it is only what is nearest in documents that had better be said not to answer."""
    return bool(quote and quote.get("nearest"))


def panel(stored: StoredMessage, view: View, library: Library, language: str) -> str:
    """The page of a place with its passage highlighted; for files without pages the passage in its context."""
    evidence = Evidence.from_json(stored.evidence)
    places = PLACES[view.kind](stored, evidence)
    if view.at not in places:
        return f'<p class="hint">{say(language, "evidence_none")}</p>'
    place = places[view.at]
    head = _head(sorted(places), view, place, language)
    try:
        base = place.passage.get("base") or next(iter(names_of(evidence.base)), "")
        shown = _Shown(library.open(base), place.document, base)
        body = _body(shown, view, place, language)
    except PasswordError:
        body = f'<p class="hint">⚠ {say(language, "evidence_locked")}</p>'
    except (DocumentError, LookupError, ValueError, OSError) as error:  # removed since, or damaged
        reason = told(error, language) if isinstance(error, DocumentError) else say(language, "evidence_gone")
        body = f'<p class="hint">⚠ {reason}</p>'
    whole = f"{head}{body}{_excerpt(place)}"
    return f'<section class="evidence" aria-label="{say(language, "evidence")}">{whole}</section>'


@dataclass(frozen=True)
class _Shown:
    base: KnowledgeBase
    document: str
    name: str  # of the knowledge base

    @property
    def address(self) -> str:
        return f"/documents/{quote(self.name, safe='')}/{self.document}"


def _head(numbers: Sequence[int], view: View, place: Place, language: str) -> str:
    now = numbers.index(view.at)
    before = _link(view.kind, view.message, numbers[now - 1]) if now else None
    after = _link(view.kind, view.message, numbers[now + 1]) if now + 1 < len(numbers) else None
    pager = _pager(view.kind, before, after, now + 1, len(numbers), language)
    back = f'<a href="{_link("sources", view.message)}">{say(language, "evidence_close")}</a>'
    number = "" if place.number is None else f'<span class="number">{place.number}</span>'
    title = f"{number}<b>{escape(place.passage['name'])}</b>"
    return f'<header><div class="bar">{pager}{back}</div><div class="title">{title}</div></header>'


def _body(shown: _Shown, view: View, place: Place, language: str) -> str:
    document = next((each for each in shown.base.documents() if each.id == shown.document), None)
    if document is None:
        raise LookupError(shown.document)
    original = f"{shown.address}/original"
    if document.suffix != ".pdf" or place.passage["page"] is None:
        return _context(shown, place, original, language)
    page = min(max(view.page or place.passage["page"], 1), document.pages or 1)
    before = _link(view.kind, view.message, view.at, page - 1) if page > 1 else None
    after = _link(view.kind, view.message, view.at, page + 1) if page < document.pages else None
    tools = "".join(
        [
            _pager("page", before, after, page, document.pages, language),
            f'<span class="zoom"><a href="#q-zoom-0" role="button" title="{say(language, "zoom_out")}">−</a>',
            f'<a href="#q-zoom-1" role="button" title="{say(language, "zoom_in")}">+</a></span>',
            f'<a href="{original}#page={page}" target="_blank" rel="noopener">{say(language, "open_original")}</a>',
        ]
    )
    picture = f"{shown.address}/pages/{page}.png?scale={PICTURE_SCALE}"
    label = say(language, "page_of", at=page, count=document.pages)
    boxes = _overlay(shown, place) if page == place.passage["page"] else ""
    return (
        f'<div class="bar">{tools}</div><div class="pane" tabindex="0" aria-label="{label}"><div class="paper">'
        f'<img src="{picture}" alt="{escape(document.name)}, {label}">{boxes}</div></div>'
    )


def _overlay(shown: _Shown, place: Place) -> str:
    """Boxes over the picture of the place's page, in its own fractions: of the passage where the place is a part of it,
    and of the place."""
    page, text = place.passage["page"], place.passage["text"]
    passage = shown.base.boxes(shown.document, page, text) if place.text != text else ()
    exact = shown.base.boxes(shown.document, page, place.text)
    drawn = [*(_rectangle(box, "passage") for box in passage), *(_rectangle(box, "exact") for box in exact)]
    return f'<svg viewBox="0 0 1 1" preserveAspectRatio="none" aria-hidden="true">{"".join(drawn)}</svg>'


def _rectangle(box: Box, kind: str) -> str:
    pad = 0.15 * (box.y1 - box.y0)
    return (
        f'<rect class="{kind}" x="{box.x0:.5f}" y="{box.y0 - pad:.5f}" width="{box.x1 - box.x0:.5f}" '
        f'height="{box.y1 - box.y0 + 2 * pad:.5f}"/>'
    )


def _context(shown: _Shown, place: Place, original: str, language: str) -> str:
    found = shown.base.context(shown.document, place.passage["page"], place.text)
    tools = f'<div class="bar"><a href="{original}">{say(language, "download_original")}</a></div>'
    if found is None:
        return tools
    around = f"{escape(found.before)}<mark>{escape(found.passage)}</mark>{escape(found.after)}"
    return f'{tools}<p class="where">{_where(found, language)}</p><div class="pane text" tabindex="0">{around}</div>'


def _where(found: Context, language: str) -> str:
    """Page or slide, sheet and row, and the headings on the way to the passage."""
    parts = [] if found.page is None else [say(language, "page", page=found.page)]
    if found.label:
        parts += [escape(found.label), say(language, "row", row=found.row)]
    return " · ".join([*parts, *map(escape, found.headings)])


def _excerpt(place: Place) -> str:
    """The words of the place, and some around them."""
    text = place.passage["text"]
    start, end = max(0, place.start - AROUND), place.end + AROUND
    before = ("…" if start else "") + text[start : place.start]
    after = text[place.end : end] + ("…" if end < len(text) else "")
    before, exact, after = (escape(part.replace("\n", " ")) for part in (before, place.text, after))
    return f'<blockquote tabindex="0">{before}<mark>{exact}</mark>{after}</blockquote>'


def _link(do: str, *numbers: int) -> str:
    return f"#q-{do}-{'-'.join(map(str, numbers))}"


def _pager(kind: str, before: str | None, after: str | None, at: int, count: int, language: str) -> str:
    label, *hints = PAGERS[kind]

    def arrow(address: str | None, sign: str, key: str) -> str:
        hint = say(language, key)
        return f'<a href="{address}" title="{hint}" aria-label="{hint}">{sign}</a>' if address else f"<i>{sign}</i>"

    where = say(language, label, at=at, count=count)
    return f'<span class="pager">{arrow(before, "‹", hints[0])} {where} {arrow(after, "›", hints[1])}</span>'
