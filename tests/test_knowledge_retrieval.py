"""Search as a whole: ranking, languages, filters, joined and collapsed passages, and saying that nothing answers."""

import time
from dataclasses import replace

import numpy as np
import pytest

import knowledge
from knowledge import Where, ranking, relevance, retrieval
from knowledge.background import Background
from knowledge.database import StoredChunk
from knowledge.embedder import LocalEmbeddings
from knowledge.ranking import Candidate
from knowledge.reranker import LocalReranker
from tests.documents import write
from tests.fakes import HashEmbeddings

FACTS = {
    "lease": "The deposit is two months of rent. It is returned within fifteen days after the lease has ended.",
    "router": "Hold the reset button for five seconds. The light turns green when the router has started.",
    "bird": "The kingfisher lays seven eggs. It hunts small fish from a branch above the water.",
    "合同": "押金为两个月租金。合同期满后十五日内退还承租人。",
    "路由器": "按住复位键五秒钟。指示灯变绿表示路由器已经启动。",
    "翠鸟": "翠鸟每次产七枚蛋。它从水面上方的树枝上捕食小鱼。",
}


@pytest.fixture
def base(tmp_path):
    base = knowledge.open(tmp_path / "kb", HashEmbeddings())
    base.ingest([write(tmp_path, f"{name}.txt", text) for name, text in FACTS.items()])
    return base


def chunk(id=1, document="d", position=0, text="text", page=None, headings=""):
    return StoredChunk(id, document, f"{document}.txt", position, page, None, text, headings)


# Ranking


def test_the_best_two_sentences_count():
    weights = {"nest": 3.0, "bird": 2.0, "build": 1.0}
    assert ranking.window(weights, "A bird. It builds nests. Nothing else.") == 1
    assert ranking.window(weights, "A bird. Nothing else. It builds nests.") == 4 / 6
    assert ranking.window(weights, "") == ranking.window({}, "A bird.") == 0


def test_the_other_language_is_never_first_and_rarely_among_the_first():
    def candidates(own, score, count):
        return [Candidate(chunk(), 0, 0, score, own) for _ in range(count)]

    order = ranking.in_order(candidates(True, 0.5, 6) + candidates(False, 1.0, 6))
    assert [candidate.own for candidate in order[:8]] == [True, False, False, True, True, False, False, False]
    weak = ranking.in_order(candidates(True, 2.0, 6) + candidates(False, 0.1, 2))
    assert [candidate.own for candidate in weak] == [True] * 6 + [False] * 2
    assert [candidate.own for candidate in ranking.in_order(candidates(False, 1.0, 3))] == [False] * 3


def test_the_other_language_is_first_for_a_name_that_only_it_has():
    named = frozenset({"h2ogpt"})
    own, other = Candidate(chunk(), 0.1, 0.1, 0.5), Candidate(chunk(), 0.1, 0, 1.0, False, named)
    assert ranking.in_order([own, other]) == [other, own]
    for knows in (Candidate(chunk(), 0.1, 0.1, 0.5, True, named), Candidate(chunk(), 1.0, 1.0, 1.0)):
        assert ranking.in_order([knows, other]) == [knows, other]


def test_a_name_in_latin_letters_is_found_in_the_other_language(tmp_path):
    base = knowledge.open(tmp_path / "kb", HashEmbeddings())
    texts = {"模板": "本模板支持多种基础文档类。各种文档都支持。", "paper": "h2oGPT builds on Falcon and LLaMA models."}
    base.ingest([write(tmp_path, f"{name}.txt", text) for name, text in texts.items()])
    names = {each.chunk.name: each.names for each in base.rank("h2oGPT 支持哪些基础模型？").candidates}
    assert names["paper.txt"] == {"h2ogpt"} and names.get("模板.txt", frozenset()) == frozenset()


# Meaning


class TwoAxes:
    """Embeddings of a language (first axis, strong), and of a topic (one of the others)."""

    identity = "two axes"

    def _embed(self, text):
        vector = np.full(30, 0.01)
        vector[0 if retrieval.language(text) == "zh" else 1] = 3
        for axis, pair in enumerate(zip(ZH, EN, strict=True), 2):
            if text in pair:
                vector[axis] = 1
        return (vector / np.linalg.norm(vector)).tolist()

    def embed_query(self, text):
        return self._embed(text)

    def embed_documents(self, texts):
        return [self._embed(text) for text in texts]


ZH, EN = ["苹果", "梨子", "石头", "云彩"], ["apple", "pear", "stone", "cloud"]


def test_a_models_habits_are_taken_out(monkeypatch):
    topics = [{"zh": [zh, zh], "en": [en, en]} for zh, en in zip(ZH, EN, strict=True)]
    monkeypatch.setattr("knowledge.background._topics", lambda: topics)
    model = TwoAxes()
    background = Background.from_json(Background.measure(model).to_json())
    question = np.array(model.embed_query("苹果"))
    vectors = np.array(model.embed_documents(["梨子", "apple"]))
    assert vectors[0] @ question > 0.9 > vectors[1] @ question + 0.5  # the language is all that cosines tell
    directions = background.directions(question, "zh")
    for held, row, near in (("zh", 0, 0), ("other", 1, 1)):
        (nearness,) = background.nearness(directions, vectors[[row]] @ directions.T, "zh", held)
        assert nearness == pytest.approx(near, abs=0.05), held
        assert background.knows("zh", held)


def test_a_model_that_knows_one_language_only_leaves_the_other_alone():
    background = Background.measure(HashEmbeddings())
    assert not background.knows("zh", "other") and not background.knows("other", "zh")


def test_the_background_is_measured_once(tmp_path):
    embeddings = HashEmbeddings()
    base = knowledge.open(tmp_path / "kb", embeddings)
    assert not embeddings.measured
    base.ingest([write(tmp_path, "a.txt", FACTS["bird"])])
    measured = list(embeddings.measured)
    assert measured, "the first search would have to wait for it"
    assert base.search("eggs")
    base.close()
    assert knowledge.open(tmp_path / "kb", embeddings).search("eggs") and embeddings.measured == measured


# Relevance


def test_the_rest_of_a_document_does_not_speak_against_its_best_passage():
    best, near = Candidate(chunk(1, "book", 3), 0, 0, 1.0), Candidate(chunk(2, "book", 9), 0, 0, 0.9)
    other = Candidate(chunk(3, "leaflet"), 0, 0, 0.5)
    assert relevance.lead([best, near, other]) == relevance.lead([best, other]) == best.score - other.score
    assert relevance.lead([best, near]) == relevance.lead([best]) > 0


def figures(question, text):
    candidate = Candidate(chunk(text=text), 0.3, 0.5, 0.8)
    found = relevance.features(question, {"rent": 1.0}, [candidate], np.array([0.8, 0.2]))
    return dict(zip(relevance.FEATURES[retrieval.language(question)], found, strict=True))


def test_what_one_sentence_says_counts_in_english():
    together = figures("When did Anna sign the lease?", "Anna signed the lease in May 2019. It rained a lot.")
    assert together["words"] == together["around"] == 1 and together["lacks"] == 0
    apart = figures("When did Anna sign the lease?", "Anna came home. It rained a lot. He did sign. It was no lease.")
    assert apart["words"] < apart["around"] < 1 and apart["lacks"] == 1
    assert figures("Did Anna sign?", "Nobody knows.")["lacks"] == 0  # no kind of answer is asked for
    nothing = figures("When did Anna sign the lease?", "")
    assert (nothing["words"], nothing["around"], nothing["lacks"]) == (0, 0, 1)
    assert "words" not in figures("安娜何时签了租约？", "安娜于二〇一九年五月签了租约。")


def test_each_language_has_a_weight_for_each_figure():
    assert relevance.FEATURES.keys() == relevance.WEIGHTS.keys() == relevance.BIASES.keys()
    for language, features in relevance.FEATURES.items():
        assert len(features) == len(relevance.WEIGHTS[language]), language


# Passages


@pytest.mark.parametrize(
    ("question", "name"),
    [
        ("How many eggs does a kingfisher lay?", "bird.txt"),
        ("When is the deposit returned?", "lease.txt"),
        ("翠鳥產幾枚蛋？", "翠鸟.txt"),
        ("押金什么时候退还？", "合同.txt"),
    ],
)
def test_questions_find_their_passage(base, question, name):
    findings = base.find(question)
    assert findings.passages[0].name == name and findings.answered
    scores = [passage.score for passage in findings.passages]
    assert scores == sorted(scores, reverse=True) and 0 < scores[-1] <= scores[0] < 1


def test_what_nothing_answers_is_said_to_be_unanswered_and_the_nearest_is_shown(base):
    findings = base.find("Who composed the opera about Napoleon's retreat from Moscow?", k=2)
    assert not findings.answered and len(findings.passages) == 2
    assert not base.find(" \n").answered and base.find("").passages == ()


def test_documents_are_chosen_by_name_folder_and_date(base, tmp_path):
    followed = tmp_path / "资料"
    followed.mkdir()
    write(followed, "owl.txt", "The owl lays four eggs.")
    before = time.time()
    base.ingest_folder(followed)

    def names(where):
        return {passage.name for passage in base.search("eggs", k=9, where=where)}

    assert names(Where(names=["bird.txt", "lease.txt"])) == {"bird.txt", "lease.txt"}
    assert names(Where(folder=str(followed))) == names(Where(since=before)) == {"owl.txt"}
    assert names(Where(until=before)) == {"bird.txt", "lease.txt", "router.txt"}
    assert names(Where(names=["bird.txt"], since=before)) == names(Where(names=[])) == set()
    assert names(Where(folder=str(followed)[:-1])) == set()
    assert base.as_retriever(where=Where(names=["owl.txt"])).invoke("eggs")[0].metadata["source"] == "owl.txt"


def found(*chunks, k=5):
    ranked = [Candidate(each, 0, 0, 1 - place / 10) for place, each in enumerate(chunks)]
    return retrieval._passages(ranked, k)


def test_neighbours_are_joined_without_saying_anything_twice():
    first = chunk(1, position=4, text="It began so. And then it went on.", headings="Title")
    second = chunk(2, position=5, text="And then it went on. In the end it stopped.", headings="Title")
    apart, page = chunk(3, position=9, text="Quite another thing."), chunk(4, position=10, text="More.", page=2)
    texts = ["Title\nIt began so. And then it went on. In the end it stopped.", "Quite another thing.", "More."]
    assert [passage.text for passage in found(second, first, apart, page)] == texts
    run = [chunk(number, position=number, text=f"{'abcd'[number]} {number}") for number in range(4)]
    assert [passage.text for passage in found(*run)] == ["a 0\nb 1\nc 2", "d 3"]
    sheets = [replace(each, label=f"Sheet{each.id // 2}") for each in run]
    assert [passage.text for passage in found(*sheets)] == ["a 0\nb 1", "c 2\nd 3"]


def test_the_same_text_is_shown_once_but_another_number_is_another_text():
    words = "one two three four five six seven eight nine ten eleven twelve"
    texts = [f"In 2019 {words}.", f"in 2019 {words}", f"In 2020 {words}."]
    chunks = [chunk(number, document=str(number), text=text) for number, text in enumerate(texts)]
    assert [passage.text for passage in found(*chunks)] == [texts[0], texts[2]]
    assert len(found(*chunks, k=1)) == 1


def test_a_reranker_has_the_last_word(tmp_path):
    asked = []

    def rerank(question, passages):
        asked.append(question)
        return [-passage.count("egg") for passage in passages]

    base = knowledge.open(tmp_path / "kb", HashEmbeddings(), rerank=rerank)
    base.ingest([write(tmp_path, f"{name}.txt", FACTS[name]) for name in ("bird", "lease")])
    passages = base.search("eggs")
    assert [passage.name for passage in passages] == ["lease.txt", "bird.txt"] and asked == ["eggs"]
    assert passages[0].score >= passages[1].score


# With the real model


def test_the_real_model_crosses_languages_and_knows_what_is_missing(tmp_path, embedder_folder):
    base = knowledge.open(tmp_path / "kb", LocalEmbeddings(embedder_folder))
    base.ingest([write(tmp_path, f"{name}.txt", FACTS[name]) for name in ("lease", "bird", "合同", "路由器")])
    for question, name in (("How long must I press the reset key?", "路由器.txt"), ("翠鸟下几个蛋？", "bird.txt")):
        assert name in {passage.name for passage in base.search(question, k=2)}, question
    assert base.find("When do I get my deposit back?").passages[0].name == "lease.txt"
    assert base.find("When do I get my deposit back?").answered
    for question in ("Which composer wrote the Moonlight Sonata?", "谁写了《红楼梦》？", "公司的净利润是多少？"):
        findings = base.find(question)
        assert not findings.answered and findings.passages, question


def test_a_cross_encoder_in_a_folder_reranks(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    folder = tmp_path / "reranker"
    words = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "eggs", "birds", "rent"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "initializer_range": 1.0}
    BertForSequenceClassification(BertConfig(vocab_size=7, num_labels=1, **shape)).save_pretrained(folder)
    scores = LocalReranker(folder)("eggs", ["birds", "rent", "birds"])
    assert len(scores) == 3 and scores[0] == pytest.approx(scores[2]) != scores[1]
    with pytest.raises(FileNotFoundError, match="no config.json"):
        LocalReranker(tmp_path)
