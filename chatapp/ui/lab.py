"""The retrieval lab, in the right pane: how documents are searched, and what each way of it finds for a question."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from knowledge import KnowledgeBaseError
from knowledge.ranking import METHODS, Candidate
from knowledge.retrieval import Ranked, judge

from ..checkpoints import FetchError
from ..library import LibraryError
from ..preferences import MOST_PASSAGES, Asked, Followups, Retrieving
from ..texts import say
from .escaping import escape
from .render import flowing, place
from .section import QUIET, Label, Parts, Section, hint, only, told

#: What the ways of answering.Mode, of ranking.METHODS and of preferences.Followups are called.
MODES = {"documents": "mode_documents", "chat": "mode_chat", "auto": "mode_auto"}
ORDERS = {"both": "lab_both", "words": "lab_words", "meaning": "lab_meaning"}
FOLLOWUPS = {"off": "followups_off", "rule": "followups_rule", "model": "followups_model"}
SHOWN = 300  #: characters of a passage

#: What is set here.
LAB = ("lab_passages", "lab_threshold", "lab_method", "lab_followups")


def layout(label: Label) -> Parts:
    """Below the sources: how documents are searched."""
    with gr.Accordion(label("lab"), open=False, elem_id="lab"):
        question = gr.Textbox(label=label("lab_question"), info=label("lab_info"), elem_id="lab-question")
        method = gr.Dropdown([], label=label("lab_method"), elem_id="lab-method")
        passages = gr.Slider(1, MOST_PASSAGES, step=1, label=label("lab_passages"), elem_id="lab-passages")
        threshold = gr.Slider(0, 1, step=0.05, label=label("lab_threshold"), elem_id="lab-threshold")
        followups = gr.Dropdown(
            [], label=label("lab_followups"), info=label("lab_followups_info"), elem_id="lab-followups"
        )
        with gr.Row():
            find = gr.Button(label("lab_find"), size="sm", elem_id="lab-find")
            apply = gr.Button(label("lab_apply"), size="sm", elem_id="lab-apply")
        note = gr.HTML(elem_id="lab-note")
        results = gr.HTML(elem_id="lab-results")
    return {
        "lab_question": question,
        "lab_method": method,
        "lab_passages": passages,
        "lab_threshold": threshold,
        "lab_followups": followups,
        "lab_find": find,
        "lab_apply": apply,
        "lab_note": note,
        "lab_results": results,
    }


def connect(parts: Parts, lab: Lab) -> None:
    examined = only(parts, "lab_question", "base", "lab_passages", "lab_threshold", "lab_method")
    for event in (parts["lab_find"].click, parts["lab_question"].submit):
        event(lab.examine, examined, only(parts, "lab_results"), **QUIET)
    applied = only(parts, "conversation", "lab_note")
    parts["lab_apply"].click(lab.prefer_retrieval, only(parts, "conversation", *LAB), applied, **QUIET)
    preferred = only(parts, "mode", *LAB)
    parts["conversation"].change(lab.preferred, only(parts, "conversation"), preferred, **QUIET)
    mode = only(parts, "conversation", "mode")
    parts["mode"].input(lab.prefer_mode, mode, only(parts, "conversation"), **QUIET)


class Lab(Section):
    def examine(
        self, question: str, base: Asked, passages: int, threshold: float, method: str, request: gr.Request
    ) -> str:
        """What a search finds."""
        language = self.language(request)
        if not base or not question.strip():
            return hint(say(language, "lab_no_base"))
        how = Retrieving(passages=passages, threshold=threshold, method=method)
        try:
            return results(question, self._chat.library.ask(base).rank(question), how, language)
        except (LibraryError, KnowledgeBaseError, FetchError) as error:
            return hint(f"⚠ {told(error, language)}")

    def prefer_retrieval(
        self,
        conversation: str | None,
        passages: int,
        threshold: float,
        method: str,
        followups: Followups,
        request: gr.Request,
    ) -> tuple[str, str]:
        """Lets a conversation search like this: its id, and what to say."""
        how = Retrieving(passages=passages, threshold=threshold, method=method)
        wanted = None if followups == "rule" else followups
        id = self._chat.prefer(conversation, retrieval=how, followups=wanted)
        return id, hint(say(self.language(request), "lab_applied"))

    def prefer_mode(self, conversation: str | None, mode: str) -> str:
        """Lets a conversation's answers come from documents, from the model, or from either: its id."""
        return self._chat.prefer(conversation, mode=mode)

    def preferred(self, conversation: str | None, request: gr.Request) -> tuple[Any, ...]:
        """How a conversation searches: mode, passages, threshold, method, follow-up questions."""
        language = self.language(request)
        kept = self._chat.preferences(conversation)
        how = kept.retrieval or Retrieving()
        return (
            gr.update(choices=choices(MODES, language), value=kept.mode or "documents"),
            how.passages,
            how.threshold,
            gr.update(choices=choices(ORDERS, language), value=how.method),
            gr.update(choices=choices(FOLLOWUPS, language), value=kept.followups or "rule"),
        )


def results(question: str, ranked: Ranked, how: Retrieving, language: str) -> str:
    """Whether the documents are taken to answer, and the first chunks in the order of a method."""
    likely = judge(question, ranked)
    verdict = "lab_answered" if likely >= how.threshold else "lab_unanswered"
    line = say(language, verdict, relevance=f"{likely:.2f}", threshold=f"{how.threshold:.2f}")
    places = {method: _places(order(ranked.candidates)) for method, order in METHODS.items()}
    chosen = METHODS[how.method](ranked.candidates)[: how.passages]
    cards = [
        _card(at, each, {method: order.get(_key(each)) for method, order in places.items()}, language)
        for at, each in enumerate(chosen, start=1)
    ]
    return f'<p class="hint">{line}</p>{"".join(cards)}'


def choices(names: dict[str, str], language: str) -> list[tuple[str, str]]:
    """For a control of the page: what each is called, and its name."""
    return [(say(language, text), name) for name, text in names.items()]


def _key(candidate: Candidate) -> tuple[str | None, int]:
    """Of its chunk, among those of several knowledge bases."""
    return candidate.chunk.base, candidate.chunk.id


def _places(candidates: Sequence[Candidate]) -> dict[tuple[str | None, int], int]:
    return {_key(candidate): at for at, candidate in enumerate(candidates, start=1)}


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
