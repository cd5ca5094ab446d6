"""Downloads against a hub that breaks off, lies and refuses, and with the downloading process killed in the middle."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import random
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from chatapp.downloads import fetching, hubs
from chatapp.downloads import manager as downloads_module
from chatapp.downloads.hub_notes import Tokens
from chatapp.downloads.hubs import Hub, HubError, Repository, describe
from chatapp.downloads.jobs import Job, Progress
from chatapp.downloads.manager import Downloads
from chatapp.downloads.selection import variants
from tests.fake_hub import FakeHub, Mischief, serving_hub
from tests.waiting import eventually

ID = "maker/tiny"
WEIGHTS = random.Random(0).randbytes(3_000_000)
FILES = {
    "config.json": b"{}",
    "model.safetensors": WEIGHTS,
    "tokenizer.json": b'{"version": "1.0"}',
    "LICENSE": b"Free.",
}
SIZE = sum(map(len, FILES.values()))
ROOT = Path(__file__).parent.parent
KINDS = ("huggingface", "modelscope")


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with serving_hub() as hub:
        yield hub


@contextmanager
def running(data: Path) -> Iterator[Downloads]:
    downloads = Downloads(data, hurry=200)
    downloads.start()
    try:
        yield downloads
    finally:
        downloads.stop(20)


@pytest.fixture
def downloads(tmp_path: Path) -> Iterator[Downloads]:
    with running(tmp_path) as downloads:
        yield downloads


def described(hub: FakeHub, kind: str = "huggingface", id: str = ID) -> tuple[Repository, str, str]:
    with hubs.client() as client:
        repository = describe(client, Hub(kind, hub.address), id, None)
    variant = variants(id, repository.files)[0]
    return dataclasses.replace(repository, files=variant.files), variant.name, variant.form


def begin(downloads: Downloads, hub: FakeHub, kind: str = "huggingface", id: str = ID) -> str:
    return downloads.add(*described(hub, kind, id))


def found(downloads: Downloads, id: str) -> Progress:
    return next(progress for progress in downloads.list() if progress.job.id == id)


def reaches(downloads: Downloads, id: str, *states: str) -> Progress:
    eventually(lambda: found(downloads, id).job.state in states)
    return found(downloads, id)


def failure(downloads: Downloads, id: str) -> HubError:
    error = reaches(downloads, id, "failed", "done").failure
    assert error is not None and error.said("en") and error.said("zh")
    return error


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def nothing_looks_finished(downloads: Downloads) -> None:
    assert [path.name for path in downloads.checkpoints.iterdir() if not path.name.startswith(".")] == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_appears_when_all_of_it_is_there(kind: str, hub: FakeHub, downloads: Downloads) -> None:
    hub.add(ID, FILES | {"modeling.py": b"import os"})
    done = reaches(downloads, begin(downloads, hub, kind), "done", "failed")
    assert (done.job.state, done.failure, done.done) == ("done", None, SIZE)
    assert done.path == downloads.checkpoints / "maker" / "tiny"
    assert content(done.path) == FILES
    assert not any((downloads.checkpoints / ".downloads").iterdir())
    assert sum(hub.sent.values()) == SIZE


def test_a_gguf_model_gets_a_folder_of_its_own(hub: FakeHub, downloads: Downloads) -> None:
    hub.add(ID, {"q/tiny-Q8_0.gguf": WEIGHTS, "LICENSE": b"Free."})
    done = reaches(downloads, begin(downloads, hub), "done", "failed")
    assert done.path == downloads.checkpoints / "maker" / "tiny-Q8_0" / "tiny-Q8_0.gguf"
    assert done.path.read_bytes() == WEIGHTS


# What goes wrong on the way, and passes


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "mischief",
    [
        Mischief(cuts=[1_000_000, 500_000, 0, 1]),
        Mischief(statuses=[503, 429, 500, 408]),
        Mischief(statuses=[429], retry_after="1"),
        Mischief(whole=True, cuts=[70_000]),
        Mischief(wrong=1),
    ],
    ids=["broken off", "busy", "asks for patience", "gives no parts", "damaged once"],
)
def test_what_passes_is_got_over(kind: str, mischief: Mischief, hub: FakeHub, downloads: Downloads) -> None:
    hub.add(ID, FILES).mischief["model.safetensors"] = dataclasses.replace(
        mischief, cuts=[*mischief.cuts], statuses=[*mischief.statuses]
    )
    done = reaches(downloads, begin(downloads, hub, kind), "done", "failed")
    assert done.failure is None and content(done.path) == FILES
    assert done.done == SIZE


def test_what_has_come_is_not_asked_for_again(hub: FakeHub, downloads: Downloads) -> None:
    hub.add(ID, FILES).mischief["model.safetensors"] = Mischief(cuts=[1_000_000, 500_000])
    reaches(downloads, begin(downloads, hub), "done")
    assert hub.sent["model.safetensors"] == len(WEIGHTS)
    asked = [start for path, start in hub.ranges if path == "model.safetensors"]
    assert asked == [None, "bytes=1000000-", "bytes=1500000-"]


def test_the_next_try_and_its_reason_are_shown(hub: FakeHub, tmp_path: Path) -> None:
    hub.add(ID, FILES).mischief["model.safetensors"] = Mischief(statuses=[503] * 3)
    downloads = Downloads(tmp_path, hurry=0.01)
    downloads.start()
    id = begin(downloads, hub)
    eventually(lambda: found(downloads, id).retry)
    seconds, why = found(downloads, id).retry
    assert 0 < seconds <= fetching.LONGEST_WAIT and why.key == "hub_failing"
    downloads.pause(id)
    downloads.stop(20)
    assert not downloads._thread.is_alive()


# What goes wrong, and is said


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "mischief, key",
    [
        (Mischief(wrong=2), "hub_wrong_bytes"),
        (Mischief(replaced=WEIGHTS[:-1]), "hub_changed"),
        (Mischief(replaced=WEIGHTS + b"!"), "hub_changed"),
        (Mischief(replaced=WEIGHTS[::-1]), "hub_wrong_bytes"),
        (Mischief(statuses=[404]), "hub_changed"),
        (Mischief(statuses=[503] * 20), "hub_failing"),
        (Mischief(statuses=[429] * 20), "hub_busy"),
        (Mischief(cuts=[0] * 20), "hub_unreachable"),
    ],
    ids=["damaged", "shorter", "longer", "another", "gone", "down", "busy", "broken off"],
)
def test_a_hub_that_lies_or_fails_is_said(
    kind: str, mischief: Mischief, key: str, hub: FakeHub, downloads: Downloads
) -> None:
    hub.add(ID, FILES).mischief["model.safetensors"] = dataclasses.replace(
        mischief, cuts=[*mischief.cuts], statuses=[*mischief.statuses]
    )
    assert failure(downloads, begin(downloads, hub, kind)).key == key
    nothing_looks_finished(downloads)


def test_another_length_in_the_middle_of_a_file_is_said(hub: FakeHub, downloads: Downloads) -> None:
    made = hub.add(ID, FILES)
    made.mischief["model.safetensors"] = Mischief(pause=0.05)
    id = begin(downloads, hub)
    eventually(lambda: found(downloads, id).done > 200_000)
    downloads.pause(id)
    made.mischief["model.safetensors"] = Mischief(replaced=WEIGHTS + b"more")
    downloads.resume(id)
    assert failure(downloads, id).key == "hub_changed"


def test_a_small_file_that_is_another_one_is_noticed(hub: FakeHub, downloads: Downloads) -> None:
    hub.add(ID, FILES).mischief["config.json"] = Mischief(replaced=b"[]")
    assert failure(downloads, begin(downloads, hub)).key == "hub_wrong_bytes"


def test_after_the_hub_was_gone_the_rest_comes(tmp_path: Path) -> None:
    with serving_hub() as hub, running(tmp_path) as downloads:
        hub.add(ID, FILES).mischief["model.safetensors"] = Mischief(cuts=[1_000_000])
        repository = described(hub)
        port = int(hub.address.rpartition(":")[2])
        hub.failing = 0
        id = downloads.add(*repository)
        eventually(lambda: found(downloads, id).done >= 1_000_000)
        hub.failing = 503
        downloads.pause(id)
    with running(tmp_path) as downloads:
        downloads.resume(id)
        assert failure(downloads, id).key == "hub_unreachable"
        with serving_hub(port) as hub:
            hub.add(ID, FILES)
            downloads.resume(id)
            done = reaches(downloads, id, "done", "failed")
            assert done.failure is None and content(done.path) == FILES
            assert hub.sent["model.safetensors"] <= len(WEIGHTS) - 1_000_000


# Tokens


def test_a_gated_download_goes_on_with_the_right_token(hub: FakeHub, downloads: Downloads) -> None:
    hub.add(ID, FILES, token="right")
    id = begin(downloads, hub)
    assert failure(downloads, id).key == "hub_gated"
    for token, key in (("expired", "hub_token_wrong"), ("another", "hub_not_granted")):
        downloads.tokens.put(hub.address, token, keep=False)
        downloads.resume(id)
        eventually(lambda key=key: (found(downloads, id).failure or HubError("")).key == key)
    downloads.tokens.put(hub.address, "right", keep=False)
    downloads.resume(id)
    assert content(reaches(downloads, id, "done").path) == FILES


def test_a_token_is_kept_for_its_owner_only_and_where_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "data" / "tokens.json"
    tokens = Tokens(path)
    tokens.put("https://a.invalid", "for now", keep=False)
    assert not path.exists() and tokens.get("https://a.invalid") == "for now"
    assert Tokens(path).get("https://a.invalid") is None
    tokens.put("https://a.invalid", "for good", keep=True)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert Tokens(path).get("https://a.invalid") == "for good"
    assert Tokens(path).get("https://b.invalid") is None
    tokens.put("https://a.invalid", "", keep=False)
    assert Tokens(path).get("https://a.invalid") is None and tokens.get("https://a.invalid") is None


def test_a_token_is_in_no_other_file(hub: FakeHub, downloads: Downloads, tmp_path: Path) -> None:
    hub.add(ID, FILES, token="right")
    downloads.tokens.put(hub.address, "right", keep=False)
    reaches(downloads, begin(downloads, hub), "done")
    assert not any(b"right" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


# Pause, resume, delete, verify


@contextmanager
def halfway(hub: FakeHub, downloads: Downloads) -> Iterator[str]:
    """A download that goes slowly, when a part of it has come; then it is fast again."""
    made = hub.add(ID, FILES)
    slow = made.mischief["model.safetensors"] = Mischief(pause=0.05)
    id = begin(downloads, hub)
    eventually(lambda: 200_000 < found(downloads, id).done < SIZE)
    yield id
    slow.pause = 0


def test_a_pause_stops_the_work_and_resume_goes_on(hub: FakeHub, downloads: Downloads) -> None:
    with halfway(hub, downloads) as id:
        assert found(downloads, id).speed > 0 and found(downloads, id).seconds > 0
        downloads.pause(id)
        eventually(lambda: downloads._active is None)
        there = found(downloads, id)
        assert there.job.state == "paused" and 0 < there.done < SIZE
    downloads.resume(id)
    assert content(reaches(downloads, id, "done").path) == FILES
    assert hub.sent["model.safetensors"] < len(WEIGHTS) + 500_000


def test_deleting_leaves_nothing(hub: FakeHub, downloads: Downloads, tmp_path: Path) -> None:
    with halfway(hub, downloads) as id:
        downloads.delete(id)
    assert downloads.list() == []
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_one_download_follows_another(hub: FakeHub, downloads: Downloads) -> None:
    hub.add("maker/other", FILES)
    with halfway(hub, downloads) as first:
        second = begin(downloads, hub, id="maker/other")
        assert found(downloads, second).job.state == "waiting"
        downloads.pause(first)
        reaches(downloads, second, "done")
    downloads.resume(first)
    reaches(downloads, first, "done")


def test_the_same_checkpoint_is_not_fetched_twice(hub: FakeHub, downloads: Downloads) -> None:
    with halfway(hub, downloads) as id, pytest.raises(HubError, match="among the downloads"):
        begin(downloads, hub)
    reaches(downloads, id, "done")
    with pytest.raises(HubError, match="on this machine already"):
        begin(downloads, hub)


def test_a_folder_that_came_meanwhile_is_left_alone(hub: FakeHub, downloads: Downloads) -> None:
    with halfway(hub, downloads) as id:
        mine = downloads.checkpoints / "maker" / "tiny" / "mine.txt"
        mine.parent.mkdir(parents=True)
        mine.write_text("mine")
    assert failure(downloads, id).key == "download_exists"
    downloads.delete(id)
    assert content(mine.parent) == {"mine.txt": b"mine"}


def test_a_finished_checkpoint_can_be_verified_and_mended(hub: FakeHub, downloads: Downloads) -> None:
    hub.add(ID, FILES)
    id = begin(downloads, hub)
    path = reaches(downloads, id, "done").path
    downloads.verify(id)
    eventually(lambda: found(downloads, id).job.state == "done" and downloads._active is None)
    (path / "model.safetensors").write_bytes(WEIGHTS[:-1] + b"?")
    (path / "LICENSE").unlink()
    downloads.verify(id)
    error = failure(downloads, id)
    assert error.key == "download_damaged" and "LICENSE" in str(error) and "model.safetensors" in str(error)
    before = hub.asked["config.json"]
    downloads.resume(id)
    assert content(reaches(downloads, id, "done").path) == FILES
    assert hub.asked["config.json"] == before


def test_deleting_a_finished_download_leaves_the_checkpoint(hub: FakeHub, downloads: Downloads) -> None:
    hub.add(ID, FILES)
    id = begin(downloads, hub)
    path = reaches(downloads, id, "done").path
    downloads.delete(id)
    assert downloads.list() == [] and content(path) == FILES


def test_a_checkpoint_that_was_removed_is_not_offered(hub: FakeHub, downloads: Downloads) -> None:
    hub.add(ID, FILES)
    id = begin(downloads, hub)
    path = reaches(downloads, id, "done").path
    path.rename(path.with_name("elsewhere"))
    assert found(downloads, id).path is None


# The disk


def test_too_little_room_is_said_before_anything_is_fetched(
    hub: FakeHub, downloads: Downloads, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(ID, FILES)
    monkeypatch.setattr(downloads_module, "room", lambda folder: downloads_module.SPARE + SIZE + 999)
    with pytest.raises(HubError) as caught:
        downloads.add(*described(hub), copy=1000)
    assert caught.value.key == "download_no_room" and downloads.list() == []
    reaches(downloads, downloads.add(*described(hub), copy=999), "done")


def test_what_waits_has_its_room_reserved(hub: FakeHub, downloads: Downloads, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("maker/other", FILES)
    monkeypatch.setattr(downloads_module, "room", lambda folder: downloads_module.SPARE + SIZE + SIZE // 2)
    with halfway(hub, downloads) as id:
        downloads.pause(id)
        eventually(lambda: downloads._active is None)
        with pytest.raises(HubError, match="are needed"):
            begin(downloads, hub, id="maker/other")


def test_a_full_disk_is_said_and_got_over(hub: FakeHub, downloads: Downloads, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(ID, FILES)
    write = fetching.Fetch._write

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(fetching.Fetch, "_write", full)
    id = begin(downloads, hub)
    assert failure(downloads, id).key == "download_full"
    monkeypatch.setattr(fetching.Fetch, "_write", write)
    downloads.resume(id)
    reaches(downloads, id, "done")


def test_a_disk_that_takes_no_state_does_not_end_the_queue(
    hub: FakeHub, downloads: Downloads, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(ID, FILES).mischief["model.safetensors"] = Mischief(statuses=[404])
    id = begin(downloads, hub)
    reaches(downloads, id, "failed")
    put = Downloads._put

    def full(self: Downloads, job: Job) -> None:
        if job.state != "waiting":
            raise OSError(errno.ENOSPC, "No space left on device")
        put(self, job)

    monkeypatch.setattr(Downloads, "_put", full)
    downloads.resume(id)
    assert failure(downloads, id).key in ("download_full", "hub_changed")
    monkeypatch.undo()
    downloads.resume(id)
    reaches(downloads, id, "done")


# Restarts


def test_what_ran_goes_on_after_a_restart_and_what_was_paused_does_not(hub: FakeHub, tmp_path: Path) -> None:
    with running(tmp_path) as downloads:
        hub.add("maker/other", FILES)
        with halfway(hub, downloads) as id:
            other = begin(downloads, hub, id="maker/other")
            downloads.pause(other)
            downloads.stop(20)
    sent = hub.sent["model.safetensors"]
    with running(tmp_path) as downloads:
        done = reaches(downloads, id, "done", "failed")
        assert content(done.path) == FILES
        assert found(downloads, other).job.state == "paused"
    assert 0 < sent and hub.sent["model.safetensors"] <= len(WEIGHTS) + 500_000


WORKER = """
import sys, time
from pathlib import Path
from chatapp.downloads.manager import Downloads
downloads = Downloads(Path(sys.argv[1]), hurry=50)
downloads.start()
while True:
    states = {progress.job.state for progress in downloads.list()}
    if states <= {"done", "failed"}:
        break
    time.sleep(0.01)
print(*states)
"""


def worker(data: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", WORKER, str(data)], cwd=ROOT, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("kind", KINDS)
def test_killed_again_and_again_it_ends_with_equal_bytes(kind: str, hub: FakeHub, tmp_path: Path) -> None:
    made = hub.add(ID, FILES | {"model.safetensors": WEIGHTS * 2})
    made.mischief["model.safetensors"] = Mischief(pause=0.04)
    Downloads(tmp_path).add(*described(hub, kind))
    kills = 3
    for number in range(kills):
        process, goal = worker(tmp_path), (number + 1) * 1_000_000
        eventually(lambda goal=goal: hub.sent["model.safetensors"] > goal)
        os.kill(process.pid, signal.SIGKILL)
        process.wait(20)
        assert not (tmp_path / "checkpoints" / "maker").exists()
    made.mischief.clear()
    process = worker(tmp_path)
    assert process.communicate(timeout=60)[0].split() == ["done"]
    assert content(tmp_path / "checkpoints" / "maker" / "tiny") == made.files
    # What was on its way when the process was killed is asked for again: some pieces, and no more.
    assert hub.sent["model.safetensors"] < 2 * len(WEIGHTS) + kills * 500_000
    starts = [int(start[6:-1]) for path, start in hub.ranges if path == "model.safetensors" and start]
    assert len(starts) == kills and starts == sorted(starts) and starts[0] > 0


def test_a_kill_between_the_move_and_its_record_is_noticed(hub: FakeHub, tmp_path: Path) -> None:
    hub.add(ID, FILES)
    with running(tmp_path) as downloads:
        id = begin(downloads, hub)
        reaches(downloads, id, "done")
    record = tmp_path / "downloads" / f"{id}.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"state": "downloading"}))
    asked = sum(hub.asked.values())
    with running(tmp_path) as downloads:
        assert reaches(downloads, id, "done", "failed").failure is None
    assert sum(hub.asked.values()) == asked


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"format": 99}', '{"format": 1, "state": "waiting"}'])
def test_a_record_that_makes_no_sense_is_passed_over(damage: str, hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / "damaged.json").write_text(damage)
    kept = tmp_path / "checkpoints" / ".downloads" / "damaged" / "model.safetensors.part"
    left = tmp_path / "checkpoints" / ".downloads" / "left" / "model.safetensors.part"
    for path in (kept, left):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"gigabytes")
    hub.add(ID, FILES)
    with running(tmp_path) as downloads:
        reaches(downloads, begin(downloads, hub), "done")
    assert kept.exists() and not left.exists()


def test_what_is_moved_in_place_is_what_the_hub_has(hub: FakeHub, downloads: Downloads) -> None:
    """By another way of counting: the checksums of the files, not those that were compared."""
    hub.add(ID, FILES)
    path = reaches(downloads, begin(downloads, hub), "done").path
    for name, expected in FILES.items():
        assert hashlib.md5((path / name).read_bytes()).digest() == hashlib.md5(expected).digest()


def test_nothing_is_said_of_a_download_that_does_not_exist(downloads: Downloads) -> None:
    for do in (downloads.pause, downloads.resume, downloads.verify, downloads.delete):
        act: Callable[[str], None] = do
        act("nothing")
    assert downloads.list() == []
