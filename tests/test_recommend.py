"""What is recommended fits the machine, speaks the language, and can be had at either hub."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from chatapp.downloads.hubs import read_source
from chatapp.downloads.recommend import SHOWN, SPEEDS, TABLE, Recommender, first_time
from chatapp.hardware import GIB, GPU, Machine
from chatapp.planner import known_checkpoints

ROWS = json.loads(TABLE.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def recommender() -> Recommender:
    return Recommender()


def machine(ram: float, card: float = 0) -> Machine:
    gpus = (GPU(0, "card", int(card * GIB), int(card * GIB)),) if card else ()
    return Machine(gpus, int(ram * GIB), int(ram * GIB))


def names(recommender: Recommender, here: Machine, language: str) -> list[str]:
    return [found.checkpoint for found in recommender.recommendations(here, language)]


def test_every_row_is_a_known_checkpoint_with_ids_that_can_be_looked_up() -> None:
    known = known_checkpoints()
    for row in ROWS:
        assert row["checkpoint"] in known and set(row["languages"]) <= {"zh", "en"} and row["licence"]
        for id in filter(None, (row["checkpoint"], row["modelscope"])):
            assert read_source("huggingface", "https://hub.invalid", id)[1] == id


@pytest.mark.parametrize("language", ["zh", "en"])
@pytest.mark.parametrize("ram, card", [(3, 0), (6, 0), (12, 0), (28, 0), (4, 8), (8, 24)])
def test_what_is_recommended_fits_and_is_not_much(
    ram: float, card: float, language: str, recommender: Recommender
) -> None:
    found = recommender.recommendations(machine(ram, card), language)
    assert 1 <= len(found) <= SHOWN
    for each in found:
        free = card if each.plan.device.startswith("cuda") else ram
        assert each.plan.memory.total <= free * GIB
        assert each.size > 0 and each.speed in dict(SPEEDS)


def test_chinese_users_are_shown_models_that_speak_chinese(recommender: Recommender) -> None:
    assert names(recommender, machine(16), "zh")[0] in ("THUDM/glm-4-9b-chat", "THUDM/chatglm3-6b")
    assert names(recommender, machine(6), "zh")[0] in ("THUDM/chatglm3-6b", "THUDM/chatglm-6b-int4")
    assert names(recommender, machine(3), "zh")[0].startswith("bigscience/bloomz")


def test_english_users_are_shown_llama_and_smollm(recommender: Recommender) -> None:
    assert names(recommender, machine(8, 24), "en")[0] == "meta-llama/Llama-3.1-8B-Instruct"
    assert "HuggingFaceTB/SmolLM2-1.7B-Instruct" in names(recommender, machine(4), "en")


def test_what_is_here_is_not_recommended(recommender: Recommender) -> None:
    first, *others = recommender.recommendations(machine(16), "zh")
    again = recommender.recommendations(machine(16), "zh", here={first.name.upper()})
    assert first not in again and again[: len(others)] == others


def test_nothing_is_recommended_where_nothing_fits(recommender: Recommender) -> None:
    assert recommender.recommendations(machine(0.5), "zh") == []


def test_what_is_slow_comes_last(recommender: Recommender) -> None:
    speeds = [found.speed for found in recommender.recommendations(machine(28), "zh")]
    assert speeds == sorted(speeds, key=lambda speed: speed == "slow")
    assert {found.speed for found in recommender.recommendations(machine(8, 24), "zh")} == {"fast"}


def test_a_lower_tier_is_taken_where_the_best_one_would_be_slow(recommender: Recommender) -> None:
    """On 28 GiB a 6B fits in FP16, at some two tokens a second."""
    found = {each.checkpoint: each for each in recommender.recommendations(machine(28), "zh")}
    assert found["THUDM/chatglm3-6b"].plan.tier == "int8" and found["THUDM/chatglm3-6b"].speed == "steady"


def test_a_notice_is_given_once_for_each_data_folder(tmp_path: Path) -> None:
    assert [first_time(tmp_path, "chinese") for _ in range(3)] == [True, False, False]
    assert first_time(tmp_path / "other", "chinese")
    (tmp_path / "file").touch()
    assert not first_time(tmp_path / "file", "chinese")
