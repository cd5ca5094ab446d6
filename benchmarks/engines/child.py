"""The parent's side: an engine in a process of its own that stays loaded, in the process group of the benchmark."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

from chatapp.settings import THREADING

VARIABLE = "QUATRAIN_PEER_PYTHON"
ABSENT = f"llama-cpp-python is not here, and its figures are left out: let {VARIABLE} name a Python that has it."
ROOT = Path(__file__).parents[2]


class EngineError(RuntimeError):
    """An engine ended; the text is a sentence with its last words."""


class Child:
    """An engine of this package, by the name of its module. Only one works at a time: who asks waits for the answer."""

    def __init__(self, name: str, threads: int, python: str = sys.executable) -> None:
        self._name = name
        self._errors = tempfile.TemporaryFile()
        as_in_app = THREADING if name == "ours" else {}
        environment = as_in_app | os.environ | {"OMP_NUM_THREADS": str(threads)}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._errors, "text": True}
        command = [python, "-m", f"{__package__}.{name}"]
        try:
            self._process = subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)
        except OSError as error:
            raise EngineError(f"{python} can't be run ({error.strerror}); {VARIABLE} should name a Python.") from error

    def ask(self, do: str, **details: Any) -> Any:
        """What the engine's method `do` returns. Raises EngineError where the engine ended instead."""
        try:
            print(json.dumps({"do": do, **details}), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            pass  # there will be no answer either
        answer = self._process.stdout.readline()
        if not answer:
            raise EngineError(f"{self._name} ended without an answer to {do!r}: {self._last_words()}")
        return json.loads(answer)

    def _last_words(self) -> str:
        self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"it said nothing (exit status {self._process.returncode})."

    def __enter__(self) -> Child:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """The end of the questions ends the engine; one that is still at work is not waited for."""
        if error is not None:
            self._process.kill()
        self._process.communicate()
        self._errors.close()


def find_peer() -> str | None:
    """A Python that has llama-cpp-python: the one that the environment names, or this one. None, with a line that says
    so, where it is absent."""
    here = sys.executable if importlib.util.find_spec("llama_cpp") else None
    found = os.environ.get(VARIABLE) or here
    if found is None:
        print(ABSENT, file=sys.stderr)
    return found
