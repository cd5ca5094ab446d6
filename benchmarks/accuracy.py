"""What a tier costs: our INT8 and INT4 beside GGUF's Q8_0, Q4_0 and Q4_1 of the same float weights.

Two judges. The stories of the trained LLaMA of 260,000 parameters: perplexity, and how far the distribution of the next
token is from the float model's. The linear layers of all-MiniLM-L6-v2 with the activations of real sentences: the
relative error of their outputs. Ours is measured with the kernels, which round activations to bytes as well, and as the
PyTorch specification computes, which does not; the peers' weights are multiplied in float32, and embedding and head are
Q8_0 beside Q4_0 and Q4_1, as llama.cpp keeps them.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest import mock

import gguf
import torch
import torch.nn.functional as F
from gguf import GGMLQuantizationType as Kind

import models
from models import LoadedModel, Sampling, quantize
from models.generate import generate_tokens
from tests import stories260k

from . import minilm
from .results import Result
from .settings import Settings

SEEDS, TOKENS = 12, 400  #: stories that are sampled from the float model, and their length
INT8_LOSS = 1.005  #: float perplexities


@dataclass(frozen=True)
class Scheme:
    """A way to keep matrices: bits a weight (for INT4, outside embedding and head), and its tier or GGUF's kind."""

    name: str
    bits: float
    tier: str = ""
    kernels: bool = False
    kind: Kind | None = None

    def kernel_choice(self) -> contextlib.AbstractContextManager:
        """Inside, products are computed as this scheme says."""
        return contextlib.nullcontext() if self.kernels else mock.patch.object(quantize, "kernel", lambda: None)


INT8, INT4 = Scheme("INT8", 8.5, "int8", True), Scheme("INT4", 5, "int4", True)
INT8_PLAIN, INT4_PLAIN = Scheme("INT8 without kernels", 8.5, "int8"), Scheme("INT4 without kernels", 5, "int4")
Q8_0, Q4_1, Q4_0 = (Scheme(k.name, bits, kind=k) for k, bits in ((Kind.Q8_0, 8.5), (Kind.Q4_1, 5), (Kind.Q4_0, 4.5)))
PAIRS = ((INT8, Q8_0), (INT8_PLAIN, Q8_0), (INT4, Q4_1), (INT4_PLAIN, Q4_1), (INT4, Q4_0), (INT4_PLAIN, Q4_0))
SCHEMES = (INT8, INT8_PLAIN, INT4, INT4_PLAIN, Q8_0, Q4_1, Q4_0)


def run(settings: Settings) -> Iterator[Result]:
    yield from stories(stories260k.save_folder(settings.scratch / "stories260K"))
    yield from products(minilm.layers(minilm.fetch(settings.scratch / "all-MiniLM-L6-v2")))


# -- Stories


@dataclass(frozen=True)
class Loss:
    """Of a model on texts: perplexity, and the mean divergence of the next token's distribution from the float one."""

    perplexity: float
    divergence: float


def stories(folder: Path, seeds: int = SEEDS, tokens: int = TOKENS) -> Iterator[Result]:
    whole = models.load(folder, "fp32")
    texts = [write_story(whole, seed, tokens) for seed in range(seeds)]
    expected = [log_probabilities(whole, ids) for ids in texts]
    plain = measure(whole, texts, expected)
    losses = {scheme.name: _loss(scheme, folder, texts, expected) for scheme in SCHEMES}
    for ours in (INT8, INT8_PLAIN):
        yield Result.less_is_better(
            f"stories260K perplexity: {ours.name}",
            losses[ours.name].perplexity,
            INT8_LOSS * plain.perplexity,
            f"{INT8_LOSS} x fp32",
            "perplexity",
        )
    for ours, peer in PAIRS:
        for what in ("perplexity", "divergence"):
            figures = (getattr(losses[scheme.name], what) for scheme in (ours, peer))
            yield Result.less_is_better(f"stories260K {what}: {ours.name}", *figures, peer.name, what)


def write_story(loaded: LoadedModel, seed: int, tokens: int, start: Sequence[int] = ()) -> list[int]:
    """The ids of a story that begins with `start`, or as every text does; seed 0 is told without drawing."""
    start = list(start or loaded.tokenizer.prefix_ids)
    sampling = Sampling(temperature=float(seed > 0), top_p=1, top_k=0, max_tokens=tokens, seed=seed)
    steps = generate_tokens(loaded.model, start, sampling, loaded.new_cache(len(start) + tokens), ())
    return start + [step for step in steps if type(step) is int]


def _loss(scheme: Scheme, folder: Path, texts: list[list[int]], expected: list[torch.Tensor]) -> Loss:
    loaded = models.load(folder, scheme.tier or "fp32")
    if scheme.kind is not None:
        replace_weights(loaded, scheme.kind)
    with scheme.kernel_choice():
        return measure(loaded, texts, expected)


def replace_weights(loaded: LoadedModel, kind: Kind) -> None:
    """Takes each matrix through one of GGUF's forms and back."""
    tokens = loaded.model.args.vocab_size
    for parameter in loaded.model.parameters():
        if parameter.ndim > 1:
            parameter.data = round_trip(parameter.data, Kind.Q8_0 if parameter.shape[0] == tokens else kind)


def round_trip(weight: torch.Tensor, kind: Kind) -> torch.Tensor:
    """What a matrix becomes in one of GGUF's forms; columns are filled up with zeros to whole groups, as ours are."""
    padded = F.pad(weight.float(), (0, -weight.shape[1] % quantize.GROUP)).numpy()
    restored = gguf.quants.dequantize(gguf.quants.quantize(padded, kind), kind)
    return torch.from_numpy(restored)[:, : weight.shape[1]].contiguous()


@torch.inference_mode()
def log_probabilities(loaded: LoadedModel, ids: list[int]) -> torch.Tensor:
    """float32 [time - 1, vocabulary]: of each token after the first, given those before it."""
    return loaded.model(torch.tensor([ids[:-1]]))[0].log_softmax(-1)


def measure(loaded: LoadedModel, texts: list[list[int]], expected: list[torch.Tensor]) -> Loss:
    """`expected` are the float model's log probabilities of the same texts."""
    found = torch.cat([log_probabilities(loaded, ids) for ids in texts])
    target = torch.cat([torch.tensor(ids[1:]) for ids in texts])
    divergence = F.kl_div(found, torch.cat(expected), reduction="batchmean", log_target=True)
    return Loss(math.exp(F.nll_loss(found, target)), divergence.item())


# -- Linear layers


def products(layers: list[minilm.Layer]) -> Iterator[Result]:
    errors = {scheme.name: output_error(layers, scheme) for scheme in SCHEMES}
    for ours, peer in PAIRS:
        name = f"all-MiniLM-L6-v2 output error: {ours.name}"
        yield Result.less_is_better(name, errors[ours.name], errors[peer.name], peer.name, "relative")


def output_error(layers: list[minilm.Layer], scheme: Scheme) -> float:
    """Root of the mean over layers of |output - float output|^2 / |float output|^2."""
    with scheme.kernel_choice():
        return math.sqrt(sum(_layer_error(layer, scheme) for layer in layers) / len(layers))


def _layer_error(layer: minilm.Layer, scheme: Scheme) -> float:
    expected = F.linear(layer.inputs, layer.weight)
    found = _product(layer.weight, scheme)(layer.inputs)
    return ((found - expected).pow(2).sum() / expected.pow(2).sum()).item()


def _product(weight: torch.Tensor, scheme: Scheme) -> Callable[[torch.Tensor], torch.Tensor]:
    if scheme.kind is not None:
        return partial(F.linear, weight=round_trip(weight, scheme.kind))
    return partial(quantize.multiply, weight=quantize.quantize(weight, models.loader.TIERS[scheme.tier]))
