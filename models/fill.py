"""Blank filling, the objective that ChatGLM-6B was trained with beside chat (Du et al., 2022)."""

from __future__ import annotations

from collections.abc import Sequence

from .loader import LoadedModel
from .prompts import Prompt


def fill_prompt(loaded: LoadedModel, pieces: Sequence[str]) -> Prompt:
    """The prompt that fills the first of the blanks between text pieces; spans are the pieces' ids.

    What is generated is the blank's text. For the next one, join it with the pieces beside it and ask again. The pieces
    are only text: a typed "[MASK]" is no blank. Raises ValueError for fewer than two pieces, or a model that was not
    trained to fill blanks.
    """
    if not loaded.model.fills_blanks:
        raise ValueError(f"{loaded.architecture} can't fill blanks; ChatGLM-6B can")
    if len(pieces) < 2:
        raise ValueError("there is no blank to fill: give the text before and the text behind it")
    args = loaded.model.args
    ids: list[int] = []
    spans = []
    for piece in pieces:
        if spans:
            ids.append(args.mask_token_id)
        start = len(ids)
        ids += loaded.tokenizer.encode(piece) if piece else []
        spans.append((start, len(ids)))
    return Prompt([*ids, args.bos_token_id], spans, frozenset({args.eos_token_id}), ())
