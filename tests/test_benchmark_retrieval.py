"""The retrieval benchmark and the fit of its weights, on a question set of a few lines."""

import json
from pathlib import Path

import numpy as np
import pytest

import knowledge
from benchmarks import fit_retrieval, followup, question_sets, retrieval
from knowledge.retrieval import Where
from tests.fakes import HashEmbeddings, ready_engine, scripted

PASSAGES = {
    "zh": {"鸟-zh-1": "翠鸟每次产七枚蛋。它捕食小鱼。", "屋-zh-1": "押金为两个月租金。期满后退还。"},
    "en": {"bird-en-1": "The kingfisher lays seven eggs.", "lease-en-1": "The deposit is two months of rent."},
}
QUESTIONS = {
    "zh": [("翠鸟每次产几枚蛋？", "鸟-zh-1"), ("押金是多少？", "屋-zh-1")],
    "en": [("How many eggs does a kingfisher lay?", "bird-en-1"), ("How high is the deposit?", "lease-en-1")],
}


@pytest.fixture
def sets(tmp_path):
    for language, passages in PASSAGES.items():
        rows = [{"id": id, "title": id[:2], "text": text, "source": "made"} for id, text in passages.items()]
        write(tmp_path / f"{language}_passages.jsonl", rows)
        rows = [{"question": text, "gold": [gold], "source": "made"} for text, gold in QUESTIONS[language]]
        write(tmp_path / f"{language}_questions.jsonl", rows)
    row = {"question": "Who pays rent?", "gold": ["xquad-zh-03-1"], "direction": "en->zh"}
    write(tmp_path / "crosslingual_questions.jsonl", [row])
    return tmp_path


def write(path, rows):
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


class CountingEmbeddings(HashEmbeddings):
    count_tokens = staticmethod(len)


@pytest.fixture
def bases(sets):
    embeddings = CountingEmbeddings()
    made = question_sets.bases(sets, sets / "scratch", embeddings)
    # each passage once, and what the background measures
    assert len(embeddings.embedded) == len(set(embeddings.embedded))
    return made


def test_question_sets_become_bases(sets, bases):
    assert {name: len(base.documents()) for name, base in bases.items()} == {"zh": 2, "en": 2, "both": 4}
    assert bases["en"].search("eggs")[0].text == "bi\nThe kingfisher lays seven eggs."
    (question,) = question_sets.cross_lingual(sets)
    assert question["twin"] == ["xquad-en-03-1"]
    again = question_sets.bases(sets, sets / "scratch", CountingEmbeddings())
    assert [document.id for document in again["zh"].documents()] == [
        document.id for document in bases["zh"].documents()
    ]


@pytest.mark.parametrize("language", ["zh", "en"])
def test_quality_is_told_beside_three_peers(sets, bases, language):
    results = list(retrieval.quality(bases[language], question_sets.read(sets, language), HashEmbeddings()))
    assert len(results) == 3 * 2 * 4 and len({result.peer_name for result in results}) == 3
    firsts = [result for result in results if result.name == f"{language} all hit@1"]
    assert [(result.ours, result.peer) for result in firsts] == [(1, 1)] * 3


def test_speed_is_told_for_a_base_of_made_up_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(retrieval, "ASKED", 3)
    results = list(retrieval.speed(tmp_path / "made", 1_000))
    assert [result.name for result in results[:2]] == [
        "search among 1,000 chunks, p50",
        "search among 1,000 chunks, p95",
    ]
    assert all(result.ours > 0 and result.unit == "ms" for result in results)
    assert len(knowledge.open(tmp_path / "made", retrieval.MadeUp(np.ones(384))).documents()) == 1


def test_cases_without_their_answer(sets, bases):
    cases = list(fit_retrieval.same_language(bases["en"], sets, "en"))
    assert [case.absent for case in cases] == ["", "passage", "document"] * 2
    names = [{candidate.chunk.name for candidate in case.ranked.candidates} for case in cases[:2]]
    assert "bird-en-1.md" in names[0] and "bird-en-1.md" not in names[1]
    assert fit_retrieval.without({"a": "", "b": ""}, {"a"}) == Where(names=["b.md"])


def test_the_conditional_logit_finds_the_weights_that_chose():
    random = np.random.default_rng(0)
    weights = np.array([3.0, 0.0, 1.0])
    groups = []
    for _ in range(800):
        figures = random.standard_normal((6, 3))
        chosen = np.argmax(figures @ weights + random.gumbel(size=6))
        groups.append((figures, np.arange(6) == chosen))
    assert fit_retrieval.conditional_logit(groups, penalty=0) == pytest.approx(weights, abs=0.4)


def test_the_bias_loses_what_it_may():
    random = np.random.default_rng(0)
    rows = np.concatenate([random.normal(1, 1, (1000, 2)), random.normal(-1, 1, (1000, 2))])
    answer = np.arange(2000) < 1000
    weights = fit_retrieval._logistic(rows, answer)
    logits = rows @ weights + fit_retrieval._bias(rows[answer] @ weights, 0.03)
    assert 0.028 <= np.mean(logits[answer] < 0) <= 0.03 and np.mean(logits[~answer] < 0) > 0.6


def test_what_is_left_out_is_not_fitted_on():
    rows = np.array([[1.0], [2.0], [3.0], [-1.0], [-2.0], [-3.0]] * 2)
    answer = rows[:, 0] > 0
    answer[6:] = ~answer[6:]  # what the second half teaches is the opposite
    logits = fit_retrieval.held_out(rows, answer, np.repeat(["one", "other"], 6), None)
    assert np.corrcoef(logits[:6], rows[:6, 0])[0, 1] < -0.9 and np.corrcoef(logits[6:], rows[6:, 0])[0, 1] > 0.9


def test_a_model_rewrites_behind_the_earlier_questions_and_their_quotes(tmp_path: Path) -> None:
    (tmp_path / "lease.txt").write_text("The rent of Oak House is 1,200 francs a month.", encoding="utf-8")
    base = knowledge.open(tmp_path / "kb", HashEmbeddings())
    base.ingest([tmp_path / "lease.txt"])
    loaded = scripted("When is the rent of Oak House due?")
    case = {"turns": ["What is the rent of Oak House?", "When is it due?"], "gold": ["lease"]}
    asked = followup.by_model(ready_engine(loaded), base, case)
    assert asked.text == "When is the rent of Oak House due?" and followup.rank(base, asked, case["gold"]) == 0
    (prompt,) = loaded.model.prompts
    assert prompt.index("What is the rent") < prompt.index("1,200 francs") < prompt.index("When is it due?")
