"""Files to pages: what is read, and the one sentence for what cannot be."""

import random
from pathlib import Path

import pytest

from knowledge import DocumentError, documents
from knowledge.documents import load
from knowledge.formats import pdf
from knowledge.formats.text import fold, unwrap

DATA = Path(__file__).parent / "data"
TRACEMONKEY = DATA / "pdf" / "en_tracemonkey_two_column.pdf"
MODELSCOPE = DATA / "pdf" / "zh_modelscope_qa.pdf"
POEMS = DATA / "pdf" / "zh_poems.pdf"


def refusal(path: Path, name: str | None = None) -> str:
    with pytest.raises(DocumentError) as raised:
        load(path, name)
    sentence = str(raised.value)
    assert sentence.startswith(name or path.name) and sentence.endswith(".") and "\n" not in sentence
    return sentence


def test_english_pdf_keeps_its_page_numbers():
    pages = load(TRACEMONKEY)
    assert [page.number for page in pages] == list(range(1, 15))
    assert "7.2 Register Allocation" not in pages[0].text
    assert "This paper is based on" not in pages[1].text
    assert "Acknowledgments" in pages[13].text or "References" in pages[13].text


def test_ligatures_are_folded_and_split_words_joined():
    text = load(TRACEMONKEY)[0].text
    assert "identifies frequently executed loop traces" in text
    assert "more difficult to compile" in text
    assert "ﬁ" not in text


WRAPPED = (
    "The committee met in the old town hall and\nresolved to ask the mayor, who was absent,\nfor a second opinion."
)


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        (WRAPPED, WRAPPED.replace("\n", " ")),
        (f"{WRAPPED}\n{WRAPPED}", f"{WRAPPED.replace(chr(10), ' ')}\n{WRAPPED.replace(chr(10), ' ')}"),
        (
            "1 Results\nThe yield of all plots was lower than\nexpected.",
            "1 Results\nThe yield of all plots was lower than expected.",
        ),
        ("wheat from the northern plots 12.50\nbarley from the southern plots 13.75", None),
        ("a row of words that is long 12\n- an item that is long as well\n- another", None),
        (
            "论文格式的要求是力求合规、简洁、易于实\n\n现，对用户友好。",
            "论文格式的要求是力求合规、简洁、易于实现，对用户友好。",
        ),
        ("第一段到这里已经完整地结束了。\n\n第二段从这里重新开始，与上面无关。", None),
    ],
)
def test_lines_that_the_page_broke_are_joined(text: str, whole: str | None):
    assert unwrap(text) == (text if whole is None else whole)


def test_hyphens_of_compounds_survive_a_line_end():
    assert unwrap("a dynamically-\ntyped language", {"dynamically-typed"}) == "a dynamically-typed language"
    assert unwrap("a just-in-\ntime compiler") == "a just-in-time compiler"
    assert unwrap("tradi-\ntional, old") == "traditional, old"
    assert unwrap("exper\u00ad\niment") == "experiment"
    assert unwrap("pages 10-\n12") == "pages 10-\n12"


def test_chinese_pdf_is_readable_text():
    pages = load(MODELSCOPE)
    assert [page.number for page in pages] == [1, 2, 3, 4, 5]
    # Radicals that the file holds instead of characters, in the ranges with and without an NFKC mapping.
    assert "这个网址上，用对话交互式" in pages[0].text
    assert "首页" in pages[1].text and "请见" in pages[3].text
    assert not any("\u2e80" <= character <= "\u2fd5" for page in pages for character in page.text)


def test_chinese_lines_are_joined_and_paragraphs_kept():
    text = load(POEMS)[0].text
    assert "鸥鹭飞难辨，沙汀望莫分。" in text
    assert "——孟郊《雪》\n\n2、寒色孤村幕" in text


def test_short_chinese_lines_stay_apart():
    assert unwrap("第一章 总则\n为了保护作者的著作权，以及与著\n作权有关的权益，制定本法。") == (
        "第一章 总则\n为了保护作者的著作权，以及与著作权有关的权益，制定本法。"
    )


def test_full_width_punctuation_is_kept():
    assert fold("（⼀）标题：内容，结束！") == "（一）标题：内容，结束！"


def test_characters_that_storage_cannot_hold_are_dropped():
    assert fold("a\ud800b\x00c\r\nd\u3000e") == "a\ufffdbc\nd e"
    assert fold("\ud835\udc4e") == "a"  # a mathematical letter that arrives as two surrogates


def test_owner_password_only_opens():
    pages = load(DATA / "pdf" / "enc_en_owner_only_copy_protected.pdf")
    assert len(pages) == 2 and "layout" in pages[0].text.lower()


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        ("bad_zero_bytes.pdf", "is empty"),
        ("bad_html_named_pdf.pdf", "web page"),
        ("enc_en_user_password_aes128.pdf", "needs a password"),
        ("no_such_file.pdf", "cannot be opened"),
    ],
)
def test_bad_pdf_is_refused_in_one_sentence(file, reason):
    assert reason in refusal(DATA / "pdf" / file)


@pytest.mark.parametrize("source", [TRACEMONKEY, MODELSCOPE])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_truncated_pdf_is_refused(tmp_path, source, share):
    data = source.read_bytes()
    path = tmp_path / "half 一半.pdf"
    path.write_bytes(data[: int(share * len(data))])
    assert "is damaged or incomplete" in refusal(path)


def test_damage_of_any_kind_is_a_document_error(tmp_path):
    """Bytes and whole keywords of PDF files changed at random: a text comes out or the sentence, never a traceback."""
    chance = random.Random(7)
    refused = 0
    for name in ("zh_poems.pdf", "enc_en_owner_only_copy_protected.pdf", "enc_en_user_password_aes128.pdf") * 15:
        data = bytearray((DATA / "pdf" / name).read_bytes())
        for _ in range(chance.choice([3, 30, 300])):
            place = chance.randrange(len(data))
            word = chance.choice([b"/Type", b"/Length", b"/Kids", b"/Font", b"/Filter", b" 0 R", b"obj", b"<<"])
            found = data.find(word, place)
            if found >= 0 and chance.random() < 0.5:
                data[found : found + len(word)] = chance.choice([b"null", b"0", b"(x)", b"[]", b""])
            else:
                data[place] = chance.randrange(256)
        path = tmp_path / "damaged.pdf"
        path.write_bytes(data)
        try:
            load(path)
        except DocumentError:
            refused += 1
    assert 0 < refused < 45


def test_something_else_named_pdf(tmp_path):
    path = tmp_path / "picture.pdf"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(2000))
    assert "is not a PDF" in refusal(path)


def test_the_same_law_in_every_encoding(tmp_path):
    law = DATA / "docs" / "zh_copyright_law_utf8.txt"
    pages = load(law)
    assert pages[0].number is None and "中华人民共和国著作权法" in pages[0].text
    assert load(DATA / "docs" / "zh_copyright_law_gb18030.txt") == pages
    text = law.read_text(encoding="utf-8").replace("\n", "\r\n")
    for encoding in ("utf-8-sig", "utf-16", "utf-32"):
        copy = tmp_path / f"{encoding}.txt"
        copy.write_bytes(text.encode(encoding))
        assert load(copy) == pages


def test_traditional_chinese_in_gb18030(tmp_path):
    path = tmp_path / "繁體.txt"
    path.write_bytes("國家圖書館收藏的書籍與雜誌，讀者可以在閱覽室閱讀。".encode("gb18030"))
    assert "讀者可以在閱覽室閱讀" in load(path)[0].text


@pytest.mark.parametrize(
    "data",
    [
        bytes(range(256)) * 20,
        random.Random(1).randbytes(4000),
        b"\x7fELF" + bytes(500),
        "Quotes “like these”, dashes – and a café".encode("cp1252"),
        b"\xff\xfe\x00\xd8\x00\xd8",
    ],
)
def test_what_is_no_text_is_refused(tmp_path, data):
    path = tmp_path / "data.txt"
    path.write_bytes(data)
    assert "is not text" in refusal(path)


def test_blank_text_is_refused(tmp_path):
    path = tmp_path / "blank.md"
    path.write_bytes(b"\xef\xbb\xbf \n\t\n")
    assert "blank" in refusal(path)


def test_markdown_is_read():
    assert "What Is Ownership?" in load(DATA / "docs" / "en_rust_ownership.md")[0].text


def test_unsupported_suffix_names_the_supported_ones(tmp_path):
    path = tmp_path / "表格.xyz"
    path.write_bytes(b"1")
    sentence = refusal(path)
    assert all(suffix in sentence for suffix in (".pdf", ".txt", ".md"))


def test_the_given_name_decides_and_is_named(tmp_path):
    path = tmp_path / "upload-0"
    path.write_bytes("第一条".encode("gb18030"))
    assert load(path, "法律.TXT")[0].text == "第一条"
    assert refusal(path, "法律.doc").startswith("法律.doc")


@pytest.mark.parametrize(
    ("where", "limit", "value", "path", "reason"),
    [
        (documents, "MAX_BYTES", 2**20 // 2, MODELSCOPE, "MB"),
        (pdf, "MAX_PAGES", 4, MODELSCOPE, "has 5 pages"),
        (pdf, "MAX_CHARACTERS", 1000, MODELSCOPE, "characters"),
    ],
)
def test_huge_files_are_refused(monkeypatch, where, limit, value, path, reason):
    monkeypatch.setattr(where, limit, value)
    assert reason in refusal(path)


def test_endless_words_are_read_in_linear_time(tmp_path):
    """A regular expression that looks back over a word of a million letters would take hours."""
    assert len(unwrap("a" * 1_000_000 + "\n" + "好" * 1_000_000)) == 2_000_001
