"""A refused registration: the next secret, or one hold with one incident, told once each."""

from __future__ import annotations

from datetime import timedelta
from functools import partial

import pytest
from sqlalchemy import Engine

from store import app_secrets, apps, holds
from store.app_secrets import MAX_SPARES
from store.apps import App, secret_binding
from store.holds import Effect
from store.incidents import Resolution
from store.keys import Vault
from tests.support.builders import ACTOR, column, make_account, make_app, now
from tests.support.incidents import OPENED, RESOLVED, resolve, told
from tests.support.racing import in_background, race, wait_until_blocked
from tokenfleet.jobs import AppId
from tokenfleet_client.secret import Secret

AFTER = timedelta(seconds=30)


@pytest.fixture
def app_id(engine: Engine, vault: Vault) -> AppId:
    return make_app(engine, vault, name="default", client_secret="secret-a")


def load(engine: Engine, app_id: AppId) -> App:
    with engine.connect() as connection:
        app = apps.load(connection, app_id)
    assert app is not None
    return app


def put(engine: Engine, vault: Vault, secret: str, *, keep_previous: bool = True) -> App:
    with engine.begin() as connection:
        return apps.register(
            connection,
            vault.refresh,
            provider="acme",
            environment="production",
            name="default",
            client_id="client-1",
            client_secret=Secret(secret),
            variables={},
            keep_previous=keep_previous,
        )


def in_use(engine: Engine, vault: Vault, app_id: AppId) -> str:
    app = load(engine, app_id)
    assert app.client_secret is not None
    return vault.refresh.open(app.client_secret, secret_binding(app_id, app.secret_generation))


def refuse(engine: Engine, app_id: AppId, generation: int | None = None) -> Effect:
    generation = load(engine, app_id).generation if generation is None else generation
    with engine.begin() as connection:
        return holds.client_rejected(
            connection, app_id, "invalid_client", generation=generation, probe_after=AFTER
        )


def recover(engine: Engine, app_id: AppId, generation: int | None = None) -> bool:
    generation = load(engine, app_id).generation if generation is None else generation
    with engine.begin() as connection:
        ended, _ = holds.recovered(connection, app_id, generation=generation, actor=ACTOR)
    return ended


def spares(engine: Engine, app_id: AppId) -> list[bool]:
    """Return of each spare secret, in order, whether it was refused."""
    with engine.connect() as connection:
        return [each.refused_at is not None for each in app_secrets.spares(connection, app_id)]


def test_a_refused_registration_is_one_hold_and_one_incident_however_many_report_it(
    engine: Engine, app_id: AppId
) -> None:
    effects = race([partial(refuse, engine, app_id, 1)] * 6)
    assert sorted(each.name for each in effects) == ["HELD"] + ["STILL_HELD"] * 5
    assert told(engine) == {OPENED: 1}
    [payload] = column(engine, "SELECT payload FROM tokenfleet.outbox")
    assert (payload["kind"], payload["code"], payload["app"]) == (
        "client_rejected",
        "invalid_client",
        "default",
    )
    assert recover(engine, app_id)
    assert not recover(engine, app_id)
    assert told(engine) == {OPENED: 1, RESOLVED: 1}
    assert column(engine, "SELECT resolution FROM tokenfleet.provider_incidents") == ["recovered"]
    assert load(engine, app_id).held_since is None


def test_what_is_said_of_replaced_credentials_holds_nothing(
    engine: Engine, vault: Vault, app_id: AppId
) -> None:
    put(engine, vault, "secret-b", keep_previous=False)
    assert refuse(engine, app_id, 1) is Effect.NOTHING
    assert load(engine, app_id).held_since is None
    assert told(engine) == {}


def test_an_operator_who_dismisses_the_incident_ends_the_hold(engine: Engine, app_id: AppId) -> None:
    refuse(engine, app_id)
    [incident_id] = column(engine, "SELECT id FROM tokenfleet.provider_incidents")
    assert resolve(engine, incident_id, Resolution.DISMISSED) is not None
    assert load(engine, app_id).held_since is None
    assert refuse(engine, app_id) is Effect.HELD
    assert told(engine) == {OPENED: 2, RESOLVED: 1}


def test_the_next_secret_takes_the_place_of_a_refused_one_once_for_all_who_met_it(
    engine: Engine, vault: Vault, app_id: AppId
) -> None:
    app = put(engine, vault, "secret-b")
    assert (in_use(engine, vault, app_id), spares(engine, app_id)) == ("secret-b", [False])
    effects = race([partial(refuse, engine, app_id, app.generation)] * 4)
    assert sorted(each.name for each in effects) == ["NOTHING"] * 3 + ["REPLACED"]
    assert (in_use(engine, vault, app_id), spares(engine, app_id)) == ("secret-a", [True])
    assert load(engine, app_id).held_since is None
    assert told(engine) == {}


def test_when_every_secret_was_refused_probes_try_them_in_turn(
    engine: Engine, vault: Vault, app_id: AppId
) -> None:
    put(engine, vault, "secret-b")
    put(engine, vault, "secret-c")
    tried = []
    effects = []
    for _ in range(6):
        tried.append(in_use(engine, vault, app_id))
        effects.append(refuse(engine, app_id))
    assert tried == ["secret-c", "secret-b", "secret-a"] * 2
    assert effects == [Effect.REPLACED] * 2 + [Effect.HELD] + [Effect.STILL_HELD] * 3
    assert spares(engine, app_id) == [True, True]
    assert told(engine) == {OPENED: 1}
    assert recover(engine, app_id)
    assert in_use(engine, vault, app_id) == "secret-c"


def test_with_several_secrets_the_first_probe_of_a_hold_is_at_once(
    engine: Engine, vault: Vault, app_id: AppId
) -> None:
    put(engine, vault, "secret-b")
    refuse(engine, app_id)
    refuse(engine, app_id)
    probe_at = load(engine, app_id).probe_at
    assert probe_at is not None
    assert probe_at <= now()
    refuse(engine, app_id)
    later = load(engine, app_id).probe_at
    assert later is not None
    assert later > now() + AFTER / 2


def test_a_new_secret_without_keeping_forgets_the_others(engine: Engine, vault: Vault, app_id: AppId) -> None:
    put(engine, vault, "secret-b")
    put(engine, vault, "secret-c", keep_previous=False)
    assert spares(engine, app_id) == []
    assert refuse(engine, app_id) is Effect.HELD


def test_no_more_than_a_few_secrets_are_kept(engine: Engine, vault: Vault, app_id: AppId) -> None:
    for number in range(MAX_SPARES + 2):
        put(engine, vault, f"secret-{number}")
    assert len(spares(engine, app_id)) == MAX_SPARES


def test_mended_credentials_make_those_due_who_met_the_refused_ones(
    engine: Engine, vault: Vault, app_id: AppId
) -> None:
    refused = make_account(engine, vault, app_id)
    failing = make_account(engine, vault, app_id)
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE tokenfleet.refresh_schedule SET next_refresh_at = now() + interval '5 min', "
            f"last_error = CASE account_id WHEN {refused} THEN 'invalid_client' ELSE 'http_503' END"
        )
    refuse(engine, app_id)
    put(engine, vault, "secret-b")
    due = column(engine, "SELECT account_id FROM tokenfleet.refresh_schedule WHERE next_refresh_at <= now()")
    assert due == [refused]
    assert failing != refused


def test_a_leaked_secret_is_forgotten_even_if_a_worker_replaces_it_at_that_moment(
    engine: Engine, vault: Vault, app_id: AppId
) -> None:
    app = put(engine, vault, "secret-b")
    with engine.connect() as connection:
        transaction = connection.begin()
        effect = holds.client_rejected(
            connection, app_id, "invalid_client", generation=app.generation, probe_after=AFTER
        )
        assert effect is Effect.REPLACED
        putting = in_background(partial(put, engine, vault, "secret-c", keep_previous=False))
        wait_until_blocked(engine)
        transaction.commit()
    putting.result(10)
    assert (in_use(engine, vault, app_id), spares(engine, app_id)) == ("secret-c", [])


def test_a_success_with_replaced_credentials_ends_no_hold(
    engine: Engine, vault: Vault, app_id: AppId
) -> None:
    """An operator installs other ones while the probe is out: they are probed before everybody is asked with them."""
    refuse(engine, app_id)
    app = put(engine, vault, "secret-b")
    assert not recover(engine, app_id, app.generation - 1)
    assert load(engine, app_id).held_since is not None
    assert recover(engine, app_id)


def test_a_hold_that_the_release_before_began_has_an_incident_when_its_probe_is_refused(
    engine: Engine, app_id: AppId
) -> None:
    with engine.begin() as connection:
        apps.hold(connection, app_id, "invalid_client", generation=1, probe_after=AFTER)
    assert [refuse(engine, app_id) for _ in range(2)] == [Effect.STILL_HELD] * 2
    assert told(engine) == {OPENED: 1}
