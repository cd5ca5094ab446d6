"""What a start was asked for: precedence, and one sentence for each thing that can't be."""

from pathlib import Path

import pytest

from chatapp.settings import SettingsError, default_data_folder, parse


def test_defaults() -> None:
    settings = parse([], {})
    assert (settings.host, settings.port, settings.tier, settings.lang) == ("127.0.0.1", 7860, "auto", "auto")
    assert (settings.model, settings.adapter, settings.context, settings.checkpoints) == (None,) * 4
    assert settings.data == default_data_folder()


def test_summaries_are_asked_for_in_either_way() -> None:
    assert not parse([], {"QUATRAIN_SUMMARISE": ""}).summarise
    assert parse(["--summarise"], {}).summarise and parse([], {"QUATRAIN_SUMMARISE": "1"}).summarise


VALUES = {
    "host": ("::1", "localhost"),
    "port": ("8001", "8002"),
    "model": ("/models/a.gguf", "/models/b"),
    "adapter": ("/adapters/a", "/adapters/b"),
    "tier": ("fp16", "auto"),
    "context": ("512", "1024"),
    "data": ("/data/a", "/data/b"),
    "checkpoints": ("/more/a", "/more/b"),
    "lang": ("zh", "en"),
    "warm": ("1.5", "2.5"),
    "reading": ("10.5", "0.0"),
}


@pytest.mark.parametrize("name", VALUES)
def test_an_argument_beats_the_environment_which_beats_the_default(name: str) -> None:
    environment, argument = VALUES[name]
    variables = {f"QUATRAIN_{name.upper()}": environment}
    assert str(getattr(parse([], variables), name)) == str(Path(environment) if "/" in environment else environment)
    chosen = getattr(parse([f"--{name}", argument], variables), name)
    assert str(chosen) == str(Path(argument) if "/" in argument else argument)


@pytest.mark.parametrize("name", VALUES)
def test_an_empty_variable_is_one_that_is_not_set(name: str) -> None:
    assert parse([], {f"QUATRAIN_{name.upper()}": ""}) == parse([], {})


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.com", "", "127.0.0.1.example.com"])
def test_a_host_that_others_could_reach_is_refused(host: str) -> None:
    with pytest.raises(SettingsError, match="network"):
        parse(["--host", host], {})


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_a_host_of_this_machine_is_taken(host: str) -> None:
    assert parse(["--host", host], {}).host == host


@pytest.mark.parametrize(
    "name, value",
    [("port", "0"), ("port", "70000"), ("port", "http"), ("context", "0"), ("context", "63")]
    + [("warm", "-1"), ("warm", "nan"), ("warm", "much")],
)
@pytest.mark.parametrize("given_as", ["argument", "variable"])
def test_a_number_that_can_not_be_is_one_sentence(name: str, value: str, given_as: str) -> None:
    arguments, variables = _given(name, value, given_as)
    with pytest.raises(SettingsError, match=rf"--{name}.*{value}") as caught:
        parse(arguments, variables)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name, value", [("tier", "int3"), ("lang", "fr")])
@pytest.mark.parametrize("given_as", ["argument", "variable"])
def test_a_choice_that_does_not_exist_is_one_sentence(name: str, value: str, given_as: str) -> None:
    arguments, variables = _given(name, value, given_as)
    with pytest.raises(SettingsError, match=rf"--{name}.*{value}.*auto"):
        parse(arguments, variables)


def _given(name: str, value: str, given_as: str) -> tuple[list[str], dict[str, str]]:
    return ([f"--{name}", value], {}) if given_as == "argument" else ([], {f"QUATRAIN_{name.upper()}": value})


def test_an_unknown_argument_is_one_sentence() -> None:
    with pytest.raises(SettingsError, match="--modle"):
        parse(["--modle", "x"], {})


def test_the_home_folder_is_understood_where_no_shell_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("USERPROFILE", "/home/someone")
    settings = parse(["--data=~/kept"], {"QUATRAIN_MODEL": "~/a.gguf"})
    assert (settings.data, settings.model) == (Path("/home/someone/kept"), Path("/home/someone/a.gguf"))


def test_what_may_be_kept_on_disk_is_told_in_gib_and_can_be_nothing() -> None:
    assert parse(["--warm", "0.5"], {}).warm_bytes == 2**29
    assert parse([], {"QUATRAIN_WARM": "0"}).warm_bytes == 0
    assert parse([], {}).warm_bytes == 4 * 2**30


def test_checkpoints_are_looked_for_in_the_data_folder_too() -> None:
    assert parse(["--data", "/d"], {}).checkpoint_folders == (Path("/d/checkpoints"),)
    both = parse(["--data", "/d", "--checkpoints", "/more"], {}).checkpoint_folders
    assert both == (Path("/more"), Path("/d/checkpoints"))


def test_help_names_every_argument(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(["--help"], {})
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert all(f"--{name}" in shown for name in (*VALUES, "plan", "json", "table", "assume"))
