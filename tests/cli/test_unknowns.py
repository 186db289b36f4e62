"""``providers unknowns``: from an answer that nobody has described to the rule that does."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import Engine

from store import unknowns
from store.unknowns import UnknownAnswer
from tests.cli.conftest import Shell
from tests.providers.definitions import toml
from tokenfleet.jobs import AccountId

SEEN = [
    UnknownAnswer("example", "consent_needed", "400 {error:word,hint:text}", AccountId(7)),
    UnknownAnswer("example", "consent_needed", "400 {error:word,hint:text}", AccountId(9)),
    UnknownAnswer("example", "http_200", "200 {refresh_token:text}", AccountId(7)),
    UnknownAnswer("gone", "http_400", "400 {}", AccountId(8)),
]


@pytest.fixture
def shell(tokenfleet: Shell, engine: Engine, tmp_path: Path) -> Shell:
    """A shell whose fleet has a definition of its own, and has met answers that it does not describe."""
    folder = tmp_path / "definitions"
    folder.mkdir()
    (folder / "example.toml").write_text(toml())
    with engine.begin() as connection:
        unknowns.record(connection, SEEN)
    return Shell(tokenfleet.environ | {"TOKENFLEET_PROVIDERS_DIR": str(folder)})


def test_a_suggested_rule_goes_into_the_definition_and_describes_the_answer(
    shell: Shell, tmp_path: Path
) -> None:
    ran = shell("providers", "unknowns", "example", "--json")
    assert ran.exit_code == 0
    [tokens, consent] = sorted(ran.document, key=lambda each: each["times"])
    assert (consent["times"], consent["account_id"], consent["described_by"]) == (2, 9, None)
    assert (tokens["suggested_rule"], "tokens" in tokens["note"]) == (None, True)
    plain = shell("providers", "unknowns", "example").stdout
    assert '    value = "consent_needed"\n' in plain
    definition = tmp_path / "definitions" / "example.toml"
    definition.write_text(toml(consent["suggested_rule"].replace("undescribed", "grant_rejected")))
    assert shell("providers", "validate", str(definition)).exit_code == 0
    [_, consent] = sorted(
        shell("providers", "unknowns", "example", "--json").document, key=lambda each: each["times"]
    )
    assert consent["described_by"] == "errors[1]"
    assert "describes it by now: errors[1]" in shell("providers", "unknowns").stdout


def test_what_is_known_of_a_definition_that_is_gone_is_shown_and_a_wrong_name_is_refused(
    shell: Shell,
) -> None:
    assert {each["provider"] for each in shell("providers", "unknowns", "--json").document} == {
        "example",
        "gone",
    }
    assert "no definition of that name any more" in shell("providers", "unknowns", "gone").stdout
    assert "that a rule describes" in shell("providers", "unknowns", "oidc").stdout
    ran = shell("providers", "unknowns", "exampel")
    assert (ran.exit_code, ran.stdout) == (1, "")
    assert "did you mean example" in ran.stderr
