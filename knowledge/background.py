"""What an embedding model's similarities mean: measured on a few questions and passages that come with the app.

Models put questions and passages of one language close together, whatever they say (multilingual-e5 so much that
another language is never found), and each has its own idea of which cosine is high. Both are habits of the model, not
of the documents, so they are measured once, on unrelated topics in Chinese and in English, and taken out.
"""

import importlib.resources
import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from langchain_core.embeddings import Embeddings

from knowledge.vectors import unit_rows

LANGUAGES = ("zh", "other")
_FIELDS = {"zh": "zh", "other": "en"}
# Where a question is no nearer to its own answer than this, in standard deviations of wrong ones, a model does not
# know the language.
_TELLING = 2.0
_LEAST_SCALE = 0.05


@dataclass(frozen=True)
class Background:
    """questions, passages: mean vectors by language, float32 [dimension]. wrong, right: mean similarity of a question
    with passages on other topics and with its own, by (language asked in, language of the passage). spread: the
    standard deviation of the former."""

    questions: Mapping[str, np.ndarray]
    passages: Mapping[str, np.ndarray]
    wrong: Mapping[tuple[str, str], float]
    right: Mapping[tuple[str, str], float]
    spread: Mapping[tuple[str, str], float]

    @classmethod
    def measure(cls, embeddings: Embeddings) -> "Background":
        """Embeds some hundred short texts: a few seconds on a CPU."""
        texts = {language: [row[_FIELDS[language]] for row in _topics()] for language in LANGUAGES}
        questions = {
            name: unit_rows([embeddings.embed_query(text) for text, _ in rows]) for name, rows in texts.items()
        }
        passages = {
            name: unit_rows(embeddings.embed_documents([text for _, text in rows])) for name, rows in texts.items()
        }
        means = [{name: rows.mean(0) for name, rows in part.items()} for part in (questions, passages)]
        wrong, right, spread = {}, {}, {}
        for asked in LANGUAGES:
            for held in LANGUAGES:
                # [topics, topics]: a question beside every passage
                similar = _centred(questions[asked], means[0][asked]) @ _centred(passages[held], means[1][held]).T
                others = similar[~np.eye(len(similar), dtype=bool)]
                right[asked, held] = float(similar.diagonal().mean())
                wrong[asked, held], spread[asked, held] = float(others.mean()), float(others.std())
        return cls(*means, wrong, right, spread)

    def knows(self, asked: str, held: str) -> bool:
        """Whether the model finds passages in the language `held` for questions in `asked`."""
        return self.right[asked, held] - self.wrong[asked, held] > _TELLING * self.spread[asked, held]

    def directions(self, query: np.ndarray, asked: str) -> np.ndarray:
        """What `nearness` needs the inner products of vectors with, float32 [1 + languages, dimension]."""
        return np.stack([_centred(query, self.questions[asked])[0], *(self.passages[name] for name in LANGUAGES)])

    def nearness(self, directions: np.ndarray, products: np.ndarray, asked: str, held: str) -> np.ndarray:
        """How near passages in the language `held` are to a question: 0 as a wrong one, 1 as the right one usually is.

        products: of their unit vectors with `directions`, float32 [n, 1 + languages]. Returns float64 [n].
        """
        mean = self.passages[held]
        along = products[:, 1 + LANGUAGES.index(held)]
        # (v - mean) / |v - mean| times the question's direction, without making v - mean
        lengths = np.sqrt(np.maximum(1 - 2 * along + mean @ mean, 1e-6))
        similar = (products[:, 0] - directions[0] @ mean) / lengths
        scale = max(self.right[asked, held] - self.wrong[asked, held], _LEAST_SCALE)
        return ((similar - self.wrong[asked, held]) / scale).astype(float)

    def to_json(self) -> str:
        """For a later `from_json`: measuring takes seconds."""
        vectors = [{name: mean.tolist() for name, mean in part.items()} for part in (self.questions, self.passages)]
        scales = [[*pair, *(part[pair] for part in (self.wrong, self.right, self.spread))] for pair in self.wrong]
        return json.dumps([*vectors, scales])

    @classmethod
    def from_json(cls, text: str) -> "Background":
        questions, passages, scales = json.loads(text)
        vectors = [{name: np.array(mean, np.float32) for name, mean in part.items()} for part in (questions, passages)]
        numbers = [{(asked, held): row[at] for asked, held, *row in scales} for at in range(3)]
        return cls(*vectors, *numbers)


def _centred(vectors: np.ndarray, mean: np.ndarray) -> np.ndarray:
    return unit_rows(np.atleast_2d(vectors) - mean)


def _topics() -> list[dict[str, list[str]]]:
    """The same question and passage in each language, one topic a row."""
    file = importlib.resources.files("knowledge") / "background.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
