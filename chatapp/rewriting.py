"""A follow-up question made to stand alone by the loaded model.

It is asked behind the conversation as that stands in its cache, so that it reads little but what it is told here; the
reply then finds the conversation in the cache as it was before.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial

from knowledge import terms
from models import End, LoadedModel, Token

from .conversation import Plan, QuestionTooLong, Wording
from .effort import Effort
from .engine import Engine, EngineError, Waiting
from .words import in_chinese

#: Tokens that a question may take which the model has rewritten; one that has not ended by then is none.
LONGEST = 96
ENGLISH = (
    "Rewrite my next question so that it can be understood without our conversation: put names in the place of words "
    "such as it, he or there. If it can be understood already, repeat it. Write only the question.\n\n{}"
)
CHINESE = (
    "请改写我的下一个问题，使它脱离上文也能看懂：把“它”“他”“那里”等词换成所指的名称。"
    "如果已经能看懂，就照抄一遍。只写出问题。\n\n{}"
)
#: What a model puts in front of the question, and around it.
_LABEL = re.compile(r"^(?:Q|[^:：\"“]{0,30}\bquestion|[^:：“]{0,10}问题)\s*[:：]\s*", re.IGNORECASE)
_MARKS = ("?", "？")
_QUOTES = "\"'“”‘’「」*` "

Planned = Callable[[Wording, LoadedModel, Effort], Plan]
"""The plan of a message behind the conversation."""


@dataclass(frozen=True)
class Rewriting:
    """The model makes the question stand alone, before anything is searched for."""


def rewritten(
    engine: Engine, question: str, planned: Planned, cancel: threading.Event
) -> Generator[Waiting | Rewriting, None, str | None]:
    """Returns the question as the model makes it stand alone; None where it can't, or what it says is no such question.

    Raises Cancelled.
    """
    yield Rewriting()
    text = ""
    try:
        with closing(engine.stream(partial(_plan, question, planned), {"temperature": 0.0}, cancel)) as events:
            for event in events:
                if isinstance(event, Waiting):
                    yield event
                if isinstance(event, Token):
                    text += event.text
                if "\n" in text.lstrip() or (isinstance(event, End) and event.reason == "stop"):
                    return usable(text, question)
    except (EngineError, QuestionTooLong):
        return None
    return None


def _plan(question: str, planned: Planned, loaded: LoadedModel, effort: Effort) -> Plan:
    """The plan of a turn that asks for the rewriting, without a summary that would have to be written first."""
    form = CHINESE if in_chinese(question) else ENGLISH
    made = planned(lambda passages: [form.format(question)], loaded, effort)
    return replace(made, aside=None, ledger=replace(made.ledger, reply=min(LONGEST, made.reply)))


def usable(text: str, question: str) -> str | None:
    """The question that a model's text is, its first line without what is around it.

    None where it is none: it ends like no question though the one that was asked did, it shares no word of content with
    that, or it is the same again.
    """
    line = next(iter(text.strip().splitlines()), "")
    said = _LABEL.sub("", line.strip(_QUOTES)).strip(_QUOTES)
    asks = said.endswith(_MARKS) or not question.rstrip().endswith(_MARKS)
    asked = terms.terms(question)
    shared = set(terms.content(question)) & set(terms.terms(said))
    return said if asks and shared and terms.terms(said) != asked else None
