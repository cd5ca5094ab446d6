"""The texts of the interface: both languages say the same, and every text is used."""

import ast
import string
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from chatapp.texts import CATALOGUE, preferred, say

CODE = Path(__file__).parent.parent / "chatapp"
SAYING = ("say", "label", "Sentence", "HubError")  #: functions that are given a key


def placeholders(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}


def calls() -> Iterator[tuple[str, ast.Call]]:
    for path in sorted(CODE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in SAYING:
                yield path.name, node


@cache
def literals() -> set[str]:
    """Strings in the code, but for those that something is compared with: they may be keys."""
    found: set[str] = set()
    for path in (path for path in CODE.rglob("*.py") if path.name != "texts.py"):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        compared = {id(part) for node in nodes if isinstance(node, ast.Compare) for part in ast.walk(node)}
        found |= {node.value for node in nodes if isinstance(node, ast.Constant) and id(node) not in compared}
    return found


def key_of(call: ast.Call) -> ast.expr:
    return call.args[1 if call.func.id == "say" else 0]


def test_both_languages_have_the_same_keys() -> None:
    assert set(CATALOGUE) == {"en", "zh"}
    assert CATALOGUE["en"].keys() == CATALOGUE["zh"].keys()


@pytest.mark.parametrize("key", CATALOGUE["en"])
def test_both_languages_fill_in_the_same_values(key: str) -> None:
    english, chinese = CATALOGUE["en"][key], CATALOGUE["zh"][key]
    assert placeholders(english) == placeholders(chinese)
    assert english.strip() and chinese.strip() and english != chinese


@pytest.mark.parametrize("key", CATALOGUE["en"])
def test_every_text_is_used(key: str) -> None:
    assert key in literals()


def test_every_key_that_is_asked_for_exists() -> None:
    keys = [key_of(call).value for _, call in calls() if isinstance(key_of(call), ast.Constant)]
    assert len(keys) > 30
    assert set(keys) <= CATALOGUE["en"].keys()


def test_every_text_is_given_the_values_that_it_names() -> None:
    checked = 0
    for file, call in calls():
        key = key_of(call)
        named = {keyword.arg for keyword in call.keywords}
        if isinstance(key, ast.Constant) and None not in named:
            assert named == placeholders(CATALOGUE["en"][key.value]), f"{file}:{call.lineno}"
            checked += 1
    assert checked > 30


def test_values_are_filled_in_as_they_are() -> None:
    assert say("en", "state_loading", name="{0} {name}") == "Loading {0} {name} …"
    assert say("zh", "page", page=3) == "第 3 页"


@pytest.mark.parametrize(
    "header, language",
    [
        ("zh-CN,zh;q=0.9,en;q=0.8", "zh"),
        ("zh", "zh"),
        ("ZH-hant", "zh"),
        ("en-US,en;q=0.5", "en"),
        ("fr-FR,fr;q=0.9,zh;q=0.5,en;q=0.4", "zh"),
        ("de", "en"),
        ("*", "en"),
        ("", "en"),
        (";;,,;q=x", "en"),
    ],
)
def test_the_browsers_language_decides(header: str, language: str) -> None:
    assert preferred(header) == language
