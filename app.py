"""Quatrain: `python app.py`, then open the address that it prints."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from functools import partial
from types import FrameType
from typing import NoReturn

from filelock import FileLock, Timeout

from chatapp.settings import THREADING, Settings, SettingsError, parse
from chatapp.store import Store, StoreError

#: Seconds that open connections, and then a fetch, get to end.
PATIENCE = 1.5


def main(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):  # both end it alike, cleaning up
        signal.signal(number, partial(_interrupt, stopping))
    try:
        settings = parse(arguments, environment)
        if settings.plan:
            return print_plans(settings)
        if settings.inspect is not None:
            return print_inspection(settings)
        settings.data.mkdir(parents=True, exist_ok=True)
        with FileLock(settings.data / "lock", timeout=0):
            return run(settings, Store(settings.data / "conversations.db"), stopping)
    except KeyboardInterrupt:
        return 0
    except Timeout:
        sentence = (
            f"Quatrain is already running on {settings.data}; use its window, or give another folder with --data."
        )
    except (SettingsError, StoreError) as error:
        sentence = str(error)
    except OSError as error:
        place = error.filename or settings.data
        sentence = f"{place} can't be written ({error.strerror or error}); give another folder with --data."
    print(sentence, file=sys.stderr, flush=True)
    return 1


def _interrupt(stopping: threading.Event, number: int, frame: FrameType | None) -> NoReturn:
    """Python drops what is raised while it clears objects away, so the event says it too."""
    stopping.set()
    raise KeyboardInterrupt


def print_plans(settings: Settings) -> int:
    from chatapp.overview import report

    print(report(settings))
    return 0


def print_inspection(settings: Settings) -> int:
    from chatapp.inspection import inspect

    text, loads = inspect(settings)
    print(text)
    return 0 if loads else 1


def run(settings: Settings, store: Store, stopping: threading.Event) -> int:
    # Uploads pass through a folder of our own, so that private documents don't stay in the system's temporary files.
    uploads = settings.data / "uploads"
    shutil.rmtree(uploads, ignore_errors=True)  # what a kill left of them
    os.environ["GRADIO_TEMP_DIR"] = str(uploads)
    os.environ.update(THREADING | os.environ)
    import uvicorn

    from chatapp.choices import NAME, Chosen, Policy
    from chatapp.engine import Engine, Warm
    from chatapp.library import Library
    from chatapp.server import address, build, listen
    from chatapp.session import Chat
    from chatapp.startup import Startup
    from chatapp.ui import mount

    listener = listen(settings)
    port = listener.getsockname()[1]
    if port != settings.port:
        print(f"Port {settings.port} is busy; using {port}.")
    chosen = Chosen(settings.data / NAME, Policy(settings.summarise, reading=settings.reading))
    warm, policy = Warm(settings.data / "warm", settings.warm_bytes), chosen.policy
    engine = Engine(warm=warm, reading=policy.reading, window=policy.window)
    if store.gone:
        engine.forget()
    startup = Startup(settings, engine, last=chosen.now.model)
    library = Library(settings.data / "kb", startup.embeddings)
    chat = Chat(engine, library, store, chosen)
    app = build(chat, mount(settings, chat, startup))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
    # In a thread: a handler deep in a document or a prompt can't hold up the end of the program then.
    serving = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    try:
        serving.start()
        startup.start()
        threading.Thread(target=library.carry_on, name="ingesting", daemon=True).start()
        print(f"Quatrain is at {address(settings.host, port)}", flush=True)
        while serving.is_alive() and not stopping.is_set():
            serving.join(0.5)  # Windows hears Ctrl+C between waits only
    finally:
        server.should_exit = True
        serving.join(PATIENCE)
        startup.stop(PATIENCE)
    return 0 if stopping.is_set() else 1  # the server has ended by itself, after logging why


if __name__ == "__main__":
    status = main(sys.argv[1:], os.environ)
    sys.stdout.flush()
    os._exit(status)  # not sys.exit: it would wait for threads that still read; all that they acknowledged is on disk
