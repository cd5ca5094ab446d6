"""The config.json of every checkpoint that Quatrain names, as far as models/ reads it, and what must come of it.

Written from published tables, not copied: fields that no code of ours looks at are left out, but those that could
mislead `registry.resolve` are kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Checkpoint:
    """`parameters` counts a tied head once; `cache` is the bytes of one position in fp16."""

    config: dict[str, Any]
    architecture: str
    parameters: int
    cache: int
    context: int


def chatglm_6b(**changes: Any) -> dict[str, Any]:
    return {
        "architectures": ["ChatGLMModel"],
        "auto_map": {"AutoConfig": "configuration_chatglm.ChatGLMConfig"},
        "model_type": "chatglm",
        "hidden_size": 4096,
        "inner_hidden_size": 16384,
        "layernorm_epsilon": 1e-5,
        "max_sequence_length": 2048,
        "num_attention_heads": 32,
        "num_layers": 28,
        "position_encoding_2d": True,
        "vocab_size": 130528,
        "bos_token_id": 130004,
        "eos_token_id": 130005,
        "mask_token_id": 130000,
        "gmask_token_id": 130001,
        "pad_token_id": 3,
        "torch_dtype": "float16",
        "use_cache": True,
        **changes,
    }


def chatglm2_6b(**changes: Any) -> dict[str, Any]:
    return {
        "architectures": ["ChatGLMModel"],
        "model_type": "chatglm",
        "num_layers": 28,
        "padded_vocab_size": 65024,
        "hidden_size": 4096,
        "ffn_hidden_size": 13696,
        "kv_channels": 128,
        "num_attention_heads": 32,
        "seq_length": 32768,
        "layernorm_epsilon": 1e-5,
        "rmsnorm": True,
        "apply_residual_connection_post_layernorm": False,
        "post_layer_norm": True,
        "add_bias_linear": False,
        "add_qkv_bias": True,
        "multi_query_attention": True,
        "multi_query_group_num": 2,
        "original_rope": True,
        "apply_query_key_layer_scaling": True,
        "attention_softmax_in_fp32": True,
        "fp32_residual_connection": False,
        "bias_dropout_fusion": True,
        "tie_word_embeddings": False,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "torch_dtype": "float16",
        **changes,
    }


def chatglm3_6b(**changes: Any) -> dict[str, Any]:
    return chatglm2_6b(seq_length=8192, _name_or_path="THUDM/chatglm3-6b", **changes)


def glm_4(**changes: Any) -> dict[str, Any]:
    eos = [151329, 151336, 151338]
    glm = {"num_layers": 40, "padded_vocab_size": 151552, "layernorm_epsilon": 1.5625e-07, "eos_token_id": eos}
    return chatglm2_6b(**{**glm, "seq_length": 131072, "torch_dtype": "bfloat16", "pad_token_id": 151329, **changes})


def glm_4_hf() -> dict[str, Any]:
    return {
        "architectures": ["GlmForCausalLM"],
        "model_type": "glm",
        "hidden_size": 4096,
        "intermediate_size": 13696,
        "num_hidden_layers": 40,
        "num_attention_heads": 32,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "vocab_size": 151552,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1.5625e-07,
        "rope_theta": 5000000.0,
        "partial_rotary_factor": 0.5,
        "attention_bias": True,
        "tie_word_embeddings": False,
        "eos_token_id": [151329, 151336, 151338],
        "hidden_act": "silu",
    }


def llama(hidden: int, inner: int, layers: int, heads: int, **changes: Any) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "vocab_size": 32000,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "torch_dtype": "float16",
        **changes,
    }


def llama_2(hidden: int, inner: int, layers: int, heads: int, **changes: Any) -> dict[str, Any]:
    newer = {"num_key_value_heads": heads, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5}
    return llama(hidden, inner, layers, heads, **{**newer, **changes})


def llama_3(hidden: int, inner: int, layers: int, heads: int, factor: float | None = None, **changes: Any):
    config = llama_2(hidden, inner, layers, heads)
    config |= {"num_key_value_heads": 8, "vocab_size": 128256, "rope_theta": 500000.0, "max_position_embeddings": 8192}
    if factor is not None:
        config["max_position_embeddings"] = 131072
        config["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
    return config | changes


def smollm2(hidden: int, inner: int, layers: int, heads: int, kv_heads: int, theta: float = 1e5) -> dict[str, Any]:
    small = {"vocab_size": 49152, "tie_word_embeddings": True, "max_position_embeddings": 8192, "rope_theta": theta}
    return llama_2(hidden, inner, layers, heads, num_key_value_heads=kv_heads, **small)


def bloom(hidden: int, layers: int, heads: int, **changes: Any) -> dict[str, Any]:
    return {
        "architectures": ["BloomForCausalLM"],
        "model_type": "bloom",
        "hidden_size": hidden,
        "n_layer": layers,
        "n_head": heads,
        "vocab_size": 250880,
        "layer_norm_epsilon": 1e-5,
        "apply_residual_connection_post_layernorm": False,
        "pretraining_tp": 1,
        "slow_but_exact": False,
        "offset_alibi": 100,
        "masked_softmax_fusion": True,
        "seq_length": 2048,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 3,
        **changes,
    }


def old_bloom(hidden: int, layers: int, heads: int) -> dict[str, Any]:
    """The first files say n_embed and num_attention_heads, and no window."""
    config = bloom(hidden, layers, heads, n_embed=hidden, num_attention_heads=heads)
    return {key: value for key, value in config.items() if key not in ("hidden_size", "n_head", "seq_length")}


def baichuan(hidden: int, inner: int, layers: int, heads: int, **changes: Any) -> dict[str, Any]:
    return {
        "architectures": ["BaichuanForCausalLM"],
        "model_type": "baichuan",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "vocab_size": 64000,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        **changes,
    }


LLAMA_7B, LLAMA_13B = (4096, 11008, 32, 32), (5120, 13824, 40, 40)
BAICHUAN_7B, BAICHUAN_13B = (4096, 11008, 32, 32), (5120, 13696, 40, 40)
BOTH = {"max_position_embeddings": 4096, "model_max_length": 4096}
BAICHUAN2 = {"vocab_size": 125696, "z_loss_weight": 0, "tokenizer_class": "BaichuanTokenizer"}
V0 = {
    "vocab_size": 150528,
    "bos_token_id": 150004,
    "eos_token_id": 150005,
    "mask_token_id": None,
    "gmask_token_id": None,
}

CHATGLM2_SIZE = (6_243_584_000, 28_672)
GLM_4_SIZE = (9_399_951_360, 40_960)
LLAMA_7B_SIZE, LLAMA_13B_SIZE = (6_738_415_616, 524_288), (13_015_864_320, 819_200)
BLOOM_7B1_SIZE = (7_069_016_064, 491_520)
BLOOM_176B_SIZE = (176_247_271_424, 4_014_080)

CHECKPOINTS = {
    "THUDM/chatglm-6b": Checkpoint(chatglm_6b(), "chatglm", 6_173_286_400, 458_752, 2048),
    "THUDM/chatglm-6b v0.1.0": Checkpoint(chatglm_6b(**V0), "chatglm", 6_255_206_400, 458_752, 2048),
    "THUDM/chatglm-6b-int4": Checkpoint(
        chatglm_6b(quantization_bit=4, quantization_embeddings=False), "chatglm", 6_173_286_400, 458_752, 2048
    ),
    "THUDM/chatglm2-6b": Checkpoint(chatglm2_6b(), "chatglm2", *CHATGLM2_SIZE, 32768),
    "THUDM/chatglm2-6b-int4": Checkpoint(chatglm2_6b(quantization_bit=4), "chatglm2", *CHATGLM2_SIZE, 32768),
    "THUDM/chatglm2-6b-32k": Checkpoint(chatglm2_6b(rope_ratio=16), "chatglm2", *CHATGLM2_SIZE, 32768),
    "THUDM/chatglm3-6b": Checkpoint(chatglm3_6b(), "chatglm2", *CHATGLM2_SIZE, 8192),
    "THUDM/chatglm3-6b-base": Checkpoint(chatglm2_6b(), "chatglm2", *CHATGLM2_SIZE, 32768),
    "THUDM/chatglm3-6b-32k": Checkpoint(chatglm2_6b(rope_ratio=50), "chatglm2", *CHATGLM2_SIZE, 32768),
    "THUDM/chatglm3-6b-128k": Checkpoint(
        chatglm2_6b(rope_ratio=500, seq_length=131072), "chatglm2", *CHATGLM2_SIZE, 131072
    ),
    "THUDM/glm-4-9b": Checkpoint(glm_4(seq_length=8192), "chatglm2", *GLM_4_SIZE, 8192),
    "THUDM/glm-4-9b-chat": Checkpoint(glm_4(rope_ratio=500), "chatglm2", *GLM_4_SIZE, 131072),
    "THUDM/glm-4-9b-chat-1m": Checkpoint(
        glm_4(rope_ratio=10000, multi_query_group_num=4, seq_length=1048576),
        "chatglm2",
        GLM_4_SIZE[0] + 40 * 4 * 128 * (4096 + 1),  # two more groups of keys and of values a layer
        2 * GLM_4_SIZE[1],
        1048576,
    ),
    "THUDM/glm-4-9b-chat-hf": Checkpoint(glm_4_hf(), "chatglm2", *GLM_4_SIZE, 131072),
    "huggyllama/llama-7b": Checkpoint(
        {key: value for key, value in llama(*LLAMA_7B, max_sequence_length=2048).items() if "position" not in key},
        "llama",
        *LLAMA_7B_SIZE,
        2048,
    ),
    "decapoda-research/llama-7b-hf": Checkpoint(
        llama(*LLAMA_7B, architectures=["LLaMAForCausalLM"], bos_token_id=0, eos_token_id=1, pad_token_id=-1),
        "llama",
        *LLAMA_7B_SIZE,
        2048,
    ),
    "huggyllama/llama-13b": Checkpoint(llama(*LLAMA_13B), "llama", *LLAMA_13B_SIZE, 2048),
    "huggyllama/llama-30b": Checkpoint(llama(6656, 17920, 60, 52), "llama", 32_528_943_616, 1_597_440, 2048),
    "huggyllama/llama-65b": Checkpoint(
        llama(8192, 22016, 80, 64, rms_norm_eps=1e-5), "llama", 65_285_660_672, 2_621_440, 2048
    ),
    "meta-llama/Llama-2-7b-chat-hf": Checkpoint(llama_2(*LLAMA_7B), "llama", *LLAMA_7B_SIZE, 4096),
    "meta-llama/Llama-2-13b-chat-hf": Checkpoint(llama_2(*LLAMA_13B), "llama", *LLAMA_13B_SIZE, 4096),
    "meta-llama/Llama-2-70b-chat-hf": Checkpoint(
        llama_2(8192, 28672, 80, 64, num_key_value_heads=8), "llama", 68_976_648_192, 327_680, 4096
    ),
    "meta-llama/Meta-Llama-3-8B-Instruct": Checkpoint(
        llama_3(4096, 14336, 32, 32), "llama", 8_030_261_248, 131_072, 8192
    ),
    "meta-llama/Llama-3.1-8B-Instruct": Checkpoint(
        llama_3(4096, 14336, 32, 32, factor=8.0, eos_token_id=[128001, 128008, 128009]),
        "llama",
        8_030_261_248,
        131_072,
        131072,
    ),
    "meta-llama/Llama-3.2-1B-Instruct": Checkpoint(
        llama_3(2048, 8192, 16, 32, factor=32.0, tie_word_embeddings=True, head_dim=64),
        "llama",
        1_235_814_400,
        32_768,
        131072,
    ),
    "meta-llama/Llama-3.2-3B-Instruct": Checkpoint(
        llama_3(3072, 8192, 28, 24, factor=32.0, tie_word_embeddings=True, head_dim=128),
        "llama",
        3_212_749_824,
        114_688,
        131072,
    ),
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": Checkpoint(
        llama(2048, 5632, 22, 32, num_key_value_heads=4, rms_norm_eps=1e-5), "llama", 1_100_048_384, 22_528, 2048
    ),
    "HuggingFaceTB/SmolLM2-135M-Instruct": Checkpoint(smollm2(576, 1536, 30, 9, 3), "llama", 134_515_008, 23_040, 8192),
    "HuggingFaceTB/SmolLM2-360M-Instruct": Checkpoint(
        smollm2(960, 2560, 32, 15, 5), "llama", 361_821_120, 40_960, 8192
    ),
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": Checkpoint(
        smollm2(2048, 8192, 24, 32, 32, theta=130000.0), "llama", 1_711_376_384, 196_608, 8192
    ),
    "tatsu-lab/alpaca-7b": Checkpoint(
        llama(*LLAMA_7B, vocab_size=32001), "llama", LLAMA_7B_SIZE[0] + 2 * 4096, 524_288, 2048
    ),
    "lmsys/vicuna-7b-v1.3": Checkpoint(llama(*LLAMA_7B), "llama", *LLAMA_7B_SIZE, 2048),
    "lmsys/vicuna-13b-v1.5-16k": Checkpoint(
        llama_2(*LLAMA_13B, rope_scaling={"type": "linear", "factor": 4.0}, max_position_embeddings=16384),
        "llama",
        *LLAMA_13B_SIZE,
        16384,
    ),
    "hfl/chinese-llama-7b merged": Checkpoint(
        llama(*LLAMA_7B, vocab_size=49953), "llama", 6_885_486_592, 524_288, 2048
    ),
    "hfl/chinese-alpaca-7b merged": Checkpoint(
        llama(*LLAMA_7B, vocab_size=49954), "llama", 6_885_494_784, 524_288, 2048
    ),
    "hfl/chinese-alpaca-13b merged": Checkpoint(
        llama(*LLAMA_13B, vocab_size=49954), "llama", 13_199_713_280, 819_200, 2048
    ),
    "hfl/chinese-alpaca-2-7b": Checkpoint(
        llama_2(*LLAMA_7B, vocab_size=55296), "llama", LLAMA_7B_SIZE[0] + 2 * 4096 * 23296, 524_288, 4096
    ),
    "FreedomIntelligence/chimera-inst-chat-7b merged": Checkpoint(llama(*LLAMA_7B), "llama", *LLAMA_7B_SIZE, 2048),
    "bigscience/bloomz-560m": Checkpoint(bloom(1024, 24, 16), "bloom", 559_214_592, 98_304, 2048),
    "bigscience/bloomz-1b1": Checkpoint(bloom(1536, 24, 16), "bloom", 1_065_314_304, 147_456, 2048),
    "bigscience/bloomz-1b7": Checkpoint(bloom(2048, 24, 16), "bloom", 1_722_408_960, 196_608, 2048),
    "bigscience/bloomz-3b": Checkpoint(bloom(2560, 30, 32), "bloom", 3_002_557_440, 307_200, 2048),
    "bigscience/bloom-7b1": Checkpoint(old_bloom(4096, 30, 32), "bloom", *BLOOM_7B1_SIZE, 2048),
    "bigscience/bloomz-7b1-mt": Checkpoint(bloom(4096, 30, 32), "bloom", *BLOOM_7B1_SIZE, 2048),
    "BelleGroup/BELLE-7B-2M": Checkpoint(bloom(4096, 30, 32, torch_dtype="float32"), "bloom", *BLOOM_7B1_SIZE, 2048),
    "FreedomIntelligence/phoenix-inst-chat-7b": Checkpoint(bloom(4096, 30, 32), "bloom", *BLOOM_7B1_SIZE, 2048),
    "bigscience/bloom": Checkpoint(bloom(14336, 70, 112), "bloom", *BLOOM_176B_SIZE, 2048),
    "xyz-nlp/XuanYuan2.0": Checkpoint(bloom(14336, 70, 112), "bloom", *BLOOM_176B_SIZE, 2048),
    "baichuan-inc/Baichuan-7B": Checkpoint(
        baichuan(*BAICHUAN_7B, architectures=["BaiChuanForCausalLM"], max_position_embeddings=4096),
        "baichuan",
        7_000_559_616,
        524_288,
        4096,
    ),
    "baichuan-inc/Baichuan-13B-Chat": Checkpoint(
        baichuan(*BAICHUAN_13B, model_max_length=4096), "baichuan", 13_264_901_120, 819_200, 4096
    ),
    "baichuan-inc/Baichuan2-7B-Chat": Checkpoint(
        baichuan(*BAICHUAN_7B, **BOTH, **BAICHUAN2), "baichuan", 7_505_973_248, 524_288, 4096
    ),
    "baichuan-inc/Baichuan2-13B-Chat": Checkpoint(
        baichuan(*BAICHUAN_13B, model_max_length=4096, **BAICHUAN2), "baichuan", 13_896_668_160, 819_200, 4096
    ),
}
