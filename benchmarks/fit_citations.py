"""`python -m benchmarks.fit_citations`: the weights of knowledge/cite.py, from the sentences that are not held out.

Three logistic regressions: whether a sentence is about a passage in its language (whatever was changed in it), whether
it then says the same, and whether a passage in the other language supports it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.linear_model import LogisticRegression

from knowledge import cite
from knowledge.background import Background

from . import citations
from .fitting import embedder, parser

OTHERS = 0.3  #: the weight of a passage that only stands beside the one that a sentence was made from


def main() -> None:
    options = parser("fit_citations", __doc__).parse_args()
    embeddings = embedder(options)
    kept = citations.Kept(embeddings, options.scratch / "citations.npz")
    background = Background.measure(embeddings)
    found = [
        (case, match)
        for case in citations.cases()
        if case.half == "fit"
        for match in cite.Citer(case.passages, kept, background).matches(case.sentence)
    ]
    kept.save()
    topic = [(case, match) for case, match in found if match.own]
    sound = [(case, match) for case, match in topic if match.number == case.base and case.kind != "unsupported"]
    other = [(case, match) for case, match in found if not match.own]
    _fit("TOPIC", topic, [match.number == case.base and case.kind != "unsupported" for case, match in topic])
    _fit("SOUND", sound, [case.gold is not None for case, _ in sound])
    _fit("OTHER", other, [match.number == case.gold for case, match in other])


def _fit(name: str, found: Sequence[tuple[citations.Case, cite.Match]], right: Sequence[bool]) -> None:
    features = np.array([match.features(getattr(cite, name)) for _, match in found])
    scale = features.std(0) + 1e-9
    weights = [1.0 if not match.own or match.number == case.base else OTHERS for case, match in found]
    model = LogisticRegression(max_iter=3000).fit(features / scale, right, sample_weight=weights)
    print(f"{name}_WEIGHTS = {tuple(np.round(model.coef_[0] / scale, 2).tolist())}")
    print(f"{name}_BIAS = {float(model.intercept_[0]):.2f}")


if __name__ == "__main__":
    main()
