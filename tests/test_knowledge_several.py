"""Several knowledge bases that are asked at once; files that are removed, read again, and read before others."""

from __future__ import annotations

from itertools import zip_longest
from pathlib import Path

import pytest

import knowledge
from knowledge import KnowledgeBase, KnowledgeBaseError, Where
from knowledge.several import Several
from tests.documents import write
from tests.fakes import HashEmbeddings
from tests.test_knowledge_retrieval import FACTS

QUESTIONS = [
    "How long must the reset button be held?",
    "When is the deposit of the lease returned?",
    "How many eggs does the kingfisher lay?",
    "押金什么时候退还？",
    "翠鸟每次产几枚蛋？",
    "Who won the election in Peru?",
]


def filled(folder: Path, facts: dict[str, str]) -> KnowledgeBase:
    base = knowledge.open(folder / "kb", HashEmbeddings())
    base.ingest([write(folder, f"{name}.txt", text) for name, text in facts.items()])
    return base


@pytest.fixture
def several(tmp_path: Path) -> Several:
    """The facts in two bases of different sizes."""
    facts = list(FACTS.items())
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    return Several({"a": filled(tmp_path / "a", dict(facts[:2])), "b": filled(tmp_path / "b", dict(facts[2:]))})


@pytest.mark.parametrize("question", QUESTIONS)
def test_they_answer_as_one_base_with_all_documents(several: Several, tmp_path: Path, question: str) -> None:
    found, expected = several.find(question), filled(tmp_path, FACTS).find(question)
    for passage, same in zip_longest(found.passages, expected.passages):
        assert (passage.name, passage.text) == (same.name, same.text)
        assert passage.score == pytest.approx(same.score)
        assert passage.base == ("a" if passage.name in ("lease.txt", "router.txt") else "b") and same.base is None
    assert found.relevance == pytest.approx(expected.relevance)


def test_each_base_alone_would_judge_otherwise(several: Several) -> None:
    # The figures above are the same because words are weighed together, not because they always are.
    question = QUESTIONS[0]
    alone = several._bases["a"].find(question).passages[0].score
    assert several.find(question).passages[0].score != pytest.approx(alone, abs=1e-6)


def test_the_words_of_an_empty_base_weigh_as_in_the_others(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    empty, full = knowledge.open(tmp_path / "empty", HashEmbeddings()), filled(tmp_path / "full", FACTS)
    found, alone = Several({"empty": empty, "full": full}).find(QUESTIONS[1]), full.find(QUESTIONS[1])
    assert found.relevance == pytest.approx(alone.relevance)
    assert [passage.text for passage in found.passages] == [passage.text for passage in alone.passages]
    assert Several({"empty": empty}).find(QUESTIONS[1]).passages == ()
    assert Several({"full": full}).find(" ").passages == ()


def test_quotes_citations_and_documents_are_those_of_all(several: Several) -> None:
    question = QUESTIONS[2]
    passages = several.search(question)
    assert several.quote(question, passages).text.startswith("The kingfisher lays seven eggs.")
    citer = several.citer(passages)
    citer.prepare()
    assert citer.cite("The kingfisher lays seven eggs.").passages == (1,)
    names = [document.name for document in several.documents()]
    assert sorted(names) == sorted(f"{name}.txt" for name in FACTS)
    bird = next(document for document in several.documents() if document.name == "bird.txt")
    assert "kingfisher" in several.pages(bird.id)[0].text and several.files([bird.id, "unknown"]) == [bird]
    with pytest.raises(LookupError):
        several.pages("unknown")


def test_a_document_that_is_in_two_bases_is_found_once(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    fact = {"bird": FACTS["bird"]}
    both = Several({"a": filled(tmp_path / "a", fact), "b": filled(tmp_path / "b", fact)})
    assert [passage.base for passage in both.search(QUESTIONS[2])] == ["a"]


def test_only_some_documents_are_searched(several: Several) -> None:
    bird = next(document for document in several.documents() if document.name == "bird.txt")
    found = several.search("What is the deposit?", where=Where(documents=[bird.id]))
    assert {passage.name for passage in found} == {"bird.txt"}
    assert several.search("What is the deposit?", where=Where(documents=[])) == []


def test_a_file_is_read_again_and_stays_the_same_document(tmp_path: Path) -> None:
    base = filled(tmp_path, {"bird": FACTS["bird"]})
    (before,) = base.documents()
    vectors = base._dense._ids.tolist()
    base.read_again([before.id])
    assert base.status().files[0].state == "waiting"
    assert base.search(QUESTIONS[2])[0].document == before.id  # until it is read
    base.work()
    (after,) = base.documents()
    assert (after.id, after.state, after.added) == (before.id, "done", before.added)
    assert [passage.document for passage in base.search(QUESTIONS[2])] == [before.id]
    assert len(base._dense._ids) == len(vectors) and not set(base._dense._ids.tolist()) & set(vectors)


def test_a_file_that_failed_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = knowledge.open(tmp_path / "kb", HashEmbeddings())
    with monkeypatch.context() as patch:
        patch.setattr("knowledge.ingest.split", lambda pages, count: [])
        base.ingest([write(tmp_path, "bird.txt", FACTS["bird"])])
    (failed,) = base.status().files
    assert failed.state == "failed" and "no words" in failed.reason
    base.read_again([failed.id])
    base.work()
    assert (base.status().files[0].state, base.status().files[0].reason) == ("done", None)


def test_a_file_that_somebody_waits_for_is_read_first(tmp_path: Path) -> None:
    base = knowledge.open(tmp_path / "kb", HashEmbeddings())
    added = base.add([write(tmp_path, f"{name}.txt", text) for name, text in FACTS.items()])
    base.hurry([added[3].id])
    read: list[str] = []
    base.work(lambda done, total, message: read.append(message) if message.endswith(": read") else None)
    assert list(dict.fromkeys(read))[:2] == ["合同.txt: read", "lease.txt: read"]


def test_a_base_that_has_ended_takes_no_more_work(tmp_path: Path) -> None:
    base = knowledge.open(tmp_path / "kb", HashEmbeddings())
    base.add([write(tmp_path, "bird.txt", FACTS["bird"])])
    base.end()
    for asked in (lambda: base.search("bird"), base.documents, base.work, lambda: base.remove("bird.txt")):
        with pytest.raises(KnowledgeBaseError, match="removed"):
            asked()
