"""The retrieval lab: what each way of searching finds for a question, with its figures."""

from __future__ import annotations

from collections.abc import Sequence

from knowledge.ranking import METHODS, Candidate
from knowledge.retrieval import Ranked, judge

from ..preferences import Retrieving
from ..texts import say
from .escaping import escape
from .render import flowing, place

#: What the ways of answering.Mode, and of ranking.METHODS, are called.
MODES = {"documents": "mode_documents", "chat": "mode_chat", "auto": "mode_auto"}
ORDERS = {"both": "lab_both", "words": "lab_words", "meaning": "lab_meaning"}
SHOWN = 300  #: characters of a passage


def results(question: str, ranked: Ranked, how: Retrieving, language: str) -> str:
    """Whether the documents are taken to answer, and the first chunks in the order of a method."""
    likely = judge(question, ranked)
    verdict = "lab_answered" if likely >= how.threshold else "lab_unanswered"
    line = say(language, verdict, relevance=f"{likely:.2f}", threshold=f"{how.threshold:.2f}")
    places = {method: _places(order(ranked.candidates)) for method, order in METHODS.items()}
    chosen = METHODS[how.method](ranked.candidates)[: how.passages]
    cards = [
        _card(at, each, {method: order.get(each.chunk.id) for method, order in places.items()}, language)
        for at, each in enumerate(chosen, start=1)
    ]
    return f'<p class="hint">{line}</p>{"".join(cards)}'


def choices(names: dict[str, str], language: str) -> list[tuple[str, str]]:
    """For a control of the page: what each is called, and its name."""
    return [(say(language, text), name) for name, text in names.items()]


def _places(candidates: Sequence[Candidate]) -> dict[int, int]:
    return {candidate.chunk.id: at for at, candidate in enumerate(candidates, start=1)}


def _card(at: int, candidate: Candidate, places: dict[str, int | None], language: str) -> str:
    figures = {"words": candidate.keywords, "meaning": candidate.nearness, "both": candidate.score}
    rows = [
        f"<tr><th>{say(language, ORDERS[method])}</th><td>{_figure(figures[method])}</td><td>{_place(order)}</td></tr>"
        for method, order in places.items()
    ]
    rows.append(f"<tr><th>{say(language, 'lab_sentences')}</th><td>{candidate.window:.2f}</td><td></td></tr>")
    chunk = candidate.chunk
    title = place({"name": chunk.name, "page": chunk.page}, language)
    text = chunk.text if len(chunk.text) <= SHOWN else f"{chunk.text[:SHOWN]}…"
    return (
        f'<article class="card"><header><span class="number">{at}</span><span>{title}</span></header>'
        f"<table>{''.join(rows)}</table><p>{flowing(text)}</p></article>"
    )


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _place(at: int | None) -> str:
    return "–" if at is None else escape(f"#{at}")
