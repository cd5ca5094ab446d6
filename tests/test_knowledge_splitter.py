"""Pages to chunks."""

import re
from pathlib import Path

import pytest

from knowledge.documents import load
from knowledge.pages import Block, Page, plain
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
def test_nothing_is_lost(file):
    """Each line of a file is in a chunk or in the headings over one."""
    pages = load(DATA / file)
    kept = "".join("".join(chunk.passage.split()) for chunk in split(pages))
    for page in pages:
        for line in page.text.split("\n"):
            for part in re.findall(r"\w+", line):
                assert part in kept


def test_chinese_and_english_are_cut_after_sentences():
    chinese = "".join(f"这是第{number}句话，它说的是一件不长不短的小事情。" for number in range(60))
    english = " ".join(f"This is sentence {number}, and it says something short." for number in range(90))
    for text, end in ((chinese, "。"), (english, ".")):
        chunks = split([plain(1, text)])
        assert len(chunks) > 3
        assert all(chunk.text.endswith(end) for chunk in chunks)
        assert all(chunk.text.startswith(("这是", "This")) for chunk in chunks)


def test_neighbours_overlap_by_about_a_sentence():
    text = " ".join(f"This is sentence {number}, and it says something short." for number in range(90))
    first, second, *_ = split([plain(1, text)])
    shared = second.text[: second.text.index(".") + 1]
    assert shared in first.text and len(second.text) > len(shared)


def test_a_heading_stays_with_its_paragraph():
    paragraph = "Ownership is a set of rules that govern memory. " * 30
    assert split([plain(None, f"What is ownership?\n\n{paragraph}")])[0].text.startswith("What is ownership?\n\nOwn")


def test_length_is_the_given_one():
    text = "one two three four five six seven. " * 100
    by_word = split([plain(1, text)], length=lambda part: len(part.split()))
    assert max(len(chunk.text.split()) for chunk in by_word) > CHUNK_TOKENS // 2
    by_letter = split([plain(1, text)], length=len)
    assert all(len(chunk.text) <= CHUNK_TOKENS for chunk in by_letter)


def test_text_without_any_boundary_is_cut_all_the_same():
    chunks = split([plain(1, "长" * 1000)])
    assert len(chunks) > 4 and all(len(chunk.text) <= CHUNK_TOKENS for chunk in chunks)


def test_pages_without_words_give_no_chunks():
    assert split([plain(1, ""), plain(2, "● ● ●\n———"), plain(3, "字")])[0].page == 3


@pytest.mark.parametrize(("text", "tokens"), [("", 0), ("你好，世界", 5), ("word", 1), ("words", 2), ("用 Java 写", 4)])
def test_estimate(text, tokens):
    assert estimate_tokens(text) == tokens


def section(number: int, words: int = 120) -> list[Block]:
    return [Block(f"Section {number}", 2), Block(" ".join(f"word{number}" for _ in range(words)) + ".")]


def test_headings_go_with_every_chunk_and_with_the_next_page():
    first = Page(1, (Block("Book", 1), *section(1), *section(2, 600)))
    second = Page(2, (Block("It goes on. " * 30), *section(3)))
    chunks = split([first, second])
    assert {(chunk.page, chunk.headings) for chunk in chunks} == {
        (1, "Book > Section 1"),
        (1, "Book > Section 2"),
        (2, "Book > Section 2"),
        (2, "Book > Section 3"),
    }
    assert chunks[0].passage.startswith("Book > Section 1\nword1")
    assert all(estimate_tokens(chunk.passage) <= CHUNK_TOKENS for chunk in chunks)


def test_headings_do_not_reach_a_slide_that_stands_apart():
    slides = [Page(1, (Block("One", 1), Block("first"))), Page(2, (Block("second"),), apart=True)]
    assert [(chunk.headings, chunk.text) for chunk in split(slides)] == [("One", "first"), ("", "second")]


def test_small_sections_are_put_together_under_what_they_share():
    page = Page(None, (Block("FAQ", 1), Block("Who?", 2), Block("We."), Block("When?", 2), Block("Now.")))
    (chunk,) = split([page])
    assert (chunk.headings, chunk.text) == ("FAQ", "Who?\n\nWe.\n\nWhen?\n\nNow.")


def test_a_heading_with_nothing_under_it_is_kept():
    assert [chunk.text for chunk in split([Page(1, (Block("Only a title", 1),))])] == ["Only a title"]


def test_long_headings_leave_room_for_the_text():
    path = [Block(f"Level {level} " + "of many words " * 12, level) for level in range(1, 6)]
    for chunk in split([Page(1, (*path, Block("Text. " * 300)))]):
        assert chunk.headings.startswith("Level 5") and estimate_tokens(chunk.passage) <= CHUNK_TOKENS


def test_tables_are_cut_between_rows_and_keep_their_header():
    rows = [f"{number} | name {number} | some words about number {number}" for number in range(80)]
    table = Block("\n".join(rows), header="id | name | remark")
    chunks = split([Page(None, (Block("Before."), table))])
    assert len(chunks) > 4 and chunks[0].text == "Before."
    assert all(chunk.text.startswith("id | name | remark\n") for chunk in chunks[1:])
    assert [row for chunk in chunks[1:] for row in chunk.text.split("\n")[1:]] == rows
    assert all(estimate_tokens(chunk.text) <= CHUNK_TOKENS for chunk in chunks)


def test_a_small_table_stays_whole_with_its_text():
    table = Block("1 | 2\n3 | 4", header="a | b")
    assert [chunk.text for chunk in split([Page(1, (Block("Above."), table, Block("Below.")))])] == [
        "Above.\n\na | b\n1 | 2\n3 | 4\n\nBelow."
    ]


def test_a_row_longer_than_a_chunk_is_cut_at_sentences_under_the_header():
    table = Block("1 | " + "A sentence in a cell. " * 80, header="id | remark")
    chunks = split([Page(1, (table,))])
    assert len(chunks) > 2 and all(chunk.text.startswith("id | remark\n") for chunk in chunks)
    assert all(chunk.text.endswith("cell.") and estimate_tokens(chunk.text) <= CHUNK_TOKENS for chunk in chunks)
