"""What happens behind the page after a start."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chatapp import checkpoints, startup
from chatapp.checkpoints import FetchError
from chatapp.choices import LastModel
from chatapp.engine import Engine, EngineError, Source
from chatapp.hardware import Machine
from chatapp.planner import Memory, Plan
from chatapp.settings import Settings, parse
from chatapp.startup import Fetching, Startup
from models import CheckpointError, LoadedModel
from tests.fakes import Gate, HashEmbeddings, scripted
from tests.tiny import LLAMA, byte_level_tokenizer, save_folder
from tests.waiting import eventually

NO_MODEL = FetchError("SmolLM2 could not be fetched.")
NO_EMBEDDER = FetchError("e5 could not be fetched.")


class Embeddings(HashEmbeddings):
    """Stands for LocalEmbeddings: remembers which folder it was made with and whether it was warmed."""

    made: list[Any] = []

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.asked: list[str] = []
        self.made.append(self)

    def load_behind(self) -> None:
        self.asked.append("behind")

    def embed_query(self, text: str) -> list[float]:
        self.asked.append(text)
        return super().embed_query(text)


@pytest.fixture(autouse=True)
def embeddings(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    monkeypatch.setattr(Embeddings, "made", [])
    monkeypatch.setattr(startup, "LocalEmbeddings", Embeddings)
    return Embeddings.made


@pytest.fixture(autouse=True)
def planned(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most tests load models that are not on disk: anything fits."""
    if "really_planned" not in request.fixturenames:
        fitting = Plan("fp16", 64, "cpu", Memory(0, 0, 0, 0), "It fits.")
        monkeypatch.setattr(startup, "plan_for", lambda *_: fitting)


@pytest.fixture
def really_planned() -> None:
    """Asked for by tests of the planning itself."""


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def fetch(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Decides how fetching ends: with a path, or with an error; returns what is asked for, in order."""

    def set_up(model: Path | Exception = Path("m.gguf"), embedder: Path | Exception = Path("e5")) -> list[str]:
        asked: list[str] = []

        def ending(name: str, result: Path | Exception) -> Callable[..., Path]:
            def ensure(data: Path, progress: checkpoints.Progress) -> Path:
                asked.append(name)
                for done in (0, 1, 50, 51, 100, 100, 100):
                    progress(name, done * 1_000_000, 100_000_000)
                if isinstance(result, Exception):
                    raise result
                return result

            return ensure

        monkeypatch.setattr(checkpoints, "ensure_default_model", ending("model", model))
        monkeypatch.setattr(checkpoints, "ensure_embedder", ending("embedder", embedder))
        return asked

    return set_up


def settings(tmp_path: Path, *arguments: str) -> Settings:
    return parse(["--data", str(tmp_path), *arguments], {})


def engine_with(loaded: LoadedModel | Exception) -> Engine:
    def load(path: Path, **options: Any) -> LoadedModel:
        if isinstance(loaded, Exception):
            raise loaded
        return loaded

    return Engine(load)


def test_both_models_are_fetched_loaded_and_warmed(
    tmp_path: Path, fetch: Callable[..., list[str]], embeddings: list[Any], said: list[str]
) -> None:
    asked, engine = fetch(), engine_with(scripted())
    begun = Startup(settings(tmp_path), engine, said.append)
    begun.run()
    assert asked == ["model", "embedder"]
    assert (engine.status.state, engine.status.name) == ("ready", "m")
    assert (embeddings[0].folder, embeddings[0].asked) == (Path("e5"), ["warm"])
    assert begun.embeddings() is embeddings[0] and len(embeddings) == 1
    assert begun.fetching == Fetching()


def test_an_embedder_that_is_there_is_loaded_beside_the_model(
    tmp_path: Path, fetch: Callable[..., list[str]], embeddings: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = fetch()
    monkeypatch.setattr(checkpoints, "has_embedder", lambda data: True)
    Startup(settings(tmp_path), engine_with(scripted()), lambda line: None).run()
    assert asked == ["embedder", "model"] and embeddings[0].asked == ["behind", "warm"]


@pytest.mark.parametrize(
    ("arguments", "there", "loaded"),
    [
        ([], True, ("mine", "int4", "chatml")),
        (["--tier", "int8"], True, ("mine", "int8", "chatml")),
        (["--model", "other.gguf"], True, ("other", "auto", None)),
        ([], False, ("m", "auto", None)),
    ],
)
def test_the_last_model_is_loaded_unless_another_is_asked_for_or_it_has_gone(
    tmp_path: Path,
    fetch: Callable[..., list[str]],
    arguments: list[str],
    there: bool,
    loaded: tuple[str, str, str | None],
) -> None:
    fetch()
    path = tmp_path / "mine"
    if there:
        path.mkdir()
    last = LastModel(name="mine", path=path, tier="int4", chat_format="chatml")
    engine = engine_with(scripted())
    begun = Startup(settings(tmp_path, *arguments), engine, print, last=last)
    begun.run()
    source = engine.source
    assert (source.name, source.asked_tier, source.chat_format) == loaded


def test_progress_is_said_at_each_tenth_and_once(
    tmp_path: Path, fetch: Callable[..., list[str]], said: list[str]
) -> None:
    fetch()
    Startup(settings(tmp_path), engine_with(scripted()), said.append).run()
    assert [line for line in said if "Fetching model" in line] == [
        "Fetching model: 0 of 100 MB",
        "Fetching model: 50 of 100 MB",
        "Fetching model: 100 of 100 MB",
    ]
    assert "m is ready." in said


def test_the_page_sees_how_much_has_arrived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    begun = Startup(settings(tmp_path), engine_with(scripted()), lambda line: None)

    def ensure(data: Path, progress: checkpoints.Progress) -> Path:
        progress("model", 30, 100)
        seen.append(begun.fetching)
        return Path("m.gguf")

    monkeypatch.setattr(checkpoints, "ensure_default_model", ensure)
    monkeypatch.setattr(checkpoints, "ensure_embedder", lambda data, progress: Path("e5"))
    begun.run()
    assert seen == [Fetching("model", 30, 100)] and begun.fetching == Fetching()


def test_without_network_one_sentence_is_said_and_shown(
    tmp_path: Path, fetch: Callable[..., list[str]], said: list[str]
) -> None:
    asked, engine = fetch(model=NO_MODEL, embedder=NO_EMBEDDER), engine_with(scripted())
    begun = Startup(settings(tmp_path), engine, said.append)
    begun.run()
    assert asked == ["model"]  # the same index would not answer for the other one
    assert [line for line in said if "Fetching" not in line] == [str(NO_MODEL)]
    assert begun.fetching == Fetching(failure=str(NO_MODEL))
    assert engine.status.state == "empty"


def test_what_could_not_be_fetched_is_tried_again(tmp_path: Path, fetch: Callable[..., list[str]]) -> None:
    fetch(model=NO_MODEL)
    engine = engine_with(scripted())
    begun = Startup(settings(tmp_path), engine, lambda line: None)
    begun.start()
    eventually(lambda: begun.fetching.failure)
    fetch()
    begun.again()
    eventually(lambda: engine.status.state == "ready" and begun.fetching == Fetching())
    loaded = engine.source
    eventually(lambda: begun.again() or len(begun.embeddings().asked) > 1)  # while it works, it does not begin again
    assert engine.source is loaded
    begun.stop(20)
    before = list(begun.embeddings().asked)
    begun.again()
    assert begun.embeddings().asked == before


def test_an_embedder_that_is_missing_does_not_stop_the_chat(
    tmp_path: Path, fetch: Callable[..., list[str]], said: list[str]
) -> None:
    fetch(embedder=NO_EMBEDDER)
    engine = engine_with(scripted())
    begun = Startup(settings(tmp_path), engine, said.append)
    begun.run()
    assert engine.status.state == "ready"
    assert begun.fetching == Fetching(failure=str(NO_EMBEDDER)) and str(NO_EMBEDDER) in said
    with pytest.raises(FetchError, match="e5"):
        begun.embeddings()
    assert begun.fetching == Fetching(failure=str(NO_EMBEDDER))
    fetch()
    assert begun.embeddings().folder == Path("e5")  # as soon as there is a network
    assert begun.fetching == Fetching()


def test_an_embedder_that_can_not_be_read_is_said(
    tmp_path: Path, fetch: Callable[..., list[str]], said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Embeddings, text: str) -> None:
        raise OSError("model.safetensors is damaged")

    fetch()
    monkeypatch.setattr(Embeddings, "embed_query", broken)
    begun = Startup(settings(tmp_path), engine_with(scripted()), said.append)
    begun.run()
    assert begun.fetching.failure == "model.safetensors is damaged" and begun.fetching.failure in said


def test_the_model_asked_for_is_loaded_instead_of_the_default(
    tmp_path: Path, fetch: Callable[..., list[str]], said: list[str]
) -> None:
    asked, engine = fetch(), engine_with(scripted())
    Startup(settings(tmp_path, "--model", str(tmp_path / "模型")), engine, said.append).run()
    assert asked == ["embedder"] and engine.status.name == "模型"


def test_a_model_that_does_not_load_is_said_and_documents_still_work(
    tmp_path: Path, fetch: Callable[..., list[str]], embeddings: list[Any], said: list[str]
) -> None:
    fetch()
    engine = engine_with(CheckpointError("config.json is missing in /x."))
    Startup(settings(tmp_path, "--model", "/x"), engine, said.append).run()
    assert "x could not be loaded: config.json is missing in /x." in said
    assert engine.status.state == "failed" and embeddings[0].asked == ["warm"]


@pytest.mark.usefixtures("really_planned")
def test_a_source_follows_machine_and_settings(tmp_path: Path) -> None:
    save_folder(tmp_path / "small", LLAMA, byte_level_tokenizer())
    roomy = Machine.assume("cpu:16GB")

    def chosen(*arguments: str, tier: str | None = None) -> Source:
        return Startup(settings(tmp_path, *arguments), Engine(), detect=lambda: roomy).source(
            tmp_path / "small", "small", tier
        )

    source = chosen("--context", "128")
    assert (source.name, source.tier, source.context, source.device) == ("small", "fp32", 128, "cpu")
    assert source.store == tmp_path / "quantized" and "FP32" in source.reason
    assert 7e9 < source.warm < 8.1e9  # half of what is left, for caches of earlier prompts
    assert chosen("--tier", "int8").tier == "int8"
    assert chosen("--tier", "int8", tier="int4").tier == "int4"  # the page's choice


@pytest.mark.usefixtures("really_planned")
def test_what_does_not_fit_is_a_sentence(tmp_path: Path) -> None:
    save_folder(tmp_path / "small", LLAMA, byte_level_tokenizer())
    full = Machine.assume("cpu:0.5GB")
    with pytest.raises(EngineError, match="small could not be loaded: .* needs .* GiB"):
        Startup(settings(tmp_path), Engine(), detect=lambda: full).source(tmp_path / "small", "small")


@pytest.mark.usefixtures("really_planned")
def test_the_loaded_model_s_memory_counts_as_free(tmp_path: Path) -> None:
    save_folder(tmp_path / "small", LLAMA, byte_level_tokenizer())
    engine = Engine()
    machine = Machine.assume("cpu:2GB")
    startup = Startup(settings(tmp_path), engine, detect=lambda: machine)
    engine.load(startup.source(tmp_path / "small", "small"))
    assert startup.machine().ram_free == machine.ram_free + engine.nbytes > machine.ram_free


@pytest.mark.usefixtures("really_planned")
@pytest.mark.parametrize("pasted", ["a whole text pasted by mistake " * 200, "nowhere"])
def test_what_is_no_checkpoint_is_a_sentence(tmp_path: Path, pasted: str) -> None:
    with pytest.raises(EngineError, match="x could not be loaded: "):
        Startup(settings(tmp_path), Engine()).source(Path(pasted), "x")


def test_stopping_ends_a_fetch_and_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    gate, ended = Gate(), threading.Event()

    def ensure(data: Path, progress: checkpoints.Progress) -> Path:
        try:
            gate()
            progress("model", 0, 100)
        finally:
            ended.set()
        raise AssertionError("it went on")

    monkeypatch.setattr(checkpoints, "ensure_default_model", ensure)
    begun = Startup(settings(tmp_path), Engine(), said.append)
    begun.start()
    gate.reached.wait(20)
    begun.stop(0)
    gate.open()
    begun.stop(20)
    assert ended.is_set() and said == []


def test_stopping_before_starting_is_possible(tmp_path: Path) -> None:
    begun = Startup(settings(tmp_path), Engine())
    begun.stop(0)
    assert begun.fetching == Fetching()


def test_what_was_unloaded_is_planned_anew_for_the_next_reply(tmp_path: Path) -> None:
    engine = engine_with(scripted())
    begun = Startup(settings(tmp_path), engine)
    begun.unload()
    assert engine.status.state == "empty"
    engine.load(begun.source(tmp_path / "m", "m", "int8"))
    engine.use_chat_format("plain")
    begun.unload()
    assert (engine.status.state, engine.waiting.asked_tier, engine.source) == ("unloaded", "int8", None)
    assert [type(event).__name__ for event in engine.wake(threading.Event())] == ["Loading"]
    assert (engine.status.state, engine.source.asked_tier, engine.chat_format) == ("ready", "int8", "plain")
    assert engine.source.plan is not None
