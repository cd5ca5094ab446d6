"""`python -m benchmarks.fit_citations`: the rules of knowledge/cite.py, from all sentences, and how good they are.

Three logistic regressions: whether a sentence is about a passage in its language (whatever was changed in it), whether
it then says the same, and whether a passage in the other language supports it. The figures are of sentences and
passages that the weights did not see: each author's are judged by what was fitted on the other authors'.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from sklearn.linear_model import LogisticRegression

from knowledge import cite
from knowledge.background import Background

from . import citations
from .fitting import embedder, parser

OTHERS = 0.3  #: the weight of a passage that only stands beside the one that a sentence was made from
OURS = ("fit", "held-out", "more")  #: by the author of the rules


class Row(NamedTuple):
    """A sentence beside each of its candidates."""

    case: citations.Case
    matches: list[cite.Match]


def main() -> None:
    options = parser("fit_citations", __doc__).parse_args()
    embeddings = embedder(options)
    kept = citations.Kept(embeddings, options.scratch / "citations.npz")
    found = citations.cases(*citations.FITTED)
    rows = compared([*found, *citations.unrelated(found)], kept, Background.measure(embeddings))
    kept.save()
    for name, rule in fitted(rows)._asdict().items():
        print(name, {feature: round(weight, 2) for feature, weight in rule.weights.items()}, round(rule.bias, 2))
    _print_figures(rows, cross_validated(rows))


def compared(cases: Sequence[citations.Case], embeddings: citations.Kept, background: Background) -> list[Row]:
    return [Row(case, cite.Citer(case.passages, embeddings, background).matches(case.sentence)) for case in cases]


def cross_validated(rows: Sequence[Row]) -> list[tuple[int, ...]]:
    """The passages that each sentence cites by rules that were fitted on other authors' sentences."""
    authors = {row.case.article: _author(row.case) for row in rows if row.case.base}
    written = [authors[row.case.article] for row in rows]
    rules = {
        author: fitted([row for row, other in zip(rows, written, strict=True) if other != author])
        for author in set(written)
    }
    return [cite.judged(row.matches, rules[author]).passages for row, author in zip(rows, written, strict=True)]


def _author(case: citations.Case) -> str:
    return "ours" if case.half in OURS else case.half


def fitted(rows: Sequence[Row], rules: cite.Rules = cite.RULES) -> cite.Rules:
    """Rules with the features and thresholds of `rules`."""
    pairs = [(case, match) for case, matches in rows for match in matches]
    own = [(case, match) for case, match in pairs if match.own]
    other = [(case, match) for case, match in pairs if not match.own]
    made_from = [(case, match) for case, match in own if match.number == case.base and case.kind != "unsupported"]
    return cite.Rules(
        _fitted(rules.topic, own, [match.number == case.base and case.kind != "unsupported" for case, match in own]),
        _fitted(rules.sound, made_from, [case.gold is not None for case, _ in made_from]),
        _fitted(rules.other, other, [match.number == case.gold for case, match in other]),
    )


def _fitted(rule: cite.Rule, pairs: Sequence[tuple[citations.Case, cite.Match]], right: Sequence[bool]) -> cite.Rule:
    features = np.array([match.features(rule.weights) for _, match in pairs])
    scale = features.std(0) + 1e-9
    shares = [1.0 if not match.own or match.number == case.base else OTHERS for case, match in pairs]
    model = LogisticRegression(max_iter=3000).fit(features / scale, right, sample_weight=shares)
    weights = dict(zip(rule.weights, (model.coef_[0] / scale).tolist(), strict=True))
    return replace(rule, weights=weights, bias=float(model.intercept_[0]))


def _print_figures(rows: Sequence[Row], cited: Sequence[Sequence[int]]) -> None:
    cases = [row.case for row in rows]
    for half in dict.fromkeys(("all", *(case.half for case in cases))):
        chosen = [number for number, case in enumerate(cases) if half == case.half or half == "all" and case.base]
        figures = citations.figures(cases, cited, chosen)
        print(half, *(f"{name} {value:.3f}" for name, value in figures), sep=", ")


if __name__ == "__main__":
    main()
