"""The sentences of found passages that answer a question best, word for word, without a language model.

How likely each sentence holds the answer is a softmax of weighted sums of FEATURES; one or two that hold it most
likely are quoted, wherever they stand. `python -m benchmarks.fit_quote` finds the weights; docs/evidence.md says from
which questions, and what they give.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations

import numpy as np
from langchain_core.embeddings import Embeddings

from knowledge import asked, terms
from knowledge.ranking import share
from knowledge.retrieval import Passage, language
from knowledge.statements import Sentence, different, is_short, length, rarity, rest, shares, trimmed
from knowledge.vectors import unit_rows

EMBEDDED = 8  #: sentences, the best ones by everything else, in one batch
ELLIPSIS = " … "  #: between parts of a quote that do not follow each other

FEATURES = ("words", "around", "kind", "lacks", "close", "length", "behind", "later", "place", "nearness")
WEIGHTS: Mapping[str, tuple[float, ...]] = {
    "zh": (3.8, 4.8, 0.2, -0.2, 0.6, -0.6, -0.3, -0.8, 0.0, 47.3),
    "other": (3.5, 2.3, 0.3, -0.6, 0.8, 0.0, -0.2, -0.7, -0.7, 18.1),
}

_CLAUSES = re.compile(r"[，、：；]|[,;:]\s")
# What is embedded is the sentence; in Chinese behind its heading, which often says alone what it is about. In English
# that gives no more.
_HEADED = {"zh": True, "other": False}
_NEAR = {"zh": 24, "other": 80}  # characters around what could be the answer
_FARTHEST = 8.0  # by which a passage can be behind, as a logit


@dataclass(frozen=True)
class Span:
    """A part of a passage: `passage.text[start:end]`."""

    passage: Passage
    start: int
    end: int

    @property
    def text(self) -> str:
        return self.passage.text[self.start : self.end]

    @property
    def goes_on(self) -> bool:
        """Whether its sentence does, behind it."""
        return rest(self.passage.text, self.end) > 0


@dataclass(frozen=True)
class Quote:
    """One or two sentences; two that follow each other in their passage are one part. Parts are in the order of the
    passages, and of their text."""

    parts: tuple[Span, ...]

    @property
    def text(self) -> str:
        return ELLIPSIS.join(part.text for part in self.parts)


def quote(question: str, passages: Sequence[Passage], embeddings: Embeddings) -> Quote | None:
    """The one or two sentences of `passages` (best first) that answer `question` best; None if there are none.

    No longer than statements.CHARACTERS or WORDS. Embeds the question and EMBEDDED sentences.
    """
    sentences, figures = judged(question, passages, embeddings)
    return likeliest(passages, sentences, figures @ WEIGHTS[language(question)]) if sentences else None


def judged(question: str, passages: Sequence[Passage], embeddings: Embeddings) -> tuple[list[Sentence], np.ndarray]:
    """The sentences that were embedded, and their FEATURES, float64 [sentences, features].

    While the embedding model is being loaded, words have to do: the nearness of all is 0.
    """
    sentences = different([passage.text for passage in passages])
    if not sentences:
        return [], np.empty((0, len(FEATURES)))
    figures = _figures(question, passages, sentences)
    best = np.argsort(-(figures @ WEIGHTS[language(question)]), kind="stable")[:EMBEDDED]
    chosen, figures = [sentences[at] for at in best], figures[best]
    if not getattr(embeddings, "loading", False):
        headed = _HEADED[language(question)]
        near = unit_rows(embeddings.embed_documents([_told(sentence, headed) for sentence in chosen]))
        figures[:, FEATURES.index("nearness")] = near @ unit_rows(embeddings.embed_query(question))[0]
    return chosen, figures


def _told(sentence: Sentence, headed: bool) -> str:
    """What of a sentence is embedded."""
    return f"{sentence.heading}: {sentence.text}" if headed and sentence.heading else sentence.text


def likeliest(passages: Sequence[Passage], sentences: Sequence[Sentence], scores: np.ndarray) -> Quote:
    """The sentence, or the two, in which the answer most likely is. scores: logits, float64 [sentences].

    Where two are too long, the second one is cut, and as likely to hold the answer as there is left of it.
    """
    chances = np.exp(scores - scores.max())
    chances /= chances.sum()
    likely = {(sentence,): chance for sentence, chance in zip(sentences, chances, strict=True)}
    for first, second in permutations(range(len(sentences)), 2):
        if cut := _beside(sentences[first], sentences[second]):
            left = len(cut.text) / len(sentences[second].text)
            likely[sentences[first], cut] = chances[first] + left * chances[second]
    return Quote(_whole(_parts(passages, max(likely, key=likely.__getitem__))))


def _beside(first: Sentence, second: Sentence) -> Sentence | None:
    """`second`, or as many of its clauses as have room beside `first`: its last ones if it leads up to that."""
    stop = len(second.text)
    clauses = [found.end() for found in _CLAUSES.finditer(second.text)]
    leads_up = (second.rank, second.place + 1) == (first.rank, first.place)
    cuts = [(cut, stop) for cut in clauses] if leads_up else [(0, cut) for cut in reversed(clauses)]
    for start, end in (span for cut in [(0, stop), *cuts] for span in trimmed(second.text, cut)):
        if is_short(first.text, second.text[start:end]):
            return replace(second, start=second.start + start, end=second.start + end, text=second.text[start:end])
    return None


def _parts(passages: Sequence[Passage], sentences: Sequence[Sentence]) -> tuple[Span, ...]:
    """Sentences in order; those with nothing but spaces between them as one part."""
    parts: list[Span] = []
    for sentence in sorted(sentences, key=lambda sentence: (sentence.rank, sentence.start)):
        passage, start = passages[sentence.rank], sentence.start
        if parts and parts[-1].passage is passage and not passage.text[parts[-1].end : start].strip():
            start = parts.pop().start
        parts.append(Span(passage, start, sentence.end))
    return tuple(parts)


def _whole(parts: Sequence[Span]) -> tuple[Span, ...]:
    """The parts, each to the end of its sentence where there is room: what was cut at a clause may mislead."""
    whole = list(parts)
    for at, part in enumerate(parts):
        longer = replace(part, end=part.end + rest(part.passage.text, part.end))
        following = [other for other in whole[at + 1 :] if other.passage is part.passage]
        apart = all(longer.end <= other.start for other in following)
        if apart and is_short(*(other.text for other in [*whole[:at], longer, *whole[at + 1 :]])):
            whole[at] = longer
    return tuple(whole)


def _figures(question: str, passages: Sequence[Passage], sentences: Sequence[Sentence]) -> np.ndarray:
    """The FEATURES of sentences but for the nearness, which is 0, float64 [sentences, features]."""
    weights = rarity(question, sentences)
    kind = asked.kind(question)
    logits = [_logit(passage.score) for passage in passages]
    return np.array(
        [
            [
                *shares(weights, sentence),
                *_of_kind(kind, question, sentence.text, weights),
                length(sentence.text),
                min(logits[0] - logits[sentence.rank], _FARTHEST),
                float(sentence.rank > 0),
                1 / (1 + sentence.place),
                0.0,
            ]
            for sentence in sentences
        ]
    )


def _of_kind(kind: asked.Kind | None, question: str, text: str, weights: Mapping[str, float]) -> tuple[float, ...]:
    """kind: it holds what could be an answer of the kind asked for. lacks: it does not. close: the share of the
    question's terms near the best of those."""
    if kind is None:
        return 0.0, 0.0, 0.0
    reach = _NEAR[language(question)]
    near = [
        share(weights, set(terms.terms(text[max(found.start() - reach, 0) : found.end() + reach])))
        for found in asked.answers(kind, question, text)
    ]
    return float(bool(near)), float(not near), max(near, default=0.0)


def _logit(score: float) -> float:
    score = min(max(score, 1e-4), 1 - 1e-4)
    return math.log(score / (1 - score))
