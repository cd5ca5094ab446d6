"""The page in a real browser (headless Chromium), in front of an app of its own with the embedded model.

What counts as interactive, as open and as shown is decided inside the page, on its own clock: nothing is polled.
"""

from __future__ import annotations

import contextlib
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from chatapp import checkpoints
from chatapp.store import Store, StoredMessage

from .results import Result
from .settings import Settings

ROUNDS = 5
MESSAGES = 300
KEYS = 60  #: typed while a reply streams, one each 50 ms

INTERACTIVE, OPENED = 2.5, 1.0  #: seconds that are allowed
SMOOTH = 100.0  #: milliseconds from a key to its letter; people begin to notice above

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]

#: Resolves once `until` holds and what made it hold is painted: milliseconds since the page was asked for.
WATCH = """
window.painted = (until) => new Promise((resolve) => {
  const look = () => {
    if (!until()) return;
    observer.disconnect();
    requestAnimationFrame(() => setTimeout(() => resolve(performance.now())));
  };
  const observer = new MutationObserver(look);
  observer.observe(document, { childList: true, subtree: true, attributes: true });
  look();
});
"""
LISTED = """window.interactive = painted(() => document.querySelector("#text textarea:not([disabled])")
  && document.querySelectorAll("#conversations label").length);"""

#: Opens the conversation; seconds until its last message is painted.
OPEN = """async (last) => {
  const said = () => [...document.querySelectorAll("#messages .user.message")].map((message) => message.textContent);
  const shown = painted(() => said().some((text) => text.includes(last)));
  const began = performance.now();
  document.querySelector("#conversations label input").click();
  return ((await shown) - began) / 1000;
}"""

#: From now on: how long each key waits for its letter, and each task that holds the page up, in milliseconds.
LISTEN = """() => {
  window.keys = []; window.tasks = [];
  document.querySelector("#text textarea").addEventListener("keydown", (event) =>
    requestAnimationFrame(() => setTimeout(() => keys.push(performance.now() - event.timeStamp))));
  new PerformanceObserver((list) => tasks.push(...list.getEntries().map((task) => task.duration)))
    .observe({ type: "longtask" });
}"""

PARAGRAPH = (
    "Light is scattered by the molecules of the air, and blue light more than red light, since its waves are shorter. "
)
REPLIES = (
    f"{PARAGRAPH * 3}\n\n- one reason\n- another reason\n\n{PARAGRAPH}",
    f"{PARAGRAPH}\n\n```python\ndef scattering(wavelength):\n    return 1 / wavelength**4\n```\n\n{PARAGRAPH}",
    f"{PARAGRAPH}\n\n| colour | nm |\n|---|---|\n| blue | 450 |\n| red | 700 |\n\nIt grows with \\(\\lambda^{{-4}}\\).",
)


def run(settings: Settings) -> Iterator[Result]:
    """Raises ImportError without Playwright, which is among the requirements for tests."""
    from playwright.sync_api import sync_playwright

    with app(settings.data) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_chromium(), args=FLAGS)
        figures = [_round(browser, address) for _ in range(ROUNDS)]
        browser.close()
    found = {name: statistics.median(round[name] for round in figures) for name in figures[0]}
    for name, (allowed, unit) in ALLOWED.items():
        yield Result.less_is_better(name, found[name], allowed, "allowed", unit, "floor 1")


ALLOWED = {
    "page interactive": (INTERACTIVE, "s"),
    f"a conversation of {MESSAGES} messages opens": (OPENED, "s"),
    "a key while a reply streams, median": (SMOOTH, "ms"),
    "a key while a reply streams, 95th percentile": (SMOOTH, "ms"),
}


def _round(browser: Any, address: str) -> dict[str, float]:
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    page.add_init_script(WATCH + LISTED)
    page.goto(address, wait_until="commit")
    interactive = page.evaluate("interactive") / 1000
    page.wait_for_timeout(500)
    opened = page.evaluate(OPEN, _question(MESSAGES - 2))
    keys = sorted(_keys_while_streaming(page))
    context.close()
    median, late = statistics.median(keys), keys[int(0.95 * len(keys))]
    return dict(zip(ALLOWED, (interactive, opened, median, late), strict=True))


def _keys_while_streaming(page: Any) -> list[float]:
    """Milliseconds from each key to its letter, while a reply grows under the long conversation."""
    count = page.locator("#messages .bot.message").count()
    page.locator("#text textarea").fill("Tell me a long story about the sea.")
    page.keyboard.press("Enter")
    page.wait_for_function(
        "(count) => { const all = document.querySelectorAll('#messages .bot.message');"
        " return all.length > count && all[all.length - 1].textContent.length > 20 }",
        arg=count,
        timeout=120_000,
    )
    page.evaluate(LISTEN)
    for _ in range(KEYS):
        page.keyboard.press("a")
        page.wait_for_timeout(50)
    page.evaluate("document.querySelector('#text .stop-button')?.click()")
    return page.evaluate("keys")


def _question(number: int) -> str:
    return f"Question {number}: why is the sky blue?"


@contextlib.contextmanager
def app(data: Path) -> Iterator[str]:
    """The address of an app that has the long conversation, and the embedded model of the data folder `data`."""
    model = checkpoints.ensure_default_model(data)
    with tempfile.TemporaryDirectory() as folder:
        own = Path(folder)
        (own / "checkpoints").mkdir()
        (own / "checkpoints" / model.parent.name).symlink_to(model.parent.resolve())
        _converse(own / "conversations.db")
        command = [sys.executable, "app.py", "--data", folder, "--port", "17870", "--context", "2048"]  # soon read
        with open(own / "log.txt", "w+") as log:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
            try:
                yield _address(process, own / "log.txt")
            finally:
                process.terminate()
                process.wait()


def _converse(file: Path) -> None:
    store = Store(file)
    conversation = store.create()
    for number in range(0, MESSAGES, 2):
        reply = REPLIES[number // 2 % len(REPLIES)]
        said = [StoredMessage("user", _question(number)), StoredMessage("assistant", reply)]
        store.add(conversation.id, *said)
    store.close()


def _address(process: subprocess.Popen, log: Path) -> str:
    """Where the app answers, once its model is ready. Raises RuntimeError if it ends instead."""
    while process.poll() is None:
        found = re.search(r"http://[\d.]+:\d+", log.read_text())
        with contextlib.suppress(urllib.error.URLError):
            if found and '"ready"' in urllib.request.urlopen(f"{found[0]}/health").read().decode():
                return found[0]
        time.sleep(0.1)
    raise RuntimeError(log.read_text())


def _chromium() -> str:
    import shutil

    return shutil.which("chromium") or shutil.which("google-chrome")
