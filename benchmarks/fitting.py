"""The command line that the programs share which fit weights."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import platformdirs

from chatapp import checkpoints, settings
from knowledge import KnowledgeBase
from knowledge.embedder import LocalEmbeddings

from . import question_sets


def parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """With --data and --scratch."""
    made = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
    made.add_argument("--data", type=Path, default=settings.default_data_folder())
    scratch = platformdirs.user_cache_path("quatrain", appauthor=False) / "benchmarks"
    made.add_argument("--scratch", type=Path, default=scratch, help="where knowledge bases and embeddings are kept")
    return made


def embedder(options: argparse.Namespace) -> LocalEmbeddings:
    return LocalEmbeddings(checkpoints.ensure_embedder(options.data))


def question_bases(name: str, description: str | None) -> tuple[Path, LocalEmbeddings, Mapping[str, KnowledgeBase]]:
    """The folder of question sets that was named, the embedding model, and the sets' knowledge bases by language."""
    asking = parser(name, description)
    asking.add_argument("questions", type=Path, help="folder of the question sets")
    options = asking.parse_args()
    embeddings = embedder(options)
    return (
        options.questions,
        embeddings,
        question_sets.bases(options.questions, options.scratch / "questions", embeddings),
    )
