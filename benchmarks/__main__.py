"""`python -m benchmarks NAME [--json]`: a table for people, JSON for programs."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import platformdirs

from chatapp.settings import default_data_folder

from . import accuracy, answer, citations, decode, followup, ingest, load, memory, page, prefill, quotes, retrieval
from .results import Result, as_json, table_lines
from .settings import Settings

BENCHMARKS: Mapping[str, Callable[[Settings], Iterator[Result]]] = {
    "accuracy": accuracy.run,
    "answer": answer.run,
    "cite": citations.run,
    "decode": decode.run,
    "followup": followup.run,
    "ingest": ingest.run,
    "load": load.run,
    "memory": memory.run,
    "page": page.run,
    "prefill": prefill.run,
    "quote": quotes.run,
    "retrieval": retrieval.run,
}


def main(arguments: list[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    settings = Settings(options.data, options.scratch, options.only, options.model)
    results = BENCHMARKS[options.name](settings)
    for line in [as_json(results)] if options.json else table_lines(results):
        print(line, flush=True)  # the next one may take minutes


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", choices=BENCHMARKS)
    parser.add_argument("--json", action="store_true", help="print a JSON list")
    parser.add_argument("--only", default="", metavar="TEXT", help="only cases with this in their name")
    parser.add_argument("--data", type=Path, default=default_data_folder(), help="the app's data folder")
    parser.add_argument("--model", type=Path, help="a checkpoint to measure (followup); the embedded one by default")
    scratch = platformdirs.user_cache_path("quatrain", appauthor=False) / "benchmarks"
    parser.add_argument("--scratch", type=Path, default=scratch, help="where full-shape checkpoints are made")
    return parser


if __name__ == "__main__":
    main()
