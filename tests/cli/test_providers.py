"""``providers list|show|validate``: no server needed."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from providers.registry import CATALOG
from tests.cli.conftest import Shell


@pytest.fixture
def offline(tmp_path: Path) -> Shell:
    """A shell in which no server is named and no key is configured."""
    home = tmp_path / "home"
    home.mkdir()
    return Shell({"TOKENFLEET_HOME": str(home), "TOKENFLEET_DATABASE_URL": "", "TOKENFLEET_REDIS_URL": ""})


def listed(shell: Shell, *words: str) -> Any:
    """The document that ``providers list --json`` prints."""
    ran = shell("providers", "list", "--json", *words)
    assert ran.exit_code == 0, ran.stderr
    return ran.document


def test_the_catalogue_is_listed_and_counted_without_any_server(offline: Shell) -> None:
    document = listed(offline)
    found, counts = document["providers"], document["counts"]
    names = [provider["name"] for provider in found]
    assert names == sorted(names)
    assert counts["total"] == len(names) == len(list(CATALOG.glob("*.toml")))
    for key in ("grant", "rotation", "client_authentication", "confidence", "category"):
        assert counts[key] == Counter(provider[key] for provider in found)
    plain = offline("providers", "list")
    assert all(name in plain.stdout for name in names)
    assert f"{len(names)} providers: " in plain.stdout


def test_the_list_fits_a_terminal_of_120_columns(offline: Shell) -> None:
    table = offline("providers", "list").stdout.partition("\n\n")[0].splitlines()
    assert "grant" in table[0]
    assert max(map(len, table)) <= 120


def test_the_list_is_narrowed_by_grant_category_confidence_and_a_word(offline: Shell) -> None:
    everyone = listed(offline)["providers"]
    for words, wanted in (
        (("--grant", "refresh_token"), {"grant": "refresh_token"}),
        (("--category", "crm", "--confidence", "high"), {"category": "crm", "confidence": "high"}),
    ):
        document = listed(offline, *words)
        assert document["providers"] == [one for one in everyone if wanted.items() <= one.items()]
        assert 0 < document["counts"]["total"] < len(everyone) or "--grant" in words
    found = {one["name"] for one in listed(offline, "entra id")["providers"]}
    assert "microsoft" in found
    assert "google" not in found
    assert "No provider is like that" in offline("providers", "list", "no_such_word").stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [(("--grant", "magic"), "'magic' is not one of"), (("--category", "magic"), "'magic' is none of ")],
)
def test_a_filter_that_nothing_can_fit_is_refused_with_what_there_is(
    offline: Shell, words: tuple[str, ...], told: str
) -> None:
    ran = offline("providers", "list", *words)
    assert ran.exit_code == 2
    assert told in ran.stderr


def test_show_explains_a_definition_and_prints_it_whole_as_json(offline: Shell) -> None:
    name = min(CATALOG.glob("*.toml")).stem
    explained = offline("providers", "show", name)
    assert explained.exit_code == 0
    assert "What it needs\n  Import line: provider, external_id" in explained.stdout
    assert "  Rotation: " in explained.stdout
    assert offline("providers", "show", name, "--json").document["name"] == name


def test_show_explains_a_file_and_tells_its_mistakes(offline: Shell, tmp_path: Path) -> None:
    text = min(CATALOG.glob("*.toml")).read_text()
    file = tmp_path / "acme.toml"
    file.write_text(re.sub(r'^name = ".*"', 'name = "acme"', text))
    explained = offline("providers", "show", str(file))
    assert explained.exit_code == 0, explained.stderr
    assert "(acme)" in explained.stdout
    assert f"Defined in {file}" in explained.stdout
    file.write_text(text.replace("[rotation]", "[rotaton]"))
    ran = offline("providers", "show", str(file))
    assert ran.exit_code == 1
    assert "rotaton is not a known key" in ran.stderr
    assert offline("providers", "show", str(tmp_path / "missing.toml")).exit_code == 1


def test_an_unknown_provider_is_refused_with_close_matches(offline: Shell) -> None:
    name = min(CATALOG.glob("*.toml")).stem
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
