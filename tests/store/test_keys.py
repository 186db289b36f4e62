"""The vault: one primary key per ring however many processes start at once, and one clear sentence otherwise."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import IntegrityError

from store import keys
from store.keys import Vault
from tests.support.builders import column
from tests.support.racing import race
from tokenfleet.errors import UserError
from tokenfleet.key_rings import KeyRing
from tokenfleet.settings import Settings
from tokenfleet_client.envelope import (
    KeyEncryptionKey,
    Ring,
    access_token_binding,
    key_id_of,
    refresh_token_binding,
)
from tokenfleet_client.errors import EnvelopeError, UnknownKey


def open_vault(engine: Engine, settings: Settings) -> Vault:
    with engine.begin() as connection:
        return keys.open_vault(connection, settings)


def ring(which: Ring, *key_ids: str) -> KeyRing:
    return KeyRing.of(which, [KeyEncryptionKey.generate(key_id) for key_id in key_ids])


def test_eight_processes_that_start_at_once_create_one_primary_key_per_ring(
    engine: Engine, settings: Settings
) -> None:
    vaults = race([partial(open_vault, engine, settings)] * 8)

    assert Counter(column(engine, "SELECT ring FROM tokenfleet.data_keys")) == {"access": 1, "refresh": 1}
    sealed = [vault.access.seal("access-1", access_token_binding(1, 1)) for vault in vaults]
    assert {vault.access.open(each, access_token_binding(1, 1)) for vault in vaults for each in sealed} == {
        "access-1"
    }


def test_a_vault_that_is_opened_again_opens_what_was_sealed_before(
    engine: Engine, settings: Settings
) -> None:
    first = open_vault(engine, settings)
    sealed = first.refresh.seal("refresh-1", refresh_token_binding(7, 1))

    again = open_vault(engine, settings)

    assert again.refresh.open(sealed, refresh_token_binding(7, 1)) == "refresh-1"
    assert key_id_of(sealed) == again.refresh.primary_id


def test_the_rings_have_keys_of_their_own(engine: Engine, settings: Settings) -> None:
    vault = open_vault(engine, settings)
    sealed = vault.access.seal("access-1", access_token_binding(1, 1))

    assert vault.access.primary_id != vault.refresh.primary_id
    with pytest.raises(UnknownKey):
        vault.refresh.open(sealed, access_token_binding(1, 1))


def test_the_database_holds_no_key_in_the_clear(engine: Engine, settings: Settings) -> None:
    open_vault(engine, settings)
    wrapped = column(engine, "SELECT wrapped FROM tokenfleet.data_keys")

    primary = settings.access_ring.primary
    assert primary is not None
    data_key = primary.unwrap(wrapped[0], Ring.ACCESS, 1)
    assert len(data_key) == 32
    assert all(data_key not in each for each in wrapped)


def test_another_installations_key_is_one_sentence_that_says_what_to_do(
    engine: Engine, settings: Settings
) -> None:
    open_vault(engine, settings)
    wrong = replace(settings, refresh_ring=ring(Ring.REFRESH, "test"))

    with pytest.raises(UserError) as refused:
        open_vault(engine, wrong)

    message = str(refused.value)
    assert "\n" not in message
    assert "refresh ring" in message
    assert "TOKENFLEET_KEYS_FILE" in message


def test_a_key_under_another_name_is_one_sentence_that_names_the_missing_one(
    engine: Engine, settings: Settings
) -> None:
    open_vault(engine, settings)
    wrong = replace(settings, access_ring=ring(Ring.ACCESS, "other", "another"))

    with pytest.raises(
        UserError, match=r"'test', which is not configured here \(configured: another, other\)"
    ):
        open_vault(engine, wrong)


def test_rings_that_were_swapped_are_refused(engine: Engine, settings: Settings) -> None:
    open_vault(engine, settings)
    swapped = replace(
        settings,
        access_ring=replace(settings.refresh_ring, ring=Ring.ACCESS),
        refresh_ring=replace(settings.access_ring, ring=Ring.REFRESH),
    )

    with pytest.raises(UserError, match="does not open with key-encryption key"):
        open_vault(engine, swapped)


@pytest.mark.parametrize("which", Ring)
def test_a_ring_without_a_key_is_one_sentence_and_creates_nothing(
    engine: Engine, settings: Settings, which: Ring
) -> None:
    none = KeyRing(which)
    without = (
        replace(settings, access_ring=none) if which is Ring.ACCESS else replace(settings, refresh_ring=none)
    )

    with pytest.raises(UserError, match=f"the {which.value} ring.*tokenfleet keys generate"):
        open_vault(engine, without)

    assert column(engine, "SELECT ring FROM tokenfleet.data_keys") == []


@pytest.mark.parametrize("which", Ring)
def test_a_database_whose_keys_are_missing_asks_for_them_and_not_for_new_ones(
    engine: Engine, settings: Settings, which: Ring
) -> None:
    open_vault(engine, settings)
    own = settings.access_ring if which is Ring.ACCESS else settings.refresh_ring
    assert own.primary is not None
    none = KeyRing(which)
    without = (
        replace(settings, access_ring=none) if which is Ring.ACCESS else replace(settings, refresh_ring=none)
    )
    with pytest.raises(UserError, match=f"sealed under key-encryption key '{own.primary.key_id}'") as told:
        open_vault(engine, without)
    assert "keys generate" not in str(told.value)


def test_an_older_data_key_still_opens_what_it_sealed(engine: Engine, settings: Settings) -> None:
    old = open_vault(engine, settings)
    sealed = old.access.seal("access-1", access_token_binding(1, 1))
    with engine.begin() as connection:
        connection.execute(text("UPDATE tokenfleet.data_keys SET is_primary = false WHERE ring = 'access'"))

    new = open_vault(engine, settings)

    assert new.access.primary_id != old.access.primary_id
    assert new.access.open(sealed, access_token_binding(1, 1)) == "access-1"
    assert new.access.needs_reseal(sealed)


def test_an_older_data_key_whose_encryption_key_is_gone_does_not_stop_the_process(
    engine: Engine, settings: Settings
) -> None:
    old = open_vault(engine, settings)
    sealed = old.access.seal("access-1", access_token_binding(1, 1))
    with engine.begin() as connection:
        connection.execute(text("UPDATE tokenfleet.data_keys SET is_primary = false WHERE ring = 'access'"))

    new = open_vault(engine, replace(settings, access_ring=ring(Ring.ACCESS, "next")))

    with pytest.raises(UnknownKey):
        new.access.open(sealed, access_token_binding(1, 1))


def test_a_wrapped_key_that_was_moved_to_the_other_ring_does_not_open(
    engine: Engine, settings: Settings
) -> None:
    open_vault(engine, settings)
    with engine.begin() as connection:
        connection.execute(
            text(
                "UPDATE tokenfleet.data_keys SET wrapped = "
                "(SELECT wrapped FROM tokenfleet.data_keys WHERE ring = 'refresh') WHERE ring = 'access'"
            )
        )

    with pytest.raises(UserError, match="access ring"):
        open_vault(engine, settings)


def test_the_database_itself_refuses_a_second_primary_key(engine: Engine, settings: Settings) -> None:
    open_vault(engine, settings)

    with pytest.raises(IntegrityError, match="ux_data_keys_primary"), engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO tokenfleet.data_keys (ring, kek_id, wrapped, is_primary) "
                "VALUES ('access', 'test', '', true)"
            )
        )


def test_a_sealed_value_does_not_open_where_it_does_not_belong(engine: Engine, settings: Settings) -> None:
    vault = open_vault(engine, settings)
    sealed = vault.access.seal("access-1", access_token_binding(1, 1))

    for elsewhere in (access_token_binding(2, 1), access_token_binding(1, 2), refresh_token_binding(1, 1)):
        with pytest.raises(EnvelopeError):
            vault.access.open(sealed, elsewhere)
