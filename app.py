"""Quatrain: `python app.py`, then open the address that it prints."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

from filelock import FileLock, Timeout


def main(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    from chatapp.settings import SettingsError, parse

    try:
        settings = parse(arguments, environment)
        if settings.plan:
            return print_plans(settings)
        settings.data.mkdir(parents=True, exist_ok=True)
        with FileLock(settings.data / "lock", timeout=0):
            return run(settings)
    except Timeout:
        print(f"Quatrain is already running on {settings.data}; use its window, or give another folder with --data.")
    except (SettingsError, OSError) as error:
        print(error)
    return 1


def print_plans(settings) -> int:
    from chatapp.overview import report

    print(report(settings))
    return 0


def run(settings) -> int:
    # Uploads pass through a folder of our own, so that private documents don't stay in the system's temporary files.
    os.environ["GRADIO_TEMP_DIR"] = str(settings.data / "uploads")
    import uvicorn

    from chatapp.engine import Engine
    from chatapp.library import Library
    from chatapp.server import build, free_port
    from chatapp.session import Chat
    from chatapp.startup import Startup
    from chatapp.store import Store
    from chatapp.ui import mount

    port = free_port(settings)
    if port != settings.port:
        print(f"Port {settings.port} is busy; using {port}.")
    engine = Engine()
    startup = Startup(settings, engine)
    library = Library(settings.data / "kb", startup.embeddings)
    chat = Chat(engine, library, Store(settings.data / "conversations.db"))
    app = build(chat, mount(settings, chat, startup))
    startup.start()
    print(f"Quatrain is at http://{settings.host}:{port}", flush=True)
    uvicorn.run(app, host=settings.host, port=port, log_level="warning")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
