"""A whole document summed up: part by part in order, nothing left out, within the window, and to be stopped."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from chatapp.conversation import Plan, QuestionTooLong
from chatapp.digest import CHINESE, ENGLISH, DigestError, Document, Part, Words, asks_for_summary, digest, document_of
from chatapp.engine import Cancelled, EngineError
from chatapp.ledger import Ledger
from chatapp.library import Library
from chatapp.server import build
from chatapp.session import Chat, Reply
from chatapp.store import Store
from chatapp.ui import render
from models import End, LoadedModel, Read
from tests.fakes import HashEmbeddings, ready_engine, scripted, written

WINDOW, REPLY = 800, 100
LONGEST = WINDOW // 8
TEXT = "".join(f"Sentence {n} of the report says that pear tree {n} bore {n * 7} pears. " for n in range(60)).strip()
LEASE = "The rent is 1,200 francs a month."


def model(reply: str | Callable[[str], str] = "", context: int = WINDOW) -> LoadedModel:
    """One that answers the nth part with "<n>", and the whole with "All.", unless it has another reply."""

    def told(prompt: str) -> str:
        part = ENGLISH.part in prompt or CHINESE.part in prompt
        return f"<{len(loaded.model.prompts)}>" if part else "All."

    loaded = scripted(reply or told, context)
    return loaded


def run(loaded: LoadedModel, text: str = TEXT, cancel: threading.Event | None = None, reply: int = REPLY) -> list[Any]:
    document = Document("report.pdf", "id", text, (3, 4, 5))
    return list(digest(ready_engine(loaded), document, {}, reply, cancel or threading.Event()))


def texts(loaded: LoadedModel, telling: str) -> list[str]:
    """What the model was given with this instruction."""
    prompts = (prompt for prompt in loaded.model.prompts if telling in prompt)
    return [prompt.split(f"{telling}\n\n")[1].removesuffix("\nassistant\n") for prompt in prompts]


# The parts


def test_a_document_that_fits_is_summed_up_at_once() -> None:
    loaded = model()
    events = run(loaded, LEASE)
    assert texts(loaded, ENGLISH.document) == [LEASE] and len(loaded.model.prompts) == 1
    assert not any(isinstance(event, Part) for event in events)
    assert written(events) == "All." and isinstance(events[-1], End)


@pytest.mark.parametrize(
    "text, words",
    [
        (TEXT, ENGLISH),
        ("".join(f"第{n}棵梨树结了{n * 7}个梨。" for n in range(1, 90)), CHINESE),
        ("\n".join(f"row {n}\t{n}" for n in range(200)), ENGLISH),
        ("w" * 3000, ENGLISH),
        ("梨" * 1500, CHINESE),
        ("a b\n\n" * 300 + "第一" * 200, CHINESE),
    ],
    ids=["english", "chinese", "table", "one word", "one Chinese word", "mixed"],
)
def test_every_letter_is_read_once_and_in_order(text: str, words: Words) -> None:
    loaded = model()
    events = run(loaded, text)
    parts = texts(loaded, words.part)
    assert "".join(parts).split() == text.split() or "".join(parts) == text
    assert len(parts) > 3 and len(parts) == len(loaded.model.prompts) - 1
    assert texts(loaded, words.whole) == ["\n\n".join(f"<{n + 1}>" for n in range(len(parts)))]
    assert written(events) == "All."


def test_parts_end_with_sentences_and_fill_the_window() -> None:
    loaded = model()
    run(loaded)
    *parts, _ = texts(loaded, ENGLISH.part)
    assert all(part.endswith("pears. ") for part in parts)
    assert all(len(loaded.chat_prompt([{"role": "user", "content": part}]).ids) > WINDOW // 2 for part in parts)


@pytest.mark.parametrize("context", [400, 555, 800, 2048])
def test_the_window_is_never_exceeded(context: int) -> None:
    loaded = model(context=context)
    capacities = []
    lend = loaded.model.new_cache
    loaded.model.new_cache = lambda length, *rest: capacities.append(length) or lend(length, *rest)
    run(loaded)
    longest = min(256, context // 8)
    parts = [prompt for prompt in loaded.model.prompts if ENGLISH.part in prompt]
    assert parts and all(len(prompt.encode()) + 4 + longest <= context + 20 for prompt in parts)
    assert max(capacities) <= context


def test_summaries_that_do_not_fit_are_summed_up_again() -> None:
    def reply(prompt: str) -> str:
        return "All." if ENGLISH.whole in prompt else f"{len(prompt)} " + "s" * 90

    loaded = model(reply)
    events = run(loaded, TEXT * 2)
    first, again = texts(loaded, ENGLISH.part), texts(loaded, ENGLISH.summaries)
    assert len(first) > len(again) > 1 and "".join(again).count("s" * 90) == len(first)
    assert texts(loaded, ENGLISH.whole)[0].count("s" * 90) == len(again)
    assert written(events) == "All."


def test_progress_is_told_part_by_part_before_the_plan() -> None:
    events = run(model())
    parts = [event for event in events if isinstance(event, Part)]
    numbers = [part.number for part in parts]
    assert numbers == sorted(numbers) and set(numbers) == set(range(1, parts[0].count + 1))
    assert [part.read for part in parts] == sorted(part.read for part in parts)
    assert parts[0].read == 0 and parts[-1].read == parts[-1].tokens
    assert len({(part.count, part.tokens) for part in parts}) == 1
    at = next(at for at, event in enumerate(events) if isinstance(event, Plan))
    assert events.index(parts[-1]) < at and not any(isinstance(event, (Part, Plan)) for event in events[at + 1 :])
    assert not any(isinstance(event, Read) for event in events[:at])
    (source,) = events[at].passages
    assert (source.name, source.page, source.text, source.document) == ("report.pdf", 3, "Pages 3 to 5", "id")
    line = render.progress_line(Reply(state="digesting", part=Part(3, 12, 24300, 5200)), "en")
    assert "part 3 of 12 · read 5,200 of 24,300 tokens" in line
    assert "3 / 12" in render.progress_line(Reply(state="digesting", part=Part(3, 12, 24300, 5200)), "zh")


def test_a_window_without_room_is_one_sentence() -> None:
    with pytest.raises(QuestionTooLong, match="too small to sum up a document; give the model a longer one"):
        run(model(context=100))


def test_summaries_that_are_as_long_as_the_document_end_it() -> None:
    with pytest.raises(QuestionTooLong, match="too small"):
        run(model("s" * 500, context=185), "x. " * 120)


def test_a_model_that_says_nothing_is_one_sentence() -> None:
    loaded = scripted(lambda prompt: "", context=WINDOW)
    with pytest.raises(EngineError, match="written nothing"):
        run(loaded)


def test_another_model_in_between_is_one_sentence() -> None:
    engine = ready_engine(model())
    events = digest(engine, Document("r", "id", TEXT), {}, REPLY, threading.Event())
    next(events)
    engine._loaded = scripted(context=4000)
    with pytest.raises(EngineError, match="model was changed"):
        list(events)


# Stop


@pytest.mark.parametrize("when", ["before the first", "within the second", "between two", "in the last"])
def test_stop_ends_it_at_once(when: str) -> None:
    cancel, loaded = threading.Event(), model()
    events = digest(ready_engine(loaded), Document("r", "id", TEXT), {}, REPLY, cancel)
    reached = {
        "before the first": lambda event: True,
        "within the second": lambda event: isinstance(event, Part) and event.number == 2 and event.read > 500,
        "between two": lambda event: isinstance(event, Part) and event.number == 3,
        "in the last": lambda event: isinstance(event, Read),
    }[when]
    while not reached(next(events)):
        pass
    cancel.set()
    before = len(loaded.model.prompts)
    with pytest.raises(Cancelled):
        list(events)
    assert len(loaded.model.prompts) <= before + 1


# As a turn


class Place:
    """A conversation, a knowledge base with a lease and a scan, and the ids of both."""

    def __init__(self, folder: Path, loaded: LoadedModel) -> None:
        self.loaded = loaded
        self.chat = Chat(ready_engine(loaded), Library(folder / "kb", HashEmbeddings), Store(folder / "c.db"))
        self.conversation = self.chat.store.create().id
        self.base = self.chat.library.create("合同")
        self.documents = self.chat.library.open(self.base)
        (folder / "lease.txt").write_text(TEXT, encoding="utf-8")
        self.documents.ingest([folder / "lease.txt"])
        self.lease = self.documents.documents()[0].id

    def sum_up(self, document: str, cancel: threading.Event | None = None) -> list[tuple[str, str]]:
        """(state, text) as they come; `reply` is the last."""
        seen = []
        asked = "Summarise lease.txt."
        for reply in self.chat.sum_up(self.conversation, document, asked, self.base, cancel or threading.Event()):
            seen.append((reply.state, reply.text))
        self.reply = reply
        return seen


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path, model(context=2048))


def test_the_summary_is_a_reply_with_the_document_as_its_source(place: Place) -> None:
    states = [state for state, _ in place.sum_up(place.lease)]
    order = list(dict.fromkeys(states))
    assert order == ["waiting", "digesting", "reading", "writing", "done"]
    asked, kept = place.chat.store.messages(place.conversation)
    assert (asked.content, kept.content, kept.state) == ("Summarise lease.txt.", "All.", "done")
    assert [(source["name"], source["page"]) for source in kept.sources] == [("lease.txt", None)]
    assert kept.evidence["documents"] == [place.lease] and kept.evidence["base"] == place.base
    assert Ledger.from_json(kept.ledger).prompt > 0
    assert "lease.txt" in render.sources_pane(kept.sources, "en")


def test_regenerating_sums_it_up_again_and_editing_asks(place: Place) -> None:
    place.sum_up(place.lease)
    before = len(place.loaded.model.prompts)
    *_, reply = place.chat.regenerate(place.conversation, None, place.base, threading.Event())
    assert (reply.state, reply.text) == ("done", "All.") and len(place.loaded.model.prompts) >= before + 1
    question = place.chat.store.tree(place.conversation).path[0].id
    list(place.chat.edit(place.conversation, question, "Why?", None, threading.Event()))
    assert place.loaded.model.prompts[-1].endswith("Why?\nassistant\n")


def test_the_next_turn_is_told_the_summary_and_no_passages(place: Place) -> None:
    place.sum_up(place.lease)
    list(place.chat.send(place.conversation, "And?", None, threading.Event()))
    prompt = place.loaded.model.prompts[-1]
    assert "Summarise lease.txt.\nassistant\nAll." in prompt and "passages" not in prompt


def test_a_stopped_summary_says_so_and_can_not_go_on_but_again(place: Place) -> None:
    cancel = threading.Event()
    for reply in place.chat.sum_up(place.conversation, place.lease, "Summarise.", place.base, cancel):
        if reply.text == "Al":
            cancel.set()
    assert (reply.state, reply.text) == ("stopped", "Al")
    *_, reply = place.chat.continue_(place.conversation, threading.Event())
    assert reply.state == "failed" and "regenerate it" in reply.failure
    cancel = threading.Event()
    for reply in place.chat.sum_up(place.conversation, place.lease, "Summarise.", place.base, cancel):
        if reply.part is not None and reply.part.number == 2:
            cancel.set()
    assert (reply.state, reply.text) == ("stopped", "")


def test_a_document_that_was_removed_is_one_sentence(place: Place) -> None:
    place.documents.remove("lease.txt")
    assert place.sum_up(place.lease)[-1][0] == "failed"
    assert place.reply.failure == "The document is not in its knowledge base any more, so it can't be summed up."


def test_a_document_without_text_is_one_sentence(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(place.documents), "pages", lambda self, id: [])
    with pytest.raises(DigestError, match="^lease.txt holds no text that could be summed up.$"):
        document_of(place.documents, place.lease)


# Over HTTP


@pytest.fixture
def client(place: Place) -> Iterator[TestClient]:
    with TestClient(build(place.chat, lambda app: app), base_url="http://127.0.0.1") as client:
        yield client


def refused(response: httpx.Response, status: int, words: str) -> None:
    assert response.status_code == status and words in response.json()["error"]["message"]


def test_a_chat_completion_sums_up(client: TestClient, place: Place) -> None:
    body = {"messages": [{"role": "user", "content": "?"}], "knowledge_base": place.base, "summarise": "lease.txt"}
    answer = client.post("/v1/chat/completions", json=body).json()
    assert answer["choices"][0]["message"]["content"] == "All."
    assert [citation["name"] for citation in answer["citations"]] == ["lease.txt"]
    assert answer["answered_from"] == "documents" and answer["usage"]["prompt_tokens"] == answer["ledger"]["prompt"]
    refused(client.post("/v1/chat/completions", json={**body, "summarise": "b.txt"}), 404, "no document named b.txt")
    refused(client.post("/v1/chat/completions", json={**body, "knowledge_base": None}), 422, "knowledge_base")


def test_a_kept_conversation_sums_up(client: TestClient, place: Place) -> None:
    address = f"/v1/conversations/{place.conversation}/summarise"
    refused(client.post(address, json={"document": "lease.txt"}), 404, "knowledge_base")
    body = {"document": "lease.txt", "knowledge_base": place.base}
    answer = client.post(address, json=body).json()
    assert answer["choices"][0]["message"]["content"] == "All."
    assert [message.content for message in place.chat.store.messages(place.conversation)] == [
        "Summarise lease.txt.",
        "All.",
    ]
    refused(client.post(address, json={**body, "document": "b.txt"}), 404, "no document named b.txt")


@pytest.mark.parametrize(
    "text, asks",
    [
        ("Summarise this.", True),
        ("Please summarize the document in three sentences", True),
        ("What is this file about?", True),
        ("Give me a short summary", True),
        ("请总结一下这份文件", True),
        ("这篇文章主要讲了什么？", True),
        ("What is the rent in the summary table?", False),
        ("What is this clause about the deposit that we had to pay in the year before last?", False),
        ("摘要里写的租金是多少，和合同第三条第二款里写的一样吗？", False),
    ],
)
def test_what_asks_for_a_summary(text: str, asks: bool) -> None:
    assert asks_for_summary(text) is asks
