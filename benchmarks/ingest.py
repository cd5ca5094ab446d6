"""Files to passages: this repository's knowledge base beside the default pipeline of LangChain's tutorials.

That pipeline is PyPDFLoader (pypdf's text, a page at a time), RecursiveCharacterTextSplitter (1,000 characters, 200 of
them shared) and plain FAISS over the embeddings, which here are those of the same model. Both take the same PDFs.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import knowledge
from chatapp import checkpoints
from knowledge.documents import load
from knowledge.embedder import LocalEmbeddings
from knowledge.splitter import split
from knowledge.vectors import FaissVectors

from .results import Result
from .settings import Settings

PEER = "PyPDFLoader + RecursiveCharacterTextSplitter + FAISS"
FOLDER = Path(__file__).parent.parent / "tests" / "data" / "pdf"
FILES = ("en_tracemonkey_two_column.pdf", "zh_modelscope_qa.pdf", "zh_poems.pdf")
LARGE, QUESTION = 500, "How are nested loops traced?"
SENTENCE_ENDS = tuple("。！？；.!?;:：”’）)")


def run(settings: Settings) -> Iterator[Result]:
    embeddings = LocalEmbeddings(checkpoints.ensure_embedder(settings.data))
    embeddings.embed_documents(["warm"])
    embeddings.count_tokens("warm")
    files = [FOLDER / name for name in FILES]
    pages = sum(len(load(file)) for file in files)

    reading, ours = _timed(
        lambda: [chunk.text for file in files for chunk in split(load(file), embeddings.count_tokens)]
    )
    peer_reading, theirs = _timed(lambda: peer_chunks(files))
    yield Result.more_is_better("reading and splitting", pages / reading, pages / peer_reading, PEER, "pages/s")
    yield Result.more_is_better("chunks that end with a sentence", _whole(ours), _whole(theirs), PEER, "of all chunks")
    searchable, finished = _ingest(files, embeddings)
    embedding, _ = _timed(lambda: FaissVectors.from_texts(theirs, embeddings))
    peer_finished = peer_reading + embedding
    yield Result.less_is_better("until all files can be searched", searchable, peer_finished, PEER, "s")
    yield Result.less_is_better("until everything is embedded", finished, peer_finished, PEER, "s")
    yield from large(embeddings)


def large(embeddings: LocalEmbeddings) -> Iterator[Result]:
    """How long a book keeps its reader waiting. The peer can't be asked before all of it is embedded: no figure."""
    with tempfile.TemporaryDirectory() as folder:
        book = Path(folder, "book.pdf")
        book.write_bytes(repeated(FOLDER / FILES[0], LARGE))
        base = knowledge.open(Path(folder, "kb"), embeddings)
        found: dict[str, float] = {}

        def ask(done: int, total: int, message: str) -> None:
            stage = "read" if message.endswith(": read") else "begun to be embedded" if "embedded" in message else None
            if stage and stage not in found:
                found[stage], _ = _timed(lambda: base.search(QUESTION))
                found[f"until {stage}"] = time.perf_counter() - start
            if len(found) == 4:
                raise _Enough

        start = time.perf_counter()
        with contextlib.suppress(_Enough):
            base.ingest([book], ask)
        base.close()
    waited = found["until read"] - found["read"]
    yield Result.less_is_better(f"{LARGE} pages, until words find them", waited, None, PEER, "s", "15 s at most")
    for stage in ("read", "begun to be embedded"):
        title = f"{LARGE} pages, first search once they are {stage}"
        yield Result.less_is_better(title, 1000 * found[stage], None, PEER, "ms", "1,000 ms at most")


class _Enough(Exception):
    """Everything has been measured; embedding the rest would take many minutes."""


def repeated(file: Path, pages: int) -> bytes:
    """A PDF of so many pages: those of `file`, again and again."""
    import pypdf

    source, writer = pypdf.PdfReader(file), pypdf.PdfWriter()
    for number in range(pages):
        writer.add_page(source.pages[number % len(source.pages)])
    book = io.BytesIO()
    writer.write(book)
    return book.getvalue()


def peer_chunks(files: Sequence[Path]) -> list[str]:
    """The texts that the default pipeline embeds."""
    import pypdf
    from langchain_text_splitters import RecursiveCharacterTextSplitter

    texts = [page.extract_text() for file in files for page in pypdf.PdfReader(file).pages]
    return RecursiveCharacterTextSplitter(chunk_size=1000, chunk_overlap=200).split_text("\n\n".join(texts))


def _ingest(files: Sequence[Path], embeddings: LocalEmbeddings) -> tuple[float, float]:
    """Seconds until words find everything that was read, and until it is embedded."""
    moments: list[float] = []

    def progress(done: int, total: int, message: str) -> None:
        if message.endswith(": read"):
            moments.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        base = knowledge.open(folder, embeddings)
        start = time.perf_counter()
        base.ingest(files, progress)
        finished = time.perf_counter() - start
        base.close()
    return moments[-1] - start, finished


def _whole(chunks: Sequence[str]) -> float:
    return sum(chunk.rstrip().endswith(SENTENCE_ENDS) for chunk in chunks) / len(chunks)


def _timed(work):
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result
