"""Knowledge bases: what goes in is found, what is removed is gone, and nothing is lost when things go wrong."""

import shutil
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from langchain_core.vectorstores import InMemoryVectorStore

import knowledge
from knowledge import DocumentError, KnowledgeBase, KnowledgeBaseError, Passage
from knowledge.vectors import FaissVectors
from tests.documents import DATA, LAW, PAGE, POEMS, QUESTION, TRACEMONKEY, write
from tests.fakes import HashEmbeddings

ROOT = Path(__file__).parent.parent


@pytest.fixture
def embeddings():
    return HashEmbeddings()


@pytest.fixture
def base(tmp_path, embeddings):
    return knowledge.open(tmp_path / "诗 kb", embeddings)


def test_ingested_files_are_found_with_their_pages(base):
    results = base.ingest([TRACEMONKEY, POEMS, LAW])
    assert [(result.name, result.state, result.pages) for result in results] == [
        (TRACEMONKEY.name, "done", 14),
        (POEMS.name, "done", 6),
        (LAW.name, "done", 0),
    ]
    best = base.search(QUESTION, k=3)[0]
    assert (best.name, best.page) == (POEMS.name, PAGE) and QUESTION in best.text
    assert base.search("recording a trace tree in the trace monitor")[0].name == TRACEMONKEY.name
    law = base.search("中华人民共和国著作权法")[0]
    assert (law.name, law.page) == (LAW.name, None)
    assert base.name == "诗 kb"


def test_documents_and_their_originals(base):
    base.ingest([POEMS, LAW])
    poems, law = base.documents()
    assert (poems.name, poems.pages, law.name, law.pages) == (POEMS.name, 6, LAW.name, 0)
    assert base.original(poems.id).read_bytes() == POEMS.read_bytes()
    assert base.original(poems.id).suffix == ".pdf"
    assert base.search(QUESTION)[0].document == poems.id
    with pytest.raises(LookupError, match="no document"):
        base.original("../../etc/passwd")


def test_empty_bases_and_questions_find_nothing(base):
    assert base.search(QUESTION) == [] and base.documents() == []
    base.ingest([POEMS])
    assert base.search(" \n") == []


def test_everything_is_there_when_opened_again_and_nothing_is_embedded(base, embeddings):
    base.ingest([POEMS, LAW])
    before, documents = base.search(QUESTION), base.documents()
    base.close()
    embeddings.embedded.clear()
    again = knowledge.open(base.folder, embeddings)
    assert again.search(QUESTION) == before and again.documents() == documents
    assert embeddings.embedded == []


@pytest.mark.parametrize("damage", ["missing", "damaged", "other dimension", "other ids"])
def test_vectors_are_made_again_from_the_database(base, embeddings, damage):
    base.ingest([POEMS])
    before = base.search(QUESTION)
    base.close()
    file = base.folder / "vectors.faiss"
    other = FaissVectors.from_texts(["a", "b"], HashEmbeddings(8))
    {
        "missing": file.unlink,
        "damaged": lambda: file.write_bytes(file.read_bytes()[:-100]),
        "other dimension": lambda: _save_with_ids_of(base, file),
        "other ids": lambda: other.save(file),
    }[damage]()
    embeddings.embedded.clear()
    again = knowledge.open(base.folder, embeddings)
    assert again.search(QUESTION) == before
    assert embeddings.embedded == []
    saved = FaissVectors()
    assert saved.load(file) and saved.dimension == 512


def _save_with_ids_of(base: KnowledgeBase, file: Path) -> None:
    saved = FaissVectors()
    saved.load(file)
    ids = [str(id) for id in saved.ids()]
    FaissVectors.from_texts(["x"] * len(ids), HashEmbeddings(8), ids=ids).save(file)


def test_words_find_while_the_embedding_model_is_loaded(base, embeddings):
    base.ingest([POEMS])
    embeddings.loading = True
    embeddings.embed_query = embeddings.embed_documents = None  # whoever asked would have to wait
    found = base.search(QUESTION)
    assert (found[0].name, found[0].page) == (POEMS.name, PAGE)
    assert QUESTION[:4] in base.quote(QUESTION, found).text


def test_another_embedding_model_embeds_again_while_words_find(base):
    base.ingest([POEMS, LAW])
    base.close()
    other = HashEmbeddings(1024)
    again = knowledge.open(base.folder, other)
    assert other.embedded == [] and again.unfinished
    assert {document.state for document in again.documents()} == {"embedding"}
    assert again.search(QUESTION)[0].page == PAGE
    again.work()
    assert len(other.embedded) == sum(document.chunks for document in again.documents()) and not again.unfinished
    assert again.search(QUESTION)[0].score > 0
    again.close()
    other.embedded.clear()
    reopened = knowledge.open(base.folder, other)
    assert not reopened.unfinished and other.embedded == []


def test_the_old_model_answers_until_the_new_one_knows_everything(base, embeddings):
    base.ingest([POEMS, LAW])
    other = HashEmbeddings(1024)
    seen = []

    def progress(done: int, total: int, message: str) -> None:
        seen.append((done, total))
        assert base.search(QUESTION)[0].page == PAGE and base._dense.embeddings is embeddings

    base.use(other, progress=progress)
    assert seen == sorted(seen) and seen[-1][0] == seen[-1][1] == len(other.embedded)
    assert base._dense.embeddings is other and base.search(QUESTION)[0].page == PAGE
    assert base._database.rows("SELECT DISTINCT model FROM embeddings") == [(2,)]
    base.close()
    other.embedded.clear()
    assert not knowledge.open(base.folder, other).unfinished and other.embedded == []


def test_an_interrupted_change_of_model_leaves_the_old_one(base, embeddings):
    base.ingest([POEMS, LAW])

    def stop(done: int, total: int, message: str) -> None:
        raise KeyboardInterrupt

    other = HashEmbeddings(1024)
    with pytest.raises(KeyboardInterrupt):
        base.use(other, progress=stop)
    assert base.search(QUESTION)[0].page == PAGE and not base.unfinished
    first = len(other.embedded)
    base.use(other)
    assert len(other.embedded) == sum(document.chunks for document in base.documents()) > first > 0


def test_the_same_content_is_known(base, embeddings, tmp_path):
    base.ingest([POEMS])
    embeddings.embedded.clear()
    copy = shutil.copy(POEMS, tmp_path / "唐诗.pdf")
    same, twin = base.ingest([POEMS, copy])
    assert (same.state, same.reason) == ("known", None)
    assert twin.state == "known" and twin.pages == 6 and POEMS.name in twin.reason
    assert [document.name for document in base.documents()] == [POEMS.name]
    assert embeddings.embedded == []


@pytest.mark.parametrize("upload", [False, True])
def test_a_renamed_file_takes_its_new_name_and_costs_nothing(base, embeddings, tmp_path, upload):
    old = Path(shutil.copy(POEMS, tmp_path / "poems.pdf"))
    base.ingest([(old, "poems.pdf") if upload else old])
    assert base.search(QUESTION)[0].name == "poems.pdf"
    embeddings.embedded.clear()
    new = old.rename(tmp_path / "唐诗.pdf")
    (renamed,) = base.ingest([(new, "唐诗.pdf") if upload else new])
    assert renamed.state == "known" and "renamed" in renamed.reason
    assert [document.name for document in base.documents()] == ["唐诗.pdf"]
    assert base.search(QUESTION)[0].name == "唐诗.pdf" and embeddings.embedded == []


def test_the_same_name_with_other_content_is_another_document(base, tmp_path):
    first = write(tmp_path, "notes.txt", "The first version speaks of apples.")
    base.ingest([first])
    base.ingest([write(tmp_path, "notes.txt", "The second version speaks of pears.")])
    assert [(document.name, document.version) for document in base.documents()] == [("notes.txt", 1), ("notes.txt", 2)]
    assert base.remove("notes.txt") == 2


def test_one_bad_file_does_not_stop_the_batch(base, tmp_path):
    bad = [DATA / "pdf" / "bad_zero_bytes.pdf", tmp_path / "missing.pdf", tmp_path, write(tmp_path, "dots.md", "● ●")]
    results = base.ingest([bad[0], POEMS, *bad[1:], LAW])
    assert [result.state for result in results] == ["failed", "done", "failed", "failed", "failed", "done"]
    assert all(result.reason.startswith(result.name) for result in results if result.state == "failed")
    assert len(base.documents()) == 2
    failed = [file for file in base.status().files if file.state == "failed"]
    assert [file.name for file in failed] == [bad[0].name, "dots.md"] and failed[0].reason == results[0].reason


def test_names_are_data(base, tmp_path):
    upload = shutil.copy(LAW, tmp_path / "tmp123")
    names = ["../../著作权法 'Robert'); DROP TABLE documents;--.txt", "bad\udce9name.txt"]
    (result,) = base.ingest([(upload, names[0])])
    assert result.state == "done" and base.documents()[0].name == names[0]
    assert base.ingest([(upload, names[1])])[0].name == "bad?name.txt"
    assert base.remove(names[1]) == 1
    outside = {path.name for path in tmp_path.iterdir()}
    assert outside == {"tmp123", base.folder.name}


def test_composed_and_decomposed_names_are_one(base):
    base.ingest([(LAW, "re\u0301sume\u0301.txt")])
    assert base.remove("r\u00e9sum\u00e9.txt") == 1


def test_removing_leaves_no_trace(base, embeddings):
    base.ingest([POEMS, LAW])
    original = base.original(base.documents()[0].id)
    assert [path for path in base.folder.glob("knowledge.db*") if "离离原上草".encode() in path.read_bytes()]
    assert base.remove(POEMS.name) == 1
    assert base.remove(POEMS.name) == 0
    assert not original.exists()
    assert {passage.name for passage in base.search(QUESTION, k=50)} == {LAW.name}
    files = [path for path in base.folder.rglob("*") if path.is_file()]
    assert len(files) >= 3
    assert not [path for path in files if "离离原上草".encode() in path.read_bytes()]
    base.close()
    again = knowledge.open(base.folder, embeddings)
    assert {passage.name for passage in again.search(QUESTION, k=50)} == {LAW.name}
    assert again.ingest([POEMS])[0].state == "done"
    assert again.search(QUESTION)[0].page == PAGE


def test_progress_rises_to_the_end(base):
    seen = []
    base.ingest([POEMS, DATA / "pdf" / "bad_zero_bytes.pdf", LAW], lambda *report: seen.append(report))
    done = [report[0] for report in seen]
    assert done == sorted(done) and done[-1] == 300 and {report[1] for report in seen} == {300}
    assert len(seen) > 6 and LAW.name in seen[-1][2]


def test_what_progress_raises_cancels_what_is_not_finished(base):
    def stop_in_the_law(done: int, total: int, message: str) -> None:
        if message.startswith(LAW.name) and "embedded" in message:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        base.ingest([POEMS, LAW], stop_in_the_law)
    assert [(file.name, file.state) for file in base.status().files] == [(POEMS.name, "done"), (LAW.name, "cancelled")]
    assert not base.unfinished
    assert base.ingest([LAW])[0].state == "done"


def test_failing_storage_leaves_no_half_document(base, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", lambda *_: (_ for _ in ()).throw(OSError("No space left on device")))
        with pytest.raises(OSError, match="No space"):
            base.ingest([POEMS])
    assert base.documents() == [] and base.search(QUESTION) == []
    assert base.ingest([POEMS])[0].state == "done"


def test_threads_search_while_others_ingest_and_remove(base, tmp_path):
    base.ingest([POEMS])
    files = [write(tmp_path, f"{number}.txt", f"文件{number}说的是苹果。" * 40) for number in range(12)]
    failures, stop = [], threading.Event()

    def search():
        while not stop.is_set():
            if base.search(QUESTION)[0].page != PAGE:
                failures.append("search")

    def ingest(paths):
        if any(result.state == "failed" for result in base.ingest(paths)):
            failures.append("ingest")
        base.remove(paths[0].name)

    searchers = [threading.Thread(target=search) for _ in range(2)]
    writers = [threading.Thread(target=ingest, args=(files[start : start + 4],)) for start in (0, 4, 8)]
    for thread in searchers + writers:
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    for thread in searchers:
        thread.join()
    assert failures == [] and len(base.documents()) == 1 + 9
    ids = [id for (id,) in base._database.rows("SELECT id FROM chunks ORDER BY id")]
    assert np.array_equal(base._dense._store.ids(), ids)


def test_the_same_file_in_two_batches_is_embedded_once(base, embeddings):
    threads = [threading.Thread(target=base.ingest, args=([POEMS],)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (document,) = base.documents()
    assert len(embeddings.embedded) == document.chunks


class ForeignVectors(InMemoryVectorStore):
    """A store that somebody else wrote, with the one method beyond LangChain's interface that is asked for."""

    def add_embeddings(self, texts, embeddings, metadatas=None, ids=None):
        for text, vector, metadata, id in zip(texts, embeddings, metadatas, ids, strict=True):
            self.store[id] = {"id": id, "vector": vector, "text": text, "metadata": metadata}
        return ids


def test_vectors_may_live_elsewhere(tmp_path, embeddings):
    store = ForeignVectors(embeddings)
    base = knowledge.open(tmp_path / "kb", embeddings, store)
    base.ingest([POEMS, LAW])
    assert base.search(QUESTION)[0].page == PAGE and not (base.folder / "vectors.faiss").exists()
    base.remove(POEMS.name)
    assert {passage.name for passage in base.search(QUESTION)} == {LAW.name}
    base.close()
    other = HashEmbeddings(1024)
    again = knowledge.open(base.folder, other, store)
    assert store.store == {}
    again.work()
    assert {len(entry["vector"]) for entry in store.store.values()} == {1024} and again.search("著作权")[0].score > 0


def test_bases_that_cannot_be_opened_say_so(base, embeddings):
    base.close()
    file = base.folder / "knowledge.db"
    connection = sqlite3.connect(file)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(KnowledgeBaseError, match="newer version"):
        knowledge.open(base.folder, embeddings)
    file.write_bytes(b"This is not SQLite. " * 100)
    with pytest.raises(KnowledgeBaseError, match="not a readable knowledge base"):
        knowledge.open(base.folder, embeddings)


def test_the_retriever_is_langchains(base):
    base.ingest([POEMS, LAW])
    documents = base.as_retriever(k=2).invoke(QUESTION)
    best = base.search(QUESTION, k=2)
    assert [document.page_content for document in documents] == [passage.text for passage in best]
    assert documents[0].metadata == {"source": POEMS.name, "page": PAGE, "score": best[0].score}
    assert base.as_retriever().invoke("著作权属于作者")[0].metadata["page"] is None


def test_importing_knowledge_is_cheap():
    heavy = "torch", "transformers", "sentence_transformers", "faiss", "pypdfium2", "docx", "pptx", "openpyxl", "lxml"
    script = f"import sys, knowledge; print([name for name in {heavy} if name in sys.modules])"
    output = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


def test_the_package_offers_its_names():
    assert issubclass(DocumentError, Exception) and Passage("a", 1, 0.5, "b", "c").page == 1
