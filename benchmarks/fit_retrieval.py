"""`python -m benchmarks.fit_retrieval QUESTIONS_FOLDER`: the weights of knowledge/ranking.py and relevance.py.

Ranking: a conditional logit, by which the passages with the answer are to be chosen among all candidates. Relevance: a
logistic regression between questions whose passage is there and the same ones without it, or without its document. The
figures printed are of questions that the weights were not fitted on: each source is left out in turn, and for the
relevance each tenth of the articles too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, LeaveOneGroupOut
from sklearn.preprocessing import StandardScaler

from knowledge import KnowledgeBase, Where, ranking, relevance
from knowledge.retrieval import Ranked
from knowledge.terms import is_chinese

from . import question_sets
from .fitting import question_bases

LOST = 0.03  #: of a language's questions with an answer, those that may be said to have none
FOLDS = 10
FREE_FORM = "dureader"  #: its passages answer one another's questions, so nothing is known to have no answer


class Case(NamedTuple):
    """A question as its base sees it. absent: what was taken out of the base: "" for nothing, "passage", "document".

    article: what its passage is a part of; the parallel articles of two languages are one.
    """

    source: str
    article: str
    absent: str
    ranked: Ranked
    gold: frozenset[str]
    question: str


def main() -> None:
    folder, _, bases = question_bases("fit_retrieval", __doc__)
    cases = [case for language in ("zh", "en") for case in same_language(bases[language], folder, language)]
    fit_ranking(cases)
    fit_score(cases)
    fit_relevance(cases)
    fit_other_language(cases, list(other_language(bases["both"], folder)))


def same_language(base: KnowledgeBase, folder: Path, language: str) -> Iterator[Case]:
    """Every question, and those with an answer once more without it."""
    questions = question_sets.read(folder, language)
    titles = {passage["id"]: passage["title"] for passage in questions.passages}
    for question in questions.questions:
        title = titles[question["gold"][0]]
        yield _case(base, question, "", Where(), title)
        if question["source"] != FREE_FORM:
            gold = set(question["gold"])
            named = {titles[id] for id in gold} - {""}
            document = gold | {id for id, title in titles.items() if title in named}
            for absent, gone in (("passage", gold), ("document", document)):
                yield _case(base, question, absent, without(titles, gone), title)


def other_language(base: KnowledgeBase, folder: Path) -> Iterator[Case]:
    """Questions whose answer is in the other language, and not in their own."""
    titles = {p["id"]: "" for name in ("zh", "en") for p in question_sets.read(folder, name).passages}
    for question in question_sets.cross_lingual(folder):
        yield _case(base, question | {"source": question["direction"]}, "", without(titles, question["twin"]))
    for name in ("zh", "en"):
        for question in question_sets.read(folder, name).questions:
            if "xquad" not in question["source"]:  # the other language has nothing on these
                yield _case(base, question, "", Where())


def without(ids: dict[str, str], gone) -> Where:
    return Where(names=[f"{id}.md" for id in ids if id not in gone])


def _case(base: KnowledgeBase, question: dict[str, Any], absent: str, where: Where, title: str = "") -> Case:
    ranked = base.rank(question["question"], where)
    gold = question["gold"]
    return Case(question["source"], title or gold[0], absent, ranked, frozenset(gold), question["question"])


def fit_ranking(cases: Sequence[Case]) -> None:
    groups = [(case.source, *_choices(case)) for case in cases if not case.absent]
    right = []
    for left_out in sorted({source for source, *_ in groups}):
        weights = conditional_logit([group[1:] for group in groups if group[0] != left_out])
        firsts = [gold[np.argmax(figures @ weights)] for source, figures, gold in groups if source == left_out]
        right += firsts
        print(f"ranking, {left_out} left out: hit@1 {np.mean(firsts):.3f}")
    print(f"ranking: {conditional_logit([group[1:] for group in groups]).round(2)}, hit@1 {np.mean(right):.3f}\n")


def _choices(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Figures of the candidates in the question's language, [n, 3], and which of them are gold, bool [n]."""
    own = [candidate for candidate in case.ranked.candidates if candidate.own]
    figures = [(candidate.keywords, candidate.window, candidate.likely_nearness) for candidate in own]
    return np.array(figures), np.array([_is_gold(candidate, case.gold) for candidate in own])


def _is_gold(candidate: ranking.Candidate, gold: frozenset[str]) -> bool:
    return Path(candidate.chunk.name).stem in gold


def conditional_logit(groups: Sequence[tuple[np.ndarray, np.ndarray]], penalty: float = 1e-3) -> np.ndarray:
    """Weights that make one of the gold rows likely to be chosen among each group's."""
    groups = [(figures, gold) for figures, gold in groups if gold.any() and not gold.all()]

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        total, slope = penalty * weights @ weights, 2 * penalty * weights
        for figures, gold in groups:
            chances = np.exp(figures @ weights - (figures @ weights).max())
            chances /= chances.sum()
            chosen = np.where(gold, chances, 0) / chances[gold].sum()
            total -= np.log(chances[gold].sum()) / len(groups)
            slope -= (chosen - chances) @ figures / len(groups)
        return total, slope

    return minimize(loss, np.ones(groups[0][0].shape[1]), jac=True, method="L-BFGS-B").x


def fit_score(cases: Sequence[Case]) -> None:
    """The middle and slope by which a score becomes a probability: of first passages, are they gold?"""
    firsts = [(case.ranked.candidates[0], case.gold) for case in cases if case.source != FREE_FORM]
    scores = np.array([[first.score] for first, _ in firsts])
    model = LogisticRegression(C=1e6).fit(scores, [_is_gold(first, gold) for first, gold in firsts])
    slope = model.coef_[0, 0]
    print(f"probability: middle {-model.intercept_[0] / slope:.2f}, slope {slope:.3f}\n")


def fit_relevance(cases: Sequence[Case]) -> None:
    judged = [case for case in cases if case.source != FREE_FORM]
    figures = [_features(case) for case in judged]
    answer = np.array([not case.absent for case in judged])
    language = np.array(["zh" if is_chinese(case.question) else "other" for case in judged])
    used = {asked: _rows(figures, asked, language) for asked in relevance.FEATURES}
    for measured, groups, folds in (
        ("each source left out in turn", np.array([case.source for case in judged]), None),
        (f"{FOLDS} folds by article", np.array([case.article for case in judged]), FOLDS),
    ):
        print(f"relevance, {measured}:")
        logits = np.zeros(len(judged))
        for asked, (places, rows) in used.items():
            found = held_out(rows, answer[places], groups[places], folds)
            own = language[places] == asked
            logits[places[own]] = found[own]
        _tell_relevance(judged, logits)
    for asked, (places, rows) in used.items():
        weights = _logistic(rows, answer[places]).round(3)
        bias = _bias(rows[answer[places] & (language[places] == asked)] @ weights, LOST)
        print(f"{asked}: WEIGHTS {tuple(weights.tolist())}, BIAS {bias}")
    print()


def _rows(figures: Sequence[Sequence[float]], asked: str, language: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The cases with all figures that a language is judged by, int64 [n], and those, float64 [n, features].

    What all languages have is weighed by the cases of all: they are twice as many.
    """
    count = {name: len(names) for name, names in relevance.FEATURES.items()}
    places = np.flatnonzero([count[own] >= count[asked] for own in language])
    return places, np.array([figures[place][: count[asked]] for place in places])


def held_out(rows: np.ndarray, answer: np.ndarray, groups: np.ndarray, folds: int | None) -> np.ndarray:
    """Logits, float64 [n], by weights and a bias found without the row's fold; each group is a fold if it is None."""
    splitter = LeaveOneGroupOut() if folds is None else GroupKFold(folds)
    logits = np.zeros(len(rows))
    for fitted, left_out in splitter.split(rows, answer, groups):
        weights = _logistic(rows[fitted], answer[fitted])
        logits[left_out] = rows[left_out] @ weights + _bias(rows[fitted][answer[fitted]] @ weights, LOST)
    return logits


def _features(case: Case) -> list[float]:
    own = [candidate for candidate in case.ranked.candidates if candidate.own]
    return relevance.features(case.question, case.ranked.weights, own, case.ranked.nearnesses)


def _logistic(rows: np.ndarray, answer: np.ndarray) -> np.ndarray:
    scaler = StandardScaler().fit(rows)
    model = LogisticRegression(max_iter=2000).fit(
        scaler.transform(rows), answer, sample_weight=np.where(answer, (~answer).sum() / answer.sum(), 1)
    )
    return model.coef_[0] / scaler.scale_


def _bias(logits: np.ndarray, below: float) -> float:
    """The least bias, in thousandths, by which no more than the share `below` of `logits` falls below 0."""
    return math.ceil(-1000 * np.quantile(logits, below, method="lower")) / 1000


def _tell_relevance(cases: Sequence[Case], logits: np.ndarray) -> None:
    """What is rightly left unanswered where LOST of a language's answerable questions are lost, by source too."""
    for language, sources in _by_language(cases).items():
        of = _chooser(cases, sources)
        threshold = -_bias(logits[of("")], LOST)
        told = ", ".join(f"{absent} absent {np.mean(logits[of(absent)] < threshold):.3f}" for absent in ABSENT)
        print(f"  {language}: {told}, lost {np.mean(logits[of('')] < threshold):.3f}")
        for source in sources:
            of = _chooser(cases, [source])
            told = ", ".join(f"{absent} absent {np.mean(logits[of(absent)] < threshold):.3f}" for absent in ABSENT)
            print(f"    {source}: {told}, lost {np.mean(logits[of('')] < threshold):.3f}")


ABSENT = ("document", "passage")


def _by_language(cases: Sequence[Case]) -> dict[str, list[str]]:
    chinese = {case.source for case in cases if is_chinese(case.question)}
    sources = sorted({case.source for case in cases})
    return {"zh": [s for s in sources if s in chinese], "en": [s for s in sources if s not in chinese]}


def _chooser(cases: Sequence[Case], sources: Sequence[str]) -> Callable[[str], np.ndarray]:
    return lambda absent: np.array([case.source in sources and case.absent == absent for case in cases])


def fit_other_language(cases: Sequence[Case], mixed: Sequence[Case]) -> None:
    """From the best passage in the other language: does it answer? No more than LOST of wrong ones may seem to."""
    rows, right = [], []
    for case in mixed:
        others = [candidate for candidate in case.ranked.candidates if not candidate.own]
        if others:
            rows.append(relevance.other_features(others))
            right.append(_is_gold(others[0], case.gold))
    figures, right = np.array(rows), np.array(right)
    weights = _logistic(figures, right)
    bias = -float(np.quantile(figures[~right] @ weights, 1 - LOST))
    found = np.mean(figures[right] @ weights + bias > 0)
    print(f"OTHER_WEIGHTS = {tuple(weights.round(3).tolist())}\nOTHER_BIAS = {bias:.3f}")
    print(f"other language: {found:.3f} of right ones found at {LOST} of wrong ones")


if __name__ == "__main__":
    main()
