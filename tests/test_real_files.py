"""Real files in Chinese and English: each is read or refused in one sentence, and questions find their pages.

The files can't all be committed here; the folder that QUATRAIN_TEST_ASSETS names has them, in pdf/ and docs/.
"""

from __future__ import annotations

from pathlib import Path

import pytest

import knowledge
from knowledge.documents import load
from knowledge.embedder import LocalEmbeddings
from knowledge.evaluate import evaluate, read_questions
from knowledge.pages import DocumentError, PasswordError
from knowledge.splitter import split
from tests.made_tokenizers import ASSETS

QUESTIONS = Path(__file__).parent / "data" / "pdf_questions.jsonl"
PASSWORDS = {
    "enc_en_user_password_aes128.pdf": "openpassword",
    "enc_zh_aes256.pdf": "secret123",
    "enc_zh_aes256_unicode_password.pdf": "密码一二三",
}
#: Text recognition of their pages takes seconds, and of all half a minute.
RECOGNISED = ("scan", "bad_malformed", "zh_alibaba")

FILES = [file for kind in ("pdf", "docs") for file in sorted(Path(ASSETS, kind).iterdir())] if ASSETS else []


def test_the_questions_are_as_many_as_docs_retrieval_says():
    questions = read_questions(QUESTIONS)
    assert len({question.text for question in questions}) == 60
    assert len(_files(questions)) == 22 and {question.source for question in questions} == {"zh", "en"}


def _case(file: Path):
    return pytest.param(file, id=file.name, marks=[pytest.mark.slow] if file.name.startswith(RECOGNISED) else [])


@pytest.mark.parametrize("file", map(_case, FILES))
def test_a_file_is_read_or_refused_in_one_sentence(file: Path):
    if file.name in PASSWORDS:
        with pytest.raises(PasswordError) as refusal:
            load(file)
        assert _is_a_sentence_on(file, str(refusal.value))
    try:
        assert split(load(file, password=PASSWORDS.get(file.name)))
    except DocumentError as error:
        assert file.name.startswith("bad") and _is_a_sentence_on(file, str(error))


def _is_a_sentence_on(file: Path, said: str) -> bool:
    return said.startswith(file.name) and said.endswith(".") and "\n" not in said and ". " not in said


if ASSETS:

    @pytest.mark.slow
    def test_questions_find_their_pages(tmp_path: Path, embedder_folder: Path):
        base = knowledge.open(tmp_path, LocalEmbeddings(embedder_folder))
        questions = read_questions(QUESTIONS)
        names = _files(questions)
        assert {file.state for file in base.ingest(Path(ASSETS, "pdf", name) for name in names)} == {"done"}
        report = evaluate(base.find, questions, names)
        assert report["all"]["hit@5"] >= 0.9, report


def _files(questions) -> list[str]:
    """The names of the files that the questions are about."""
    return sorted({f"{gold.rsplit('#', 1)[0]}.pdf" for question in questions for gold in question.gold})
