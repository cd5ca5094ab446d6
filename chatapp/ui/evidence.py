"""Citations as the page shows them: numbers in a reply, and what is behind each of them beside the chat.

Links "#q-<what>-<message>-..." become events through scripts/links.js; a model could write such links too, so they
only show what is there. Pictures of pages come from this app alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from knowledge import DocumentError, KnowledgeBase, PasswordError
from knowledge.boxes import Box
from knowledge.cite import Cited, Span
from knowledge.context import Context

from ..citing import Evidence
from ..library import Library
from ..preferences import names_of
from ..store import StoredMessage
from ..texts import say
from .escaping import escape

#: What is said of a sentence's problem, by its kind.
PROBLEMS = {"number": "problem_number", "name": "problem_name", "negation": "problem_negation"}
#: What the arrows of a pager lead to.
CITATION, PAGE = ("previous_citation", "next_citation"), ("previous_page", "next_page")
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


@dataclass(frozen=True)
class View:
    """What is shown of a reply's evidence: the citation at this place, and its page or another one."""

    message: int
    cited: int
    page: int | None = None


def panel(stored: StoredMessage, view: View, library: Library, language: str) -> str:
    """The page behind a citation with its passage highlighted; for files without pages the passage in its context."""
    evidence = Evidence.from_json(stored.evidence)
    chosen = next(((at, span) for at, span in evidence.citations if at == view.cited), None)
    if chosen is None or not 0 < chosen[1].passage <= len(stored.sources):
        return f'<p class="hint">{say(language, "evidence_none")}</p>'
    _, span = chosen
    source = stored.sources[span.passage - 1]
    head = _head(evidence, view, span, source, language)
    try:
        base = source.get("base") or next(iter(names_of(evidence.base)), "")
        shown = _Shown(library.open(base), evidence.documents[span.passage - 1], base)
        body = _body(shown, view, span, source, language)
    except PasswordError:
        body = f'<p class="hint">⚠ {say(language, "evidence_locked")}</p>'
    except (DocumentError, LookupError, ValueError, OSError) as error:  # removed since, or damaged
        reason = escape(str(error)) if isinstance(error, DocumentError) else say(language, "evidence_gone")
        body = f'<p class="hint">⚠ {reason}</p>'
    whole = f"{head}{body}{_quote(span, source)}"
    return f'<section class="evidence" aria-label="{say(language, "evidence")}">{whole}</section>'


@dataclass(frozen=True)
class _Shown:
    base: KnowledgeBase
    document: str
    name: str  # of the knowledge base

    @property
    def address(self) -> str:
        return f"/documents/{quote(self.name, safe='')}/{self.document}"


def _head(evidence: Evidence, view: View, span: Span, source: Mapping[str, Any], language: str) -> str:
    places = list(dict.fromkeys(at for at, _ in evidence.citations))
    now = places.index(view.cited)
    before = _link("cite", view.message, places[now - 1]) if now else None
    after = _link("cite", view.message, places[now + 1]) if now + 1 < len(places) else None
    pager = _pager(before, after, say(language, "citation_of", at=now + 1, count=len(places)), CITATION, language)
    back = f'<a href="{_link("sources", view.message)}">{say(language, "evidence_close")}</a>'
    title = f'<span class="number">{span.passage}</span><b>{escape(source["name"])}</b>'
    return f'<header><div class="bar">{pager}{back}</div><div class="title">{title}</div></header>'


def _body(shown: _Shown, view: View, span: Span, source: Mapping[str, Any], language: str) -> str:
    document = next((each for each in shown.base.documents() if each.id == shown.document), None)
    if document is None:
        raise LookupError(shown.document)
    original = f"{shown.address}/original"
    if document.suffix != ".pdf" or source["page"] is None:
        return _context(shown, source, source["text"][span.start : span.end], original, language)
    page = min(max(view.page or source["page"], 1), document.pages or 1)
    own = page == source["page"]
    text = source["text"]
    passage = shown.base.boxes(shown.document, page, text) if own else []
    exact = shown.base.boxes(shown.document, page, text[span.start : span.end]) if own else []
    tools = "".join(
        [
            _pager(
                _link("page", view.message, view.cited, page - 1) if page > 1 else None,
                _link("page", view.message, view.cited, page + 1) if page < document.pages else None,
                say(language, "page_of", page=page, count=document.pages),
                PAGE,
                language,
            ),
            f'<span class="zoom"><a href="#q-zoom-0" role="button" title="{say(language, "zoom_out")}">−</a>',
            f'<a href="#q-zoom-1" role="button" title="{say(language, "zoom_in")}">+</a></span>',
            f'<a href="{original}#page={page}" target="_blank" rel="noopener">{say(language, "open_original")}</a>',
        ]
    )
    picture = f"{shown.address}/pages/{page}.png?scale={PICTURE_SCALE}"
    label = say(language, "page_of", page=page, count=document.pages)
    return (
        f'<div class="bar">{tools}</div><div class="sheet" tabindex="0" aria-label="{label}"><div class="paper">'
        f'<img src="{picture}" alt="{escape(document.name)}, {label}">{_overlay(passage, exact)}</div></div>'
    )


def _overlay(passage: Sequence[Box], exact: Sequence[Box]) -> str:
    """The boxes over the picture, in its own fractions."""
    drawn = [*(_rectangle(box, "passage") for box in passage), *(_rectangle(box, "exact") for box in exact)]
    return f'<svg viewBox="0 0 1 1" preserveAspectRatio="none" aria-hidden="true">{"".join(drawn)}</svg>'


def _rectangle(box: Box, kind: str) -> str:
    pad = 0.15 * (box.y1 - box.y0)
    return (
        f'<rect class="{kind}" x="{box.x0:.5f}" y="{box.y0 - pad:.5f}" width="{box.x1 - box.x0:.5f}" '
        f'height="{box.y1 - box.y0 + 2 * pad:.5f}"/>'
    )


def _context(shown: _Shown, source: Mapping[str, Any], exact: str, original: str, language: str) -> str:
    found = shown.base.context(shown.document, source["page"], exact)
    tools = f'<div class="bar"><a href="{original}">{say(language, "download_original")}</a></div>'
    if found is None:
        return tools
    around = f"{escape(found.before)}<mark>{escape(found.passage)}</mark>{escape(found.after)}"
    return f'{tools}<p class="where">{_where(found, language)}</p><div class="sheet text" tabindex="0">{around}</div>'


def _where(found: Context, language: str) -> str:
    """Page or slide, sheet and row, and the headings on the way to the passage."""
    parts = [] if found.page is None else [say(language, "page", page=found.page)]
    if found.label:
        parts += [escape(found.label), say(language, "row", row=found.row)]
    return " · ".join([*parts, *map(escape, found.headings)])


def _quote(span: Span, source: Mapping[str, Any]) -> str:
    """The words that a sentence draws on, and some around them."""
    text = source["text"]
    start, end = max(0, span.start - AROUND), span.end + AROUND
    before = ("…" if start else "") + text[start : span.start]
    after = text[span.end : end] + ("…" if end < len(text) else "")
    before, exact, after = (escape(part.replace("\n", " ")) for part in (before, text[span.start : span.end], after))
    return f"<blockquote>{before}<mark>{exact}</mark>{after}</blockquote>"


def _link(do: str, *numbers: int) -> str:
    return f"#q-{do}-{'-'.join(map(str, numbers))}"


def _pager(before: str | None, after: str | None, label: str, hints: tuple[str, str], language: str) -> str:
    def arrow(address: str | None, sign: str, key: str) -> str:
        hint = say(language, key)
        return f'<a href="{address}" title="{hint}" aria-label="{hint}">{sign}</a>' if address else f"<i>{sign}</i>"

    return f'<span class="pager">{arrow(before, "‹", hints[0])} {label} {arrow(after, "›", hints[1])}</span>'
