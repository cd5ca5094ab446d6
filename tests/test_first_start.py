"""A newcomer's first start with a network, and every later one without: slow, because 184 MB are fetched."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from chatapp import checkpoints

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
PDF = Path(__file__).parent / "data" / "pdf" / "en_tracemonkey_two_column.pdf"
OFFLINE = {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}


@contextmanager
def started(data: Path, **environment: str) -> Iterator[str]:
    """The address of an app with this data folder, and what it printed in `data/log.txt`."""
    log = data / "log.txt"
    own = {name: value for name, value in os.environ.items() if not name.startswith("QUATRAIN_")}
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "app.py", "--data", str(data), "--port", "17960"],
            cwd=ROOT,
            env={**own, **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            yield wait_for(lambda: re.search(r"http://[\d.:]+", log.read_text()))[0]
        finally:
            process.terminate()
            process.wait(20)


def wait_for(look: Any, seconds: float = 300) -> Any:
    deadline = time.monotonic() + seconds
    while not (seen := look()):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return seen


def health(address: str) -> dict[str, Any]:
    try:
        with urllib.request.urlopen(f"{address}/health") as response:
            return json.load(response)["model"]
    except urllib.error.URLError:
        return {"state": "unreachable"}


def ask(address: str, text: str, **more: str) -> dict[str, Any]:
    body = {"messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 24, **more}
    request = urllib.request.Request(
        f"{address}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request) as response:
        return json.load(response)


def test_the_first_start_fetches_both_models_and_later_ones_need_no_network(tmp_path: Path) -> None:
    data = tmp_path / "数据"
    data.mkdir()
    with started(data) as address:
        wait_for(lambda: health(address)["state"] == "ready")
        assert "Paris" in ask(address, "Tell me the capital of France.")["choices"][0]["message"]["content"]
        wait_for(lambda: (data / "checkpoints" / checkpoints.DEFAULT_EMBEDDER / "modules.json").is_file())
        said = (data / "log.txt").read_text()
        for name in (checkpoints.DEFAULT_MODEL, checkpoints.DEFAULT_EMBEDDER):
            assert f"Fetching {name}: 0 of 9" in said

    base = data / "kb" / "papers"
    base.mkdir(parents=True)
    (base / "name.json").write_text('{"name": "论文"}', encoding="utf-8")
    command = [sys.executable, "-m", "knowledge", "--data", str(data), "ingest", str(base), str(PDF)]
    subprocess.run(command, cwd=ROOT, env={**os.environ, **OFFLINE}, check=True)

    with started(data, **OFFLINE) as address:
        wait_for(lambda: health(address)["state"] == "ready")
        answer = ask(address, "Which program finds primes with the sieve of Eratosthenes?", knowledge_base="论文")
        assert (answer["citations"][0]["name"], answer["citations"][0]["page"]) == (PDF.name, 2)
        assert "Fetching" not in (data / "log.txt").read_text()
