"""Files to passages: this repository's knowledge base beside the default pipeline of LangChain's tutorials.

That pipeline is PyPDFLoader (pypdf's text, a page at a time), RecursiveCharacterTextSplitter (1,000 characters, 200 of
them shared) and plain FAISS over the embeddings, which here are those of the same model. Both take the same PDFs.
"""

from __future__ import annotations

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
