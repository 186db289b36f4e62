"""The audit log: which operator did what to what, why, and from where.

Invariant: a row is written in the transaction of the action that it tells of, so neither is there without the other;
and it stays. Postgres refuses every UPDATE, DELETE and TRUNCATE of the table (migration 0006), and fills in the
moment, the database role and the address itself. Nothing secret is ever part of a row.

Ids are taken before rows are committed, so a reader who goes by ids could pass one that is still on its way. Whoever
adds a row therefore holds a lock until the commit (migration 0009), and :func:`settle` waits for those who do.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import Connection, select, text

from store.answers import lists
from store.tables import audit_log

PAGE: Final = 5_000
"""Rows that are read at once by :func:`read_all`."""


class Action(StrEnum):
    """What an operator can do, named after the command that does it."""

    DB_UPGRADE = "db.upgrade"
    APPS_SET = "apps.set"
    APPS_REMOVE = "apps.remove"
    APPS_EXPORT = "apps.export"
    APPS_IMPORT = "apps.import"
    ACCOUNTS_IMPORT = "accounts.import"
    ACCOUNTS_EXPORT = "accounts.export"
    ACCOUNTS_REFRESH = "accounts.refresh"
    ACCOUNTS_PAUSE = "accounts.pause"
    ACCOUNTS_RESUME = "accounts.resume"
    ACCOUNTS_REVOKE = "accounts.revoke"
    WEBHOOKS_ADD = "webhooks.add"
    WEBHOOKS_TEST = "webhooks.test"
    WEBHOOKS_REPLAY = "webhooks.replay"
    WEBHOOKS_ROTATE_SECRET = "webhooks.rotate-secret"
    WEBHOOKS_ENABLE = "webhooks.enable"
    WEBHOOKS_DISABLE = "webhooks.disable"
    WEBHOOKS_REMOVE = "webhooks.remove"
    KEYS_ROTATE = "keys.rotate"
    INCIDENTS_RESOLVE = "incidents.resolve"


@dataclass(frozen=True, slots=True)
class Operator:
    """Who acts, and on which machine. ``actor`` is what the history of accounts calls them."""

    actor: str
    host: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing acted on: ``account/4711``, ``app/acme/production/default``, ``endpoint/3``."""

    target: str
    detail: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class AuditRow:
    """One action as it is kept."""

    id: int
    at: datetime
    actor: str
    host: str
    action: str
    target: str
    reason: str | None
    detail: dict[str, Any] | None
    database_role: str
    client_address: str | None


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """Which rows are wanted; None means any. ``since`` is part of it, ``until`` is not."""

    since: datetime | None = None
    until: datetime | None = None
    actor: str | None = None
    action: str | None = None
    target: str | None = None


_RECORD = text("""
    INSERT INTO tokenfleet.audit_log (actor, host, action, target, reason, detail)
    SELECT :actor, :host, :action, target, :reason, CAST(detail AS jsonb)
    FROM unnest(CAST(:target AS text[]), CAST(:detail AS text[])) WITH ORDINALITY AS e (target, detail, position)
    ORDER BY position
""")

_CAN_BE_LIFTED = text("""
    SELECT pg_has_role(c.relowner, 'USAGE') OR pg_has_role(n.nspowner, 'USAGE') OR EXISTS (
        SELECT FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
        WHERE t.tgrelid = c.oid AND pg_has_role(p.proowner, 'USAGE'))
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.oid = 'tokenfleet.audit_log'::regclass
""")

_TURN = text("SELECT pg_advisory_xact_lock(7305811037)")
"""The lock of ``audit_log_turn``, alone."""

_LAST = text("SELECT COALESCE(max(id), 0) AS id, clock_timestamp() AS at FROM tokenfleet.audit_log")


@dataclass(frozen=True, slots=True)
class Settled:
    """Every row up to ``last_id`` is there to be read, and each later one will be of ``at`` or after."""

    last_id: int
    at: datetime


@dataclass(frozen=True, slots=True)
class _Line:
    target: str
    detail: str | None


def account_target(account_id: int) -> str:
    """Return what the log calls an account."""
    return f"account/{account_id}"


def app_target(provider: str, environment: str, name: str) -> str:
    """Return what the log calls an app."""
    return f"app/{provider}/{environment}/{name}"


def endpoint_target(endpoint_id: int) -> str:
    """Return what the log calls a webhook endpoint."""
    return f"endpoint/{endpoint_id}"


def record(
    connection: Connection, by: Operator, action: Action, entries: Sequence[Entry], *, reason: str | None
) -> None:
    """Write down that ``by`` does ``action`` to each of ``entries``, in the caller's transaction."""
    if not entries:
        return
    lines = [_Line(each.target, None if each.detail is None else json.dumps(each.detail)) for each in entries]
    connection.execute(
        _RECORD,
        lists(lines, "target detail")
        | {"actor": by.actor, "host": by.host, "action": action.value, "reason": reason},
    )


def read_newest(connection: Connection, wanted: AuditFilter, *, limit: int) -> list[AuditRow]:
    """Return the newest ``limit`` rows, newest first. Relies on the primary key, or ``ix_audit_log_target``."""
    statement = _select(wanted).order_by(audit_log.c.id.desc()).limit(limit)
    return [_row(row) for row in connection.execute(statement)]


def settle(connection: Connection) -> Settled:
    """Wait until everything that is being written is committed or rolled back, and say how far the log goes then.

    Holds up whoever wants to add a row until the end of the transaction: end it at once.
    """
    connection.execute(_TURN)
    # A statement of its own, which sees what was committed while the lock was waited for.
    return Settled(*connection.execute(_LAST).one())


def read_all(connection: Connection, wanted: AuditFilter, *, up_to: int) -> Iterator[AuditRow]:
    """Yield every row with an id up to ``up_to`` (:func:`settle`), oldest first, however many there are."""
    last = 0
    while True:
        ids = audit_log.c.id
        page = _select(wanted).where(ids > last, ids <= up_to).order_by(ids).limit(PAGE)
        rows = connection.execute(page).all()
        yield from map(_row, rows)
        if len(rows) < PAGE:
            return
        last = rows[-1].id


def is_there(connection: Connection) -> bool:
    """Answer whether the schema has the log yet: older ones did not."""
    return bool(
        connection.execute(text("SELECT to_regclass('tokenfleet.audit_log') IS NOT NULL")).scalar_one()
    )


def can_be_lifted(connection: Connection) -> bool:
    """Answer whether the role of this connection owns the log, its schema or its triggers' functions.

    Such a role could do away with the protection.
    """
    return bool(connection.execute(_CAN_BE_LIFTED).scalar_one())


def _select(wanted: AuditFilter) -> Any:
    columns = audit_log.c
    statement = select(audit_log)
    if wanted.since is not None:
        statement = statement.where(columns.at >= wanted.since)
    if wanted.until is not None:
        statement = statement.where(columns.at < wanted.until)
    for name in ("actor", "action", "target"):
        if (value := getattr(wanted, name)) is not None:
            statement = statement.where(columns[name] == value)
    return statement


def _row(row: Any) -> AuditRow:
    values = dict(row._mapping)
    values["client_address"] = None if row.client_address is None else str(row.client_address)
    return AuditRow(**values)
