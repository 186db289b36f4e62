"""The names that readers in any language bind to, and that the database really has them."""

from __future__ import annotations

from sqlalchemy import Engine, text

from store.keys import Vault
from tokenfleet.settings import Settings
from tokenfleet_client.contract import (
    ACCESS_KEYS_VIEW,
    ACCESS_TOKENS_VIEW,
    APPLICATION_SCHEMA,
    CONTRACT_SCHEMA,
    CONTRACT_VERSION,
    AccountStatus,
)
from tokenfleet_client.envelope import (
    KeyEncryptionKey,
    Ring,
    WrappedKey,
    access_token_binding,
    unwrap_ring,
)

ACCESS_TOKENS_COLUMNS = [
    ("account_id", "bigint"),
    ("provider", "text"),
    ("environment", "text"),
    ("external_id", "text"),
    ("tenant", "text"),
    ("status", "text"),
    ("access_token", "bytea"),
    ("token_type", "text"),
    ("scope", "text"),
    ("expires_at", "timestamp with time zone"),
    ("generation", "bigint"),
    ("variables", "jsonb"),
    ("data_key_id", "integer"),
    ("status_reason", "text"),
    ("failing_since", "timestamp with time zone"),
    ("last_error", "text"),
]
ACCESS_KEYS_COLUMNS = [
    ("data_key_id", "integer"),
    ("kek_id", "text"),
    ("wrapped", "bytea"),
    ("is_primary", "boolean"),
]


def columns_of(engine: Engine, view: str) -> list[tuple[str, str]]:
    with engine.connect() as connection:
        rows = connection.execute(
            text("""
                SELECT column_name, data_type FROM information_schema.columns
                WHERE table_schema = :schema AND table_name = :view ORDER BY ordinal_position
            """),
            {"schema": CONTRACT_SCHEMA, "view": view},
        )
        return [(row.column_name, row.data_type) for row in rows]


def test_the_names_of_contract_version_1_are_these() -> None:
    assert CONTRACT_VERSION == 1
    assert APPLICATION_SCHEMA == "tokenfleet"
    assert CONTRACT_SCHEMA == "tokenfleet_v1"
    assert ACCESS_TOKENS_VIEW == "access_tokens"
    assert ACCESS_KEYS_VIEW == "access_keys"


def test_the_statuses_are_these() -> None:
    assert [status.value for status in AccountStatus] == [
        "connecting",
        "active",
        "needs_reauth",
        "paused",
        "revoked",
    ]


def test_the_database_has_the_views_with_these_columns(engine: Engine) -> None:
    assert columns_of(engine, ACCESS_TOKENS_VIEW) == ACCESS_TOKENS_COLUMNS
    assert columns_of(engine, ACCESS_KEYS_VIEW) == ACCESS_KEYS_COLUMNS


def test_no_view_of_the_contract_shows_a_refresh_token(engine: Engine) -> None:
    with engine.connect() as connection:
        shown = connection.execute(
            text("""
                SELECT table_name, column_name FROM information_schema.view_column_usage
                WHERE view_schema = :schema AND column_name IN ('refresh_token', 'client_secret')
            """),
            {"schema": CONTRACT_SCHEMA},
        ).all()
    assert list(shown) == []


def test_the_database_knows_exactly_these_statuses(engine: Engine) -> None:
    with engine.connect() as connection:
        condition: str = connection.execute(
            text("""
                SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = 'ck_accounts_status'
            """)
        ).scalar_one()
    assert set(condition.split("'")[1::2]) == {status.value for status in AccountStatus}


def test_a_reader_with_the_two_views_and_the_access_ring_reads_a_token(
    engine: Engine, settings: Settings, vault: Vault
) -> None:
    with engine.begin() as connection:
        account_id: int = connection.execute(
            text("""
                WITH app AS (
                    INSERT INTO tokenfleet.oauth_apps (provider, environment, name, client_id)
                    VALUES ('example', 'production', 'default', 'client') RETURNING id)
                INSERT INTO tokenfleet.accounts (provider, environment, external_id, app_id, status)
                SELECT 'example', 'production', 'customer-1', id, 'active' FROM app RETURNING id
            """)
        ).scalar_one()
        connection.execute(
            text("""
                INSERT INTO tokenfleet.token_sets (account_id, generation, epoch, access_token, obtained_at)
                VALUES (:account_id, 3, 3, :access_token, now())
            """),
            {
                "account_id": account_id,
                "access_token": vault.access.seal("example", access_token_binding(account_id, 3)),
            },
        )
    primary = settings.access_ring.primary
    with engine.connect() as connection:
        keys = [
            WrappedKey(row.data_key_id, Ring.ACCESS, row.kek_id, bytes(row.wrapped), row.is_primary)
            for row in connection.execute(text(f"SELECT * FROM {CONTRACT_SCHEMA}.{ACCESS_KEYS_VIEW}"))
        ]
        token = connection.execute(text(f"SELECT * FROM {CONTRACT_SCHEMA}.{ACCESS_TOKENS_VIEW}")).one()
    assert isinstance(primary, KeyEncryptionKey)
    kek = KeyEncryptionKey.parse(primary.export())
    ring = unwrap_ring(Ring.ACCESS, keys, {kek.key_id: kek})
    binding = access_token_binding(token.account_id, token.generation)
    assert ring.open(bytes(token.access_token), binding) == "example"
