"""What each format's reader makes of a file; most files are made here."""

import io
import random
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from knowledge.documents import load, parse
from knowledge.formats import ocr, pdf
from knowledge.formats.layout import Line
from knowledge.formats.text import fold
from knowledge.pages import DocumentError, Page, PasswordError
from knowledge.splitter import split

DATA = Path(__file__).parent / "data"


def blocks(page: Page) -> list[tuple[int, str | None, str]]:
    return [(block.level, block.header, block.text) for block in page.blocks]


# Word, PowerPoint, Excel


def word(build) -> bytes:
    import docx

    document = docx.Document()
    build(document)
    file = io.BytesIO()
    document.save(file)
    return file.getvalue()


def test_word_keeps_headings_and_tables_in_their_order():
    def build(document):
        document.add_heading("租赁合同", 0)
        document.add_heading("第一章 租金", 1)
        document.add_paragraph("租金为每月 3,000 元。")
        document.add_paragraph("按季支付。")
        table = document.add_table(2, 2)
        for cell, text in zip(
            (c for row in table.rows for c in row.cells), ("月份", "租金", "一月", "3000"), strict=True
        ):
            cell.text = text
        document.add_paragraph("完。")

    (page,) = parse(word(build), "合同.docx")
    assert page.number is None
    assert blocks(page) == [
        (1, None, "租赁合同"),
        (1, None, "第一章 租金"),
        (0, None, "租金为每月 3,000 元。\n按季支付。"),
        (0, "月份 | 租金", "一月 | 3000"),
        (0, None, "完。"),
    ]


def test_slides_keep_their_numbers_titles_tables_and_notes():
    import pptx
    from pptx.util import Inches

    deck = pptx.Presentation()
    first = deck.slides.add_slide(deck.slide_layouts[1])
    first.shapes.title.text = "计划"
    first.placeholders[1].text = "第一步\n第二步"
    first.notes_slide.notes_text_frame.text = "Say hello."
    deck.slides.add_slide(deck.slide_layouts[6])
    third = deck.slides.add_slide(deck.slide_layouts[5])
    third.shapes.title.text = "Figures"
    table = third.shapes.add_table(2, 2, Inches(1), Inches(2), Inches(4), Inches(1)).table
    for place, text in {(0, 0): "year", (0, 1): "sum", (1, 0): "2024", (1, 1): "12"}.items():
        table.cell(*place).text = text
    file = io.BytesIO()
    deck.save(file)
    pages = parse(file.getvalue(), "slides.pptx")
    assert [page.number for page in pages] == [1, 2, 3]
    assert blocks(pages[0]) == [(1, None, "计划"), (0, None, "第一步\n第二步"), (0, None, "Say hello.")]
    assert blocks(pages[1]) == []
    assert blocks(pages[2]) == [(1, None, "Figures"), (0, "year | sum", "2024 | 12")]


def workbook(sheets: dict[str, list[list]]) -> bytes:
    import openpyxl

    book = openpyxl.Workbook()
    book.remove(book.active)
    for name, rows in sheets.items():
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(row)
    file = io.BytesIO()
    book.save(file)
    return file.getvalue()


def test_sheets_are_named_and_every_chunk_has_the_header():
    rows = [["城市", "人口（万）"], *([f"城市{number}", number] for number in range(300))]
    pages = parse(workbook({"人口": rows, "empty": [], "Notes": [["one cell"], ["a", "b"], [1.0, 2.5]]}), "t.xlsx")
    assert [page.label for page in pages] == ["人口", "Notes"]
    chunks = split(pages)
    assert len(chunks) > 10 and all(chunk.page is None for chunk in chunks)
    for chunk in chunks[:-1]:
        assert (chunk.label, chunk.headings) == ("人口", "人口") and chunk.text.startswith("城市 | 人口（万）\n")
    assert "\n".join(chunk.text for chunk in chunks).count("城市299 | 299") == 1
    assert chunks[-1].text == "one cell\na | b\n1 | 2.5"


@pytest.mark.parametrize("kind", ["docx", "pptx", "xlsx"])
@pytest.mark.parametrize("damage", ["cut", "no archive", "empty archive", "text in a part"])
def test_damaged_office_files_are_one_sentence(kind, damage):
    whole = {"docx": lambda: word(lambda document: document.add_paragraph("x" * 5000)), "pptx": _deck, "xlsx": _book}
    data = whole[kind]()
    empty = io.BytesIO()
    zipfile.ZipFile(empty, "w").close()
    made = {"cut": data[: len(data) // 2], "no archive": b"text" * 99, "empty archive": empty.getvalue()}
    if damage == "text in a part":
        made[damage] = _with_part_replaced(data)
    with pytest.raises(DocumentError) as raised:
        parse(made[damage], f"文件.{kind}")
    assert str(raised.value).startswith(f"文件.{kind} is damaged") and str(raised.value).count(".") >= 2


def _deck() -> bytes:
    import pptx

    file = io.BytesIO()
    deck = pptx.Presentation()
    deck.slides.add_slide(deck.slide_layouts[0]).shapes.title.text = "title"
    deck.save(file)
    return file.getvalue()


def _book() -> bytes:
    return workbook({"a": [[1, 2]] * 500})


def _with_part_replaced(data: bytes) -> bytes:
    """The archive with its largest XML part no longer being XML."""
    source = zipfile.ZipFile(io.BytesIO(data))
    main = [name for name in source.namelist() if name in ("word/document.xml", "ppt/presentation.xml")]
    target = main[0] if main else "xl/workbook.xml"
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in source.namelist():
            archive.writestr(name, b"<not closed" if name == target else source.read(name))
    return file.getvalue()


def test_damage_of_any_kind_is_a_document_error():
    """Parts of office files, and other files, changed at random: pages come out or the sentence, never a traceback."""
    chance = random.Random(4)
    sources = {"a.docx": word(lambda document: document.add_heading("Title", 1)), "a.pptx": _deck(), "a.xlsx": _book()}
    sources |= {"a.html": b"<html><body><h1>T</h1><table><tr><td>1<td>2</table><p>x</p></body></html>" * 9}
    outcomes = Counter()
    for name in list(sources) * 60:
        data = sources[name]
        damaged = _with_damaged_parts(data, chance) if data.startswith(b"PK") else _damaged(data, chance)
        try:
            split(parse(damaged, name))
            outcomes["read"] += 1
        except DocumentError:
            outcomes["refused"] += 1
    assert min(outcomes["read"], outcomes["refused"]) > 20


def _damaged(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice([1, 3, 20])):
        place = chance.randrange(len(changed))
        if chance.random() < 0.5:
            changed[place : place + chance.randrange(30)] = b""
        else:
            changed[place:place] = chance.choice([b"<", b"</", b'"', b"-1", b"999999999", b"\0", b"<a:t>", b"&x;"])
    return bytes(changed)


def _with_damaged_parts(data: bytes, chance: random.Random) -> bytes:
    source = zipfile.ZipFile(io.BytesIO(data))
    victims = chance.sample(source.namelist(), 2)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in source.namelist():
            content = source.read(name)
            archive.writestr(name, _damaged(content, chance) if name in victims and content else content)
    return file.getvalue()


def test_an_archive_that_unpacks_without_end_is_refused(monkeypatch):
    from knowledge.formats import office

    monkeypatch.setattr(office, "_MAX_UNPACKED", 1000)
    with pytest.raises(DocumentError, match="unpacks to more than"):
        parse(_book(), "bomb.xlsx")


def test_old_and_protected_office_files_are_named():
    ole = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600)
    with pytest.raises(DocumentError, match="old binary format"):
        parse(ole, "old.docx")
    with pytest.raises(PasswordError, match="password"):
        parse(ole + "EncryptedPackage".encode("utf-16-le"), "locked.xlsx")


def test_the_content_decides_where_the_name_is_wrong():
    assert parse(_book(), "table.xls")[0].label == "a"
    assert len(parse((DATA / "pdf" / "zh_poems.pdf").read_bytes(), "poems.txt")) == 6


# CSV, Markdown, HTML, text


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030", "utf-16"])
def test_csv_in_any_delimiter_and_encoding(delimiter, encoding):
    text = "\n".join(
        delimiter.join(row) for row in [["问题", "回答"], ["如何安装？", '"先下载，\n再运行"'], ["b", "c"]]
    )
    (page,) = parse(text.encode(encoding), "faq.csv")
    assert blocks(page) == [(0, "问题 | 回答", "如何安装？ | 先下载， 再运行\nb | c")]


def test_markdown_headings_tables_and_code():
    text = """<!-- a comment -->
# 指南 #

Intro.

Second title
------------

```python
# no heading
a | b
```

| a | b |
|---|---|
| 1 | 2 |
| 3 | 4 |

### Deep
end"""
    (page,) = parse(text.encode(), "guide.md")
    assert blocks(page) == [
        (1, None, "指南"),
        (0, None, "Intro."),
        (2, None, "Second title"),
        (0, None, "```python\n# no heading\na | b\n```"),
        (0, "| a | b |", "| 1 | 2 |\n| 3 | 4 |"),
        (3, None, "Deep"),
        (0, None, "end"),
    ]


def test_html_without_its_boilerplate():
    text = """<!DOCTYPE html><html><head><title>网页</title><style>p {}</style></head><body>
    <nav>Home <a>About</a></nav><div class="sidebar">Recent posts</div><header role="banner">Brand</header>
    <main><h1>标题</h1><p>第一段，有<b>粗体</b>字。</p><p>Line one<br>line two</p><script>var x;</script>
    <table><tr><th>a</th><th>b</th></tr><tr><td>1</td><td>2</td></tr></table><h2>下一节</h2><ul><li>一</li><li>二</li></ul>
    <p hidden>secret</p></main><footer>© 2024</footer></body></html>"""
    (page,) = parse(text.encode("gb18030"), "page.html")
    assert blocks(page) == [
        (1, None, "标题"),
        (0, None, "第一段，有粗体字。\nLine one\nline two"),
        (0, "a | b", "1 | 2"),
        (2, None, "下一节"),
        (0, None, "一\n二"),
    ]


def test_html_says_its_own_encoding_and_may_have_no_text():
    assert "café" in parse('<meta charset="windows-1252"><p>café</p>'.encode("cp1252"), "a.htm")[0].text
    with pytest.raises(DocumentError, match="without text"):
        parse(b"<html><body><script>1</script></body></html>", "a.html")


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_without_a_mark(encoding):
    assert parse("第一条 为了保护著作权。\nThe first article.".encode(encoding), "a.txt")[0].text.startswith(
        "第一条 为了"
    )


def test_three_encodings_of_a_law_give_the_same_chunks():
    text = (DATA / "docs" / "zh_copyright_law_utf8.txt").read_text(encoding="utf-8")
    copies = [text.encode(), text.encode("gb18030"), b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode()]
    first, *others = [split(parse(copy, "law.txt")) for copy in copies]
    assert len(first) > 20 and all(other == first for other in others)


# PDF


def made_pdf(pages: list[list[tuple[float, float, str]]], size: int = 10) -> bytes:
    """A PDF with texts at (x, y) of its pages, 600 by 800 points, in the order given."""
    objects = ["<< /Type /Catalog /Pages 2 0 R >>", "", "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"]
    kids = []
    for page in pages:
        stream = "".join(f"BT /F1 {size} Tf {x} {y} Td ({text}) Tj ET\n" for x, y, text in page)
        objects.append(f"<< /Length {len(stream)} >>\nstream\n{stream}endstream")
        resources = "/Resources << /Font << /F1 3 0 R >> >> /MediaBox [0 0 600 800]"
        objects.append(f"<< /Type /Page /Parent 2 0 R {resources} /Contents {len(objects)} 0 R >>")
        kids.append(f"{len(objects)} 0 R")
    objects[1] = f"<< /Type /Pages /Kids [{' '.join(kids)}] /Count {len(kids)} >>"
    body, places = "%PDF-1.4\n", []
    for number, text in enumerate(objects, start=1):
        places.append(len(body))
        body += f"{number} 0 obj\n{text}\nendobj\n"
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    end = f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}"
    return f"{body}{end}trailer << /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{len(body)}\n%%EOF".encode()


LEFT = [f"left column line {number} has several words" for number in range(12)]
RIGHT = [f"right column line {number} says other things" for number in range(12)]


def test_two_columns_that_a_file_holds_row_by_row():
    rows = [
        place for row in range(12) for place in ((50, 700 - 14 * row, LEFT[row]), (320, 700 - 14 * row, RIGHT[row]))
    ]
    (page,) = parse(made_pdf([[(50, 740, "A title across the whole width of the page, above both"), *rows]]), "a.pdf")
    assert (
        page.text.split() == " ".join(["A title across the whole width of the page, above both", *LEFT, *RIGHT]).split()
    )


def test_two_columns_that_a_file_holds_one_by_one():
    columns = [(50, 700 - 14 * row, LEFT[row]) for row in range(12)] + [
        (320, 700 - 14 * row, RIGHT[row]) for row in range(12)
    ]
    (page,) = parse(made_pdf([columns]), "a.pdf")
    assert page.text.split() == " ".join([*LEFT, *RIGHT]).split()


def test_tables_stay_row_by_row():
    rows = [
        place
        for row in range(12)
        for place in ((50, 700 - 14 * row, f"item {row}"), (320, 700 - 14 * row, f"{row}.50"))
    ]
    (page,) = parse(made_pdf([rows]), "a.pdf")
    assert page.text.split("\n")[3].split() == ["item", "3", "3.50"]


def test_repeated_headers_and_footers_are_dropped():
    pages = [
        [(50, 780, "Annual report"), (50, 400, f"The text of page {number} is here."), (290, 20, f"Page {number} of 5")]
        for number in range(1, 6)
    ]
    pages[2].append((50, 300, "Annual report"))  # in the middle of a page it is text
    read = parse(made_pdf(pages), "report.pdf")
    assert [page.number for page in read] == [1, 2, 3, 4, 5]
    assert read[0].text == "The text of page 1 is here."
    assert read[2].text.split("\n\n") == ["The text of page 3 is here.", "Annual report"]


def test_a_word_split_by_a_hyphen_is_whole():
    assert "traditional compilers" in load(DATA / "pdf" / "en_tracemonkey_two_column.pdf")[0].text


def test_headings_of_a_pdf_are_over_their_chunks():
    chunks = split(load(DATA / "pdf" / "en_tracemonkey_two_column.pdf"))
    spilling = next(chunk for chunk in chunks if "spill" in chunk.text and chunk.page == 8)
    assert spilling.headings.endswith("5. Trace Tree Optimization")


def test_passwords():
    locked = DATA / "pdf" / "enc_en_user_password_aes128.pdf"
    assert load(locked, password="openpassword")[0].text
    for password, reason in ((None, "needs a password"), ("wrong", "does not open with this password")):
        with pytest.raises(PasswordError, match=reason):
            load(locked, password=password)


def test_spread_characters_are_closed_up():
    from knowledge.formats.text import close_up

    assert close_up("计 算 机 学 报") == "计算机学报"
    assert close_up("目　录".replace("\u3000", " ")) == "目录"
    assert close_up("负责人：张三 李四 王五") == "负责人：张三 李四 王五"


SCAN = DATA / "pdf" / "scan_en_ocr_test.pdf"


def test_a_scan_without_ocr_names_what_to_install(monkeypatch):
    monkeypatch.setattr(ocr, "installed", lambda: False)
    with pytest.raises(DocumentError, match=r"requirements-ocr\.txt"):
        load(SCAN)


def test_pages_without_text_are_recognised_and_only_those(monkeypatch):
    seen = []

    def recognise(image, scale):
        seen.append(image.shape)
        return [Line("租金为 3,000 元。", 50, 700, 200, 712, 0.0, 0.1), Line("第二行。", 50, 686, 200, 698, 0.0, 0.12)]

    monkeypatch.setattr(pdf.ocr, "recogniser", lambda: recognise)
    (page,) = load(SCAN)
    assert page.text == "租金为 3,000 元。\n第二行。" and not page.scanned
    assert len(seen) == 1 and seen[0][2] == 3
    load(DATA / "pdf" / "zh_poems.pdf")
    assert len(seen) == 1


def test_real_ocr_reads_a_scan():
    text = " ".join(load(SCAN)[0].text.split())
    assert "Docling" in text


PDFS = ["en_tracemonkey_two_column.pdf", "zh_modelscope_qa.pdf", "zh_poems.pdf", "enc_en_owner_only_copy_protected.pdf"]


def letters(text: str) -> str:
    return "".join(filter(str.isalnum, fold(text)))


def test_thirty_passages_are_on_the_pages_that_another_reader_finds_them_on():
    """pypdf as the witness. A third of a passage must be there word for word, since the two join lines differently."""
    import pypdf

    chance = random.Random(1)
    for name in PDFS:
        pages = [letters(page.extract_text()) for page in pypdf.PdfReader(DATA / "pdf" / name).pages]
        chunks = split(load(DATA / "pdf" / name))
        for chunk in chance.sample(chunks, min(len(chunks), 10)):
            text = letters(chunk.text)
            parts = [text[start : start + 16] for start in range(0, max(len(text) - 15, 1), 16)]
            found = [sum(part in page for part in parts) / len(parts) for page in pages]
            assert max(found) == found[chunk.page - 1] > 1 / 3, (name, chunk)
