"""``incidents list|show|resolve``: what is wrong, what can be done, and one word on it that counts."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import Engine

from store import holds
from store.keys import Vault
from tests.cli.conftest import Shell
from tests.support.builders import column, make_account, make_app
from tests.support.incidents import RESOLVED, provoke, statuses, take_samples, told
from tokenfleet.jobs import AppId


@pytest.fixture
def app_id(engine: Engine, vault: Vault) -> AppId:
    return make_app(engine, vault, name="default")


@pytest.fixture
def incident(engine: Engine, vault: Vault, app_id: AppId) -> str:
    """The id of an open incident that has 21 accounts."""
    return str(provoke(engine, [make_account(engine, vault, app_id) for _ in range(21)]))


def test_without_an_incident_the_list_says_so(tokenfleet: Shell, engine: Engine) -> None:
    assert tokenfleet("incidents", "list").stdout == "No incident is open.\n"
    assert tokenfleet("incidents", "list", "--json").document == []


def test_an_incident_is_listed_and_shown_with_whom_it_has_and_what_to_do(
    tokenfleet: Shell, incident: str
) -> None:
    listed = tokenfleet("incidents", "list")
    assert "acme/production/default" in listed.stdout
    assert "mass_rejection" in listed.stdout
    shown = tokenfleet("incidents", "show", incident)
    assert "21 accounts, status unchanged" in shown.stdout
    assert f"tokenfleet incidents resolve {incident} --dismiss" in shown.stdout
    assert f"tokenfleet incidents resolve {incident} --confirm" in shown.stdout
    document = tokenfleet("incidents", "show", incident, "--json").document
    assert (document["state"], document["parked"], document["flipped"]) == ("open", 21, 0)
    assert tokenfleet("incidents", "list", "--json").document == [document]


@pytest.mark.parametrize(
    ("verdict", "resolution", "status"),
    [("--dismiss", "dismissed", "active"), ("--confirm", "confirmed", "needs_reauth")],
)
def test_an_operators_word_counts_once(
    tokenfleet: Shell,
    engine: Engine,
    app_id: AppId,
    incident: str,
    verdict: str,
    resolution: str,
    status: str,
) -> None:
    ran = tokenfleet("incidents", "resolve", incident, verdict, "--reason", "ticket 17")
    assert ran.exit_code == 0
    assert "21 accounts" in ran.stdout
    before = told(engine)
    for other in ("--dismiss", "--confirm"):
        again = tokenfleet("incidents", "resolve", incident, other)
        assert again.exit_code == 1
        [line] = again.stderr.splitlines()
        assert "was resolved at" in line
        assert f"as {resolution} by" in line
        assert "nothing has changed" in line
    assert told(engine) == before
    assert before[RESOLVED] == 1
    take_samples(engine)
    assert statuses(engine, app_id) == {status: 21}
    assert tokenfleet("incidents", "list", "--json").document == []
    [document] = tokenfleet("incidents", "list", "--all", "--json").document
    assert (document["resolution"], document["reason"], document["parked"]) == (resolution, "ticket 17", 0)
    assert "nobody is set apart" in tokenfleet("incidents", "show", incident).stdout


def test_a_word_that_is_none_is_refused_in_a_sentence(tokenfleet: Shell, incident: str) -> None:
    for words, code, sentence in (
        (("resolve", incident), 2, "--dismiss"),
        (("resolve", "x", "--dismiss"), 2, "not a valid integer"),
        (("resolve", "99", "--dismiss"), 1, "there is no incident 99"),
        (("show", "99"), 1, "incidents list --all"),
        (("show", "99999999999999999999"), 1, "there is no incident"),
    ):
        ran = tokenfleet("incidents", *words)
        assert ran.exit_code == code
        assert sentence in ran.stderr
        assert "Traceback" not in ran.stderr


def test_a_refused_client_cannot_be_confirmed_and_can_be_dismissed(
    tokenfleet: Shell, engine: Engine, app_id: AppId
) -> None:
    with engine.begin() as connection:
        holds.client_rejected(connection, app_id, "invalid_client", generation=1, probe_after=timedelta(0))
    [number] = column(engine, "SELECT id FROM tokenfleet.provider_incidents")
    confirmed = tokenfleet("incidents", "resolve", str(number), "--confirm")
    assert confirmed.exit_code == 1
    assert "tokenfleet apps set acme" in confirmed.stderr
    assert tokenfleet("incidents", "show", str(number), "--json").document["state"] == "open"
    assert "tokenfleet apps set acme" in tokenfleet("incidents", "show", str(number)).stdout
    assert tokenfleet("incidents", "resolve", str(number), "--dismiss").exit_code == 0
    assert column(engine, "SELECT held_since FROM tokenfleet.oauth_apps") == [None]
