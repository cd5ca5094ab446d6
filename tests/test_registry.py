"""Which file runs a checkpoint, and with which arguments, from its config.json alone."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from models import CheckpointError, registry
from tests.configs import CHECKPOINTS, Checkpoint, chatglm2_6b, chatglm_6b, glm_4, glm_4_hf
from tests.tiny import CHATGLM2, build

FAMILIES = {"chatglm": "chatglm", "chatglm2": "chatglm", "llama": "llama", "bloom": "bloom", "baichuan": "baichuan"}


@pytest.fixture(params=CHECKPOINTS)
def checkpoint(request: pytest.FixtureRequest) -> Checkpoint:
    return CHECKPOINTS[request.param]


def arguments(config: dict):
    return registry.resolve(config).module().ModelArgs.from_dict(config)


def test_architecture_of_every_checkpoint(checkpoint: Checkpoint) -> None:
    found = registry.resolve(checkpoint.config)
    assert (found.name, found.family) == (checkpoint.architecture, FAMILIES[checkpoint.architecture])


def test_a_folder_name_decides_nothing(checkpoint: Checkpoint) -> None:
    misleading = checkpoint.config | {"_name_or_path": "/models/baichuan-llama-bloom-chatglm-6b"}
    assert registry.resolve(misleading).name == checkpoint.architecture


def test_exactly_one_architecture_matches(checkpoint: Checkpoint) -> None:
    assert sum(row.matches(checkpoint.config) for row in registry.ARCHITECTURES) == 1


def test_size_of_every_checkpoint(checkpoint: Checkpoint) -> None:
    """The published number of parameters comes out of the model that is built, without allocating it."""
    args = arguments(checkpoint.config)
    with torch.device("meta"):
        model = registry.resolve(checkpoint.config).module().Model(args)
    assert sum(parameter.numel() for parameter in model.parameters()) == checkpoint.parameters
    shape = args.cache_shape
    assert 2 * 2 * shape.layers * shape.kv_heads * shape.head_dim == checkpoint.cache
    assert args.context == checkpoint.context


@pytest.mark.parametrize("name", ["THUDM/chatglm2-6b", "meta-llama/Llama-2-7b-chat-hf", "bigscience/bloomz-7b1-mt"])
def test_without_a_model_type_the_architectures_decide(name: str) -> None:
    config = {key: value for key, value in CHECKPOINTS[name].config.items() if key != "model_type"}
    assert registry.resolve(config).name == CHECKPOINTS[name].architecture


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]},
        {"model_type": "glm4", "architectures": ["Glm4ForCausalLM"], "num_key_value_heads": 2},
        {"model_type": "glm", "architectures": ["GLMModel"], "num_layers": 48},  # GLM-10B of 2021
        {"model_type": "chatglm", "architectures": ["ChatGLMModel"]},
        {"model_type": "llama4", "architectures": ["Llama4ForConditionalGeneration"]},
        {"model_type": "baichuan_m1", "architectures": ["BaichuanM1ForCausalLM"]},
    ],
    ids=str,
)
def test_unknown_configs_name_what_was_seen_and_what_is_supported(config: dict) -> None:
    with pytest.raises(CheckpointError) as caught:
        registry.resolve(config)
    text = str(caught.value)
    assert repr(config.get("model_type")) in text and repr(config.get("architectures")) in text
    assert all(row.name in text for row in registry.ARCHITECTURES)


def test_chatglm_ids_come_from_the_config() -> None:
    published = arguments(chatglm_6b())
    ids = ("mask_token_id", "gmask_token_id", "bos_token_id", "eos_token_id")
    assert [getattr(published, name) for name in ids] == [130000, 130001, 130004, 130005]
    bare = {key: value for key, value in chatglm_6b().items() if key not in ids}
    assert arguments(bare) == published
    # In the first release image tokens stood in front of the text's.
    first = arguments(CHECKPOINTS["THUDM/chatglm-6b v0.1.0"].config)
    assert [getattr(first, name) for name in ids] == [150000, 150001, 150004, 150005]
    assert arguments(chatglm_6b(gmask_token_id=7)).gmask_token_id == 7


def angles_at(position: int, **changes) -> torch.Tensor:
    model = build(CHATGLM2 | changes)
    return position * model.frequencies(torch.device("cpu"))


def test_both_meanings_of_rope_ratio() -> None:
    """Positions are divided in chatglm2-6b-32k; everywhere else the base is multiplied."""
    plain = angles_at(1600)
    torch.testing.assert_close(angles_at(1600 * 16, rope_ratio=16), plain)
    exponents = torch.arange(0, 4, 2) / 4
    for ratio in (50, 500, 10000):
        torch.testing.assert_close(angles_at(1600, rope_ratio=ratio), 1600 * (10000.0 * ratio) ** -exponents)
    assert torch.equal(angles_at(1600, rope_ratio=1), plain)


def test_meaning_of_rope_ratio_can_be_overridden() -> None:
    assert arguments(chatglm2_6b(rope_ratio=16)).rope_ratio_scales == "positions"
    assert arguments(chatglm2_6b(rope_ratio=8, _name_or_path="THUDM/chatglm2-6b-32k")).rope_ratio_scales == "positions"
    assert arguments(chatglm2_6b(rope_ratio=8)).rope_ratio_scales == "base"
    assert arguments(chatglm2_6b(rope_ratio=16, rope_ratio_scales="base")).rope_ratio_scales == "base"
    with pytest.raises(CheckpointError, match="rope_ratio_scales: 'both'"):
        arguments(chatglm2_6b(rope_ratio_scales="both"))


def test_both_forms_of_glm_4_give_the_same_arguments() -> None:
    """transformers writes the base itself where the published form writes its ratio to 10,000."""
    published, other = arguments(glm_4(rope_ratio=500)), arguments(glm_4_hf())
    assert published.rope_theta * published.rope_ratio == other.rope_theta * other.rope_ratio
    assert dataclasses.replace(published, rope_theta=5e6, rope_ratio=1.0) == other
    newer = {key: value for key, value in glm_4_hf().items() if key not in ("rope_theta", "partial_rotary_factor")}
    newer["rope_parameters"] = {"rope_type": "default", "rope_theta": 5e6, "partial_rotary_factor": 0.5}
    assert arguments(newer) == other


@pytest.mark.parametrize(
    ("name", "alibi"),
    [("Baichuan-7B", False), ("Baichuan-13B-Chat", True), ("Baichuan2-7B-Chat", False), ("Baichuan2-13B-Chat", True)],
)
def test_alibi_is_told_by_the_missing_window(name: str, alibi: bool) -> None:
    assert arguments(CHECKPOINTS[f"baichuan-inc/{name}"].config).alibi is alibi


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("THUDM/chatglm-6b", {"position_encoding_2d": False}),
        ("THUDM/chatglm-6b", {"hidden_size": 4098}),
        ("THUDM/chatglm2-6b", {"multi_query_group_num": 5}),
        ("THUDM/chatglm2-6b", {"rmsnorm": False}),
        ("THUDM/chatglm2-6b", {"post_layer_norm": False}),
        ("THUDM/chatglm2-6b", {"apply_residual_connection_post_layernorm": True}),
        ("bigscience/bloomz-560m", {"apply_residual_connection_post_layernorm": True}),
        ("bigscience/bloomz-560m", {"n_head": 15}),
        ("baichuan-inc/Baichuan-7B", {"hidden_act": "gelu"}),
        ("baichuan-inc/Baichuan-7B", {"num_hidden_layers": "many"}),
    ],
)
def test_what_no_code_here_can_run_is_refused(name: str, changes: dict) -> None:
    with pytest.raises(CheckpointError, match="impossible"):
        arguments(CHECKPOINTS[name].config | changes)
