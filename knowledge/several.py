"""Several knowledge bases, asked as if all their documents were in one."""

from collections.abc import Iterable, Mapping, Sequence

from knowledge.cite import Citer
from knowledge.database import StoredDocument
from knowledge.index import KnowledgeBase
from knowledge.keywords import Corpus
from knowledge.pages import Page
from knowledge.quote import Quote
from knowledge.retrieval import EVERYWHERE, Findings, Passage, Ranked, Where, findings, together


class Several:
    """Knowledge bases by name, at least one, with the same embedding model: meanings compare as they are, and words
    weigh what they weigh in all of them together. So what is found, its order, and whether it answers are as in one
    base with all the documents. What can be asked of a KnowledgeBase can be asked of them; passages tell their base."""

    def __init__(self, bases: Mapping[str, KnowledgeBase]):
        self._bases = dict(bases)
        self._first = next(iter(self._bases.values()))

    def documents(self) -> list[StoredDocument]:
        """Those that can be searched, base by base."""
        return [document for base in self._bases.values() for document in base.documents()]

    def files(self, document_ids: Iterable[str]) -> list[StoredDocument]:
        """Those of the documents that there are, read or not."""
        ids = list(document_ids)
        return [document for base in self._bases.values() for document in base.files(ids)]

    def pages(self, document_id: str) -> list[Page]:
        """What was read of a document. Raises LookupError for an unknown document."""
        holder = (base for base in self._bases.values() if base.files([document_id]))
        return next(holder, self._first).pages(document_id)

    def rank(self, question: str, where: Where = EVERYWHERE) -> Ranked:
        """What `find` chooses from."""
        corpus = sum((base.corpus(question) for base in self._bases.values()), Corpus())
        return together({name: base.rank(question, where, corpus) for name, base in self._bases.items()})

    def find(self, question: str, k: int = 5, where: Where = EVERYWHERE, method: str = "both") -> Findings:
        """The `k` passages that answer `question` best, whichever base they are in, and whether they are likely to."""
        if not question.strip():
            return Findings()
        return findings(question, self.rank(question, where), k, method, self._first.rerank)

    def search(self, question: str, k: int = 5, where: Where = EVERYWHERE) -> list[Passage]:
        """The `k` passages that answer `question` best, best first."""
        return list(self.find(question, k, where).passages)

    def quote(self, question: str, passages: Sequence[Passage]) -> Quote | None:
        """As KnowledgeBase.quote."""
        return self._first.quote(question, passages)

    def citer(self, passages: Sequence[Passage]) -> Citer:
        """As KnowledgeBase.citer, with the vectors that the passages have in their bases."""
        known = {}
        for name, base in self._bases.items():
            known |= base.vectors_of([passage for passage in passages if passage.base == name])
        return self._first.citer_with(passages, known)
