"""ChatGLM-6B's own: a prompt that attends both ways, [gMASK] and [MASK], and filling blanks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import models
from models import Sampling
from tests.tiny import CHATGLM, LLAMA, build, byte_level_tokenizer, piece_model, save_folder

CONFIG = CHATGLM | {
    "vocab_size": 420,
    "mask_token_id": 410,
    "gmask_token_id": 411,
    "bos_token_id": 414,
    "eos_token_id": 415,
}
CONTROLS = {"[MASK]": 410, "[gMASK]": 411, "<sop>": 414, "<eop>": 415}
PIECES = ("There was a ", " by the sea. 你好，", "！")


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> models.LoadedModel:
    folder = tmp_path_factory.mktemp("chatglm")
    save_folder(folder, CONFIG)
    (folder / "tokenizer.model").write_bytes(piece_model())
    added = {str(number): {"content": name, "special": True} for name, number in CONTROLS.items()}
    (folder / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": False, "added_tokens_decoder": added}))
    return models.load(folder, tier="fp32")


def test_blanks_stand_between_the_pieces(loaded: models.LoadedModel) -> None:
    prompt = models.fill_prompt(loaded, PIECES)
    encoded = [loaded.tokenizer.encode(piece) for piece in PIECES]
    assert prompt.ids == [*encoded[0], 410, *encoded[1], 410, *encoded[2], 414]
    assert [prompt.ids[start:end] for start, end in prompt.spans] == encoded
    assert prompt.stop_ids == {415}


def test_blanks_may_stand_at_the_ends(loaded: models.LoadedModel) -> None:
    encoded = loaded.tokenizer.encode("the sea")
    assert models.fill_prompt(loaded, ["", "the sea"]).ids == [410, *encoded, 414]
    assert models.fill_prompt(loaded, ["the sea", ""]).ids == [*encoded, 410, 414]


def test_typed_mask_stays_text(loaded: models.LoadedModel) -> None:
    prompt = models.fill_prompt(loaded, ["a [MASK] and [gMASK] <sop>", "b"])
    assert [number for number in prompt.ids if number in CONTROLS.values()] == [410, 414]
    assert loaded.tokenizer.decode(prompt.ids[: prompt.spans[0][1]]) == "a [MASK] and [gMASK] <sop>"


def test_nothing_to_fill(loaded: models.LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no blank"):
        models.fill_prompt(loaded, ["only text"])
    save_folder(tmp_path, LLAMA, byte_level_tokenizer())
    with pytest.raises(ValueError, match="llama can't fill blanks"):
        models.fill_prompt(models.load(tmp_path), ["a", "b"])


def ids_of(events: list[models.Event]) -> list[int]:
    return [event.id for event in events if isinstance(event, models.Token) and event.id is not None]


@torch.inference_mode()
def greedy(loaded: models.LoadedModel, ids: list[int], count: int) -> list[int]:
    sequence = list(ids)
    for _ in range(count):
        sequence.append(int(loaded.model(torch.tensor([sequence]))[0, -1].argmax()))
    return sequence[len(ids) :]


@pytest.mark.parametrize("kind", ["blank", "chat"])
def test_generation_equals_reading_the_whole_again(loaded: models.LoadedModel, kind: str) -> None:
    prompt = models.fill_prompt(loaded, PIECES).ids
    if kind == "chat":
        prompt = [*loaded.tokenizer.encode("你好，the sea"), 411, 414]
    events = list(models.generate(loaded, prompt, Sampling(max_tokens=12), stop_ids=()))
    assert ids_of(events) == greedy(loaded, prompt, 12)


def test_a_longer_prompt_is_read_whole(loaded: models.LoadedModel) -> None:
    """What a cache holds of an earlier turn saw another prompt: nothing of it may be used."""
    cache = loaded.new_cache(128)
    first = [*loaded.tokenizer.encode("the sea"), 411, 414]
    reply = ids_of(list(models.generate(loaded, first, Sampling(max_tokens=6), cache, stop_ids=())))
    second = [*first[:-2], *reply, *loaded.tokenizer.encode("天气很好"), 411, 414]
    events = list(models.generate(loaded, second, Sampling(max_tokens=8), cache, stop_ids=()))
    assert events[-1].timings.reused == 0
    assert ids_of(events) == greedy(loaded, second, 8)


def test_prompt_attends_both_ways() -> None:
    """A later word of the prompt changes what an earlier one is understood as; the reply behind <sop> does not."""
    model = build(CONFIG)
    ids = torch.tensor([[5, 6, 7, 8, 411, 414, 9, 10]])
    before = model(ids)[0]
    for place in (0, 1, 2, 3, 6, 7):
        changed = ids.clone()
        changed[0, place] = 50
        same = [torch.equal(one, other) for one, other in zip(before, model(changed)[0], strict=True)]
        assert same == [place > 5 and row < place for row in range(8)]


def test_place_of_the_blank_matters() -> None:
    """The same words with the blank elsewhere: the reply takes the blank's position."""
    model = build(CONFIG)
    cache = model.new_cache(16, torch.float32, "cpu")
    model(torch.tensor([[5, 410, 6, 7, 410, 8, 414]]), cache)
    assert cache.memory == {"mask": 1, "sop": 6}
    cache.truncate(0)
    model(torch.tensor([[5, 410, 6, 411, 414]]), cache)  # [gMASK] goes first
    assert cache.memory == {"mask": 3, "sop": 4}


@pytest.mark.parametrize("ids", [[5, 6, 7], [5, 411, 7], [5, 6, 414]])
def test_prompt_without_a_blank(ids: list[int]) -> None:
    with pytest.raises(ValueError, match=r"needs \[gMASK\] or \[MASK\], and <sop>"):
        build(CONFIG)(torch.tensor([ids]))


def test_prompt_can_not_be_continued_from_its_middle() -> None:
    model = build(CONFIG)
    cache = model.new_cache(16, torch.float32, "cpu")
    model(torch.tensor([[5, 6, 7, 8, 411, 414, 9]]), cache)
    cache.truncate(3)
    with pytest.raises(ValueError, match="from its middle"):
        model(torch.tensor([[8]]), cache)
