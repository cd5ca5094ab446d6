"""Stand-ins that tests share: small, deterministic, without downloads."""

import zlib

from langchain_core.embeddings import Embeddings


class HashEmbeddings(Embeddings):
    """Counts of a text's character pairs, hashed into `dimension` buckets: texts that share words are near."""

    def __init__(self, dimension: int = 512):
        self.dimension = dimension
        self.identity = f"hash-{dimension}"
        self.embedded: list[str] = []  # every passage asked for, in order

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        self.embedded += texts
        return [self._embed(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        return self._embed(text)

    def _embed(self, text: str) -> list[float]:
        vector = [0.0] * self.dimension
        text = "".join(text.lower().split())
        for pair in zip(text, text[1:], strict=False):
            vector[zlib.crc32("".join(pair).encode()) % self.dimension] += 1.0
        return vector
