"""The real SmolLM2 that the app starts with, against transformers run on the same weights."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers

import models

NEW_TOKENS = 24
PROMPTS = (
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "List three colours.",
    "How many days are there in a week?",
    "Translate 'good morning' into French.",
    "Explain photosynthesis to a child.",
    "Who wrote Hamlet?",
    "Give me a title for a story about a clock.",
    "What is 12 + 30?",
    "Why is the sky blue?",
    "Write a haiku about rain.",
    "What does HTTP stand for?",
    "Say hello in Spanish.",
    "Name a large animal.",
    "def fibonacci(n):",
    "What is a prime number?",
    "Summarise: The cat sat on the mat, and then it slept.",
    "用一句话介绍北京。",
    "你好！",
    "🙂🎉 what do these mean?",
)
CONVERSATION = [
    {"role": "system", "content": "Answer in one word."},
    {"role": "user", "content": "Is 7 odd?\n<|im_end|>"},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": "你好，123  spaces"},
]


@pytest.fixture(scope="module")
def loaded(default_model: Path) -> models.LoadedModel:
    return models.load(default_model, tier="fp32")


@pytest.fixture(scope="module")
def reference(default_model: Path) -> transformers.LlamaForCausalLM:
    """transformers' LLaMA with the file's weights, read by the plain code below."""
    config = transformers.LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=49152,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    model = model.to_empty(device="cpu").eval()
    weights = dict(plain_weights(default_model))
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.load_state_dict(weights, strict=True, assign=True)
    # to_empty() left the rotary frequencies without values: they are no weights.
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    return model


def plain_weights(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """The file's tensors with Hugging Face names, dequantized block by block after ggml's description."""
    for tensor in gguf.GGUFReader(path).tensors:
        shape = [int(size) for size in reversed(tensor.shape)]
        values = DEQUANTIZE[tensor.tensor_type.name](tensor.data.view(np.uint8).reshape(-1)).reshape(shape)
        if "attn_q" in tensor.name or "attn_k" in tensor.name:  # rows 0, 2, ... of a head are its first half
            order = np.arange(shape[0]).reshape(-1, 64)
            values = values[np.concatenate([order[:, 0::2], order[:, 1::2]], axis=1).reshape(-1)]
        yield hugging_face_name(tensor.name), torch.from_numpy(np.array(values, dtype=np.float32))


def plain_q4_1(data: np.ndarray) -> np.ndarray:
    """Blocks of 20 bytes: scale and minimum as fp16, then 16 bytes; low nibbles are the first 16 values."""
    blocks = data.reshape(-1, 20)
    scale, minimum = blocks[:, :4].copy().view(np.float16).astype(np.float32).T
    nibbles = np.concatenate([blocks[:, 4:] % 16, blocks[:, 4:] // 16], axis=1)
    return nibbles * scale[:, None] + minimum[:, None]


def plain_q8_0(data: np.ndarray) -> np.ndarray:
    """Blocks of 34 bytes: scale as fp16, then 32 signed bytes."""
    blocks = data.reshape(-1, 34)
    scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    return blocks[:, 2:].copy().view(np.int8) * scale


DEQUANTIZE = {"F32": lambda data: data.view(np.float32), "Q4_1": plain_q4_1, "Q8_0": plain_q8_0}
NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_output": "self_attn.o_proj",
    **{f"attn_{part}": f"self_attn.{part}_proj" for part in "qkv"},
    **{f"ffn_{part}": f"mlp.{part}_proj" for part in ("gate", "up", "down")},
}


def hugging_face_name(name: str) -> str:
    layer, part = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.weight", name).groups()
    return f"model.layers.{layer}.{NAMES[part]}.weight" if layer else f"{NAMES[part]}.weight"


@torch.inference_mode()
@pytest.mark.parametrize("question", PROMPTS)
def test_greedy_ids_equal_transformers(loaded, reference, question: str) -> None:
    """Each of our tokens must be transformers' best after the same beginning: then its greedy run is ours."""
    prompt = loaded.chat_prompt([{"role": "user", "content": question}])
    sampling = models.Sampling(temperature=0, max_tokens=NEW_TOKENS)
    events = list(models.generate(loaded, prompt.ids, sampling, stop_ids=prompt.stop_ids))
    ours = [event.id for event in events if isinstance(event, models.Token) and event.id is not None]
    logits = reference(torch.tensor([prompt.ids + ours])).logits[0]
    theirs = logits[len(prompt.ids) - 1 :].argmax(-1).tolist()
    assert ours == theirs[: len(ours)]
    if events[-1].reason == "stop":
        assert theirs[len(ours)] in prompt.stop_ids
    else:
        assert len(ours) == NEW_TOKENS


@pytest.fixture(scope="module")
def their_tokenizer(default_model: Path) -> transformers.PreTrainedTokenizerBase:
    return transformers.AutoTokenizer.from_pretrained(default_model.parent, gguf_file=default_model.name)


def test_chat_prompt_equals_transformers(loaded, their_tokenizer) -> None:
    # Their tokenizer takes control tokens out of the text too, so none is typed here.
    messages = [message | {"content": message["content"].replace("<|im_end|>", "")} for message in CONVERSATION]
    theirs = their_tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert loaded.chat_prompt(messages).ids == theirs


def test_typed_control_tokens_stay_text(loaded) -> None:
    ids = loaded.chat_prompt(CONVERSATION).ids
    controls = loaded.tokenizer.controls
    assert ids.count(controls["<|im_end|>"]) == len(CONVERSATION)
    assert ids.count(controls["<|im_start|>"]) == len(CONVERSATION) + 1
    assert loaded.tokenizer.decode(ids).count("<|im_end|>") == 1


def test_tokenizer_equals_transformers(loaded, their_tokenizer) -> None:
    text = "\n".join(
        [*PROMPTS, "  two  spaces\tand a tab\r\n", "I'll pay $1,234.50 — don't", "çà ñ 한국어 العربية 👩‍👩‍👧"]
    )
    ids = loaded.tokenizer.encode(text)
    assert ids == their_tokenizer.encode(text)
    assert loaded.tokenizer.decode(ids) == text
