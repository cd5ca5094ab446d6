"""The sentences of found passages that answer a question best, word for word, without a language model.

Runs of one or two sentences are judged by a weighted sum of FEATURES. `python -m benchmarks.fit_quote` finds the
weights; docs/evidence.md says from which questions, and what they give.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from langchain_core.embeddings import Embeddings

from knowledge import asked, terms
from knowledge.ranking import share
from knowledge.retrieval import Passage, language
from knowledge.vectors import unit_rows

CHARACTERS, WORDS = 120, 60  #: of a quote at most, in Chinese and in other languages
#: Of how many runs the sentences are embedded, the best ones by everything else: some nine, in one batch.
EMBEDDED = 6

FEATURES = ("words", "sentence", "around", "kind", "lacks", "close", "length", "behind", "later", "place", "nearness")
WEIGHTS: Mapping[str, tuple[float, ...]] = {
    "zh": (4.2, 1.4, 4.1, 0.1, -0.3, 1.6, -1.6, -0.4, -1.2, 0.2, 24.0),
    "other": (4.1, 0.9, 0.4, 0.1, -0.3, 0.6, -0.3, -0.1, -0.6, -0.3, 23.0),
}

# A full stop ends a sentence where a new one seems to begin: not in "et al. found", "J. Smith" or "Dr. Smith". Pages
# have line ends within sentences; those before what looks like an item of a list count.
_ENDS = re.compile(
    r"[。！？；]+[”’」』）》\"]*|[!?]+[\"'”’)\]]*(?=\s|$)"
    r"|(?<!\b[A-Z])(?<!\b(?:Mr|Dr|St|vs|No|Jr|Sr))(?<!\bMrs)\.[\"'”’)\]]*(?:\[\d+\])*(?=\s+[\"'“‘(\[]?[^\W_a-z]|\s*$)"
    r"|\n{2,}|\n(?=\s*(?:[-*•·|#]|\d+[.)、]|[（(]?[一二三四五六七八九十]+[、)）]))"
)
_CLAUSES = re.compile(r"[，、：；]|[,;:]\s")
_CLAUSE_ENDS = re.compile(r"[，、：,;:]\s*|\s+")
_WORD = re.compile(r"[^\W_\u3400-\u9fff]+(?:['’.,-][^\W_\u3400-\u9fff]+)*|[\u3400-\u9fff]")
_NEAR = {"zh": 24, "other": 80}  # characters around what could be the answer
_HEADING = 0.7  # of the next line: a first line as long as this is no heading
_FARTHEST = 8.0  # by which a passage can be behind, as a logit


@dataclass(frozen=True)
class Quote:
    """A part of a passage: `passage.text[start:end]`."""

    passage: Passage
    start: int
    end: int

    @property
    def text(self) -> str:
        return self.passage.text[self.start : self.end]


@dataclass(frozen=True)
class Run:
    """One sentence, or two that follow each other, of the passage at `rank`: characters `start` to `end` of its text.

    parts: the sentences that are whole in it. around: the text of those beside it, and of the heading.
    """

    rank: int
    start: int
    end: int
    text: str
    parts: tuple[str, ...]
    around: str
    place: int


def quote(question: str, passages: Sequence[Passage], embeddings: Embeddings) -> Quote | None:
    """The one or two sentences of `passages` (best first) that answer `question` best; None if there are none.

    No longer than CHARACTERS or WORDS. Embeds the question and the sentences of EMBEDDED runs.
    """
    runs, figures = judged(question, passages, embeddings)
    if not runs:
        return None
    best = runs[int(np.argmax(figures @ WEIGHTS[language(question)]))]
    return Quote(passages[best.rank], best.start, best.end)


def judged(question: str, passages: Sequence[Passage], embeddings: Embeddings) -> tuple[list[Run], np.ndarray]:
    """The runs that were embedded, and their FEATURES, float64 [runs, features].

    While the embedding model is being loaded, words have to do: the nearness of all is 0.
    """
    runs = [run for rank, passage in enumerate(passages) for run in runs_of(rank, passage.text)]
    if not runs:
        return [], np.empty((0, len(FEATURES)))
    figures = _figures(question, passages, runs)
    weights = np.array(WEIGHTS[language(question)])
    best = np.argsort(-(figures @ weights), kind="stable")[:EMBEDDED]
    chosen, figures = [runs[place] for place in best], figures[best]
    if getattr(embeddings, "loading", False):
        return chosen, figures
    sentences = list(dict.fromkeys(part for run in chosen for part in run.parts))
    near = unit_rows(embeddings.embed_documents(sentences)) @ unit_rows(embeddings.embed_query(question))[0]
    nearness = dict(zip(sentences, near.tolist(), strict=True))
    figures[:, FEATURES.index("nearness")] = [max(nearness[part] for part in run.parts) for run in chosen]
    return chosen, figures


def runs_of(rank: int, text: str) -> Iterator[Run]:
    """The pairs of neighbouring sentences of a passage, and sentences that are in none. Headings are no sentences.

    Two say more than one, and one of them may say "he" for what the other one names. Of a pair that is too long each
    sentence comes with as many clauses of the other as are short enough.
    """
    heading, spans = _sentences(text)
    if len(spans) == 1:
        yield Run(rank, *spans[0], text[slice(*spans[0])], (text[slice(*spans[0])],), heading, 0)
    for at, (first, second) in enumerate(pairwise(spans)):
        beside = [*spans[max(at - 1, 0) : at], *spans[at + 2 : at + 3]]
        around = " ".join([heading, *(text[slice(*part)] for part in beside)])
        for start, end in _runs(text, first, second):
            whole = tuple(text[slice(*part)] for part in (first, second) if start <= part[0] and part[1] <= end)
            yield Run(rank, start, end, text[start:end], whole, around, at)


def _runs(text: str, first: tuple[int, int], second: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Two neighbouring sentences as one run, or each of them with what of the other is short enough."""
    (start, middle), (begin, end) = first, second
    if _short(text[start:end]):
        yield start, end
        return
    cuts = [found.end() for found in _CLAUSES.finditer(text, start, end)]
    yield start, max((_rstripped(text, cut) for cut in cuts if cut > begin and _short(text[start:cut])), default=middle)
    yield min((cut for cut in cuts if cut < middle and _short(text[cut:end])), default=begin), end


def _rstripped(text: str, end: int) -> int:
    return len(text[:end].rstrip())


def _sentences(text: str) -> tuple[str, list[tuple[int, int]]]:
    """The heading above a passage, and the spans of its sentences; long ones are cut between clauses."""
    heading = _heading(text)
    cuts = [found.end() for found in _ENDS.finditer(text) if found.end() > len(heading)]
    spans = _trimmed(text, [len(heading), *cuts, len(text)])
    return heading, [piece for span in spans for piece in _pieces(text, span)]


def _heading(text: str) -> str:
    """The first line, if it ends no sentence and is clearly shorter than the next: lines that a page's width has broken
    are about as long as one another."""
    first, _, rest = text.partition("\n")
    following = rest.lstrip("\n").partition("\n")[0]
    return first if len(first) < _HEADING * len(following) and not _ENDS.search(first.rstrip()) else ""


def _trimmed(text: str, cuts: Sequence[int]) -> list[tuple[int, int]]:
    """The spans between cuts, without the spaces around them; what has no word is none."""
    spans = []
    for start, end in zip(cuts, cuts[1:], strict=False):
        said = text[start:end]
        if _WORD.search(said):
            spans.append((start + len(said) - len(said.lstrip()), end - len(said) + len(said.rstrip())))
    return spans


def _pieces(text: str, span: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """A sentence as it is, or, where it is too long, as many of its clauses at a time as are short enough."""
    start, stop = span
    while not _short(text[start:stop]):
        ends = [start + found.end() for found in _CLAUSE_ENDS.finditer(text[start:stop])]
        fitting = [end for end in ends if _short(text[start:end])]
        cut = max(fitting, default=start + CHARACTERS)
        yield from _trimmed(text, [start, cut])
        start = cut
    yield from _trimmed(text, [start, stop])


def _short(text: str) -> bool:
    return len(text) <= CHARACTERS if terms.is_chinese(text) else len(text.split()) <= WORDS


def _figures(question: str, passages: Sequence[Passage], runs: Sequence[Run]) -> np.ndarray:
    """The FEATURES of runs but for the nearness, which is 0, float64 [runs, features]."""
    weights = _rarity(question, runs)
    kind = asked.kind(question)
    logits = [_logit(passage.score) for passage in passages]
    return np.array(
        [
            [
                share(weights, set(terms.terms(run.text))),
                max(share(weights, set(terms.terms(part))) for part in run.parts),
                share(weights, set(terms.terms(run.text)) | set(terms.terms(run.around))),
                *_of_kind(kind, question, run.text, weights),
                _length(run.text),
                min(logits[0] - logits[run.rank], _FARTHEST),
                float(run.rank > 0),
                1 / (1 + run.place),
                0.0,
            ]
            for run in runs
        ]
    )


def _rarity(question: str, runs: Sequence[Run]) -> dict[str, float]:
    """The weight of each term of the question: high if few of the sentences have it."""
    sentences = {(run.rank, part) for run in runs for part in run.parts}
    counts = Counter(term for _, part in sentences for term in set(terms.terms(part)))
    return {term: math.log1p(len(sentences) / (0.5 + counts[term])) for term in terms.content(question)}


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


def _length(text: str) -> float:
    """As a share of what a quote may have."""
    return len(text) / CHARACTERS if terms.is_chinese(text) else len(text.split()) / WORDS


def _logit(score: float) -> float:
    score = min(max(score, 1e-4), 1 - 1e-4)
    return math.log(score / (1 - score))
