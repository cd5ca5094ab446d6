"""A knowledge base as a LangChain retriever."""

from collections.abc import Callable
from typing import Any

from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever


class PassageRetriever(BaseRetriever):
    """Finds passages; each Document's metadata has source (file name), page (1-based or None) and score (0 to 1)."""

    search: Callable[[str, int], list[Any]]
    """`KnowledgeBase.search`, or anything that answers (question, k) with passages, best first."""
    k: int = 5

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
        return [
            Document(
                page_content=passage.text,
                metadata={"source": passage.name, "page": passage.page, "score": passage.score},
            )
            for passage in self.search(query, self.k)
        ]
