"""What happens in other threads, waited for with a bound."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from chatapp.engine import Cancelled, EngineError


def in_thread(work: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """Runs work aside; what it returned, or the error that it raised, is in the list when the thread has ended."""
    result = []

    def run() -> None:
        try:
            result.append(work())
        except (EngineError, Cancelled) as error:
            result.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, result


def eventually(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)
