"""Sentences of errors and states in the language of the page.

models/ and knowledge/ know no languages: what they say is English, and so are logs, the API and what is stored. The
page translates when it shows a sentence, with a table of templates: "{} is missing in {}; download it again." fits any
two values, and its translation says where they go. Values that are sentences themselves are translated as well; what
the table does not know stays as it is.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from pathlib import Path

from .texts import CATALOGUE, say

#: Templates by who says them: "ours", and "others" (the operating system, SQLite, Python's own readers).
TABLES = {"zh": Path(__file__).with_name("sentences_zh.json")}
#: Texts of the catalogue that stand in errors.
INSIDE = ("plan_refused", "plan_refused_tier", "place_cpu", "place_card")
HOLE = "{}"


class Sentence(ValueError):
    """What went wrong, as a text of the catalogue; as a string it is English."""

    def __init__(self, key: str, **values: object) -> None:
        super().__init__(say("en", key, **values))
        self._key, self._values = key, values

    def said(self, language: str) -> str:
        return said(language, self._key, self._values)


def said(language: str, key: str, values: Mapping[str, object]) -> str:
    """A text of the catalogue, whose values may be sentences of errors."""
    return say(language, key, **{name: _own(value, language) for name, value in values.items()})


def _own(value: object, language: str) -> object:
    return localised(str(value), language) if isinstance(value, str | Exception) else value


@dataclass(frozen=True)
class Reading:
    """A sentence as a template takes it: its translation, how many of its letters were known, where the first was."""

    text: str
    known: int = 0
    begin: int = 0

    @property
    def rank(self) -> tuple[int, int]:
        """The reading that leaves the least unknown is right; of two such, the outer sentence, which begins first."""
        return self.known, -self.begin


@dataclass(frozen=True)
class Template:
    """A sentence with holes; the translation names them {0}, {1}, ... in the order of the sentence."""

    sentence: str
    translation: str

    @cached_property
    def literals(self) -> list[str]:
        return self.sentence.split(HOLE)

    @cached_property
    def longest(self) -> str:
        """What to look for before the slower pattern."""
        return max(self.literals, key=len)

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        return re.compile("(.+?)".join(map(re.escape, self.literals)), re.DOTALL)

    def read(self, text: str, table: Table) -> Reading | None:
        """The text as this sentence, its values translated as far as they are sentences; None if it is another one."""
        match = self.pattern.fullmatch(text) if self.longest in text else None
        if match is None:
            return None
        values = [table.read(value) for value in match.groups()]
        known = sum(map(len, self.literals)) + sum(value.known for value in values)
        begin = 0 if self.literals[0] else match.end(1)
        return Reading(self.translation.format(*(value.text for value in values)), known, begin)


class Table:
    """The templates of a language; what was read last is kept, since the page shows the same sentences every second."""

    def __init__(self, sentences: dict[str, str]) -> None:
        self._templates = [Template(*row) for row in sentences.items()]
        self.read = lru_cache(1024)(self._read)

    def _read(self, text: str) -> Reading:
        found = (template.read(text, self) for template in self._templates)
        return max((reading for reading in found if reading), key=lambda reading: reading.rank, default=Reading(text))


@cache
def _table(language: str) -> Table:
    tables = json.loads(TABLES[language].read_text(encoding="utf-8"))
    return Table(dict(_from_catalogue(key, language) for key in INSIDE) | tables["ours"] | tables["others"])


def _from_catalogue(key: str, language: str) -> tuple[str, str]:
    """A text of the catalogue as a sentence with holes, and its translation."""
    english = CATALOGUE["en"][key]
    names = [name for _, name, _, _ in string.Formatter().parse(english) if name]
    holes = {name: f"{{{at}}}" for at, name in enumerate(names)}
    return say("en", key, **dict.fromkeys(names, HOLE)), say(language, key, **holes)


def localised(text: str, language: str) -> str:
    """A sentence of the program in the language of the page; as it is if it is not known."""
    return _table(language).read(text).text if language in TABLES else text
