"""New accounts, by binary COPY: sealed while they are sent, so that this process and Postgres work at once.

Invariant: a new account is whole. Identity, tokens, schedule, history and event are one transaction.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

import msgspec
import psycopg
from psycopg.types.string import BytesBinaryDumper
from sqlalchemy import Connection, text

from store.import_admission import NumberedLine
from store.import_line import FINGERPRINT_BYTES, FINGERPRINTS_KEPT
from store.keys import Vault
from tokenfleet.account import EventType
from tokenfleet.jobs import AccountId, AppId
from tokenfleet.lifetimes import Visit
from tokenfleet_client.contract import AccountStatus
from tokenfleet_client.envelope import access_token_binding, refresh_token_binding

_RESERVE = text("""
    -- The sequence is looked up once, not 5,000 times: OFFSET 0 keeps the planner from merging the two.
    SELECT array_agg(nextval(ids.sequence))
    FROM (SELECT CAST(pg_get_serial_sequence('tokenfleet.accounts', 'id') AS regclass) AS sequence OFFSET 0)
        AS ids, generate_series(1, CAST(:count AS int))
""")

_COPY_ACCOUNTS: Final = """
    COPY tokenfleet.accounts (id, provider, environment, external_id, tenant, app_id, status, variables,
        metadata, imported_fingerprints, granted_at) FROM STDIN (FORMAT BINARY)"""
_COPY_TOKENS: Final = """
    COPY tokenfleet.token_sets (account_id, generation, epoch, access_token, refresh_token, token_type,
        scope, expires_at, obtained_at, refresh_token_expires_at, variables, learned_lifetime)
    FROM STDIN (FORMAT BINARY)"""
_COPY_SCHEDULE: Final = """
    COPY tokenfleet.refresh_schedule (account_id, app_id, next_refresh_at, probing)
    FROM STDIN (FORMAT BINARY)"""
_COPY_HISTORY: Final = """
    COPY tokenfleet.account_events (account_id, kind, generation, job_id, actor, status_to)
    FROM STDIN (FORMAT BINARY)"""
_COPY_OUTBOX: Final = """
    COPY tokenfleet.outbox (account_id, event_type, payload) FROM STDIN (FORMAT BINARY)"""

_RAW: Final = "bytea"
"""Sent as it is. jsonb and bytea[] are written in their binary form by hand: psycopg builds them in Python,
which takes 3 and 5 microseconds a row."""

_JSONB_VERSION: Final = b"\x01"
_FINGERPRINT_LENGTH: Final = FINGERPRINT_BYTES.to_bytes(4, "big")
_ONE_FINGERPRINT: Final = b"".join(
    number.to_bytes(4, "big")
    # Dimensions, flags, element type (bytea), the dimension's length and lower bound, the element's length.
    for number in (1, 0, 17, 1, 1, FINGERPRINT_BYTES)
)
_NO_FINGERPRINT: Final = b"".join(number.to_bytes(4, "big") for number in (0, 0, 17))
_EMPTY_OBJECT: Final = _JSONB_VERSION + b"{}"


@dataclass(frozen=True, slots=True)
class Stamp:
    """What every row of one import carries. ``now`` is the database's clock at the beginning of the chunk."""

    now: datetime
    import_id: UUID
    actor: str


@dataclass(frozen=True, slots=True)
class NewAccount:
    """An account to create, and when it is due."""

    entry: NumberedLine
    app_id: AppId
    fingerprint: bytes | None
    expires_at: datetime | None
    first_visit: Visit

    @property
    def status(self) -> AccountStatus:
        """Without an access token it is of no use before its first refresh. Who was paused elsewhere stays so."""
        if self.entry.line.status == AccountStatus.PAUSED.value:
            return AccountStatus.PAUSED
        return AccountStatus.ACTIVE if self.entry.line.access_token else AccountStatus.CONNECTING


def create(connection: Connection, vault: Vault, accounts: Sequence[NewAccount], stamp: Stamp) -> None:
    """Insert accounts with everything that belongs to them."""
    # The ids come first, because sealing binds a token to its account.
    ids: list[AccountId] = connection.execute(_RESERVE, {"count": len(accounts)}).scalar_one()
    numbered = list(zip(ids, accounts, strict=True))
    _copy(
        connection,
        _COPY_ACCOUNTS,
        ("int8", "text", "text", "text", "text", "int8", "text", _RAW, _RAW, _RAW, "timestamptz"),
        (_account_row(account_id, account, stamp) for account_id, account in numbered),
    )
    _copy(
        connection,
        _COPY_TOKENS,
        (
            *("int8", "int8", "int8", _RAW, _RAW, "text", "text"),
            *("timestamptz", "timestamptz", "timestamptz", _RAW, "interval"),
        ),
        (_token_row(account_id, account, vault, stamp) for account_id, account in numbered),
    )
    _copy(
        connection,
        _COPY_SCHEDULE,
        ("int8", "int8", "timestamptz", "bool"),
        (
            (
                account_id,
                account.app_id,
                None if account.status is AccountStatus.PAUSED else account.first_visit.at,
                not account.first_visit.presents,
            )
            for account_id, account in numbered
        ),
    )
    _copy(
        connection,
        _COPY_HISTORY,
        ("int8", "text", "int8", "uuid", "text", "text"),
        (
            (account_id, "account.imported", 1, stamp.import_id, stamp.actor, account.status.value)
            for account_id, account in numbered
        ),
    )
    _copy(
        connection,
        _COPY_OUTBOX,
        ("int8", "text", _RAW),
        (
            (account_id, EventType.CREATED.value, _created_payload(account_id, account))
            for account_id, account in numbered
        ),
    )


def _copy(
    connection: Connection, statement: str, types: Sequence[str], rows: Iterable[Sequence[object]]
) -> None:
    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)
    with driver.cursor() as cursor:
        # Of the two dumpers of bytea, psycopg would take the one for DB-API's Binary, which is written in Python.
        cursor.adapters.register_dumper(bytes, BytesBinaryDumper)
        with cursor.copy(statement) as copy:
            copy.set_types(types)
            for row in rows:
                copy.write_row(row)


def _account_row(account_id: AccountId, account: NewAccount, stamp: Stamp) -> tuple[object, ...]:
    line = account.entry.line
    return (
        account_id,
        line.provider,
        account.entry.environment,
        line.external_id,
        line.tenant or None,
        account.app_id,
        account.status.value,
        _jsonb(line.variables),
        _jsonb(line.metadata),
        _fingerprints(account),
        line.granted_at or account.entry.received_at or stamp.now,
    )


def _fingerprints(account: NewAccount) -> bytes:
    """Return the account's fingerprint, behind those that it brings from another fleet, as Postgres takes them."""
    brought = account.entry.line.fingerprints
    if not brought:
        return _NO_FINGERPRINT if account.fingerprint is None else _ONE_FINGERPRINT + account.fingerprint
    own = [] if account.fingerprint is None else [account.fingerprint]
    known = [*dict.fromkeys([*map(bytes.fromhex, brought), *own])][-FINGERPRINTS_KEPT:]
    head = b"".join(number.to_bytes(4, "big") for number in (1, 0, 17, len(known), 1))
    return head + b"".join(_FINGERPRINT_LENGTH + each for each in known)


def _token_row(account_id: AccountId, account: NewAccount, vault: Vault, stamp: Stamp) -> tuple[object, ...]:
    line = account.entry.line
    access_token = refresh_token = None
    if line.refresh_token:
        refresh_token = vault.refresh.seal(line.refresh_token.reveal(), refresh_token_binding(account_id, 1))
    if line.access_token:
        access_token = vault.access.seal(line.access_token.reveal(), access_token_binding(account_id, 1))
    return (
        account_id,
        1,
        0,
        access_token,
        refresh_token,
        line.token_type or None,
        line.scope or None,
        account.expires_at,
        account.entry.received_at or stamp.now,
        line.refresh_token_expires_at,
        _jsonb(account.entry.captured),
        None if line.learned_lifetime is None else timedelta(seconds=line.learned_lifetime),
    )


def _created_payload(account_id: AccountId, account: NewAccount) -> bytes:
    """Return the event's payload, in the shape that ``store.transitions`` gives every other one."""
    line = account.entry.line
    return _JSONB_VERSION + msgspec.json.encode(
        {
            "id": account_id,
            "integration_name": line.provider,
            "external_id": line.external_id,
            "tenant": line.tenant or None,
            "environment": account.entry.environment,
            "status": account.status.value,
            "last_error": None,
        }
    )


def _jsonb(value: Mapping[str, Any] | None) -> bytes:
    return _JSONB_VERSION + msgspec.json.encode(value) if value else _EMPTY_OBJECT
