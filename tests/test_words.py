"""The full-text index finds what is there, in any script and width."""

import sqlite3

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatapp.words import BEFORE, Snippet, folded, indexed, query, snippet, whole_characters

HAN = st.text(st.sampled_from("违约金合同租户"), min_size=1, max_size=8)
WORDS = st.text(st.sampled_from("abcXYZ019_ éÉＡ"), min_size=1, max_size=8)


def matches(text: str, searched: str) -> bool:
    connection = sqlite3.connect(":memory:")
    connection.execute("create virtual table t using fts5 (words, tokenize = 'unicode61 remove_diacritics 2')")
    connection.execute("insert into t values (?)", (indexed(text),))
    found = connection.execute("select count(*) from t where t match ?", (query(searched),)).fetchone()[0]
    connection.close()
    return bool(found)


@given(HAN, HAN)
def test_chinese_is_found_exactly_where_it_stands(text: str, searched: str) -> None:
    assert matches(text, searched) == (searched in text)


@given(HAN, HAN, WORDS)
def test_neighbours_of_another_script_change_nothing(before: str, after: str, word: str) -> None:
    text = f"{before} {word} {after}"
    assert matches(text, before) and matches(text, after)
    assert not query(word) or matches(text, word.upper())


@given(st.text(max_size=40), st.text(max_size=10))
def test_any_text_can_be_indexed_searched_and_quoted(text: str, searched: str) -> None:
    text, searched = whole_characters(text), whole_characters(searched)
    if query(searched):
        matches(text, searched)
    assert folded(snippet(text, searched).hit) in folded(text)


@pytest.mark.parametrize(
    "text, searched, shown",
    [
        ("违约金为每日 1,200 元", "每日", Snippet("违约金为", "每日", " 1,200 元")),
        ("The OVEN is hot", "ove", Snippet("The ", "OVE", "N is hot")),
        ("proven oven", "oven", Snippet("proven ", "oven", "")),
        ("ＡＢＣ", "ab", Snippet("", "ＡＢ", "Ｃ")),
        ("a\n\n b", "b", Snippet("a ", "b", "")),
        ("x" * 50 + " hit", "hit", Snippet("…" + "x" * (BEFORE - 1) + " ", "hit", "")),
        ("Straße", "strasse", Snippet("", "Straße", "")),
        ("no such", "word", Snippet("", "", "no such")),
    ],
)
def test_a_snippet_shows_the_first_hit(text: str, searched: str, shown: Snippet) -> None:
    assert snippet(text, searched) == shown
