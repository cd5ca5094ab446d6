"""What tests share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from hypothesis import settings
from playwright.sync_api import Browser, Playwright, sync_playwright

from chatapp import checkpoints, overview
from models import Footprint
from tests.seats import SEATS, Seat, leave_most_for_later

HERE = Path(__file__).parent
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
#: No sandbox: CI runs as root. The others keep Chromium's own services from calling out.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

#: The same examples in every run, however slow the machine is: what one run finds, the next one shows too.
settings.register_profile("quatrain", deadline=None, derandomize=True)
settings.load_profile("quatrain")


def pytest_configure() -> None:
    """The processes that run tests share the processors: with more threads than these they would wait for each other
    most of the time. Tests of the kernels' threads say themselves how many."""
    if processes := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
        torch.set_num_threads(max((os.cpu_count() or 1) // processes, 1))


@pytest.hookimpl(tryfirst=True)  # before those marked as slow are left out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    leave_most_for_later(items)


@pytest.fixture(scope="session", autouse=True)
def no_caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What other programs have downloaded on this machine is not found, nor by the apps that tests start."""
    empty = str(tmp_path_factory.mktemp("caches"))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "MODELSCOPE_CACHE"):
            patch.setenv(name, empty)
        yield


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Where the embedded models are kept between test runs; QUATRAIN_TEST_CACHE moves it."""
    folder = Path(os.environ.get("QUATRAIN_TEST_CACHE") or HERE / ".cache")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def footprints() -> dict[str, Footprint]:
    """The memory of every known checkpoint."""
    return overview.known_footprints()


@pytest.fixture(scope="session")
def default_model(data_folder: Path) -> Path:
    """The real SmolLM2 that the app starts with, fetched on the first run."""
    with FileLock(data_folder / "default-model.lock"):  # tests run in several processes
        return checkpoints.ensure_default_model(data_folder)


@pytest.fixture(scope="session")
def embedder_folder(data_folder: Path) -> Path:
    """The real multilingual-e5-small that the app starts with, fetched and converted on the first run."""
    with FileLock(data_folder / "embedder.lock"):
        return checkpoints.ensure_embedder(data_folder)


@pytest.fixture(scope="module")
def playwright() -> Iterator[Playwright]:
    with sync_playwright() as playwright:
        yield playwright


@pytest.fixture(scope="module")
def browser(playwright: Playwright) -> Iterator[Browser]:
    assert CHROMIUM, "Chromium is not installed; CONTRIBUTING.md names the package"
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
    yield browser
    browser.close()


@pytest.fixture(params=SEATS, ids=[f"{seat.language}-{seat.size}" for seat in SEATS])
def seat(request: pytest.FixtureRequest) -> Seat:
    return request.param
