"""Events of a reply: reading, tokens and their text, the end, and what stops it."""

from __future__ import annotations

import pytest
import torch

import models
from models import BadLogitsError, End, Read, Sampling, Token
from models.generate import CHUNK
from tests.tiny import LLAMA, byte_level_tokenizer, save_folder

CONFIG = LLAMA | {"max_position_embeddings": 1024}
PROMPT = "Once upon a time there was a clock"


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> models.LoadedModel:
    folder = tmp_path_factory.mktemp("tiny")
    save_folder(folder, CONFIG, byte_level_tokenizer())
    return models.load(folder, tier="fp32")


@pytest.fixture
def ids(loaded: models.LoadedModel) -> list[int]:
    return loaded.tokenizer.encode(PROMPT)


@torch.inference_mode()
def greedy_ids(loaded: models.LoadedModel, ids: list[int], count: int) -> list[int]:
    """Greedy decoding without cache or chunks: the whole sequence again for every token."""
    sequence = list(ids)
    for _ in range(count):
        sequence.append(int(loaded.model(torch.tensor([sequence]))[0, -1].argmax()))
    return sequence[len(ids) :]


def tokens(events: list[models.Event]) -> list[int]:
    return [event.id for event in events if isinstance(event, Token) and event.id is not None]


def text(events: list[models.Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Token))


def run(loaded: models.LoadedModel, ids: list[int], cache=None, **options) -> list[models.Event]:
    sampling = {name: options.pop(name) for name in list(options) if name in Sampling.__dataclass_fields__}
    return list(models.generate(loaded, ids, Sampling(**sampling), cache, **{"stop_ids": (), **options}))


def test_events_of_a_greedy_reply(loaded: models.LoadedModel, ids: list[int]) -> None:
    events = run(loaded, ids, max_tokens=12)
    kinds = [type(event) for event in events]
    assert kinds[:2] == [Read, Read] and kinds[-1] is End
    assert set(kinds[2:-1]) == {Token}
    assert events[:2] == [Read(0, len(ids)), Read(len(ids), len(ids))]
    assert tokens(events) == greedy_ids(loaded, ids, 12)
    assert text(events) == loaded.tokenizer.decode(tokens(events))
    end = events[-1]
    assert (end.reason, end.timings.prompt_tokens, end.timings.reused, end.timings.tokens) == (
        "length",
        len(ids),
        0,
        12,
    )
    assert end.timings.read_seconds > 0 and end.timings.write_seconds > 0


def test_long_prompts_are_read_in_chunks(loaded: models.LoadedModel) -> None:
    long = torch.randint(3, 320, (2 * CHUNK + 50,), generator=torch.Generator().manual_seed(0)).tolist()
    events = run(loaded, long, max_tokens=3)
    reads = [event.done for event in events if isinstance(event, Read)]
    assert reads == [0, CHUNK, 2 * CHUNK, len(long)]
    assert tokens(events) == greedy_ids(loaded, long, 3)


def test_stop_ids_end_the_reply_and_do_not_show(loaded: models.LoadedModel, ids: list[int]) -> None:
    expected = greedy_ids(loaded, ids, 6)
    events = run(loaded, ids, max_tokens=20, stop_ids={expected[4]})
    assert tokens(events) == expected[: expected.index(expected[4])]
    assert events[-1].reason == "stop"


def test_stop_ids_of_the_checkpoint_are_the_default(loaded: models.LoadedModel, ids: list[int], monkeypatch) -> None:
    monkeypatch.setitem(loaded.checkpoint.config, "eos_token_id", [greedy_ids(loaded, ids, 1)[0]])
    events = list(models.generate(loaded, ids, Sampling(max_tokens=5)))
    assert tokens(events) == [] and events[-1].reason == "stop"


def test_window_end(loaded: models.LoadedModel, ids: list[int]) -> None:
    events = run(loaded, ids, loaded.new_cache(len(ids) + 2), max_tokens=50)
    # Two fit behind the prompt, and the one chosen last needs no place.
    assert tokens(events) == greedy_ids(loaded, ids, 3)
    assert events[-1].reason == "window"


def test_prompt_that_fills_the_window(loaded: models.LoadedModel, ids: list[int]) -> None:
    events = run(loaded, ids, loaded.new_cache(len(ids)), max_tokens=50)
    assert (len(tokens(events)), events[-1].reason) == (1, "window")
    with pytest.raises(ValueError, match=f"the prompt has {len(ids)} tokens, the window {len(ids) - 1}"):
        run(loaded, ids, loaded.new_cache(len(ids) - 1))


def test_no_prompt(loaded: models.LoadedModel) -> None:
    with pytest.raises(ValueError, match="no prompt"):
        run(loaded, [])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_reused_cache_gives_the_same_reply(loaded: models.LoadedModel, ids: list[int], temperature: float) -> None:
    options = {"max_tokens": 10, "temperature": temperature, "seed": 3}
    fresh = run(loaded, ids, **options)
    cache = loaded.new_cache(100)
    run(loaded, ids[:5], cache, max_tokens=1)
    again = run(loaded, ids, cache, **options)
    assert again[0] == Read(5, len(ids), reused=5)
    assert again[-1].timings.reused == 5
    assert (tokens(again), text(again)) == (tokens(fresh), text(fresh))


def test_next_turn_continues_behind_the_reply(loaded: models.LoadedModel, ids: list[int]) -> None:
    cache = loaded.new_cache(200)
    reply = tokens(run(loaded, ids, cache, max_tokens=8))
    turn = [*ids, *reply, *loaded.tokenizer.encode("天气好")]
    events = run(loaded, turn, cache, max_tokens=8)
    assert events[-1].timings.reused == len(ids) + 7  # the last id of a reply is chosen, not read
    assert tokens(events) == greedy_ids(loaded, turn, 8)


def test_prompt_that_is_wholly_cached_reads_its_last_id(loaded: models.LoadedModel, ids: list[int]) -> None:
    cache = loaded.new_cache(100)
    first = run(loaded, ids, cache, max_tokens=6)
    again = run(loaded, ids, cache, max_tokens=6)
    assert again[-1].timings.reused == len(ids) - 1
    assert tokens(again) == tokens(first)


def test_closing_stops_the_work_and_leaves_the_cache_usable(loaded: models.LoadedModel, ids: list[int]) -> None:
    cache = loaded.new_cache(200)
    layers = []
    cache.on_layer = layers.append
    events = models.generate(loaded, ids, Sampling(max_tokens=100), cache, stop_ids=())
    seen = [next(events) for _ in range(6)]
    events.close()
    count = len(layers)
    assert list(events) == [] and len(layers) == count
    assert cache.length == len(ids) + len(tokens(seen)) - 1
    cache.on_layer = None
    assert tokens(run(loaded, ids, cache, max_tokens=8)) == greedy_ids(loaded, ids, 8)


def test_stopping_while_the_prompt_is_read(loaded: models.LoadedModel, ids: list[int]) -> None:
    cache = loaded.new_cache(200)

    def stop(layer: int) -> None:
        raise InterruptedError

    cache.on_layer = stop
    with pytest.raises(InterruptedError):
        run(loaded, ids, cache)
    cache.on_layer = None
    assert cache.length == 0
    assert tokens(run(loaded, ids, cache, max_tokens=4)) == greedy_ids(loaded, ids, 4)


def test_bad_logits_end_with_one_sentence(loaded: models.LoadedModel, ids: list[int], monkeypatch) -> None:
    norm = loaded.model.model.norm
    monkeypatch.setattr(norm, "weight", torch.nn.Parameter(norm.weight * float("nan"), requires_grad=False))
    with pytest.raises(BadLogitsError, match="another tier"):
        run(loaded, ids, max_tokens=4)


class Parrot:
    """A model that says given ids, whatever it reads."""

    causal_prompt = True

    def __init__(self, ids: list[int], vocabulary: int) -> None:
        self._left = iter(ids)
        self._vocabulary = vocabulary

    def __call__(self, ids: torch.Tensor, cache, last: bool = False) -> torch.Tensor:
        cache.advance(ids.shape[1])
        return torch.nn.functional.one_hot(torch.tensor([[next(self._left)]]), self._vocabulary).float()


@pytest.fixture
def say(loaded: models.LoadedModel, monkeypatch):
    """A function (text, stop_texts) -> the events of a model that says the text, a character or less at a time."""
    cache = loaded.new_cache(64)

    def events(reply: str, stop_texts: tuple[str, ...] = ()) -> list[models.Event]:
        ids = [number for character in reply for number in loaded.tokenizer.encode(character)]
        monkeypatch.setattr(loaded, "model", Parrot(ids, 320))
        return run(loaded, [5], cache, max_tokens=len(ids), stop_texts=stop_texts)

    return events


@pytest.mark.parametrize(
    ("reply", "shown"),
    [
        ("答案是四。\n问：还有吗", "答案是四。"),
        ("答案\n问题是", "答案\n问题是"),
        ("a\n问\n问：b", "a\n问"),
        ("x###y", "x"),
        ("x##", "x##"),
        ("###", ""),
        ("no stop", "no stop"),
        ("龘\n问：", "龘"),
    ],
)
def test_stop_texts_cross_tokens_and_never_show(say, reply: str, shown: str) -> None:
    events = say(reply, ("\n问：", "###", ""))
    assert text(events) == shown
    assert events[-1].reason == ("stop" if shown != reply else "length")
    sofar = ""
    for event in events:
        sofar += event.text if isinstance(event, Token) else ""
        assert shown.startswith(sofar)


def test_text_held_back_comes_at_the_end(say) -> None:
    events = say("wait\n问", ("\n问：",))
    assert events[-2] == Token(None, "\n问")
    assert text(events) == "wait\n问"


def test_no_token_after_a_stop_text(say, loaded: models.LoadedModel) -> None:
    events = say("a###bcdef", ("###",))
    assert len(tokens(events)) == len(loaded.tokenizer.encode("a")) + 3 * len(loaded.tokenizer.encode("#"))


def test_half_a_character_at_the_end_is_not_shown(loaded: models.LoadedModel, monkeypatch) -> None:
    ids = loaded.tokenizer.encode("龘")[:-1]
    cache = loaded.new_cache(8)
    monkeypatch.setattr(loaded, "model", Parrot(ids, 320))
    events = run(loaded, [5], cache, max_tokens=len(ids))
    assert (text(events), tokens(events)) == ("", ids)


def end_of(loaded: models.LoadedModel, reply: list[int], end_loops: bool = True) -> tuple[int, str]:
    """How many of these tokens come, and why no more do."""
    cache = loaded.new_cache(1024)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loaded, "model", Parrot(reply, 320))
        events = run(loaded, [5], cache, max_tokens=len(reply), end_loops=end_loops)
    assert tokens(events) == reply[: len(tokens(events))]
    return len(tokens(events)), events[-1].reason


@pytest.mark.parametrize("size", [1, 2, 7, 21, 22, 63, 64])
def test_a_reply_ends_where_it_only_repeats_itself(loaded: models.LoadedModel, size: int) -> None:
    cycle = loaded.tokenizer.encode("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+-=!?#$%;:")[:size]
    begin = loaded.tokenizer.encode("Well: ")
    assert len(cycle) == size
    assert end_of(loaded, begin + cycle * (900 // size)) == (len(begin) + max(6 * size, 128), "loop")
    assert end_of(loaded, begin + cycle * (900 // size), end_loops=False)[1] == "length"


def test_characters_of_several_tokens_are_letters(loaded: models.LoadedModel) -> None:
    assert end_of(loaded, loaded.tokenizer.encode("龘，" * 200)[:900])[1] == "loop"


@pytest.mark.parametrize("cycle", ["-", "| --- ", "| 0 | 0 |\n", "0, ", "_ "])
def test_rules_and_rows_of_zeros_go_on(loaded: models.LoadedModel, cycle: str) -> None:
    ids = loaded.tokenizer.encode(cycle) * 600
    assert end_of(loaded, ids[:600]) == (600, "length")


def test_what_is_not_quite_the_same_goes_on(loaded: models.LoadedModel) -> None:
    rows = "".join(f"| row {number} | a |\n" for number in range(200))
    assert end_of(loaded, loaded.tokenizer.encode(rows)[:900]) == (900, "length")
    assert end_of(loaded, (loaded.tokenizer.encode("abc ") * 31 + [5]) * 3)[1] == "length"
