"""`python -m knowledge`, with a stand-in for the embedding model."""

import json
import shutil
from pathlib import Path

import pytest

from knowledge import __main__ as cli
from tests.fakes import HashEmbeddings

DATA = Path(__file__).parent / "data"


@pytest.fixture(autouse=True)
def hash_embeddings(monkeypatch):
    """The folders asked for, while no model is fetched or loaded."""
    asked = []
    monkeypatch.setattr(cli.checkpoints, "ensure_embedder", lambda data: asked.append(data) or data)
    monkeypatch.setattr(cli, "LocalEmbeddings", lambda folder: HashEmbeddings())
    return asked


def run(capsys, *arguments) -> tuple[int, str, str]:
    code = cli.main([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


def test_a_folder_is_ingested_and_searched(tmp_path, capsys, hash_embeddings):
    files = tmp_path / "文件" / "deep"
    files.mkdir(parents=True)
    (files / "诗.txt").write_text("离离原上草，一岁一枯荣。", encoding="utf-8")
    (files / "picture.png").write_bytes(b"\x89PNG")
    base = tmp_path / "kb"
    code, output, errors = run(
        capsys, "--data", tmp_path / "d", "ingest", base, tmp_path / "文件", DATA / "pdf" / "zh_poems.pdf"
    )
    assert (code, errors) == (0, "")
    assert "诗.txt: done, 0 pages, 1 passages" in output and "zh_poems.pdf: done, 6 pages" in output
    assert hash_embeddings == [tmp_path / "d"]

    code, output, errors = run(capsys, "search", base, "清泉石上流", "--json", "-k", "2")
    found = json.loads(output)
    assert (code, errors, len(found)) == (0, "", 2)
    assert list(found[0]) == ["name", "page", "score", "text"]
    assert (found[0]["name"], found[0]["page"]) == ("zh_poems.pdf", 4)
    assert hash_embeddings[1] == cli.settings.default_data_folder()

    code, output, _ = run(capsys, "search", base, "清泉石上流")
    assert code == 0 and "zh_poems.pdf, page 4" in output and "明月松间照" in output


def test_bad_files_are_named_and_the_others_go_in(tmp_path, capsys):
    bad = DATA / "pdf" / "bad_zero_bytes.pdf"
    code, output, errors = run(
        capsys, "ingest", tmp_path / "kb", bad, DATA / "pdf" / "zh_poems.pdf", tmp_path / "no.txt"
    )
    assert code == 1 and "zh_poems.pdf: done" in output
    assert [line.split()[0] for line in errors.splitlines()] == ["bad_zero_bytes.pdf", "no.txt"]


def test_expected_problems_are_one_sentence(tmp_path, capsys, monkeypatch):
    code, _, errors = run(capsys, "search", tmp_path / "nowhere", "question")
    assert code == 1 and "nowhere holds no knowledge base" in errors and not (tmp_path / "nowhere").exists()
    (tmp_path / "empty").mkdir()
    code, _, errors = run(capsys, "ingest", tmp_path / "kb", tmp_path / "empty")
    assert code == 1 and ".pdf, .docx" in errors

    def fail(data):
        raise cli.checkpoints.FetchError("The embedding model could not be fetched.")

    monkeypatch.setattr(cli.checkpoints, "ensure_embedder", fail)
    code, _, errors = run(capsys, "ingest", tmp_path / "kb", DATA / "pdf" / "zh_poems.pdf")
    assert (code, errors) == (1, "The embedding model could not be fetched.\n")


def test_a_damaged_base_is_one_sentence(tmp_path, capsys):
    (tmp_path / "knowledge.db").write_bytes(b"not SQLite " * 100)
    code, _, errors = run(capsys, "search", tmp_path, "question")
    assert code == 1 and errors.count("\n") == 1 and "not a readable knowledge base" in errors


def test_wrong_usage_exits_with_2(capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main(["ingest"])
    assert exit.value.code == 2 and "usage:" in capsys.readouterr().err


def test_a_folder_is_followed_and_its_states_are_told(tmp_path, capsys):
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "a.txt").write_text("apples", encoding="utf-8")
    (folder / "b.txt").write_text("bananas", encoding="utf-8")
    shutil.copy(DATA / "pdf" / "enc_en_user_password_aes128.pdf", folder / "locked.pdf")
    base = tmp_path / "kb"
    code, _, errors = run(capsys, "ingest", base, folder)
    assert code == 1 and errors.count("\n") == 1 and "locked.pdf needs a password" in errors
    code, output, _ = run(capsys, "status", base)
    assert code == 0 and "a.txt: done" in output and "locked.pdf: failed, locked.pdf needs" in output
    assert output.endswith("3 files, 2 of 2 passages embedded\n")
    (folder / "b.txt").unlink()
    code, output, _ = run(capsys, "ingest", base, folder / "locked.pdf", "--password", "openpassword")
    assert code == 0 and "locked.pdf: done, 1 pages" in output
    code, output, errors = run(capsys, "ingest", base, folder)
    assert (code, output, errors) == (0, "", "")
    _, output, _ = run(capsys, "status", base)
    assert "b.txt" not in output and "locked.pdf: done" in output


def test_what_was_left_is_carried_on(tmp_path, capsys, monkeypatch):
    (tmp_path / "a.txt").write_text("apples", encoding="utf-8")
    base = tmp_path / "kb"

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(HashEmbeddings, "embed_documents", interrupt)
        code, _, errors = run(capsys, "ingest", base, DATA / "pdf" / "zh_poems.pdf")
    assert code == 130 and errors.startswith("Stopped") and errors.count("\n") == 1
    assert "zh_poems.pdf: embedding, 0 of" in run(capsys, "status", base)[1]
    assert run(capsys, "ingest", base, tmp_path / "a.txt")[0] == 0
    assert "zh_poems.pdf: done" in run(capsys, "status", base)[1]


def test_questions_are_evaluated(tmp_path, capsys):
    base, questions = tmp_path / "kb", tmp_path / "questions.jsonl"
    run(capsys, "ingest", base, DATA / "pdf" / "zh_poems.pdf", DATA / "docs" / "zh_copyright_law_utf8.txt")
    rows = [
        {"question": "清泉石上流", "gold": ["zh_poems#4"], "source": "poems"},
        {"question": "著作权属于作者", "gold": ["zh_copyright_law_utf8"], "source": "law"},
        {"question": "谁写了《红楼梦》？", "gold": []},
    ]
    questions.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    code, output, errors = run(capsys, "evaluate", base, questions, "--json")
    report = json.loads(output)
    assert (code, errors) == (0, "") and set(report["sources"]) == {"law", "poems"}
    assert report["all"]["hit@1"] == 1 and report["abstention"]["questions"] == 1
    code, output, _ = run(capsys, "evaluate", base, questions)
    assert code == 0 and [line.split()[0] for line in output.splitlines()] == ["hit@1", "all", "law", "poems", "1"]
    questions.write_text("What?\n")
    code, _, errors = run(capsys, "evaluate", base, questions)
    assert code == 1 and "line 1 is not a question" in errors and errors.count("\n") == 1


def test_documents_are_read_anew_and_removed(tmp_path, capsys):
    base = tmp_path / "kb"
    for name, text in (("a.txt", "The rent is 1,200 francs."), ("b.txt", "The cat sleeps.")):
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert run(capsys, "ingest", base, tmp_path / "a.txt", tmp_path / "b.txt")[0] == 0
    code, output, _ = run(capsys, "reread", base)
    assert code == 0 and "a.txt: done, 1 passages" in output and "b.txt: done" in output
    code, output, errors = run(capsys, "reread", base, "a.txt", "x.txt")
    assert code == 1 and "no document x.txt" in errors and "a.txt: done" in output and "b.txt" not in output
    code, _, errors = run(capsys, "remove", base, "a.txt", "x.txt")
    assert code == 1 and "no document x.txt" in errors
    _, output, _ = run(capsys, "search", base, "rent", "--json")
    assert "a.txt" not in output
