"""A trained LLaMA of 260,000 parameters, converted from llama2.c's form, tells the story it is known to tell."""

from __future__ import annotations

from pathlib import Path

import pytest

import models
from tests import stories260k
from tests.stories260k import STORIES


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stories260k.save_folder(tmp_path_factory.mktemp("stories260K"))


def test_known_story(folder: Path) -> None:
    loaded = models.load(folder, tier="fp32")
    sampling = models.Sampling(temperature=0, max_tokens=200)
    events = models.generate(loaded, loaded.tokenizer.prefix_ids, sampling, stop_ids=())
    story = "".join(event.text for event in events if isinstance(event, models.Token))
    # llama2.c drops the blank before the first word; its tests compare after strip() too.
    assert story.strip() == (STORIES / "expected_greedy_200.txt").read_text(encoding="utf-8").strip()


def test_its_tokenizer(folder: Path) -> None:
    tokenizer = models.load_tokenizer(folder)
    assert tokenizer.prefix_ids == [1]
    assert tokenizer.decode(tokenizer.encode("Lily was sad. 你")) == "Lily was sad. 你"
    # llama2.c puts a blank in front, and an unknown character becomes its bytes, which start at id 3.
    blank = [text for text, _ in stories260k.read_pieces(STORIES / "tok512.bin", 512)].index(" ")
    assert tokenizer.encode("你") == [blank, *(byte + 3 for byte in "你".encode())]
