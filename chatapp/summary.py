"""A summary, written by the model, in the place of the oldest exchanges that no longer fit into the window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .words import in_chinese

#: Tokens that a summary may take, or an eighth of a window that is smaller.
LONGEST = 128


@dataclass(frozen=True)
class Summary:
    """What the model wrote about the first `exchanges` exchanges of a conversation.

    The window was filled anew with it: of the first `bare` exchanges none stands there with its passages.
    """

    text: str
    exchanges: int
    bare: int = 0

    def message(self) -> str:
        """What the model is told."""
        return f"{_words(self.text).heading}\n{self.text}"


@dataclass(frozen=True)
class Words:
    heading: str
    instruction: str
    asked: str
    replied: str


ENGLISH = Words(
    heading="Summary of the earlier conversation:",
    instruction="Summarise this conversation in at most 80 words. Keep names, numbers and what was decided.",
    asked="User: {}",
    replied="Assistant: {}",
)
CHINESE = Words(
    heading="前面对话的摘要：",
    instruction="请用不超过一百字概括下面的对话，保留人名、数字和已经确定的事情。",
    asked="用户：{}",
    replied="助手：{}",
)


def _words(text: str) -> Words:
    return CHINESE if in_chinese(text) else ENGLISH


def longest(context: int) -> int:
    """Tokens that a summary may take of a window."""
    return min(LONGEST, max(context // 8, 1))


def request(said: Sequence[tuple[str, str]], earlier: Summary | None) -> str:
    """What asks the model for a summary of (role, text) pairs, in the conversation's language.

    `earlier` is a summary of what was said before them.
    """
    words = _words(said[0][1] if said else "")
    forms = {"user": words.asked, "assistant": words.replied}
    before = [earlier.message()] if earlier else []
    return "\n\n".join([words.instruction, *before, *(forms[role].format(text) for role, text in said)])
