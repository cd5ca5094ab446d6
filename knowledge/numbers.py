"""Numbers as Chinese and English write them, made comparable: 三百, 300, 10万, "thirty-seven", months, units."""

import re
from dataclasses import dataclass

from knowledge.terms import fold

_DIGITS = {**dict(zip("〇零一二三四五六七八九", (0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9), strict=True)), "两": 2}
_TENS = {"十": 10, "百": 100, "千": 1_000}
_LARGE = {"thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12}
_SCALES = {"万": 1e4, "亿": 1e8, **_LARGE}
_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
_ENGLISH = {
    **{word: value for value, word in enumerate(_ONES)},
    **{
        word: 10 * value
        for value, word in enumerate("twenty thirty forty fifty sixty seventy eighty ninety".split(), start=2)
    },
    "dozen": 12,
}
_ORDINALS = {
    **dict(zip("third fifth eighth ninth twelfth twentieth".split(), (3, 5, 8, 9, 12, 20), strict=True)),
    **{f"{word}th": value for word, value in _ENGLISH.items() if not word.endswith("y")},
}
_MONTHS = {
    name: month
    for month, name in enumerate(
        "january february march april may june july august september october november december".split(), start=1
    )
}

# What a number counts or measures, where both languages, or several spellings, name the same.
_UNITS = {
    name: unit
    for unit, names in {
        "%": "% ％ percent per\u00a0cent",
        "century": "世纪 century centuries",
        "tenth": "成",
        "year": "年 year years",
        "month": "月 个月 month months",
        "day": "日 天 号 day days",
        "hour": "小时 hour hours",
        "minute": "分钟 minute minutes",
        "second": "秒 second seconds",
        "week": "周 星期 week weeks",
        "age": "岁",
        "km": "公里 千米 km kilometres kilometers kilometre kilometer",
        "km2": "平方公里 平方千米 km2",
        "m": "米 公尺 metres meters metre meter",
        "cm": "厘米 公分 cm",
        "mm": "毫米 mm",
        "mile": "英里 mile miles mi",
        "foot": "英尺 feet foot ft",
        "kg": "公斤 千克 kg kilograms",
        "g": "克 g grams",
        "tonne": "吨 tonnes tons",
        "yuan": "元 yuan",
        "gb": "gb",
        "mb": "mb",
        "people": "人 people guests inhabitants",
    }.items()
    for name in names.replace("\u00a0", "-").split()
}
_UNIT_NAMES = "|".join(sorted(map(re.escape, _UNITS), key=len, reverse=True))

# A lone numeral is one only before what is counted, or after 第: 三国 and 四川 are names.
_COUNTED = (
    "个年月日天次回名位人座条种只艘支本部集卷章节块元岁届场分倍成公里米小时周季度级层所家间项篇首辆架颗头匹对组批代世"
    "号路封幅张面口片份克斤吨亩款期轮枚户起行门类阶大成"
)
_NUMERAL = "〇零一二两三四五六七八九十百千万亿"
_WORD = "|".join(sorted((*_ENGLISH, *_ORDINALS, "hundred", *_LARGE), key=len, reverse=True))
_PATTERN = re.compile(
    r"(?P<digits>\d+(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?)(?:(?:st|nd|rd|th|s)\b)?"
    rf"|(?P<month>\b(?:{'|'.join(_MONTHS)})\b)"
    rf"|(?P<han>(?!百分之)[{_NUMERAL}]{{2,}}|(?<=第)[{_NUMERAL}]|(?!百分之)[{_NUMERAL}](?=[{_COUNTED}]|分之)|(?<=分之)[{_NUMERAL}])"
    rf"|\b(?!ones\b)(?P<words>(?:{_WORD})(?:[ -](?:and )?(?:{_WORD}))*)s?\b"
)
_SCALE = re.compile(rf"\s*(?:{'|'.join(_SCALES)})+")
_UNIT = re.compile(rf"\s*(?:°|多|余)?\s*(?P<unit>{_UNIT_NAMES})(?![a-z])")
_THIRDS = re.compile(rf"\b({'|'.join(_ONES)})[ -]((?:{'|'.join(_ORDINALS)})s)\b")
_RANGE = re.compile(r"\s*(?:to|and|[-–—~～至到])\s*$")
_REPUBLIC = re.compile(r"民国\s*$")
_ABOUT = re.compile(r"(?:约|大约|近|将近|左右|上下|多|余|about|around|nearly|almost|roughly|approximately|some|over)")


@dataclass(frozen=True)
class Number:
    """text: as it is written (folded). unit: of _UNITS, None where none is known. about: said to be rough."""

    value: float
    text: str
    unit: str | None = None
    about: bool = False

    @property
    def is_small(self) -> bool:
        """Whether it is a number below ten in words, of nothing that is measured."""
        return self.value < 10 and not any(map(str.isdigit, self.text)) and self.unit is None


def numbers(text: str) -> list[Number]:
    """The numbers of `text` in their order; "one" and 一 by themselves are articles more often, and left out."""
    folded = _THIRDS.sub(r"\1 of \2", fold(text))
    found: list[tuple[Number, int, bool]] = []
    for match in _PATTERN.finditer(folded):
        value = _value(match)
        if value is None or (found and match.start() < found[-1][1]):
            continue
        end, scale = _scaled(folded, match)
        if found and scale != 1 and not found[-1][2] and _RANGE.match(folded[found[-1][1] : match.start()]):
            before, place, _ = found[-1]  # 30 to 50 thousand
            found[-1] = Number(before.value * scale, before.text, before.unit, before.about), place, True
        if _REPUBLIC.search(folded[: match.start()]):
            value += 1911
        unit, after = ("month", end) if match["month"] else _unit(folded, match, end)
        if unit == "tenth":  # 六成 is 60 %
            value, unit = 10 * value, "%"
        about = bool(_ABOUT.search(folded[max(0, match.start() - 9) : match.start()])) or bool(
            _ABOUT.match(folded[end : end + 4].lstrip())
        )
        found.append((Number(value * scale, folded[match.start() : end].strip(), unit, about), after, scale != 1))
    return [number for number, *_ in found if number.text not in ("one", "一")]


def _value(match: re.Match) -> float | None:
    if match["digits"]:
        return float(match["digits"].replace(",", ""))
    if match["month"]:
        beside = match.string[max(0, match.start() - 4) : match.end() + 4]
        return float(_MONTHS[match["month"]]) if match["month"] != "may" or re.search(r"\d", beside) else None
    if match["han"]:
        return _chinese(match["han"])
    return _english(re.split(r"[ -](?:and )?", match["words"]))


def _chinese(numeral: str) -> float:
    """二十一 is 21, 一九四五 is 1945, 三百万 is 3,000,000."""
    if len(numeral) > 1 and all(character in _DIGITS for character in numeral):
        return float("".join(str(_DIGITS[character]) for character in numeral))
    total, section, digit = 0.0, 0.0, 0.0
    for character in numeral:
        if character in _DIGITS:
            digit = _DIGITS[character]
        elif character in _TENS:
            section, digit = section + (digit or 1) * _TENS[character], 0.0
        else:
            total, section, digit = (total + (section + digit or 1)) * _SCALES[character], 0.0, 0.0
    return total + section + digit


def _english(words: list[str]) -> float:
    """["two", "hundred", "thirty", "seven"] is 237."""
    total, section = 0.0, 0.0
    for word in words:
        if word == "hundred":
            section = (section or 1) * 100
        elif word in _LARGE:
            total, section = total + (section or 1) * _LARGE[word], 0.0
        else:
            section += _ENGLISH.get(word, _ORDINALS.get(word, 0))
    return total + section


def _scaled(text: str, match: re.Match) -> tuple[int, float]:
    scale = _SCALE.match(text, match.end()) if match["digits"] else None
    if scale is None:
        return match.end(), 1.0
    product = 1.0
    for word in re.findall("|".join(_SCALES), scale[0]):
        product *= _SCALES[word]
    return scale.end(), product


def _unit(text: str, match: re.Match, end: int) -> tuple[str | None, int]:
    """The unit behind a number, and where it ends."""
    if re.search(r"百分之\s*$", text[: match.start()]):
        return "%", end
    found = _UNIT.match(text, end)
    return (_UNITS[found["unit"]], found.end()) if found else (None, end)


def lacking(said: list[Number], held: list[Number]) -> list[Number]:
    """Those of `said` that are not among `held`; a rough one may be 3 % off, and another unit is another number."""
    return [number for number in said if not any(_same(number, other) for other in held)]


def _same(said: Number, held: Number) -> bool:
    if said.unit != held.unit and said.unit in _STRICT and held.unit in _STRICT:
        return False
    if said.unit == "century" != held.unit:
        return 100 * (said.value - 1) < held.value <= 100 * said.value
    tolerance = 0.03 * abs(held.value) if said.about else 1e-9
    short_year = 100 > held.value >= 10 and said.value > 999 and said.value % 100 == held.value  # 1620–21
    return abs(said.value - held.value) <= tolerance or short_year


_STRICT = frozenset(_UNITS.values()) - {"year", "age", "day", "people"}
