"""`python -m benchmarks.fit_quote QUESTIONS_FOLDER`: the weights of knowledge/quote.py.

A conditional logit for each language, by which sentences with a gold answer are to be chosen among all that are
embedded. The shares printed are of questions whose quote holds the answer, on articles that the weights were not fitted
on: five groups of articles.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from chatapp.preferences import PASSAGES
from knowledge import KnowledgeBase, Passage, quote
from knowledge.embedder import LocalEmbeddings

from . import question_sets
from .fit_retrieval import conditional_logit
from .fitting import question_bases
from .quotes import has_short_answer, holds, quotes

GROUPS = 5
PENALTY = 1e-2  #: on the weights of figures that were brought to a standard deviation of one


class Case(NamedTuple):
    """A question: the group of its article, what was found, the sentences judged, their FEATURES [sentences, features],
    and the gold answers."""

    group: int
    passages: Sequence[Passage]
    sentences: Sequence[quote.Sentence]
    figures: np.ndarray
    answers: Sequence[str]

    @property
    def gold(self) -> np.ndarray:
        """Which sentences hold an answer, bool [sentences]."""
        return np.array([holds(sentence.text, self.answers) for sentence in self.sentences], bool)


def main() -> None:
    folder, embeddings, bases = question_bases("fit_quote", __doc__)
    for name, language in (("zh", "zh"), ("en", "other")):
        cases = list(collected(bases[name], question_sets.read(folder, name), embeddings))
        print(f"{name}: {np.mean(held_out(cases)):.3f} of {len(cases)}, each group of articles left out in turn")
        print(f'    "{language}": {tuple(fitted(cases).round(2).tolist())},')


def collected(base: KnowledgeBase, questions: question_sets.QuestionSet, embeddings: LocalEmbeddings) -> Iterator[Case]:
    titles = {passage["id"]: passage["title"] or passage["id"] for passage in questions.passages}
    for question in filter(has_short_answer, questions.questions):
        passages = base.search(question["question"], PASSAGES)
        sentences, figures = quote.judged(question["question"], passages, embeddings)
        article = titles[question["gold"][0]]
        yield Case(zlib.crc32(article.encode()) % GROUPS, passages, sentences, figures, question["answers"])


def fitted(cases: Sequence[Case]) -> np.ndarray:
    """A weight for each of the FEATURES."""
    scale = np.concatenate([case.figures for case in cases]).std(0)
    scale[scale == 0] = 1
    return conditional_logit([(case.figures / scale, case.gold) for case in cases], PENALTY) / scale


def held_out(cases: Sequence[Case]) -> list[bool]:
    """Whether the quote is right, by weights from the other groups."""
    right = []
    for group in range(GROUPS):
        weights = fitted([case for case in cases if case.group != group])
        right += [is_right(case, weights) for case in cases if case.group == group]
    return right


def is_right(case: Case, weights: np.ndarray) -> bool:
    if not case.sentences:
        return False
    return quotes(quote.likeliest(case.passages, case.sentences, case.figures @ weights), case.answers)


if __name__ == "__main__":
    main()
