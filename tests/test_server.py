"""Who may talk to the app: this machine's own pages and programs, and nobody else's."""

import asyncio
import errno
import http.client
import json
import socket
from collections.abc import Callable, Iterator

import pytest
from fastapi import FastAPI, WebSocket
from starlette.responses import PlainTextResponse
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from chatapp import server
from chatapp.library import Library
from chatapp.server import PORTS_TRIED, UnhurriedEvents, address, build, listen
from chatapp.session import Chat
from chatapp.settings import Settings, SettingsError, parse
from chatapp.store import Store
from tests.fakes import HashEmbeddings, ready_engine, scripted
from tests.serving import serving


def mount_page(app: FastAPI) -> FastAPI:
    """Stands for the page: its files, something that changes things, and a websocket."""

    @app.get("/assets/{name}")
    def asset(name: str) -> PlainTextResponse:
        return PlainTextResponse(name, status_code=404 if "gone" in name else 200)

    @app.post("/upload")
    def upload() -> dict[str, str]:
        return {"done": "yes"}

    @app.websocket("/live")
    async def live(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text("hello")
        await websocket.close()

    return app


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    data = tmp_path_factory.mktemp("data")
    chat = Chat(ready_engine(scripted()), Library(data / "kb", HashEmbeddings), Store(data / "conversations.db"))
    with serving(build(chat, mount_page)) as number:
        yield number


Ask = Callable[..., tuple[int, str]]


@pytest.fixture
def ask(port: int) -> Ask:
    def send(method: str, path: str, **headers: str | None) -> tuple[int, str]:
        """Status and text; headers come out exactly as given, {port} being the server's."""
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.putrequest(method, path, skip_host=True)
        for name, value in {"host": "127.0.0.1:{port}", **headers}.items():
            if value is not None:
                connection.putheader(name, value.format(port=port))
        connection.putheader("content-length", "0")
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, answer.read().decode()

    return send


HERE = ["127.0.0.1:{port}", "localhost:{port}", "LOCALHOST:{port}", "[::1]:{port}", "127.0.0.2:{port}", "localhost"]
ELSEWHERE = [
    "example.com",
    "example.com:{port}",
    "127.0.0.1.example.com",
    "localhost.example.com:{port}",
    "127.0.0.1:{port}@example.com",
    "192.168.1.5:{port}",
    "0.0.0.0:{port}",
    "[fe80::1]:{port}",
    "[::1",
    "",
]


@pytest.mark.parametrize("host", HERE)
def test_names_of_this_machine_are_answered(ask: Ask, host: str) -> None:
    status, text = ask("GET", "/health", host=host)
    assert (status, json.loads(text)["status"]) == (200, "ok")


@pytest.mark.parametrize("host", ELSEWHERE)
@pytest.mark.parametrize("method, path", [("GET", "/health"), ("POST", "/upload"), ("GET", "/no-such-page")])
def test_other_names_are_refused(ask: Ask, host: str, method: str, path: str) -> None:
    status, text = ask(method, path, host=host)
    assert status == 400 and "this machine only" in text


def test_a_request_without_a_host_is_refused(ask: Ask) -> None:
    assert ask("GET", "/health", host=None)[0] == 400


@pytest.mark.parametrize("host", HERE)
def test_a_page_of_ours_may_post(ask: Ask, host: str) -> None:
    assert ask("POST", "/upload", host=host, origin=f"http://{host}") == (200, '{"done":"yes"}')


def test_a_program_that_is_no_page_may_post(ask: Ask) -> None:
    assert ask("POST", "/upload")[0] == 200


FOREIGN = [
    "https://example.com",
    "http://127.0.0.1.example.com:{port}",
    "http://127.0.0.1",
    "http://127.0.0.1:1",
    "http://localhost:{port}",  # another name of ours, but not the one that was asked
    "http://127.0.0.1:{port}@example.com",
    "null",
    "",
    "127.0.0.1",
    "file://",
    "http://[",
    "http://[::1",
]


@pytest.mark.parametrize("origin", FOREIGN)
@pytest.mark.parametrize(
    "method, path", [("POST", "/upload"), ("POST", "/v1/chat/completions"), ("GET", "/health"), ("OPTIONS", "/upload")]
)
def test_pages_of_other_sites_are_refused(ask: Ask, origin: str, method: str, path: str) -> None:
    status, text = ask(method, path, origin=origin)
    assert status == 403 and "may not talk" in text


@pytest.mark.parametrize("host", ["127.0.0.1:{port}", "localhost:{port}"])
def test_a_page_of_ours_may_open_a_websocket(port: int, host: str) -> None:
    address = host.format(port=port)
    with connect(f"ws://{address}/live", origin=f"http://{address}", proxy=None) as websocket:
        assert websocket.recv(timeout=20) == "hello"


@pytest.mark.parametrize("origin", ["https://example.com", "null", "http://127.0.0.1:1", "http://["])
def test_pages_of_other_sites_may_not_open_a_websocket(port: int, origin: str) -> None:
    with pytest.raises(InvalidStatus) as refused, connect(f"ws://127.0.0.1:{port}/live", origin=origin, proxy=None):
        pass
    assert refused.value.response.status_code == 403


def test_a_foreign_host_may_not_open_a_websocket(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        with pytest.raises(InvalidStatus) as refused, connect("ws://example.com/live", sock=connection):
            pass
    assert refused.value.response.status_code == 400


@pytest.mark.parametrize(
    ("name", "kept"),
    [("index-DphvyggB.js", True), ("Index-DAx5Uzyn2.css", True), ("gone-DphvyggB.js", False), ("a.js", False)],
)
def test_browsers_keep_files_that_are_there_and_carry_a_hash(port: int, name: str, kept: bool) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", f"/assets/{name}")
    assert ("immutable" in connection.getresponse().headers.get("cache-control", "")) == kept


def test_the_page_may_load_from_here_only_and_not_be_framed(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", "/health")
    policy = connection.getresponse().headers["content-security-policy"].split("; ")
    assert {"img-src 'self' data: blob:", "form-action 'self'", "frame-ancestors 'none'"} <= set(policy)


# Ports


def settings(port: int, host: str = "127.0.0.1") -> Settings:
    return parse(["--port", str(port), "--host", host], {})


@pytest.fixture
def busy() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_the_port_asked_for_is_taken_and_held() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        free = other.getsockname()[1]
    with listen(settings(free)) as listener:
        assert listener.getsockname() == ("127.0.0.1", free)
        with socket.create_connection(("127.0.0.1", free), timeout=5):
            pass  # early visitors wait for the page instead of being refused
        with listen(settings(free)) as second:
            assert second.getsockname()[1] > free


def test_a_busy_port_gives_way_to_the_next_free_one(busy: int) -> None:
    with listen(settings(busy)) as listener:
        assert busy < listener.getsockname()[1] < busy + PORTS_TRIED


def test_no_free_port_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def none_free(where: tuple[str, int], **_: object) -> socket.socket:
        tried.append(where[1])
        raise OSError(errno.EADDRINUSE, "Address already in use")

    monkeypatch.setattr(socket, "create_server", none_free)
    with pytest.raises(SettingsError, match="Port 7860 and the 19 after it"):
        listen(settings(7860))
    assert tried == list(range(7860, 7880))


def test_the_highest_port_has_none_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_free(*_: object, **__: object) -> socket.socket:
        raise OSError(errno.EADDRINUSE, "Address already in use")

    monkeypatch.setattr(socket, "create_server", none_free)
    with pytest.raises(SettingsError, match="--port"):
        listen(settings(65535))


@pytest.mark.parametrize(
    "error", [OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address"), socket.gaierror(-2, "unknown")]
)
def test_an_address_that_this_machine_lacks_is_a_sentence(error: OSError, monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(*_: object, **__: object) -> socket.socket:
        raise error

    monkeypatch.setattr(socket, "create_server", lacking)
    with pytest.raises(SettingsError, match="--host ::1 is no address of this machine"):
        listen(settings(7860, "::1"))


@pytest.mark.parametrize("host, shown", [("127.0.0.1", "127.0.0.1"), ("localhost", "localhost"), ("::1", "[::1]")])
def test_the_address_can_be_opened_in_a_browser(host: str, shown: str) -> None:
    assert address(host, 7860) == f"http://{shown}:7860"


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/openapi.json"])
def test_nothing_of_fastapis_own_pages_is_served(ask: Ask, path: str) -> None:
    assert ask("GET", path)[0] == 404


def test_conversations_are_behind_the_same_checks(ask: Ask) -> None:
    assert ask("GET", "/v1/conversations")[0] == 200
    assert ask("GET", "/v1/conversations", host="evil.example")[0] == 400
    assert ask("POST", "/v1/conversations/import", origin="http://evil.example")[0] == 403


async def _answered(app: UnhurriedEvents, path: str) -> float:
    """When the answer was sent, in the loop's time."""
    sent: list[float] = []

    async def send(message: dict) -> None:
        sent.append(asyncio.get_running_loop().time())

    await app({"type": "http", "path": f"/gradio_api/queue/{path}"}, None, send)
    return sent[-1]


@pytest.mark.parametrize(("message", "seconds", "held"), [("close_stream", 0.2, True), ("completed", 20, False)])
def test_an_event_is_answered_only_when_the_page_knows_that_its_stream_has_ended(
    monkeypatch: pytest.MonkeyPatch, message: str, seconds: float, held: bool
) -> None:
    monkeypatch.setattr(server, "STREAM_END", seconds)

    async def gradio(scope: dict, receive: None, send: Callable) -> None:
        await send({"type": "http.response.body", "body": f'data: {{"msg":"{message}"}}\n\n'.encode()})

    async def answers() -> tuple[float, float, float]:
        app = UnhurriedEvents(gradio)
        first = await _answered(app, "join") - asyncio.get_running_loop().time()
        ended = await _answered(app, "data")
        return first, await _answered(app, "join") - ended, await _answered(app, "join") - ended

    first, second, third = asyncio.run(answers())
    assert first < 20
    assert (second >= seconds) == held
    assert third >= second
