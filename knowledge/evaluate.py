"""How well a knowledge base answers a file of questions: hit@k, recall@k, MRR@10, and when it rightly says nothing."""

import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from knowledge.retrieval import Findings

Find = Callable[[str, int], Findings]

DEPTH = 10  # of the ranks that count
_PASSAGES = 5 * DEPTH  # a document may hold several of them, and counts once


class QuestionsError(ValueError):
    """A questions file that cannot be read. `str()` is one sentence: where, what is wrong, what to do."""


@dataclass(frozen=True)
class Question:
    """`gold`: the documents that answer, by name without suffix, where needed with "#page"; none if none does."""

    text: str
    gold: tuple[str, ...]
    source: str


@dataclass(frozen=True)
class Outcome:
    """`ranks`: where its gold documents came, from 0, those beyond DEPTH left out; `said` that something answers."""

    question: Question
    ranks: tuple[int, ...]
    said: bool


def read_questions(path: str | os.PathLike) -> list[Question]:
    """JSON lines {"question", "gold": [...], "source"}; source may be missing. Raises QuestionsError, OSError."""
    with Path(path).open(encoding="utf-8") as file:
        return [_question(line, f"{path}, line {number}") for number, line in enumerate(file, 1) if line.strip()]


def _question(line: str, place: str) -> Question:
    try:
        fields = json.loads(line)
        return Question(fields["question"], tuple(fields["gold"]), str(fields.get("source", "")))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise QuestionsError(
            f'{place} is not a question; write each as a line {{"question": "...", "gold": ["document name"]}}.'
        ) from error


def evaluate(find: Find, questions: Iterable[Question], names: Iterable[str]) -> dict:
    """The report that `python -m knowledge evaluate --json` prints; every figure but "questions" is a share of 1.

    find: `KnowledgeBase.find`. names: of the documents there are. A question whose gold documents are all missing
    from them has no answer, and only counts in "abstention".
    """
    known = {Path(name).stem for name in names}
    outcomes: dict[bool, list[Outcome]] = {True: [], False: []}
    for question in questions:
        has_answer = any(_document(gold) in known for gold in question.gold)
        outcomes[has_answer].append(_outcome(find, question))
    by_source = defaultdict(list)
    for outcome in outcomes[True]:
        by_source[outcome.question.source].append(outcome)
    return {
        "all": ranking(outcomes[True]),
        "sources": {source: ranking(those) for source, those in sorted(by_source.items())},
        "abstention": abstention(outcomes[True], outcomes[False]),
    }


def _outcome(find: Find, question: Question) -> Outcome:
    findings = find(question.text, _PASSAGES)
    ranked: dict[str, int] = {}
    wanted = set(question.gold)
    for passage in findings.passages:
        stem = Path(passage.name).stem
        names = {stem, f"{stem}#{passage.page}"}
        unit = next(iter(names & wanted), f"{stem}#{passage.page}" if _by_page(question) else stem)
        ranked.setdefault(unit, len(ranked))
    ranks = sorted(ranked[gold] for gold in wanted if ranked.get(gold, DEPTH) < DEPTH)
    return Outcome(question, tuple(ranks), findings.answered)


def _by_page(question: Question) -> bool:
    return any("#" in gold for gold in question.gold)


def _document(gold: str) -> str:
    return gold.rsplit("#", 1)[0]


def ranking(outcomes: Sequence[Outcome]) -> dict:
    """hit@1, hit@5, recall@5, mrr@10 and the number of questions."""
    return {
        "hit@1": _mean(outcome.ranks[:1] == (0,) for outcome in outcomes),
        "hit@5": _mean(bool(outcome.ranks) and outcome.ranks[0] < 5 for outcome in outcomes),
        "recall@5": _mean(sum(rank < 5 for rank in outcome.ranks) / len(outcome.question.gold) for outcome in outcomes),
        "mrr@10": _mean(1 / (outcome.ranks[0] + 1) if outcome.ranks else 0 for outcome in outcomes),
        "questions": len(outcomes),
    }


def abstention(answerable: Sequence[Outcome], unanswerable: Sequence[Outcome]) -> dict:
    """precision: of what was left unanswered, what had no answer; recall: of what had none, what was left; and
    lost: of what had an answer, what was left unanswered."""
    rightly = sum(not outcome.said for outcome in unanswerable)
    wrongly = sum(not outcome.said for outcome in answerable)
    return {
        "precision": rightly / max(1, rightly + wrongly),
        "recall": rightly / max(1, len(unanswerable)),
        "lost": wrongly / max(1, len(answerable)),
        "questions": len(unanswerable),
    }


def table(report: dict) -> Iterator[str]:
    """The report as the lines of a table."""
    figures = ("hit@1", "hit@5", "recall@5", "mrr@10")
    yield f"{'':24}{''.join(f'{figure:>10}' for figure in figures)}{'questions':>11}"
    for name, row in {"all": report["all"], **report["sources"]}.items():
        yield f"{name:24}{''.join(f'{row[figure]:10.3f}' for figure in figures)}{row['questions']:11}"
    left = report["abstention"]
    yield (
        f"{left['questions']} questions without an answer: {left['recall']:.3f} of them left unanswered, "
        f"and {left['lost']:.3f} of the others; {left['precision']:.3f} of what was left unanswered had no answer"
    )


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / max(1, len(values))
