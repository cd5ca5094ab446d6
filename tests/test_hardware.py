"""What a machine has: cards, memory within its limits, instruction sets, from files and objects that a test makes."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from chatapp import hardware
from chatapp.hardware import GIB, GPU, Machine


def write(root: Path, files: dict[str, object]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n", encoding="utf-8")
    return root


def test_this_machine() -> None:
    machine = hardware.detect()
    assert 0 < machine.ram_free <= machine.ram_total
    assert machine.cores >= 1
    assert all(0 <= gpu.free <= gpu.total for gpu in machine.gpus)


def test_importing_it_does_not_import_torch() -> None:
    code = "import sys, chatapp.hardware, chatapp.settings; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent).returncode == 0


def test_without_control_groups_the_system_decides(tmp_path: Path) -> None:
    assert hardware.limited(5, 9, tmp_path) == (5, 9)


V2, V1 = "sys/fs/cgroup", "sys/fs/cgroup/memory"
GROUPS = {
    "v2": {
        "proc/self/cgroup": "0::/app",
        f"{V2}/app/memory.max": 4 * GIB,
        f"{V2}/app/memory.current": 3 * GIB,
        f"{V2}/app/memory.stat": f"anon 7\ninactive_file {GIB}",
    },
    "v2, the limit around it": {
        "proc/self/cgroup": "0::/outer/app",
        f"{V2}/outer/app/memory.max": "max",
        f"{V2}/outer/app/memory.current": GIB,
        f"{V2}/outer/memory.max": 4 * GIB,
        f"{V2}/outer/memory.current": 2 * GIB,
    },
    "v2, in a container whose own path is not mounted": {
        "proc/self/cgroup": "0::/docker/123",
        f"{V2}/memory.max": 4 * GIB,
        f"{V2}/memory.current": 2 * GIB,
    },
    "v1": {
        "proc/self/cgroup": "5:cpu,cpuacct:/\n4:memory:/app\n0::/",
        f"{V1}/app/memory.limit_in_bytes": 4 * GIB,
        f"{V1}/app/memory.usage_in_bytes": 3 * GIB,
        f"{V1}/app/memory.stat": f"inactive_file 5\ntotal_inactive_file {GIB}",
        f"{V1}/memory.limit_in_bytes": 2**63 - 4096,
        f"{V1}/memory.usage_in_bytes": 9 * GIB,
    },
}


@pytest.mark.parametrize("files", GROUPS.values(), ids=GROUPS)
def test_control_groups_limit_what_is_free(files: dict[str, object], tmp_path: Path) -> None:
    root = write(tmp_path, files)
    assert hardware.limited(12 * GIB, 16 * GIB, root) == (2 * GIB, 4 * GIB)
    assert hardware.limited(GIB, 3 * GIB, root) == (GIB, 3 * GIB)  # the system itself has less


def test_a_group_without_a_limit_changes_nothing(tmp_path: Path) -> None:
    root = write(tmp_path, {"proc/self/cgroup": "0::/", f"{V2}/memory.max": "max", f"{V2}/memory.current": 5})
    assert hardware.limited(5, 9, root) == (5, 9)


def test_a_group_over_its_limit_has_nothing_free(tmp_path: Path) -> None:
    root = write(tmp_path, {"proc/self/cgroup": "0::/", f"{V2}/memory.max": 4, f"{V2}/memory.current": 5})
    assert hardware.limited(5, 9, root) == (0, 4)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("flags\t\t: fpu avx avx2 avx512f avx512_vnni", ("avx", "avx2", "avx512f", "avx512_vnni")),
        ("Features\t: fp asimd asimddp", ("asimd", "asimddp")),
        ("bogomips : 1", ()),
    ],
)
def test_instruction_sets_of_linux(line: str, found: tuple[str, ...], tmp_path: Path) -> None:
    assert hardware.instructions(write(tmp_path, {"proc/cpuinfo": f"processor : 0\n{line}"})) == found


def test_instruction_sets_elsewhere(tmp_path: Path) -> None:
    assert hardware.instructions(tmp_path, "arm64") == ("neon",)
    assert set(hardware.instructions(tmp_path, "AMD64")) <= {"avx2", "avx512f"}


def cuda(*cards: tuple[str, int, int] | None) -> SimpleNamespace:
    """A torch with these cards; None is one that has gone."""

    def mem_get_info(index: int) -> tuple[int, int]:
        if cards[index] is None:
            raise RuntimeError("CUDA error: device not ready\nmore lines")
        return cards[index][1:]

    return SimpleNamespace(
        cuda=SimpleNamespace(
            is_available=lambda: bool(cards),
            device_count=lambda: len(cards),
            mem_get_info=mem_get_info,
            get_device_name=lambda index: cards[index][0],
        )
    )


def test_cards() -> None:
    assert hardware.gpus(cuda()) == ((), ())
    found, broken = hardware.gpus(cuda(("A", 1, 2), ("B", 3, 4)))
    assert found == (GPU(0, "A", 1, 2), GPU(1, "B", 3, 4)) and not broken
    assert found[1].device == "cuda:1"


def test_a_card_that_has_gone_is_left_out_and_said() -> None:
    found, broken = hardware.gpus(cuda(None, ("B", 3, 4)))
    assert [gpu.name for gpu in found] == ["B"]
    assert broken == ("Graphics card 0 does not answer (CUDA error: device not ready); it is not used.",)


def test_an_nvidia_driver_is_noticed(tmp_path: Path) -> None:
    assert not hardware.has_nvidia_driver(tmp_path, lambda name: None)
    assert hardware.has_nvidia_driver(tmp_path, lambda name: f"/usr/bin/{name}")
    (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
    assert hardware.has_nvidia_driver(tmp_path, lambda name: None)


def test_a_driver_beside_a_torch_without_cuda_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.version.cuda", None)
    (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
    assert hardware.CPU_ONLY_TORCH in hardware.detect(tmp_path).notes
    monkeypatch.setattr("torch.version.cuda", "13.0")
    assert hardware.CPU_ONLY_TORCH not in hardware.detect(tmp_path).notes


def test_the_advice_names_the_version_that_is_required() -> None:
    requirements = (Path(__file__).parent.parent / "requirements.txt").read_text(encoding="utf-8")
    pinned = next(line for line in requirements.splitlines() if line.startswith("torch=="))
    assert pinned in hardware.CPU_ONLY_TORCH


def test_assumed_machines() -> None:
    card = Machine.assume("cuda:6GB")
    assert ([gpu.free for gpu in card.gpus], card.ram_free) == ([6 * GIB], 0)
    assert Machine.assume("CPU:1.5gb") == Machine(ram_free=3 * GIB // 2, ram_total=3 * GIB // 2)
    both = Machine.assume("cuda:6GB, cuda:8GB, cpu:16GB")
    assert ([gpu.device for gpu in both.gpus], both.ram_free) == (["cuda:0", "cuda:1"], 16 * GIB)


@pytest.mark.parametrize("text", ["", "6GB", "cuda", "cuda:6", "tpu:6GB", "cuda:-1GB", "cpu:16GB,", "cuda:6GiB"])
def test_what_is_no_machine_is_one_sentence(text: str) -> None:
    with pytest.raises(ValueError, match="is no machine; say for example cuda:6GB"):
        Machine.assume(text)
