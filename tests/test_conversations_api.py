"""The HTTP routes of kept conversations."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from chatapp import conversations_api, transfer
from chatapp.api import NOTHING_FOUND
from chatapp.engine import Engine
from chatapp.library import Library
from chatapp.server import build
from chatapp.session import Chat
from chatapp.store import Store
from tests.fakes import HashEmbeddings, ready_engine, scripted
from tests.serving import serving

ROOT = "/v1/conversations"


def chat_over(folder: Path, engine: Engine) -> Chat:
    return Chat(engine, Library(folder / "kb", HashEmbeddings), Store(folder / "conversations.db"))


@pytest.fixture
def chat(tmp_path: Path) -> Chat:
    loaded = scripted(lambda prompt: f"回复 {len(loaded.model.prompts)}")
    return chat_over(tmp_path, ready_engine(loaded))


@pytest.fixture
def client(chat: Chat) -> Iterator[TestClient]:
    with TestClient(build(chat, lambda app: app), base_url="http://127.0.0.1") as client:
        yield client


@pytest.fixture
def id(client: TestClient) -> str:
    return client.post(ROOT, json={}).json()["id"]


def turn(client: TestClient, id: str, operation: str, **body: Any) -> dict[str, Any]:
    response = client.post(f"{ROOT}/{id}/{operation}", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def shown(client: TestClient, id: str) -> list[str]:
    """The contents of the branch that is shown."""
    whole = client.get(f"{ROOT}/{id}").json()
    contents = {message["id"]: message["content"] for message in whole["messages"]}
    return [contents[number] for number in whole["path"]]


def refused(response: httpx.Response, status: int, words: str) -> None:
    assert response.status_code == status, response.text
    message = response.json()["error"]["message"]
    assert words in message and "\n" not in message


def test_what_is_removed_is_forgotten(chat: Chat, client: TestClient, id: str) -> None:
    turn(client, id, "send", text="你好")
    assert turn(client, id, "regenerate")["usage"]["prompt_tokens_details"]["cached_tokens"] > 20
    number = client.get(f"{ROOT}/{id}").json()["path"][0]
    assert client.delete(f"{ROOT}/{id}/messages/{number}").status_code == 200
    assert turn(client, id, "send", text="你好")["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}


# Turns


def test_a_whole_turn(client: TestClient, id: str) -> None:
    reply = turn(client, id, "send", text="你好")
    (choice,) = reply["choices"]
    assert choice == {"index": 0, "message": {"role": "assistant", "content": "回复 1"}, "finish_reason": "stop"}
    assert (reply["object"], reply["model"], reply["conversation"]) == ("chat.completion", "scripted", id)
    assert reply["usage"]["completion_tokens"] == len("回复 1".encode()) and reply["citations"] == []
    whole = client.get(f"{ROOT}/{id}").json()
    assert (whole["title"], whole["leaf"], whole["path"][-1]) == ("你好", reply["message"], reply["message"])
    question, answer = whole["messages"]
    assert (question["parent"], answer["parent"]) == (None, question["id"])
    assert (answer["content"], answer["model"], answer["state"], answer["reason"]) == (
        "回复 1",
        "scripted",
        "done",
        "stop",
    )
    assert bytes(answer["ids"]).decode() == "回复 1"


def test_a_streamed_turn(client: TestClient, id: str) -> None:
    response = client.post(f"{ROOT}/{id}/send", json={"text": "hi", "stream": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    *lines, done, rest = response.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines]
    pieces = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
    assert "".join(pieces) == "回复 1" and sum(map(bool, pieces)) > 2
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1]["message"] == client.get(f"{ROOT}/{id}").json()["leaf"]


def test_the_operations_on_the_tree(client: TestClient, id: str) -> None:
    turn(client, id, "send", text="one")
    second = turn(client, id, "send", text="two")["message"]
    turn(client, id, "regenerate")
    assert shown(client, id) == ["one", "回复 1", "two", "回复 3"]
    turn(client, id, "choose", message=second)
    assert shown(client, id) == ["one", "回复 1", "two", "回复 2"]
    first, first_reply, *_ = client.get(f"{ROOT}/{id}").json()["path"]
    turn(client, id, "edit", message=first, text="eins")
    assert shown(client, id) == ["eins", "回复 4"]
    turn(client, id, "regenerate", message=first_reply)
    assert shown(client, id) == ["one", "回复 5"]
    assert turn(client, id, "undo")["path"] == []
    turn(client, id, "choose", message=second)
    rest = client.delete(f"{ROOT}/{id}/messages/{second}").json()
    assert second not in {message["id"] for message in rest["messages"]}
    assert shown(client, id) == ["one", "回复 1", "two", "回复 3"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_reply_that_goes_on(client: TestClient, id: str, stream: bool) -> None:
    client.patch(f"{ROOT}/{id}", json={"preferences": {"max_tokens": 7}})
    reply = turn(client, id, "send", text="hi")
    assert (reply["choices"][0]["message"]["content"], reply["choices"][0]["finish_reason"]) == ("回复", "length")
    response = client.post(f"{ROOT}/{id}/continue", json={"stream": stream})
    if stream:  # only what is new comes
        lines = [json.loads(line.removeprefix("data: ")) for line in response.text.split("\n\n")[:-2]]
        assert "".join(line["choices"][0]["delta"].get("content", "") for line in lines) == " 1"
    else:
        assert response.json()["choices"][0]["message"]["content"] == "回复 1"
    assert shown(client, id) == ["hi", "回复 1"]
    refused(client.post(f"{ROOT}/{id}/continue", json={}), 409, "no unfinished reply")


def test_the_conversations_knowledge_base_is_asked(client: TestClient, chat: Chat, tmp_path: Path) -> None:
    base = chat.library.create("docs")
    (tmp_path / "lease.txt").write_text("The rent is 1,200 francs.", encoding="utf-8")
    chat.library.open(base).ingest([tmp_path / "lease.txt"])
    id = client.post(ROOT, json={"preferences": {"knowledge_base": base}}).json()["id"]
    reply = turn(client, id, "send", text="What is the rent?")
    assert [citation["name"] for citation in reply["citations"]] == ["lease.txt"]
    empty = chat.library.create("empty")
    reply = turn(client, id, "send", text="What is the rent?", knowledge_base=empty)
    assert reply["choices"][0]["message"]["content"] == NOTHING_FOUND


def test_a_client_that_goes_away_stops_its_reply(tmp_path: Path) -> None:
    chat = chat_over(tmp_path, ready_engine(scripted("x" * 400, before=lambda: time.sleep(0.02))))
    with serving(build(chat, lambda app: app)) as port:
        root = f"http://127.0.0.1:{port}{ROOT}"
        id = httpx.post(root, json={}).json()["id"]
        with httpx.stream("POST", f"{root}/{id}/send", json={"text": "hi", "stream": True}, timeout=20) as response:
            for line in response.iter_lines():
                if '"content": "x"' in line:
                    break
        deadline = time.monotonic() + 10
        while (reply := chat.store.messages(id)[-1]).state == "writing":
            assert time.monotonic() < deadline
            time.sleep(0.02)
    assert reply.state == "stopped" and 0 < len(reply.content) < 400


# What is refused


@pytest.mark.parametrize(
    "method, path, body",
    [
        ("GET", "", None),
        ("PATCH", "", {"title": "x"}),
        ("DELETE", "", None),
        ("POST", "/restore", None),
        ("GET", "/export", None),
        ("POST", "/send", {"text": "hi"}),
        ("POST", "/regenerate", {}),
        ("POST", "/edit", {"message": 1, "text": "x"}),
        ("POST", "/continue", {}),
        ("POST", "/undo", None),
        ("POST", "/choose", {"message": 1}),
        ("DELETE", "/messages/1", None),
    ],
)
def test_a_conversation_that_is_not_there(client: TestClient, chat: Chat, method: str, path: str, body: Any) -> None:
    refused(client.request(method, f"{ROOT}/nowhere{path}", json=body), 404, "no such conversation")
    assert chat.store.conversations() == []


@pytest.mark.parametrize(
    "operation, body, status, words",
    [
        ("regenerate", {}, 409, "no question"),
        ("regenerate", {"message": 9}, 404, "no message 9"),
        ("edit", {"message": 9, "text": "x"}, 404, "no message 9"),
        ("choose", {"message": 9}, 404, "no message 9"),
        ("choose", {}, 422, "message"),
        ("undo", None, 409, "nothing to undo"),
        ("continue", {}, 409, "no unfinished reply"),
        ("send", {}, 422, "text"),
        ("send", {"text": "hi", "temprature": 1}, 422, "temprature"),
        ("send", {"text": "hi", "knowledge_base": "none"}, 404, "none"),
        ("send", {"text": "x" * 5000}, 400, "shorten it by"),
    ],
)
def test_what_can_not_be_done(client: TestClient, id: str, operation: str, body: Any, status: int, words: str) -> None:
    refused(client.post(f"{ROOT}/{id}/{operation}", json=body), status, words)


@pytest.mark.parametrize("operation, status", [("regenerate", 409), ("continue", 409), ("edit", 404)])
def test_what_can_be_known_before_a_stream_is_a_status(
    client: TestClient, id: str, operation: str, status: int
) -> None:
    body = {"message": 9, "text": "x"} if operation == "edit" else {}
    assert client.post(f"{ROOT}/{id}/{operation}", json={**body, "stream": True}).status_code == status


def test_a_failure_within_a_stream_is_an_event(client: TestClient, id: str) -> None:
    response = client.post(f"{ROOT}/{id}/send", json={"text": "x" * 5000, "stream": True})
    assert response.status_code == 200
    *_, error, done, _ = response.text.split("\n\n")
    assert "shorten it by" in json.loads(error.removeprefix("data: "))["error"]["message"]
    assert done == "data: [DONE]"


def test_without_a_model_nothing_is_asked(tmp_path: Path) -> None:
    chat = chat_over(tmp_path, Engine())
    with TestClient(build(chat, lambda app: app), base_url="http://127.0.0.1") as client:
        id = client.post(ROOT, json={}).json()["id"]
        refused(client.post(f"{ROOT}/{id}/send", json={"text": "hi"}), 503, "No model is loaded")
    assert chat.store.messages(id) == []


# The list, search, changes, files


def test_list_search_rename_delete_and_restore(client: TestClient, id: str) -> None:
    turn(client, id, "send", text="违约金是多少？")
    other = client.post(ROOT, json={"title": "Other"}).json()["id"]
    turn(client, other, "send", text="second")
    assert [row["id"] for row in client.get(ROOT).json()["data"]] == [other, id]
    (hit,) = client.get(ROOT, params={"q": "违约"}).json()["data"]
    assert (hit["id"], hit["snippet"]["hit"]) == (id, "违约")
    assert client.patch(f"{ROOT}/{id}", json={"title": "租约"}).json()["title"] == "租约"
    assert [row["id"] for row in client.get(ROOT, params={"q": "租约"}).json()["data"]] == [id]
    assert client.delete(f"{ROOT}/{id}").status_code == 204
    assert [row["id"] for row in client.get(ROOT).json()["data"]] == [other]
    assert client.get(f"{ROOT}/{id}").status_code == 404
    assert client.post(f"{ROOT}/{id}/restore").json()["title"] == "租约"
    assert shown(client, id) == ["违约金是多少？", "回复 1"]


def test_settings_are_checked(client: TestClient, id: str) -> None:
    body = {"preferences": {"system": "简短", "temperature": 0.5}}
    assert client.patch(f"{ROOT}/{id}", json=body).json()["preferences"] == body["preferences"]
    refused(client.patch(f"{ROOT}/{id}", json={"preferences": {"temperature": 9}}), 422, "temperature")
    refused(client.patch(f"{ROOT}/{id}", json={"preferences": {"unknown": 9}}), 422, "unknown")
    assert client.get(f"{ROOT}/{id}").json()["preferences"] == body["preferences"]


@pytest.mark.parametrize("format, suffix", [("json", "json"), ("markdown", "md")])
def test_files_go_out_and_in(client: TestClient, id: str, format: str, suffix: str) -> None:
    turn(client, id, "send", text="违约金")
    file = client.get(f"{ROOT}/{id}/export", params={"format": format})
    assert file.headers["content-disposition"].endswith(f'.{suffix}"')
    made = client.post(f"{ROOT}/import", content=file.content)
    assert made.status_code == 201 and made.json()["id"] != id and made.json()["title"] == "违约金"
    assert shown(client, made.json()["id"]) == shown(client, id)


def test_bad_files_are_refused(client: TestClient) -> None:
    refused(client.post(f"{ROOT}/import", content=b"{}"), 400, "can't be imported")
    refused(client.get(f"{ROOT}/x/export", params={"format": "pdf"}), 422, "format")


def test_a_file_that_is_too_large_is_refused(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (conversations_api, transfer):
        monkeypatch.setattr(module, "LARGEST", 1_000_000)
    refused(client.post(f"{ROOT}/import", content=b" " * 1_500_000), 400, "larger than 1 MB")


def test_a_failing_disk_is_said(client: TestClient, chat: Chat) -> None:
    chat.store._connection.execute("drop table message")
    refused(client.get(ROOT), 503, "can't be used")
