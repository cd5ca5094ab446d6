"""`python -m knowledge`: fill and search a knowledge base from the command line."""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import knowledge
from chatapp import checkpoints, settings
from knowledge.documents import READERS, suffix_of
from knowledge.embedder import LocalEmbeddings
from knowledge.index import DATABASE_NAME


def main(arguments: list[str] | None = None) -> int:
    """Run one command; 0, or 1 after saying on stderr what went wrong."""
    options = _parser().parse_args(arguments)
    try:
        return options.command(options)
    except (knowledge.KnowledgeBaseError, checkpoints.FetchError, OSError) as error:
        print(error, file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m knowledge", description=__doc__)
    parser.add_argument("--data", type=Path, metavar="DIR", help="data folder, where the embedding model is kept")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    ingest = commands.add_parser("ingest", help="add files, and the files in folders, to a knowledge base")
    ingest.add_argument("folder", type=Path, metavar="KB", help="folder of the knowledge base; made if missing")
    ingest.add_argument("paths", type=Path, nargs="+", metavar="PATH", help="file or folder")
    ingest.set_defaults(command=_ingest)

    search = commands.add_parser("search", help="the passages nearest to a question")
    search.add_argument("folder", type=Path, metavar="KB", help="folder of the knowledge base")
    search.add_argument("question")
    search.add_argument("-k", type=int, default=5, help="how many (default %(default)s)")
    search.add_argument("--json", action="store_true", help="a JSON list of name, page, score, text")
    search.set_defaults(command=_search)
    return parser


def _ingest(options: argparse.Namespace) -> int:
    paths = [file for path in options.paths for file in _files(path)]
    if not paths:
        print(f"There is no file to add: the folders hold none of {', '.join(READERS)}.", file=sys.stderr)
        return 1
    results = knowledge.open(options.folder, _embeddings(options)).ingest(paths, _show_progress)
    for result in results:
        if result.state == "failed":
            print(result.reason, file=sys.stderr)
        else:
            print(f"{result.name}: {result.state}, {result.pages} pages, {result.chunks} passages")
    return int(any(result.state == "failed" for result in results))


def _search(options: argparse.Namespace) -> int:
    if not (options.folder / DATABASE_NAME).is_file():
        print(f"{options.folder} holds no knowledge base; fill it first (ingest).", file=sys.stderr)
        return 1
    passages = knowledge.open(options.folder, _embeddings(options)).search(options.question, options.k)
    if options.json:
        fields = ("name", "page", "score", "text")
        print(json.dumps([{field: getattr(passage, field) for field in fields} for passage in passages]))
        return 0
    for passage in passages:
        page = f", page {passage.page}" if passage.page else ""
        print(f"{passage.score:.3f}  {passage.name}{page}\n{passage.text}\n")
    return 0


def _embeddings(options: argparse.Namespace) -> LocalEmbeddings:
    return LocalEmbeddings(checkpoints.ensure_embedder(options.data or settings.default_data_folder()))


def _files(path: Path) -> Iterator[Path]:
    """The file itself, whatever it is; of a folder the files that can be read, deep down, in order."""
    if path.is_dir():
        yield from sorted(file for file in path.rglob("*") if file.is_file() and suffix_of(file.name) in READERS)
    else:
        yield path


def _show_progress(done: int, total: int, message: str) -> None:
    if sys.stderr.isatty():
        end = "\n" if done == total else ""
        print(f"\r\x1b[K{100 * done // total} % {message}", end=end, file=sys.stderr, flush=True)


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8")  # names and passages hold any script; Windows pipes may not
    sys.exit(main())
