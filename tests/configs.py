"""What must come of every known checkpoint's config.json; the configs themselves are the application's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from chatapp.planner import known_checkpoints

CONFIGS = known_checkpoints()


@dataclass(frozen=True)
class Checkpoint:
    """`parameters` counts a tied head once; `cache` is the bytes of one position in fp16."""

    config: dict[str, Any]
    architecture: str
    parameters: int
    cache: int
    context: int


def chatglm_6b(**changes: Any) -> dict[str, Any]:
    return {**CONFIGS["THUDM/chatglm-6b"], **changes}


def chatglm2_6b(**changes: Any) -> dict[str, Any]:
    return {**CONFIGS["THUDM/chatglm2-6b"], **changes}


def glm_4(**changes: Any) -> dict[str, Any]:
    return {**CONFIGS["THUDM/glm-4-9b"], "seq_length": 131072, **changes}


def glm_4_hf() -> dict[str, Any]:
    return dict(CONFIGS["THUDM/glm-4-9b-chat-hf"])


#: Architecture, parameters, bytes of one position in the cache, window: as published, or counted from the shapes.
EXPECTED = {
    "THUDM/chatglm-6b": ("chatglm", 6_173_286_400, 458_752, 2_048),
    "THUDM/chatglm-6b v0.1.0": ("chatglm", 6_255_206_400, 458_752, 2_048),
    "THUDM/chatglm-6b-int4": ("chatglm", 6_173_286_400, 458_752, 2_048),
    "THUDM/chatglm2-6b": ("chatglm2", 6_243_584_000, 28_672, 32_768),
    "THUDM/chatglm2-6b-int4": ("chatglm2", 6_243_584_000, 28_672, 32_768),
    "THUDM/chatglm2-6b-32k": ("chatglm2", 6_243_584_000, 28_672, 32_768),
    "THUDM/chatglm3-6b": ("chatglm2", 6_243_584_000, 28_672, 8_192),
    "THUDM/chatglm3-6b-base": ("chatglm2", 6_243_584_000, 28_672, 32_768),
    "THUDM/chatglm3-6b-32k": ("chatglm2", 6_243_584_000, 28_672, 32_768),
    "THUDM/chatglm3-6b-128k": ("chatglm2", 6_243_584_000, 28_672, 131_072),
    "THUDM/glm-4-9b": ("chatglm2", 9_399_951_360, 40_960, 8_192),
    "THUDM/glm-4-9b-chat": ("chatglm2", 9_399_951_360, 40_960, 131_072),
    "THUDM/glm-4-9b-chat-1m": ("chatglm2", 9_483_857_920, 81_920, 1_048_576),
    "THUDM/glm-4-9b-chat-hf": ("chatglm2", 9_399_951_360, 40_960, 131_072),
    "huggyllama/llama-7b": ("llama", 6_738_415_616, 524_288, 2_048),
    "decapoda-research/llama-7b-hf": ("llama", 6_738_415_616, 524_288, 2_048),
    "huggyllama/llama-13b": ("llama", 13_015_864_320, 819_200, 2_048),
    "huggyllama/llama-30b": ("llama", 32_528_943_616, 1_597_440, 2_048),
    "huggyllama/llama-65b": ("llama", 65_285_660_672, 2_621_440, 2_048),
    "meta-llama/Llama-2-7b-chat-hf": ("llama", 6_738_415_616, 524_288, 4_096),
    "meta-llama/Llama-2-7b-hf": ("llama", 6_738_415_616, 524_288, 4_096),
    "meta-llama/Llama-2-13b-chat-hf": ("llama", 13_015_864_320, 819_200, 4_096),
    "meta-llama/Llama-2-13b-hf": ("llama", 13_015_864_320, 819_200, 4_096),
    "meta-llama/Llama-2-70b-chat-hf": ("llama", 68_976_648_192, 327_680, 4_096),
    "meta-llama/Llama-2-70b-hf": ("llama", 68_976_648_192, 327_680, 4_096),
    "meta-llama/Meta-Llama-3-8B-Instruct": ("llama", 8_030_261_248, 131_072, 8_192),
    "meta-llama/Meta-Llama-3-8B": ("llama", 8_030_261_248, 131_072, 8_192),
    "meta-llama/Llama-3.1-8B-Instruct": ("llama", 8_030_261_248, 131_072, 131_072),
    "meta-llama/Llama-3.1-8B": ("llama", 8_030_261_248, 131_072, 131_072),
    "meta-llama/Llama-3.2-1B-Instruct": ("llama", 1_235_814_400, 32_768, 131_072),
    "meta-llama/Llama-3.2-3B-Instruct": ("llama", 3_212_749_824, 114_688, 131_072),
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": ("llama", 1_100_048_384, 22_528, 2_048),
    "HuggingFaceTB/SmolLM2-135M-Instruct": ("llama", 134_515_008, 23_040, 8_192),
    "HuggingFaceTB/SmolLM2-360M-Instruct": ("llama", 361_821_120, 40_960, 8_192),
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": ("llama", 1_711_376_384, 196_608, 8_192),
    "tatsu-lab/alpaca-7b": ("llama", 6_738_423_808, 524_288, 2_048),
    "lmsys/vicuna-7b-v1.3": ("llama", 6_738_415_616, 524_288, 2_048),
    "lmsys/vicuna-13b-v1.3": ("llama", 13_015_864_320, 819_200, 2_048),
    "lmsys/vicuna-7b-v1.5": ("llama", 6_738_415_616, 524_288, 4_096),
    "lmsys/vicuna-13b-v1.5": ("llama", 13_015_864_320, 819_200, 4_096),
    "lmsys/vicuna-13b-v1.5-16k": ("llama", 13_015_864_320, 819_200, 16_384),
    "hfl/chinese-llama-7b merged": ("llama", 6_885_486_592, 524_288, 2_048),
    "hfl/chinese-llama-13b merged": ("llama", 13_199_703_040, 819_200, 2_048),
    "hfl/chinese-alpaca-7b merged": ("llama", 6_885_494_784, 524_288, 2_048),
    "hfl/chinese-alpaca-13b merged": ("llama", 13_199_713_280, 819_200, 2_048),
    "hfl/chinese-alpaca-2-7b": ("llama", 6_929_256_448, 524_288, 4_096),
    "hfl/chinese-alpaca-2-13b": ("llama", 13_254_415_360, 819_200, 4_096),
    "FreedomIntelligence/chimera-inst-chat-7b merged": ("llama", 6_738_415_616, 524_288, 2_048),
    "bigscience/bloom-560m": ("bloom", 559_214_592, 98_304, 2_048),
    "bigscience/bloom-1b1": ("bloom", 1_065_314_304, 147_456, 2_048),
    "bigscience/bloom-1b7": ("bloom", 1_722_408_960, 196_608, 2_048),
    "bigscience/bloom-3b": ("bloom", 3_002_557_440, 307_200, 2_048),
    "bigscience/bloomz-560m": ("bloom", 559_214_592, 98_304, 2_048),
    "bigscience/bloomz-1b1": ("bloom", 1_065_314_304, 147_456, 2_048),
    "bigscience/bloomz-1b7": ("bloom", 1_722_408_960, 196_608, 2_048),
    "bigscience/bloomz-3b": ("bloom", 3_002_557_440, 307_200, 2_048),
    "bigscience/bloom-7b1": ("bloom", 7_069_016_064, 491_520, 2_048),
    "bigscience/bloomz-7b1": ("bloom", 7_069_016_064, 491_520, 2_048),
    "bigscience/bloomz-7b1-mt": ("bloom", 7_069_016_064, 491_520, 2_048),
    "BelleGroup/BELLE-7B-2M": ("bloom", 7_069_016_064, 491_520, 2_048),
    "FreedomIntelligence/phoenix-inst-chat-7b": ("bloom", 7_069_016_064, 491_520, 2_048),
    "bigscience/bloom": ("bloom", 176_247_271_424, 4_014_080, 2_048),
    "bigscience/bloomz": ("bloom", 176_247_271_424, 4_014_080, 2_048),
    "bigscience/bloomz-mt": ("bloom", 176_247_271_424, 4_014_080, 2_048),
    "xyz-nlp/XuanYuan2.0": ("bloom", 176_247_271_424, 4_014_080, 2_048),
    "baichuan-inc/Baichuan-7B": ("baichuan", 7_000_559_616, 524_288, 4_096),
    "baichuan-inc/Baichuan-13B-Chat": ("baichuan", 13_264_901_120, 819_200, 4_096),
    "baichuan-inc/Baichuan-13B-Base": ("baichuan", 13_264_901_120, 819_200, 4_096),
    "baichuan-inc/Baichuan2-7B-Chat": ("baichuan", 7_505_973_248, 524_288, 4_096),
    "baichuan-inc/Baichuan2-7B-Base": ("baichuan", 7_505_973_248, 524_288, 4_096),
    "baichuan-inc/Baichuan2-13B-Chat": ("baichuan", 13_896_668_160, 819_200, 4_096),
    "baichuan-inc/Baichuan2-13B-Base": ("baichuan", 13_896_668_160, 819_200, 4_096),
}
CHECKPOINTS = {name: Checkpoint(CONFIGS[name], *expected) for name, expected in EXPECTED.items()}
