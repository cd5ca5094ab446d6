"""Follow-up questions: what leans on earlier ones is completed, what stands alone is left alone."""

import json
from pathlib import Path

import pytest

from knowledge.followup import standalone

CASES = [json.loads(line) for line in (Path(__file__).parent / "data" / "followups.jsonl").open(encoding="utf-8")]


@pytest.mark.parametrize(
    ("earlier", "question", "searched"),
    [
        ("Who is Ada Lovelace?", "When was she born?", "When was Ada Lovelace born?"),
        ("Who is Ada Lovelace?", "Who was her father?", "Who was Ada Lovelace's father?"),
        ("When did Nova Scotia join?", "Who lived there?", "Who lived in Nova Scotia?"),
        ("Who sells The Blue Lamp?", "Who made the film?", "The Blue Lamp: Who made the film?"),
        ("What did Acme Tools sell in 2018?", "And in 2019?", "What did Acme Tools sell in 2018? in 2019?"),
        ("祖冲之是哪里人？", "他写过什么书？", "祖冲之写过什么书？"),
        ("祖冲之是哪里人？", "其儿子是谁？", "祖冲之的儿子是谁？"),
        ("《缀术》是谁写的？", "这本书有几卷？", "《缀术》的书有几卷？"),
        ("天坛是什么时候建的？", "那里有多大？", "天坛有多大？"),
        ("合同第一章讲什么？", "那第二章呢？", "合同第一章讲什么？ 第二章呢？"),
        ("祖冲之在哪里出生？", "为什么？", "祖冲之为什么？"),
    ],
)
def test_what_a_question_takes_from_the_one_before_is_put_into_it(earlier: str, question: str, searched: str) -> None:
    found = standalone(question, [earlier])
    assert (found.text, found.changed, found.asked) == (searched, True, question)


@pytest.mark.parametrize(
    "question",
    [
        "When did Marie Curie receive her second prize?",
        "Where is the University of Leeds?",
        "Is it true that Mount Etna erupts?",
        "Which French king issued the Edict of Nantes?",
        "《红楼梦》的作者是谁？",
        "多伦多位于哪个湖的岸边？",
        "重慶這名稱出現到現在大約已經多少年?",
    ],
)
def test_a_question_that_stands_alone_is_left_alone(question: str) -> None:
    assert standalone(question, ["Who is Ada Lovelace?", "祖冲之是哪里人？"]).text == question


def test_the_first_question_is_left_alone() -> None:
    assert not standalone("When was she born?", []).changed


def test_a_topic_goes_on_over_several_turns_until_it_changes() -> None:
    turns = ["Who is Ada Lovelace?", "When was she born?"]
    assert standalone("And her mother?", turns).text == "When was Ada Lovelace born? her mother?"
    turns += ["Where does Alan Turing come from?"]
    assert standalone("When did he die?", turns).text == "When did Alan Turing die?"


@pytest.mark.parametrize(
    ("question", "searched"),
    [
        ("What does this document say about rent?", "What does lease 2019 say about rent?"),
        ("这份文件讲什么？", "lease 2019讲什么？"),
    ],
)
def test_the_document_is_the_one_that_was_cited_last(question: str, searched: str) -> None:
    assert standalone(question, ["Who is the tenant?"], ["other.txt", "lease 2019.pdf"][1:]).text == searched


def test_where_it_is_not_certain_it_says_so() -> None:
    assert standalone("When was she born?", ["Who is Ada Lovelace?"]).certain
    assert not standalone("Who made the film?", ["Who sells The Blue Lamp?"]).certain


def test_a_change_of_topic_is_never_certain_to_lean_on_the_one_before() -> None:
    changes = [case for case in CASES if case["kind"] == "topic change"]
    found = [standalone(case["turns"][-1], case["turns"][:-1]) for case in changes]
    assert len(found) == 16 and not any(each.changed and each.certain for each in found)


def test_most_follow_ups_are_seen_to_be_some() -> None:
    leaning = [case for case in CASES if case["kind"] == "follow-up"]
    changed = [standalone(case["turns"][-1], case["turns"][:-1]).changed for case in leaning]
    assert len(changed) == 64 and sum(changed) >= 58
