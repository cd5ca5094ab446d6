"""Beside llama.cpp, on the same files: the same choice at each position, the same greedy text.

Needs a Python with llama-cpp-python, named by QUATRAIN_PEER_PYTHON (CONTRIBUTING.md); it runs in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

import models
from benchmarks.gguf_files import as_floats
from tests import gguf_sources

PYTHON = os.environ.get("QUATRAIN_PEER_PYTHON")
pytestmark = pytest.mark.skipif(PYTHON is None, reason="QUATRAIN_PEER_PYTHON names no Python with llama-cpp-python")

NEW_TOKENS = 64
PROMPTS = (
    "What is the capital of France?",
    "Write a short story about a clock in a town by the sea.",
    "Explain photosynthesis to a child.",
    "Why is the sky blue?",
    "List five animals that live in the forest, and say what each of them eats.",
    "How do I boil an egg?",
)
#: Two candidates whose logits are this near are as good as equal: sums in another order differ by more.
TIE = 1e-2


def peer(path: Path, prompts: Sequence[Sequence[int]], new: int = 0) -> list[np.ndarray]:
    """For each prompt its logits [time, vocabulary], or the ids that follow it."""
    asked = json.dumps({"prompts": [list(ids) for ids in prompts], "new": new})
    answers = path.with_suffix(".npz")
    command = [PYTHON, str(Path(__file__).with_name("llama_cpp_peer.py")), str(path), str(answers)]
    done = subprocess.run(command, input=asked, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    with np.load(answers) as found:
        return list(found.values())


@pytest.mark.parametrize("name", gguf_sources.SOURCES)
def test_same_choice_at_each_position(name: str, tmp_path: Path, record_property) -> None:
    source = gguf_sources.SOURCES[name]()
    if name == "baichuan2-7b":  # llama.cpp leaves the head as it is: both get unit rows
        head = source.tensors["output.weight"]
        source.tensors["output.weight"] = head / head.norm(dim=1, keepdim=True)
    path = gguf_sources.write(tmp_path / "tiny.gguf", source)
    ids = torch.randint(300, (1, 96), generator=torch.Generator().manual_seed(2))
    ours = models.load(path, tier="fp32").model(ids)[0]
    theirs = torch.from_numpy(peer(path, ids.tolist())[0])
    record_property("difference", (ours - theirs).abs().max().item())
    assert torch.equal(ours.argmax(-1), theirs.argmax(-1))
    torch.testing.assert_close(ours, theirs, atol=5e-3, rtol=0)


def test_same_text(default_model: Path, tmp_path: Path, record_property) -> None:
    """The weights of the real model as floats: from the Q4_1 file llama.cpp would round activations to eight bits."""
    path = as_floats(default_model, tmp_path / "floats.gguf")
    loaded = models.load(path, tier="fp32")
    prompts = [loaded.chat_prompt([{"role": "user", "content": text}]).ids for text in PROMPTS]
    answers = peer(path, prompts, NEW_TOKENS)
    gaps = [gap(loaded, ids, answer) for ids, answer in zip(prompts, answers, strict=True)]
    record_property("gaps", str(gaps))
    assert max(gaps) < TIE and gaps.count(0.0) >= len(PROMPTS) - 1, gaps


def gap(loaded: models.LoadedModel, ids: Sequence[int], theirs: np.ndarray) -> float:
    """How much less we like the first of their tokens that is not ours; 0 where the texts are the same."""
    logits = loaded.model(torch.tensor([[*ids, *theirs]]))[0, len(ids) - 1 : -1]
    chosen = logits.gather(1, torch.from_numpy(theirs)[:, None]).flatten()
    behind = logits.amax(-1) - chosen
    different = behind.nonzero()
    return behind[different[0]].item() if len(different) else 0.0
