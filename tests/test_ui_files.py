"""Files that a browser hands over: its own uploads, and no other file of this machine."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from chatapp.library import Library
from chatapp.server import build
from chatapp.session import Chat
from chatapp.settings import parse
from chatapp.startup import Startup
from chatapp.store import Store
from chatapp.ui import mount
from tests.fakes import HashEmbeddings, ready_engine, scripted
from tests.serving import serving
from tests.waiting import eventually

TEXT = "The rent is 1,200 francs a month, due on the first day."


class Visitor:
    """Speaks to the page as its own script does."""

    def __init__(self, address: str, library: Library) -> None:
        self.library = library
        self.client = httpx.Client(base_url=address, timeout=30)
        functions = self.client.get("/config").json()["dependencies"]
        self.numbers = {function["api_name"]: function["id"] for function in functions}

    def call(self, name: str, *values: Any) -> dict[str, Any]:
        """Runs a handler; its last message."""
        body = {"fn_index": self.numbers[name], "session_hash": "visitor", "data": list(values)}
        self.client.post("/gradio_api/queue/join", json=body).raise_for_status()
        with self.client.stream("GET", "/gradio_api/queue/data?session_hash=visitor") as lines:
            for line in lines.iter_lines():
                if "process_completed" in line:
                    return json.loads(line.removeprefix("data: "))
        raise AssertionError("it never ended")

    def add(self, path: str, name: str) -> dict[str, Any]:
        file = {"path": path, "orig_name": name, "meta": {"_type": "gradio.FileData"}}
        return self.call("add_files", [file], [], None)

    def documents(self) -> list[str]:
        bases = [self.library.open(name) for name in self.library.names()]
        return [document.name for base in bases for document in base.documents()]


@pytest.fixture
def uploads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    return tmp_path / "uploads"


@pytest.fixture
def visitor(tmp_path: Path, uploads: Path) -> Iterator[Visitor]:
    settings = parse(["--data", str(tmp_path), "--lang", "en"], {})
    engine = ready_engine(scripted())
    chat = Chat(engine, Library(tmp_path / "kb", HashEmbeddings), Store(tmp_path / "conversations.db"))
    with serving(build(chat, mount(settings, chat, Startup(settings, engine)))) as port:
        yield Visitor(f"http://127.0.0.1:{port}", chat.library)


def test_an_upload_becomes_a_document_and_its_copy_goes(visitor: Visitor, uploads: Path) -> None:
    answer = visitor.client.post("/gradio_api/upload", files={"files": ("合同 (1).txt", TEXT.encode())})
    assert visitor.add(answer.json()[0], "合同 (1).txt")["success"]
    eventually(lambda: visitor.documents() == ["合同 (1).txt"])
    assert [path for path in uploads.rglob("*") if path.is_file()] == []


def test_a_file_that_was_not_uploaded_is_neither_read_nor_removed(visitor: Visitor, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text(TEXT, encoding="utf-8")
    assert not visitor.add(str(secret), "secret.txt")["success"]
    assert visitor.documents() == [] and secret.exists()


@pytest.mark.parametrize("name", ["conversations.db", "secret.txt"])
def test_a_file_of_the_data_folder_is_not_served(visitor: Visitor, tmp_path: Path, name: str) -> None:
    (tmp_path / "secret.txt").write_text(TEXT, encoding="utf-8")
    assert visitor.client.get(f"/gradio_api/file={tmp_path / name}").status_code == 403
