"""Follow-up questions made to stand alone before a search, by rules in Chinese and English, without a model.

A question that leans on earlier ones (a pronoun, "the song" without saying which, "and in 2019?") gets what they were
about: names and quoted titles, else the words with which they began. One that says itself what it is about stays as
it is, so a change of topic costs nothing. docs/evidence.md says what this gives.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from knowledge import terms

NOT, PERHAPS, SURELY = range(3)  # whether a question leans on earlier ones

_FEW = 3  # different content words: with no name among them, such a question says too little by itself
_FEW_HAN = 4  # the same in Chinese characters
_CLAUSE_HAN = 8  # characters before a pronoun in which it may have found what it stands for


@dataclass(frozen=True)
class Standalone:
    """A question as it is searched for; changed: not as it was asked. certain: it had to be, since a word in it, such
    as a pronoun, stood for something said before; where it is not, the documents had better decide."""

    text: str
    changed: bool
    certain: bool = True
    asked: str = ""  #: the question before


@dataclass(frozen=True)
class _Asked:
    """A question made to stand alone, and what it is about."""

    text: str
    topic: str
    leaning: int = NOT


def standalone(question: str, earlier: Sequence[str], names: Sequence[str] = ()) -> Standalone:
    """`question` with what it takes from `earlier` questions, oldest first, put into it.

    names: of the files that were cited last, which are what "this document" is, and the topic where the earlier
    questions have none.
    """
    before: _Asked | None = None
    for asked in earlier:
        before = _resolved(asked, before, "")
    resolved = _resolved(question, before, Path(names[-1]).stem if names else "")
    return Standalone(resolved.text, resolved.leaning != NOT, resolved.leaning != PERHAPS, question)


def _resolved(question: str, before: _Asked | None, file: str) -> _Asked:
    question = question.strip()
    rules = CHINESE if terms.is_chinese(question) else ENGLISH
    text = rules.document.sub(lambda _: file, question) if file else question
    named = SURELY if text != question else NOT
    if before is None:
        return _Asked(text, rules.topic(text) or file, named)
    topic = before.topic or file
    leaning = rules.leans(text) if topic else NOT
    if named or not leaning:
        return _Asked(text, rules.topic(text) or topic, named)
    bare = rules.bare(text)
    return _Asked(f"{before.text} {bare}" if rules.continues(text) else rules.put(topic, bare), topic, leaning)


class _English:
    document = re.compile(r"\b(?:this|that|the) (?:document|file|paper|report|book|manual)\b", re.IGNORECASE)

    _opening = re.compile(r"^(?:and|but|so|or|then|also|ok(?:ay)?|well)\b[\s,]*", re.IGNORECASE)
    _about = re.compile(r"^(?:what|how) about\s+", re.IGNORECASE)
    _subject = re.compile(
        r"\b(?:he|she|it|they|him|them|her(?!\s+\w)|this|these|those)\b(?!\s+(?:true|possible|said|necessary|means?|take)\b)"
        r"|(?<=\s)that(?=\s*(?:\?|$))|(?<=\bdid )that\b|(?<=\bwas )that\b|(?<=\bis )that\b",
        re.IGNORECASE,
    )
    _owner = re.compile(r"\b(?:his|its|their|her)\b(?=\s+\w)", re.IGNORECASE)
    _place = re.compile(
        r"(?<!\bis )(?<!\bare )(?<!\bwas )(?<!\bwere )\bthere\b(?!\s+(?:is|are|was|were|be)\b)", re.IGNORECASE
    )
    _one = re.compile(r"\b(?:ones?|both|else|so (?:short|long|few|many|much|late|early))\b", re.IGNORECASE)
    # A thing that is taken to be known, as in "Who wrote the song?"
    _known = re.compile(
        r"\b(?:the|that|this|these|those) (?!same\b|most\b|first\b|last\b|name\b|only\b)(?:[a-z]+ )?[a-z]+"
        r"(?=\s*(?:[?,]|$)|\s+(?:first |last |originally |later |also )?(?:\w+ed|is|are|was|were|did|do|does|has|have"
        r"|had|come|take|be|made|written|based|set|located)\b)"
    )
    _word = re.compile(r"[^\W_][\w’'.&-]*[\w]|[^\W_]|[(),:]")
    _linking = frozenset("of the and de da del von van der la le for from in on at & a".split())
    _asking = frozenset(
        "who whom whose what which when where why how is are was were did does do has have had can could will would "
        "should in on at to from by with for and but so or then the a an of if i as it he she they".split()
    )
    _adjective = re.compile(r"(?:ish|ese|ian|ean|can|ch)$")

    def leans(self, question: str) -> int:
        said = self.bare(question)
        content, names = terms.content(said), self._names(said)
        if said != question and len(content) <= _FEW:
            return SURELY
        for pattern in (self._subject, self._owner, self._place):
            found = pattern.search(said)
            if found and not self._antecedent(said[: found.start()]):
                return PERHAPS if "," in said[: found.start()] else SURELY
        unsaid = self._one.search(said) or self._known.search(said) or len(content) < _FEW
        return PERHAPS if unsaid and not names else NOT

    def continues(self, question: str) -> bool:
        """Whether it only says what is different from the question before, as "And in 2019?" does."""
        said = self.bare(question)
        first = said.split()[0].casefold() if said.split() else ""
        return said != question and (first not in self._asking or first in self._linking or len(said.split()) <= 3)

    def bare(self, question: str) -> str:
        return self._about.sub("", self._opening.sub("", question)) or question

    def put(self, topic: str, question: str) -> str:
        if topic[0] == "(":
            return f"{question} {topic}"
        for pattern, form in ((self._owner, f"{topic}'s"), (self._subject, topic), (self._place, f"in {topic}")):
            if pattern.search(question):
                return pattern.sub(lambda _, form=form: form, question, count=1)
        return f"{topic}: {question}"

    def topic(self, question: str) -> str:
        """Its names; where that is one word or none, all its words of content, in brackets."""
        named = ", ".join(self._names(question))
        words = [word for word in self._word.findall(question) if len(word) > 1]
        content = " ".join(word for word in words if word.casefold() not in self._asking)
        return named if " " in named or named == content else f"({content})"

    def _names(self, question: str) -> list[str]:
        """Quoted titles, and runs of capitalised words and numbers with what links them."""
        quoted = re.findall(r"[\"“]([^\"”]+)[\"”]", question)
        runs: list[list[str]] = [[]]
        for place, word in enumerate(self._word.findall(question)):
            if self._is_name(word, place):
                runs[-1].append(word)
            elif runs[-1] and (word.casefold() in self._linking or word in "()"):
                runs[-1].append(word)
            elif runs[-1]:
                runs.append([])
        return list(dict.fromkeys([*quoted, *filter(None, map(self._joined, runs))]))

    def _is_name(self, word: str, place: int) -> bool:
        if word[0].isdigit():
            return len(word) > 2
        return word[0].isupper() and word != "I" and (place > 0 or word.casefold() not in self._asking)

    def _joined(self, run: list[str]) -> str:
        """A run of words as a name, without the links at its end; years alone are none."""
        while run and (run[-1].casefold() in self._linking or run[-1] in "(),:"):
            run = run[:-1]
        if not any(word[0].isupper() for word in run):
            return ""
        text = " ".join(word for word in run if word not in "(),:")
        return text

    def _antecedent(self, text: str) -> bool:
        """Whether there is a name in the question itself that a pronoun behind it may stand for."""
        return any(not self._adjective.search(name) for name in self._names(text))


class _Chinese:
    document = re.compile(
        "(?:这|這|该|該|此|本)(?:份|个|個|篇|本|部)?(?:文件|文档|文檔|文章|论文|論文|报告|報告|书|書|手册|手冊)"
    )

    _opening = re.compile(
        "^(?:那么|那麼|那(?![里裡裏儿兒边邊个個座家本部位种種条條件次些款项項场場])|然后|然後|另外|还有|還有"
        "|之后呢|之後呢|后来呢|以及|请问|請問|所以|可是|但是)[，, ]*"
    )
    _ending = re.compile("[呢？?。 ]+$")
    _person = re.compile("(?:它|他|她|牠|祂)(?:们|們)?(?!人|国|國|乡|鄉|日|方|山|律)(?<!其他)(?<!其它)(?<!吉他)")
    _owner = re.compile("(?<![及与與尤極极将將和])其(?!他|它|实|實|次|余|餘|中|间|間|所)")
    _among = re.compile("其中")
    _place = re.compile("那里|那裡|那裏|那儿|這裡|这里|当地|當地|那边|那邊")
    # "重庆这名称" says itself what it means: such a word counts at the beginning of a clause or behind these only.
    _this = re.compile(
        "(?<![^，,、。在于於對对從从和與与由是的有给給])(?:这|這|那|该|該|此)"
        "(?:个|個|座|家|本|部|位|种|種|条|條|件|次|首|只|隻|所|些|款|项|項|场|場|艘|支|片|届|屆|张|張|名|期)?"
        "(?!么|麼|样|樣|时|時|里|裡|裏|儿|边|邊|外)(?=[\u4e00-\u9fff])"
    )
    _names = re.compile(
        "[《“「『][^》”」』]+[》”」』]"
        "|[\u4e00-\u9fff]+(?:[·•][^\\W\\da-zA-Z的是在和与與有叫出被把就又于於]+)+"
        "|[A-Za-z][A-Za-z0-9.+#-]*(?: +[A-Za-z0-9.+#-]+)*"
    )
    # Where what a question is about has been said, and something is said or asked of it.
    _predicate = re.compile(
        "是|叫|属于|屬於|位于|位於|分布|什么|什麼|甚麼|哪|谁|誰|何时|何時|多少|多大|多长|多長|几个|幾個|怎|如何"
        "|为什么|為什麼|为何|為何|有多|有哪|有什|有几|有幾|一共|一般|大约|大約|大概|大多|最早|最后|最後|能够|能"
        "|可以|会|會|又|字(?=什|何)|出生|参加|參加|原来|原來|创办|創辦|建于|建於|建立|包括|成立|发现|發現|连接"
        "|連接|在哪|在什|供奉|遇|从|從|曾"
    )
    _lead = re.compile("^(?:请问|請問|那么|那麼|那|在|关于|關於)")

    def leans(self, question: str) -> int:
        said = self._ending.sub("", self.bare(question))
        for pattern in (self._person, self._owner, self._among, self._place, self._this):
            found = pattern.search(said)
            if found and not self._antecedent(said[: found.start()]):
                return SURELY
        if self._names.search(said):
            return NOT
        if self.continues(question):
            return SURELY if said != question and len(said) <= 2 * _FEW_HAN else NOT
        return PERHAPS if len(self._subject(said)) < 2 or len(terms.content(said)) <= _FEW_HAN else NOT

    def continues(self, question: str) -> bool:
        return question.rstrip("？?。 ").endswith("呢")

    def bare(self, question: str) -> str:
        return self._opening.sub("", question) or question

    def put(self, topic: str, question: str) -> str:
        if self._owner.search(question):
            return self._owner.sub(f"{topic}的", question, count=1)
        for pattern, form in ((self._person, topic), (self._among, f"{topic}中"), (self._place, topic)):
            if pattern.search(question):
                return pattern.sub(form, question, count=1)
        if found := self._this.search(question):
            rest = question[found.end() :]
            shared = next((n for n in (3, 2, 1) if topic.endswith(rest[:n])), 0)
            return f"{question[: found.start()]}{topic}{rest[shared:] if shared else '的' + rest}"
        return f"{topic}{question}"

    def topic(self, question: str) -> str:
        names = self._names.findall(question)
        if names:
            return "、".join(dict.fromkeys(names))
        return self._subject(question)

    def _subject(self, question: str) -> str:
        """What stands before anything is said or asked of it."""
        said = self._lead.sub("", question)
        found = self._predicate.search(said)
        subject = (said[: found.start()] if found else self._ending.sub("", said)).strip("，, 的")
        owner, _, owned = subject.rpartition("的")
        return owner if len(owner) > 1 and found and found[0] in ("是", "叫", "在哪", "有多", "有哪") else subject

    def _antecedent(self, text: str) -> bool:
        return bool(self._names.search(text)) or len(text.rpartition("，")[0]) >= _CLAUSE_HAN


ENGLISH, CHINESE = _English(), _Chinese()
