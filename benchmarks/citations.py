"""Citations: sentences of answers, right and changed, held against passages of which one is theirs, or none.

The peer cites the passage that shares most words with a sentence. Needs the question sets in QUATRAIN_TEST_ASSETS;
docs/citations.md says where the sentences come from. The first run embeds 550 passages, which takes minutes.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from langchain_core.embeddings import Embeddings

from chatapp import checkpoints
from knowledge import terms
from knowledge.background import Background
from knowledge.cite import Citer
from knowledge.embedder import LocalEmbeddings

from . import question_sets
from .results import Result
from .settings import Settings

SENTENCES = Path(__file__).parents[1] / "tests" / "data" / "alignment.jsonl"
MORE_SENTENCES = SENTENCES.with_name("alignment_more.jsonl")
OTHER_SENTENCES = SENTENCES.with_name("alignment_other.jsonl")  #: another author's
AUTHORS_SENTENCES = SENTENCES.with_name("alignment_authors.jsonl")  #: five more authors'
BLIND_SENTENCES = SENTENCES.with_name("alignment_blind.jsonl")  #: the rest, and a seventh's: not for fitting
MORE_PASSAGES = SENTENCES.with_name("alignment_passages.jsonl")
FITTED = (SENTENCES, MORE_SENTENCES, OTHER_SENTENCES, AUTHORS_SENTENCES)
HALVES = ("fit", "held-out", "more", "other author", *(f"author {n}" for n in (1, 2, 4, 5, 6)), "blind", "blind 2")
CHANGED = ("number", "name", "negation")
CANDIDATES = 5  #: passages beside a sentence
TIMED = 20  #: sentences
PEER = "most words shared"


class Case(NamedTuple):
    """A sentence with its candidates. gold: the number of the passage that supports it, counted from 1, if one does.
    base: of the passage that it was made from; 0 if that is not among them. article: in which that stands."""

    kind: str
    half: str
    sentence: str
    passages: list[str]
    gold: int | None
    base: int
    article: str


def run(settings: Settings) -> Iterator[Result]:
    embeddings = LocalEmbeddings(checkpoints.ensure_embedder(settings.data))
    found = cases(*FITTED, BLIND_SENTENCES)
    kept = Kept(embeddings, settings.scratch / "citations.npz")
    background = Background.measure(embeddings)
    cited = [Citer(case.passages, kept, background).cite(case.sentence).passages for case in found]
    kept.save()
    by_words = [[most_shared(case)] for case in found]
    for half in HALVES:
        chosen = [number for number, case in enumerate(found) if case.half == half]
        ours, peer = ({key: values for key, values in figures(found, each, chosen)} for each in (cited, by_words))
        for key, value in ours.items():
            yield Result.more_is_better(f"cite {half} {key}", value, peer[key], PEER, "share")
    yield from speed(found, embeddings, background)


def cases(*files: Path) -> list[Case]:
    """Raises KeyError where QUATRAIN_TEST_ASSETS does not say where the question sets are."""
    sets = Path(os.environ["QUATRAIN_TEST_ASSETS"]) / "qa"
    texts = {row["id"]: row["text"] for language in ("zh", "en") for row in question_sets.read(sets, language).passages}
    texts |= {row["id"]: row["text"] for row in _rows(MORE_PASSAGES)}
    return [_case(row, texts) for path in files for row in _rows(path)]


def _rows(path: Path) -> Iterator[dict]:
    return (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())


def _case(row: dict, texts: dict[str, str]) -> Case:
    ids = row["passages"]
    gold = None if row["gold"] is None else ids.index(row["gold"]) + 1
    passages = [texts[id] for id in ids]
    return Case(
        row["kind"], row["half"], row["sentence"], passages, gold, ids.index(row["base"]) + 1, _article(row["base"])
    )


def _article(passage: str) -> str:
    """What the ids of an article's passages, and of their translations, share: xquad-zh-36-4 is of xquad-36."""
    return re.sub(r"-c?\d{1,3}$", "", re.sub("-(?:zh|en)(?=-)", "", passage))


def unrelated(found: Sequence[Case]) -> list[Case]:
    """Each sentence beside as many passages of its language that have nothing to do with it."""
    pick = random.Random(1)
    beside: dict[str, set[str]] = defaultdict(set)
    for case in found:
        beside[case.article].update(case.passages)
    passages = list(dict.fromkeys(passage for case in found for passage in case.passages))
    return [case._replace(**_beside_others(case, passages, beside[case.article], pick)) for case in found]


def _beside_others(case: Case, passages: Sequence[str], beside: set[str], pick: random.Random) -> dict[str, object]:
    chinese = terms.is_chinese(case.sentence)
    others = [one for one in passages if one not in beside and terms.is_chinese(one) is chinese]
    return {
        "kind": "unrelated",
        "half": "unrelated",
        "passages": pick.sample(others, CANDIDATES),
        "gold": None,
        "base": 0,
    }


def figures(
    found: Sequence[Case], cited: Sequence[Sequence[int]], chosen: Sequence[int]
) -> Iterator[tuple[str, float]]:
    """Of the chosen cases: precision and recall of the cited passage, how many changed sentences are not cited, and the
    share of each kind that is right."""
    right: dict[str, list[bool]] = defaultdict(list)
    for number in chosen:
        wanted = [] if found[number].gold is None else [found[number].gold]
        right[found[number].kind].append(list(cited[number][:1]) == wanted)
    hits = [found[number].gold in cited[number] for number in chosen if found[number].gold is not None]
    if hits:
        yield "precision", sum(hits) / max(sum(bool(cited[number]) for number in chosen), 1)
        yield "recall", sum(hits) / len(hits)
        yield "changed ones refused", statistics.fmean(mark for kind in CHANGED for mark in right[kind])
    for kind, marks in right.items():
        yield kind, statistics.fmean(marks)


def most_shared(case: Case) -> int:
    said = set(terms.terms(case.sentence))
    shared = [len(said & set(terms.terms(passage))) for passage in case.passages]
    return int(np.argmax(shared)) + 1


class Kept(Embeddings):
    """Embeddings that are kept in a file from run to run."""

    def __init__(self, embeddings: Embeddings, path: Path):
        self._embeddings, self._path = embeddings, path
        self._known = dict(np.load(path)) if path.is_file() else {}

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [
            self._of(f"passage {text}", lambda text=text: self._embeddings.embed_documents([text])[0]) for text in texts
        ]

    def embed_query(self, text: str) -> list[float]:
        return self._of(f"query {text}", lambda: self._embeddings.embed_query(text))

    def _of(self, key: str, make: Callable[[], list[float]]) -> list[float]:
        key = hashlib.sha256(key.encode()).hexdigest()
        if key not in self._known:
            self._known[key] = np.array(make(), np.float32)
        return self._known[key]

    def save(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(self._path, **self._known)


def speed(found: Sequence[Case], embeddings: Embeddings, background: Background) -> Iterator[Result]:
    """Milliseconds of one core for a sentence once its five passages are embedded, and for these."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    sentences, passages = [], []
    for case in found[:: len(found) // TIMED]:
        citer = Citer(case.passages, embeddings, background)
        start = time.process_time()
        citer.prepare()
        passages.append(time.process_time() - start)
        start = time.process_time()
        citer.cite(case.sentence)
        sentences.append(time.process_time() - start)
    torch.set_num_threads(threads)
    for name, seconds in (("a sentence", sentences), ("its passages, once a reply", passages)):
        yield Result.less_is_better(f"cite CPU time of {name}", 1000 * statistics.median(seconds), None, "", "ms")
