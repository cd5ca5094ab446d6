"""Pages to chunks."""

from pathlib import Path

import pytest

from knowledge.documents import Page, load
from knowledge.splitter import CHUNK_TOKENS, estimate_tokens, split

DATA = Path(__file__).parent / "data"
FILES = ["pdf/en_tracemonkey_two_column.pdf", "pdf/zh_modelscope_qa.pdf", "docs/zh_copyright_law_utf8.txt"]


@pytest.mark.parametrize("file", FILES)
def test_chunks_are_bounded_and_lie_on_their_page(file):
    pages = load(DATA / file)
    text = {page.number: page.text for page in pages}
    chunks = split(pages)
    assert [chunk.position for chunk in chunks] == list(range(len(chunks)))
    for chunk in chunks:
        assert 0 < estimate_tokens(chunk.text) <= CHUNK_TOKENS
        assert chunk.text in text[chunk.page]


@pytest.mark.parametrize("file", FILES)
def test_nothing_but_blank_space_is_lost(file):
    for page in load(DATA / file):
        covered = 0
        for chunk in split([page]):
            start = page.text.find(chunk.text, max(0, covered - 400))
            assert not any(map(str.isalnum, page.text[covered:start]))
            covered = start + len(chunk.text)
        assert not any(map(str.isalnum, page.text[covered:]))


def test_chinese_and_english_are_cut_after_sentences():
    chinese = "".join(f"这是第{number}句话，它说的是一件不长不短的小事情。" for number in range(60))
    english = " ".join(f"This is sentence {number}, and it says something short." for number in range(90))
    for text, end in ((chinese, "。"), (english, ".")):
        chunks = split([Page(1, text)])
        assert len(chunks) > 3
        assert all(chunk.text.endswith(end) for chunk in chunks)
        assert all(chunk.text.startswith(("这是", "This")) for chunk in chunks)


def test_neighbours_overlap_by_about_a_sentence():
    text = " ".join(f"This is sentence {number}, and it says something short." for number in range(90))
    first, second, *_ = split([Page(1, text)])
    shared = second.text[: second.text.index(".") + 1]
    assert shared in first.text and len(second.text) > len(shared)


def test_a_heading_stays_with_its_paragraph():
    paragraph = "Ownership is a set of rules that govern memory. " * 30
    assert split([Page(None, f"## What is ownership?\n\n{paragraph}")])[0].text.startswith(
        "## What is ownership?\n\nOwn"
    )


def test_length_is_the_given_one():
    text = "one two three four five six seven. " * 100
    by_word = split([Page(1, text)], length=lambda part: len(part.split()))
    assert max(len(chunk.text.split()) for chunk in by_word) > CHUNK_TOKENS // 2
    by_letter = split([Page(1, text)], length=len)
    assert all(len(chunk.text) <= CHUNK_TOKENS for chunk in by_letter)


def test_text_without_any_boundary_is_cut_all_the_same():
    chunks = split([Page(1, "长" * 1000)])
    assert len(chunks) > 4 and all(len(chunk.text) <= CHUNK_TOKENS for chunk in chunks)


def test_pages_without_words_give_no_chunks():
    assert split([Page(1, ""), Page(2, "● ● ●\n———"), Page(3, "字")])[0].page == 3


@pytest.mark.parametrize(("text", "tokens"), [("", 0), ("你好，世界", 5), ("word", 1), ("words", 2), ("用 Java 写", 4)])
def test_estimate(text, tokens):
    assert estimate_tokens(text) == tokens
