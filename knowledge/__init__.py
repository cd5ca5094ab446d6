"""Documents to search: files in, passages out. Knows nothing of language models; the embedding model is passed in."""

from knowledge.database import KnowledgeBaseError
from knowledge.documents import DocumentError
from knowledge.index import KnowledgeBase, Passage, open
from knowledge.ingest import Ingested, Status
from knowledge.pages import PasswordError

__all__ = [
    "DocumentError",
    "Ingested",
    "KnowledgeBase",
    "KnowledgeBaseError",
    "Passage",
    "PasswordError",
    "Status",
    "open",
]
