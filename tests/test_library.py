"""Knowledge bases by name."""

import threading
from pathlib import Path

import pytest

from chatapp.library import NAME_FILE, Library, LibraryError
from knowledge import KnowledgeBase, KnowledgeBaseError
from tests.fakes import Gate, HashEmbeddings
from tests.waiting import eventually


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "数据" / "kb"


@pytest.fixture
def library(folder: Path) -> Library:
    return Library(folder, HashEmbeddings)


def test_there_is_none_at_first(library: Library, folder: Path) -> None:
    assert library.names() == [] and not folder.exists()


@pytest.mark.parametrize(
    "name",
    ["Contracts", "合同与发票", "../../etc", "a/b\\c:*?", "CON", ".hidden", "😀", 'it\'s "quoted"', "x" * 80, "{0}"],
)
def test_any_name_is_kept_as_data_and_never_becomes_a_path(library: Library, folder: Path, name: str) -> None:
    assert library.create(name) == name
    (made,) = folder.iterdir()
    assert made.name.isalnum() and library.open(name).folder == made
    assert Library(folder, HashEmbeddings).names() == [name]


def test_a_name_is_trimmed_and_composed(library: Library) -> None:
    assert library.create("  two \t words\n") == "two words"
    assert library.create("cafe\u0301") == "caf\u00e9"
    with pytest.raises(LibraryError, match="already"):
        library.create("caf\u00e9")


def test_half_a_character_in_a_name(library: Library) -> None:
    assert library.create("a\ud83d") == "a?"


@pytest.mark.parametrize("name, reason", [("", "needs a name"), (" \n ", "needs a name"), ("x" * 81, "81.*80")])
def test_a_name_that_can_not_be_is_a_sentence(library: Library, name: str, reason: str) -> None:
    with pytest.raises(LibraryError, match=reason):
        library.create(name)
    assert library.names() == []


def test_names_are_in_alphabetical_order(library: Library) -> None:
    for name in ("banana", "Apple", "cherry"):
        library.create(name)
    assert library.names() == ["Apple", "banana", "cherry"]


def test_an_unknown_name_is_a_sentence(library: Library) -> None:
    with pytest.raises(LibraryError, match="no knowledge base named 'x'"):
        library.open("x")


def test_documents_are_there_after_a_restart(library: Library, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("The rent is 1,200 francs.", encoding="utf-8")
    library.open(library.create("docs")).ingest([tmp_path / "a.txt"])
    again = Library(folder, HashEmbeddings).open("docs")
    assert [passage.name for passage in again.search("rent")] == ["a.txt"]


def test_one_knowledge_base_is_opened_once_and_embeddings_are_made_once(folder: Path) -> None:
    made = []
    library = Library(folder, lambda: made.append(1) or HashEmbeddings())
    for name in ("a", "b"):
        library.create(name)
    assert made == []
    assert library.open("a") is library.open("a") is not library.open("b")
    assert made == [1]


def test_embeddings_that_could_not_be_made_are_asked_for_again(folder: Path) -> None:
    attempts = iter([RuntimeError("no network"), None])

    def embeddings() -> HashEmbeddings:
        if error := next(attempts):
            raise error
        return HashEmbeddings()

    library = Library(folder, embeddings)
    library.create("docs")
    with pytest.raises(RuntimeError):
        library.open("docs")
    assert library.open("docs").documents() == []


def test_what_a_stop_interrupted_goes_on_behind_after_a_restart(library: Library, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("The rent is 1,200 francs.", encoding="utf-8")
    finished, interrupted = (library.open(library.create(name)) for name in ("finished", "interrupted"))
    finished.ingest([tmp_path / "a.txt"])
    interrupted._queue.add(tmp_path / "a.txt")
    again = Library(folder, HashEmbeddings)
    again.carry_on()
    assert list(again._open) == ["interrupted"]
    base = again.open("interrupted")
    eventually(lambda: not base.unfinished)
    assert base.status().files[0].state == "done" and base.search("rent")[0].score > 0


def test_work_can_be_stopped_and_resumed(library: Library, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("The rent is 1,200 francs.", encoding="utf-8")
    base = library.open(library.create("docs"))
    base._queue.add(tmp_path / "a.txt")
    assert library.stop("docs") and not library.stop("docs")
    assert base.status().files[0].state == "cancelled"
    library.resume("docs")
    eventually(lambda: base.status().files[0].state == "done")


def test_locked_files_open_with_their_password(library: Library) -> None:
    base = library.open(library.create("docs"))
    base.ingest([Path(__file__).parent / "data" / "pdf" / "enc_en_user_password_aes128.pdf"])
    assert base.status().files[0].locked
    library.unlock("docs", "wrong")
    eventually(lambda: "this password" in (base.status().files[0].reason or ""))
    assert base.status().files[0].locked
    library.unlock("docs", "openpassword")
    eventually(lambda: base.status().files[0].state == "done")
    assert not base.status().files[0].locked


def test_a_knowledge_base_that_can_not_be_opened_does_not_keep_others_from_going_on(
    library: Library, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("The rent is 1,200 francs.", encoding="utf-8")
    bases = [library.open(library.create(name)) for name in ("a", "b")]
    for base in bases:
        base._queue.add(tmp_path / "a.txt")
    (bases[0].folder / "knowledge.db").write_bytes(b"This is not SQLite. " * 100)
    again = Library(folder, HashEmbeddings)
    again.carry_on()
    eventually(lambda: not again.open("b").unfinished)


def test_a_knowledge_base_can_be_made_while_the_first_opening_waits_for_a_download(folder: Path) -> None:
    gate = Gate()
    library = Library(folder, lambda: gate() or HashEmbeddings())
    library.create("first")
    opening = threading.Thread(target=library.open, args=("first",), daemon=True)
    opening.start()
    gate.reached.wait(20)
    library.create("second")
    assert library.names() == ["first", "second"] and opening.is_alive()
    gate.open()
    opening.join(20)


def test_threads_that_make_the_same_name_get_one_knowledge_base(library: Library) -> None:
    refused = []

    def create() -> None:
        try:
            library.create("same")
        except LibraryError as error:
            refused.append(error)

    threads = [threading.Thread(target=create) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 7 and library.names() == ["same"]


@pytest.mark.parametrize("content", [b"", b"{", b'"text"', b'{"title": 1}', b'{"name": 5}', b"\xff\xfe"])
def test_a_damaged_name_costs_the_name_and_nothing_else(
    library: Library, folder: Path, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "a.txt").write_text("The rent is 1,200 francs.", encoding="utf-8")
    library.open(library.create("damaged")).ingest([tmp_path / "a.txt"])
    (made,) = folder.iterdir()
    library.create("fine")
    (made / NAME_FILE).write_bytes(content)
    again = Library(folder, HashEmbeddings)
    assert set(again.names()) == {"fine", made.name}
    assert [document.name for document in again.open(made.name).documents()] == ["a.txt"]


def test_a_folder_that_a_kill_left_without_a_name_is_no_knowledge_base(library: Library, folder: Path) -> None:
    (folder / "abc").mkdir(parents=True)
    assert library.names() == []


# Renaming, removing, and asking several


def filled(library: Library, name: str, folder: Path, text: str = "The rent is 1,200 francs.") -> KnowledgeBase:
    (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    base = library.open(library.create(name))
    base.ingest([folder / f"{name}.txt"])
    return base


def test_a_renamed_base_is_found_by_its_former_names(library: Library, folder: Path, tmp_path: Path) -> None:
    base = filled(library, "docs", tmp_path)
    assert library.rename("docs", " 租约 ") == "租约" and library.rename("docs", "lease") == "lease"
    for known in (library, Library(folder, HashEmbeddings)):
        assert known.names() == ["lease"]
        assert known.open("docs") is known.open("租约") is known.open("lease")
        assert known.current("docs") == known.current("租约") == "lease" and known.current("x") is None
    assert library.open("docs") is base
    assert library.rename("lease", "docs") == "docs" and library.names() == ["docs"]
    assert library.rename("docs", "docs") == "docs"


def test_a_present_name_goes_before_a_former_one(library: Library, tmp_path: Path) -> None:
    filled(library, "docs", tmp_path)
    library.rename("docs", "old")
    newer = library.open(library.create("docs"))
    assert library.open("docs") is newer and library.current("docs") == "docs"
    with pytest.raises(LibraryError, match="already"):
        library.rename("old", "docs")
    with pytest.raises(LibraryError, match="no knowledge base"):
        library.rename("x", "y")
    with pytest.raises(LibraryError, match="needs a name"):
        library.rename("old", " ")


def test_a_removed_base_leaves_nothing(library: Library, folder: Path, tmp_path: Path) -> None:
    base = filled(library, "docs", tmp_path)
    filled(library, "other", tmp_path, "The cat sleeps.")
    library.remove("docs")
    assert library.names() == ["other"] and not base.folder.exists() and len(list(folder.iterdir())) == 1
    with pytest.raises(LibraryError):
        library.open("docs")
    with pytest.raises(KnowledgeBaseError, match="removed"):
        base.search("rent")
    assert library.open(library.create("docs")).documents() == []


def test_a_base_is_removed_while_its_files_are_read(library: Library, tmp_path: Path) -> None:
    name = library.create("docs")
    for number in range(20):
        (tmp_path / f"{number}.txt").write_text(f"Note {number}. " * 400, encoding="utf-8")
    library.add(name, [(tmp_path / f"{number}.txt", f"{number}.txt") for number in range(20)])
    base = library.open(name)
    eventually(lambda: any(file.chunks for file in base.status().files))
    library.remove(name)
    assert not base.folder.exists()


def test_what_a_kill_left_of_a_removed_base_goes_at_the_next_start(library: Library, folder: Path) -> None:
    kept = library.open(library.create("docs")).folder
    library.open("docs").close()
    kept.rename(kept.with_name(f"{kept.name}.removed"))
    again = Library(folder, HashEmbeddings)
    assert again.names() == []
    again.carry_on()
    assert list(folder.iterdir()) == []


def test_one_several_or_no_bases_are_asked(library: Library, tmp_path: Path) -> None:
    a, _ = filled(library, "a", tmp_path), filled(library, "b", tmp_path, "The rent of the garage is 90 francs.")
    assert library.ask(None) is None and library.ask("a") is library.ask(["a"]) is a
    found = library.ask(["a", "b"]).search("What is the rent?")
    assert {passage.base for passage in found} == {"a", "b"}
    with pytest.raises(LibraryError):
        library.ask(["a", "x"])


def test_a_batch_counts_files_that_can_not_be_read_apart(library: Library, tmp_path: Path) -> None:
    base = library.open(library.create("docs"))
    files = {"good.txt": b"The deposit is 500 francs.", "bad.pdf": b"%PDF-1.7 and no more", "more.txt": b"The rent."}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    base.add([tmp_path / "good.txt", tmp_path / "bad.pdf"])
    assert library.batch("docs").files == 2
    base.work()
    base.add([tmp_path / "more.txt"])
    batch = library.batch("docs")
    assert (batch.files, batch.done, batch.failed) == (3, 1, 1)


def test_a_batch_tells_how_far_files_are(library: Library, tmp_path: Path) -> None:
    base = filled(library, "docs", tmp_path)
    assert library.batch("docs").files == 0
    (tmp_path / "new.txt").write_text("The deposit is 500 francs.", encoding="utf-8")
    base.add([tmp_path / "new.txt"])
    batch = library.batch("docs")
    assert (batch.files, batch.done, batch.failed, batch.share) == (1, 0, 0, 0.0)
    library.add("docs", [(tmp_path / "new.txt", "new.txt")])
    eventually(lambda: library.batch("docs").files == 0)
    assert base.status().files[1].state == "done"
    library.read_again("docs", base.status().files[1].id)
    eventually(lambda: not base.unfinished)
