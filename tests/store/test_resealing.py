"""Everything that is sealed comes under the newest data keys, whoever refreshes or is killed meanwhile."""

from __future__ import annotations

from sqlalchemy import Engine, LargeBinary, text

from store import app_certificates, app_secrets, apps, data_keys, endpoints, keys, settlement
from store.endpoints import secret_binding
from store.keys import Vault
from store.resealing import reseal_batch
from store.sealed_places import SEALED_TABLES, uses
from store.tables import METADATA
from tests.support.builders import (
    ACTOR,
    answer,
    begin_attempt,
    column,
    make_account,
    make_accounts,
    make_app,
    state_of,
)
from tokenfleet.settings import Settings
from tokenfleet_client.envelope import key_id_of
from tokenfleet_client.secret import Secret

TOKEN_SETS = next(table for table in SEALED_TABLES if table.name == "token_sets")
NO_ENVELOPES = {"data_keys.wrapped"}
"""``bytea`` columns that hold something else than a sealed value."""


def new_primaries(engine: Engine, settings: Settings, vault: Vault) -> Vault:
    """Make both rings seal with new data keys from now on; returns a vault that does."""
    for ring in (settings.access_ring, settings.refresh_ring):
        key_id = data_keys.announce(engine, ring)
        with engine.begin() as connection:
            assert data_keys.promote(connection, ring.ring, key_id)
    with engine.begin() as connection:
        return keys.open_vault(connection, settings)


def reseal_all(engine: Engine, vault: Vault, *, limit: int = 2) -> int:
    """Walk every table in small batches; returns how many values were sealed anew."""
    values = 0
    for table in SEALED_TABLES:
        after: tuple[int, ...] | None = None
        while True:
            with engine.begin() as connection:
                batch = reseal_batch(connection, vault, table, after, limit=limit)
            assert batch.unreadable == 0
            values += batch.values
            if (after := batch.after) is None:
                break
    return values


def without_former(vault: Vault) -> Vault:
    """``vault`` with nothing but its primary keys."""
    access, refresh = (
        ring.renewed({}, [ring.primary_id], ring.primary_id) for ring in (vault.access, vault.refresh)
    )
    return Vault(access, refresh)


def key_of(engine: Engine, account_id: int) -> int:
    """The data key of an account's refresh token."""
    [sealed] = column(
        engine, "SELECT refresh_token FROM tokenfleet.token_sets WHERE account_id = :id", id=account_id
    )
    return key_id_of(bytes(sealed))


def keys_in_use(engine: Engine) -> set[int]:
    with engine.begin() as connection:
        return {use.data_key_id for use in uses(connection)}


def test_every_column_that_can_hold_a_sealed_value_is_known() -> None:
    known = {f"{table.name}.{each.name}" for table in SEALED_TABLES for each in table.columns}
    stored = {
        f"{table.name}.{each.name}"
        for table in METADATA.tables.values()
        for each in table.columns
        if isinstance(each.type, LargeBinary)
    }
    assert stored - known == NO_ENVELOPES


def test_tokens_secrets_certificates_and_webhook_secrets_come_under_the_new_keys_and_open_as_before(
    engine: Engine, settings: Settings, vault: Vault
) -> None:
    app_id = make_app(engine, vault)
    accounts = [*make_accounts(engine, vault, app_id, 5), make_account(engine, vault, app_id, generation=7)]
    with engine.begin() as connection:
        late = answer(vault, accounts[-1], epoch=3, generation=5)
        assert settlement.save_refreshed(connection, [late], actor=ACTOR).candidates
    before = [state_of(engine, vault, each) for each in accounts]
    secrets = [Secret("first"), Secret("second")]
    with engine.begin() as connection:
        app = apps.load(connection, app_id)
        assert app is not None
        for secret in secrets:
            app = apps.register(
                connection,
                vault.refresh,
                provider=app.provider,
                environment=app.environment,
                name=app.name,
                client_id=app.client_id,
                client_secret=secret,
                variables={},
                keep_previous=True,
            )
            if secret is secrets[0]:
                # Sealed for a generation of its own from the next secret on.
                app_certificates.put(connection, vault.refresh, app_id, Secret("certificate"))
        endpoint, signing = endpoints.add(
            connection, vault.refresh, url="https://receiver.test/", concurrency=1
        )
    former = keys_in_use(engine)

    new = new_primaries(engine, settings, vault)
    assert reseal_all(engine, new) > 12

    assert keys_in_use(engine) == {new.access.primary_id, new.refresh.primary_id}
    assert former.isdisjoint(keys_in_use(engine))
    assert reseal_all(engine, new) == 0
    only_new = without_former(new)
    assert [state_of(engine, only_new, each) for each in accounts] == before
    with engine.begin() as connection:
        after = apps.load(connection, app_id)
        assert after is not None
        assert after.client_secret is not None
        assert after.client_certificate is not None
        assert after.certificate_generation is not None
        place = apps.secret_binding(app_id, after.secret_generation)
        assert only_new.refresh.open(after.client_secret, place) == "second"
        place = app_certificates.certificate_binding(app_id, after.certificate_generation)
        assert only_new.refresh.open(after.client_certificate, place) == "certificate"
        assert app_secrets.use_next(connection, app_id, refused_too=False)
        spare = apps.load(connection, app_id)
        assert spare is not None
        assert spare.client_secret is not None
        place = apps.secret_binding(app_id, spare.secret_generation)
        assert only_new.refresh.open(spare.client_secret, place) == "first"
        sealed = connection.execute(text("SELECT secret, generation FROM tokenfleet.webhook_secrets")).one()
        place = secret_binding(endpoint.endpoint_id, sealed.generation)
        assert only_new.refresh.open(sealed.secret, place) == signing.reveal()


def test_a_refresh_in_flight_is_saved_whether_its_account_is_sealed_anew_before_or_after(
    engine: Engine, settings: Settings, vault: Vault
) -> None:
    app_id = make_app(engine, vault)
    account = make_account(engine, vault, app_id)
    attempt = begin_attempt(engine, app_id, account)
    new = new_primaries(engine, settings, vault)
    reseal_all(engine, new)
    late = answer(vault, account, epoch=attempt.epoch, generation=attempt.generation)
    with engine.begin() as connection:
        # By a worker that has not noticed the new keys.
        saved = settlement.save_refreshed(connection, [late], actor=ACTOR)
    assert saved.saved == {account}
    assert key_of(engine, account) == vault.refresh.primary_id
    assert state_of(engine, new, account).generation == 2
    reseal_all(engine, new)
    assert keys_in_use(engine) == {new.access.primary_id, new.refresh.primary_id}
    assert state_of(engine, without_former(new), account).refresh_token == "refresh-2"


def test_rows_that_a_refresh_has_locked_are_passed_over_and_nobody_waits(
    engine: Engine, settings: Settings, vault: Vault
) -> None:
    app_id = make_app(engine, vault)
    locked, free = make_accounts(engine, vault, app_id, 2)
    new = new_primaries(engine, settings, vault)
    with engine.begin() as saving:
        saving.execute(
            text("SELECT FROM tokenfleet.token_sets WHERE account_id = :id FOR UPDATE"), {"id": locked}
        )
        with engine.begin() as connection:
            batch = reseal_batch(connection, new, TOKEN_SETS, None)
        assert (batch.rows, batch.values) == (1, 2)
    assert key_of(engine, locked) == vault.refresh.primary_id
    assert key_of(engine, free) == new.refresh.primary_id
    assert reseal_all(engine, new) > 0
    assert key_of(engine, locked) == new.refresh.primary_id


def test_a_batch_that_is_killed_leaves_every_row_as_it_was_and_the_next_run_goes_on(
    engine: Engine, settings: Settings, vault: Vault
) -> None:
    app_id = make_app(engine, vault)
    accounts = make_accounts(engine, vault, app_id, 4)
    new = new_primaries(engine, settings, vault)
    with engine.begin() as connection:
        first = reseal_batch(connection, new, TOKEN_SETS, None, limit=2)
    with engine.connect() as connection:
        reseal_batch(connection, new, TOKEN_SETS, first.after, limit=2)
        connection.rollback()
    by_key = [key_of(engine, each) for each in accounts]
    assert by_key == [new.refresh.primary_id] * 2 + [vault.refresh.primary_id] * 2
    reseal_all(engine, new)
    assert {key_of(engine, each) for each in accounts} == {new.refresh.primary_id}


def test_a_value_that_does_not_open_stays_as_it_is_and_is_counted(
    engine: Engine, settings: Settings, vault: Vault
) -> None:
    app_id = make_app(engine, vault)
    damaged, sound = make_accounts(engine, vault, app_id, 2)
    with engine.begin() as connection:
        connection.execute(
            text("UPDATE tokenfleet.token_sets SET refresh_token = '\\x01' WHERE account_id = :id"),
            {"id": damaged},
        )
    new = new_primaries(engine, settings, vault)
    with engine.begin() as connection:
        batch = reseal_batch(connection, new, TOKEN_SETS, None)
    assert (batch.values, batch.unreadable) == (3, 1)
    assert key_of(engine, sound) == new.refresh.primary_id
    [kept] = column(
        engine, "SELECT refresh_token FROM tokenfleet.token_sets WHERE account_id = :id", id=damaged
    )
    assert bytes(kept) == b"\x01"
