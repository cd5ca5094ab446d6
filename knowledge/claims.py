"""What a sentence commits itself to beside its subject: names, and what is denied or turned round.

A sentence that shares all its words with a passage may still say something else; it does so by one of these (or by its
numbers, which knowledge/numbers.py compares).
"""

import functools
import importlib.resources
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from knowledge.terms import fold, terms

_HAN_RUN = re.compile("[\u3400-\u9fff]+")
_TOKEN = re.compile(r"[\u3400-\u9fff]|n['’]t\b|[^\W\d_]+(?=n['’]t\b)|[^\W_]+")
_CLAUSE_END = re.compile(r"[,，;；:：。！？!?()（）]|\.(?=\s|$)")

# Words with a negative character that deny nothing, and those that only bound: taken out before negations are looked for.
_HARMLESS = re.compile(
    "不仅|不但|不只|不光|不断|不同|不久|不少|不过|不满|不幸|不论|不管|不禁|不得不|无论|无数|无线|非常|非洲|未来|没收|没落|"
    "除非|是非|莫非|分别|区别|特别|级别|类别|性别|差别|个别|别人|别名|不等|不时|不错|"
    r"\bnot only\b|\bno longer than\b|\bno matter\b|\bnorth\b|\bnotable\b"
)
_NEGATORS = re.compile(r"^(?:不|没|未|无|非|勿|莫|否|别|not|no|never|none|nobody|nothing|neither|nor|without|cannot|n['’]t)$")
# What may stand for a negation, or be said with one: its lack or presence proves nothing.
_SOFT = re.compile(
    "缺|拒绝|禁止|避免|防止|失败|免|除|停止|难|误|错|至少|至多|最多|最少|最长|最高|最低|最大|只|仅|才|罕|稀|独树一帜|失|毁|"
    "不得|不超过|不低于|不少于|必须|溃|散|"
    r"\b(?:fail|lack|unable|refus|absent|except|hardly|rarely|seldom|few|prevent|avoid|stop|only|at (?:most|least)|"
    r"unlike|unknown|instead|rather|mis|wrong|un|must|less|lost|lose|deny|denied|independ)"
)
_SCOPE_HAN, _SCOPE_WORDS = 8, 6  # how far a negation reaches, in characters and in words

# What a sentence may turn round; one side of a row against the other.
_OPPOSITES = tuple(
    tuple(frozenset(side.split("|")) for side in row.split("/"))
    for row in (
        "增加|增长|上升|提高|上涨/减少|下降|降低|下跌",
        "高于|大于|多于|超过|以上/低于|小于|少于|以下|不足",
        "之前|以前/之后|以后",
        "允许|可以/禁止|不得|不可",
        "支持|赞成/反对",
        "成功/失败",
        "最大|最高|最多/最小|最低|最少",
        "最早|首先/最晚|最后",
        "所有|全部|一切/部分|少数",
        "开始|启用/结束|停用",
        "increase|rise|grow|higher|more/decrease|decline|fall|lower|less|fewer",
        "before/after",
        "largest|biggest|highest|most/smallest|lowest|least",
        "earliest|first/latest|last",
        "all|every|always/few|rarely|seldom",
        "support/oppose",
        "allow|permit/forbid|prohibit|ban",
        "begin|start|open/end|close",
    )
)


def negations(text: str) -> list[str]:
    """The words by which `text` denies something."""
    return [token for token in _TOKEN.findall(_HARMLESS.sub(" ", fold(text))) if _NEGATORS.match(token)]


def softened(text: str) -> bool:
    """Whether something in `text` may stand for a negation."""
    return bool(_SOFT.search(fold(text)))


def denied(text: str) -> dict[str, set[bool]]:
    """For each term of `text` whether it stands in the reach of a negation, where it occurs twice perhaps both."""
    found: dict[str, set[bool]] = {}
    for clause in _CLAUSE_END.split(_HARMLESS.sub(" ", fold(text))):
        tokens = _TOKEN.findall(clause)
        marks, reach = [], 0
        for token in tokens:
            if _NEGATORS.match(token):
                reach = _SCOPE_HAN if _HAN_RUN.match(token) else _SCOPE_WORDS
                marks.append(None)
            else:
                marks.append(reach > 0)
                reach -= 1
        for (token, mark), (following, next_mark) in pairwise([*zip(tokens, marks, strict=True), ("", None)]):
            if mark is None:
                continue
            if not _HAN_RUN.match(token):
                for term in terms(token):
                    found.setdefault(term, set()).add(mark)
            elif _HAN_RUN.match(following) and next_mark is not None:
                found.setdefault(token + following, set()).add(mark and next_mark)
    return found


@dataclass(frozen=True)
class Polarity:
    """How far a sentence and what it is held against disagree: shares of what they have in common, 0 to 1.

    added: of what the sentence denies, the part that the passage affirms. removed: of what the passage denies, the part
    that the sentence affirms; opposite: pairs of words by which one turns the other round.
    """

    added: float
    removed: float
    opposite: tuple[str, ...]


def polarity(sentence: str, passage: str) -> Polarity:
    said, held = denied(sentence), denied(passage)
    shared = said.keys() & held.keys()
    denies = [term for term in shared if True in said[term]]
    added = [term for term in denies if True not in held[term]]
    affirms = [term for term in shared if True in held[term] and False not in held[term]]
    removed = [term for term in affirms if True not in said[term]]
    unmatched = bool(negations(sentence)) and not denies and not negations(passage)
    return Polarity(
        0.5 if unmatched else len(added) / max(len(denies), 2),
        len(removed) / max(len(affirms), 2),
        tuple(opposites(sentence, passage)),
    )


def opposites(sentence: str, passage: str) -> Iterable[str]:
    """Words of `sentence` whose opposite is in `passage`, where they are not."""
    said, held = (set(terms(text)) for text in (sentence, passage))

    def has(text_terms: set[str], word: str) -> bool:
        return all(term in text_terms for term in terms(word))

    for row in _OPPOSITES:
        for one, other in (row, row[::-1]):
            for word in one:
                if has(said, word) and not any(has(held, each) for each in one) and any(has(held, w) for w in other):
                    yield word


# Names


@dataclass(frozen=True)
class _Lexicon:
    words: frozenset[str]  # common English words
    pairs: frozenset[str]  # common pairs of Chinese characters
    places: Mapping[str, frozenset[str]]  # Chinese name -> English words for it


@functools.cache
def lexicon() -> _Lexicon:
    folder = importlib.resources.files("knowledge")
    english, chinese = (folder / "common_words.txt").read_text(encoding="utf-8").splitlines()
    pairs = frozenset(group[0] + second for group in chinese.split() for second in group[1:])
    rows = (line.split("\t") for line in (folder / "places.tsv").read_text(encoding="utf-8").splitlines())
    return _Lexicon(frozenset(english.split()), pairs, {name: frozenset(words.split()) for name, words in rows})


_LATIN = "A-Za-zÀ-ɏ"
_LATIN_WORD = re.compile(rf"[{_LATIN}](?:[{_LATIN}0-9]|[’'-](?=[{_LATIN}]))*")
_QUOTED = re.compile("[《「『]([^》」』]{1,40})[》」』]")
_SENTENCE_START = re.compile(r"(?:^|[.!?:;。！？：]\s*|[\"“(*_-])\s*$")


def latin_names(text: str) -> list[str]:
    """Words that capitals make names of; in Chinese text all Latin words of two letters and more."""
    chinese = bool(_HAN_RUN.search(text))
    found = []
    for match in _LATIN_WORD.finditer(text):
        word = re.sub(r"['’]s$", "", match[0])
        capital = any(map(str.isupper, word))
        if chinese and len(word) > 1:
            found.append(word)
        elif capital and len(word) > 1 and (not _SENTENCE_START.search(text[: match.start()]) or _unusual(word)):
            found.append(word)
    return found


def _unusual(word: str) -> bool:
    """Whether a word at a sentence's start is a name rather than a word with a capital."""
    plain = word.casefold()
    known = lexicon().words
    return plain not in known and not any(
        plain.endswith(ending) and plain[: -len(ending)] + more in known
        for ending in ("s", "es", "ed", "d", "ing", "ly")
        for more in ("", "e")
    )


def lacking_latin(names: Sequence[str], held: set[str]) -> list[str]:
    """Names of which no part is among the terms `held`, nor a form of it (Canada, Canadian)."""
    return [name for name in names if not all(_held(term, held) for term in terms(name))]


def _held(term: str, held: set[str]) -> bool:
    if term in held:
        return True
    start = term[: max(4, round(0.6 * len(term)))]
    return len(term) >= 4 and any(other.startswith(start) and abs(len(other) - len(term)) <= 4 for other in held)


def quoted(text: str) -> list[str]:
    """Titles in Chinese brackets."""
    return _QUOTED.findall(text)


def places(text: str) -> dict[str, frozenset[str]]:
    """The well-known places in `text`, by their Chinese names: what English calls them."""
    folded = fold(text)
    words = set(_LATIN_WORD.findall(folded))
    return {
        name: english
        for name, english in lexicon().places.items()
        if name in folded or (english & words and not _HAN_RUN.search(folded))
    }


def foreign_places(sentence: str, passage: str) -> list[str]:
    """Places in `sentence` that `passage` does not have, in either language."""
    folded = fold(passage)
    words = set(_LATIN_WORD.findall(folded))
    return [name for name, english in places(sentence).items() if name not in folded and not english & words]


def unknown_runs(sentence: str, held_pairs: set[str]) -> list[str]:
    """Stretches of Chinese characters of which no pair is in `held_pairs`, folded."""
    runs = []
    for match in _HAN_RUN.finditer(fold(sentence)):
        run = match[0]
        covered = [False] * len(run)
        for at, pair in enumerate(map("".join, pairwise(run))):
            if pair in held_pairs:
                covered[at] = covered[at + 1] = True
        runs += re.findall("0+", "".join("1" if mark else "0" for mark in covered)) and [
            run[found.start() : found.end()]
            for found in re.finditer("0+", "".join("1" if mark else "0" for mark in covered))
        ]
    return runs


def rarity(run: str) -> float:
    """How much of a run of Chinese characters no common words make up: 1 for most names, 0 for plain words."""
    pairs = list(map("".join, pairwise(run)))
    if not pairs:
        return 0.0
    return sum(pair not in lexicon().pairs for pair in pairs) / len(pairs)
