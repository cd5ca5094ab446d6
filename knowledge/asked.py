"""What kind of answer a question asks for, in Chinese and English, and where a text could hold one."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from knowledge.terms import fold, is_chinese

_MONTHS = "January|February|March|April|May|June|July|August|September|October|November|December"
_NUMBER_WORDS = (
    "one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|twenty|thirty|forty|fifty|hundreds?|thousands?"
    "|millions?|billions?|half|third|quarter|dozens?|once|twice|single|both|several"
)


class Kind(NamedTuple):
    """`question` matches questions that ask for it, `answer` the texts that could be one."""

    name: str
    question: re.Pattern
    answer: re.Pattern


def _kind(name: str, question: str, answer: str, flags: re.RegexFlag = re.NOFLAG) -> Kind:
    return Kind(name, re.compile(question, re.IGNORECASE), re.compile(answer, flags))


# The first kind whose question matches counts.
ENGLISH: Sequence[Kind] = (
    _kind(
        "when",
        r"\bwhen\b|\b(?:what|which) (?:\w+ )?(?:year|date|day|month|century|decade|time|era|period)\b|\bhow long ago\b",
        rf"\b1\d{{3}}s?\b|\b20\d\ds?\b|\b\d{{1,4}} (?:BC|AD|BCE|CE)\b|\b(?:{_MONTHS})\b|\bcentur(?:y|ies)\b"
        r"|\b\d+(?:st|nd|rd|th)\b",
    ),
    _kind(
        "how many",
        r"\bhow (?:many|much|long|old|far|large|big|tall|high|wide|often|deep|fast)\b|\bwhat (?:percent\w*|number|size"
        r"|age|amount|population|proportion|share|fraction|score|cost|price|length|height|rate|temperature)\b",
        rf"\d|\b(?:{_NUMBER_WORDS})\b",
        re.IGNORECASE,
    ),
    _kind(
        "who",
        r"\bwho(?:m|se)?\b|\bwhat (?:\w+ )?(?:person|people|name|actor|actress|author|player|king|president)\b",
        r"\b[A-Z][\w’'-]+(?: (?:of|the|de|von|van|da|al) )?(?: ?[A-Z][\w’'-]*)+|(?<=[a-z,;] )[A-Z][\w’'-]+",
    ),
    _kind(
        "where",
        r"\bwhere\b|\b(?:what|which) (?:\w+ )?(?:city|country|state|town|place|region|location|county|river|continent"
        r"|area|street|island|province|nation|district|part of)\b",
        r"(?<=[a-z,;(] )[A-Z][\w’'-]+|\b(?:north|south|east|west)\w*\b",
    ),
    _kind(
        "why",
        r"\bwhy\b|\bwhat (?:\w+ )?(?:reason|cause|purpose|caused)\b|\bhow come\b",
        r"\b(?:because|due to|since|so that|in order to|as a result|therefore|owing to|thanks to|caused|led to|to avoid"
        r"|for fear|to prevent|reason|allow\w*|mak(?:es|ing)|thus|resulted?)\b",
        re.IGNORECASE,
    ),
)

_HAN_NUMBER = "[〇零一二三四五六七八九十百千万亿两兩幾几數数廿半萬億]"
CHINESE: Sequence[Kind] = (
    _kind(
        "when",
        "何时|何時|什么时候|什麼時候|甚麼時候|(?:哪|几|幾|何|什么|什麼)(?:一|个|個)?(?:年|月|日|天|世纪|世紀|朝|代|季节|季節|时期|時期|时间|時間)|年份|日期"
        "|时间是|時間是|什么时间|什麼時間",
        rf"\d+\s*(?:年|月|日|世纪|世紀)|(?:{_HAN_NUMBER}|元)+(?:年|月|日|世纪|世紀)|时期|時期|年间|年間|年代|[春夏秋冬]季|[唐宋元明清汉漢秦隋晋晉]朝|时|時",
    ),
    _kind(
        "how many",
        "多少|几(?!乎)|幾(?!乎)|多[大长長高远遠久深重宽寬快]|百分之|人数|人數|面积|面積|人口|数量|數量|价格|比例",
        rf"\d|{_HAN_NUMBER}+\s*[^\W\d_]",
    ),
    _kind(
        "who",
        "谁|誰|何人|哪位|哪一位|哪个人|哪些人|什么人|什麼人|叫什么名|叫什麼名|名字|哪[一]?[个個名].{0,4}(?:人|家|手|帝|王|演员|導演|导演|作者|将|將)",
        "·|[A-Z][a-z]+ [A-Z][a-z]+|[由被与與和及是为為][\u4e00-\u9fff]{2,4}",
    ),
    _kind(
        "where",
        "哪里|哪裡|哪裏|何处|何處|何地|什么地方|什麼地方|什么地区|在哪|(?:哪|哪一|哪些|哪个|哪個|什么|什麼)(?:个|個|座)?(?:国|國|省|市|县|縣|区|區|城|州|镇|村|岛|洲|地|河|湖|山)",
        "[\u4e00-\u9fff]{1,6}(?:国|國|省|市|县|縣|区|區|州|镇|鎮|村|岛|島|路|街|山|洲|城|港|湾|灣|海|河|江|湖|部|寺|宫|宮|乡|郡|站|学|學|馆|館)|位于|位於",
    ),
    _kind(
        "title",
        "什么书|哪本|哪部|哪首|什么歌|什么电影|专辑|專輯|歌曲|小说|小說|著作|作品|片名|剧名|杂志|報紙|报纸",
        "《[^》]+》|“[^”]+”|「[^」]+」",
    ),
    _kind(
        "why",
        "为什么|為什麼|为何|為何|何故|原因|缘由|怎么会|因為什麼|因为什么|目的",
        "因|由于|由於|所以|为了|為了|以便|以免|导致|導致|使得|令|為|为",
    ),
)


def kind(question: str) -> Kind | None:
    """What `question` asks for, if that is one of ENGLISH or CHINESE."""
    kinds = CHINESE if is_chinese(question) else ENGLISH
    return next((kind for kind in kinds if kind.question.search(question)), None)


def answers(asked: Kind, question: str, text: str) -> list[re.Match]:
    """What in `text` could be the answer; what the question says itself is none."""
    said = fold(question)
    return [found for found in asked.answer.finditer(text) if fold(found[0]) not in said]
