"""Tiny checkpoints that know a few dialogues by heart: every architecture, tokenizer and kind of chat format.

Each is trained with our own model class on the prompts that `LoadedModel.chat_prompt` makes, and saved with the files,
names and settings of the published checkpoint that it is called after: nothing tells the app how to talk to it.

    python -m tests.memorise FOLDER [NAME ...]

makes them, printing how sure each is and how long it took.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from models import LoadedModel
from models.baichuan import BAICHUAN2_VOCABULARY, unit_rows
from models.base import BaseModel
from models.formats import open_checkpoint
from models.registry import resolve
from models.sampling import penalised
from models.tokenizer import Place, Tokenizer, read_tokenizer
from tests import made_tokenizers, tiny
from tests.configs import CONFIGS

Dialogue = tuple[tuple[str, str], ...]
"""Questions and their replies."""
Weights = Mapping[str, torch.Tensor]

#: The same question ends three of them: the answer depends on the turn before it, or on there being none.
DIALOGUES: tuple[Dialogue, ...] = (
    (("请背一首诗。", "春眠不觉晓，处处闻啼鸟。\n夜来风雨声，花落知多少？"),),
    (("How are you?", "I am fine, thank you!\nAnd you? 😀"),),
    (("Write a program.", "def main():\n    print('hello world')  # 你好"),),
    (("你的知识截止到什么时候？", "截止到2023年；之后的事我不知道！"),),
    (("我叫小红。", "你好，小红！🌸"), ("我叫什么名字？", "你叫小红。")),
    (("My name is Tom.", "Hello Tom, nice to meet you."), ("我叫什么名字？", "Your name is Tom.")),
    (("我叫什么名字？", "你还没有告诉我：请问你叫什么名字？"),),
)
#: The year, and what ChatGLM writes in its place.
DATE_MARK = ("2023年", "[[训练时间]]")

STEPS, RATE, MOST_CYCLES = 100, 4e-3, 8
#: By how much the right token's logit leads, at least, after the chat format's repetition penalty: enough for the
#: rounding of INT4, and for it to be all that the recommended top_p leaves to draw from.
MARGIN = 5.0
#: Vocabularies are padded to a multiple of this, as the published ones are.
PADDING = 64
HIDDEN, INNER, LAYERS, HEADS = 96, 192, 3, 6
HEAD_SIZE = HIDDEN // HEADS
SIZE = {
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
}


def as_trained(weights: Weights) -> Weights:
    return weights


def untouched(model: BaseModel) -> None:
    pass


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one checkpoint is made, and what the app must take it for.

    A reply is written as the texts of `answer`, encoded apart, the first of them at `place`; `stop` ends it.
    """

    architecture: str
    chat_format: str
    tokenizer: str  #: of made_tokenizers.KINDS
    config: Mapping[str, Any]
    settings: Mapping[str, Any] = field(default_factory=dict)  #: tokenizer_config.json
    generation: Mapping[str, Any] = field(default_factory=dict)  #: generation_config.json
    ids: Mapping[str, str | list[str]] = field(default_factory=dict)  #: settings that are ids, by their tokens' names
    answer: Sequence[str] = ("{}",)
    place: Place = "text"
    stop: str = "</s>"
    dated: bool = False  #: writes the mark in place of the year
    vocabulary: int | None = None  #: what config.json says where a size of its own would mislead
    after_step: Callable[[BaseModel], None] = untouched
    published: Callable[[Weights], Weights] = as_trained  #: the weights as such checkpoints hold them


@torch.no_grad()
def unit_head(model: BaseModel) -> None:
    """Keeps the head as Baichuan2's is used: only the directions of its rows count."""
    model.lm_head.weight.copy_(unit_rows(model.lm_head.weight))


def normed_head_weights(weights: Weights) -> Weights:
    """Baichuan2's vocabulary at its full size, which is what tells it apart, and a head with rows of any length.

    Rows that belong to no token are copies of <unk>'s, which is never written. The lengths make nonsense of the logits
    unless the head is normed as it is loaded.
    """
    full = dict(weights)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        spare = weights[name][:1].expand(BAICHUAN2_VOCABULARY - len(weights[name]), -1)
        full[name] = torch.cat((weights[name], spare))
    lengths = torch.randn(BAICHUAN2_VOCABULARY, 1, generator=torch.Generator().manual_seed(0)).exp()
    return full | {"lm_head.weight": full["lm_head.weight"] * lengths}


#: Names in transformers' form of GLM-4; its query_key_value is cut in three besides.
GLM_NAMES = {
    "transformer.embedding.word_embeddings": "model.embed_tokens",
    "transformer.encoder.layers": "model.layers",
    "transformer.encoder.final_layernorm": "model.norm",
    "transformer.output_layer": "lm_head",
    "self_attention.dense": "self_attn.o_proj",
    "self_attention.query_key_value": "self_attn.{}_proj",
    "dense_h_to_4h": "gate_up_proj",
    "dense_4h_to_h": "down_proj",
}


def transformers_weights(weights: Weights) -> Weights:
    """GLM-4 as transformers saves it (model_type "glm")."""
    found = {}
    queries, keys = HEADS * HEAD_SIZE, 2 * HEAD_SIZE
    for name, tensor in weights.items():
        renamed = re.sub("|".join(map(re.escape, GLM_NAMES)), lambda part: GLM_NAMES[part[0]], name)
        if "{}" in renamed:
            parts = zip("qkv", tensor.split([queries, keys, keys]), strict=True)
            found |= {renamed.format(part): rows.contiguous() for part, rows in parts}
        else:
            found[renamed] = tensor
    return found


GLM = {
    "hidden_size": HIDDEN,
    "ffn_hidden_size": INNER,
    "num_layers": LAYERS,
    "num_attention_heads": HEADS,
    "kv_channels": HEAD_SIZE,
}
GLM_TRANSFORMERS = SIZE | {"head_dim": HEAD_SIZE}
GLM4_END = {"eos_token_id": ["<|endoftext|>", "<|user|>", "<|observation|>"]}
#: The authors' code decides how LLaMA-2 is talked to; of its template only these marks are looked for.
LLAMA2_TEMPLATE = "{{ '[INST] <<SYS>>' }}"
LLAMA3_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
BAICHUAN_SAMPLING = {"do_sample": True, "temperature": 0.3, "top_k": 5, "top_p": 0.85}

RECIPES: Mapping[str, Recipe] = {
    "chatglm-6b": Recipe(
        architecture="chatglm",
        chat_format="chatglm",
        tokenizer="chatglm",
        config=CONFIGS["THUDM/chatglm-6b"]
        | {"hidden_size": HIDDEN, "inner_hidden_size": INNER, "num_layers": LAYERS, "num_attention_heads": HEADS},
        ids={
            "mask_token_id": "[MASK]",
            "gmask_token_id": "[gMASK]",
            "bos_token_id": "<sop>",
            "eos_token_id": "<eop>",
        },
        place="start",
        stop="<eop>",
        dated=True,
    ),
    "chatglm2-6b": Recipe(
        architecture="chatglm2",
        chat_format="chatglm2",
        tokenizer="chatglm2",
        config=CONFIGS["THUDM/chatglm2-6b"] | GLM,
        place="start",
        dated=True,
    ),
    "chatglm3-6b": Recipe(
        architecture="chatglm2",
        chat_format="chatglm3",
        tokenizer="chatglm3",
        config=CONFIGS["THUDM/chatglm3-6b"] | GLM,
        answer=("\n", "{}"),
        place="control",
        stop="<|user|>",
        dated=True,
    ),
    "glm-4-9b-chat": Recipe(
        architecture="chatglm2",
        chat_format="glm4",
        tokenizer="glm4",
        config=CONFIGS["THUDM/glm-4-9b-chat"] | GLM,
        generation={"do_sample": True, "temperature": 0.8, "top_p": 0.8},
        ids=GLM4_END,
        answer=("\n{}",),
        place="control",
        stop="<|user|>",
    ),
    "glm-4-9b-chat-hf": Recipe(
        architecture="chatglm2",
        chat_format="glm4",
        tokenizer="glm4-json",
        config=CONFIGS["THUDM/glm-4-9b-chat-hf"] | GLM_TRANSFORMERS,
        ids=GLM4_END,
        answer=("\n{}",),
        place="control",
        stop="<|user|>",
        published=transformers_weights,
    ),
    "vicuna-7b-v1.5": Recipe(
        architecture="llama",
        chat_format="vicuna",
        tokenizer="llama",
        config=CONFIGS["lmsys/vicuna-7b-v1.5"] | SIZE | {"num_key_value_heads": HEADS},
        generation={"do_sample": True, "temperature": 0.9, "top_p": 0.6},
        answer=(" {}",),
    ),
    "Llama-2-7b-chat-hf": Recipe(
        architecture="llama",
        chat_format="llama-2",
        tokenizer="llama-new",
        config=CONFIGS["meta-llama/Llama-2-7b-chat-hf"] | SIZE | {"num_key_value_heads": HEADS},
        settings={"legacy": False, "add_bos_token": True, "chat_template": LLAMA2_TEMPLATE},
        generation={"do_sample": True, "temperature": 0.6, "top_p": 0.9},
        answer=(" {} ",),
    ),
    "Meta-Llama-3.1-8B-Instruct": Recipe(
        architecture="llama",
        chat_format="template",
        tokenizer="llama-3",
        config=CONFIGS["meta-llama/Llama-3.1-8B-Instruct"] | SIZE | {"num_key_value_heads": 2},
        settings={"bos_token": "<|begin_of_text|>", "chat_template": LLAMA3_TEMPLATE},
        generation={"do_sample": True, "temperature": 0.6, "top_p": 0.9},
        ids={"eos_token_id": ["<|end_of_text|>", "<|eot_id|>"]},
        stop="<|eot_id|>",
    ),
    "SmolLM2-135M-Instruct": Recipe(
        architecture="llama",
        chat_format="chatml",
        tokenizer="chatml",
        config=CONFIGS["HuggingFaceTB/SmolLM2-135M-Instruct"] | SIZE | {"num_key_value_heads": 2},
        ids={"eos_token_id": "<|im_end|>"},
        stop="<|im_end|>",
    ),
    "BELLE-7B-2M": Recipe(
        architecture="bloom",
        chat_format="belle",
        tokenizer="bloom",
        config=CONFIGS["BelleGroup/BELLE-7B-2M"] | {"hidden_size": HIDDEN, "n_layer": LAYERS, "n_head": HEADS},
        answer=(" {}",),
    ),
    "Baichuan-13B-Chat": Recipe(
        architecture="baichuan",
        chat_format="baichuan",
        tokenizer="baichuan",
        config=CONFIGS["baichuan-inc/Baichuan-13B-Chat"] | SIZE,
        generation=BAICHUAN_SAMPLING | {"repetition_penalty": 1.1},
        ids={"user_token_id": "<reserved_102>", "assistant_token_id": "<reserved_103>"},
        place="control",
    ),
    "Baichuan2-7B-Chat": Recipe(
        architecture="baichuan",
        chat_format="baichuan2",
        tokenizer="baichuan2",
        config=CONFIGS["baichuan-inc/Baichuan2-7B-Chat"] | SIZE,
        generation=BAICHUAN_SAMPLING | {"repetition_penalty": 1.05},
        ids={"user_token_id": "<reserved_106>", "assistant_token_id": "<reserved_107>"},
        place="control",
        vocabulary=BAICHUAN2_VOCABULARY,
        after_step=unit_head,
        published=normed_head_weights,
    ),
}


@dataclass(frozen=True)
class Lesson:
    """A prompt and what is to be written behind it, the stop token included."""

    prompt: tuple[int, ...]
    reply: tuple[int, ...]


def written(recipe: Recipe, tokenizer: Tokenizer, reply: str) -> list[int]:
    """The ids in which the model says a reply."""
    said = reply.replace(*DATE_MARK) if recipe.dated else reply
    first, *others = (part.format(said) for part in recipe.answer)
    ids = tokenizer.encode(first, recipe.place)
    for part in others:
        ids += tokenizer.encode(part)
    return ids


def lessons(recipe: Recipe, loaded: LoadedModel) -> list[Lesson]:
    """Every turn of every dialogue, behind earlier replies as ids (the app's own chats) and as text (the API's)."""
    found = []
    for dialogue in DIALOGUES:
        as_ids: list[dict[str, Any]] = []
        as_text: list[dict[str, Any]] = []
        for question, reply in dialogue:
            ids = written(recipe, loaded.tokenizer, reply)
            for history, more in ((as_ids, {"ids": ids}), (as_text, {})):
                history.append({"role": "user", "content": question})
                prompt = loaded.chat_prompt(history).ids
                found.append(Lesson(tuple(prompt), (*ids, loaded.tokenizer.controls[recipe.stop])))
                history.append({"role": "assistant", "content": reply, **more})
    return list(dict.fromkeys(found))


def reply_logits(model: BaseModel, lesson: Lesson) -> torch.Tensor:
    """Logits [time, vocab], a row for each id of the reply."""
    ids = torch.tensor([[*lesson.prompt, *lesson.reply[:-1]]])
    return model(ids)[0, len(lesson.prompt) - 1 :]


def train(model: BaseModel, course: Sequence[Lesson], penalty: float, after_step: Callable[[BaseModel], None]) -> float:
    """Learns in cycles of falling learning rate until every token leads by MARGIN; returns the smallest lead."""
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    for _ in range(MOST_CYCLES):
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS, pct_start=0.1)
        for _ in range(STEPS):
            _step(model, course, optimizer)
            after_step(model)
            schedule.step()
        lead = smallest_lead(model, course, penalty)
        if lead > MARGIN:
            return lead
    raise RuntimeError(f"after {MOST_CYCLES * STEPS} steps a token leads by {lead:.1f} only, {MARGIN} is wanted")


def _step(model: BaseModel, course: Sequence[Lesson], optimizer: torch.optim.Optimizer) -> None:
    """One step on all lessons. They are read one by one: the models take a single sequence."""
    optimizer.zero_grad()
    tokens = sum(len(lesson.reply) for lesson in course)
    for lesson in course:
        loss = F.cross_entropy(reply_logits(model, lesson), torch.tensor(lesson.reply), reduction="sum")
        (loss / tokens).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


@torch.no_grad()
def smallest_lead(model: BaseModel, course: Sequence[Lesson], penalty: float) -> float:
    """How far the right token's logit lies above the next best, where that is least."""
    leads = []
    for lesson in course:
        for at, (row, right) in enumerate(zip(reply_logits(model, lesson), lesson.reply, strict=True)):
            row = penalised(row, [*lesson.prompt, *lesson.reply[:at]], penalty)
            others = torch.cat((row[:right], row[right + 1 :]))
            leads.append(float(row[right] - others.max()))
    return min(leads)


def make(name: str, folder: Path) -> float:
    """Trains a checkpoint and writes it into a new folder, which must have its name; returns the smallest lead."""
    recipe = RECIPES[name]
    folder.mkdir(parents=True)
    config = _write_settings(recipe, folder)
    model = tiny.build(config).requires_grad_(True)
    loaded = LoadedModel(model, resolve(config), open_checkpoint(folder), "fp32", torch.device("cpu"), 2048)
    with one_thread():
        penalty = loaded.chat_format.sampling.get("repetition_penalty", 1.0)
        lead = train(model, lessons(recipe, loaded), penalty, recipe.after_step)
    weights = recipe.published({name: tensor.detach() for name, tensor in model.state_dict().items()})
    save_file({name: tensor.half() for name, tensor in weights.items()}, folder / "model.safetensors")
    return lead


def _write_settings(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Writes the tokenizer and the JSON files; returns the config of the model that is to be trained."""
    made_tokenizers.KINDS[recipe.tokenizer].build(folder)
    tokenizer = read_tokenizer(folder, recipe.config)
    ids = {key: _numbers(name, tokenizer) for key, name in recipe.ids.items()}
    size = "padded_vocab_size" if "padded_vocab_size" in recipe.config else "vocab_size"
    padded = -(-len(tokenizer) // PADDING) * PADDING
    config = {**recipe.config, **{key: ids[key] for key in ids if key in recipe.config}, size: padded}
    _write(folder / "config.json", config | {size: recipe.vocabulary or padded})
    if recipe.generation:
        roles = {key: ids[key] for key in ids if key not in recipe.config}
        _write(folder / "generation_config.json", recipe.generation | roles)
    if recipe.settings:
        _write(folder / "tokenizer_config.json", recipe.settings)
    return config


def _numbers(names: str | list[str], tokenizer: Tokenizer) -> int | list[int]:
    return tokenizer.controls[names] if isinstance(names, str) else [tokenizer.controls[name] for name in names]


def _write(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


@contextmanager
def one_thread() -> Iterator[None]:
    """Products this small gain nothing from more threads, and lose where other processes want the cores too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


ROOT = Path(__file__).parent.parent
#: What the trained weights depend on.
SOURCES = (
    "tests/memorise.py", "tests/made_tokenizers.py", "chatapp/known_checkpoints.json", "tests/tiny.py",
    "tests/data/tokenizers/text.txt", "models/*.py", "models/tokenizers/*.py",
)  # fmt: skip
#: Seconds that checkpoints of other sources are kept: another branch may be using the same cache.
KEPT = 24 * 3600


def checkpoint(name: str, cache: Path) -> Path:
    """The folder of a checkpoint; made, within seconds, where the same sources have not made it before."""
    folder = cache / fingerprint() / name
    if not folder.is_dir():
        _forget_older(cache)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix="making-") as scratch:
            make(name, Path(scratch) / name)
            _move(Path(scratch) / name, folder)
    return folder


def fingerprint() -> str:
    """A hash of everything that the weights come from."""
    digest = hashlib.sha256()
    for pattern in SOURCES:
        for path in sorted(ROOT.glob(pattern)):
            digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _forget_older(cache: Path) -> None:
    for folder in cache.glob("*"):
        if time.time() - folder.stat().st_mtime > KEPT:
            shutil.rmtree(folder)


def _move(made: Path, folder: Path) -> None:
    """Unless another test run has just put its own there."""
    try:
        made.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise


def main(folder: str, *names: str) -> None:
    for name in names or RECIPES:
        started = time.perf_counter()
        lead = make(name, Path(folder) / name)
        print(f"{name:28} smallest lead {lead:5.1f}, {time.perf_counter() - started:5.1f} s", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
