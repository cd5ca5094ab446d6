"""The app as a process: how it starts, what it says, and how it ends."""

import os
import queue
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from filelock import FileLock

from chatapp.store import Store
from tests import tiny
from tests.serving import closed_port

CODE = Path(__file__).parent.parent
PATIENCE = 60  # seconds; only a failure takes so long


class Running:
    """A started app and the lines that it has printed."""

    def __init__(self, *arguments: str, environment: dict[str, str] | None = None) -> None:
        # Fetching meets a closed port: without network unless a test says otherwise.
        offline = {"PIP_INDEX_URL": f"http://127.0.0.1:{closed_port()}/simple", "PIP_CONFIG_FILE": os.devnull}
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("QUATRAIN_", "PIP_"))}
        self.process = subprocess.Popen(
            [sys.executable, "app.py", *arguments],
            cwd=CODE,
            env={**kept, **offline, "PYTHONIOENCODING": "utf-8", **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
        )
        self.lines: list[str] = []
        self._arriving: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self._arriving.put(line.rstrip("\n"))
        self._arriving.put(None)

    def line_with(self, text: str) -> str:
        """The next line that holds this text, waiting for it."""
        while (line := self._arriving.get(timeout=PATIENCE)) is not None:
            self.lines.append(line)
            if text in line:
                return line
        raise AssertionError(f"it ended without saying {text!r}: {self.lines}")

    def address(self) -> str:
        return self.line_with("Quatrain is at").split()[-1]

    def end(self) -> tuple[int, list[str]]:
        """Waits for its end: the exit status and all lines."""
        while (line := self._arriving.get(timeout=PATIENCE)) is not None:
            self.lines.append(line)
        return self.process.wait(PATIENCE), self.lines

    def signal(self, number: int) -> float:
        """Sends a signal; the seconds until the process had ended."""
        begun = time.monotonic()
        self.process.send_signal(number)
        self.process.wait(PATIENCE)
        return time.monotonic() - begun


Start = Callable[..., Running]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model, so that a start loads something at once."""
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    tiny.save_folder(folder, tiny.LLAMA, tiny.byte_level_tokenizer())
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "数据"


@pytest.fixture
def start(data: Path) -> Iterator[Start]:
    started = []

    def run(*arguments: str, **more: dict[str, str]) -> Running:
        started.append(Running("--data", str(data), "--port", str(closed_port()), *arguments, **more))
        return started[-1]

    yield run
    for running in started:
        running.process.kill()
        running.process.wait()


def test_a_first_start_without_network_says_one_sentence_and_answers(start: Start, data: Path) -> None:
    left = data / "uploads" / "abc" / "salary.pdf"  # as a kill leaves a private file
    left.parent.mkdir(parents=True)
    left.write_bytes(b"%PDF")
    running = start()
    address = running.address()
    sentence = running.line_with("could not be fetched")
    assert "SmolLM2-135M-Instruct" in sentence and "connect once" in sentence
    health = httpx.get(f"{address}/health").json()
    assert health == {"status": "ok", "model": {"name": "", "state": "empty", "message": ""}}
    page = httpx.get(address)
    assert page.status_code == 200 and "Quatrain" in page.text
    assert httpx.get(address, headers={"host": "example.com"}).status_code == 400
    assert httpx.post(f"{address}/gradio_api/queue/join", headers={"origin": "http://example.com"}).status_code == 403
    assert not left.exists()
    assert running.signal(signal.SIGTERM) < 5
    status, lines = running.end()
    assert status == 0
    assert [line for line in lines if "Fetching" not in line] == [f"Quatrain is at {address}", sentence]
    assert list((data / "checkpoints").glob(".fetching-*")) == []


def test_a_day_with_a_model(start: Start, data: Path, checkpoint: Path) -> None:
    """One start, since each takes seconds: a busy port, the environment, a second process, Ctrl+C in a reply;
    what was deleted in the one before goes with all that was read of it."""
    store = Store(data / "conversations.db")
    store.delete(store.create().id)
    store.close()
    read = data / "warm" / "of-it.kv"
    read.parent.mkdir()
    read.write_bytes(b"keys and values of what was deleted")
    with socket.create_server(("127.0.0.1", 0)) as other:
        busy = other.getsockname()[1]
        running = start("--port", str(busy), environment={"QUATRAIN_MODEL": str(checkpoint)})
        assert running.line_with("is busy").startswith(f"Port {busy} is busy; using ")
        address = running.address()
    assert int(address.rsplit(":")[-1]) > busy
    running.line_with("tiny is ready")
    assert not read.exists()
    assert httpx.get(f"{address}/health").json()["model"]["name"] == "tiny"

    status, lines = start().end()
    assert status == 1
    assert lines == [f"Quatrain is already running on {data}; use its window, or give another folder with --data."]

    body = {"messages": [{"role": "user", "content": "你好"}], "max_tokens": 5, "seed": 1}
    reply = httpx.post(f"{address}/v1/chat/completions", json=body, timeout=PATIENCE).json()
    assert reply["model"] == "tiny" and reply["usage"]["completion_tokens"] <= 5

    with httpx.stream(
        "POST", f"{address}/v1/chat/completions", json={**body, "max_tokens": 1000, "stream": True}, timeout=PATIENCE
    ) as stream:
        next(stream.iter_lines())
        assert running.signal(signal.SIGINT) < 5
    status, lines = running.end()
    assert status == 0 and not any("Traceback" in line for line in lines)
    with FileLock(data / "lock", timeout=0):
        assert list(sqlite3.connect(data / "conversations.db").execute("pragma quick_check")) == [("ok",)]


def test_it_ends_at_once_while_it_is_starting(start: Start, data: Path) -> None:
    running = start()
    while not (data / "lock").exists():
        assert running.process.poll() is None
        time.sleep(0.01)
    assert running.signal(signal.SIGTERM) < 5
    status, lines = running.end()
    assert status == 0 and not any("Traceback" in line for line in lines)


def _a_file(data: Path) -> None:
    data.write_text("")


def _a_folder_in_the_way(data: Path) -> None:
    (data / "lock").mkdir(parents=True)


def _a_damaged_store(data: Path) -> None:
    data.mkdir()
    (data / "conversations.db").write_bytes(b"no database, but long enough for a header" * 100)


@pytest.mark.parametrize("spoil", [_a_file, _a_folder_in_the_way, _a_damaged_store])
def test_a_data_folder_that_can_not_be_used_is_one_sentence(
    start: Start, data: Path, spoil: Callable[[Path], None]
) -> None:
    spoil(data)
    status, lines = start().end()
    assert status == 1 and len(lines) == 1
    assert str(data) in lines[0] and "[Errno" not in lines[0]


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--host", "0.0.0.0"], "--host 0.0.0.0 would open the app to the network"),
        (["--port", "99999"], "--port 99999 is no port"),
        (["--context", "5"], "--context 5 is too small"),
        (["--tier", "int1"], "--tier"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_a_setting_that_can_not_be_is_one_sentence_and_makes_nothing(
    start: Start, data: Path, arguments: list[str], words: str
) -> None:
    status, lines = start(*arguments).end()
    assert status == 1 and len(lines) == 1 and words in lines[0]
    assert not data.exists()
