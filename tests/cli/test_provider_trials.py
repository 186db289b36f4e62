"""``providers test``: definitions against the conformance kit, no server needed."""

from __future__ import annotations

from pathlib import Path

import pytest

from conformance.scenarios import SCENARIOS
from tests.cli.conftest import Shell
from tests.providers.definitions import toml


@pytest.fixture
def offline(tmp_path: Path) -> Shell:
    """A shell in which no server is named and no key is configured."""
    home = tmp_path / "home"
    home.mkdir()
    return Shell({"TOKENFLEET_HOME": str(home), "TOKENFLEET_DATABASE_URL": "", "TOKENFLEET_REDIS_URL": ""})


def test_a_sound_definition_passes_and_each_scenario_is_shown(offline: Shell, tmp_path: Path) -> None:
    (tmp_path / "acme.toml").write_text(toml())

    ran = offline("providers", "test", str(tmp_path / "acme.toml"))

    assert ran.exit_code == 0, ran.stderr
    assert all(scenario.name in ran.stdout for scenario in SCENARIOS)
    assert "0 failed" in ran.stdout


def test_what_fails_is_told_with_file_line_and_key(offline: Shell, tmp_path: Path) -> None:
    rule = '[[errors]]\noutcome = "grant_rejected"\nstatus = 200\npath = "access_token"\nvalue = "revoked"\n'
    file = tmp_path / "acme.toml"
    file.write_text(toml(rule))

    ran = offline("providers", "test", str(file), "--json")

    assert ran.exit_code == 1
    [definition] = ran.document["definitions"]
    assert (ran.document["passed"], definition["passed"], definition["file"]) == (False, False, str(file))
    failed = {each["scenario"]: each for each in definition["results"] if each["verdict"] == "failed"}
    line = file.read_text().splitlines().index("[[errors]]") + 1
    assert (failed["error_rules"]["key"], failed["error_rules"]["line"]) == ("errors[1]", line)
    shown = offline("providers", "test", str(file))
    assert shown.exit_code == 1
    assert f"line {line}: errors[1]" in shown.stdout


def test_a_provider_is_tested_by_its_name_and_a_directory_whole(offline: Shell, tmp_path: Path) -> None:
    (tmp_path / "acme.toml").write_text(toml())

    ran = offline("providers", "test", "oidc", str(tmp_path), "--json")

    assert ran.exit_code == 0, ran.stderr
    assert [each["name"] for each in ran.document["definitions"]] == ["oidc", "example"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), "give --all"),
        (("nosuch",), "there is no provider 'nosuch'"),
        (("nosuch.toml",), "cannot be read"),
        (("empty",), "holds no .toml file"),
        (("broken.toml",), "is not TOML"),
    ],
)
def test_what_cannot_be_tested_is_bad_input(
    offline: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.toml").write_text("name = \n")

    ran = offline("providers", "test", *words)

    assert ran.exit_code == 2
    assert sentence in ran.stderr
    assert "Traceback" not in ran.stderr
