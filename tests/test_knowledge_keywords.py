"""Terms, and the keyword index: what goes in is found by BM25, what is removed leaves nothing behind."""

import math
import sqlite3
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from knowledge import keywords, terms
from knowledge.pages import plain
from knowledge.splitter import split

DOCS = Path(__file__).parent / "data" / "docs"
QUESTIONS = [
    "Who owns a value in Rust?",
    "著作权属于谁？",
    "作者死亡后五十年",
    "ownership of heap data",
    "什么是所有权",
]


@pytest.fixture
def connection():
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.executescript(keywords.SCHEMA)
    yield connection
    connection.close()


@pytest.fixture
def index(connection):
    return keywords.KeywordIndex(lambda query, values: connection.execute(query, values).fetchall())


@pytest.fixture(scope="module")
def chunks() -> dict[int, str]:
    """Real passages in both languages, under ids that leave gaps and cross blocks."""
    files = ("en_rust_ownership.md", "zh_rust_ownership.md", "zh_copyright_law_utf8.txt")
    texts = [chunk.text for name in files for chunk in split([plain(None, (DOCS / name).read_text("utf-8"))])]
    return {4_050 + 3 * number: text for number, text in enumerate(texts)}


def bm25(chunks: dict[int, str], question: str) -> dict[int, float]:
    """By the book: k1 1.2, b 0.75, each term of the question once; but for 200 chunks more that have none of them."""
    found = {id: Counter(terms.terms(text)) for id, text in chunks.items()}
    mean = sum(counts.total() for counts in found.values()) / len(found)
    scores = dict.fromkeys(found, 0.0)
    for term in set(terms.terms(question)):
        having = sum(term in counts for counts in found.values())
        idf = math.log(1 + (len(found) + 200 - having + 0.5) / (having + 0.5))
        for id, counts in found.items():
            norm = 1.2 * (0.25 + 0.75 * counts.total() / mean)
            scores[id] += idf * 2.2 * counts[term] / (counts[term] + norm)
    return {id: score for id, score in scores.items() if score}


@pytest.mark.parametrize("question", QUESTIONS)
def test_scores_are_bm25(connection, index, chunks, question):
    keywords.add(connection, chunks)
    expected, matches = bm25(chunks, question), index.search(question)
    assert matches.ids.tolist() == sorted(expected) and len(expected) > 3
    np.testing.assert_allclose(matches.scores, [expected[id] for id in matches.ids.tolist()], rtol=1e-9)
    assert matches.scores.max() < matches.best_possible


def test_chunks_that_come_one_by_one_score_as_those_that_come_together(connection, index, chunks):
    keywords.add(connection, chunks)
    together = [index.search(question) for question in QUESTIONS]
    keywords.clear(connection)
    for id, text in chunks.items():
        keywords.add(connection, {id: text})
    for question, before in zip(QUESTIONS, together, strict=True):
        np.testing.assert_array_equal(index.search(question).scores, before.scores)


def test_what_is_removed_leaves_the_index_as_it_was(connection, index, chunks):
    ids = list(chunks)
    kept, gone = ({id: chunks[id] for id in part} for part in (ids[::2], ids[1::2]))
    keywords.add(connection, kept)
    before = connection.execute("SELECT * FROM keywords").fetchall()
    keywords.add(connection, gone)
    keywords.remove(connection, gone)
    assert connection.execute("SELECT * FROM keywords").fetchall() == before
    keywords.remove(connection, gone)  # again: they are not there
    keywords.remove(connection, kept)
    assert connection.execute("SELECT count(*) FROM keywords").fetchone() == (0,)
    assert not len(index.search(QUESTIONS[0]).ids)


def test_a_rollback_takes_its_chunks_back(connection, index):
    keywords.add(connection, {1: "apples and pears"})
    connection.execute("BEGIN")
    keywords.add(connection, {2: "apples and plums"})
    connection.execute("ROLLBACK")
    assert index.search("apple").ids.tolist() == [1]


def test_a_question_reads_only_its_own_terms(connection, chunks):
    keywords.add(connection, chunks)
    read = []

    def rows(query, values):
        read.extend(found := connection.execute(query, values).fetchall())
        return found

    keywords.KeywordIndex(rows).search("著作权")
    assert {term for term, *_ in read} == {"著", "作", "权", "著作", "作权", "#length"}


def test_chunks_in_chinese(connection, index):
    assert index.chinese().tolist() == []
    keywords.add(connection, {1: "苹果和梨", 2: "apples", 3: "git gitlab github的区别", 5_000: "The 的 of the x"})
    assert index.chinese().tolist() == [1, 3]


def test_scores_of_given_chunks(connection, index):
    assert index.search("apples").of(np.array([1])).tolist() == [0]
    keywords.add(connection, {1: "apples", 2: "pears", 9: "apples, pears"})
    scores = index.search("apples pears").of(np.array([9, 4, 1, 20]))
    assert scores[0] > scores[2] > 0 and scores[1] == scores[3] == 0


def test_terms_that_no_chunk_has_weigh_most(connection, index):
    keywords.add(connection, {1: "apples", 2: "apples, pears", 3: "plums"})
    weights = index.search("apples, pears and figs").weights
    assert weights["appl"] < weights["pear"] < weights["fig"] == weights["and"]


def test_empty_questions_match_nothing(connection, index):
    keywords.add(connection, {1: "apples"})
    for question in ("", " \n", "？！…", "#length", "pear"):
        assert not len(index.search(question).ids), question


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("ＧＰＴ４", "gpt4"),
        ("臺灣的電腦", "台湾的电脑"),
        ("Beyoncé’s stories", "beyonce story"),
        ("boxes", "box"),
        ("running", "runs"),
        ("stopped", "stop"),
        ("makes making", "make make"),
        ("ﬁle", "file"),
    ],
)
def test_forms_that_are_one(one, other):
    assert terms.terms(one) == terms.terms(other)


@pytest.mark.parametrize(("one", "other"), [("3.5", "35"), ("class", "clas"), ("bus", "bu"), ("用户", "用戶 名")])
def test_forms_that_are_not(one, other):
    assert terms.terms(one) != terms.terms(other)


def test_chinese_is_characters_and_their_pairs():
    assert terms.terms("著作权。A 层") == ["著", "作", "权", "著作", "作权", "a", "层"]


def test_a_quoted_title_is_one_particular_whatever_letters_it_holds():
    (title,) = terms.particulars("《ONE PIECE 发条岛的冒险》上映于哪一年？")
    assert {"one", "piec", "发条"} <= set(title)
    assert terms.particulars("IPCC 在1988年做了什么？") == [["ipc"], ["1988"]]  # stems
