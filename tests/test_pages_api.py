"""Pages, boxes and originals over HTTP: only what is in a knowledge base, harmless, and an error is one sentence."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from chatapp.library import Library
from chatapp.server import build
from chatapp.session import Chat
from chatapp.store import Store
from tests.fakes import HashEmbeddings, ready_engine, scripted

PDF = Path(__file__).parent / "data" / "pdf"
POEMS = PDF / "zh_poems.pdf"
LOCKED = PDF / "enc_en_user_password_aes128.pdf"
NAME = "资料/2024 #1"


@pytest.fixture
def library(tmp_path: Path) -> Library:
    library = Library(tmp_path / "kb", HashEmbeddings)
    library.create(NAME)
    note = tmp_path / "note.md"
    note.write_text("# Rent\n\n## Due\n\nThe rent is 1,200 francs a month.\n\nIt is due on the first day.\n", "utf-8")
    page = tmp_path / "page.html"
    page.write_text("<script>alert(1)</script><p>The heating is included in the rent of the flat.</p>", "utf-8")
    base = library.open(NAME)
    base.ingest([POEMS, note, page])
    base.ingest([LOCKED], password="openpassword")
    return library


@pytest.fixture
def client(library: Library, tmp_path: Path) -> Iterator[TestClient]:
    chat = Chat(ready_engine(scripted()), library, Store(tmp_path / "conversations.db"))
    with TestClient(build(chat, lambda app: app), base_url="http://127.0.0.1") as client:
        yield client


def address(library: Library, name: str) -> str:
    document = next(each for each in library.open(NAME).documents() if each.name == name)
    return f"/documents/%E8%B5%84%E6%96%99%2F2024%20%231/{document.id}"


def test_a_page_is_a_picture_of_the_size_asked_for(client: TestClient, library: Library) -> None:
    small = client.get(f"{address(library, POEMS.name)}/pages/1.png?scale=0.5")
    large = client.get(f"{address(library, POEMS.name)}/pages/1.png?scale=1")
    assert (small.status_code, small.headers["content-type"]) == (200, "image/png")
    assert small.headers["x-content-type-options"] == "nosniff"
    width = [int.from_bytes(each.content[16:20]) for each in (small, large)]
    assert width[1] == pytest.approx(2 * width[0], abs=2)


@pytest.mark.parametrize("scale", ["0.01", "5", "1e9", "x", "nan"])
def test_a_scale_out_of_bounds_is_refused(client: TestClient, library: Library, scale: str) -> None:
    answer = client.get(f"{address(library, POEMS.name)}/pages/1.png?scale={scale}")
    assert answer.status_code == 422 and "scale" in answer.json()["error"]["message"]


def test_boxes_are_fractions_of_the_page(client: TestClient, library: Library) -> None:
    text = library.open(NAME).pages(address(library, POEMS.name).rsplit("/", 1)[1])[0].text[:40]
    answer = client.post(f"{address(library, POEMS.name)}/pages/1/boxes", json={"text": text})
    found = answer.json()["boxes"]
    assert found and all(0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1 for x0, y0, x1, y1 in found)


def test_a_passage_of_endless_length_is_refused(client: TestClient, library: Library) -> None:
    answer = client.post(f"{address(library, POEMS.name)}/pages/1/boxes", json={"text": "x" * 30_000})
    assert answer.status_code == 422


def test_a_pdf_is_shown_by_the_browser_and_nothing_else_is(client: TestClient, library: Library) -> None:
    pdf, page = (client.get(f"{address(library, name)}/original") for name in (POEMS.name, "page.html"))
    assert (pdf.headers["content-type"], pdf.headers["content-disposition"]) == ("application/pdf", "inline")
    assert pdf.content == POEMS.read_bytes()
    assert page.headers["content-type"] == "application/octet-stream"
    assert page.headers["content-disposition"].startswith("attachment")
    assert page.headers["content-security-policy"].startswith("sandbox")
    assert pdf.headers["x-content-type-options"] == page.headers["x-content-type-options"] == "nosniff"


def test_a_passage_of_a_file_without_pages_comes_with_what_is_around_it(client: TestClient, library: Library) -> None:
    answer = client.post(f"{address(library, 'note.md')}/context", json={"text": "It is due on the first day."})
    found = answer.json()
    assert (found["headings"], found["passage"]) == (["Rent", "Due"], "It is due on the first day")
    assert "1,200 francs" in found["before"]


def test_a_locked_file_is_shown_while_its_password_is_known(
    client: TestClient, library: Library, tmp_path: Path
) -> None:
    assert client.get(f"{address(library, LOCKED.name)}/pages/1.png?scale=0.5").status_code == 200
    again = Library(tmp_path / "kb", HashEmbeddings)  # as after a restart
    chat = Chat(ready_engine(scripted()), again, Store(tmp_path / "others.db"))
    with TestClient(build(chat, lambda app: app), base_url="http://127.0.0.1") as later:
        answer = later.get(f"{address(library, LOCKED.name)}/pages/1.png")
    assert answer.status_code == 403
    assert (
        answer.json()["error"]["message"]
        == f"{LOCKED.name} needs a password to open; give it, or save a copy without one."
    )


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("/documents/nowhere/0/pages/1.png", 404, "no knowledge base named"),
        ("/documents/%E8%B5%84%E6%96%99%2F2024%20%231/0/pages/1.png", 404, "no such document"),
        ("/documents/%E8%B5%84%E6%96%99%2F2024%20%231/..%2F..%2Fname.json/original", 404, ""),
        ("{poems}/pages/99.png", 422, "has no page 99"),
        ("{poems}/pages/0.png", 422, "has no page 0"),
        ("{note}/pages/1.png", 422, "is not a PDF"),
    ],
)
def test_what_is_not_there_is_said_in_a_sentence(
    client: TestClient, library: Library, path: str, status: int, said: str
) -> None:
    answer = client.get(path.format(poems=address(library, POEMS.name), note=address(library, "note.md")))
    assert answer.status_code == status
    assert said in answer.text


def test_other_sites_see_no_page(client: TestClient, library: Library) -> None:
    foreign = {"origin": "http://elsewhere.example"}
    assert client.get(f"{address(library, POEMS.name)}/pages/1.png", headers=foreign).status_code == 403
    named = {"host": "elsewhere.example"}
    assert client.get(f"{address(library, POEMS.name)}/original", headers=named).status_code == 400
