"""What hubs say of repositories, how sources are named, and what is chosen of the files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from chatapp.downloads import hubs
from chatapp.downloads.hubs import Hub, HubError, RemoteFile, default_address, describe, is_plain, read_source
from chatapp.downloads.offers import Offer, look_up
from chatapp.downloads.selection import variants
from chatapp.hardware import GIB, Machine
from tests.fake_hub import SHA, FakeHub, serving_hub
from tests.serving import closed_port
from tests.tiny import LLAMA, byte_level_tokenizer, save_folder, write_gguf, write_lora

import gguf  # isort: skip

ID = "maker/tiny-chat"
ROOMY = Machine(ram_free=64 * GIB, ram_total=64 * GIB)
KINDS = ("huggingface", "modelscope")
CONFIG = json.dumps(LLAMA).encode()
WEIGHTS = b"w" * 5000


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with serving_hub() as hub:
        yield hub


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    with hubs.client() as client:
        yield client


def refused(key: str) -> pytest.RaisesExc[HubError]:
    return pytest.RaisesExc(HubError, check=lambda error: error.key == key and all(map(error.said, ("en", "zh"))))


# What a hub says


@pytest.mark.parametrize("kind", KINDS)
def test_a_repository_is_described_with_all_its_files(kind: str, hub: FakeHub, client: httpx.Client) -> None:
    small = {f"file-{number}.json": b"{}" for number in range(7)}
    hub.add(ID, {"config.json": CONFIG, "model.safetensors": WEIGHTS, "deep/er.txt": b"x", **small})
    found = describe(client, Hub(kind, hub.address), ID, None)
    assert {file.path: file.size for file in found.files} == {
        "config.json": len(CONFIG), "model.safetensors": 5000, "deep/er.txt": 1, **dict.fromkeys(small, 2)
    }  # fmt: skip
    assert found.licence == "apache-2.0" and not found.gated
    assert found.revision == (SHA if kind == "huggingface" else "master")
    weights = next(file for file in found.files if file.path == "model.safetensors")
    assert weights.sha256 is not None and weights.blob is None


def test_small_files_at_hugging_face_have_the_checksum_of_git(hub: FakeHub, client: httpx.Client) -> None:
    hub.add(ID, {"config.json": b"hello\n"})
    (file,) = describe(client, Hub("huggingface", hub.address), ID, None).files
    assert (file.sha256, file.blob) == (None, "ce013625030ba8dba906f756967f9e9ca394464a")  # git hash-object


def test_a_licence_of_its_own_goes_by_its_name(hub: FakeHub, client: httpx.Client) -> None:
    hub.add(ID, {"a": b""}, licence="other", card={"license_name": "llama9", "license_link": "LICENSE"}, token="t")
    found = describe(client, Hub("huggingface", hub.address), ID, None)
    assert (found.licence, found.licence_link, found.gated) == ("llama9", "LICENSE", True)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_there_is_said(kind: str, hub: FakeHub, client: httpx.Client) -> None:
    with refused("hub_missing"):
        describe(client, Hub(kind, hub.address), "maker/nothing", None)


@pytest.mark.parametrize(
    "status, key", [(429, "hub_busy"), (500, "hub_failing"), (503, "hub_failing"), (403, "hub_gated")]
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_hub_that_fails_is_said(status: int, key: str, kind: str, hub: FakeHub, client: httpx.Client) -> None:
    hub.failing = status
    with refused(key):
        describe(client, Hub(kind, hub.address), ID, None)


@pytest.mark.parametrize("kind", KINDS)
def test_a_hub_that_is_not_there_is_said(kind: str, client: httpx.Client) -> None:
    with refused("hub_unreachable"):
        describe(client, Hub(kind, f"http://127.0.0.1:{closed_port()}"), ID, None)


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"7", b'{"sha": 7, "Data": []}', b"[" * 100_000])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_hub_is_said(kind: str, body: bytes) -> None:
    transport = httpx.MockTransport(lambda request: httpx.Response(200, content=body))
    with httpx.Client(transport=transport) as client, refused("hub_odd"):
        describe(client, Hub(kind, "http://127.0.0.1:1"), ID, None)


@pytest.mark.parametrize("size", ["12", -1, 2**60, None, True])
def test_sizes_that_make_no_sense_are_refused(size: object) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        listed = "/tree/" in request.url.path
        return httpx.Response(200, json=[{"type": "file", "path": "a", "size": size}] if listed else {"sha": "x"})

    with httpx.Client(transport=httpx.MockTransport(answer)) as client, refused("hub_odd"):
        describe(client, Hub("huggingface", "http://127.0.0.1:1"), ID, None)


def test_a_list_without_end_is_refused() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if "/tree/" not in request.url.path:
            return httpx.Response(200, json={"sha": "x"})
        return httpx.Response(200, json=[], headers={"link": '<http://127.0.0.1:1/?cursor=same>; rel="next"'})

    with httpx.Client(transport=httpx.MockTransport(answer)) as client, refused("hub_odd"):
        describe(client, Hub("huggingface", "http://127.0.0.1:1"), ID, None)


# Tokens


@pytest.mark.parametrize("address, key", [("http://mirror.invalid", "hub_token_plain")])
def test_a_token_never_goes_where_others_can_read_it(address: str, key: str) -> None:
    with refused(key):
        Hub("huggingface", address).headers("secret")
    assert Hub("huggingface", address).headers(None) == {}
    assert Hub("huggingface", "https://mirror.invalid").headers("secret") == {"authorization": "Bearer secret"}


@pytest.mark.parametrize("token", ["two words", "line\nend", "令牌"])
def test_what_can_be_no_token_is_refused(token: str) -> None:
    with refused("hub_token_odd"):
        Hub("modelscope", "https://scope.invalid").headers(token)


def test_a_token_does_not_follow_to_another_host() -> None:
    seen = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append((request.url.host, {"authorization", "cookie"} & set(request.headers)))
        if request.url.host == "hub.invalid":
            return httpx.Response(302, headers={"location": "https://storage.invalid/file"})
        return httpx.Response(200, json={"Success": True, "Data": {}})

    with httpx.Client(transport=httpx.MockTransport(answer), follow_redirects=True) as client:
        describe(client, Hub("modelscope", "https://hub.invalid"), ID, None, "secret")
    assert ("hub.invalid", {"authorization", "cookie"}) in seen
    assert ("storage.invalid", set()) in seen and ("storage.invalid", {"cookie"}) not in seen


# What a user may give as a source


@pytest.mark.parametrize(
    "text, expected",
    [
        ("maker/name", ("huggingface", "https://hub.invalid", "maker/name", None)),
        ("  maker/name@v2 ", ("huggingface", "https://hub.invalid", "maker/name", "v2")),
        ("gpt2", ("huggingface", "https://hub.invalid", "gpt2", None)),
        ("https://other.invalid/maker/name", ("huggingface", "https://other.invalid", "maker/name", None)),
        ("https://other.invalid/maker/name/", ("huggingface", "https://other.invalid", "maker/name", None)),
        ("https://hub.invalid/m/n/tree/dev", ("huggingface", "https://hub.invalid", "m/n", "dev")),
        ("http://hub.invalid:8080/m/n/blob/main/a.gguf", ("huggingface", "http://hub.invalid:8080", "m/n", "main")),
        ("https://scope.invalid/models/m/n", ("modelscope", "https://scope.invalid", "m/n", None)),
        ("https://scope.invalid/models/m/n/summary?x=1", ("modelscope", "https://scope.invalid", "m/n", None)),
        ("https://scope.invalid/models/m/n/files", ("modelscope", "https://scope.invalid", "m/n", None)),
    ],
)
def test_ids_and_links_are_understood(text: str, expected: tuple[str, ...]) -> None:
    hub, id, revision = read_source("huggingface", "https://hub.invalid/", text)
    assert (hub.kind, hub.address, id, revision) == expected


def test_a_mirror_may_lie_below_a_path() -> None:
    hub, id, _ = read_source("huggingface", "https://mirror.invalid/hf/", "https://mirror.invalid/hf/maker/name")
    assert (hub.address, id) == ("https://mirror.invalid/hf", "maker/name")


def test_an_address_without_a_scheme_is_taken_for_https() -> None:
    assert read_source("huggingface", "mirror.invalid", "a/b")[0].address == "https://mirror.invalid"


@pytest.mark.parametrize("text", ["", "a/b/c", "../etc", "a/..", "a b/c", "模型/名", "con/name", "a/.hidden", "a//b"])
def test_what_is_no_id_is_refused(text: str) -> None:
    with refused("hub_id_bad"):
        read_source("huggingface", "https://hub.invalid", text)


@pytest.mark.parametrize(
    "address", ["ftp://hub.invalid", "https://", "https://user:secret@hub.invalid", "file:///etc", "https://a b"]
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with refused("hub_address_bad"):
        read_source("huggingface", address, "a/b")


def test_an_address_that_nobody_gave_is_asked_for() -> None:
    with refused("hub_address_missing"):
        read_source("modelscope", default_address("modelscope", {}), "a/b")
    assert default_address("modelscope", {"MODELSCOPE_DOMAIN": "scope.invalid"}) == "https://scope.invalid"
    assert default_address("huggingface", {}).startswith("http")


# Which files are chosen


def files(*names: str) -> tuple[RemoteFile, ...]:
    return tuple(RemoteFile(name, 10) for name in names)


def chosen(*names: str) -> set[str]:
    (variant,) = variants(ID, files(*names))
    return {file.path for file in variant.files}


BESIDE = ("config.json", "tokenizer.json", "tokenizer_config.json", "LICENSE", "README.md")


def test_safetensors_come_before_pickles_and_other_frameworks_stay() -> None:
    others = ("pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "onnx/model.onnx", "consolidated.safetensors",
              "modeling_x.py", ".gitattributes", "original/consolidated.00.pth", "trainer_state.json")  # fmt: skip
    assert chosen("model.safetensors", *BESIDE, *others) == {"model.safetensors", *BESIDE}


def test_shards_come_with_their_index() -> None:
    shards = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json")
    pickles = ("pytorch_model-00001-of-00001.bin", "pytorch_model.bin.index.json")
    assert chosen(*shards, *pickles, "config.json") == {*shards, "config.json"}


def test_where_safetensors_are_not_whole_the_pickles_are_taken() -> None:
    assert chosen("model-00001-of-00002.safetensors", "pytorch_model.bin", "config.json") == {
        "pytorch_model.bin", "config.json"
    }  # fmt: skip


def test_one_file_for_all_is_not_fetched_beside_shards() -> None:
    shards = ("model-00001-of-00001.safetensors", "model.safetensors.index.json")
    assert chosen("model.safetensors", *shards, "config.json") == {*shards, "config.json"}


def test_tokenizers_of_chatglm_and_licences_in_chinese_are_taken() -> None:
    names = ("config.json", "ice_text.model", "pytorch_model.bin", "MODEL_LICENSE", "模型许可协议.pdf")
    assert chosen(*names, "quantization.py") == set(names)


def test_metas_own_form_is_taken_where_there_is_no_other() -> None:
    names = ("params.json", "consolidated.00.pth", "consolidated.01.pth", "tokenizer.model")
    assert chosen(*names) == set(names)


def test_an_adapter_is_its_two_files() -> None:
    names = ("adapter_config.json", "adapter_model.safetensors", "README.md")
    assert chosen(*names, "adapter_model.bin") == set(names)


def test_each_gguf_model_is_a_choice_with_all_of_its_parts() -> None:
    found = variants(
        ID,
        (
            RemoteFile("a-Q8_0.gguf", 80),
            RemoteFile("sub/a-Q4_0-00001-of-00002.gguf", 20),
            RemoteFile("sub/a-Q4_0-00002-of-00002.gguf", 20),
            RemoteFile("mmproj-a.gguf", 1),
            RemoteFile("LICENSE", 1),
        ),
    )
    assert [variant.name for variant in found] == ["a-Q4_0", "a-Q8_0"]
    assert {file.name for file in found[0].files} == {
        "a-Q4_0-00001-of-00002.gguf", "a-Q4_0-00002-of-00002.gguf", "LICENSE"
    }  # fmt: skip


@pytest.mark.parametrize(
    "names, key",
    [
        (("README.md",), "hub_no_weights"),
        (("config.json", "tokenizer.json"), "hub_no_weights"),
        (("config.json", "model-00001-of-00002.safetensors"), "hub_incomplete"),
        (("a-00002-of-00003.gguf",), "hub_incomplete"),
        (("config.json", "model.safetensors", "LICENSE", "license"), "hub_twins"),
    ],
)
def test_what_can_not_be_whole_is_refused(names: tuple[str, ...], key: str) -> None:
    with refused(key):
        variants(ID, files(*names))


@pytest.mark.parametrize(
    "name", ["../x.json", "/etc/x.json", "..\\x.json", "C:x.json", "con.json", "a.json.", " a.json", "a\nb.json", "..",
             ".hidden.json", "a" * 300 + ".json", "nul", "a?.json", ""]
)  # fmt: skip
def test_names_from_a_hub_never_lead_elsewhere(name: str) -> None:
    assert not is_plain(name)
    assert chosen("config.json", "model.safetensors", name) == {"config.json", "model.safetensors"}


@pytest.mark.parametrize("name", ["模型.json", "a b.json", "console.json", "a-b_c.d.json"])
def test_unusual_names_are_fine(name: str) -> None:
    assert chosen("config.json", "model.safetensors", name) == {"config.json", "model.safetensors", name}


def test_a_gguf_file_is_stored_without_the_folders_of_its_path() -> None:
    (variant,) = variants(ID, files("../../etc/a.gguf"))
    assert [file.name for file in variant.files] == ["a.gguf"]


# What a repository would be here


def looked_up(hub: FakeHub, client: httpx.Client, folder: Path, machine: Machine = ROOMY, **more: str) -> Offer:
    return look_up(client, Hub("huggingface", hub.address), ID, machine, folder, **more)


def test_only_small_files_are_fetched_to_say_what_a_checkpoint_is(
    hub: FakeHub, client: httpx.Client, tmp_path: Path
) -> None:
    save_folder(tmp_path / "made", LLAMA, byte_level_tokenizer())
    made = hub.add_folder(ID, tmp_path / "made")
    made.files |= {"LICENSE": b"Do no harm.", "README.md": b"# Tiny"}
    offer = looked_up(hub, client, tmp_path / "scratch")
    (choice,) = offer.choices
    assert set(hub.asked) == {"config.json", "LICENSE"}
    assert (offer.family, choice.plan.tier, offer.terms) == ("llama", "fp32", "Do no harm.")
    assert offer.parameters > 50_000 and choice.copy == 0
    assert choice.disk == sum(map(len, made.files.values()))
    assert list((tmp_path / "scratch").iterdir()) == []


def test_the_tier_that_will_be_kept_counts(hub: FakeHub, client: httpx.Client, tmp_path: Path) -> None:
    big = LLAMA | {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
                   "num_key_value_heads": 32, "vocab_size": 32000}  # fmt: skip
    hub.add(ID, {"config.json": json.dumps(big).encode(), "model.safetensors": WEIGHTS})
    (choice,) = looked_up(hub, client, tmp_path, Machine(ram_free=7 * GIB, ram_total=8 * GIB)).choices
    assert (choice.plan.tier, choice.tier) == ("int4", "auto") and choice.copy == choice.plan.memory.weights > 3 * GIB
    (choice,) = looked_up(hub, client, tmp_path, Machine(ram_free=GIB, ram_total=GIB)).choices
    assert choice.plan.tier is None and choice.copy == 0


@pytest.mark.parametrize(
    "config, key",
    [
        ({"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}, "hub_architecture"),
        ({**LLAMA, "quantization_config": {"quant_method": "gptq"}}, "hub_unusable"),
        ({**LLAMA, "num_attention_heads": 7}, "hub_unusable"),
    ],
)
def test_what_can_not_be_run_is_refused_before_it_is_fetched(
    config: dict, key: str, hub: FakeHub, client: httpx.Client, tmp_path: Path
) -> None:
    hub.add(ID, {"config.json": json.dumps(config).encode(), "model.safetensors": WEIGHTS})
    with refused(key) as caught:
        looked_up(hub, client, tmp_path / "scratch")
    assert hub.asked["model.safetensors"] == 0
    assert ID in str(caught.value) and str(tmp_path) not in str(caught.value)


def test_a_config_that_is_none_is_refused(hub: FakeHub, client: httpx.Client, tmp_path: Path) -> None:
    hub.add(ID, {"config.json": b"<html>", "model.safetensors": WEIGHTS})
    with refused("hub_unusable"):
        looked_up(hub, client, tmp_path)


def test_a_gguf_model_is_known_by_its_header(hub: FakeHub, client: httpx.Client, tmp_path: Path) -> None:
    config = LLAMA | {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4}
    model = save_folder(tmp_path / "folder", config)
    for kind in ("F16", "Q8_0", "Q4_0"):
        write_gguf(
            tmp_path / f"tiny-{kind}.gguf", model, config, gguf.GGMLQuantizationType[kind], byte_level_tokenizer()
        )
    hub.add(ID, {path.name: path.read_bytes() for path in tmp_path.glob("*.gguf")})
    offer = looked_up(hub, client, tmp_path / "scratch")
    assert [choice.variant.name for choice in offer.choices] == ["tiny-Q4_0", "tiny-Q8_0", "tiny-F16"]
    assert [choice.plan.tier for choice in offer.choices] == ["int4", "int8", "fp32"]
    assert offer.family == "llama" and offer.choices[offer.best].variant.name == "tiny-F16"
    assert set(hub.asked) == {"tiny-Q4_0.gguf"}


def test_a_gguf_model_of_another_architecture_is_refused(hub: FakeHub, client: httpx.Client, tmp_path: Path) -> None:
    model = save_folder(tmp_path / "folder", LLAMA)
    write_gguf(tmp_path / "a.gguf", model, LLAMA, architecture="mamba")
    hub.add(ID, {"a.gguf": (tmp_path / "a.gguf").read_bytes()})
    with refused("hub_architecture"):
        looked_up(hub, client, tmp_path / "scratch")


def test_an_adapter_names_its_base(hub: FakeHub, client: httpx.Client, tmp_path: Path) -> None:
    write_lora(tmp_path / "lora", {"layers.0.q_proj": (8, 8)})
    hub.add_folder(ID, tmp_path / "lora")
    offer = looked_up(hub, client, tmp_path / "scratch")
    assert (offer.base, offer.choices[0].plan, offer.family) == ("made/tiny", None, None)


def test_a_gated_repository_wants_a_token(hub: FakeHub, client: httpx.Client, tmp_path: Path) -> None:
    save_folder(tmp_path / "made", LLAMA)
    hub.add_folder(ID, tmp_path / "made", token="right")
    with refused("hub_gated"):
        looked_up(hub, client, tmp_path / "scratch")
    with refused("hub_token_wrong"):
        looked_up(hub, client, tmp_path / "scratch", token="expired")
    with refused("hub_not_granted"):
        looked_up(hub, client, tmp_path / "scratch", token="another")
    assert looked_up(hub, client, tmp_path / "scratch", token="right").repository.gated
