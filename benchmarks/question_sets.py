"""Question sets, LANGUAGE_passages.jsonl beside LANGUAGE_questions.jsonl, and knowledge bases made of them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from langchain_core.embeddings import Embeddings

import knowledge
from knowledge import KnowledgeBase
from knowledge.embedder import LocalEmbeddings


@dataclass(frozen=True)
class QuestionSet:
    """Passages and questions of one language, as dictionaries: id, title, text, source; id, question, gold, source."""

    language: str
    passages: list[dict[str, Any]]
    questions: list[dict[str, Any]]


def read(folder: Path, language: str) -> QuestionSet:
    return QuestionSet(
        language, _lines(folder / f"{language}_passages.jsonl"), _lines(folder / f"{language}_questions.jsonl")
    )


def cross_lingual(folder: Path) -> list[dict[str, Any]]:
    """Questions whose gold passage is in the other language; `twin` is the same passage in the question's own."""
    questions = _lines(folder / "crosslingual_questions.jsonl")
    return [question | {"twin": [_twin(gold) for gold in question["gold"]]} for question in questions]


def _twin(passage: str) -> str:
    source, language, rest = passage.split("-", 2)
    return f"{source}-{ {'zh': 'en', 'en': 'zh'}[language] }-{rest}"


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def bases(folder: Path, scratch: Path, embeddings: LocalEmbeddings) -> dict[str, KnowledgeBase]:
    """Knowledge bases "zh", "en" and "both" with all passages; made in `scratch` by the first run, which takes long."""
    passages = {language: read(folder, language).passages for language in ("zh", "en")}
    passages["both"] = passages["zh"] + passages["en"]
    memory = Remembering(embeddings)
    made = {}
    for name, those in passages.items():
        made[name] = knowledge.open(scratch / name, memory)
        ingest(made[name], those, scratch / "files")
    return made


class Remembering(Embeddings):
    """Embeddings that embed no passage twice."""

    def __init__(self, embeddings: LocalEmbeddings):
        self.identity = embeddings.identity
        self.count_tokens = embeddings.count_tokens
        self._embeddings = embeddings
        self._known: dict[str, list[float]] = {}

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        self._known |= zip(new, self._embeddings.embed_documents(new), strict=True)
        return [self._known[text] for text in texts]

    def embed_query(self, text: str) -> list[float]:
        return self._embeddings.embed_query(text)


def write(passages: Iterable[dict[str, Any]], folder: Path) -> list[Path]:
    """Each passage as a Markdown file of its id, its title as the heading."""
    folder.mkdir(parents=True, exist_ok=True)
    return [_write(passage, folder / f"{passage['id']}.md") for passage in passages]


def _write(passage: dict[str, Any], path: Path) -> Path:
    title = f"# {passage['title']}\n\n" if passage["title"] else ""
    path.write_text(f"{title}{passage['text']}\n", encoding="utf-8")
    return path


def ingest(base: KnowledgeBase, passages: Iterable[dict[str, Any]], folder: Path) -> None:
    """Put passages into `base`, unless it has them: an earlier run may have been stopped."""
    held = {Path(document.name).stem for document in base.documents()}
    missing = [passage for passage in passages if passage["id"] not in held]
    if missing or base.unfinished:
        base.ingest(write(missing, folder))
