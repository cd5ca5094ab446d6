"""Citations: sentences held against passages, also while they stream; what was changed in them is found."""

import json
from collections.abc import Iterable
from pathlib import Path

import pytest
from langchain_core.embeddings import Embeddings

import knowledge
from benchmarks.citations import HALVES
from knowledge.alignment import Alignment, tokens
from knowledge.cite import Citation, Cited, Citer, Problem, cite, judged
from knowledge.claims import foreign_places, latin_names, negations, polarity, replaced, unknown_names
from knowledge.numbers import lacking, numbers
from knowledge.sentences import Sentences
from tests.fakes import HashEmbeddings

DATA = Path(__file__).parent / "data"
CHAIN = (
    "Valentino's is a restaurant chain based in Lincoln, Nebraska. It was founded by Val and Zena Weiler in 1957. "
    "The first carry-out store opened in 1990, and the restaurants converted to the buffet concept."
)
CITY = "老城是三城核心，城墙高10米，有四座城门楼、三座角楼和三座水门。城中央有镇淮楼，始建于南宋，由祖逖的后人管理。"
OTHER = "Lenses are used to correct sight. 隐形眼镜每天都要清洗，不能戴着睡觉。"
PASSAGES = [OTHER, CHAIN, CITY]


class NoEmbeddings(Embeddings):
    """Fails where nothing is to be embedded."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        raise AssertionError(texts)

    def embed_query(self, text: str) -> list[float]:
        raise AssertionError(text)


# Numbers


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("三百", [300]),
        ("1,000 and １０００", [1000, 1000]),
        ("10万人，1400万平方公里", [100_000, 14_000_000]),
        ("thirty-seven, two hundred and five, twenty thousand", [37, 205, 20_000]),
        ("30 to 50 thousand", [30_000, 50_000]),
        ("三万到五万", [30_000, 50_000]),
        ("百分之八十，三分之二", [80, 3, 2]),
        ("August 29, 2014", [8, 29, 2014]),
        ("2014年8月29日", [2014, 8, 29]),
        ("民國34年", [1945]),
        ("第十九条，二个月，两次", [19, 2, 2]),
        ("六成，约六成的学生", [60, 60]),
        ("三国时期的四川，一种说法，one of them, respiratory ones", []),
    ],
)
def test_numbers_of_both_languages_are_made_alike(text: str, values: list[float]) -> None:
    assert [number.value for number in numbers(text)] == values


@pytest.mark.parametrize(
    ("said", "held", "missing"),
    [
        ("1962年", "in 1962", 0),
        ("1962年", "in 1972", 1),
        ("30 %", "30 percent", 0),
        ("30 km", "30 miles", 1),
        ("3 months", "三个月", 0),
        ("about 70 million", "70.2 million", 0),
        ("70 million", "70.2 million", 1),
        ("1621", "1620–21", 0),
        ("六成", "60%", 0),
        ("the nineteenth century", "in 1899", 0),
        ("19世纪", "in 1901", 1),
    ],
)
def test_a_number_is_held_by_value_and_unit(said: str, held: str, missing: int) -> None:
    assert len(lacking(numbers(said), numbers(held))) == missing


# Sentences beside passages


def quoted(sentence: str, citation: Citation) -> str:
    span = citation.spans[0]
    return PASSAGES[span.passage - 1][span.start : span.end]


@pytest.mark.parametrize(
    ("sentence", "number", "span"),
    [
        ("The first carry-out store opened in 1990.", 2, "The first carry-out store opened in 1990,"),
        ("老城的城墙高十米。", 3, "老城是三城核心，城墙高10米，"),
        ("Val and Zena Weiler founded Valentino's in 1957.", 2, "It was founded by Val and Zena Weiler in 1957."),
    ],
)
def test_a_sentence_is_cited_with_the_words_it_draws_on(sentence: str, number: int, span: str) -> None:
    citation = cite(sentence, PASSAGES, None)
    assert (citation.supported, citation.passages) == (True, (number,))
    assert span in quoted(sentence, citation)


@pytest.mark.parametrize(
    ("sentence", "kind", "text"),
    [
        ("The first carry-out store opened in 1996.", "number", "1996"),
        ("Valentino's is a restaurant chain based in Omaha, Nebraska.", "name", "Omaha"),
        ("The restaurants did not convert to the buffet concept.", "negation", "not"),
        ("The first carry-out store never opened in 1990.", "negation", "never"),
        ("老城是三城核心，城墙高15米。", "number", "15"),
        ("老城城墙高10米，有四座城门楼，由欧阳修的后人管理。", "name", "欧阳修"),
        ("老城不是三城核心。", "negation", "不"),
        ("隐形眼镜每天都要清洗，能戴着睡觉。", "negation", ""),
        ("老城有三座城门楼、四座角楼和三座水门。", "number", "三"),
        ("The last carry-out store opened in 1990.", "negation", "last"),
    ],
)
def test_what_was_changed_is_found_and_told(sentence: str, kind: str, text: str) -> None:
    citation = cite(sentence, PASSAGES, None)
    assert not citation.supported and not citation.passages
    assert (kind, text) in [(problem.kind, problem.text) for problem in citation.problems]
    assert citation.spans  # where it comes nearest to


def test_what_replaces_a_name_of_a_passage_is_found_though_the_passage_has_it_elsewhere() -> None:
    passages = ["在1466年，或许40,000人死于巴黎的瘟疫。后来，瘟疫又一再袭击伦敦，带走许多人。"]
    assert cite("1466年，或许40,000人死于巴黎的瘟疫。", passages, None).supported
    assert not cite("1466年，或许40,000人死于伦敦的瘟疫。", passages, None).supported


def test_a_name_that_the_passage_has_in_its_next_sentence_is_found() -> None:
    passages = ["1944年5月，长葛、许昌、鄢陵、禹县先后被日本占领。同年10月，八路军进入豫西，建立了根据地。"]
    assert cite("1944年5月，许昌先后被日本占领。", passages, None).supported
    assert cite("1944年5月，许昌先后被八路军占领。", passages, None).problems == (Problem("name", "八路军"),)


@pytest.mark.parametrize(
    ("sentence", "supported"),
    [("塞拉高速公路向东通往克洛维斯和亨廷顿湖。", True), ("塞拉高速公路向西通往克洛维斯和亨廷顿湖。", False)],
)
def test_a_direction_that_is_turned_round_is_found(sentence: str, supported: bool) -> None:
    assert cite(sentence, ["州168号公路，即塞拉高速公路，向东通往克洛维斯和亨廷顿湖。"], None).supported is supported


def test_what_came_to_nothing_is_another_thing() -> None:
    passages = ["The song reached the top ten in 15 countries, including number six in the United States."]
    assert cite("The song reached the top ten in 15 countries.", passages, None).supported
    assert not cite("The song failed to reach the top ten in 15 countries.", passages, None).supported


def test_a_part_of_a_chinese_name_is_told_by_the_rest_of_it() -> None:
    passage = "433年，文帝派刘义隆的弟弟刘义康去松花江边的彭城。"
    assert cite("433年，文帝派刘义隆的弟弟刘义康去松花江边的彭城。", [passage], None).supported
    for changed in ("刘义隆的弟弟刘义恭", "赵义隆的弟弟刘义康"):
        sentence = passage.replace("刘义隆的弟弟刘义康", changed)
        citation = cite(sentence, [passage], None)
        assert not citation.supported and [problem.kind for problem in citation.problems] == ["name"]


def test_what_a_sentence_begins_with_is_compared_with_how_its_passage_begins() -> None:
    passage = "The Guardian praised the label in 2011. The Independent praised the band for its second album in 2012."
    assert cite("The Guardian praised the label in 2011.", [passage], None).supported
    changed = cite("The Independent praised the label in 2011.", [passage], None)
    assert not changed.supported and Problem("name", "independent") in changed.problems


def test_a_name_in_the_place_of_a_pronoun_replaces_nothing() -> None:
    passage = "It is a village. He studied law there, was admitted to the bar in 1772 and set up in Trenton."
    sentence = "Linn studied law there, was admitted to the bar in 1772 and set up in Trenton."
    assert replaced(Alignment(tokens(sentence), tokens(passage)), frozenset({"linn"}), frozenset(), passage).name == 0
    said, held = "It will still contaminate the population.", "It will contaminate the population."
    assert cite(said, [held], None).supported


def test_a_denial_of_the_same_thing_in_other_words_is_none_for_sure() -> None:
    passage = "Strype did not use the word hockey when he translated the proclamation in 1720."
    match = Citer([passage], None).matches("Hockey was not among the words that Strype chose for the proclamation.")[0]
    assert match.denied == 0 < match.denied_otherwise
    match = Citer([passage], None).matches("Strype did use the word hockey when he translated the proclamation.")[0]
    assert match.denied > 0 == match.denied_otherwise


def test_plain_words_are_no_names() -> None:
    assert latin_names("Thanks to rain it grew. Besides reviews it has essays.") == []
    assert unknown_names("等级高低并不重要，全省都有些毛病", "") == []
    assert unknown_names("都护府起初交由苏定方掌管", "都护府起初") == ["苏定方"]
    assert latin_names("Whatever he wrote. Letting it be.") == []
    assert foreign_places("Some Han Chinese were rich.", "富有的汉人") == []


def test_other_things_are_no_denial() -> None:
    assert negations("别的城市特别大，别墅也多") == []
    assert negations("没能成功") == ["没"]


def test_a_number_that_only_moved_is_not_replaced() -> None:
    said, held = (
        tokens(text) for text in ("The main road is 99 for cars", "99 for cars; the main road is 168 long for")
    )
    (place,) = Alignment(said, held).places()
    assert (place.said, place.moved) == (("99",), {"99"})


def test_a_sentence_is_laid_along_its_passage() -> None:
    said, held = (tokens(text) for text in ("It was made in London by many men.", "it was made in Paris by many men"))
    alignment = Alignment(said, held)
    (place,) = alignment.places()
    assert (place.said, place.held, place.before, place.after) == (("london",), ("paris",), 1, 1)
    assert alignment.in_order == pytest.approx(7 / 8)


def test_words_that_only_moved_replace_nothing() -> None:
    said, held = (
        tokens(text) for text in ("火葬场于1962年启用，位于香港岛", "火葬场是香港一个坟场，位于香港岛，于1962年启用")
    )
    assert list(Alignment(said, held).places()) == []


def test_a_denial_before_a_latin_word_is_seen() -> None:
    assert polarity("github不向互联网开放。", "网站向互联网开放").added == 1


class OneTopic(HashEmbeddings):
    """Takes all texts about a city for alike, in both languages."""

    def _embed(self, text: str) -> list[float]:
        vector = super()._embed(text)
        vector[0] += 100.0 * any(word in text for word in ("city", "城"))
        return vector


@pytest.mark.parametrize(
    ("sentence", "supported"),
    [("The wall of the city is 10 m high.", True), ("The wall of the city is 15 m high.", False)],
)
def test_numbers_are_compared_across_languages(sentence: str, supported: bool) -> None:
    assert cite(sentence, [OTHER, CITY], OneTopic()).supported is supported


def test_a_place_has_names_in_both_languages() -> None:
    assert foreign_places("Korean and Egyptian films", "来自南韩和埃及") == []
    assert foreign_places("He is from Jordan.", "他来自埃及。") == ["约旦"]


def test_a_sentence_about_nothing_here_is_not_supported() -> None:
    for sentence in ("The moon is made of green cheese.", "月亮是绿色的奶酪做的。"):
        assert cite(sentence, PASSAGES, None) == Citation()


def test_a_passage_of_which_one_sentence_is_near_by_chance_supports_nothing() -> None:
    (match,) = Citer([CITY]).matches("月亮是绿色的奶酪做的。")
    match.nearest, match.nearest_lead = 1.5, 0.6
    match.near = 0.0
    assert judged([match]) == Citation()
    match.near = 0.9
    assert judged([match]) != Citation()


@pytest.mark.parametrize(
    "sentence", ["Sure, here is the answer:", "好的。", "The passages do not mention it.", "还有问题吗？"]
)
def test_chatter_needs_no_support(sentence: str) -> None:
    assert cite(sentence, PASSAGES, None) == Citation(chatter=True)


def test_a_polite_start_does_not_hide_a_claim() -> None:
    assert not cite("Sure, the first carry-out store opened in 1996.", PASSAGES, None).chatter


def test_a_number_that_the_model_wrote_itself_is_no_part_of_its_sentence() -> None:
    assert cite("The first carry-out store opened in 1990 [3].", PASSAGES, None).passages == (2,)


def test_nothing_is_embedded_for_a_sentence_that_is_there_word_for_word() -> None:
    assert cite("The first carry-out store opened in 1990.", PASSAGES, NoEmbeddings()).passages == (2,)


def test_passages_are_embedded_once_for_all_sentences() -> None:
    embeddings = HashEmbeddings()
    citer = Citer(PASSAGES, embeddings)
    citer.prepare()
    before = len(embeddings.embedded)
    for sentence in ("Food can be carried away since 1990.", "城墙有十米。", "Stores came later."):
        citer.cite(sentence)
    assert len(embeddings.embedded) == before
    assert embeddings.embedded.count(CHAIN) == 1
    assert embeddings.embedded.count("It was founded by Val and Zena Weiler in 1957.") == 1


def test_without_passages_nothing_is_supported() -> None:
    assert cite("The first carry-out store opened in 1990.", [], HashEmbeddings()) == Citation()


# The set of sentences: those about documents that are here


def rows() -> list[dict]:
    files = (DATA / f"alignment{name}.jsonl" for name in ("", "_more", "_other", "_authors", "_blind"))
    return [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]


def test_the_sets_parts_share_no_passage() -> None:
    parts = [{row["base"] for row in rows() if row["half"] == half} for half in HALVES]
    assert all(parts) and len(set().union(*parts)) == sum(map(len, parts))


def test_changed_sentences_of_the_set_are_refused_and_supported_ones_cited() -> None:
    lines = (DATA / "alignment_passages.jsonl").read_text(encoding="utf-8").splitlines()
    texts = {row["id"]: row["text"] for row in map(json.loads, lines)}
    outcomes: dict[str, list[bool]] = {}
    for row in rows():
        ids = [id for id in row["passages"] if id in texts]
        if row["base"] in texts and row["kind"] != "cross-language":
            cited = [ids[number - 1] for number in cite(row["sentence"], [texts[id] for id in ids], None).passages]
            outcomes.setdefault(row["kind"], []).append(cited == ([row["gold"]] if row["gold"] else []))
    changed = [right for kind in ("number", "name", "negation") for right in outcomes[kind]]
    assert all(outcomes["supported"]) and len(changed) >= 15
    assert sum(changed) >= 0.85 * len(changed)


# Streaming

ANSWER = """Sure, here is what they say:

1. The first carry-out store opened in 1990. It was founded by Val and Zena Weiler in 1957!
2. **老城是三城核心，城墙高10米。**有四座城门楼、三座角楼

```python
x = 1. if y else 2.
```

| a | b |
|---|---|
| It was founded. | In 1957. |

It weighs 4.6 kg, as Mr. James W. Weiler says"""

SENTENCES = [
    "Sure, here is what they say:",
    "The first carry-out store opened in 1990.",
    "It was founded by Val and Zena Weiler in 1957!",
    "**老城是三城核心，城墙高10米。**",
    "有四座城门楼、三座角楼",
    "It weighs 4.6 kg, as Mr. James W. Weiler says",
]


def fed(pieces: Iterable[str]) -> list[Cited]:
    citer = Citer(PASSAGES)
    return [cited for piece in pieces for cited in citer.feed(piece)] + citer.end()


@pytest.mark.parametrize("size", [1, 2, 7, 10_000])
def test_pieces_of_any_size_give_the_same_citations(size: int) -> None:
    found = fed(ANSWER[start : start + size] for start in range(0, len(ANSWER), size))
    assert [ANSWER[cited.start : cited.end] for cited in found] == SENTENCES
    assert found == fed([ANSWER])


def test_half_a_sentence_is_held_back() -> None:
    sentences = Sentences()
    assert sentences.feed("It opened in 19") == []
    assert sentences.feed("90.") == []  # perhaps 90.5
    assert [piece.text for piece in sentences.feed(" Then")] == ["It opened in 1990."]
    assert [piece.text for piece in sentences.feed("\n")] == ["Then"]
    assert sentences.end() == []


def test_a_knowledge_base_cites_with_the_vectors_that_it_has(tmp_path: Path) -> None:
    embeddings = HashEmbeddings()
    base = knowledge.open(tmp_path / "base", embeddings)
    note = tmp_path / "note.md"
    note.write_text(f"# Chains\n\n{CHAIN}\n", encoding="utf-8")
    base.ingest([note])
    (passage,) = base.search("Where is the chain based?", 1)
    citer = base.citer([passage])
    citer.prepare()
    assert citer.cite("Food can be carried away since 1990.") is not None
    assert [text for text in embeddings.embedded if CHAIN in text] == embeddings.embedded[:1]  # once, when it was added
    assert citer.cite("The first carry-out store opened in 1990.").passages == (1,)
