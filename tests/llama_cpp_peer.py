"""Runs llama.cpp for tests/test_llama_cpp.py, in a Python that has llama-cpp-python; imports nothing of ours.

    python llama_cpp_peer.py MODEL ANSWERS.npz < {"prompts": [[ids], ...], "new": 0}

writes an array for each prompt: the logits of each of its positions, or, where new tokens are asked for, the ids that
greedy choice adds.
"""

from __future__ import annotations

import json
import sys

import llama_cpp
import numpy as np


class Peer:
    def __init__(self, path: str, length: int) -> None:
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = length
        params.n_threads = params.n_threads_batch = 1
        params.type_k = params.type_v = llama_cpp.GGML_TYPE_F32
        params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.at = 0

    def clear(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        self.at = 0

    def read(self, ids: list[int]) -> np.ndarray:
        """Logits [time, vocabulary] of ids that continue what was read."""
        batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for row, token in enumerate(ids):
            batch.token[row], batch.pos[row], batch.logits[row] = token, self.at + row, 1
            batch.n_seq_id[row], batch.seq_id[row][0] = 1, 0
        if llama_cpp.llama_decode(self.context, batch) != 0:
            raise RuntimeError(f"llama.cpp can't read {len(ids)} tokens")
        self.at += len(ids)
        rows = [llama_cpp.llama_get_logits_ith(self.context, row) for row in range(len(ids))]
        logits = np.stack([np.ctypeslib.as_array(row, (self.vocabulary,)).copy() for row in rows])
        llama_cpp.llama_batch_free(batch)
        return logits

    def continue_greedily(self, ids: list[int], new: int) -> list[int]:
        logits = self.read(ids)
        made = [int(logits[-1].argmax())]
        while len(made) < new:
            made.append(int(self.read(made[-1:])[-1].argmax()))
        return made


def main() -> None:
    asked = json.load(sys.stdin)
    prompts, new = asked["prompts"], asked["new"]
    peer = Peer(sys.argv[1], max(map(len, prompts)) + new)
    answers = []
    for ids in prompts:
        peer.clear()
        answers.append(peer.continue_greedily(ids, new) if new else peer.read(ids))
    np.savez(sys.argv[2], *answers)


if __name__ == "__main__":
    main()
