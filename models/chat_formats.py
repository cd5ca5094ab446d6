"""The table of chat formats, and which one a checkpoint wants.

Strings, stop ids and sampling restate each model's official code or card; where authors published no form for several
turns or for a system message, the row's comment says what is done here.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .base import CheckpointError
from .prompts import ChatFormat, ChatHints, Shown, TableFormat
from .templates import TemplateFormat
from .tokenizer import Tokenizer

#: Formats without a system role read a system text in front of the first question.
BEFORE_QUESTION = "{content}\n\n"
TRAINING_DATE = {"[[训练时间]]": "2023年"}  # ChatGLM was trained to write the mark, its code to show the year

CHATGLM = TableFormat(
    name="chatglm",
    title="ChatGLM-6B",
    user="[Round {round}]\n问：{system}{content}\n",
    reply="答：",
    end="\n",
    alone="{system}{content}",
    system=BEFORE_QUESTION,
    first_round=0,
    stops=("<eop>",),
    sampling={"temperature": 0.95, "top_p": 0.7},
    shown=Shown(replace=TRAINING_DATE, widens=True),
)
CHATGLM2 = TableFormat(
    name="chatglm2",
    title="ChatGLM2-6B",
    user="[Round {round}]\n\n问：{system}{content}\n\n",
    reply="答：",
    end="\n\n",
    system=BEFORE_QUESTION,
    sampling={"temperature": 0.8, "top_p": 0.8},
    shown=Shown(replace=TRAINING_DATE),
)
# The line behind a role is metadata; the model writes it itself, so that replies begin with it.
CHATGLM3 = TableFormat(
    name="chatglm3",
    title="ChatGLM3-6B",
    user="<|user|>{metadata}\n{cut}{content}",
    system="<|system|>{metadata}\n{cut}{content}",
    observation="<|observation|>{metadata}\n{cut}{content}",
    reply="<|assistant|>",
    answer="{metadata}\n{cut}{content}",
    controls=("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
    stops=("<|user|>", "<|observation|>"),
    apart=True,
    sampling={"temperature": 0.8, "top_p": 0.8},
    shown=Shown(replace=TRAINING_DATE),
)
GLM4 = TableFormat(
    name="glm4",
    title="GLM-4-9B-Chat",
    head="[gMASK]<sop>",
    user="<|user|>{metadata}\n{content}",
    system="<|system|>{metadata}\n{content}",
    observation="<|observation|>{metadata}\n{content}",
    reply="<|assistant|>",
    answer="{metadata}\n{content}",
    controls=("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
    stops=("<|endoftext|>", "<|user|>", "<|observation|>"),
    prefix=False,
    sampling={"temperature": 0.8, "top_p": 0.8},
)

# The system text stands inside the first question; every round begins with <s> and is encoded on its own.
LLAMA2 = TableFormat(
    name="llama-2",
    title="LLaMA-2-Chat",
    user="<s>[INST] {system}{content} [/INST]",
    system="<<SYS>>\n{content}\n<</SYS>>\n\n",
    reply="",
    answer=" {content} ",
    end="</s>",
    controls=("<s>", "</s>"),
    prefix=False,
    apart=True,
    trims=True,
    sampling={"temperature": 0.6, "top_p": 0.9},
)
CHINESE_ALPACA2 = dataclasses.replace(
    LLAMA2,
    name="chinese-alpaca-2",
    title="Chinese-Alpaca-2",
    default_system="You are a helpful assistant. 你是一个乐于助人的助手。",
    sampling={"temperature": 0.2, "top_k": 40, "top_p": 0.9, "repetition_penalty": 1.1},
)
_LLAMA3_TURN = "<|start_header_id|>{}<|end_header_id|>\n\n"
LLAMA3 = TableFormat(
    name="llama-3",
    title="Llama-3-Instruct",
    head="<|begin_of_text|>",
    user=_LLAMA3_TURN.format("user") + "{content}<|eot_id|>",
    system=_LLAMA3_TURN.format("system") + "{content}<|eot_id|>",
    reply=_LLAMA3_TURN.format("assistant"),
    end="<|eot_id|>",
    controls=("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    stops=("<|eot_id|>", "<|end_of_text|>"),
    prefix=False,
    trims=True,
    sampling={"temperature": 0.6, "top_p": 0.9},
)
CHATML = TableFormat(
    name="chatml",
    title="ChatML (SmolLM2, ...)",
    user="<|im_start|>user\n{content}<|im_end|>\n",
    system="<|im_start|>system\n{content}<|im_end|>\n",
    reply="<|im_start|>assistant\n",
    end="<|im_end|>\n",
    controls=("<|im_start|>", "<|im_end|>"),
    stops=("<|im_end|>",),
    sampling={"temperature": 0.2, "top_p": 0.9},
)
TINYLLAMA = TableFormat(
    name="tinyllama",
    title="TinyLlama-Chat",
    user="<|user|>\n{content}</s>\n",
    system="<|system|>\n{content}</s>\n",
    reply="<|assistant|>\n",
    end="</s>\n",
    controls=("</s>",),
    sampling={"temperature": 0.7, "top_p": 0.95, "top_k": 50},
)
VICUNA = TableFormat(
    name="vicuna",
    title="Vicuna v1.1, v1.3, v1.5",
    user="USER: {content} ",
    system="{content} ",
    reply="ASSISTANT:",
    answer=" {content}",
    end="</s>",
    default_system="A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions.",
    controls=("</s>",),
    sampling={"temperature": 0.7},
)

_ALPACA_HEAD = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
)
# Trained on single questions: further ones follow </s> in the same form, and a system text opens the instruction.
ALPACA = TableFormat(
    name="alpaca",
    title="Alpaca",
    head=_ALPACA_HEAD,
    user="### Instruction:\n{system}{content}\n\n",
    system=BEFORE_QUESTION,
    reply="### Response:",
    end="</s>",
    controls=("</s>",),
    sampling={"temperature": 0.7},
)
CHINESE_ALPACA = dataclasses.replace(
    ALPACA,
    name="chinese-alpaca",
    title="Chinese-Alpaca (Plus, Pro)",
    reply="### Response: ",
    sampling={"temperature": 0.2, "top_k": 40, "top_p": 0.9, "repetition_penalty": 1.1},
)
BELLE = TableFormat(
    name="belle",
    title="BELLE-7B (BLOOM)",
    user="Human: {system}{content}\n\n",
    system=BEFORE_QUESTION,
    reply="Assistant:",
    answer=" {content}",
    end="</s>",
    controls=("</s>",),
    prefix=False,
    sampling={"temperature": 0.8, "top_p": 0.95},
)
BELLE_LLAMA = dataclasses.replace(
    BELLE,
    name="belle-llama",
    title="BELLE-LLaMA",
    user="Human: \n{system}{content}\n\n",
    reply="Assistant: \n",
    answer="{content}",
    sampling={"temperature": 0.1, "top_p": 0.75, "top_k": 40, "repetition_penalty": 1.2},
)
PHOENIX = TableFormat(
    name="phoenix",
    title="Phoenix",
    user="Human: <s>{content}</s>",
    system="{content}\n\n",
    reply="Assistant: <s>",
    end="</s>",
    default_system="A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions.",
    controls=("<s>", "</s>"),
    sampling={"temperature": 0.7},  # nothing is published
)
CHIMERA = dataclasses.replace(PHOENIX, name="chimera", title="Chimera")
# Published for the LLaMA-based models; for XuanYuan-176B nothing is, and the same is used.
XUANYUAN = TableFormat(
    name="xuanyuan",
    title="XuanYuan",
    user="Human: {content} ",
    system="{content} ",
    reply="Assistant:",
    answer=" {content}",
    end="</s>",
    default_system="以下是用户和人工智能助手之间的对话。用户以Human开头，人工智能助手以Assistant开头，"
    "会对人类提出的问题给出有帮助、高质量、详细和礼貌的回答，"
    "并且总是拒绝参与 与不道德、不安全、有争议、政治敏感等相关的话题、问题和指示。\n",
    controls=("</s>",),
    sampling={"temperature": 0.7, "top_p": 0.95, "repetition_penalty": 1.1},
)

BAICHUAN = TableFormat(
    name="baichuan",
    title="Baichuan-13B-Chat",
    user="<reserved_102>{system}{content}",
    system=BEFORE_QUESTION,
    reply="<reserved_103>",
    end="</s>",
    controls=("<reserved_102>", "<reserved_103>", "</s>"),
    apart=True,
    sampling={"temperature": 0.3, "top_k": 5, "top_p": 0.85, "repetition_penalty": 1.1},
)
BAICHUAN2 = TableFormat(
    name="baichuan2",
    title="Baichuan2-Chat",
    user="<reserved_106>{content}",
    system="{content}",
    reply="<reserved_107>",
    controls=("<reserved_106>", "<reserved_107>"),
    apart=True,
    sampling={"temperature": 0.3, "top_k": 5, "top_p": 0.85, "repetition_penalty": 1.05},
)

# A base model continues text: questions are framed so that it sees where an answer is due.
PLAIN = TableFormat(
    name="plain",
    title="问答 / Q&A frame (base)",
    user="问：{content}\n",
    system="{content}\n\n",
    reply="答：",
    end="\n",
    stop_texts=("\n问：",),
    base=True,
    sampling={"temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.1},
)
COMPLETION = TableFormat(
    name="completion",
    title="续写 / completion (base)",
    user="{system}{content}",
    system="{content}",
    reply="",
    base=True,
    sampling=PLAIN.sampling,
    shown=Shown(strips=False),
)
# No template was published; several turns stand below each other.
BLOOMZ = TableFormat(
    name="bloomz",
    title="BLOOMZ (base)",
    user="{system}{content}",
    system=BEFORE_QUESTION,
    reply="",
    answer="\n{content}",
    end="\n",
    base=True,
    sampling={"temperature": 0.0},
)

FORMATS: Mapping[str, TableFormat] = {
    row.name: row
    for row in (
        CHATGLM, CHATGLM2, CHATGLM3, GLM4,
        LLAMA2, CHINESE_ALPACA2, LLAMA3, CHATML, TINYLLAMA, VICUNA, ALPACA, CHINESE_ALPACA, BELLE_LLAMA, CHIMERA,
        BELLE, PHOENIX, BLOOMZ, XUANYUAN,
        BAICHUAN, BAICHUAN2,
        PLAIN, COMPLETION,
    )
}  # fmt: skip
OWN_TEMPLATE = "template"  #: the name of the checkpoint's own chat_template


def chat_formats() -> dict[str, str]:
    """What `chat_format` may be, with the title to show."""
    return {name: row.title for name, row in FORMATS.items()} | {OWN_TEMPLATE: "The checkpoint's own chat_template"}


@dataclass(frozen=True)
class Facts:
    """What the choice rests on: config, tokenizer and hints. Names alone never decide, they tell siblings apart."""

    architecture: str
    config: Mapping[str, Any]
    controls: Mapping[str, int]
    hints: ChatHints = field(default_factory=ChatHints)

    def named(self, pattern: str) -> bool:
        return any(re.search(pattern, name) for name in self.hints.names)

    def templated(self, *texts: str) -> bool:
        """Whether the checkpoint's own template holds all these texts."""
        return self.hints.template is not None and all(text in self.hints.template for text in texts)

    @property
    def window(self) -> int | None:
        return self.config.get("seq_length", self.config.get("max_position_embeddings"))

    def ends(self, control: str) -> bool:
        """Whether texts end with this control token by the checkpoint's config: chat models end turns with it."""
        return self.controls.get(control) in self.hints.eos_ids

    @property
    def chats(self) -> bool:
        """Trained to chat, by whatever shows it: its own template, the role ids Baichuan's code reads, its name."""
        roles = "user_token_id" in self.hints.generation
        return self.hints.template is not None or roles or self.named(r"(?<![a-z])chat(?![a-z])|instruct|[-_]it\b")


@dataclass(frozen=True)
class Rule:
    """`official` rows restate the authors' code, which the checkpoint's own template only approximates."""

    format: TableFormat
    architectures: tuple[str, ...]
    applies: Callable[[Facts], bool]
    official: bool = False


LLAMA_LIKE = ("llama",)
#: The first rule that applies to the architecture and whose control tokens the tokenizer has.
RULES = (
    Rule(PLAIN, ("chatglm2", "baichuan", "llama"), lambda facts: facts.named(r"[-_]base\b"), official=True),
    Rule(CHATGLM, ("chatglm",), lambda facts: True, official=True),
    Rule(GLM4, ("chatglm2",), lambda facts: facts.window != 8192 or facts.chats, official=True),
    Rule(CHATGLM3, ("chatglm2",), lambda facts: "sop" in facts.controls, official=True),
    Rule(CHATGLM2, ("chatglm2",), lambda facts: "sop" in facts.controls, official=True),
    # Baichuan 1 has tokens of these names too. Its own <reserved_102> is id 195, which is <reserved_106> in Baichuan2.
    Rule(
        BAICHUAN2,
        ("baichuan",),
        lambda facts: facts.chats and facts.controls.get("<reserved_102>") != 195,
        official=True,
    ),
    Rule(BAICHUAN, ("baichuan",), lambda facts: facts.chats, official=True),
    Rule(CHINESE_ALPACA2, LLAMA_LIKE, lambda facts: facts.named("alpaca-2"), official=True),
    Rule(CHINESE_ALPACA, LLAMA_LIKE, lambda facts: facts.config.get("vocab_size") == 49954, official=True),
    Rule(LLAMA2, LLAMA_LIKE, lambda facts: facts.templated("[INST]", "<<SYS>>"), official=True),
    Rule(LLAMA2, LLAMA_LIKE, lambda facts: facts.named(r"llama-?2.*chat"), official=True),
    Rule(LLAMA3, LLAMA_LIKE, lambda facts: facts.chats or facts.ends("<|eot_id|>")),
    Rule(CHATML, ("llama", "bloom"), lambda facts: facts.chats or facts.ends("<|im_end|>")),
    Rule(TINYLLAMA, LLAMA_LIKE, lambda facts: facts.templated("<|user|>") or facts.named("tinyllama.*chat")),
    Rule(VICUNA, LLAMA_LIKE, lambda facts: facts.templated("USER:", "ASSISTANT:") or facts.named("vicuna")),
    Rule(XUANYUAN, ("llama", "bloom"), lambda facts: facts.named("xuanyuan")),
    Rule(CHIMERA, LLAMA_LIKE, lambda facts: facts.named("chimera")),
    Rule(BELLE_LLAMA, LLAMA_LIKE, lambda facts: facts.named("belle")),
    Rule(ALPACA, LLAMA_LIKE, lambda facts: facts.named("alpaca")),
    Rule(PHOENIX, ("bloom",), lambda facts: facts.named("phoenix")),
    Rule(BELLE, ("bloom",), lambda facts: facts.named("belle")),
    Rule(BLOOMZ, ("bloom",), lambda facts: facts.named("bloomz")),
)
UNKNOWN = Rule(PLAIN, (), lambda facts: True)


def choose_format(facts: Facts, tokenizer: Tokenizer, wanted: str | None = None) -> ChatFormat:
    """The format called `wanted`, or the one that config and tokenizer ask for.

    Raises CheckpointError for a format whose control tokens the tokenizer lacks.
    """
    if wanted is None:
        return _recommended(_automatic(facts, tokenizer), facts)
    if wanted == OWN_TEMPLATE:
        rule = _rule(facts, tokenizer)
        return _recommended(TemplateFormat.of(facts.hints, tokenizer, rule.format), facts)
    if not FORMATS[wanted].fits(tokenizer):
        needed = ", ".join(control for control in FORMATS[wanted].controls if control not in tokenizer.controls)
        raise CheckpointError(f"The chat format {wanted} needs {needed}, which this checkpoint's tokenizer lacks.")
    return FORMATS[wanted]


def _automatic(facts: Facts, tokenizer: Tokenizer) -> ChatFormat:
    rule = _rule(facts, tokenizer)
    if rule.official or facts.hints.template is None:
        return rule.format
    return TemplateFormat.of(facts.hints, tokenizer, rule.format)


def _rule(facts: Facts, tokenizer: Tokenizer) -> Rule:
    fitting = (rule for rule in RULES if facts.architecture in rule.architectures and rule.format.fits(tokenizer))
    return next((rule for rule in fitting if rule.applies(facts)), UNKNOWN)


#: What generation_config.json may say about sampling, where it says that it samples.
SAMPLING_KEYS = ("temperature", "top_p", "top_k", "repetition_penalty")


def _recommended(chat: ChatFormat, facts: Facts) -> ChatFormat:
    """The format with the sampling that the checkpoint itself brings in place of the table's."""
    generation = facts.hints.generation
    if not generation.get("do_sample"):
        return chat
    brought = {key: generation[key] for key in SAMPLING_KEYS if generation.get(key) is not None}
    return dataclasses.replace(chat, sampling={**chat.sampling, **brought})
