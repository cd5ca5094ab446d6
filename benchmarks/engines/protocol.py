"""The child's side: a line of JSON asks for a method by name, a line answers with what it returned.

An engine has these methods. Their seconds are measured by the engine itself, around the work alone.

    open(path, threads, length, ..)  loads a model, with room for `length` positions
    decode(ids, new)                 returns the ids that greedy choice adds, and the seconds from the first to the last
    prefill(ids)                     returns the seconds until the id that follows is known
    first(path, threads, text, ..)   loads a model and begins a reply; returns the seconds to its first token
    forget()                         empties what is kept of earlier prompts
    reply(ids, new, ..)              goes on where an earlier prompt and reply differ from these ids; returns the ids
                                     that were added, the seconds to the first of them, and how many ids were read

A decode that is asked again with the same ids finds them in the cache, all but the last.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any


def serve(engine: Any) -> None:
    """Answers until the questions end. What libraries print goes to standard error: the answers have a line each."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        for line in sys.stdin:
            asked = json.loads(line)
            answer = getattr(engine, asked.pop("do"))(**asked)
            print(json.dumps(answer), file=answers, flush=True)


def decode(following: Callable[[list[int]], int], unread: list[int], new: int) -> dict[str, Any]:
    """The answer of a decode: `following` reads ids and chooses the one that comes next."""
    written = [following(unread)]
    started = time.perf_counter()
    while len(written) < new:
        written.append(following(written[-1:]))
    return {"ids": written, "seconds": time.perf_counter() - started}
