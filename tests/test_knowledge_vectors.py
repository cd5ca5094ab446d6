"""FAISS behind LangChain's VectorStore, on its own."""

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.vectorstores import VectorStore

from knowledge.vectors import FaissVectors, unit_rows
from tests.fakes import HashEmbeddings

TEXTS = ["太行山下雪了", "the trace compiler", "著作权属于作者"]


@pytest.fixture
def vectors():
    return FaissVectors.from_texts(TEXTS, HashEmbeddings(), [{"page": page} for page in (1, 2, 3)])


def test_it_is_a_langchain_store(vectors):
    assert isinstance(vectors, VectorStore)
    (document,) = vectors.similarity_search("which compiler?", k=1)
    assert (document.page_content, document.metadata, document.id) == (TEXTS[1], {"page": 2}, "2")
    assert vectors.as_retriever(search_kwargs={"k": 2}).invoke("太行山的雪")[0].page_content == TEXTS[0]


def test_scores_are_cosines_best_first(vectors):
    found = vectors.similarity_search_with_score(TEXTS[2], k=10)
    scores = [score for _, score in found]
    assert len(found) == 3 and scores[0] == pytest.approx(1) and scores == sorted(scores, reverse=True)


def test_ids_are_kept_replaced_and_deleted(vectors):
    assert vectors.add_texts(["neu"], ids=["70"]) == ["70"]
    assert vectors.add_texts(["newer"]) == ["71"]
    vectors.add_texts(["something else"], ids=["70"])
    assert vectors.ids().tolist() == [1, 2, 3, 70, 71]
    assert vectors.similarity_search("something else", k=1)[0].id == "70"
    vectors.delete(["70", "2"])
    assert vectors.ids().tolist() == [1, 3, 71]
    assert "2" not in {document.id for document in vectors.similarity_search(TEXTS[1], k=10)}
    vectors.delete()
    assert vectors.similarity_search(TEXTS[0]) == []


def test_saved_vectors_come_back(vectors, tmp_path):
    path = tmp_path / "向量.faiss"
    vectors.save(path)
    texts = {number: Document(page_content=text) for number, text in enumerate(TEXTS, start=1)}
    loaded = FaissVectors(HashEmbeddings(), lambda ids: texts)
    assert loaded.load(path)
    assert loaded.ids().tolist() == [1, 2, 3] and loaded.dimension == 512
    assert loaded.similarity_search("compiler", k=1)[0].page_content == TEXTS[1]
    assert [path.name for path in tmp_path.iterdir()] == ["向量.faiss"]


@pytest.mark.parametrize("damage", ["cut", "one bit", "empty"])
def test_damaged_files_are_not_loaded(vectors, tmp_path, damage):
    path = tmp_path / "vectors.faiss"
    vectors.save(path)
    data = path.read_bytes()
    flipped = data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]
    path.write_bytes({"cut": data[:-1], "one bit": flipped, "empty": b""}[damage])
    fresh = FaissVectors()
    assert not fresh.load(path) and fresh.dimension is None
    assert not fresh.load(tmp_path / "missing.faiss")


def test_unit_rows():
    assert unit_rows([[3, 4], [0, 0]]) == pytest.approx(np.array([[0.6, 0.8], [0, 0]]))


def test_products_with_every_vector_come_in_the_order_of_ids():
    vectors = FaissVectors()
    assert vectors.products(np.ones((2, 4)))[1].shape == (0, 2)
    rows = np.eye(4, dtype=np.float32)
    for order in ([1, 2, 3, 4], [7, 3, 9, 1]):
        vectors = FaissVectors()
        vectors.add_embeddings([""] * 4, rows, [{}] * 4, [str(id) for id in order])
        ids, products = vectors.products(np.array([[1, 0, 0, 0], [0, 0, 2, 0]]))
        assert ids.tolist() == sorted(order)
        assert products[ids.tolist().index(order[0])].tolist() == [1, 0]
        assert products[ids.tolist().index(order[2])].tolist() == [0, 2]
