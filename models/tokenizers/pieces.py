"""SentencePiece models (tokenizer.model, ice_text.model), run by the `sentencepiece` package."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property

import sentencepiece

from . import model_proto
from .base import RESERVED_PIECE, Place, TextTokenizer


class PieceTokenizer(TextTokenizer):
    """LLaMA's, Baichuan's and ChatGLM2's models; the proto says how text is normalised and whether "▁" is put first.

    `added` are control tokens that are not in the model, `specials` those that take the ids behind its last piece;
    `offset` is where its pieces begin. `legacy` is the Hugging Face setting of that name: a text behind a control token
    gets the "▁" that only the first text of a sequence should get.
    """

    kind = "SentencePiece"

    def __init__(
        self,
        proto: bytes,
        *,
        adds_bos: bool = True,
        added: Mapping[str, int] | None = None,
        specials: Sequence[str] = (),
        prefix: Sequence[str] = (),
        eos: str | None = None,
        legacy: bool = True,
        offset: int = 0,
    ) -> None:
        if not proto:
            raise RuntimeError("an empty file")  # sentencepiece would take it for a model without pieces
        self._proto = proto
        self._inner = sentencepiece.SentencePieceProcessor(model_proto=proto)
        self._offset = offset
        self._legacy = legacy
        behind = {name: self._inner.get_piece_size() + at for at, name in enumerate(specials)}
        controls = {**self._own_controls(), **behind, **(added or {})}
        bos = [self._inner.bos_id() + offset] if adds_bos and self._inner.bos_id() >= 0 else []
        own_eos = self._inner.eos_id() + offset if self._inner.eos_id() >= 0 else None
        super().__init__(
            controls,
            prefix_ids=[*bos, *(controls[name] for name in prefix)],
            eos_id=own_eos if eos is None else controls[eos],
        )

    def _own_controls(self) -> dict[str, int]:
        pieces = {number: self._inner.id_to_piece(number) for number in range(self._inner.get_piece_size())}
        return {
            piece: number + self._offset
            for number, piece in pieces.items()
            if self._inner.is_control(number) or RESERVED_PIECE.fullmatch(piece)
        }

    def _encode(self, text: str, after: Place) -> list[int]:
        marks_start = after == "start" or (after == "control" and self._legacy)
        inner = self._inner if marks_start else self._continuing
        return [number + self._offset for number in inner.encode(text)]

    @cached_property
    def _continuing(self) -> sentencepiece.SentencePieceProcessor:
        return sentencepiece.SentencePieceProcessor(model_proto=model_proto.without_dummy_prefix(self._proto))

    def decode(self, ids: Sequence[int]) -> str:
        size = self._inner.get_piece_size()
        shown = [number - self._offset for number in ids if number not in self._hidden]
        return self._inner.decode([number for number in shown if 0 <= number < size])

    def __len__(self) -> int:
        return max([self._inner.get_piece_size() + self._offset, *(number + 1 for number in self._hidden)])


class IceTokenizer(PieceTokenizer):
    """ChatGLM-6B's ice_text.model: it folds whitespace away, so newlines, tabs and runs of spaces have own pieces.

    Prompts end with [gMASK] and <sop>. Typed literally, "<n>" and "<|blank_4|>" are these pieces too, as in the
    official tokenizer; they are whitespace, not control.
    """

    LONGEST_BLANK = 80

    def __init__(self, proto: bytes, *, offset: int = 0) -> None:
        super().__init__(proto, adds_bos=False, eos="<eop>", offset=offset)
        self.suffix_ids = [self.controls["[gMASK]"], self.controls["<sop>"]]

    def _encode(self, text: str, after: Place) -> list[int]:
        text = text.replace("\n", "<n>").replace("\t", "<|tab|>")
        runs = f" {{2,{self.LONGEST_BLANK}}}"
        return super()._encode(re.sub(runs, lambda run: f"<|blank_{len(run[0])}|>", text), after)

    def decode(self, ids: Sequence[int]) -> str:
        text = super().decode(ids).replace("<n>", "\n").replace("<|tab|>", "\t")
        return re.sub(r"<\|blank_(\d\d?)\|>", lambda blank: " " * int(blank[1]), text)
