"""Requests of readers: how they are marked, and how who waits is told that it is over.

A reader asks in SQL (``tokenfleet_v1.request_refresh`` and ``report_unauthorized``: migration 0010), which sets
``requested_at`` and makes the account due. Invariants kept here:

* Whatever settles an attempt, or takes an account off the schedule, takes the mark off and tells
  :data:`~tokenfleet_client.contract.REFRESHED_CHANNEL`, in the UPDATE that it makes anyway: a success, a failure, a
  rejection, an operator's pause, an import. Who waits looks again, whatever the outcome.
* Nobody is told of an account that nobody asked for. ``NOTIFY`` takes a lock of the whole database at commit, which no
  scheduled refresh pays for; nor does one touch ``ix_refresh_schedule_requested``.
* A notification is a hint: it is lost with its connection, and a worker of the release before sends none. Readers look
  again by themselves (``docs/reading-tokens.md``).
"""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from tokenfleet_client.contract import REFRESHED_CHANNEL

WAKE_PAYLOAD: Final = "requested"
"""What the functions say on ``store.schedule.WAKE_CHANNEL``, with the id of the app: nothing but a request is new. A
scheduler of the release before does not look at it, and ticks."""

RETRY_AFTER: Final = timedelta(seconds=10)
"""How soon after a failed attempt a reader may have the next one made. The wait that the failures have brought it to
may be minutes long, for accounts that nobody needs now; with this, however many callers wait for an account, its
provider hears of it six times a minute at most, which an app's circuit and pace still bound."""

ANSWERED: Final = "requested_at = NULL, answered_request = s.requested_at"
"""What an UPDATE of ``refresh_schedule s`` sets that settles. It returns ``answered_request``, which then says whether
anybody had asked: in one statement there is no other way to see what a column was before."""


def told(account_id: str, generation: str, answered_request: str) -> str:
    """Return the expression that tells who waits for an account, and nobody where nobody does."""
    return (
        f"CASE WHEN {answered_request} IS NOT NULL "
        f"THEN CAST(pg_notify('{REFRESHED_CHANNEL}', {account_id} || ' ' || {generation}) AS text) END"
    )
