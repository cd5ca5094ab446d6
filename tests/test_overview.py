"""`python app.py --plan`: the machine and every known checkpoint, for people, for programs, and for the docs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import app
from chatapp import overview
from chatapp.settings import SettingsError, parse
from models import Footprint
from tests import tiny
from tests.configs import CHECKPOINTS

CODE = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def counted_once(footprints: dict[str, Footprint], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overview, "known_footprints", lambda: footprints)


def report(data: Path, *arguments: str) -> str:
    return overview.report(parse(["--plan", "--data", str(data), *arguments], {}))


def plans(data: Path, *arguments: str) -> dict[str, dict]:
    return {plan["checkpoint"]: plan for plan in json.loads(report(data, "--json", *arguments))["plans"]}


def test_the_command_prints_json_and_leaves_nothing(tmp_path: Path) -> None:
    data = tmp_path / "data"
    command = [sys.executable, "app.py", "--plan", "--json", "--assume", "cuda:6GB", "--data", str(data)]
    finished = subprocess.run(command, cwd=CODE, capture_output=True, encoding="utf-8", timeout=120)
    assert (finished.returncode, finished.stderr) == (0, "")
    answer = json.loads(finished.stdout)
    assert answer.keys() == {"machine", "plans"}
    assert [gpu["free"] for gpu in answer["machine"]["gpus"]] == [6 * 2**30]
    by_name = {plan["checkpoint"]: plan for plan in answer["plans"]}
    assert by_name.keys() == CHECKPOINTS.keys()
    assert by_name["THUDM/chatglm-6b"]["tier"] == "int4"
    assert not data.exists()


def test_json_of_every_plan(tmp_path: Path) -> None:
    for plan in plans(tmp_path, "--assume", "cpu:16GB").values():
        assert plan.keys() == {"checkpoint", "tier", "context", "device", "bytes", "reason"}
        assert plan["bytes"].keys() == {"weights", "cache", "scratch", "margin"}
        assert (plan["tier"] is None) == (plan["context"] == 0) == (plan["device"] is None)
        assert all(type(size) is int and size > 0 for size in plan["bytes"].values())
        assert plan["reason"]


def test_a_tier_and_a_window_can_be_asked_for(tmp_path: Path) -> None:
    asked = plans(tmp_path, "--assume", "cuda:24GB", "--tier", "int8", "--context", "1024")
    assert {plan["tier"] for plan in asked.values()} == {"int8", None}
    assert {plan["context"] for plan in asked.values()} == {1024, 0}


def test_what_is_on_this_machine_is_planned_too(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "checkpoints"
    tiny.save_folder(folder / "mine", tiny.LLAMA)
    (folder / "damaged").mkdir()
    (folder / "damaged" / "config.json").write_text("{")
    tiny.save_folder(tmp_path / "elsewhere", tiny.BLOOM)
    found = plans(tmp_path / "data", "--assume", "cpu:2GB", "--model", str(tmp_path / "elsewhere"))
    assert found["mine"]["tier"] == found["elsewhere"]["tier"] == "fp32"
    assert found["damaged"]["tier"] is None and "damaged" in found["damaged"]["reason"]


def test_text_for_people(tmp_path: Path) -> None:
    lines = report(tmp_path, "--assume", "cuda:6GB").splitlines()
    assert lines[0] == "cuda:0: assumed 6 GB, 6.0 of 6.0 GiB free"
    chatglm = next(line for line in lines if line.startswith("THUDM/chatglm-6b "))
    assert chatglm.split()[1:] == ["int4", "2,048", "cuda:0", "3.8", "0.9", "0.3", "0.3", "5.4"]
    llama = next(line for line in lines if line.startswith("huggyllama/llama-65b"))
    assert "needs 43.6 GiB" in llama


def test_this_machine_is_described(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["--plan", "--data", str(tmp_path)], {}) == 0
    assert "GiB free" in capsys.readouterr().out


def test_the_table_in_the_docs_is_what_the_program_says(tmp_path: Path) -> None:
    committed = (CODE / "docs" / "memory.md").read_text(encoding="utf-8")
    assert committed == report(tmp_path, "--table") + "\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--json"], "--plan"),
        (["--table"], "--plan"),
        (["--assume", "cuda:6GB"], "--plan"),
        (["--plan", "--json", "--table"], "choose one"),
        (["--plan", "--assume", "6GB"], "cuda:6GB"),
        (["--plan", "--assume", ""], "cuda:6GB"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(arguments: list[str], said: str) -> None:
    with pytest.raises(SettingsError, match=said) as caught:
        parse(arguments, {})
    assert "\n" not in str(caught.value)
