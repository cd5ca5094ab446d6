"""Stand-ins that tests share: small, deterministic, without downloads."""

from __future__ import annotations

import functools
import importlib.resources
import json
import threading
import weakref
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from langchain_core.embeddings import Embeddings

from chatapp.engine import Engine, Source
from models import LoadedModel, Token
from models.base import BaseModel, CacheShape
from models.cache import KVCache
from models.prompts import ChatHints
from models.registry import resolve
from tests.tiny import LLAMA


class HashEmbeddings(Embeddings):
    """Counts of a text's character pairs, hashed into `dimension` buckets: texts that share words are near."""

    def __init__(self, dimension: int = 512):
        self.dimension = dimension
        self.identity = f"hash-{dimension}"
        self.embedded: list[str] = []  # every passage of documents asked for, in order
        self.measured: list[str] = []  # and every one that comes with the app, to measure a model with

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        for text in texts:
            (self.measured if text in _measuring_passages() else self.embedded).append(text)
        return [self._embed(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        return self._embed(text)

    def _embed(self, text: str) -> list[float]:
        vector = [0.0] * self.dimension
        text = "".join(text.lower().split())
        for pair in zip(text, text[1:], strict=False):
            vector[zlib.crc32("".join(pair).encode()) % self.dimension] += 1.0
        return vector


@functools.cache
def _measuring_passages() -> frozenset[str]:
    file = importlib.resources.files("knowledge") / "background.jsonl"
    rows = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    return frozenset(passage for row in rows for _, passage in row.values())


IM_START, IM_END = 256, 257
REPLY_STARTS = [IM_START, *b"assistant\n"]


class ByteTokenizer:
    """Each byte is a token; two control tokens make it fit the ChatML format."""

    controls = {"<|im_start|>": IM_START, "<|im_end|>": IM_END}
    prefix_ids: Sequence[int] = ()
    suffix_ids: Sequence[int] = ()
    eos_id = IM_END

    def encode(self, text: str, after: str = "start") -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(number for number in ids if number < 256).decode(errors="replace")

    def __len__(self) -> int:
        return 258


class RecordingCache(KVCache):
    """A cache that also remembers its ids, from which ScriptedModel knows how far its reply has come."""

    def __init__(self, length: int):
        super().__init__(CacheShape(layers=2, kv_heads=1, head_dim=1), length, torch.float32, "cpu")
        self.ids: list[int] = []

    def truncate(self, length: int) -> None:
        super().truncate(length)
        del self.ids[length:]

    def copy(self, other: KVCache, length: int) -> None:
        super().copy(other, length)
        self.ids = other.ids[:length]


class ScriptedModel(BaseModel):
    """Replies to a prompt with `reply(prompt)`. `before` is called at each forward, where a test may wait or raise."""

    def __init__(self, reply: Callable[[str], str], before: Callable[[], None]):
        super().__init__()
        self._reply = reply
        self._before = before
        self.prompts: list[str] = []  # as text, in the order in which they were finished

    def forward(self, ids: torch.Tensor, cache: RecordingCache, last: bool = False) -> torch.Tensor:
        self._before()
        row = torch.zeros(1, 1, ids.shape[1], 1)
        for layer in range(2):
            cache.append(layer, row, row)
        cache.advance(ids.shape[1])
        cache.ids += ids[0].tolist()
        logits = torch.zeros(1, 1, len(ByteTokenizer()))
        logits[0, 0, self._next(cache.ids)] = 1000
        return logits

    def _next(self, ids: list[int]) -> int:
        size = len(REPLY_STARTS)
        ends = [end for end in range(size, len(ids) + 1) if ids[end - size : end] == REPLY_STARTS]
        if not ends:
            return IM_END  # the prompt has more chunks to come
        prompt, written = ids[: ends[-1]], ids[ends[-1] :]
        text = ByteTokenizer().decode(prompt)
        if not written:
            self.prompts.append(text)
        reply = [*self._reply(text).encode(), IM_END]
        return reply[min(len(written), len(reply) - 1)]  # behind it: a former reply, with more chunks to come

    def new_cache(
        self, length: int, dtype: torch.dtype, device: str | torch.device, prefix: object = None
    ) -> RecordingCache:
        return RecordingCache(length)


class ByteCheckpoint:
    """What a loaded model asks its checkpoint for."""

    config = LLAMA | {"eos_token_id": IM_END}

    def tokenizer(self) -> ByteTokenizer:
        return ByteTokenizer()

    def chat_hints(self) -> ChatHints:
        return ChatHints(eos_ids=frozenset({IM_END}))


def scripted(
    reply: str | Callable[[str], str] = "Hello!", context: int = 2048, before: Callable[[], None] = lambda: None
) -> LoadedModel:
    """A loaded model that gives this reply; `reply` may also be a function of the prompt."""
    model = ScriptedModel((lambda prompt: reply) if isinstance(reply, str) else reply, before)
    return LoadedModel(model, resolve({"model_type": "llama"}), ByteCheckpoint(), "fp32", torch.device("cpu"), context)


def written(events: Iterable[Any]) -> str:
    """The text of a reply's events."""
    return "".join(event.text for event in events if isinstance(event, Token))


def watch_caches(loaded: LoadedModel) -> list[weakref.ref]:
    """References to each cache that the model will give out, and to its keys: what still lives takes memory."""
    made: list[weakref.ref] = []
    whole = loaded.model.new_cache

    def watched(*arguments: Any) -> RecordingCache:
        cache = whole(*arguments)
        made.extend([weakref.ref(cache), weakref.ref(cache.keys)])
        return cache

    loaded.model.new_cache = watched
    return made


def ready_engine(loaded: LoadedModel, name: str = "scripted") -> Engine:
    """An engine that holds this model."""
    engine = Engine(loader=lambda path, **options: loaded)
    engine.load(Source(name, Path(name)))
    return engine


class Gate:
    """Holds a scripted model at each forward until it is opened: `reached` tells that a forward has begun."""

    def __init__(self):
        self.reached = threading.Event()
        self._open = threading.Event()

    def open(self) -> None:
        self._open.set()

    def __call__(self) -> None:
        self.reached.set()
        if not self._open.wait(20):
            raise AssertionError("nobody opened the gate")
