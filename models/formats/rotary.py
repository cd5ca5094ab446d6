"""The orders in which files keep the rows that rotary positions turn."""

from __future__ import annotations

import torch


def halves_from_pairs(heads: int, rows: int) -> torch.Tensor:
    """Where each row of a q or k matrix [rows, columns] comes from, int64 [rows].

    Meta's files and GGUF turn neighbouring rows of a head, the Hugging Face form those of its two halves.
    """
    return torch.arange(rows).view(heads, -1, 2).transpose(1, 2).flatten()
