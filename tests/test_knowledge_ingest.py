"""The queue: what state files are in, how they are stopped and carried on, and that no kill loses or doubles any."""

import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

import knowledge
from knowledge.documents import load
from knowledge.splitter import split
from tests.documents import DATA, LAW, PAGE, POEMS, QUESTION, TRACEMONKEY, write
from tests.fakes import HashEmbeddings

ROOT = Path(__file__).parent.parent
LOCKED = DATA / "pdf" / "enc_en_user_password_aes128.pdf"


@pytest.fixture
def embeddings():
    return HashEmbeddings()


@pytest.fixture
def base(tmp_path, embeddings):
    return knowledge.open(tmp_path / "kb", embeddings)


def states(base) -> dict[str, str]:
    return {file.name: file.state for file in base.status().files}


class Stop(Exception):
    """Raised by a progress callback, to look at a base in the middle of its work."""


def stop_when(text: str):
    def progress(done: int, total: int, message: str) -> None:
        if text in message:
            raise Stop

    return progress


# Reading first


def test_all_files_are_read_before_any_is_embedded_and_words_find_them(base, embeddings):
    with pytest.raises(Stop):
        base.ingest([POEMS, LAW, TRACEMONKEY], stop_when("passages embedded"))
    assert len(embeddings.embedded) == 8
    assert all(document.chunks for document in base.documents()) and len(base.documents()) == 3
    first = base.search(QUESTION)[0]
    assert (first.name, first.page) == (POEMS.name, PAGE)
    assert base.search("register allocation spill")[0].page == 8


def test_chunks_are_those_of_the_file_with_pages_and_headings(base):
    base.ingest([TRACEMONKEY])
    expected = [(chunk.page, chunk.headings, chunk.text) for chunk in split(load(TRACEMONKEY))]
    assert base._database.rows("SELECT page, headings, text FROM chunks ORDER BY position") == expected
    (document,) = base.documents()
    assert [page.text for page in base.pages(document.id)] == [page.text for page in load(TRACEMONKEY)]


def test_the_status_counts_passages_and_tells_what_is_left(base):
    assert base.status() == knowledge.Status((), 0, 0, None)
    with pytest.raises(Stop):
        base.ingest([LAW], stop_when("8 of"))
    base.resume([base.status().files[0].id])
    status = base.status()
    assert status.files[0].state == "embedding" and status.files[0].embedded == status.done == 8
    assert status.total == status.files[0].chunks > 8 and status.seconds > 0
    base.work()
    assert base.status().done == status.total and base.status().seconds == 0


# Cancelling


def test_cancel_and_resume(base, embeddings):
    with pytest.raises(Stop):
        base.ingest([LAW, POEMS], stop_when("16 of"))
    assert set(states(base).values()) == {"cancelled"} and not base.unfinished
    assert len(embeddings.embedded) == 16
    assert base.search(QUESTION)[0].page == PAGE  # by its words
    base.work()
    assert len(embeddings.embedded) == 16
    base.resume([file.id for file in base.status().files])
    base.work()
    assert set(states(base).values()) == {"done"}
    assert len(embeddings.embedded) == len(set(embeddings.embedded)) == base.status().total


def test_a_file_cancelled_while_it_is_read_leaves_nothing(base):
    def cancel(done: int, total: int, message: str) -> None:
        if "reading" in message and done > 3:
            base.cancel()

    (result,) = base.ingest([TRACEMONKEY], cancel)
    assert result.state == "cancelled" and base.documents() == [] and base.search("trace") == []
    base.resume([base.status().files[0].id])
    base.work()
    assert states(base) == {TRACEMONKEY.name: "done"}


def test_a_file_removed_while_it_is_read_or_embedded_leaves_nothing(base):
    for moment in ("reading", "embedded"):

        def remove(done: int, total: int, message: str, moment: str = moment) -> None:
            if moment in message:
                base.remove(LAW.name)

        (result,) = base.ingest([LAW], remove)
        assert result.state == "cancelled" and "removed" in result.reason
        assert base.status().files == () and base.search("著作权") == []
        assert list((base.folder / "originals").iterdir()) == []


def test_a_file_that_failed_under_a_wrong_name_is_read_under_the_right_one(base, tmp_path):
    wrong = write(tmp_path, "page.pdf", "<!DOCTYPE html><p>Words on a page.</p>")
    right = write(tmp_path, "page.html", wrong.read_text(encoding="utf-8"))
    assert [result.state for result in base.ingest([wrong, right])] == ["failed", "done"]
    assert base.ingest([wrong, right])[1].state == "known"


def test_a_mistake_in_a_reader_costs_one_file(base, monkeypatch, caplog):
    from knowledge.formats import pdf

    monkeypatch.setattr(pdf, "_pages", lambda *_: 1 / 0)
    failed, done = base.ingest([POEMS, LAW])
    assert (failed.state, done.state) == ("failed", "done") and "mistake in this program" in failed.reason
    assert "ZeroDivisionError" in caplog.text and not base.unfinished


def test_a_batch_that_ends_by_an_error_is_carried_on(base, embeddings, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(embeddings, "embed_documents", lambda texts: (_ for _ in ()).throw(RuntimeError("no memory")))
        with pytest.raises(RuntimeError):
            base.ingest([POEMS])
    assert base.unfinished
    base.work()
    assert states(base) == {POEMS.name: "done"}


# Passwords


def test_a_locked_file_is_told_and_opens_with_its_password(base):
    failed, done = base.ingest([LOCKED, LAW])
    assert (failed.state, done.state) == ("failed", "done") and "needs a password" in failed.reason
    (wrong,) = base.ingest([LOCKED], password="wrong")
    assert "does not open with this password" in wrong.reason
    assert base.ingest([LOCKED], password="openpassword")[0].state == "done"
    assert all(b"openpassword" not in path.read_bytes() for path in base.folder.rglob("*") if path.is_file())


def test_a_locked_file_can_be_tried_again_by_its_id(base):
    base.ingest([LOCKED])
    base.resume([base.status().files[0].id], password="openpassword")
    base.work()
    assert states(base) == {LOCKED.name: "done"}


def test_pages_that_could_not_be_read_are_named(base, monkeypatch):
    from knowledge.formats import ocr
    from tests.test_knowledge_formats import made_pdf

    monkeypatch.setattr(ocr, "installed", lambda: False)
    monkeypatch.setattr("knowledge.formats.pdf._has_pictures", lambda page: True)
    path = base.folder / "mixed.pdf"
    path.write_bytes(made_pdf([[(50, 700, "Some text to find")], [], []]))
    (result,) = base.ingest([path])
    assert result.state == "done" and result.reason.startswith("mixed.pdf, page 2, 3: has no text")


# Folders


def test_a_folder_is_followed(base, embeddings, tmp_path):
    folder = tmp_path / "文件"
    write(folder, "a.txt", "The first file is about apples.")
    write(folder, "sub/b.md", "# B\n\nThe second file is about bananas.")
    write(folder, ".hidden.txt", "hidden")
    write(folder, "~$lock.docx", "lock")
    write(folder, "picture.png", "no text")
    assert [(result.name, result.state) for result in base.ingest_folder(folder)] == [
        ("a.txt", "done"),
        ("b.md", "done"),
    ]

    embeddings.embedded.clear()
    assert base.ingest_folder(folder) == [] and embeddings.embedded == []

    write(folder, "a.txt", "The first file is about cherries now.")
    write(folder, "c.txt", "A third file is about dates.")
    (folder / "sub" / "b.md").rename(folder / "renamed.md")
    results = {result.name: result.state for result in base.ingest_folder(folder)}
    assert results == {"a.txt": "done", "c.txt": "done", "renamed.md": "known"}
    assert len(embeddings.embedded) == 2
    assert sorted(document.name for document in base.documents()) == ["a.txt", "c.txt", "renamed.md"]
    assert "apples" not in base.search("apples", k=1)[0].text

    (folder / "c.txt").unlink()
    base.ingest_folder(folder)
    assert sorted(document.name for document in base.documents()) == ["a.txt", "renamed.md"]


def test_twins_in_a_folder_are_noticed_and_outlive_each_other(base, tmp_path):
    folder = tmp_path / "files"
    first, second = write(folder, "a.txt", "The same words."), write(folder, "b.txt", "The same words.")
    done, known = base.ingest_folder(folder)
    assert (done.state, known.state) == ("done", "known") and "a.txt" in known.reason
    first.unlink()
    base.ingest_folder(folder)
    assert [document.name for document in base.documents()] == ["b.txt"]
    second.unlink()
    write(folder, "c.txt", "Other words.")
    base.ingest_folder(folder)
    assert [document.name for document in base.documents()] == ["c.txt"]


def test_a_changed_file_that_cannot_be_read_keeps_its_old_version(base, tmp_path):
    folder = tmp_path / "files"
    write(folder, "a.md", "Good words.")
    base.ingest_folder(folder)
    write(folder, "a.md", "● ●")
    (failed,) = base.ingest_folder(folder)
    assert failed.state == "failed" and [document.name for document in base.documents()] == ["a.md"]


def test_an_empty_or_missing_folder_removes_nothing(base, tmp_path):
    folder = tmp_path / "files"
    path = write(folder, "a.txt", "Words.")
    base.ingest_folder(folder)
    path.unlink()
    assert base.ingest_folder(folder) == [] and len(base.documents()) == 1
    folder.rmdir()
    with pytest.raises(NotADirectoryError):
        base.ingest_folder(folder)


# Kills

CHILD = textwrap.dedent(
    """
    import sys, time
    from pathlib import Path
    import knowledge
    from knowledge import database, ingest
    from knowledge.dense import Dense
    from tests.fakes import HashEmbeddings

    folder, moment, *files = sys.argv[1:]

    def hang(*_, **__):
        print("now", flush=True)
        time.sleep(600)

    def hang_after(function):
        return lambda *values: (function(*values), hang())

    base = knowledge.open(folder, HashEmbeddings())
    match moment:
        case "copied":
            database.Database.add = hang
        case "taken in":
            base._queue.work = hang
        case "reading":
            ingest.parse = hang
        case "storing":
            database.keywords.add = hang_after(database.keywords.add)
        case "read":
            base._queue._embed = hang
        case "embedding":
            Dense.add = hang_after(Dense.add)
        case "embedded":
            database.Database.settle = hang_after(database.Database.settle)
        case "finished":
            Dense.save = hang
        case "removing":
            base.ingest(files)
            database.Database.forget = hang
            base.remove(Path(files[0]).name)
    base.ingest(files)
    """
)


def killed(folder: Path, moment: str, *files: Path) -> None:
    command = [sys.executable, "-c", CHILD, str(folder), moment, *map(str, files)]
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "now\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()


@pytest.mark.parametrize(
    "moment", ["copied", "taken in", "reading", "storing", "read", "embedding", "embedded", "finished"]
)
def test_a_kill_at_any_point_loses_and_doubles_nothing(tmp_path, embeddings, moment):
    folder = tmp_path / "kb"
    killed(folder, moment, POEMS, LAW)
    base = knowledge.open(folder, embeddings)
    if moment == "copied":
        assert base.status().files == () and list((folder / "originals").iterdir()) == []
        base.ingest([POEMS, LAW])
    base.work()
    assert states(base) == {POEMS.name: "done", LAW.name: "done"}
    chunks = {path: split(load(path)) for path in (POEMS, LAW)}
    rows = base._database.rows("SELECT name, position, text FROM chunks JOIN documents ON document = documents.id")
    assert sorted(rows) == sorted((path.name, chunk.position, chunk.text) for path in chunks for chunk in chunks[path])
    assert base._database.rows("SELECT count(*), count(DISTINCT chunk) FROM embeddings") == [(len(rows), len(rows))]
    assert base._dense._store.ids().tolist() == base._database.embedded_ids(base._dense.model).tolist()
    assert len(embeddings.embedded) == len(set(embeddings.embedded))
    assert {path.stem for path in (folder / "originals").iterdir()} == {file.id for file in base.status().files}
    assert base.search(QUESTION)[0].page == PAGE
    assert [result.state for result in base.ingest([POEMS, LAW])] == ["known", "known"]


def test_a_kill_while_removing_leaves_it_removed(tmp_path, embeddings):
    folder = tmp_path / "kb"
    killed(folder, "removing", POEMS, LAW)
    base = knowledge.open(folder, embeddings)
    assert states(base) == {LAW.name: "done"}
    assert {passage.name for passage in base.search(QUESTION, k=50)} == {LAW.name}
    assert_nothing_left(folder, "离离原上草")


# Removing


def assert_nothing_left(folder: Path, text: str) -> None:
    """No file has the text, in any encoding that one of them might use."""
    for path in folder.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            for encoding in ("utf-8", "utf-16-le", "gb18030"):
                assert text.encode(encoding) not in data, path


def test_nothing_of_a_removed_document_is_left_in_any_file(base, embeddings, tmp_path):
    secret = "机密的草案编号QX7741提到了紫色犀牛 Zanzibarquartz"
    path = write(tmp_path, "Geheimplan-紫犀.txt", f"第一段。\n\n{secret}。\n\n" + "别的句子。" * 400)
    base.ingest([path, LAW])
    vector = base._database.rows("SELECT vector FROM embeddings ORDER BY chunk LIMIT 1")[0][0]
    document = base.documents()[0]

    def holders(needle: bytes) -> list[Path]:
        return [file for file in base.folder.rglob("*") if file.is_file() and needle in file.read_bytes()]

    needles = [b"Zanzibarquartz", "紫色犀牛".encode(), b"zanzibarquartz", "犀牛".encode(), vector]
    needles += ["Geheimplan-紫犀".encode(), document.id.encode()]
    assert all(holders(needle) for needle in needles if needle != b"zanzibarquartz")
    assert base.remove(path.name) == 1
    assert [needle for needle in needles if holders(needle)] == []
    assert not [file for file in base.folder.rglob("*") if document.id in file.name]
    assert all(passage.name == LAW.name for passage in base.search(secret, k=50))
    base.close()
    again = knowledge.open(base.folder, embeddings)
    assert [needle for needle in needles if holders(needle)] == []
    assert all(passage.name == LAW.name for passage in again.search(secret, k=50))


def test_one_version_is_removed_and_the_other_stays(base, tmp_path):
    base.ingest([write(tmp_path, "notes.txt", "The first version speaks of apples.")])
    base.ingest([write(tmp_path, "notes.txt", "The second version speaks of pears.")])
    first, second = base.documents()
    base.remove_document(first.id)
    assert [document.id for document in base.documents()] == [second.id]
    with pytest.raises(LookupError):
        base.remove_document(first.id)


# Several at once


def test_two_processes_share_the_queue_and_each_others_vectors(base, tmp_path):
    base.ingest([POEMS])
    script = (
        "import sys, knowledge; from tests.fakes import HashEmbeddings; knowledge.open(sys.argv[1], HashEmbeddings())"
    )
    run = [sys.executable, "-c", f"{script}.ingest(sys.argv[2:])", str(base.folder)]
    files = [write(tmp_path, f"{number}.txt", f"File {number} has its own words. " * 200) for number in range(4)]
    child = subprocess.Popen([*run, *map(str, files[:2])], cwd=ROOT)
    base.ingest(files[2:])
    assert child.wait() == 0
    base.work()
    assert set(states(base).values()) == {"done"} and len(states(base)) == 5
    assert base.search("File 0 has its own words", k=3)[0].name == "0.txt"
    assert base._dense._store.ids().tolist() == base._database.embedded_ids(base._dense.model).tolist()


def test_threads_that_wait_for_each_other_finish_each_others_files(base, tmp_path):
    batches = [
        [write(tmp_path, f"{batch}-{n}.txt", f"Words of {batch}-{n}. " * 300) for n in range(3)] for batch in "abc"
    ]
    results = []
    threads = [threading.Thread(target=lambda batch=batch: results.extend(base.ingest(batch))) for batch in batches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [result.state for result in results] == ["done"] * 9
    assert base._database.rows("SELECT count(*) FROM chunks") == base._database.rows("SELECT count(*) FROM embeddings")


# Files of the first version


def test_a_base_of_version_1_is_taken_over(tmp_path, embeddings):
    folder = tmp_path / "kb"
    (folder / "originals").mkdir(parents=True)
    import hashlib

    id = hashlib.sha256(POEMS.read_bytes()).hexdigest()
    shutil.copy(POEMS, folder / "originals" / f"{id}.pdf")
    connection = sqlite3.connect(folder / "knowledge.db")
    connection.executescript(VERSION_1)
    connection.execute("INSERT INTO documents VALUES (?, 'poems.pdf', '.pdf', 6, 1, 5.0)", (id,))
    connection.execute("INSERT INTO chunks VALUES (1, ?, 1, 0, 'old', x'00000000')", (id,))
    connection.execute("INSERT INTO settings VALUES ('embeddings', 'hash-512')")
    connection.commit()
    connection.close()
    base = knowledge.open(folder, embeddings)
    assert states(base) == {"poems.pdf": "waiting"}
    base.work()
    assert base.search(QUESTION)[0].page == PAGE and base.documents()[0].added == 5.0
    assert base._database.rows("SELECT count(*) FROM chunks WHERE text = 'old'") == [(0,)]


VERSION_1 = """
PRAGMA journal_mode = WAL;
CREATE TABLE settings (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE documents (id TEXT PRIMARY KEY, name TEXT NOT NULL, suffix TEXT NOT NULL, pages INTEGER NOT NULL,
    chunks INTEGER NOT NULL, added REAL NOT NULL);
CREATE INDEX documents_by_name ON documents (name);
CREATE TABLE chunks (id INTEGER PRIMARY KEY AUTOINCREMENT,
    document TEXT NOT NULL REFERENCES documents (id) ON DELETE CASCADE, page INTEGER, position INTEGER NOT NULL,
    text TEXT NOT NULL, embedding BLOB NOT NULL, UNIQUE (document, position));
PRAGMA user_version = 1;
"""
