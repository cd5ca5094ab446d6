"""Documents to search: files in, passages out. Knows nothing of language models; the embedding model is passed in."""

from knowledge.database import KnowledgeBaseError
from knowledge.documents import DocumentError
from knowledge.index import KnowledgeBase, open
from knowledge.ingest import Ingested, Status
from knowledge.pages import PasswordError
from knowledge.quote import Quote
from knowledge.retrieval import Findings, Passage, Where
from knowledge.several import Several

__all__ = [
    "DocumentError",
    "Findings",
    "Ingested",
    "KnowledgeBase",
    "KnowledgeBaseError",
    "Passage",
    "PasswordError",
    "Quote",
    "Several",
    "Status",
    "Where",
    "open",
]
