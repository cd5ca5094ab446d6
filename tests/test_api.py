"""The HTTP routes, spoken to by OpenAI's own client over a real connection."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from fastapi import FastAPI

from chatapp.api import NOTHING_FOUND, add_routes
from chatapp.checkpoints import FetchError
from chatapp.conversation import Turn
from chatapp.engine import Engine, EngineError, Source
from chatapp.library import Library
from chatapp.recall import Recall
from models import LoadedModel
from tests.fakes import Gate, HashEmbeddings, ready_engine, scripted
from tests.serving import serving
from tests.waiting import eventually

CONTRACT = "The rent is 1,200 francs a month, due on the first day."
HELLO = [{"role": "user", "content": "hi"}]


class Service:
    """A served application with one model, and a client of it."""

    def __init__(self, port: int, engine: Engine, library: Library) -> None:
        self.port = port
        self.engine = engine
        self.library = library
        self.client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=30)

    def chat(self, messages: list[dict[str, Any]] | None = None, **more: Any) -> Any:
        return self.client.chat.completions.create(model="any", messages=messages or HELLO, **more)

    def post(self, body: Any) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return httpx.post(
            f"http://127.0.0.1:{self.port}/v1/chat/completions",
            content=content,
            headers={"content-type": "application/json"},
            timeout=30,
        )


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Service]]:
    """Serves a model, or an engine, until the test ends."""
    blocks = []

    def start(engine: Engine | LoadedModel, embeddings: Callable[[], Any] = HashEmbeddings) -> Service:
        engine = engine if isinstance(engine, Engine) else ready_engine(engine)
        library = Library(tmp_path / "kb", embeddings)
        app = FastAPI()
        add_routes(app, engine, library)
        blocks.append(serving(app))
        return Service(blocks[-1].__enter__(), engine, library)

    yield start
    for block in blocks:
        block.__exit__(None, None, None)


@pytest.fixture
def loaded() -> LoadedModel:
    return scripted("你好, world!")


@pytest.fixture
def service(serve: Callable[..., Service], loaded: LoadedModel) -> Service:
    return serve(loaded)


def add_document(library: Library, folder: Path) -> str:
    base = library.create("合同")
    (folder / "lease.txt").write_text(CONTRACT, encoding="utf-8")
    library.open(base).ingest([folder / "lease.txt"])
    return base


# Replies


def test_a_whole_reply(service: Service, loaded: LoadedModel) -> None:
    reply = service.chat()
    assert reply.object == "chat.completion" and reply.model == "scripted" and reply.id.startswith("chatcmpl-")
    (choice,) = reply.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", "你好, world!", "stop")
    prompt = len(loaded.chat_prompt(HELLO).ids)
    written = len("你好, world!".encode())
    assert reply.usage.model_dump(include={"prompt_tokens", "completion_tokens", "total_tokens"}) == {
        "prompt_tokens": prompt,
        "completion_tokens": written,
        "total_tokens": prompt + written,
    }
    assert reply.citations == []
    check_ledger(reply.ledger, prompt)


def check_ledger(ledger: dict[str, Any], prompt: int) -> None:
    assert ledger["prompt"] == sum(entry["tokens"] for entry in ledger["entries"]) == prompt
    assert ledger["prompt"] + ledger["reply"] + ledger["free"] == ledger["context"] == 2048
    assert ledger["left_out"] == []


def test_a_streamed_reply(service: Service) -> None:
    chunks = list(service.chat(stream=True))
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices[0].delta.content]
    assert "".join(pieces) == "你好, world!" and len(pieces) > 5
    assert "\ufffd" not in "".join(pieces)
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == ["stop"]
    assert chunks[-1].usage.completion_tokens == len("你好, world!".encode())
    check_ledger(chunks[-1].ledger, chunks[-1].usage.prompt_tokens)
    assert not any(getattr(chunk, "ledger", None) for chunk in chunks[:-1])


def test_a_stream_ends_with_done(service: Service) -> None:
    lines = service.post({"messages": HELLO, "stream": True}).text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_the_length_of_a_reply_can_be_bounded(service: Service, name: str) -> None:
    reply = service.chat(**{name: 3})
    assert (reply.choices[0].message.content, reply.choices[0].finish_reason) == ("你", "length")
    assert reply.usage.completion_tokens == 3


def test_a_reply_that_repeats_itself_is_complete(serve: Callable[..., Service]) -> None:
    choice = serve(scripted("and so on " * 100)).chat(max_tokens=400).choices[0]
    assert (len(choice.message.content), choice.finish_reason) == (128, "stop")


def test_the_whole_conversation_reaches_the_model(service: Service, loaded: LoadedModel) -> None:
    service.chat(
        [
            {"role": "system", "content": "be kind"},
            {"role": "user", "content": "first"},
            {"role": "assistant", "content": "answer"},
            {"role": "user", "content": "second"},
        ]
    )
    assert loaded.model.prompts == ["system\nbe kind\nuser\nfirst\nassistant\nanswer\nuser\nsecond\nassistant\n"]


@pytest.mark.parametrize("temperature", [0, 1e-40, 0.7, 2])
def test_any_possible_temperature_gives_a_reply(service: Service, temperature: float) -> None:
    assert service.chat(temperature=temperature, top_p=0.5, seed=2**62).choices[0].message.content == "你好, world!"


def test_values_that_are_null_are_those_that_were_not_given(service: Service) -> None:
    body = {"messages": HELLO, "max_tokens": None, "temperature": None, "knowledge_base": None, "user": "ignored"}
    assert service.post(body).status_code == 200


def test_half_a_character_is_a_question_mark(service: Service, loaded: LoadedModel) -> None:
    assert service.post(b'{"messages": [{"role": "user", "content": "a\\ud83db"}]}').status_code == 200
    assert "a?b" in loaded.model.prompts[0]


# Documents


@pytest.mark.parametrize("stream", [False, True])
def test_a_knowledge_base_brings_citations(service: Service, loaded: LoadedModel, tmp_path: Path, stream: bool) -> None:
    base = add_document(service.library, tmp_path)
    question = [{"role": "user", "content": "What is the rent?"}]
    reply = service.chat(question, stream=stream, extra_body={"knowledge_base": base})
    (citation,) = (list(reply)[-1] if stream else reply).citations
    assert (citation["name"], citation["page"], citation["text"]) == ("lease.txt", None, CONTRACT)
    assert 0 < citation["score"] <= 1 and "base" not in citation
    assert CONTRACT in loaded.model.prompts[0]


@pytest.mark.parametrize("stream", [False, True])
def test_several_knowledge_bases_are_asked_at_once(service: Service, tmp_path: Path, stream: bool) -> None:
    base, other = add_document(service.library, tmp_path), service.library.create("garage")
    (tmp_path / "garage.txt").write_text("The rent of the garage is 90 francs a month.", encoding="utf-8")
    service.library.open(other).ingest([tmp_path / "garage.txt"])
    question = [{"role": "user", "content": "What is the rent?"}]
    reply = service.chat(question, stream=stream, extra_body={"knowledge_base": [base, other]})
    citations = (list(reply)[-1] if stream else reply).citations
    assert {(citation["name"], citation["base"]) for citation in citations} == {
        ("lease.txt", base),
        ("garage.txt", other),
    }


@pytest.mark.parametrize("stream", [False, True])
def test_a_quote_and_what_was_searched_for_come_beside_the_citations(
    service: Service, tmp_path: Path, stream: bool
) -> None:
    base = add_document(service.library, tmp_path)
    turns = [("user", "What is the rent?"), ("assistant", "A lot."), ("user", "When is it due?")]
    messages = [{"role": role, "content": text} for role, text in turns]
    reply = service.chat(messages, stream=stream, extra_body={"knowledge_base": base, "mode": "auto"})
    told = list(reply)[-1] if stream else reply
    assert told.searched_for == "When is it due? (rent)"
    assert (told.quote["name"], told.quote["page"], told.quote["text"]) == ("lease.txt", None, CONTRACT)
    assert [(part["name"], part["text"]) for part in told.quote["parts"]] == [("lease.txt", CONTRACT)]
    assert (told.quote["draft"], told.answered_from) == (True, "documents")


@pytest.mark.parametrize(
    ("followups", "searched"),
    [
        (True, "When is it due? (rent)"),
        ("rule", "When is it due? (rent)"),
        (False, None),
        ("off", None),
        ("model", "On which day is the rent due?"),
    ],
)
def test_a_request_says_how_follow_ups_are_made_to_stand_alone(
    serve: Callable[..., Service], tmp_path: Path, followups: bool | str, searched: str | None
) -> None:
    service = serve(scripted(lambda prompt: "On which day is the rent due?" if "Write only" in prompt else "Soon."))
    base = add_document(service.library, tmp_path)
    turns = [("user", "What is the rent?"), ("assistant", "A lot."), ("user", "When is it due?")]
    messages = [{"role": role, "content": text} for role, text in turns]
    reply = service.chat(messages, extra_body={"knowledge_base": base, "mode": "auto", "followups": followups})
    assert (reply.searched_for, reply.choices[0].message.content) == (searched, "Soon.")


def test_an_unknown_way_of_follow_ups_is_refused(service: Service) -> None:
    answer = service.post({"messages": HELLO, "followups": "sometimes"})
    assert answer.status_code == 422 and "followups" in answer.json()["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_follow_up_does_not_read_the_passages_again(
    service: Service, loaded: LoadedModel, tmp_path: Path, stream: bool
) -> None:
    extra = {"knowledge_base": add_document(service.library, tmp_path), "mode": "auto"}
    first = [{"role": "user", "content": "What is the rent?"}]
    replied = service.chat(first, stream=stream, extra_body=extra)
    text = "".join(piece.choices[0].delta.content or "" for piece in replied) if stream else "你好, world!"
    assert text == "你好, world!"
    asked = {"role": "user", "content": "On which day is the rent due?"}
    told = service.chat([*first, {"role": "assistant", "content": f"{text}\n"}, asked], extra_body=extra)
    one, two = loaded.model.prompts
    assert two.startswith(one) and two.count(CONTRACT) == 1
    assert told.usage.prompt_tokens_details.cached_tokens >= len(one.encode())
    service.chat([*first, {"role": "assistant", "content": "Something else."}, asked], extra_body=extra)
    assert not loaded.model.prompts[-1].startswith(one)


def test_this_document_is_the_one_that_was_given(service: Service, loaded: LoadedModel, tmp_path: Path) -> None:
    extra = {"knowledge_base": add_document(service.library, tmp_path), "mode": "auto"}
    first = [{"role": "user", "content": "What is the rent?"}]
    text = service.chat(first, extra_body=extra).choices[0].message.content
    asked = {"role": "user", "content": "What does this document say on the day when the rent is due?"}
    told = service.chat([*first, {"role": "assistant", "content": text}, asked], extra_body=extra)
    assert told.searched_for == "What does lease say on the day when the rent is due?"


def test_no_more_exchanges_are_remembered_than_may_be() -> None:
    recall = Recall(most=2)
    exchanges = [(Turn("user", str(n)), Turn("assistant", f"reply {n}", (n,), "m")) for n in range(3)]
    for asked, replied in exchanges:
        recall.keep([], asked, replied)
    words = [[replace(turn, ids=None, model=None) for turn in exchange] for exchange in exchanges]
    assert [recall.completed(said) == list(exchange) for said, exchange in zip(words, exchanges, strict=True)] == [
        False,
        True,
        True,
    ]
    assert recall.completed([]) == []


@pytest.mark.parametrize("stream", [False, True])
def test_auto_goes_on_without_documents_that_do_not_say(service: Service, loaded: LoadedModel, stream: bool) -> None:
    body = {"knowledge_base": service.library.create("empty"), "mode": "auto"}
    reply = service.chat(stream=stream, extra_body=body)
    told = list(reply)[-1] if stream else reply
    assert (told.answered_from, told.quote, told.citations) == ("chat", None, [])
    assert len(loaded.model.prompts) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_documents_that_do_not_say_are_not_given_to_the_model(
    service: Service, loaded: LoadedModel, stream: bool
) -> None:
    base = service.library.create("empty")
    reply = service.chat(stream=stream, extra_body={"knowledge_base": base})
    if stream:
        text = "".join(chunk.choices[0].delta.content or "" for chunk in reply)
    else:
        text = reply.choices[0].message.content
        assert reply.ledger is None
    assert text == NOTHING_FOUND and loaded.model.prompts == []


# Refusals


@pytest.mark.parametrize("stream", [False, True])
def test_an_unknown_knowledge_base_is_not_found(service: Service, stream: bool) -> None:
    with pytest.raises(openai.NotFoundError, match="no knowledge base named 'x'"):
        service.chat(stream=stream, extra_body={"knowledge_base": "x"})


@pytest.mark.parametrize(
    "body, what",
    [
        ({}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "king", "content": "hi"}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]}, "last message"),
        ({"messages": HELLO, "temperature": -1}, "temperature"),
        ({"messages": HELLO, "temperature": 3}, "temperature"),
        (b'{"messages": [{"role": "user", "content": "hi"}], "temperature": NaN}', "temperature"),
        ({"messages": HELLO, "top_p": 0}, "top_p"),
        ({"messages": HELLO, "seed": 2**70}, "seed"),
        ({"messages": HELLO, "max_tokens": 0}, "max_tokens"),
        ({"messages": HELLO, "max_completion_tokens": "many"}, "max_completion_tokens"),
        (b"{not json", "JSON"),
        (b"\xff\xfe", ""),
        (b"[]", ""),
        (b"", ""),
    ],
)
def test_a_body_that_can_not_be_understood_is_an_error_as_openai_tells_it(
    service: Service, body: Any, what: str
) -> None:
    answer = service.post(body)
    error = answer.json()["error"]
    assert answer.status_code in (400, 422)
    assert what in error["message"] and error["type"] == "invalid_request_error"


def test_the_client_understands_such_an_error(service: Service) -> None:
    with pytest.raises(openai.UnprocessableEntityError, match="temperature") as caught:
        service.chat(temperature=-1)
    assert caught.value.type == "invalid_request_error"


@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_without_a_model_is_unavailable(serve: Callable[..., Service], stream: bool) -> None:
    with pytest.raises(openai.InternalServerError, match="No model is loaded") as caught:
        serve(Engine()).chat(stream=stream)
    assert caught.value.status_code == 503


def test_an_engine_that_failed_to_load_says_why(serve: Callable[..., Service]) -> None:
    def load(path: Path, **options: Any) -> LoadedModel:
        raise MemoryError

    engine = Engine(load)
    with pytest.raises(EngineError):
        engine.load(Source("huge", Path("huge")))
    service = serve(engine)
    with pytest.raises(openai.InternalServerError, match="huge could not be loaded: memory ran out") as caught:
        service.chat()
    assert caught.value.status_code == 503


def test_a_question_that_is_too_long_is_refused(service: Service) -> None:
    long = [{"role": "user", "content": "x" * 5000}]
    with pytest.raises(openai.BadRequestError, match="shorten it by"):
        service.chat(long)
    with pytest.raises(openai.APIError, match="shorten it by"):
        list(service.chat(long, stream=True))


def test_an_embedding_model_that_is_not_here_is_unavailable(serve: Callable[..., Service], loaded: LoadedModel) -> None:
    def embeddings() -> None:
        raise FetchError("multilingual-e5-small could not be fetched.")

    service = serve(loaded, embeddings)
    service.library.create("docs")
    with pytest.raises(openai.InternalServerError, match="could not be fetched"):
        service.chat(extra_body={"knowledge_base": "docs"})


@pytest.mark.parametrize("stream", [False, True])
def test_a_model_that_breaks_is_an_error_and_the_next_request_works(
    serve: Callable[..., Service], stream: bool
) -> None:
    steps = iter([None, None, RuntimeError("boom")])

    def before() -> None:
        if (error := next(steps, None)) is not None:
            raise error

    service = serve(scripted("Hello!", before=before))
    with pytest.raises(openai.APIError, match="boom"):
        list(service.chat(stream=stream))
    assert service.chat().choices[0].message.content == "Hello!"


# Going away, and many at once


def request_and_leave(port: int, stream: bool, reached: threading.Event) -> None:
    """Sends a request and closes the connection once the model works on it."""
    body = json.dumps({"messages": HELLO, "stream": stream}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        assert reached.wait(20)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_while_writing_frees_the_engine(serve: Callable[..., Service], stream: bool) -> None:
    writing, forwards = threading.Event(), []

    def before() -> None:
        forwards.append(1)
        time.sleep(0.005)  # so that the reply takes far longer than going away
        if len(forwards) == 5:
            writing.set()

    service = serve(scripted("0" * 10_000, context=20_000, before=before))
    service.post({"messages": HELLO, "max_tokens": 1})  # the server is warm
    forwards.clear()
    request_and_leave(service.port, stream, writing)
    eventually(lambda: not service.engine._queue)
    assert len(forwards) < 400  # of the 512 that a reply may take


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_while_its_prompt_is_read_frees_the_engine(
    serve: Callable[..., Service], stream: bool
) -> None:
    gate, layers = Gate(), []
    loaded = scripted(before=gate)
    service = serve(loaded)
    whole = loaded.model.new_cache

    def slow_layers(*arguments: Any) -> Any:
        cache = whole(*arguments)
        append = cache.append

        def slowly(layer: int, *rest: Any) -> Any:
            layers.append(layer)
            found = append(layer, *rest)
            time.sleep(1)  # as a layer of a large model on a long chunk
            return found

        cache.append = slowly
        return cache

    loaded.model.new_cache = slow_layers
    request_and_leave(service.port, stream, gate.reached)
    gate.open()
    eventually(lambda: not service.engine._queue)
    assert len(layers) <= 2
    assert loaded.model.prompts == []


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_while_it_waits_frees_its_place(serve: Callable[..., Service], stream: bool) -> None:
    gate = Gate()
    service = serve(scripted(before=gate))
    first = threading.Thread(target=service.chat, daemon=True)
    first.start()
    gate.reached.wait(20)
    queued = threading.Event()
    leaving = threading.Thread(target=request_and_leave, args=(service.port, stream, queued), daemon=True)
    leaving.start()
    eventually(lambda: len(service.engine._queue) == 2)
    queued.set()
    eventually(lambda: len(service.engine._queue) == 1)
    gate.open()
    first.join(20)
    assert not first.is_alive()


def test_requests_at_the_same_time_get_each_its_own_reply(serve: Callable[..., Service]) -> None:
    service = serve(scripted(lambda prompt: prompt.split("\n")[1] * 2))
    replies = {}

    def ask(number: int) -> None:
        reply = service.chat([{"role": "user", "content": f"<{number}>"}], stream=bool(number % 2))
        if number % 2:
            replies[number] = "".join(chunk.choices[0].delta.content or "" for chunk in reply)
        else:
            replies[number] = reply.choices[0].message.content

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert replies == {number: f"<{number}>" * 2 for number in range(12)}


def test_requests_that_wait_hold_up_neither_the_running_one_nor_others(serve: Callable[..., Service]) -> None:
    gate = Gate()
    service = serve(scripted(before=gate))
    statuses: list[int] = []

    def ask() -> None:
        body = {"messages": HELLO, "max_tokens": 2}
        url = f"http://127.0.0.1:{service.port}/v1/chat/completions"
        statuses.append(httpx.post(url, json=body, timeout=60).status_code)

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(61)]
    for thread in threads:
        thread.start()
    eventually(lambda: len(service.engine._queue) == 61)
    for path in ("health", "v1/chat/completions"):
        refused = httpx.request("GET", f"http://127.0.0.1:{service.port}/{path}", timeout=5)
        assert refused.status_code == (200 if path == "health" else 405)
    with pytest.raises(openai.NotFoundError):  # what looks into the documents needs a thread too
        service.chat(extra_body={"knowledge_base": "x"})
    gate.open()
    for thread in threads:
        thread.join(60)
    assert statuses == [200] * 61


def test_health_tells_the_models_state(serve: Callable[..., Service], loaded: LoadedModel) -> None:
    def health(service: Service) -> Any:
        return httpx.get(f"http://127.0.0.1:{service.port}/health").json()

    assert health(serve(loaded)) == {"status": "ok", "model": {"name": "scripted", "state": "ready", "message": ""}}
    assert health(serve(Engine()))["model"] == {"name": "", "state": "empty", "message": ""}
