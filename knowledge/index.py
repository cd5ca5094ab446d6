"""A knowledge base: files go in, passages come out. SQLite holds the truth, FAISS what can be made from it again."""

import functools
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore

from knowledge import boxes
from knowledge.cite import Citer
from knowledge.context import Context, context
from knowledge.database import UNFINISHED, Database, StoredDocument
from knowledge.dense import Dense
from knowledge.documents import READERS, suffix_of
from knowledge.ingest import Ingested, Progress, Queue, Source, Status, clean_name, name_of
from knowledge.keywords import Corpus
from knowledge.pages import Page
from knowledge.quote import Quote, quote
from knowledge.retrieval import (
    EVERYWHERE,
    UNKNOWN,
    Findings,
    Meaning,
    Passage,
    Ranked,
    Rerank,
    Retrieval,
    Where,
    language,
    meaning,
)
from knowledge.retriever import PassageRetriever
from knowledge.splitter import HEADING_SEPARATOR
from knowledge.vectors import unit_rows

DATABASE_NAME = "knowledge.db"


def open(
    folder: str | os.PathLike,
    embeddings: Embeddings,
    vectors: VectorStore | None = None,
    rerank: Rerank | None = None,
) -> "KnowledgeBase":
    """Open the knowledge base in `folder`, which is made if it does not exist.

    vectors: a LangChain store that also has `add_embeddings` (FAISS's and PGVector's do), for vectors kept elsewhere.
    rerank: scores passages for a question, as `knowledge.reranker.LocalReranker` does; the best ones go by its order.
    What a kill interrupted, and what another embedding model than last time's has to embed, is `unfinished`, and goes
    on with `work` or the next `ingest`. Raises KnowledgeBaseError when what lies in the folder can't be opened.
    """
    return KnowledgeBase(Path(folder), embeddings, vectors, rerank)


class KnowledgeBase:
    """Documents to search. Every method may be called from any thread; searching goes on while files are ingested."""

    def __init__(
        self,
        folder: Path,
        embeddings: Embeddings,
        vectors: VectorStore | None = None,
        rerank: Rerank | None = None,
    ):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = threading.RLock()  # over the vectors
        self._database = Database(folder / DATABASE_NAME)
        self._retrieval = Retrieval(self._database, rerank)
        self._dense = Dense(self._database, embeddings, folder / "vectors.faiss", vectors)
        self._dense.save()
        self._database.use_model(self._dense.model)
        self._queue = Queue(folder, self._database, lambda: self._dense, self._lock)

    @property
    def name(self) -> str:
        return self.folder.name

    def close(self) -> None:
        self._database.close()

    def end(self) -> None:
        """Stop all work on the files and close: the folder can be removed then. Nothing can be asked any more."""
        self._queue.end()
        self.close()

    # Reading

    def documents(self) -> list[StoredDocument]:
        """Those that can be searched, in the order in which they came."""
        return [document for document in self._database.documents() if document.chunks]

    def status(self) -> Status:
        """All files with their states, those that wait or failed too, and how far embedding is."""
        return self._queue.status()

    def original(self, document_id: str) -> Path:
        """The copy of the file that was ingested. Raises LookupError for an unknown document."""
        return self._queue.original(self._known(document_id))

    def pages(self, document_id: str) -> list[Page]:
        """What was read of a document. Raises LookupError for an unknown document."""
        return self._database.pages(self._known(document_id).id)

    def draw(self, document_id: str, page: int, scale: float) -> bytes:
        """A page of a PDF (from 1) as PNG, `scale` dots a point. Raises LookupError and DocumentError.

        A locked file can be shown only by the process to which its password was given."""
        document, password = self._known(document_id), self._queue.password(document_id)
        return boxes.draw(self._queue.original(document).read_bytes(), page, scale, password, document.name)

    def boxes(self, document_id: str, page: int, text: str) -> list[boxes.Box]:
        """Where `text` stands on a page of a PDF, as `knowledge.boxes.boxes` says. Raises as `draw` does."""
        document, password = self._known(document_id), self._queue.password(document_id)
        return boxes.boxes(self._queue.original(document).read_bytes(), page, text, password, document.name)

    def context(self, document_id: str, page: int | None, text: str) -> Context | None:
        """`text` where it stands in what was read of a document; None if it is not there. Raises LookupError."""
        found = context(self.pages(document_id), page, text)
        if found is None:
            return None
        headings = self._database.headings_over(document_id, found.page, found.passage)
        return replace(found, headings=tuple(headings.split(HEADING_SEPARATOR)) if headings else ())

    def citer(self, passages: Sequence[Passage]) -> Citer:
        """What cites an answer from these passages; it may take seconds to get the embedding model ready."""
        return self.citer_with(passages, self.vectors_of(passages))

    def citer_with(self, passages: Sequence[Passage], known: Mapping[str, np.ndarray]) -> Citer:
        """The same, with the vectors that are known of passages, by their text."""
        return Citer([passage.text for passage in passages], self._dense.embeddings, self._dense.background, known)

    def vectors_of(self, passages: Sequence[Passage]) -> dict[str, np.ndarray]:
        """By their text the vectors of those passages that are embedded, float32 [dimension]."""
        found = ((passage.text, self._vector_of(passage)) for passage in passages)
        return {text: vector for text, vector in found if vector is not None}

    def _vector_of(self, passage: Passage) -> np.ndarray | None:
        """The mean of the vectors of the chunks that were joined into a passage, if they are embedded."""
        chunks = self._database.chunks_within(passage.document, passage.page, passage.text)
        vectors = self._database.embeddings(self._dense.model, chunks)
        return np.mean(list(vectors.values()), axis=0) if chunks and len(vectors) == len(chunks) else None

    def _known(self, document_id: str) -> StoredDocument:
        document = self._database.document(document_id)
        if document is None:
            raise LookupError(f"knowledge base {self.name} has no document {document_id}")
        return document

    def find(self, question: str, k: int = 5, where: Where = EVERYWHERE, method: str = "both") -> Findings:
        """The `k` passages that answer `question` best, by meaning and by words, and whether they are likely to.

        method: "both", or one of them alone: "words", "meaning".
        """
        if not question.strip():
            return Findings()
        return self._retrieval.find(question, k, where, self._meaning(question), method)

    def rank(self, question: str, where: Where = EVERYWHERE, corpus: Corpus | None = None) -> Ranked:
        """What `find` chooses from, for measuring and for fitting its weights.

        corpus: what weighs the question's words, where other bases are asked too."""
        return self._retrieval.rank(question, where, self._meaning(question), corpus)

    def corpus(self, question: str) -> Corpus:
        """What weighs the words of `question` in this base."""
        return self._retrieval.corpus(question)

    @property
    def rerank(self) -> Rerank | None:
        """What puts passages in order, if anything does."""
        return self._retrieval.rerank

    def _meaning(self, question: str) -> Meaning:
        dense, asked = self._dense, language(question)
        with self._lock:
            filled = dense.filled
        if not filled or getattr(dense.embeddings, "loading", False):
            return UNKNOWN  # words find what was just read, without waiting for the embedding model to be loaded
        query = unit_rows(dense.embeddings.embed_query(question))[0]
        directions = dense.background.directions(query, asked)
        with self._lock:
            found = dense.products(query, directions)
        return meaning(dense.background, asked, self._retrieval.chinese(), directions, found)

    def search(self, question: str, k: int = 5, where: Where = EVERYWHERE) -> list[Passage]:
        """The `k` passages that answer `question` best, best first."""
        return list(self.find(question, k, where).passages)

    def quote(self, question: str, passages: Sequence[Passage]) -> Quote | None:
        """The one or two sentences of found passages, best first, that answer `question` best; None without any."""
        return quote(question, passages, self._dense.embeddings)

    def as_retriever(self, k: int = 5, where: Where = EVERYWHERE) -> PassageRetriever:
        return PassageRetriever(search=functools.partial(self.search, where=where), k=k)

    # Writing

    def ingest(
        self, paths: Iterable[Source], progress: Progress | None = None, password: str | None = None
    ) -> list[Ingested]:
        """Add files, each a path or (path, name) where the name is what the user calls it; one result for each.

        Files are taken in at once, as copies, then all of them are read, then embedded. A bad one is reported and the
        others go on; a kill or an error leaves the rest to the next `work` or `ingest`.
        progress(done, total, message): hundredths of a file done, of all files together. It runs in this thread, and
        what it raises cancels the files that are not finished.
        password: opens those of the files that need one; it is not kept.
        """
        sources = list(paths)
        taken = self.add(sources, password)
        ids = [file.id for file in taken if isinstance(file, StoredDocument)]
        self._work(ids, [None if isinstance(file, Ingested) else file.id for file in taken], progress)
        return [
            file if isinstance(file, Ingested) else self._outcome(file.id, source, password)
            for source, file in zip(sources, taken, strict=True)
        ]

    def add(self, paths: Iterable[Source], password: str | None = None) -> list[StoredDocument | Ingested]:
        """Take files in, which `work` reads: of each the document that it is, or what there is to say of it already."""
        return [self._queue.add(path, password) for path in paths]

    def files(self, document_ids: Iterable[str]) -> list[StoredDocument]:
        """Those of the documents that there are, read or not."""
        return [file for id in document_ids if (file := self._database.document(id)) is not None]

    def hurry(self, document_ids: Iterable[str]) -> None:
        """Read these files before others: somebody waits for them."""
        self._queue.hurry(document_ids)

    def _outcome(self, id: str, source: Source, password: str | None) -> Ingested:
        outcome = self._queue.outcome(id, name_of(source))
        document = self._database.document(id)
        if outcome.state == "failed" and document is not None and document.name != outcome.name:
            # The same content was tried under another name, which may have been a wrong one.
            return self.ingest([source], password=password)[0]
        return outcome

    def ingest_folder(self, folder: str | os.PathLike, progress: Progress | None = None) -> list[Ingested]:
        """Make the base follow a folder: files that are new or changed go in, what came from files that are gone goes.

        Results for new, changed and failed files; those that are as they were when last seen are not read. Raises
        NotADirectoryError if there is no such folder, and removes nothing where a folder has no readable file left.
        """
        folder = Path(folder).absolute()
        if not folder.is_dir():
            raise NotADirectoryError(f"{folder} is not a folder; check the path")
        files = list(readable_files(folder))
        before = [document for document in self._database.documents() if _lies_in(document, folder)]
        seen = {(document.path, document.size, document.modified) for document in before if document.state == "done"}
        new = [file for file in files if (str(file), *_stamp(file)) not in seen]
        results = self.ingest(new, progress)
        present = set(map(str, files))
        for document in before if files else ():
            now = self._database.document(document.id)
            if now is not None and now.path == document.path and self._is_gone(now, present):
                self._remove([now])
        return results

    def _is_gone(self, document: StoredDocument, present: set[str]) -> bool:
        """Whether the file has gone, or holds another document that has been read by now."""
        newer = self._database.documents_from(document.path)[-1]
        return document.path not in present or (newer.id != document.id and newer.state == "done")

    @property
    def unfinished(self) -> bool:
        """Whether there are files to read or to embed."""
        return self._queue.unfinished()

    def work(self, progress: Progress | None = None) -> None:
        """Carry on with all files that are not finished; what `progress` raises ends that, and cancels nothing."""
        self._work(None, list(self._database.states(UNFINISHED)), progress, cancelling=False)

    def use(self, embeddings: Embeddings, vectors: VectorStore | None = None, progress: Progress | None = None) -> None:
        """Change to another embedding model. All passages are embedded anew, which takes its time: until that is done
        the model before answers, and if it is interrupted it stays.

        vectors: where the new model's are kept, as in `open`. progress(done, total, message): passages.
        """
        fresh = Dense(self._database, embeddings, self.folder / "vectors.faiss", vectors, fresh=True)

        def tell(message: str, _: object) -> None:
            if progress is not None:
                left, files = self._database.count_without_embedding(fresh.model), self._queue.status().total
                progress(files - left, files, message)

        def change() -> None:
            with self._lock:
                self._dense = fresh
                self._database.use_model(fresh.model)
                self._database.remove_other_models(fresh.model)
                fresh.save()

        self._queue.embed_all(fresh, tell, change)

    def cancel(self, document_ids: Iterable[str] | None = None) -> None:
        """Stop with these files or with all, where they are not finished. What was read of them stays searchable."""
        if document_ids is None:
            document_ids = list(self._database.states(UNFINISHED))
        self._queue.cancel(document_ids)

    def resume(self, document_ids: Iterable[str], password: str | None = None) -> None:
        """Let `work` go on with files that were cancelled, and try those again that failed."""
        self._queue.resume(document_ids, password)

    def read_again(self, document_ids: Iterable[str]) -> None:
        """Let `work` read these files anew, as when one failed, or what reads it has become better. A document stays
        the one that it is, and what was read of it before is found until then."""
        self._queue.read_again(document_ids)

    def remove(self, name: str) -> int:
        """Remove every document of this name with all that was made of it. Returns how many there were."""
        documents = self._database.documents_named(clean_name(name))
        self._remove(documents)
        return len(documents)

    def remove_document(self, document_id: str) -> None:
        """Remove one document, such as one version of a file. Raises LookupError for an unknown one."""
        self._remove([self._known(document_id)])

    def _remove(self, documents: Iterable[StoredDocument]) -> None:
        documents = list(documents)
        for document in documents:
            self._queue.remove(document)
        if documents:
            self._database.forget()
            with self._lock:
                self._dense.save()

    def _work(
        self, ids: list[str] | None, files: list[str | None], progress: Progress | None, cancelling: bool = True
    ) -> None:
        """files: the document of each file that progress is told of, None for one that is through already."""
        total = 100 * max(len(files), 1)
        reading: dict[str, float] = {}
        last = ""

        def tell(message: str, read: tuple[str, float] | None) -> None:
            nonlocal last
            if progress is None:
                return
            last = message or last
            if read is not None:
                reading[read[0]] = read[1]
            shares = self._queue.shares(reading)
            done = round(100 * sum(shares.get(id, 1.0) for id in files))
            try:
                progress(done, total, last)
            except BaseException:
                if cancelling:
                    self._queue.cancel(id for id in files if id is not None)
                raise

        self._queue.work(tell, ids)
        tell("", None)


def readable_files(folder: Path) -> Iterator[Path]:
    """The files deep down in a folder that can be read, in order, without hidden ones and Office's lock files."""
    for file in sorted(folder.rglob("*")):
        hidden = any(part.startswith((".", "~$")) for part in file.relative_to(folder).parts)
        if suffix_of(file.name) in READERS and not hidden and file.is_file():
            yield file


def _lies_in(document: StoredDocument, folder: Path) -> bool:
    return document.path is not None and Path(document.path).is_relative_to(folder)


def _stamp(file: Path) -> tuple[int, int]:
    """Size in bytes, and the time of the last change."""
    try:
        found = file.stat()
    except OSError:
        return 0, 0
    return found.st_size, found.st_mtime_ns
