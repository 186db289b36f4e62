"""``providers list|show|validate``: no server needed."""

from __future__ import annotations

from pathlib import Path

import pytest

from providers.registry import CATALOG
from tests.cli.conftest import Shell


@pytest.fixture
def offline(tmp_path: Path) -> Shell:
    """A shell in which no server is named and no key is configured."""
    home = tmp_path / "home"
    home.mkdir()
    return Shell({"TOKENFLEET_HOME": str(home), "TOKENFLEET_DATABASE_URL": "", "TOKENFLEET_REDIS_URL": ""})


def test_the_catalogue_is_listed_without_any_server(offline: Shell) -> None:
    listed = offline("providers", "list", "--json")
    assert listed.exit_code == 0
    names = [provider["name"] for provider in listed.document]
    assert names == sorted(names)
    plain = offline("providers", "list")
    assert all(name in plain.stdout for name in names)


def test_show_explains_a_definition_and_prints_it_whole_as_json(offline: Shell) -> None:
    name = offline("providers", "list", "--json").document[0]["name"]
    explained = offline("providers", "show", name)
    assert explained.exit_code == 0
    assert "Rotation:" in explained.stdout
    assert offline("providers", "show", name, "--json").document["name"] == name


def test_an_unknown_provider_is_refused_with_close_matches(offline: Shell) -> None:
    name = offline("providers", "list", "--json").document[0]["name"]
    ran = offline("providers", "show", name[:-1])
    assert ran.exit_code == 1
    assert f"did you mean {name}" in ran.stderr


def test_the_catalogue_has_no_mistakes(offline: Shell) -> None:
    ran = offline("providers", "validate")
    assert ran.exit_code == 0
    assert "No mistakes" in ran.stdout


def test_every_mistake_is_told_with_file_line_key_and_reason(offline: Shell, tmp_path: Path) -> None:
    good = min(CATALOG.glob("*.toml")).read_text()
    bad = tmp_path / "bad.toml"
    bad.write_text(good.replace("[rotation]", "[rotaton]"))
    ran = offline("providers", "validate", str(bad))
    assert ran.exit_code == 1
    assert "rotaton is not a known key" in ran.stderr
    assert f"{bad}:" in ran.stderr
    document = offline("providers", "validate", "--json", str(bad)).document
    assert document["valid"] is False
    [line] = [problem["line"] for problem in document["problems"] if problem["key"] == "rotaton"]
    assert bad.read_text().splitlines()[line - 1] == "[rotaton]"


def test_a_definition_of_the_operators_is_known_by_name(offline: Shell, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    good = min(CATALOG.glob("*.toml"))
    text = good.read_text().replace(f'name = "{good.stem}"', 'name = "acme_sso"', 1)
    (own / "acme.toml").write_text(text)
    shown = offline("providers", "show", "acme_sso", TOKENFLEET_PROVIDERS_DIR=str(own))
    assert shown.exit_code == 0, shown.stderr
    assert "acme_sso" in shown.stdout
