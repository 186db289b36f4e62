"""Claiming accounts that readers wait for, between two ticks: one statement, and nothing of what is merely due.

Invariant: a claim is one like any other (``store.claiming``): durable before anything is sent, with a new epoch, passed
through the same fence. What one app's requests have outstanding is capped by :attr:`Allowance.requested
<store.claiming.Allowance.requested>`; what that leaves waits for the next tick, or for a place.

Relies on ``ix_refresh_schedule_requested``, which is empty but for requests, and ``pk_refresh_schedule``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import Connection, text

from store.claiming import CLAIMED, UNTAKEN, Allowance, Claim
from tokenfleet.jobs import AccountId, AppId, Epoch
from tokenfleet.policy import UNSETTLED

_CLAIM = text(f"""
    WITH allowance AS (
        SELECT * FROM unnest(CAST(:app_ids AS bigint[]), CAST(:requested AS int[])) AS allowance (app_id, requested)
    ), picked AS (
        SELECT due.*
        FROM allowance CROSS JOIN LATERAL (
            SELECT s.account_id, {UNTAKEN} AS is_untaken
            FROM tokenfleet.refresh_schedule s
            WHERE s.account_id = ANY (ARRAY(
                    SELECT w.account_id FROM tokenfleet.refresh_schedule w
                    WHERE w.app_id = allowance.app_id AND w.requested_at IS NOT NULL AND w.next_refresh_at <= now()
                    ORDER BY w.next_refresh_at LIMIT allowance.requested))
                -- Asked of the row that is locked, as in store.claiming: it may have been settled or paused meanwhile.
                AND s.requested_at IS NOT NULL AND s.next_refresh_at <= now()
                AND (s.claimed_until IS NULL OR (s.claimed_until <= now() AND s.started_epoch < s.claim_epoch))
            ORDER BY s.next_refresh_at
            FOR UPDATE SKIP LOCKED
        ) due
    )
    UPDATE tokenfleet.refresh_schedule s
    SET {CLAIMED}
    FROM picked WHERE s.account_id = picked.account_id
    RETURNING s.app_id, s.account_id, s.claim_epoch, s.next_refresh_at, picked.is_untaken
""")


def claim_requested(
    connection: Connection, allowances: Sequence[Allowance], *, claim: timedelta
) -> dict[AppId, list[Claim]]:
    """Claim requested accounts that are due, the longest due first, for ``claim`` from now.

    Not those whose expired claim was started: an answer may be in somebody's hands, and the ticks know when to take
    over. Commit before publishing them.
    """
    rows = connection.execute(
        _CLAIM,
        {
            "app_ids": [allowance.app_id for allowance in allowances],
            "requested": [allowance.requested for allowance in allowances],
            "claim": claim,
            "unsettled": UNSETTLED,
        },
    )
    claims: dict[AppId, list[Claim]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: row.next_refresh_at):
        account_id, epoch = AccountId(row.account_id), Epoch(row.claim_epoch)
        claims[AppId(row.app_id)].append(Claim(account_id, epoch, row.next_refresh_at, True, row.is_untaken))
    return dict(claims)
