"""Whether the documents answer a question at all, from how its candidates look: a logistic regression.

`python -m benchmarks.fit_retrieval` finds the weights; docs/retrieval.md says from which questions, and what it gives.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from knowledge import asked, terms
from knowledge.ranking import Candidate, share
from knowledge.statements import different, rarity, shares

_OF_PASSAGES = ("keywords", "window", "nearness", "lead", "content", "missing", "particulars", "ahead")
# In Chinese these told nothing that the others had not.
_OF_SENTENCES = ("words", "around", "lacks")
FEATURES: Mapping[str, tuple[str, ...]] = {"zh": _OF_PASSAGES, "other": (*_OF_PASSAGES, *_OF_SENTENCES)}  #: by language
WEIGHTS: Mapping[str, tuple[float, ...]] = {
    "zh": (-3.812, 2.223, 1.154, 0.438, 6.067, 0.159, 1.776, 5.958),
    "other": (1.449, -0.493, 1.135, 0.462, 0.561, 0.131, 1.879, 6.135, 2.886, 2.449, -1.284),
}
BIASES = {"zh": -7.847, "other": -7.094}
# Of the best passage in the other language: its nearness, and how far it is ahead of the next document.
OTHER_WEIGHTS = (11.244, 1.519)
OTHER_BIAS = -12.144
# Biases are such that this loses 3 % of a language's questions that have an answer.
ANSWERED = 0.5
# Of the questions with an answer whose quote was right none was taken to be less likely.
NEAR = 0.05

_READ = 3  # passages whose sentences count
_COMPARED = 11  # the nearest passage, and the ten that it is to be ahead of

# What stands in where a base is too small to compare with: an undecided value.
_LEAD, _NEXT_NEARNESS = 4.0, 0.6
_ALL_PARTICULARS = 0.8  # of a question that has none


def relevance(
    question: str, weights: Mapping[str, float], candidates: Sequence[Candidate], nearnesses: np.ndarray
) -> float:
    """How likely it is that the documents answer, 0 to 1; below ANSWERED they had better be taken not to.

    weights: of the question's terms. candidates: best first. nearnesses: of all passages in the question's language.
    """
    own = [candidate for candidate in candidates if candidate.own]
    others = [candidate for candidate in candidates if not candidate.own]
    language = "zh" if terms.is_chinese(question) else "other"
    logits = []
    if own:
        logits.append(float(np.dot(WEIGHTS[language], features(question, weights, own, nearnesses))) + BIASES[language])
    logits += [float(np.dot(OTHER_WEIGHTS, other_features(others))) + OTHER_BIAS] if others else []
    return max((logistic(logit) for logit in logits), default=0.0)


def features(
    question: str, weights: Mapping[str, float], candidates: Sequence[Candidate], nearnesses: np.ndarray
) -> list[float]:
    """The FEATURES for the question's language of `candidates` in it, best first; there is at least one."""
    figures = _of_passages(question, weights, candidates, nearnesses)
    return figures if terms.is_chinese(question) else [*figures, *_of_sentences(question, candidates)]


def _of_passages(
    question: str, weights: Mapping[str, float], candidates: Sequence[Candidate], nearnesses: np.ndarray
) -> list[float]:
    best = candidates[0]
    held = set(terms.terms(best.chunk.passage))
    content = {term: weights[term] for term in terms.content(question) if term in weights}
    missing = [weight for term, weight in content.items() if term not in held]
    particulars = [held.issuperset(part) for part in terms.particulars(question)]
    if len(nearnesses) > _COMPARED:
        nearnesses = np.partition(nearnesses, -_COMPARED)[-_COMPARED:]
    nearest = np.sort(nearnesses)[::-1]
    next_ones = nearest[1:] if len(nearest) > 1 else np.array([_NEXT_NEARNESS])
    ahead = (nearest[0] if len(nearest) else best.likely_nearness) - next_ones.mean()
    return [
        best.keywords,
        best.window,
        best.likely_nearness,
        lead(candidates),
        share(content, held),
        max(missing, default=0.0),
        sum(particulars) / len(particulars) if particulars else _ALL_PARTICULARS,
        float(ahead),
    ]


def _of_sentences(question: str, candidates: Sequence[Candidate]) -> list[float]:
    """words, around: what the best sentence of the first passages holds of the question, alone and with those around
    it. lacks: it does not hold what could be an answer of the kind asked for.

    Words weigh by how few of these sentences have them: what is in none of them is what the question is about.
    """
    sentences = different([candidate.chunk.passage for candidate in candidates[:_READ]])
    if not sentences:
        return [0.0, 0.0, 1.0]
    weights = rarity(question, sentences)
    held, best = max(((shares(weights, sentence), sentence) for sentence in sentences), key=lambda pair: sum(pair[0]))
    kind = asked.kind(question)
    return [*held, float(kind is not None and not asked.answers(kind, question, best.text))]


def other_features(candidates: Sequence[Candidate]) -> list[float]:
    """The figures of OTHER_WEIGHTS for candidates in the other language, best first; there is at least one."""
    return [candidates[0].likely_nearness, lead(candidates)]


def lead(candidates: Sequence[Candidate]) -> float:
    """How much higher the first one scores than the next of another document: the same one goes on about the matter."""
    first = candidates[0]
    rest = (candidate.score for candidate in candidates if candidate.chunk.document != first.chunk.document)
    return first.score - next(rest, first.score - _LEAD)


def logistic(value: float) -> float:
    return 1 / (1 + math.exp(-max(-30.0, min(30.0, value))))
