"""The catalogue as a whole: what every definition of a kind has to say, so that nobody is lost or bothered in error."""

from __future__ import annotations

import tomllib
from datetime import timedelta
from pathlib import Path

from providers.registry import CATALOG
from providers.spec import ProviderSpec

CATALOGUE = {
    file.stem: ProviderSpec.model_validate(tomllib.loads(file.read_text("utf-8")))
    for file in sorted(CATALOG.glob("*.toml"))
}
LEFT_OUT = Path(__file__).parents[2] / "docs" / "providers-left-out.md"
KEPT = {name: spec for name, spec in CATALOGUE.items() if spec.refresh.grant == "none"}


def test_a_token_that_is_never_renewed_is_probed_for_nothing_else_would_find_it_dead() -> None:
    assert KEPT
    blind = [
        name
        for name, spec in KEPT.items()
        if spec.probe is None or not (spec.probe.dead_status or spec.probe.dead_when)
    ]
    assert blind == []


def test_no_status_that_a_firewall_sends_ends_a_token_that_is_never_renewed() -> None:
    """A 403 or a 404 is anybody's; where one is about the token, a word of the body has to say so."""
    rash = [name for name, spec in KEPT.items() if spec.probe and not set(spec.probe.dead_status) <= {401}]
    assert rash == []


def test_a_probe_that_finds_death_in_a_good_status_also_says_what_life_looks_like_there() -> None:
    """Else an error that nobody has described would pass for a token that works."""
    unsaid = [
        name
        for name, spec in CATALOGUE.items()
        if (probe := spec.probe)
        and not probe.alive_when
        and any(set(probe.alive_status) & set(rule.status) for rule in probe.dead_when)
    ]
    assert unsaid == []


def test_a_token_that_renews_itself_is_renewed_days_before_its_end() -> None:
    """Nothing revives it afterwards, so the time for an outage is what the definition leaves."""
    themselves = {n: spec.lifetimes for n, spec in CATALOGUE.items() if spec.refresh.grant == "access_token"}
    assert themselves
    week = timedelta(days=7).total_seconds()
    late = [name for name, life in themselves.items() if (life.margin_latest_seconds or 0) < week]
    assert late == []


def test_who_has_no_probe_stands_on_the_page_that_says_why() -> None:
    rows = [
        line.split(" | ") for line in LEFT_OUT.read_text("utf-8").splitlines() if " | the probe | " in line
    ]
    explained = {name for row in rows for name in row[0].removeprefix("| ").split(", ")}
    assert explained == {name for name, spec in CATALOGUE.items() if spec.probe is None}


def test_the_two_chains_of_an_installation_are_told_apart() -> None:
    for name in ("slack", "slack_rotating"):
        sets = CATALOGUE[name].connect
        assert {each: (one.at, one.external_id) for each, one in sets.items()} == {
            "bot": (None, "bot_user_id"),
            "user": ("authed_user", "authed_user.id"),
        }


def test_who_keeps_the_replaced_refresh_token_until_the_new_access_token_is_used_is_said() -> None:
    until_used = {name for name, spec in CATALOGUE.items() if spec.rotation.grace_until_first_use}
    assert until_used >= {"gusto", "salesloft", "shopify_expiring", "withings"}
