"""Keys and values on disk: found again for what they were made for, and for nothing else."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import models
from chatapp.conversation import plan
from chatapp.engine import Engine, Source, Warm
from models import Blocks, CachePool, End, LoadedModel, identity
from models.blocks import BLOCK, DISK, SOONER, START
from models.cache import KVCache
from tests.test_contract import BOUNDS, VARIANTS, difference
from tests.test_reuse import ids_of, read, use
from tests.tiny import LLAMA, byte_level_tokenizer, save_folder, write_lora

CONFIG = LLAMA | {"max_position_embeddings": 2048}
IDS = ids_of(1, 3 * BLOCK + 5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    save_folder(folder, CONFIG, byte_level_tokenizer())
    return folder


@pytest.fixture(scope="module")
def loaded(folder: Path) -> LoadedModel:
    return models.load(folder, tier="fp16")


def blocks_of(loaded: LoadedModel, folder: Path, limit: int = 2**30, pays: bool = True) -> Blocks:
    blocks = Blocks(folder, limit, identity(loaded), loaded.needs.cache(loaded.tier, 1))
    blocks.measured(BLOCK, 1.0 if pays else 0.0)
    return blocks


def filled(loaded: LoadedModel, ids: Sequence[int] = IDS) -> KVCache:
    cache = loaded.new_cache(len(ids))
    read(loaded, cache, ids)
    return cache


@pytest.fixture
def kept(tmp_path: Path, loaded: LoadedModel) -> Path:
    """A folder with three blocks."""
    blocks_of(loaded, tmp_path / "warm").keep(IDS, filled(loaded))
    return tmp_path / "warm"


def files(folder: Path) -> list[Path]:
    """From the first block to the last."""
    return sorted(folder.glob("*.kv"), key=lambda path: -path.stat().st_mtime_ns)


# What comes back


def test_whole_blocks_come_back_bit_by_bit(loaded: LoadedModel, kept: Path) -> None:
    blocks, cache, expected = blocks_of(loaded, kept), loaded.new_cache(300), filled(loaded)
    assert blocks.held(IDS) == 3 * BLOCK
    blocks.load(IDS, cache)
    assert cache.length == 3 * BLOCK
    for found, wanted in zip(cache.rows(0, 3 * BLOCK), expected.rows(0, 3 * BLOCK), strict=True):
        assert torch.equal(found, wanted)


def test_what_a_cache_holds_already_is_not_read_again(loaded: LoadedModel, kept: Path) -> None:
    cache = filled(loaded, IDS[: BLOCK + 10])
    larger = loaded.new_cache(300)
    larger.copy(cache, BLOCK + 10)
    files(kept)[0].unlink()  # it would be missed, if it were looked at
    blocks = blocks_of(loaded, kept)
    assert blocks.held(IDS) == 0
    blocks.load(IDS, larger)
    assert larger.length == BLOCK + 10


def test_a_conversation_that_goes_on_adds_files_and_changes_none(loaded: LoadedModel, kept: Path) -> None:
    before = {path: path.stat().st_ino for path in files(kept)}
    longer = [*IDS, *ids_of(2, 2 * BLOCK)]
    blocks_of(loaded, kept).keep(longer, filled(loaded, longer))
    after = {path: path.stat().st_ino for path in files(kept)}
    assert len(after) == 5 and before.items() <= after.items()


def test_what_begins_alike_is_there_once(loaded: LoadedModel, kept: Path) -> None:
    other = [*IDS[: 2 * BLOCK], *ids_of(3, BLOCK)]
    blocks = blocks_of(loaded, kept)
    assert blocks.held(other) == 2 * BLOCK
    blocks.keep(other, filled(loaded, other))
    assert len(files(kept)) == 4 and blocks.held(other) == blocks.held(IDS) == 3 * BLOCK


@pytest.mark.parametrize("tier", ["fp32", *BOUNDS])
@pytest.mark.parametrize(
    "variant", [name for name in VARIANTS if not name.startswith("chatglm-") and name != "chatglm"]
)
def test_a_prompt_goes_on_from_disk_as_a_fresh_one(tmp_path: Path, variant: str, tier: str) -> None:
    save_folder(tmp_path / "tiny", VARIANTS[variant] | {"max_sequence_length": 1024}, byte_level_tokenizer())
    loaded = models.load(tmp_path / "tiny", tier=tier)
    use(CachePool(loaded, 2**30, blocks=blocks_of(loaded, tmp_path / "warm")), loaded, IDS)
    again = models.load(tmp_path / "tiny", tier=tier)
    pool = CachePool(again, 2**30, blocks=blocks_of(again, tmp_path / "warm"))
    ids = [*IDS, *ids_of(2, 30)]
    assert pool.reusable(ids, len(ids)) == 3 * BLOCK
    reused, logits = use(pool, again, ids)
    assert reused == 3 * BLOCK
    expected = read(again, again.new_cache(pool._capacity(len(ids))), ids)
    assert difference(logits, expected) < (1e-4 if tier == "fp32" else BOUNDS[tier].steps)


def test_a_prompt_that_attends_both_ways_finds_nothing(tmp_path: Path) -> None:
    save_folder(tmp_path / "tiny", VARIANTS["chatglm"])
    loaded = models.load(tmp_path / "tiny")
    assert Warm(tmp_path / "warm", 2**30).blocks(loaded) is None


# A wrong key


def changed_weights(folder: Path, tmp_path: Path) -> LoadedModel:
    copied = tmp_path / "copy" / folder.name
    shutil.copytree(folder, copied)
    data = bytearray((copied / "model.safetensors").read_bytes())
    data[-3] ^= 1
    (copied / "model.safetensors").write_bytes(data)
    return models.load(copied, tier="fp16")


def touched_weights(folder: Path, tmp_path: Path) -> LoadedModel:
    os.utime(folder / "model.safetensors")
    return models.load(folder, tier="fp16")


def with_adapter(folder: Path, tmp_path: Path) -> LoadedModel:
    write_lora(tmp_path / "lora", {"model.layers.0.mlp.up_proj": (96, 64)})
    return models.load(folder, tier="fp16", adapter=tmp_path / "lora")


def switched_adapter(folder: Path, tmp_path: Path) -> LoadedModel:
    write_lora(tmp_path / "lora", {"model.layers.0.mlp.up_proj": (96, 64)})
    return models.load(folder, tier="fp16").with_adapter(tmp_path / "lora")


def other_tokenizer(folder: Path, tmp_path: Path) -> LoadedModel:
    loaded = models.load(folder, tier="fp16")
    whole = loaded.tokenizer.encode
    loaded.tokenizer.encode = lambda text, *place: whole(text.lower(), *place)
    return loaded


OTHERS: dict[str, Callable[[Path, Path], LoadedModel]] = {
    "another tier": lambda folder, tmp_path: models.load(folder, tier="int8"),
    "other weights": changed_weights,
    "weights written again": touched_weights,
    "an adapter merged": with_adapter,
    "an adapter beside": switched_adapter,
    "another tokenizer": other_tokenizer,
    "another chat format": lambda folder, tmp_path: models.load(folder, tier="fp16", chat_format="chatglm"),
}


@pytest.mark.parametrize("change", OTHERS)
def test_for_another_model_nothing_is_found(folder: Path, tmp_path: Path, change: str) -> None:
    own = tmp_path / "own" / "tiny"
    shutil.copytree(folder, own)
    loaded = models.load(own, tier="fp16")
    blocks_of(loaded, tmp_path / "warm").keep(IDS, filled(loaded))
    assert blocks_of(models.load(own, tier="fp16"), tmp_path / "warm").held(IDS) == 3 * BLOCK
    other = OTHERS[change](own, tmp_path)
    assert blocks_of(other, tmp_path / "warm").held(IDS) == 0


def test_for_other_ids_or_scaling_nothing_is_found(loaded: LoadedModel, kept: Path) -> None:
    blocks = blocks_of(loaded, kept)
    assert blocks.held([IDS[0] + 1, *IDS[1:]]) == 0
    assert blocks.held([*IDS[:BLOCK], IDS[BLOCK] + 1, *IDS[BLOCK + 1 :]]) == BLOCK
    assert blocks.held(IDS[BLOCK:]) == 0  # the same ids, at another place
    assert blocks.held(IDS, scaled_for=4096) == 0


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "a bit of a key": lambda path: flip(path, START),
    "a bit of a value": lambda path: flip(path, -1),
    "a bit of the mark": lambda path: flip(path, 0),
    "a bit of the hash": lambda path: flip(path, 10),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "too long": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "empty": lambda path: path.write_bytes(b""),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "another block under its name": lambda path: shutil.copy(files(path.parent)[0], path),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_block_is_not_used(loaded: LoadedModel, kept: Path, damage: str) -> None:
    DAMAGE[damage](files(kept)[1])
    cache, blocks = loaded.new_cache(300), blocks_of(loaded, kept)
    blocks.load(IDS, cache)
    assert cache.length == BLOCK
    assert blocks.held(IDS) == BLOCK
    blocks.keep(IDS, filled(loaded))  # it is made anew, but for a folder
    assert blocks.held(IDS) == (BLOCK if damage == "a folder" else 3 * BLOCK)


def test_a_program_that_is_killed_while_it_writes_leaves_only_whole_blocks(folder: Path, tmp_path: Path) -> None:
    script = """
        import sys
        from pathlib import Path
        import models
        from tests.test_blocks import blocks_of, filled
        from tests.test_reuse import ids_of
        loaded = models.load(sys.argv[1], tier="fp16")
        seed = 0
        while True:
            ids = ids_of(seed, 320)
            blocks_of(loaded, Path(sys.argv[2])).keep(ids, filled(loaded, ids))
            print(seed, flush=True)
            seed += 1
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(folder), str(tmp_path / "warm")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1]) as process:
        for _ in range(5):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    loaded = models.load(folder, tier="fp16")
    (tmp_path / "warm" / ".making-left").write_bytes(b"half")
    blocks = blocks_of(loaded, tmp_path / "warm")
    assert [path.name for path in (tmp_path / "warm").iterdir() if path.suffix != ".kv"] == []
    for seed in range(10):
        ids, cache = ids_of(seed, 320), loaded.new_cache(320)
        held = blocks.held(ids)
        blocks.load(ids, cache)
        assert cache.length == held and (held == 320 or seed >= 5)


# Where it pays, and how much


def test_nothing_is_kept_where_a_disk_is_no_faster(tmp_path: Path, loaded: LoadedModel) -> None:
    for_nothing = blocks_of(loaded, tmp_path / "warm", pays=False)
    for_nothing.keep(IDS, filled(loaded))
    Blocks(tmp_path / "warm", 2**30, identity(loaded), 1).keep(IDS, filled(loaded))  # nothing was measured yet
    assert files(tmp_path / "warm") == []


@pytest.mark.parametrize("kib, per_second, pays", [(512, 20, True), (28, 1000, True), (512, 500, False)])
def test_what_pays_follows_from_bytes_and_reading_speed(tmp_path: Path, kib: int, per_second: int, pays: bool) -> None:
    """LLaMA-7B and ChatGLM2-6B on a CPU, and LLaMA-7B on a fast card."""
    blocks = Blocks(tmp_path, 2**30, b"", kib * 1024)
    blocks.measured(1000, 1000 / per_second)
    assert blocks.pays == pays == (kib * 1024 / DISK * SOONER < 1 / per_second)
    blocks.measured(BLOCK - 1, 1e-9 if pays else 1e9)  # too few to tell
    assert blocks.pays == pays


def test_the_limit_holds_and_what_was_not_used_for_longest_goes(tmp_path: Path, loaded: LoadedModel) -> None:
    each = START + BLOCK * loaded.needs.cache("fp16", 1)
    blocks = blocks_of(loaded, tmp_path / "warm", 7 * each)
    conversations = [ids_of(seed, 2 * BLOCK + 1) for seed in range(6)]
    for ids in conversations:
        blocks.keep(ids, filled(loaded, ids))
        assert blocks.nbytes <= 7 * each
        blocks.load(conversations[0], loaded.new_cache(300))  # it is always used
    assert [blocks.held(ids) // BLOCK for ids in conversations] == [2, 0, 0, 1, 2, 2]
    too_long = ids_of(9, 8 * BLOCK)
    blocks.keep(too_long, filled(loaded, too_long))
    assert blocks.held(too_long) == 0 and blocks.held(conversations[0]) == 2 * BLOCK


def test_a_disk_that_can_not_be_written_costs_nothing(tmp_path: Path, loaded: LoadedModel, monkeypatch) -> None:
    blocks = blocks_of(loaded, tmp_path / "warm")

    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("models.blocks.os.replace", full)
    blocks.keep(IDS, filled(loaded))
    assert list((tmp_path / "warm").iterdir()) == []
    (tmp_path / "file").write_text("")
    assert Warm(tmp_path / "file", 2**30).blocks(loaded) is None


# In the engine


def start(folder: Path, warm: Path) -> Engine:
    engine = Engine(warm=Warm(warm, 2**30))
    engine.load(Source("tiny", folder, "fp16"))
    return engine


def ask(engine: Engine) -> End:
    words = "Once upon a time there was a clock in a little town by the sea. " * 4
    made = engine.stream(
        lambda loaded, effort: plan(loaded, [], lambda passages: [words], reply=8),
        {"temperature": 0.0},
        threading.Event(),
    )
    return list(made)[-1]


def test_a_conversation_is_warm_after_a_restart_and_cold_for_another_model(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Blocks, "pays", True)
    first = start(folder, tmp_path / "warm")
    length = ask(first).timings.prompt_tokens
    again = ask(start(folder, tmp_path / "warm")).timings
    assert again.prompt_tokens == length > 2 * BLOCK
    assert again.reused == (length - 1) // BLOCK * BLOCK
    for source in (Source("tiny", folder, "int8"), Source("tiny", folder, "fp16", chat_format="chatglm")):
        first.load(source)
        assert ask(first).timings.reused == 0


def test_what_is_forgotten_is_neither_in_memory_nor_on_disk(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Blocks, "pays", True)
    engine, warm = start(folder, tmp_path / "warm"), tmp_path / "warm"
    (warm / "another.kv").write_bytes(b"of a model that is not loaded")
    ask(engine)
    assert len(files(warm)) > 2
    engine.forget()
    assert list(warm.iterdir()) == []
    assert ask(engine).timings.reused == 0
    Engine(warm=Warm(warm, 0)).forget()  # nothing is loaded, and nothing is to be kept
    assert list(warm.iterdir()) == []
    Engine(warm=Warm(tmp_path / "never", 0)).forget()


def test_where_nothing_is_to_be_kept_no_block_is_made(loaded: LoadedModel, tmp_path: Path) -> None:
    assert Warm(tmp_path / "warm", 0).blocks(loaded) is None


def test_a_changed_model_leaves_no_cache_in_use(folder: Path, tmp_path: Path) -> None:
    engine = Engine()
    write_lora(tmp_path / "lora", {"model.layers.0.mlp.up_proj": (96, 64)})
    plain = Source("tiny", folder, "fp16")
    for source in (
        plain,
        Source("tiny", folder, "int8"),
        plain,
        Source("tiny", folder, "fp16", adapter=tmp_path / "lora"),
    ):
        engine.load(source)
        assert ask(engine).timings.reused == 0
        again = ask(engine).timings
        assert again.reused == again.prompt_tokens - 1
    engine.use_chat_format("chatglm")
    assert ask(engine).timings.reused == 0
