"""Client registrations: held, paused, mended and probed, by one of many at a time."""

from __future__ import annotations

from datetime import timedelta
from functools import partial

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import IntegrityError

from store import apps
from store.apps import App, secret_binding
from store.keys import Vault
from tests.support.builders import claim, make_account, make_app, now, state_of
from tests.support.racing import race
from tokenfleet.jobs import AppId
from tokenfleet_client.contract import AccountStatus
from tokenfleet_client.errors import EnvelopeError
from tokenfleet_client.secret import Secret

MINUTE = timedelta(minutes=1)


@pytest.fixture
def app_id(engine: Engine, vault: Vault) -> AppId:
    return make_app(engine, vault)


def load(engine: Engine, app_id: AppId) -> App:
    with engine.connect() as connection:
        app = apps.load(connection, app_id)
    assert app is not None
    return app


def hold(
    engine: Engine, app_id: AppId, *, generation: int = 1, probe_after: timedelta = timedelta(0)
) -> bool:
    with engine.begin() as connection:
        return apps.hold(connection, app_id, "invalid_client", generation=generation, probe_after=probe_after)


def end_hold(engine: Engine, app_id: AppId) -> bool:
    with engine.begin() as connection:
        return apps.end_hold(connection, app_id)


def take_probes(engine: Engine) -> frozenset[AppId]:
    with engine.begin() as connection:
        return apps.take_probes(connection, spacing=MINUTE)


def mend(engine: Engine, vault: Vault, app: App, *, secret: str = "client-secret-2") -> App:
    with engine.begin() as connection:
        return apps.register(
            connection,
            vault.refresh,
            provider=app.provider,
            environment=app.environment,
            name=app.name,
            client_id="client-2",
            client_secret=Secret(secret),
            variables={"subdomain": "acme"},
        )


# Registering


def test_an_app_is_found_by_its_name_with_its_secret_sealed_for_its_place(
    engine: Engine, vault: Vault
) -> None:
    app_id = make_app(engine, vault, name="crm", client_secret="planted-secret", variables={"region": "eu"})
    with engine.connect() as connection:
        app = apps.find(connection, "acme", "production", "crm")
        assert apps.find(connection, "acme", "sandbox", "crm") is None
        assert apps.load(connection, AppId(app_id + 1)) is None
        assert apps.all_apps(connection) == [app]

    assert app is not None
    assert (app.app_id, app.client_id, app.generation, app.variables) == (
        app_id,
        "client-1",
        1,
        {"region": "eu"},
    )
    assert app.client_secret is not None
    assert b"planted" not in app.client_secret
    assert vault.refresh.open(app.client_secret, secret_binding(app_id, 1)) == "planted-secret"


def test_registering_again_replaces_the_credentials_under_a_new_generation(
    engine: Engine, vault: Vault, app_id: AppId
) -> None:
    old = load(engine, app_id)
    new = mend(engine, vault, old)

    assert (new.app_id, new.client_id, new.generation) == (app_id, "client-2", 2)
    assert new.client_secret is not None
    assert vault.refresh.open(new.client_secret, secret_binding(app_id, 2)) == "client-secret-2"
    assert old.client_secret is not None
    with pytest.raises(EnvelopeError):
        vault.refresh.open(old.client_secret, secret_binding(app_id, 2))


def test_registering_without_a_secret_leaves_none_behind(engine: Engine, vault: Vault) -> None:
    app_id = make_app(engine, vault, name="public", client_secret="client-secret-1")
    assert make_app(engine, vault, name="public", client_secret=None) == app_id

    assert load(engine, app_id).client_secret is None


def test_operators_who_register_at_once_leave_one_whole_registration(engine: Engine, vault: Vault) -> None:
    def register(number: int) -> AppId:
        secret = f"client-secret-{number}"
        return make_app(engine, vault, name="crm", client_id=f"client-{number}", client_secret=secret)

    [app_id] = set(race([partial(register, number) for number in range(8)]))

    app = load(engine, app_id)
    assert app.generation == 8
    assert app.client_secret is not None
    opened = vault.refresh.open(app.client_secret, secret_binding(app_id, 8))
    assert opened.removeprefix("client-secret-") == app.client_id.removeprefix("client-")


def test_an_app_that_accounts_are_tied_to_cannot_be_removed(
    engine: Engine, vault: Vault, app_id: AppId
) -> None:
    make_account(engine, vault, app_id)
    empty = make_app(engine, vault)
    with engine.begin() as connection:
        assert apps.count_accounts(connection, app_id) == 1
        assert apps.count_accounts(connection, empty) == 0
        apps.remove(connection, empty)
        assert apps.load(connection, empty) is None

    with pytest.raises(IntegrityError), engine.begin() as connection:
        apps.remove(connection, app_id)


# Pausing


def test_a_pause_lasts_until_the_latest_moment_anybody_asked_for(
    engine: Engine, vault: Vault, app_id: AppId
) -> None:
    other = make_app(engine, vault)
    soon, later = now() + MINUTE, now() + 2 * MINUTE
    with engine.begin() as connection:
        apps.pause_until(connection, [app_id, app_id, other], [later, soon, soon])
    assert (load(engine, app_id).paused_until, load(engine, other).paused_until) == (later, soon)

    with engine.begin() as connection:
        apps.pause_until(connection, [app_id, other], [soon, later])
    assert (load(engine, app_id).paused_until, load(engine, other).paused_until) == (later, later)


# Holding and probing


def test_of_many_workers_whose_client_is_rejected_one_begins_the_hold(
    engine: Engine, vault: Vault, app_id: AppId
) -> None:
    account_id = make_account(engine, vault, app_id)

    began = race([partial(hold, engine, app_id, probe_after=MINUTE)] * 8)

    app = load(engine, app_id)
    assert sorted(began) == [False] * 7 + [True]
    assert (app.held_since is not None, app.held_code) == (True, "invalid_client")
    assert app.probe_at is not None
    assert app.probe_at > now()
    with engine.connect() as connection:
        statuses = connection.execute(
            text("SELECT status FROM tokenfleet.accounts WHERE id = :id"), {"id": account_id}
        )
        assert statuses.scalar_one() == AccountStatus.ACTIVE


def test_a_later_rejection_keeps_the_beginning_of_the_hold(engine: Engine, app_id: AppId) -> None:
    hold(engine, app_id)
    since = load(engine, app_id).held_since
    hold(engine, app_id)

    assert load(engine, app_id).held_since == since


def test_a_rejection_of_credentials_that_were_replaced_meanwhile_holds_nothing(
    engine: Engine, vault: Vault, app_id: AppId
) -> None:
    mend(engine, vault, load(engine, app_id))

    assert not hold(engine, app_id, generation=1)
    assert load(engine, app_id).held_since is None
    assert hold(engine, app_id, generation=2)


def test_new_credentials_are_probed_at_once_before_everybody_is_asked_with_them(
    engine: Engine, vault: Vault, app_id: AppId
) -> None:
    hold(engine, app_id, probe_after=MINUTE)
    assert take_probes(engine) == frozenset()

    mended = mend(engine, vault, load(engine, app_id))

    assert mended.held_code == "invalid_client"
    assert take_probes(engine) == {app_id}
    assert end_hold(engine, app_id)
    assert load(engine, app_id).probe_at is None


def test_new_credentials_end_a_pause_and_the_quarantine_of_the_apps_accounts(
    engine: Engine, vault: Vault, app_id: AppId
) -> None:
    other = make_app(engine, vault)
    ours, theirs = make_account(engine, vault, app_id), make_account(engine, vault, other)
    with engine.begin() as connection:
        apps.pause_until(connection, [app_id, other], [now() + MINUTE] * 2)
        connection.execute(
            text(
                "UPDATE tokenfleet.refresh_schedule SET quarantined = true, next_refresh_at = now() + interval '6 h'"
            )
        )
    assert load(engine, app_id).is_paused

    mended = mend(engine, vault, load(engine, app_id))

    assert (mended.paused_until, mended.is_paused) == (None, False)
    assert load(engine, other).is_paused
    assert not state_of(engine, vault, ours).quarantined
    assert [each.account_id for each in claim(engine, app_id)] == [ours]
    assert state_of(engine, vault, theirs).quarantined
    assert claim(engine, other) == []


def test_a_hold_and_new_credentials_that_race_never_hold_the_new_credentials(
    engine: Engine, vault: Vault, app_id: AppId
) -> None:
    app = load(engine, app_id)

    race([partial(hold, engine, app_id)] * 4 + [lambda: bool(mend(engine, vault, app))])

    mended = load(engine, app_id)
    assert mended.generation == 2
    # Held by the former ones before, they are probed at once; after them nobody is held.
    assert take_probes(engine) == (set() if mended.held_since is None else {app_id})
    assert not hold(engine, app_id, generation=1)


def test_a_probe_is_due_after_its_wait_and_goes_to_one_of_many_schedulers(
    engine: Engine, vault: Vault, app_id: AppId
) -> None:
    waiting, well = make_app(engine, vault), make_app(engine, vault)
    hold(engine, app_id)
    hold(engine, waiting, probe_after=MINUTE)

    taken = race([partial(take_probes, engine)] * 8)

    assert sorted(taken, key=len) == [frozenset()] * 7 + [{app_id}]
    probe_at = load(engine, app_id).probe_at
    assert probe_at is not None
    assert probe_at > now()
    assert load(engine, well).probe_at is None


def test_a_probe_that_succeeds_ends_the_hold_once(engine: Engine, app_id: AppId) -> None:
    hold(engine, app_id)

    ended = race([partial(end_hold, engine, app_id)] * 4)

    assert sorted(ended) == [False, False, False, True]
    app = load(engine, app_id)
    assert (app.held_since, app.held_code, app.probe_at) == (None, None, None)


def test_a_hold_of_an_app_that_was_removed_is_no_error(engine: Engine, app_id: AppId) -> None:
    with engine.begin() as connection:
        apps.remove(connection, app_id)

    assert not hold(engine, app_id)
    assert not end_hold(engine, app_id)


def test_an_app_shows_no_secret(engine: Engine, vault: Vault) -> None:
    app = load(engine, make_app(engine, vault, client_secret="planted-secret"))

    assert "planted" not in repr(app)
