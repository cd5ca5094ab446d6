"""What a start of the app was asked for: the command line, then QUATRAIN_* variables, then defaults."""

from __future__ import annotations

import argparse
import ipaddress
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import platformdirs

from .hardware import GIB, Machine

#: For PyTorch's threads, to be set before it is imported: where they wait for long, they take the processor from the
#: kernels' own. With two threads a prompt of 1,024 tokens is read a third sooner (docs/benchmarks.md).
THREADING = {"GOMP_SPINCOUNT": "2000"}

TIERS = ("auto", "int4", "int8", "fp16")
LANGUAGES = ("auto", "zh", "en")


#: GiB on disk for what was read of documents and conversations, so that the next start need not read it again.
WARM = 4.0

#: Seconds that the reading of passages may take before a reply begins.
READING = 20.0


class SettingsError(ValueError):
    """A setting can't be used; the text is one sentence for the user."""


@dataclass(frozen=True)
class Settings:
    """`checkpoints` is an extra folder to look for checkpoints in; the one under `data` is always looked in.

    With `plan` nothing starts: what `assume`, or this machine, can hold is printed, as `json` or as the docs' `table`.
    With `inspect` nothing starts either: what that path is, and what it takes, is printed.
    """

    host: str
    port: int
    model: Path | None
    adapter: Path | None
    tier: str
    context: int | None
    data: Path
    checkpoints: Path | None
    lang: str
    summarise: bool = False
    warm: float = WARM
    reading: float = READING
    plan: bool = False
    inspect: Path | None = None
    json: bool = False
    table: bool = False
    assume: str | None = None

    def __post_init__(self) -> None:
        if not is_loopback(self.host):
            raise SettingsError(f"--host {self.host} would open the app to the network; use 127.0.0.1.")
        if self.tier not in TIERS:
            raise SettingsError(f"--tier {self.tier} can't be had; choose from {', '.join(TIERS)}.")
        if self.lang not in LANGUAGES:
            raise SettingsError(f"--lang {self.lang} is not known; choose from {', '.join(LANGUAGES)}.")
        if not 1 <= self.port <= 65535:
            raise SettingsError(f"--port {self.port} is no port; give a number from 1 to 65535.")
        if self.context is not None and self.context < 64:
            raise SettingsError(f"--context {self.context} is too small to hold a question; give at least 64.")
        if not 0 <= self.warm < 2**20:
            raise SettingsError(
                f"--warm {self.warm:g} is no size in GiB; give a number such as 4, or 0 to keep nothing."
            )
        if not 0 <= self.reading < math.inf:
            raise SettingsError(
                f"--reading {self.reading:g} is no time in seconds; give a number such as 20, or 0 for any time."
            )
        if self.plan and self.inspect is not None:
            raise SettingsError("--plan and --inspect print different things; choose one.")
        if not self.plan and self.inspect is None and (self.json or self.assume is not None):
            raise SettingsError("--json and --assume say how to plan or inspect; give --plan or --inspect as well.")
        if not self.plan and self.table:
            raise SettingsError("--table says how to plan; give --plan as well.")
        if self.json and self.table:
            raise SettingsError("--json and --table are two forms of one answer; choose one.")
        self.machine()

    def machine(self) -> Machine | None:
        """The machine to plan for instead of this one, if one is assumed. Raises SettingsError."""
        try:
            return None if self.assume is None else Machine.assume(self.assume)
        except ValueError as error:
            raise SettingsError(f"--assume {error}") from error

    @property
    def warm_bytes(self) -> int:
        """Bytes on disk that keys and values of conversations may take; 0: none are kept."""
        return int(self.warm * GIB)

    @property
    def checkpoint_folders(self) -> tuple[Path, ...]:
        own = self.data / "checkpoints"
        return (own,) if self.checkpoints is None else (self.checkpoints, own)


def default_data_folder() -> Path:
    """Where this system keeps the data of a user's programs."""
    return platformdirs.user_data_path("quatrain", appauthor=False)


def parse(arguments: Sequence[str], environment: Mapping[str, str]) -> Settings:
    """Settings from the command line and the environment; raises SettingsError for values that can't be."""

    def default(name: str, fallback: str | None) -> str | None:
        return environment.get(f"QUATRAIN_{name}") or fallback

    parser = _Parser(prog="app.py", description="Chat with a model and documents on this machine.")
    parser.add_argument("--host", default=default("HOST", "127.0.0.1"), help="address to listen on (loopback only)")
    parser.add_argument("--port", type=int, default=default("PORT", "7860"), help="a busy port: the next free one")
    parser.add_argument("--model", type=_path, default=default("MODEL", None), help="a checkpoint folder or .gguf file")
    parser.add_argument("--adapter", type=_path, default=default("ADAPTER", None), help="LoRA, P-tuning, delta folder")
    parser.add_argument("--tier", choices=TIERS, default=default("TIER", "auto"))
    parser.add_argument("--context", type=int, default=default("CONTEXT", None), help="narrow the window to N tokens")
    parser.add_argument("--data", type=_path, default=default("DATA", str(default_data_folder())), help="data folder")
    parser.add_argument("--checkpoints", type=_path, default=default("CHECKPOINTS", None), help="more checkpoints")
    parser.add_argument("--lang", choices=LANGUAGES, default=default("LANG", "auto"), help="language of the interface")
    parser.add_argument(
        "--summarise",
        action="store_true",
        default=default("SUMMARISE", None) is not None,
        help="let the model sum up the oldest turns when they no longer fit",
    )
    parser.add_argument(
        "--warm",
        type=float,
        default=default("WARM", str(WARM)),
        help="GiB on disk for what was read, so that it need not be read again after a start; 0: nothing is kept",
    )
    parser.add_argument(
        "--reading",
        type=float,
        default=default("READING", str(READING)),
        help="seconds that the model may read before it answers: a slow one is given fewer passages; 0: any time",
    )
    parser.add_argument("--plan", action="store_true", help="print what each checkpoint takes of memory, load nothing")
    parser.add_argument("--inspect", type=_path, help="print what a path is, what it lacks and takes, load nothing")
    parser.add_argument("--json", action="store_true", help="with --plan or --inspect: for programs")
    parser.add_argument(
        "--table", action="store_true", help="with --plan: docs/memory.md, graphics cards of many sizes"
    )
    parser.add_argument("--assume", help="with either: another machine, such as cuda:6GB or cpu:16GB (GiB free)")
    return Settings(**vars(parser.parse_args(arguments)))


class _Parser(argparse.ArgumentParser):
    """Says what is wrong as everything else here does, whether it came from the command line or the environment."""

    def error(self, message: str) -> NoReturn:
        raise SettingsError(f"{message}; --help shows what can be given.")


def _path(text: str) -> Path:
    # A ~ out of the environment, or behind --data=, has not met a shell.
    try:
        return Path(text).expanduser()
    except RuntimeError:  # ~somebody who is not a user here
        return Path(text)


def is_loopback(host: str) -> bool:
    """Whether a host, as an address or a name, is this machine as only itself can reach it."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
