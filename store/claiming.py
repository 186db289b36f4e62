"""Who is asked next: claiming due accounts, the most urgent first.

Invariants kept here:

* A claim is a durable fact: ``claimed_until`` and a new ``claim_epoch``, committed before any message is sent. An
  expired claim is simply due again; that predicate is the whole rescue procedure. It is started once
  (``store.schedule``).
* A claim that was started and never settled means that an answer may have been lost: the next claim counts it in
  ``unanswered``, and says so in ``last_error`` (:data:`~tokenfleet.policy.UNSETTLED`).

Relies on ``ix_refresh_schedule_due``, ``ix_refresh_schedule_requested`` and ``pk_refresh_schedule``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import Connection, text

from tokenfleet.jobs import AccountId, AppId, Epoch
from tokenfleet.policy import UNSETTLED

CLAIMED: Final = """claimed_until = now() + CAST(:claim AS interval),
        claim_epoch = s.claim_epoch + 1,
        unanswered = s.unanswered + CASE
            WHEN s.claimed_until IS NOT NULL AND s.started_epoch = s.claim_epoch THEN 1 ELSE 0 END,
        last_error = CASE
            WHEN s.claimed_until IS NOT NULL AND s.started_epoch = s.claim_epoch THEN CAST(:unsettled AS text)
            ELSE s.last_error END,
        answered_request = NULL"""
"""What a claim sets: shared with ``store.parking``, which claims samples. A visit that was to probe only counts too:
a worker of the release before presents the refresh token at any."""

UNTAKEN: Final = """(s.claimed_until IS NOT NULL AND s.started_epoch < s.claim_epoch
                AND s.answered_request IS DISTINCT FROM s.requested_at)"""
"""Says of a requested account that is claimed now that its last claim ended without any worker's having looked at it:
who puts it off says so (``answered_request``), and the next claim forgets that."""

REQUESTED_SHARE: Final = 4
"""One in so many of an app's claims may be for accounts that readers wait for, where others are due as well."""

_DUE_ANYWAY: Final = "(w.requested_at IS NULL OR w.requested_at > w.next_refresh_at)"
"""Says that no reader has brought an account forward: of those, both moments are one. Who was due before he was asked
for keeps his place among the others beside that among the requested; else being wanted would cost him his turn."""

_CLAIM = text(f"""
    WITH allowance AS (
        SELECT * FROM unnest(CAST(:app_ids AS bigint[]), CAST(:counts AS int[]), CAST(:windows AS int[]),
                             CAST(:requested AS int[]))
            AS allowance (app_id, count, outstanding, requested)
    ), picked AS (
        SELECT due.*
        FROM allowance CROSS JOIN LATERAL (
            SELECT s.account_id, {UNTAKEN} AS is_untaken
            FROM tokenfleet.refresh_schedule s
            WHERE s.account_id = ANY (ARRAY(
                    -- The most urgent due accounts, claimed or not: the window is the cap on what one app
                    -- can have outstanding, so a provider that hangs never occupies the fleet.
                    -- First whom a reader waits for, but in a share of it, which may be named twice; what is left over
                    -- is theirs. Probes take what refreshes leave, however long they have waited (G1).
                    SELECT urgent.account_id FROM (
                        (SELECT w.account_id FROM tokenfleet.refresh_schedule w
                         WHERE w.app_id = allowance.app_id AND w.requested_at IS NOT NULL
                           AND w.next_refresh_at <= now()
                         ORDER BY w.next_refresh_at LIMIT allowance.requested)
                        UNION ALL
                        (SELECT w.account_id FROM tokenfleet.refresh_schedule w
                         WHERE w.app_id = allowance.app_id AND w.next_refresh_at <= now() AND NOT w.probing
                           AND {_DUE_ANYWAY}
                         ORDER BY w.next_refresh_at LIMIT allowance.outstanding)
                        UNION ALL
                        (SELECT w.account_id FROM tokenfleet.refresh_schedule w
                         WHERE w.app_id = allowance.app_id AND w.next_refresh_at <= now() AND w.probing
                           AND {_DUE_ANYWAY}
                         ORDER BY w.next_refresh_at LIMIT allowance.outstanding)
                        UNION ALL
                        (SELECT w.account_id FROM tokenfleet.refresh_schedule w
                         WHERE w.app_id = allowance.app_id AND w.requested_at IS NOT NULL
                           AND w.next_refresh_at <= now()
                         ORDER BY w.next_refresh_at LIMIT allowance.outstanding OFFSET allowance.requested)
                    ) urgent LIMIT allowance.outstanding))
                -- Asked of the row that is locked: since the list was made it may have been paused, or given up.
                AND s.next_refresh_at <= now()
                AND (s.claimed_until IS NULL OR (s.claimed_until <= now()
                    AND (CAST(:take_over AS boolean) OR s.started_epoch < s.claim_epoch)))
            ORDER BY s.requested_at IS NULL, s.probing, s.next_refresh_at
            LIMIT allowance.count
            FOR UPDATE SKIP LOCKED
        ) due
    )
    UPDATE tokenfleet.refresh_schedule s
    SET {CLAIMED}
    FROM picked WHERE s.account_id = picked.account_id
    RETURNING s.app_id, s.account_id, s.claim_epoch, s.next_refresh_at, s.probing,
              s.requested_at IS NOT NULL AS is_requested, picked.is_untaken
""")


@dataclass(frozen=True, slots=True)
class Allowance:
    """What one app may get in this tick: ``count`` new claims within a window of ``outstanding``.

    ``turn`` is the tick's number: of windows that do not divide, requests have the odd place in their share of ticks.
    """

    app_id: AppId
    count: int
    outstanding: int
    turn: int = 0

    @property
    def requested(self) -> int:
        """How many of the window may be accounts that readers wait for, where others are due as well."""
        return (self.outstanding + self.turn % REQUESTED_SHARE) // REQUESTED_SHARE


@dataclass(frozen=True, slots=True)
class Claim:
    """One claimed account, and how overdue it was."""

    account_id: AccountId
    epoch: Epoch
    due_at: datetime
    is_requested: bool = False
    """A reader waits for it."""
    is_untaken: bool = False
    """It is requested, and no worker has looked at it under its last claim."""


def claim_due(
    connection: Connection,
    allowances: Sequence[Allowance],
    *,
    claim: timedelta,
    take_over: bool = True,
) -> dict[AppId, list[Claim]]:
    """Claim due accounts, most urgent first, at most ``count`` for each app, for ``claim`` from now.

    ``take_over`` False leaves out accounts whose expired claim was started: their answer may be in somebody's
    hands. Commit before publishing them. Any number of schedulers may do this at once; none waits for another.
    """
    rows = connection.execute(
        _CLAIM,
        {
            "app_ids": [allowance.app_id for allowance in allowances],
            "counts": [allowance.count for allowance in allowances],
            "windows": [allowance.outstanding for allowance in allowances],
            "requested": [allowance.requested for allowance in allowances],
            "claim": claim,
            "take_over": take_over,
            "unsettled": UNSETTLED,
        },
    )
    claims: dict[AppId, list[Claim]] = defaultdict(list)
    # Probes last, also in the jobs that are made of this.
    for row in sorted(rows, key=lambda row: (not row.is_requested, row.probing, row.next_refresh_at)):
        claim_made = Claim(
            AccountId(row.account_id),
            Epoch(row.claim_epoch),
            row.next_refresh_at,
            row.is_requested,
            row.is_untaken,
        )
        claims[AppId(row.app_id)].append(claim_made)
    return dict(claims)
