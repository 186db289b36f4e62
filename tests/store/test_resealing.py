"""Everything that is sealed comes under the newest data keys, whoever refreshes or is killed meanwhile."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, event, text

from store import app_certificates, app_secrets, apps, data_keys, endpoints, keys, settlement
from store.endpoints import secret_binding
from store.keys import Vault
from store.resealing import reseal_batch
from store.sealed_places import SEALED_TABLES, uses
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
from tests.support.racing import race
from tokenfleet.key_rings import KeyRing
from tokenfleet.settings import Settings
from tokenfleet_client.envelope import KeyEncryptionKey, Ring, access_token_binding, key_id_of
from tokenfleet_client.secret import Secret

TOKEN_SETS = next(table for table in SEALED_TABLES if table.name == "token_sets")
NO_ENVELOPES = {"data_keys.wrapped", "accounts.imported_fingerprints"}
"""Columns of bytes that hold something else than sealed values: wrapped keys, and hashes of imported credentials."""
SHIPPED = (
    "cli",
    "conformance",
    "embedded",
    "providers",
    "sandbox",
    "scheduler",
    "store",
    "tokenfleet",
    "workers",
)
TOKENS = "token_sets.access_token token_sets.refresh_token"
ANSWERS = f"{TOKENS} token_candidates.access_token token_candidates.refresh_token journal"
WHO_SEALS = {
    "store/app_certificates.py": "oauth_apps.client_certificate",
    "store/apps.py": "oauth_apps.client_secret app_secrets.client_secret",
    "store/endpoints.py": "webhook_secrets.secret",
    "store/import_creation.py": TOKENS,
    "store/import_renewal.py": TOKENS,
    "store/resealing.py": "",
    "workers/attempt.py": ANSWERS,
    "workers/candidates.py": TOKENS,
    "workers/sealing.py": ANSWERS,
    "workers/steps.py": ANSWERS,
}
"""Every module that seals something, and where that goes: ``store.sealed_places`` knows the same places."""


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


def test_every_column_of_the_database_that_holds_bytes_is_known(engine: Engine) -> None:
    known = {f"{table.name}.{each.name}" for table in SEALED_TABLES for each in table.columns}
    stored = column(
        engine,
        """
        SELECT c.relname || '.' || a.attname FROM pg_attribute a
        JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname NOT LIKE 'pg!_%' ESCAPE '!' AND n.nspname <> 'information_schema'
          AND c.relkind IN ('r', 'p', 'm', 'f') AND NOT c.relispartition
          AND a.attnum > 0 AND a.atttypid IN ('bytea'::regtype, 'bytea[]'::regtype)
        """,
    )
    assert set(stored) - known == NO_ENVELOPES
    assert known <= set(stored)


def test_every_place_that_seals_is_known() -> None:
    """So nothing sealed ever goes to a column of text, a message or a payload: those few write to the columns above."""
    root = Path(__file__).parents[2]
    sealing = {
        path.relative_to(root).as_posix()
        for folder in SHIPPED
        for path in (root / folder).rglob("*.py")
        if ".seal(" in path.read_text()
    }
    assert sealing == WHO_SEALS.keys()
    known = {f"{table.name}.{each.name}" for table in SEALED_TABLES for each in table.columns}
    assert {place for places in WHO_SEALS.values() for place in places.split()} == known | {"journal"}


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


def test_nothing_is_locked_while_what_is_left_is_looked_for(
    engine: Engine, settings: Settings, vault: Vault
) -> None:
    """Two of a million rows: the first must not stay locked until the second is found."""
    app_id = make_app(engine, vault)
    make_accounts(engine, vault, app_id, 2)
    new = new_primaries(engine, settings, vault)
    plans: list[str] = []
    with engine.begin() as connection:

        @event.listens_for(connection, "before_cursor_execute", retval=True)
        def explain(_: object, cursor: Any, statement: str, parameters: Any, *__: object) -> tuple[str, Any]:
            if "FROM tokenfleet.token_sets" in statement:
                cursor.execute(f"EXPLAIN {statement}", parameters)
                plans.append(" ".join(row[0] for row in cursor.fetchall()))
            return statement, parameters

        assert reseal_batch(connection, new, TOKEN_SETS, None).rows == 2
    looking, locking = plans
    assert "LockRows" not in looking
    assert "LockRows" in locking


def test_a_value_under_the_newest_key_is_not_written_when_its_neighbour_is(
    engine: Engine, settings: Settings, vault: Vault
) -> None:
    """A long one lies out of line, and would be copied and left dead each time."""
    [account] = make_accounts(engine, vault, make_app(engine, vault), 1)
    with engine.begin() as connection:
        sealed = vault.access.seal("a" * 5000, access_token_binding(account, 1))
        connection.execute(
            text("UPDATE tokenfleet.token_sets SET access_token = :sealed"), {"sealed": sealed}
        )
    key_id = data_keys.announce(engine, settings.refresh_ring)
    with engine.begin() as connection:
        assert data_keys.promote(connection, Ring.REFRESH, key_id)
        new = keys.open_vault(connection, settings)
    toasted = """
        SELECT pg_relation_size(reltoastrelid) FROM pg_class WHERE oid = 'tokenfleet.token_sets'::regclass
    """
    before = column(engine, toasted)
    assert reseal_all(engine, new) == 2
    assert column(engine, toasted) == before
    assert state_of(engine, new, account).access_token == "a" * 5000


def test_an_answer_in_a_journal_under_a_former_key_is_replayed_and_opens_after_the_rotation(
    engine: Engine, settings: Settings, vault: Vault
) -> None:
    """Its machine was off while everything else came under new keys, of both kinds."""
    app_id = make_app(engine, vault)
    account = make_account(engine, vault, app_id)
    attempt = begin_attempt(engine, app_id, account)
    late = answer(vault, account, epoch=attempt.epoch, generation=attempt.generation)
    newest = KeyEncryptionKey.generate("new")
    rings = [
        KeyRing.of(ring.ring, [newest, *ring.keys.values()])
        for ring in (settings.access_ring, settings.refresh_ring)
    ]
    for ring in rings:
        data_keys.rewrap(engine, ring)
    new = new_primaries(engine, replace(settings, access_ring=rings[0], refresh_ring=rings[1]), vault)
    reseal_all(engine, new)
    moved = replace(
        settings,
        access_ring=KeyRing.of(Ring.ACCESS, [newest]),
        refresh_ring=KeyRing.of(Ring.REFRESH, [newest]),
    )
    with engine.begin() as connection:
        assert settlement.save_refreshed(connection, [late], actor=ACTOR).saved == {account}
        woken = keys.open_vault(connection, moved)
    assert state_of(engine, woken, account).refresh_token == "refresh-2"
    assert reseal_all(engine, woken) == 2
    assert keys_in_use(engine) == {new.access.primary_id, new.refresh.primary_id}


def test_a_refresh_that_is_saved_between_looking_and_locking_is_sealed_anew_as_what_it_is_now(
    engine: Engine, settings: Settings, vault: Vault
) -> None:
    app_id = make_app(engine, vault)
    account = make_account(engine, vault, app_id)
    attempt = begin_attempt(engine, app_id, account)
    new = new_primaries(engine, settings, vault)
    late = answer(vault, account, epoch=attempt.epoch, generation=attempt.generation)
    with engine.begin() as resealing:

        @event.listens_for(resealing, "before_cursor_execute")
        def save_first(_: object, __: object, statement: str, *___: object) -> None:
            if "SKIP LOCKED" in statement:
                with engine.begin() as connection:
                    assert settlement.save_refreshed(connection, [late], actor=ACTOR).saved == {account}

        batch = reseal_batch(resealing, new, TOKEN_SETS, None)
    assert (batch.values, batch.unreadable) == (2, 0)
    state = state_of(engine, without_former(new), account)
    assert (state.generation, state.refresh_token) == (2, "refresh-2")


def test_two_rotations_at_once_share_the_work_and_seal_nothing_twice(
    engine: Engine, settings: Settings, vault: Vault
) -> None:
    accounts = make_accounts(engine, vault, make_app(engine, vault), 40)
    new = new_primaries(engine, settings, vault)
    done = race([partial(reseal_all, engine, new) for _ in range(2)])
    # Two tokens each, and the client secret. What one had locked the other has passed over.
    assert sum(done) == 2 * len(accounts) + 1
    assert keys_in_use(engine) == {new.access.primary_id, new.refresh.primary_id}
