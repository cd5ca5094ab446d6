"""`python -m knowledge`: fill and search a knowledge base from the command line."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import knowledge
from chatapp import checkpoints, settings
from knowledge.documents import READERS
from knowledge.embedder import LocalEmbeddings
from knowledge.evaluate import QuestionsError, evaluate, read_questions, table
from knowledge.index import DATABASE_NAME, readable_files


def main(arguments: list[str] | None = None) -> int:
    """Run one command; 0, or 1 after saying on stderr what went wrong."""
    options = _parser().parse_args(arguments)
    try:
        return options.command(options)
    except (knowledge.KnowledgeBaseError, QuestionsError, checkpoints.FetchError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped; the next ingest carries on where this one was.", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m knowledge", description=__doc__)
    parser.add_argument("--data", type=Path, metavar="DIR", help="data folder, where the embedding model is kept")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    ingest = commands.add_parser("ingest", help="add files to a knowledge base, and make it follow folders")
    ingest.add_argument("folder", type=Path, metavar="KB", help="folder of the knowledge base; made if missing")
    ingest.add_argument("paths", type=Path, nargs="+", metavar="PATH", help="file or folder")
    ingest.add_argument("--password", help="opens those files that need one")
    ingest.set_defaults(command=_ingest)

    status = commands.add_parser("status", help="the files of a knowledge base and their states")
    status.add_argument("folder", type=Path, metavar="KB", help="folder of the knowledge base")
    status.set_defaults(command=_status)

    remove = commands.add_parser("remove", help="remove documents with all that was made of them")
    remove.add_argument("folder", type=Path, metavar="KB", help="folder of the knowledge base")
    remove.add_argument("names", nargs="+", metavar="NAME", help="name of a document, as `status` tells it")
    remove.set_defaults(command=_remove)

    again = commands.add_parser("reread", help="read documents anew, all by default")
    again.add_argument("folder", type=Path, metavar="KB", help="folder of the knowledge base")
    again.add_argument("names", nargs="*", metavar="NAME", help="name of a document, as `status` tells it")
    again.set_defaults(command=_reread)

    search = commands.add_parser("search", help="the passages nearest to a question")
    search.add_argument("folder", type=Path, metavar="KB", help="folder of the knowledge base")
    search.add_argument("question")
    search.add_argument("-k", type=int, default=5, help="how many (default %(default)s)")
    search.add_argument("--json", action="store_true", help="a JSON list of name, page, score, text")
    search.set_defaults(command=_search)

    evaluate = commands.add_parser("evaluate", help="how well questions are answered whose documents are known")
    evaluate.add_argument("folder", type=Path, metavar="KB", help="folder of the knowledge base")
    evaluate.add_argument(
        "questions", type=Path, metavar="QUESTIONS", help='JSON lines {"question", "gold": ["document name"], "source"}'
    )
    evaluate.add_argument("--json", action="store_true", help="hit@1, hit@5, recall@5, mrr@10, and abstention")
    evaluate.set_defaults(command=_evaluate)
    return parser


def _ingest(options: argparse.Namespace) -> int:
    folders = [path for path in options.paths if path.is_dir()]
    files = [path for path in options.paths if not path.is_dir()]
    if not files and not any(file for folder in folders for file in readable_files(folder)):
        print(f"There is no file to add: the folders hold none of {', '.join(READERS)}.", file=sys.stderr)
        return 1
    base = knowledge.open(options.folder, _embeddings(options))
    report = _progress(base)
    results = base.ingest(files, report, options.password)
    for folder in folders:
        results += base.ingest_folder(folder, report)
    base.work(report)  # what was left by an earlier run
    for result in results:
        if result.state == "failed":
            print(result.reason, file=sys.stderr)
        else:
            note = f" ({result.reason})" if result.reason else ""
            print(f"{result.name}: {result.state}, {result.pages} pages, {result.chunks} passages{note}")
    return int(any(result.state == "failed" for result in results))


def _status(options: argparse.Namespace) -> int:
    status = _open_filled(options).status()
    for file in status.files:
        about = f"{file.embedded} of {file.chunks} passages embedded" if file.state == "embedding" else file.reason
        print(f"{file.name}: {file.state}{f', {about}' if about else ''}")
    print(f"{len(status.files)} files, {status.done} of {status.total} passages embedded")
    return 0


def _remove(options: argparse.Namespace) -> int:
    base = _open_filled(options)
    missing = [name for name in options.names if not base.remove(name)]
    for name in missing:
        print(f"{options.folder} has no document {name}; `status` lists those that it has.", file=sys.stderr)
    return int(bool(missing))


def _reread(options: argparse.Namespace) -> int:
    base = _open_filled(options)
    files = [file for file in base.status().files if not options.names or file.name in options.names]
    for name in set(options.names) - {file.name for file in files}:
        print(f"{options.folder} has no document {name}; `status` lists those that it has.", file=sys.stderr)
    base.read_again([file.id for file in files])
    base.work(_progress(base))
    read = base.files([file.id for file in files])
    for file in read:
        print(file.reason if file.state == "failed" else f"{file.name}: {file.state}, {file.chunks} passages")
    return int(len(files) < len(set(options.names)) or any(file.state == "failed" for file in read))


def _search(options: argparse.Namespace) -> int:
    passages = _open_filled(options).search(options.question, options.k)
    if options.json:
        fields = ("name", "page", "score", "text")
        print(json.dumps([{field: getattr(passage, field) for field in fields} for passage in passages]))
        return 0
    for passage in passages:
        page = f", page {passage.page}" if passage.page else ""
        print(f"{passage.score:.3f}  {passage.name}{page}\n{passage.text}\n")
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    questions = read_questions(options.questions)
    base = _open_filled(options)
    report = evaluate(base.find, questions, [document.name for document in base.documents()])
    print(json.dumps(report) if options.json else "\n".join(table(report)))
    return 0


def _embeddings(options: argparse.Namespace) -> LocalEmbeddings:
    return LocalEmbeddings(checkpoints.ensure_embedder(options.data or settings.default_data_folder()))


def _open_filled(options: argparse.Namespace) -> knowledge.KnowledgeBase:
    if not (options.folder / DATABASE_NAME).is_file():
        raise knowledge.KnowledgeBaseError(f"{options.folder} holds no knowledge base; fill it first (ingest).")
    return knowledge.open(options.folder, _embeddings(options))


def _progress(base: knowledge.KnowledgeBase) -> Callable[[int, int, str], None]:
    def show(done: int, total: int, message: str) -> None:
        if sys.stderr.isatty():
            seconds = base.status().seconds
            left = f", about {max(1, round(seconds / 60))} min left" if seconds else ""
            end = "\n" if done == total else ""
            print(f"\r\x1b[K{100 * done // total} % {message}{left}", end=end, file=sys.stderr, flush=True)

    return show


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8")  # names and passages hold any script; Windows pipes may not
    sys.exit(main())
