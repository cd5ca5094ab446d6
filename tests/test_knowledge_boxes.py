"""Highlights: the text under a passage's boxes is the passage's, on pages of many kinds."""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pypdfium2
import pytest

from knowledge import boxes, documents
from knowledge.formats import ocr
from knowledge.formats.layout import Line
from knowledge.letters import letters
from knowledge.pages import DocumentError, PasswordError
from knowledge.splitter import split

HERE = Path(__file__).parent / "data" / "pdf"
ASSETS = os.environ.get("QUATRAIN_TEST_ASSETS")
PDFS = Path(ASSETS) / "pdf" if ASSETS else HERE
NOT_THESE = ("bad_", "enc_", "scan_")  # damaged, locked, without text
SPANS = 3  # of each file

POEMS = HERE / "zh_poems.pdf"
TWO_COLUMNS = HERE / "en_tracemonkey_two_column.pdf"


def spans() -> Iterator[tuple[Path, int, str]]:
    """A file, a page of it and some text on that, from 40 to 160 characters."""
    chosen = random.Random(4)
    for path in sorted(PDFS.glob("*.pdf")):
        if path.name.startswith(NOT_THESE):
            continue
        chunks = [chunk for chunk in split(_pages(path)) if len(chunk.text) > 40]
        for chunk in chosen.sample(chunks, min(SPANS, len(chunks))):
            start = chosen.randrange(max(1, len(chunk.text) - 120))
            yield path, chunk.page, chunk.text[start : start + chosen.randrange(40, 160)]


def _pages(path: Path) -> list:
    try:
        return documents.load(path)
    except DocumentError:  # a font that does not tell its characters, and no OCR
        return []


def under(path: Path, number: int, found: list[boxes.Box]) -> str:
    """The letters that PDFium itself has under the boxes."""
    page = pypdfium2.PdfDocument(path)[number - 1]
    left, bottom, right, top = page.get_bbox()
    width, height = right - left, top - bottom
    text = page.get_textpage()
    parts = [
        text.get_text_bounded(left + x0 * width, top - y1 * height, left + x1 * width, top - y0 * height)
        for x0, y0, x1, y1 in found
    ]
    return letters("".join(parts).encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace"))


def test_the_text_under_the_boxes_is_that_of_the_span() -> None:
    wrong, count = [], 0
    for path, page, span in spans():
        count += 1
        if under(path, page, boxes.boxes(path, page, span)) != letters(span):
            wrong.append((path.name, page, span))
    assert count >= (40 if ASSETS else 9)
    assert len(wrong) <= 0.05 * count, wrong


def test_each_line_has_a_box_of_its_own_in_its_column() -> None:
    text = documents.load(TWO_COLUMNS)[0].text
    start = text.index("Dynamic languages")
    found = boxes.boxes(TWO_COLUMNS, 1, text[start : start + 400])
    assert len(found) >= 6
    assert all(box.x1 < 0.52 or box.x0 > 0.48 for box in found)
    assert all(0 <= box.x0 < box.x1 <= 1 and 0 <= box.y0 < box.y1 <= 1 for box in found)


@pytest.mark.parametrize("turned", [90, 180, 270])
def test_boxes_are_where_a_turned_page_shows_its_text(tmp_path: Path, turned: int) -> None:
    text = documents.load(POEMS)[0].text[:60]
    document = pypdfium2.PdfDocument(POEMS)
    page = document[0]
    width, height = page.get_size()
    # Written the other way round, as scanners and landscape tables do: shown upright again.
    back = {90: (0, 1, -1, 0, height, 0), 180: (-1, 0, 0, -1, width, height), 270: (0, -1, 1, 0, 0, width)}
    for part in page.get_objects(max_depth=1):
        part.transform(pypdfium2.PdfMatrix(*back[turned]))
    page.set_mediabox(0, 0, *((width, height) if turned == 180 else (height, width)))
    page.set_cropbox(*page.get_mediabox())
    page.set_rotation(turned)
    page.gen_content()
    document.save(tmp_path / "turned.pdf")
    expected = boxes.boxes(POEMS, 1, text)
    found = boxes.boxes(tmp_path / "turned.pdf", 1, text)
    assert len(found) == len(expected) > 1
    for box, upright in zip(found, expected, strict=True):
        assert box == pytest.approx(upright, abs=3e-3)


def test_what_is_not_on_the_page_has_no_box() -> None:
    assert boxes.boxes(POEMS, 1, "The moon is made of green cheese.") == []
    assert boxes.boxes(POEMS, 1, "") == []


def test_a_heading_of_another_page_does_not_matter() -> None:
    text = documents.load(POEMS)[0].text[20:80]
    assert boxes.boxes(POEMS, 1, f"Elsewhere > Unheard of\n{text}") == boxes.boxes(POEMS, 1, text)


def test_a_page_that_was_recognised_has_boxes_of_what_was_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    def recognise(image, scale: float) -> list[Line]:
        height = image.shape[0] / scale
        parts = (
            Line("First half", 10, height - 30, 110, height - 20, 0, 0),
            Line("second", 200, height - 30, 260, height - 20, 0, 0),
        )
        return [Line("First half second", 10, height - 30, 260, height - 20, 0, 0, parts=parts)]

    monkeypatch.setattr(ocr, "recogniser", lambda: recognise)
    scan = HERE / "scan_en_ocr_test.pdf"
    width, height = pypdfium2.PdfDocument(scan)[0].get_size()
    (box,) = boxes.boxes(scan, 1, "second")
    assert (box.x0 * width, box.x1 * width) == pytest.approx((200, 260), abs=2)
    assert (box.y0 * height, box.y1 * height) == pytest.approx((20, 30), abs=2)


def test_a_page_is_drawn_as_png_of_a_bounded_size() -> None:
    picture = boxes.draw(POEMS, 1, 1.0)
    assert picture.startswith(b"\x89PNG\r\n")
    assert max(int.from_bytes(boxes.draw(POEMS, 1, 100.0)[at : at + 4]) for at in (16, 20)) <= 4_000


@pytest.mark.parametrize("number", [0, -1, 10_000])
def test_a_page_that_is_not_there_is_named(number: int) -> None:
    with pytest.raises(DocumentError, match=f"has no page {number}"):
        boxes.draw(POEMS, number)


def test_a_locked_file_is_drawn_with_its_password_only() -> None:
    locked = HERE / "enc_en_user_password_aes128.pdf"
    assert boxes.draw(locked, 1, 0.5, "openpassword").startswith(b"\x89PNG")
    with pytest.raises(PasswordError):
        boxes.draw(locked, 1)
