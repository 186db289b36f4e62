"""Claims that are given back: they were started, and nothing was sent under them.

Invariant: what is given back was no attempt. Nobody takes it for an answer that was lost, whoever claims it next.
Relies on ``pk_refresh_schedule``.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, text

from tokenfleet.jobs import AccountId, Epoch

_GIVE_BACK = text("""
    WITH given_back AS (
        SELECT s.account_id, i.wait FROM tokenfleet.refresh_schedule s
        JOIN unnest(CAST(:account_ids AS bigint[]), CAST(:epochs AS bigint[]), CAST(:waits AS double precision[]))
            AS i (account_id, epoch, wait) USING (account_id)
        WHERE s.claim_epoch = i.epoch AND s.claimed_until IS NOT NULL
        ORDER BY s.account_id
        FOR UPDATE OF s
    )
    UPDATE tokenfleet.refresh_schedule s
    -- Who waits is claimed by nobody, under a new epoch that is never started.
    SET claim_epoch = s.claim_epoch + CASE WHEN i.wait > 0 THEN 1 ELSE 0 END,
        claimed_until = CASE WHEN i.wait > 0 THEN clock_timestamp() + make_interval(secs => i.wait) END,
        answered_request = s.requested_at
    FROM given_back i WHERE s.account_id = i.account_id
""")


def give_back(connection: Connection, unasked: Sequence[tuple[AccountId, Epoch, float]]) -> None:
    """Give back started claims under which nothing was sent, each with the seconds for which nobody shall claim it.

    The due moment stays, and with it the account's place in its app's window: while it waits, nobody who is less urgent
    passes it. Writing twice does no harm.
    """
    connection.execute(
        _GIVE_BACK,
        {
            "account_ids": [account_id for account_id, _, _ in unasked],
            "epochs": [epoch for _, epoch, _ in unasked],
            "waits": [wait for _, _, wait in unasked],
        },
    )
