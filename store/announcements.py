"""What customers' product is told of an account that stays as it is: its token has expired, or its grant will end.

Invariant (G5): the mark that it was told, the history row and the event are one statement, and the mark is a guarded
update. However many workers and schedulers notice the same thing, one of them tells it.

Whoever tells of an account keeps it from being moved until the commit, so its events are numbered in the order in which
they are seen (``store.outbox``): the callers have locked its row of ``token_sets``, and the sweep locks that of
``accounts``, which every move updates. The sweep passes over rows that somebody else has locked, and comes again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Final

from sqlalchemy import Connection, text

from tokenfleet.account import EventType
from tokenfleet.jobs import AccountId, AppId

SWEPT_AT_ONCE: Final = 1000
"""Accounts that one sweep tells at most, so that it never holds up a tick."""

_TELLING: Final = """
    , history AS (
        INSERT INTO tokenfleet.account_events (account_id, kind, code, actor)
        SELECT account_id, 'account.refresh_failing', last_error, CAST(:actor AS text) FROM told
    ), outbox AS (
        INSERT INTO tokenfleet.outbox (account_id, event_type, payload)
        SELECT a.id, CAST(:event AS text), jsonb_build_object(
            'id', a.id, 'integration_name', a.provider, 'external_id', a.external_id, 'tenant', a.tenant,
            'environment', a.environment, 'status', a.status, 'last_error', told.last_error)
        FROM told JOIN tokenfleet.accounts a ON a.id = told.account_id
    )
    SELECT account_id FROM told
"""

_FAILING = text(f"""
    WITH told AS (
        UPDATE tokenfleet.refresh_schedule s SET expiry_told = true
        FROM tokenfleet.accounts a, tokenfleet.token_sets t
        WHERE s.account_id = ANY (CAST(:account_ids AS bigint[])) AND NOT s.expiry_told
          AND a.id = s.account_id AND a.status = 'active'
          AND t.account_id = s.account_id AND t.expires_at <= clock_timestamp()
        RETURNING s.account_id, s.last_error
    ) {_TELLING}
""")

_SWEEP = text(f"""
    -- Silent is not materialized, so that it is read only until enough are found: it may be a million.
    WITH silent AS NOT MATERIALIZED (
        SELECT s.account_id FROM tokenfleet.refresh_schedule s
        WHERE s.app_id = ANY (CAST(:app_ids AS bigint[])) AND s.next_refresh_at <= now() AND NOT s.expiry_told
        UNION ALL
        SELECT s.account_id FROM tokenfleet.refresh_schedule s
        WHERE s.incident_id IS NOT NULL AND NOT s.expiry_told
    ), picked AS MATERIALIZED (
        SELECT s.account_id
        FROM silent JOIN tokenfleet.refresh_schedule s USING (account_id)
        JOIN tokenfleet.accounts a ON a.id = s.account_id AND a.status = 'active'
        JOIN tokenfleet.token_sets t ON t.account_id = s.account_id AND t.expires_at <= now()
        WHERE NOT s.expiry_told
        LIMIT :at_most
        FOR UPDATE OF s SKIP LOCKED
        -- One that is being moved now has an event already, which nobody sees yet: this one must not overtake it.
        FOR NO KEY UPDATE OF a SKIP LOCKED
    ), told AS (
        UPDATE tokenfleet.refresh_schedule s SET expiry_told = true
        FROM picked WHERE s.account_id = picked.account_id AND NOT s.expiry_told
        RETURNING s.account_id, s.last_error
    ) {_TELLING}
""")

_UPCOMING = text("""
    WITH told AS (
        UPDATE tokenfleet.accounts a SET reauth_told_at = now()
        FROM unnest(CAST(:account_ids AS bigint[]), CAST(:ends AS timestamptz[])) AS i (account_id, ends_at)
        WHERE a.id = i.account_id AND a.status = 'active' AND a.reauth_told_at IS NULL
        RETURNING a.id, a.provider, a.environment, a.external_id, a.tenant, a.status, i.ends_at
    ), history AS (
        INSERT INTO tokenfleet.account_events (account_id, kind, actor, detail)
        SELECT id, 'account.reauth_upcoming', CAST(:actor AS text), jsonb_build_object('ends_at', ends_at) FROM told
    ), outbox AS (
        INSERT INTO tokenfleet.outbox (account_id, event_type, payload)
        SELECT id, CAST(:event AS text), jsonb_build_object(
            'id', id, 'integration_name', provider, 'external_id', external_id, 'tenant', tenant,
            'environment', environment, 'status', status, 'last_error', NULL, 'ends_at', ends_at)
        FROM told
    )
    SELECT id FROM told
""")


def tell_refresh_failing(
    connection: Connection, account_ids: Sequence[AccountId], *, actor: str
) -> frozenset[AccountId]:
    """Tell of those accounts whose token has expired that it cannot be renewed now; returns who was not told before.

    Once until the next success. Only of active accounts: nobody expects anything of the others. The caller has locked
    their rows of ``token_sets``.
    """
    parameters = {"account_ids": list(account_ids), "event": EventType.REFRESH_FAILING.value, "actor": actor}
    return frozenset(AccountId(row.account_id) for row in connection.execute(_FAILING, parameters))


def sweep_refresh_failing(
    connection: Connection, gated: Collection[AppId], *, actor: str
) -> frozenset[AccountId]:
    """Tell the same of accounts that nobody asks about, up to :data:`SWEPT_AT_ONCE`; returns whose that was.

    Of those that are due and whose app is ``gated``, so paused, on hold or behind an open circuit; and of those that an
    incident has set apart. Relies on ``ix_refresh_schedule_due`` and ``ix_refresh_schedule_incident``.
    """
    parameters = {
        "app_ids": sorted(gated),
        "at_most": SWEPT_AT_ONCE,
        "event": EventType.REFRESH_FAILING.value,
        "actor": actor,
    }
    return frozenset(AccountId(row.account_id) for row in connection.execute(_SWEEP, parameters))


def tell_reauth_upcoming(
    connection: Connection, ends: Mapping[AccountId, datetime], *, actor: str
) -> frozenset[AccountId]:
    """Tell of active accounts that their grants end at these moments, once for each grant; returns who was told."""
    parameters = {
        "account_ids": sorted(ends),
        "ends": [ends[account_id] for account_id in sorted(ends)],
        "event": EventType.REAUTH_UPCOMING.value,
        "actor": actor,
    }
    return frozenset(AccountId(row.id) for row in connection.execute(_UPCOMING, parameters))
