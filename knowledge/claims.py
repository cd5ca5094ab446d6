"""What a sentence commits itself to beside its subject: names, and what is denied or turned round.

A sentence that shares all its words with a passage may still say something else; it does so by one of these (or by its
numbers, which knowledge/numbers.py compares).
"""

import functools
import importlib.resources
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from itertools import pairwise

from knowledge.alignment import Alignment, Place, size
from knowledge.numbers import numbers
from knowledge.terms import fold, is_chinese, terms

_HAN_RUN = re.compile("[\u3400-\u9fff]+")
_TOKEN = re.compile(r"[\u3400-\u9fff]|n['’]t\b|[^\W\d_\u3400-\u9fff]+(?=n['’]t\b)|[^\W_\u3400-\u9fff]+")
_CLAUSE_END = re.compile(r"[,，;；:：。！？!?()（）]|\.(?=\s|$)|(?<=[\u3400-\u9fff]) +(?=[\u3400-\u9fff])")

# Words with a negative character that deny nothing: taken out before negations are looked for.
_HARMLESS = re.compile(
    "不仅|不但|不只|不光|不断|不同|不久|不少|不过|不满|不幸|不论|不管|不禁|不得不|无论|不到|不足|无数|无线|非常|非洲|未来|没收|没落|无穷|无限|"
    "除非|是非|莫非|分别|区别|特别|级别|类别|性别|差别|个别|别人|别名|别的|别处|别国|别墅|告别|离别|不等|不时|不错|"
    r"\bnot only\b|\bno longer than\b|\bno matter\b|\bnorth\b|\bnotable\b"
)
_NEGATORS = re.compile(
    r"^(?:不|没|未|无|非|勿|莫|否|别|not|no|never|none|nobody|nothing|neither|nor|without|cannot|n['’]t)$"
)
# What may stand for a negation, or be said with one: its lack or presence proves nothing.
_SOFT = re.compile(
    "缺|拒绝|禁止|避免|防止|失败|免|除|停止|至少|至多|最多|最长|最高|最低|只|仅|罕|独|"
    r"\b(?:fail|lack|unable|refus|absent|except|hardly|rarely|seldom|prevent|avoid|stop|only|at (?:most|least)|"
    r"instead|rather|deny|denied|unless)"
)
# How far a negation surely reaches, and how far it may, in Chinese characters and in English words.
_NEAR, _FAR = (6, 5), (9, 7)
_NOBODY = frozenset("一你我您自己")  # they name no one, and count nothing
_CHANCE = 0.34  # of the terms that both have: as many may be turned round by where a reach ends
_EMPTY = frozenset(
    "a an the of in on at to for from by with and or as that this it its is are was were be been being has have had "
    "having do does did can could will would should any all than then there which who he she they him her them his "
    "their i we you our your so thus hence still also however but while when where though although because since such "
    "these those there here via per using used".split()
)

# What a sentence may turn round; one side of a row against the other.
_OPPOSITES = tuple(
    tuple(frozenset(side.split("|")) for side in row.split("/"))
    for row in (
        "增加|增长|增多|上升|提高|上涨|扩大|变大/减少|下降|降低|下跌|缩小|变小",
        "高于|大于|多于|超过|以上|不少于|不低于/低于|小于|少于|以下|不足|不到",
        "之前|以前|事前/之后|以后|事后",
        "早于|先于|领先|率先|抢先|抢在/晚于|迟于|落后",
        "允许|可以|获准|许可/禁止|不得|不可|不能|不准|不许|严禁|无法|驱逐",
        "支持|赞成|赞同|同意|拥护/反对|阻止|阻拦|抵制|否决",
        "鼓励|提倡|应当|应该|必须|需要/避免|禁止|严禁|杜绝|无需|不必|不用|不应",
        "接受|采纳|答应|承认/拒绝|驳回|否认|推辞",
        "成功|获胜|胜利|大胜|打赢|击败|战胜/失败|落败|大败|战败|无功|未能",
        "最大|最高|最多|最长|最强/最小|最低|最少|最短|最弱",
        "最早|首先|首次|首个|第一/最晚|最后|末次",
        "所有|全部|一切|全体|各种/部分|少数|个别",
        "开始|启用|开放|开业|成立|建立/结束|停用|关闭|停业|解散|撤销",
        "有利|有益|有助/不利|有害|妨碍",
        "公办|公立|国有|国营|官方/民办|私立|私有|私营|民间",
        "主观/客观",
        "内部|国内|境内/外部|国外|境外|海外",
        "积极|主动|正面/消极|被动|负面",
        "简单|容易|简易/复杂|困难|艰难",
        "多元|多样|丰富|众多|许多|大量|繁多/单一|单调|贫乏|稀少|少量|极少",
        "经常|常常|往往|总是|频繁|普遍|常见|广泛/很少|极少|罕见|偶尔|少有|从不",
        "增强|加强|加剧|加重|严厉|严格|更加/减弱|削弱|缓和|减轻|放松|放宽|宽松",
        "团结|统一|合并/分裂|分割|拆分",
        "安全|无害|无毒|可食/危险|有害|有毒",
        "公开|透明/秘密|保密|隐瞒",
        "喜欢|喜爱|爱好|善于|擅长|好客/讨厌|厌恶|不喜|不善|不擅",
        "长期|永久|长久|终身/短期|短暂|临时|暂时",
        "相同|一致|一样|相似|对称/不同|相反|各异|迥异",
        "购买|买入|收购|购入/出售|卖出|转让|售出",
        "进口|输入/出口|输出",
        "增长|盈利|赚钱|获利/亏损|赔本|亏本",
        "富裕|富有|发达/贫穷|贫困|落后",
        "年轻|年幼|年少|早年/年老|年迈|老年|晚年",
        "强大|强盛|兴盛|繁荣/弱小|衰弱|衰落|萧条",
        "温暖|炎热|高温/寒冷|低温|严寒",
        "左侧|左边/右侧|右边",
        "上方|上游|上层/下方|下游|下层",
        "南部|南端|南方|南侧/北部|北端|北方|北侧",
        "东部|东端|东方|东侧/西部|西端|西方|西侧",
        "男性|男子/女性|女子",
        "生前/死后",
        "保留|保存|保持|沿用|恢复/废除|取消|拆除|废止|中断|放弃",
        "得到|获得|提供|答应|出兵|派出/拒绝|拒不|不肯|回绝",
        "稳定|平稳|安定/不稳|动荡|动摇|波动",
        "容易|轻易|易于/很难|难以|不易|困难",
        "便宜|低廉|廉价|省钱/昂贵|高昂|花钱",
        "有效|见效|奏效/无效|失效",
        "上游|上升|升高/下游|下降|降低",
        "出生|诞生/去世|逝世|死亡|病逝",
        "结婚|成婚|完婚/离婚|离异",
        "推迟|延后|延期/提前|提早",
        "赢得|夺得|夺冠|获胜/输掉|失去|落败|丢掉",
        "分散|分离|分开/集中|合并|聚集",
        "唯一|单独|独自/多个|共同|一起|联合",
        "第一|首位|冠军/最后|末位|垫底",
        "部分|局部/全部|完全|整个",
        "主要|大多|大部分|多数|大半/少数|少部分|小部分|次要",
        "可食|能吃|食用/不可|有毒",
        "满|爆满|满座|满员|座无虚席/空|寥寥|冷清",
        "快速|迅速|立即|立刻|马上|急速/缓慢|逐渐|逐步|推迟|延后",
        "新鲜/陈旧|陈腐|久置",
        "独立|自主|自治/附属|依附|从属",
        "加入|参加|参与|入伙/退出|离开|脱离",
        "赞扬|称赞|好评|赞赏|夸奖/批评|抨击|指责|差评",
        "increase|rise|rose|grow|grew|higher|more|greater|expand|gain/decrease|decline|fall|fell|lower|less|fewer|shrink|drop|lose",
        "before|prior|earlier|precede/after|later|subsequent|follow",
        "more|most/less|least|fewer|fewest",
        "largest|biggest|highest|most|longest|strongest|greatest|best/smallest|lowest|least|shortest|weakest|worst",
        "earliest|first/latest|last|final",
        "all|every|always|entire|each/few|rarely|seldom|partly|some",
        "often|usually|frequent|common|commonly|mostly/rarely|seldom|never|rare|uncommon|hardly",
        "support|favour|favor|back|endorse/oppose|reject|against|resist|criticise|criticize",
        "allow|permit|let|authorise|authorize|legal/forbid|prohibit|ban|forbade|illegal|bar",
        "begin|start|open|launch|began|establish|found/end|close|stop|cease|abolish|shut|dissolve",
        "agree|accept|approve|admit/refuse|reject|deny|decline|dispute",
        "succeed|success|successful|successfully|win|won|reach|manage/fail|failure|lose|lost|unsuccessful|unable",
        "encourage|promote/discourage|prevent|deter|hinder",
        "public|government/private|privately",
        "new|newly|recent|modern|young/old|ancient|traditional|aged",
        "wide|broad|large|big|huge/narrow|small|tiny|limited",
        "long|lengthy|permanent/short|brief|temporary",
        "continuous|constant|steady/intermittent|occasional|sporadic",
        "high|tall|deep/low|shallow",
        "fast|quick|rapid|quickly|rapidly/slow|slowly|gradual|gradually",
        "easy|simple|simply/difficult|hard|complex|complicated",
        "strong|powerful|strengthen/weak|weaken|weakness",
        "same|identical|similar|alike|symmetric/different|opposite|dissimilar|asymmetric",
        "exact|exactly|precise|perfectly|fully|completely|entirely|wholly/approximately|roughly|partly|partially|nearly",
        "include|contain|involve|including/exclude|except|omit|lack|excluding|without",
        "alone|solely|only|exclusively/together|jointly|also|several",
        "inside|internal|indoor|within/outside|external|outdoor|beyond",
        "stable|stability|stabilize|steady/unstable|instability|destabilize|volatile",
        "growth|expansion|influx|expanded|grew|increase|increased|rising|raised/shrank|shrinking|contraction|decline|declined|dropped|reduced|reduction|fell|falling|cut",
        "single|one|sole/both|double|multiple|several|two",
        "advantage|strength|benefit|asset/disadvantage|weakness|drawback|obstacle|challenge",
        "easier|easy|easily|simple/harder|difficult|challenge|challenging|difficulty",
        "reduced|reduces|reduce|lowered|lowers/raised|raises|boosted|increased|easier",
        "praised|praise|acclaimed|positive|favourable|favorable/criticised|criticized|panned|negative|unfavourable|unfavorable",
        "profit|profitable|surplus/loss|losses|unprofitable|deficit",
        "majority|most|mostly|mainly|largely/minority|few|hardly|rarely|little",
        "born|birth/died|death",
        "arrived|arrive|arrival/departed|depart|departure|left",
        "appointed|hired|elected|promoted/dismissed|fired|removed|demoted|resigned",
        "built|erected|constructed/demolished|destroyed|dismantled",
        "cheap|cheaper|inexpensive|affordable/expensive|costly|costlier",
        "visible|seen/invisible|unseen|hidden",
        "voluntary|voluntarily|willingly/forced|compulsory|unwillingly|reluctantly",
        "effective|effectively|works/ineffective|useless",
        "related|linked|associated|connected/unrelated|unconnected",
        "friendly|friend|ally|allied/hostile|enemy|rival",
        "north|northern/south|southern",
        "east|eastern/west|western",
        "upper|above|over|upwind|upward/lower|below|under|downwind|downward",
        "left/right",
        "import/export",
        "buy|bought|purchase|acquire/sell|sold",
        "win|won|victory|defeat|beat/lose|lost|loss",
        "rich|wealthy/poor",
        "safe|harmless|edible/dangerous|harmful|poisonous|toxic",
        "hot|warm|warmer|hotter/cold|cool|cooler|colder",
        "male|men|man/female|women|woman",
        "positive|benefit|beneficial|improve|better/negative|harm|harmful|worsen|worse",
        "known|famous|well-known/unknown|obscure",
        "dependent|depend|rely/independent|independently|separate|separately",
        "keep|kept|retain|remain|preserve/remove|abandon|replace|lose|discard",
        "join|enter|joined/leave|left|quit|withdraw",
        "heavy|heavier/light|lighter",
        "early/late",
        "guilty/innocent",
        "active|actively/inactive|passive",
        "natural|naturally/artificial|synthetic",
        "married/unmarried|single|divorced",
        "sufficient|suffice|enough|adequate/insufficient|inadequate",
        "necessary|required|mandatory|compulsory|must/unnecessary|optional|voluntary",
        "possible|able|can/impossible|unable|cannot",
    )
)
_OPPOSITE_CHARACTERS = (
    "东西 南北 左右 上下 前后 内外 大小 多少 高低 快慢 早晚 长短 增减 升降 男女 冷热 强弱 新旧 进出".split()
)

_REFUSES = re.compile(r"(?:fail|refus|declin)(?:e|ed|es|s)?$")


def negations(text: str) -> list[str]:
    """The words by which `text` denies something."""
    return [token for token in _TOKEN.findall(_HARMLESS.sub(" ", fold(text))) if _NEGATORS.match(token)]


def softened(text: str) -> bool:
    """Whether something in `text` may stand for a negation."""
    return bool(_SOFT.search(fold(text)))


def denied(text: str, han: int, words: int) -> dict[str, set[bool]]:
    """For each telling term of `text` whether a negation reaches it, over `han` characters or as many `words`; where it
    occurs twice, perhaps both."""
    found: dict[str, set[bool]] = {}
    for clause in _CLAUSE_END.split(_HARMLESS.sub(" ", fold(text))):
        tokens = _TOKEN.findall(clause)
        marks: list[bool | None] = []
        reach = 0
        for token in tokens:
            if _NEGATORS.match(token):
                reach = han if _HAN_RUN.match(token) else words
                marks.append(None)
            else:
                marks.append(reach > 0)
                reach -= 1
        pairs = pairwise([*zip(tokens, marks, strict=True), ("", None)])
        for (token, mark), (following, next_mark) in pairs:
            if mark is None:
                continue
            if not _HAN_RUN.match(token):
                for term in terms(token) if token not in _EMPTY else ():
                    found.setdefault(term, set()).add(mark)
            elif _HAN_RUN.match(following) and next_mark is not None:
                found.setdefault(token + following, set()).add(mark and next_mark)
    return found


@dataclass(frozen=True)
class Polarity:
    """How surely a sentence denies what a passage affirms (`added`), and affirms what that denies (`removed`), 0 to 1;
    and the words by which it turns the other round."""

    added: float
    removed: float
    opposite: tuple[str, ...] = ()


def polarity(sentence: str, passage: str) -> Polarity:
    added = _turned(denied(sentence, *_NEAR), denied(passage, *_FAR))
    removed = _turned(denied(passage, *_NEAR), denied(sentence, *_FAR))
    return Polarity(added, removed, tuple(opposites(sentence, passage)))


def _turned(denying: Mapping[str, set[bool]], other: Mapping[str, set[bool]]) -> float:
    """How surely terms that are only denied in one text are only affirmed in the other, 0 to 1: two suffice."""
    shared = [term for term, marks in denying.items() if marks == {True} and term in other]
    turned = sum(True not in other[term] for term in shared)
    return min(turned / 2, 1) if turned > _CHANCE * len(shared) else 0.0


def opposites(sentence: str, passage: str) -> Iterable[str]:
    """Words of `sentence` whose opposite is in `passage`, where they are not."""
    said, held = (set(terms(text)) for text in (sentence, passage))

    def has(text_terms: set[str], word: str) -> bool:
        return all(term in text_terms for term in terms(word))

    for row in _OPPOSITES:
        for one, other in (row, row[::-1]):
            for word in one:
                turned = not any(has(held, each) for each in one) and any(has(held, each) for each in other)
                if has(said, word) and turned and not any(has(said, each) for each in other):
                    yield word


@dataclass(frozen=True)
class Replaced:
    """How surely something was put into another's place: a name (`name`), another word, a number, 0 to 1; which
    `names` and `numbers`, and the words that stand where the passage has their opposites."""

    name: float = 0.0
    words: float = 0.0
    number: float = 0.0
    names: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()
    opposite: tuple[str, ...] = ()

    @classmethod
    def most(cls, found: Iterable["Replaced"]) -> "Replaced":
        """What any of `found` has."""
        return cls(*(max(values) for values in zip(*map(astuple, found), strict=True)))


def replaced(alignment: Alignment, said_names: frozenset[str], held_names: frozenset[str], held: str) -> Replaced:
    """What stands in another's place, of a sentence beside the passage `held` (folded).

    said_names, held_names: the words (folded) that are names in either by their capitals.
    """
    chinese = is_chinese(held)
    name = words = number = 0.0
    names: list[str] = []
    changed: list[str] = []
    turned: list[str] = []
    for place in alignment.places():
        others = set(place.held)
        said = [word for word in place.said if not _held(word, others) and not _is_empty(word, chinese)]
        turned += _turned_at(place)
        values, others = ({word: _values(word) for word in part if _values(word)} for part in (said, place.held))
        if values and others:
            apart = set().union(*values.values()).isdisjoint(set().union(*others.values()))
            if apart and not place.moved & values.keys():
                number = max(number, place.before, place.after)
                changed += values
        elif (named := _named(place, said_names, held)) and _may_name(place, held_names):
            name = max(name, place.before, place.after)
            names.append(named)
        elif said and not all(_is_empty(word, chinese) for word in place.held):
            words = max(words, place.before * place.after * min(size(said), 1) ** 2)
    return Replaced(name, words, number, tuple(names), tuple(changed), tuple(turned))


def _named(place: Place, names: frozenset[str], held: str) -> str:
    """The name that the words of a place are, if they are one. held: a passage that may have it elsewhere."""
    if latin := [word for word in place.said if word in names]:
        return " ".join(latin)
    run = _ENDS.sub("", "".join(place.said))
    if whole := _part_of_name(run, place):
        return whole
    if len(run) < 2 or not _HAN_RUN.fullmatch(run) or _UNNAMED.search(run) or _FUNCTION.search(run):
        return ""
    known = any(name in run for names in lexicon().places for name in names.split("|"))
    known = known or bool(rarity(run)) and run in held
    return run if known or rarity(run) >= _RARE or re.search(f"(?:{_KINDS})$", run) else ""


def _part_of_name(run: str, place: Place) -> str:
    """The Chinese name of which a place has a part, by the surname before it or by what kind of thing is named."""
    before, behind, other = ("".join(words) for words in (place.left, place.right, place.held))
    if not _HAN_RUN.fullmatch(run) or _UNNAMED.search(run) or not _HAN_RUN.fullmatch(other):
        return ""
    if len(run) == len(other) == 1 and {run, other} <= _SURNAMES:
        return run + behind
    for person in (f"{before}{run}"[-3:], f"{before[-1:]}{run}"[:3], f"{before[-1:]}{run}{behind}"[:3]):
        if len(person) == 3 and run in person and _HAN_RUN.fullmatch(person) and _is_person(person):
            return person
    if len(run) > 1 and rarity(run) >= _RARE and re.fullmatch(_KINDS, behind):
        return run + behind
    return ""


def _may_name(place: Place, names: frozenset[str]) -> bool:
    text = "".join(place.held)
    runs = _FUNCTION.split(text)
    named = any(word in names for word in place.held) or any(len(run) > 1 and _HAN_RUN.match(run) for run in runs)
    return named or len(text) == len("".join(place.said)) == 1


def _turned_at(place: Place) -> list[str]:
    """The directions and measures in a place that has the opposite in the passage, and what says that nothing came."""
    said, held = set(place.said), set(place.held)
    return [
        one
        for pair in _OPPOSITE_CHARACTERS
        for one, other in (pair, pair[::-1])
        if one in said and other in held and one not in held and other not in said
    ] + [word for word in place.said if _REFUSES.match(word) and not any(map(_REFUSES.match, place.held))]


def _values(word: str) -> set[float]:
    """Of a token that is a number; 条 makes one of a lone Chinese numeral."""
    return {number.value for number in numbers(f"{word}条" if _HAN_RUN.match(word) else word)}


def _is_empty(word: str, chinese: bool) -> bool:
    said = bool(_FUNCTION.fullmatch(word)) and not _NEGATORS.match(word)
    return said or word in _NOBODY or (not chinese and word in _EMPTY)


# Names


@dataclass(frozen=True)
class _Lexicon:
    words: frozenset[str]  # common English words
    pairs: frozenset[str]  # common pairs of Chinese characters
    places: Mapping[str, frozenset[str]]  # Chinese names, with | between -> English words for them


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


_SCALES = frozenset("celsius fahrenheit kelvin am pm bc ad".split())


def latin_names(text: str) -> list[str]:
    """Words that capitals make names of; in Chinese text all Latin words of two letters and more."""
    chinese = bool(_HAN_RUN.search(text))
    found = []
    for match in _LATIN_WORD.finditer(text):
        if text[: match.start()][-1:].isdigit() or match[0].casefold() in _SCALES:
            continue  # a unit: 4.6GB, degrees Celsius
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
    return (
        plain not in known
        and not any(
            plain.endswith(ending) and plain[: -len(ending)] + more in known
            for ending in ("s", "es", "ed", "d", "ing", "ly")
            for more in ("", "e")
        )
        and not re.search(r"ever$|(.)\1ing$", plain)
    )


def lacking_latin(names: Sequence[str], held: set[str]) -> list[str]:
    """Names of which no part is among the terms `held`, nor a form of it (Canada, Canadian)."""
    return [name for name in names if not all(_held(term, held) for term in terms(name))]


def _held(term: str, held: set[str]) -> bool:
    if term in held:
        return True
    start = term[: max(4, round(0.6 * len(term)))]
    return len(term) >= 4 and any(
        other.startswith(start) and (abs(len(other) - len(term)) <= 4 or other.startswith(term)) for other in held
    )


def quoted(text: str) -> list[str]:
    """Titles in Chinese brackets."""
    return _QUOTED.findall(text)


def foreign_places(sentence: str, passage: str) -> list[str]:
    """Well-known places in `sentence` that `passage` has in neither language."""
    held = {word for names in _places(passage) for word in lexicon().places[names]}
    sentence = re.sub(r"\bHan Chinese\b", "Han", sentence)  # a people, not the country
    return sorted(names for names in _places(sentence) if not held & lexicon().places[names])


def place_words(text: str) -> set[str]:
    """All words for the well-known places in `text`: France, French."""
    return {term for names in _places(text) for word in lexicon().places[names] for term in terms(word)}


def _places(text: str) -> set[str]:
    folded = fold(text)
    words = set(_LATIN_WORD.findall(folded))
    return {
        names
        for names, english in lexicon().places.items()
        if english & words or any(name in folded for name in names.split("|"))
    }


_FUNCTION = re.compile(
    "[的了是在由和与于被把将从到就都也而并及或对向为以因所其之这那他她它们有着过给让使得后前里中上下时等个]"
)
_ENDS = re.compile(f"^{_FUNCTION.pattern}+|{_FUNCTION.pattern}+$")
_RARE = 0.5  # of a run's pairs of characters
_UNNAMED = re.compile("[则全不没很还再更最会要想能可又才只座每几各手]")  # in no name, or seldom
_SURNAMES = frozenset(
    "赵钱孙李周吴郑王冯陈褚卫蒋沈韩杨朱秦尤许何吕施张孔曹严华金魏陶姜戚谢邹喻柏窦章苏潘葛奚范彭郎鲁韦昌苗凤方俞任袁柳"
    "鲍史唐费廉岑薛雷贺倪汤滕殷罗毕郝邬乐傅皮卞齐康伍余顾孟黄穆萧尹姚邵汪祁毛狄米贝臧戴宋庞熊纪舒屈项祝董梁"
    "杜阮蓝闵季贾路娄江童颜郭梅盛林钟徐邱骆高夏蔡田樊胡凌霍虞柯卢莫房裘缪丁宣邓郁单杭洪包诸左石崔吉龚程嵇邢裴陆"
    "荣翁荀羊惠甄曲储靳焦弓牧隗侯仰秋仲伊宫栾甘厉戎祖武符刘景詹束龙叶司黎薄怀蒲邰鄂索籍赖卓蔺屠蒙乔"
    "阴胥苍闻党翟谭贡姬申扶堵冉宰雍桑桂濮牛寿扈燕冀浦尚农庄晏柴瞿阎慕茹习宦艾鱼容慎戈廖庾暨居衡耿"
    "匡寇禄阙东欧沃蔚夔隆师巩聂晁勾敖融冷辛阚饶曾鞠巢关蒯查荆竺盖桓"
)
_WORDS = frozenset(
    "毛高全方白黄明水石古时金安平成和计马包左边农空年花雷温房路单双万冷师文官常干江海山项经车"
)  # surnames, words too
_SOUNDS = frozenset(  # what foreign names are written with
    "阿埃艾安昂奥巴柏拜班邦保鲍贝本比彼宾波伯博布策查茨达戴丹当道得德登邓迪蒂丁顿多恩尔法凡菲费芬弗夫福富盖甘冈高戈哥格葛根古瓜哈海"
    "汉豪赫亨洪胡华霍基吉加贾杰金卡凯坎康考柯科可克肯库夸昆拉莱赖兰朗劳勒雷里理利莉丽琳林隆卢鲁伦罗洛马玛迈麦曼芒梅门蒙米密"
    "明默姆穆拿那纳娜南内嫩尼涅宁纽努诺欧帕潘庞佩彭皮平珀普奇恰切琼丘让热仁日茹儒瑞若撒萨塞赛桑瑟森莎山尚舍申圣施什史"
    "斯丝松苏索塔泰坦汤唐陶特滕提廷图托脱瓦万旺威韦维魏温文翁沃乌伍武西希席夏显肖谢辛欣休许逊雅亚延扬耶叶伊因英尤于约扎泽詹"
    "珍芝朱卓兹佐妮伽茜露薇朵"
)
_KINDS = "大学|学院|公司|组织|集团|银行|委员会|协会|[署局厅队岛山河湖省市县区郡州国海洋寺庙宗帝党报社湾港奖杯]"


def unknown_names(sentence: str, held: str) -> list[str]:
    """Stretches of Chinese characters in `sentence` that look like names and of which `held` has no pair.

    There are no capitals to go by: a surname before one or two characters that make no common word, the characters that
    foreign names are written with, or uncommon characters before what kind of thing is named. `held` is folded.
    """
    pairs = set(map("".join, pairwise("".join(_HAN_RUN.findall(held)))))
    runs = unknown_runs(sentence, pairs)
    doers = [
        run[:3] for run, _ in runs if len(run) > 3 and _is_person(run[:3]) and re.search(f"[由被]{run}", fold(sentence))
    ]
    return doers + [
        run
        for run, behind in runs
        if len(run) > 1 and not _UNNAMED.search(run) and (_is_person(run) or _is_foreign(run) or _is_kind(run, behind))
    ]


def _is_person(run: str) -> bool:
    person = run[0] in _SURNAMES and (len(run) == 3 or len(run) == 2 and run[0] not in _WORDS) and rarity(run) == 1
    return person or bool(_DOUBLE.search(run))


_DOUBLE = re.compile(
    "(?:欧阳|司马|诸葛|上官|夏侯|皇甫|尉迟|公孙|慕容|司徒|令狐|宇文|长孙|独孤|完颜|织田|德川|丰臣|高桥|佐藤|铃木|田中)."
)


def _is_foreign(run: str) -> bool:
    return sum(character in _SOUNDS for character in run) >= 0.8 * len(run) and rarity(run) > 0.6


def _is_kind(run: str, behind: str) -> bool:
    named = re.fullmatch(f"(.*?)(?:{_KINDS})", run) or re.match(f"()(?:{_KINDS})", behind)
    return bool(named) and rarity(run) >= 0.5


def unknown_runs(sentence: str, held_pairs: set[str]) -> list[tuple[str, str]]:
    """Stretches of Chinese characters of which no pair is in `held_pairs`, and the characters behind each, folded."""
    runs = []
    for match in _HAN_RUN.finditer(fold(sentence)):
        run = match[0]
        known = ["1" if _FUNCTION.match(character) else "0" for character in run]
        for at, pair in enumerate(map("".join, pairwise(run))):
            if pair in held_pairs:
                known[at] = known[at + 1] = "1"
        runs += [(run[each.start() : each.end()], run[each.end() :]) for each in re.finditer("0+", "".join(known))]
    return runs


def rarity(run: str) -> float:
    """How much of a run of Chinese characters no common words make up: 1 for most names, 0 for plain words."""
    pairs = list(map("".join, pairwise(run)))
    return sum(pair not in lexicon().pairs for pair in pairs) / len(pairs) if pairs else 0.0


# Chatter

_POLITE = re.compile(
    r"(?:(?:sure|certainly|of course|okay|ok|yes|no|great|hello|hi|thanks|thank you|you['’]re welcome)\b"
    r"|好的|好|当然可以|当然|没问题|可以的|您好|你好|谢谢|不客气|是的)[\s,，.。!！~]*",
    re.IGNORECASE,
)
_LEADS_IN = re.compile(
    r"(?:here (?:is|are)|here['’]s|i hope|let me know|feel free|based on|according to)\b.{0,60}$"
    r"|(?:希望|以下是|下面是|如有|如果您|如果你|请告诉我|请随时).{0,30}$",
    re.IGNORECASE,
)
_CLAIMING = re.compile(r"(?:based on|according to|以下是|下面是).*[,，]", re.IGNORECASE)
_UNSAID = re.compile(
    r"\b(?:passages?|documents?|texts?|context|sources?) (?:do|does|did)(?: not|n['’]t)\b"
    r"|\bi (?:do not|don['’]t) (?:know|have)\b"
    r"|(?:段落|资料|文档|文中|文章|上文|材料|原文)(?:里|中|内)?[^。，]{0,6}(?:没有|未|并未)[^。，]{0,4}(?:提|说|给出|涉及|包含|回答)",
    re.IGNORECASE,
)


def is_chatter(sentence: str) -> bool:
    """Whether a sentence says nothing that a document could support: a greeting, a lead-in, a question, "the passages
    do not say"."""
    plain = sentence.strip("*_ \n")
    rest = plain
    while polite := _POLITE.match(rest):
        rest = rest[polite.end() :]
    if not any(map(str.isalnum, rest)) or plain.endswith(("?", "？", ":", "：")):
        return True
    return bool(_UNSAID.search(plain) or (_LEADS_IN.match(rest) and not _CLAIMING.match(rest)))
