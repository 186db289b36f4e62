"""What is told of one account beside its history: operators, incidents, other accounts, webhooks.

Read only, for people: a handful of statements for one account, each on an index, whatever the size of the fleet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from sqlalchemy import Connection, text

from store import audit, history, incidents
from store.audit import AuditFilter, AuditRow
from store.details import AccountDetail
from store.history import HistoryRow
from store.incidents import Incident

BESIDE: Final = timedelta(minutes=10)
"""Accounts of an app that lost their grants so near to each other may have done so for one reason."""
ACTIONS: Final = 50
TOLD: Final = 20

_INCIDENTS = text("""
    SELECT id FROM tokenfleet.provider_incidents
    WHERE app_id = :app_id AND (resolved_at IS NULL OR resolved_at >= :since) ORDER BY id DESC LIMIT 10
""")

_TOLD = text("""
    SELECT o.id AS event_id, o.event_type, o.created_at AS at, o.is_relayed, d.id AS delivery_id, d.endpoint_id,
           d.state, d.attempts, d.last_status, d.last_error, d.finished_at, d.next_attempt_at
    FROM (SELECT id, event_type, created_at, is_relayed, sequence FROM tokenfleet.outbox WHERE account_id = :account_id
          ORDER BY sequence DESC LIMIT :limit) o
    LEFT JOIN tokenfleet.webhook_deliveries d ON d.event_id = o.id
    ORDER BY o.sequence DESC, d.endpoint_id
""")

_BESIDE = text("""
    SELECT count(*) FROM tokenfleet.accounts
    WHERE status = 'needs_reauth' AND app_id = :app_id AND id <> :account_id
      AND status_changed_at BETWEEN CAST(:at AS timestamptz) - CAST(:beside AS interval)
                                AND CAST(:at AS timestamptz) + CAST(:beside AS interval)
""")


@dataclass(frozen=True, slots=True)
class Told:
    """One event about the account, and what became of it at one endpoint.

    Without an endpoint it is on its way until it ``is_relayed``; from then on nobody had asked for it.
    """

    event_id: UUID
    event_type: str
    at: datetime
    is_relayed: bool
    delivery_id: int | None
    endpoint_id: int | None
    state: str | None
    attempts: int | None
    last_status: int | None
    last_error: str | None
    finished_at: datetime | None
    next_attempt_at: datetime | None


@dataclass(frozen=True, slots=True)
class Story:
    """Everything that is recorded about one account, the newest first.

    ``actions`` are what operators did to it, ``app_actions`` what they did to its app. ``beside`` is how many others
    of its app lost their grants within :data:`BESIDE` of it, None when it has not lost its own.
    """

    history: Sequence[HistoryRow]
    is_whole: bool
    """Whether ``history`` goes back to its beginning, as far as that is kept."""
    kept_since: datetime | None
    """Where history begins that is kept, when the account is older than that; None when nothing is missing."""
    actions: Sequence[AuditRow]
    app_actions: Sequence[AuditRow]
    incidents: Sequence[Incident]
    told: Sequence[Told]
    beside: int | None


def read_story(connection: Connection, account: AccountDetail, *, limit: int) -> Story:
    """Return the newest ``limit`` rows of an account's history and all that stands beside them.

    Relies on ``ix_account_events_account_id``, ``ix_audit_log_target``, ``ix_outbox_account_id`` and
    ``ix_accounts_troubled``.
    """
    rows = history.of_account(connection, account.account_id, limit=limit + 1)
    shown = rows[:limit]
    app = account.app
    app_name = audit.app_target(account.provider, app.environment, app.name)
    since = min([row.at for row in shown] + [account.status_changed_at])
    numbers = connection.execute(_INCIDENTS, {"app_id": app.app_id, "since": since}).scalars().all()
    found = (incidents.load(connection, number) for number in numbers)
    told = connection.execute(_TOLD, {"account_id": account.account_id, "limit": TOLD})
    beside = None
    if account.status.value == "needs_reauth":
        parameters = {
            "app_id": app.app_id,
            "account_id": account.account_id,
            "at": account.status_changed_at,
            "beside": BESIDE,
        }
        beside = int(connection.execute(_BESIDE, parameters).scalar_one())
    return Story(
        history=shown,
        is_whole=len(rows) <= limit,
        kept_since=_kept_since(connection, account, rows),
        actions=audit.read_newest(
            connection, AuditFilter(target=audit.account_target(account.account_id)), limit=ACTIONS
        ),
        app_actions=audit.read_newest(connection, AuditFilter(target=app_name, since=since), limit=ACTIONS),
        incidents=[each for each in found if each is not None],
        told=[Told(**row._mapping) for row in told],
        beside=beside,
    )


def _kept_since(
    connection: Connection, account: AccountDetail, rows: Sequence[HistoryRow]
) -> datetime | None:
    begins = history.begins(connection)
    # Days without a partition are in the default one. The first row of an account is its import's.
    oldest = [history.midnight(rows[-1].at)] if rows else []
    begin = min([*oldest, *([begins] if begins is not None else [])], default=None)
    return begin if begin is not None and account.created_at < begin else None
