"""Chat formats as data: how a conversation becomes the ids that a model was trained on."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .base import CheckpointError
from .tokenizer import Tokenizer

Message = Mapping[str, Any]
"""{"role": "system" | "user" | "assistant" | "observation", "content": str, optionally "ids": the tokens as they were
generated, which are then used unchanged}"""


@dataclass(frozen=True)
class Prompt:
    """Ids to continue. `spans` are the [start, stop) of each message in them, its frame included."""

    ids: list[int]
    spans: list[tuple[int, int]]
    stop_ids: frozenset[int]
    stop_texts: tuple[str, ...]


@dataclass(frozen=True)
class ChatFormat:
    """Templates of one format. {content} is the message; each of `controls` in a template is that control token.

    Only templates are searched for control tokens, never the content.
    """

    name: str
    turns: Mapping[str, str]  #: role -> template
    reply: str  #: what asks for a reply
    controls: tuple[str, ...] = ()
    stops: tuple[str, ...] = ()  #: control tokens that end a reply, beside the tokenizer's own
    stop_texts: tuple[str, ...] = ()
    default_system: str | None = None
    sampling: Mapping[str, float] = field(default_factory=dict)  #: what the model's authors recommend

    def render(self, messages: Sequence[Message], tokenizer: Tokenizer) -> Prompt:
        """The prompt of a conversation; raises ValueError for a role that the format does not have."""
        if self.default_system is not None and not any(message["role"] == "system" for message in messages):
            default = [{"role": "system", "content": self.default_system}]
            prompt = self.render([*default, *messages], tokenizer)
            return Prompt(prompt.ids, prompt.spans[1:], prompt.stop_ids, prompt.stop_texts)
        ids, spans = list(tokenizer.prefix_ids), []
        for message in messages:
            start = len(ids)
            ids += self._turn(message, tokenizer)
            spans.append((start, len(ids)))
        ids += self._encode(self.reply, "", tokenizer)
        return Prompt(ids, spans, self._stop_ids(tokenizer), self.stop_texts)

    def _turn(self, message: Message, tokenizer: Tokenizer) -> list[int]:
        template = self.turns.get(message["role"])
        if template is None:
            raise ValueError(f"the chat format {self.name} has no role {message['role']!r}")
        if message.get("ids") is None:
            return self._encode(template, message["content"], tokenizer)
        before, after = template.split("{content}")
        return [
            *self._encode(before, "", tokenizer),
            *message["ids"],
            *self._encode(after, "", tokenizer),
        ]

    def _encode(self, template: str, content: str, tokenizer: Tokenizer) -> list[int]:
        ids = []
        for part in self._parts(template):
            if part in self.controls:
                ids.append(tokenizer.controls[part])
            elif text := part.replace("{content}", content):
                ids += tokenizer.encode(text)
        return ids

    def _parts(self, template: str) -> Iterator[str]:
        if not self.controls:
            return iter([template])
        pattern = "|".join(map(re.escape, self.controls))
        return filter(None, re.split(f"({pattern})", template))

    def _stop_ids(self, tokenizer: Tokenizer) -> frozenset[int]:
        named = {tokenizer.controls[stop] for stop in self.stops}
        return frozenset(named if tokenizer.eos_id is None else named | {tokenizer.eos_id})


CHATML = ChatFormat(
    name="chatml",
    turns={role: f"<|im_start|>{role}\n{{content}}<|im_end|>\n" for role in ("system", "user", "assistant")},
    reply="<|im_start|>assistant\n",
    controls=("<|im_start|>", "<|im_end|>"),
    stops=("<|im_end|>",),
    sampling={"temperature": 0.2, "top_p": 0.9},
)

# A base model continues text: questions are framed so that it sees where an answer is due.
PLAIN = ChatFormat(
    name="plain",
    turns={"system": "{content}\n\n", "user": "问：{content}\n", "assistant": "答：{content}\n"},
    reply="答：",
    stop_texts=("\n问：",),
)

FORMATS = {chat.name: chat for chat in (CHATML, PLAIN)}


def choose_format(tokenizer: Tokenizer) -> ChatFormat:
    """The first format whose control tokens the tokenizer has."""
    for chat in FORMATS.values():
        if all(control in tokenizer.controls for control in chat.controls):
            return chat
    raise CheckpointError("No chat format fits this tokenizer.")
