"""Tier and window from the config and the machine: published floors, what grows, what is asked for, what is refused."""

import gguf
import pytest

from chatapp import planner
from chatapp.hardware import GIB, GPU, Machine
from chatapp.planner import USEFUL, Plan, plan, plan_footprint, plan_for
from models import CheckpointError, Footprint, footprint
from models.footprint import TIERS
from tests import tiny
from tests.configs import CHECKPOINTS, chatglm_6b

SIZES = (2, 4, 6, 8, 10, 12, 13, 16, 24, 48, 80)


def on_card(config: dict, gib: float, **asked) -> Plan:
    return plan(config, Machine.assume(f"cuda:{gib}GB"), **asked)


@pytest.mark.parametrize(
    ("gib", "tier"), [(4, None), (6, "int4"), (7, "int4"), (8, "int8"), (10, "int8"), (12, "int8"), (13, "fp16")]
)
def test_published_floor_of_chatglm_6b(gib: int, tier: str | None) -> None:
    assert on_card(chatglm_6b(), gib).tier == tier


def test_floor_of_chatglm_6b_leaves_a_useful_window() -> None:
    for gib in (6, 10, 13):
        assert on_card(chatglm_6b(), gib).context >= USEFUL


#: GB that the authors say are needed for FP16, INT8 and INT4; ours needs no more than a tenth above them.
PUBLISHED = {
    "THUDM/chatglm-6b": (13, 10, 6),
    "THUDM/chatglm2-6b": (13.1, 8.2, 5.5),
    "baichuan-inc/Baichuan-13B-Chat": (26.0, 15.8, 9.7),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_authors_figures_are_about_ours(name: str, footprints: dict[str, Footprint]) -> None:
    for tier, figure in zip(TIERS, PUBLISHED[name], strict=True):
        assert planner.measure(footprints[name], tier, "cuda", USEFUL).total / GIB <= 1.1 * figure


def test_every_checkpoint_at_every_size_has_a_plan_or_a_sentence(footprints: dict[str, Footprint]) -> None:
    for kind in ("cuda", "cpu"):
        for size in SIZES:
            for needs in footprints.values():
                made = plan_footprint(needs, Machine.assume(f"{kind}:{size}GB"))
                assert made.reason.endswith(".") and "\n" not in made.reason
                if made.tier is None:
                    assert (made.context, made.device) == (0, None)
                    assert made.memory.total > size * GIB
                else:
                    assert min(USEFUL, needs.context) <= made.context <= needs.context
                    assert made.memory.total + made.left == size * GIB and made.left >= 0
                    assert made.device == ("cpu" if kind == "cpu" else "cuda:0")


def test_more_memory_never_gives_less(footprints: dict[str, Footprint]) -> None:
    """A better tier, or the same with at least the window."""
    order = [None, *reversed(TIERS), "fp32"]
    for kind in ("cuda", "cpu"):
        for needs in footprints.values():
            plans = [plan_footprint(needs, Machine.assume(f"{kind}:{size}GB")) for size in SIZES]
            ranks = [(order.index(made.tier), made.context) for made in plans]
            assert ranks == sorted(ranks)


def test_the_window_is_as_long_as_fits(footprints: dict[str, Footprint]) -> None:
    needs = footprints["meta-llama/Llama-3.1-8B-Instruct"]
    made = plan_footprint(needs, Machine.assume("cuda:8GB"))
    assert USEFUL < made.context < needs.context and made.context % planner.STEP == 0
    longer = planner.measure(needs, made.tier, "cuda", made.context + planner.STEP)
    assert made.memory.total <= 8 * GIB < longer.total


def test_bytes_by_part() -> None:
    needs = footprint(chatglm_6b())
    made = on_card(chatglm_6b(), 7)
    assert made.memory.weights == needs.weights("int4")
    assert made.memory.cache == needs.cache("int4", 2048)
    assert made.memory.scratch == needs.scratch("int4", "cuda", 2048)
    assert made.memory.margin >= 256 * 2**20


def test_the_reason_has_the_figures() -> None:
    assert on_card(chatglm_6b(), 7).reason == (
        "INT4 with its whole window of 2,048 tokens takes 5.4 of the 7.0 GiB that are free on the graphics card; INT8 "
        "would need 7.5 GiB."
    )


def test_the_cpu_when_no_tier_fits_the_card() -> None:
    made = plan(chatglm_6b(), Machine.assume("cuda:4GB,cpu:12GB"))
    assert (made.tier, made.device) == ("int8", "cpu")
    made = plan(chatglm_6b(), Machine.assume("cuda:4GB,cpu:32GB"))
    assert (made.tier, made.device) == ("fp16", "cpu")
    assert "on the CPU" in made.reason and "graphics card, where 4.0 GiB are free" in made.reason


def test_the_card_comes_first_though_the_cpu_would_hold_a_better_tier() -> None:
    made = plan(chatglm_6b(), Machine.assume("cuda:6GB,cpu:64GB"))
    assert (made.tier, made.device) == ("int4", "cuda:0")


def test_of_several_cards_the_one_with_the_most_free() -> None:
    cards = (GPU(0, "busy", GIB, 24 * GIB), GPU(1, "free", 10 * GIB, 12 * GIB))
    made = plan(chatglm_6b(), Machine(gpus=cards, ram_free=64 * GIB))
    assert (made.tier, made.device) == ("int8", "cuda:1")


def test_nothing_fits() -> None:
    made = plan(CHECKPOINTS["huggyllama/llama-65b"].config, Machine.assume("cuda:6GB,cpu:16GB"))
    assert (made.tier, made.context, made.device) == (None, 0, None)
    assert made.reason.startswith(
        "INT4 with a window of 1,700 tokens needs 44.3 GiB, and 16.0 GiB are free on the CPU;"
    )


def test_a_forced_tier_is_honoured_or_refused() -> None:
    for tier in TIERS:
        assert on_card(chatglm_6b(), 24, tier=tier).tier == tier
    refused = on_card(chatglm_6b(), 7, tier="int8")
    assert refused.tier is None
    assert "INT8" in refused.reason and "a lower tier" in refused.reason
    assert on_card(chatglm_6b(), 7.4, tier="int8", context=512).tier == "int8"


def test_a_forced_window_is_honoured_or_refused() -> None:
    llama = CHECKPOINTS["huggyllama/llama-7b"].config
    assert on_card(llama, 24, context=512).context == 512
    assert on_card(llama, 24, context=4096).context == 2048  # it narrows, no more
    long = CHECKPOINTS["meta-llama/Llama-3.1-8B-Instruct"].config
    assert on_card(long, 10, context=2048).tier == "int8"
    assert on_card(long, 10, context=16384).tier == "int4"
    refused = on_card(long, 10, context=100_000)
    assert refused.tier is None and "100,000 tokens" in refused.reason


def test_small_checkpoints_run_in_float32_on_the_cpu() -> None:
    small = CHECKPOINTS["HuggingFaceTB/SmolLM2-135M-Instruct"].config
    assert plan(small, Machine.assume("cpu:8GB")).tier == "fp32"
    assert on_card(small, 8).tier == "fp16"
    assert plan(small, Machine.assume("cpu:8GB"), tier="int4").tier == "int4"
    assert plan(CHECKPOINTS["HuggingFaceTB/SmolLM2-360M-Instruct"].config, Machine.assume("cpu:8GB")).tier == "fp16"


def test_a_published_quantized_checkpoint_keeps_its_tier() -> None:
    assert on_card(CHECKPOINTS["THUDM/chatglm-6b-int4"].config, 80).tier == "int4"
    assert on_card(chatglm_6b(quantization_bit=8), 6).tier is None


def test_a_model_with_a_short_window_is_useful_with_it() -> None:
    made = on_card(tiny.LLAMA, 1)
    assert (made.tier, made.context) == ("fp16", 256)


def test_a_folder_needs_no_weights(tmp_path) -> None:
    tiny.save_folder(tmp_path / "tiny", tiny.LLAMA)
    (tmp_path / "tiny" / "model.safetensors").unlink()
    assert plan_for(tmp_path / "tiny", Machine.assume("cpu:2GB")).tier == "fp32"
    assert plan_for(tmp_path / "tiny", Machine.assume("cpu:2GB"), "int8", 128).context == 128


@pytest.mark.parametrize(
    ("kind", "tier"), [("F32", "fp32"), ("F16", "fp32"), ("Q8_0", "int8"), ("Q4_1", "int4"), ("Q4_0", "int4")]
)
def test_a_gguf_file_keeps_its_quantization(kind: str, tier: str, tmp_path) -> None:
    config = tiny.LLAMA | {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4}
    path = tmp_path / "tiny.gguf"
    tiny.write_gguf(path, tiny.build(config), config, gguf.GGMLQuantizationType[kind])
    assert plan_for(path, Machine.assume("cpu:2GB")).tier == tier


def test_what_is_no_checkpoint_is_said(tmp_path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        plan_for(tmp_path / "gone", Machine.assume("cpu:2GB"))
    with pytest.raises(CheckpointError, match="mamba"):
        plan({"model_type": "mamba"}, Machine.assume("cpu:2GB"))


# What is said of a plan


def test_a_plan_is_explained_in_both_languages(footprints: dict[str, Footprint]) -> None:
    needs = footprints["THUDM/chatglm-6b"]
    for size, figures in (
        ("cuda:7GB", ("INT4", "7.0", "INT8")),
        ("cuda:4GB,cpu:32GB", ("FP16", "32.0")),
        ("cpu:1GB", ("1.0",)),
    ):
        made = plan_footprint(needs, Machine.assume(size))
        assert planner.explain(made, "en") == made.reason
        chinese = planner.explain(made, "zh")
        assert chinese.endswith("。") and all(figure in made.reason and figure in chinese for figure in figures)
    refused = plan_footprint(needs, Machine.assume("cuda:4GB"), "fp16")
    assert "a lower tier" in refused.reason and "更低的精度" in planner.explain(refused, "zh")


def test_what_is_no_plan_keeps_its_sentence() -> None:
    assert planner.explain(Plan(None, 0, None, planner.Memory(0, 0, 0, 0), "It is damaged."), "zh") == "It is damaged."


def test_the_shares_of_a_devices_memory_add_up_to_all_of_it(footprints: dict[str, Footprint]) -> None:
    card = GPU(0, "a card", 7 * GIB, 8 * GIB)
    machine = Machine((card,), 3 * GIB, 16 * GIB)
    made = plan_footprint(footprints["THUDM/chatglm-6b"], machine)
    shares = planner.shares(made, machine)
    assert list(shares) == list(planner.PARTS) and sum(shares.values()) == 8 * GIB
    assert (shares["weights"], shares["cache"], shares["others"]) == (made.memory.weights, made.memory.cache, GIB)
    assert shares["free"] == made.left
    small = plan_footprint(footprints["THUDM/chatglm-6b"], Machine(ram_free=GIB, ram_total=16 * GIB))
    assert planner.shares(small, machine) == {}  # nothing runs
