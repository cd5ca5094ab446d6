"""Evaluation: figures that can be worked out by hand, from a search that is made up."""

import json

import pytest

from knowledge.evaluate import Question, QuestionsError, evaluate, read_questions, table
from knowledge.retrieval import Findings, Passage

NAMES = [f"{letter}.txt" for letter in "abcdefgh"]


def find(ranked: dict[str, str], said: set[str]):
    def answer(question: str, k: int) -> Findings:
        passages = tuple(
            Passage(f"{name[0]}.txt", int(name[1:] or 1), 0.5, "", "") for name in ranked[question].split()
        )
        return Findings(passages[:k], 0.9 if question in said else 0.1)

    return answer


def test_figures():
    ranked = {
        "first": "a b c",
        "third": "b b c a",
        "sixth": "b c d e f a",
        "two": "a c d e f b",
        "none": "a b",
        "nothing": "a",
    }
    questions = [Question(text, ("a",), "one") for text in ("first", "third", "sixth")]
    questions += [Question("two", ("a", "b"), "other"), Question("none", ("z",), "one"), Question("nothing", (), "one")]
    report = evaluate(find(ranked, {"first", "third", "two", "nothing"}), questions, NAMES)
    assert report["sources"]["one"] == {
        "hit@1": pytest.approx(1 / 3),
        "hit@5": pytest.approx(2 / 3),
        "recall@5": pytest.approx(2 / 3),
        "mrr@10": pytest.approx((1 + 1 / 3 + 1 / 6) / 3),
        "questions": 3,
    }
    assert report["sources"]["other"]["recall@5"] == 0.5 and report["all"]["hit@1"] == 0.5
    # "sixth" has an answer and was left unanswered, "none" has none and was left unanswered, "nothing" was answered
    assert report["abstention"] == {"precision": 0.5, "recall": 0.5, "lost": 0.25, "questions": 2}
    lines = list(table(report))
    assert len(lines) == 5 and lines[1].startswith("all") and "2 questions without an answer" in lines[-1]


def test_gold_pages():
    questions = [Question("q", ("a#2",), ""), Question("p", ("a",), "")]
    report = evaluate(find({"q": "a1 a1 a2 b1", "p": "b1 a3"}, set()), questions, NAMES)
    assert report["all"]["mrr@10"] == (1 / 2 + 1 / 2) / 2


def test_nothing_to_evaluate():
    report = evaluate(find({}, set()), [], NAMES)
    assert report["all"] == {"hit@1": 0, "hit@5": 0, "recall@5": 0, "mrr@10": 0, "questions": 0}


def test_questions_are_json_lines(tmp_path):
    file = tmp_path / "questions.jsonl"
    rows = [{"question": "问", "gold": ["a", "b#2"], "source": "s", "id": 1}, {"question": "x", "gold": []}]
    file.write_text("\n\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    assert read_questions(file) == [Question("问", ("a", "b#2"), "s"), Question("x", (), "")]
    for bad in ("[1]", "{", '{"question": "x"}', '{"question": "x", "gold": 1}', "3"):
        file.write_text(f"{json.dumps(rows[0])}\n{bad}\n", encoding="utf-8")
        with pytest.raises(QuestionsError, match="line 2 is not a question"):
            read_questions(file)
