"""Quotes: the right sentences, exactly where they stand, never too long."""

import numpy as np
import pytest

from knowledge import Passage, asked
from knowledge.quote import EMBEDDED, FEATURES, WEIGHTS, likeliest, quote
from knowledge.statements import CHARACTERS, WORDS, sentences_of
from tests.fakes import HashEmbeddings


def passage(text: str, score: float = 0.9, name: str = "a.txt") -> Passage:
    return Passage(name, None, score, text, "id")


LEASE = passage(
    "Lease\nThe flat is in Oak Street and has three rooms. Mr. Brown let it to Anna Miller in March 2019. "
    "The rent is 850 euros a month, due on the third. She left because the roof was leaking and nobody came. "
    "The keys were handed over to the caretaker. The deposit is kept by the bank until the end of the year."
)
CHINESE = passage(
    "租约\n该房屋位于橡树街，共有三个房间，附带一个小院。二〇一九年三月，房东把它租给了李明，双方签了字。"
    "每月租金为八百五十元，应在每月三日以前交付给房东。由于屋顶漏水又没有人来修理，他在第二年就搬走了。"
    "钥匙交给了看门人，押金由银行保管，到年底再退还，其间的利息归租客所有。"
)
OTHER = passage("Garden\nThe garden behind the house has old trees. Nobody has cut the hedge for years.", 0.4, "b.txt")


@pytest.mark.parametrize(
    ("question", "text", "answer"),
    [
        ("How much is the rent?", LEASE, "850 euros"),
        ("When was the flat let to Anna Miller?", LEASE, "March 2019"),
        ("Why did she leave?", LEASE, "because the roof"),
        ("Who keeps the deposit?", LEASE, "by the bank"),
        ("每月租金是多少？", CHINESE, "八百五十元"),
        ("房东是什么时候把房屋租出去的？", CHINESE, "二〇一九年三月"),
        ("他为什么搬走？", CHINESE, "屋顶漏水"),
        ("押金由谁保管？", CHINESE, "银行"),
    ],
)
def test_the_sentence_with_the_answer_is_quoted(question: str, text: Passage, answer: str) -> None:
    found = quote(question, [text, OTHER], HashEmbeddings())
    assert found is not None and answer in found.text


def test_a_quote_stands_in_its_passage_where_it_says() -> None:
    found = quote("Has anybody cut the hedge behind the house?", [OTHER], HashEmbeddings())
    assert found is not None
    (part,) = found.parts  # the two sentences follow each other
    assert part.passage is OTHER and OTHER.text[part.start : part.end] == part.text == found.text
    assert part.text.startswith("The garden") and part.text.endswith("for years.")


def test_a_quote_is_of_two_passages_where_both_may_answer() -> None:
    first = passage("The old mill stands by the river. Anna Miller sold the mill in 1950. It has a red roof.")
    second = passage("Oak Street is long. In 1962 Anna Miller sold the mill again. It rains.", 0.8, "b.txt")
    found = quote("When was the mill sold?", [first, second], HashEmbeddings())
    assert found is not None and [part.passage for part in found.parts] == [first, second]
    assert found.text == "Anna Miller sold the mill in 1950. … In 1962 Anna Miller sold the mill again."


PROBATION = (
    "劳动合同期限三个月以上不满一年的，试用期不得超过一个月；劳动合同期限一年以上不满三年的，试用期不得超过二个月；"
    "三年以上固定期限和无固定期限的劳动合同，试用期不得超过六个月。"
)


def test_a_sentence_is_quoted_to_its_end_where_there_is_room() -> None:
    article = passage(f"{PROBATION}同一用人单位与同一劳动者只能约定一次试用期。")
    clauses = list(sentences_of(0, article.text))
    scores = np.array(
        [9.0 - 3 * abs(place - 1) for place in range(len(clauses))]
    )  # the second clause, then a neighbour
    (part,) = likeliest([article], clauses, scores).parts
    assert part.text.startswith("劳动合同期限三个月") and part.end == len(PROBATION) and not part.goes_on


def test_what_had_no_room_is_said_to_go_on() -> None:
    long = passage("one, two, " * 45 + "three.")
    (clause, *_) = sentences_of(0, long.text)
    (part,) = likeliest([long], [clause], np.array([1.0])).parts
    assert part.end < len(long.text) and part.goes_on


def test_what_two_passages_share_is_quoted_once() -> None:
    shared = "Anna Miller sold the mill in 1950. It has a red roof."
    found = quote("When was the mill sold?", [passage(shared), passage(shared, 0.8, "b.txt")], HashEmbeddings())
    assert found is not None and found.text == shared


@pytest.mark.parametrize(
    ("scores", "quoted"),
    [
        ([9.0, 1.0, 0.0], "one, two, " * 15 + "three. " + "four, five, " * 14 + "four,"),
        ([1.0, 9.0, 0.0], "one, two, " * 14 + "three. " + "four, five, " * 15 + "six."),
    ],
    ids=["the next one's first clauses", "the last clauses of the one before"],
)
def test_of_two_sentences_that_are_too_long_the_less_likely_is_cut(scores: list[float], quoted: str) -> None:
    text = "One, two, " + "one, two, " * 14 + "three. Four, five, " + "four, five, " * 14 + "six. Seven is odd."
    found = likeliest([passage(text)], list(sentences_of(0, text)), np.array(scores))
    (part,) = found.parts
    assert part.text.lower() == quoted and len(part.text.split()) <= WORDS


def test_a_title_does_not_end_a_sentence_and_a_heading_is_none() -> None:
    found = quote("To whom did Mr. Brown let the flat?", [LEASE], HashEmbeddings())
    assert found is not None and "Mr. Brown let it to Anna Miller" in found.text
    heading = quote("Lease", [LEASE], HashEmbeddings())
    assert heading is not None and not heading.text.startswith("Lease")


def test_lines_that_a_page_has_broken_are_no_sentences_and_no_headings() -> None:
    text = passage(
        "The flat was let to Anna Miller by\nthe heirs of the late J. Brown, who\nlive abroad. Nobody saw them since."
    )
    found = quote("Who let the flat to Anna Miller?", [text], HashEmbeddings())
    assert found is not None and found.text.startswith("The flat") and "heirs of the late J. Brown" in found.text


@pytest.mark.parametrize(
    ("text", "limit", "length"),
    [
        ("这里没有句号，" * 60, CHARACTERS, len),
        ("没有任何标点" * 60, CHARACTERS, len),
        ("words and, now and then, a comma " * 40, WORDS, lambda text: len(text.split())),
    ],
)
def test_no_quote_is_too_long(text: str, limit: int, length) -> None:
    found = quote("标点 comma", [passage(text)], HashEmbeddings())
    assert found is not None and limit / 2 < sum(length(part.text) for part in found.parts) <= limit


@pytest.mark.parametrize("passages", [[], [passage("")], [passage("—— …… ——\n\n* * *")]])
def test_where_nothing_is_said_nothing_is_quoted(passages: list[Passage]) -> None:
    assert quote("What?", passages, HashEmbeddings()) is None


def test_few_sentences_are_embedded_however_many_are_found() -> None:
    embeddings = HashEmbeddings()
    quote("How much is the rent?", [LEASE, CHINESE, OTHER], embeddings)
    assert 1 < len(embeddings.embedded) <= EMBEDDED + 1  # and the question


def test_while_the_embedding_model_is_loaded_words_do() -> None:
    embeddings = HashEmbeddings()
    embeddings.loading = True
    found = quote("How much is the rent?", [LEASE, OTHER], embeddings)
    assert found is not None and "850 euros" in found.text and embeddings.embedded == []


@pytest.mark.parametrize(
    ("question", "kind"),
    [
        ("Who wrote it?", "who"),
        ("In which year did it end?", "when"),
        ("How many were there?", "how many"),
        ("Which city is it in?", "where"),
        ("Why?", "why"),
        ("What is it made of?", None),
        ("作者是谁？", "who"),
        ("他是哪一年去世的？", "when"),
        ("有多少人？", "how many"),
        ("它在哪里？", "where"),
        ("為什麼下雨？", "why"),
        ("它是什么颜色？", None),
    ],
)
def test_a_question_asks_for_a_kind_of_answer(question: str, kind: str | None) -> None:
    found = asked.kind(question)
    assert (found and found.name) == kind


def test_what_the_question_says_itself_is_no_answer() -> None:
    kind = asked.kind("Who met Anna Miller?")
    assert kind is not None
    found = asked.answers(kind, "Who met Anna Miller?", "Anna Miller was met by John Brown.")
    assert [match[0] for match in found] == ["John Brown"]


def test_there_is_a_weight_for_every_figure() -> None:
    assert {len(weights) for weights in WEIGHTS.values()} == {len(FEATURES)}
    assert np.isfinite(list(WEIGHTS.values())).all()


@pytest.mark.parametrize(
    "text",
    [
        "It was built by Jacques Lefevre (c. 1450) and others.",
        "The decision in Brown v. Board of Education came in 1954.",
        "The finding of Jones et al. 1998 was supported by it.",
        "The estate of Capt. Smith and Col. Brown was sold.",
        "Duquesne, i.e. The Point, is shown in Fig. 3 below.",
    ],
)
def test_an_abbreviation_ends_no_sentence(text: str) -> None:
    assert [sentence.text for sentence in sentences_of(0, f"{text} The next one follows.")] == [
        text,
        "The next one follows.",
    ]


@pytest.mark.parametrize(
    ("question", "text", "headed"), [("租金是多少？", CHINESE, True), ("What rent?", LEASE, False)]
)
def test_chinese_sentences_are_embedded_behind_their_heading(question: str, text: Passage, headed: bool) -> None:
    embeddings = HashEmbeddings()
    found = quote(question, [text], embeddings)
    heading = text.text.partition("\n")[0]
    assert {told.startswith(f"{heading}: ") for told in embeddings.embedded} == {headed}
    assert found is not None and heading not in found.text
