"""How the attempts of each app end now and usually end, and how many of its accounts need a sign-in.

Cheap at a million accounts and a history of months: the last minutes are read exactly, by ``ix_account_events_at``
(BRIN), unless there are more than :data:`EXACT` attempts in them; then, and for what is usual, a sample is taken, whole
pages spread over the partitions of those days alone. Those who need a sign-in are counted by ``ix_accounts_troubled``,
all accounts by ``ix_accounts_app_id`` alone, those who wait by ``ix_refresh_schedule_due``.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import Connection, TextClause, text

from store.gates import OWN_APPS, OpenIncident, open_incidents
from store.history import estimated_rows, midnight
from tokenfleet.jobs import AppId
from tokenfleet.spikes import Answers, Ending

SAMPLE: Final = 150_000
"""About so many rows of the past are looked at; between a third and all of them are of the day before."""
EXACT: Final = 250_000
"""So many attempts of now are all looked at: ten minutes at 400/s."""
WAITING: Final = 1_000
"""How many accounts that wait are counted at most."""
USUAL: Final = timedelta(hours=24)
SUCCEEDED: Final = ("refresh.succeeded", "probe.alive")
FAILED: Final = (
    "account.grant_rejected",
    "refresh.grant_rejected",
    "refresh.client_rejected",
    "refresh.throttled",
    "refresh.unavailable",
    "refresh.unknown",
    "refresh.our_fault",
    "refresh.undescribed",
    "probe.dead",
)

_NAME: Final = "CASE WHEN p.account_external_id IS NULL THEN p.name ELSE CAST(:own AS text) END"
_ATTEMPTS: Final = """
    -- Materialized: joined at once, the planner walks a whole day's index to have it in the order of accounts.
    WITH e AS MATERIALIZED (
        SELECT account_id, kind, COALESCE(code, '') AS code, duration_ms
        FROM tokenfleet.account_events {sample}
        WHERE at > now() - CAST(:begin AS interval) AND at <= now() - CAST(:end AS interval)
          AND kind = ANY (CAST(:kinds AS text[]))
    )
    SELECT p.provider, p.environment, {name} AS name, e.kind, e.code, count(*) AS attempts,
           percentile_cont(0.5) WITHIN GROUP (ORDER BY e.duration_ms) AS median_ms,
           count(DISTINCT CASE WHEN e.kind <> ALL (CAST(:succeeded AS text[])) THEN e.account_id END) AS accounts
    FROM e JOIN tokenfleet.accounts a ON a.id = e.account_id JOIN tokenfleet.oauth_apps p ON p.id = a.app_id
    GROUP BY 1, 2, 3, 4, 5
"""
_PART: Final = "TABLESAMPLE SYSTEM (CAST(:percent AS double precision)) REPEATABLE (1)"
_ALL = text(_ATTEMPTS.format(sample="", name=_NAME))
_SOME = text(_ATTEMPTS.format(sample=_PART, name=_NAME))

# The planner would rather walk a whole day of the history than use BRIN, look accounts up one by one, and compile what
# runs for half a second. What is sorted fits into this much memory.
PLANNING = text("""
    SELECT set_config('enable_indexscan', 'off', true), set_config('enable_seqscan', 'off', true),
           set_config('enable_nestloop', 'off', true), set_config('jit', 'off', true),
           set_config('work_mem', '64MB', true)
""")

_APPS = text(f"""
    SELECT p.provider, p.environment, {_NAME} AS name,
           array_agg(p.id) AS app_ids, sum(COALESCE(c.accounts, 0))::bigint AS accounts,
           sum(COALESCE(n.needs_reauth, 0))::bigint AS needs_reauth, sum(COALESCE(n.lately, 0))::bigint AS lately,
           COALESCE(sum(w.waiting) FILTER (
               WHERE p.held_since IS NULL AND (p.paused_until IS NULL OR p.paused_until < now())), 0)::bigint AS waiting
    FROM tokenfleet.oauth_apps p
    LEFT JOIN (SELECT app_id, count(*) AS accounts FROM tokenfleet.accounts GROUP BY app_id) c ON c.app_id = p.id
    LEFT JOIN (
        SELECT app_id, count(*) AS needs_reauth,
               count(*) FILTER (WHERE status_changed_at > now() - CAST(:usual AS interval)) AS lately
        FROM tokenfleet.accounts WHERE status = 'needs_reauth' GROUP BY app_id
    ) n ON n.app_id = p.id
    CROSS JOIN LATERAL (
        SELECT count(*) AS waiting FROM (
            SELECT FROM tokenfleet.refresh_schedule s
            WHERE s.app_id = p.id AND s.next_refresh_at < now() - CAST(:window AS interval)
            LIMIT CAST(:waiting AS int)
        ) late
    ) w
    WHERE CAST(:provider AS text) IS NULL OR p.provider = :provider
    GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
""")


@dataclass(frozen=True, slots=True)
class AppHealth:
    """One app: its accounts, and how attempts end now and usually. Registrations of single accounts are one app here.

    ``needs_reauth_lately`` of ``needs_reauth`` became so within a day. ``waiting`` were due before ``now`` began and
    still are, though nothing stands in their way: :data:`WAITING` at most.
    """

    provider: str
    environment: str
    name: str
    registrations: int
    accounts: int
    needs_reauth: int
    needs_reauth_lately: int
    waiting: int
    now: Answers
    usual: Answers
    incidents: tuple[OpenIncident, ...]


_Name = tuple[str, str, str]


def read_health(
    connection: Connection, *, window: timedelta, provider: str | None
) -> tuple[datetime, list[AppHealth]]:
    """Return the health of each app, or of those of one provider, over the last ``window``; and the moment.

    Changes the planner's settings for the rest of the transaction: begin one of its own for it.
    """
    at: datetime = connection.execute(text("SELECT now()")).scalar_one()
    parameters = {
        "provider": provider,
        "usual": USUAL,
        "window": window,
        "waiting": WAITING,
        "own": OWN_APPS,
    }
    apps = connection.execute(_APPS, parameters).all()
    incidents = open_incidents(connection)
    # Only for what comes now: the indexes above are not to be left aside.
    connection.execute(PLANNING)
    begin = at - window - USUAL
    rows = estimated_rows(connection, begin, at)
    # As many in the window as usually: what these partitions hold began at midnight.
    expected = rows * (window / (at - midnight(begin)))
    now = _answers(connection, window, timedelta(0), EXACT / expected if expected else 1.0)
    usual = _answers(connection, window + USUAL, window, SAMPLE / rows if rows else 1.0)
    found = []
    for row in apps:
        name = row.provider, row.environment, row.name
        found.append(
            AppHealth(
                *name,
                registrations=len(row.app_ids),
                accounts=row.accounts,
                needs_reauth=row.needs_reauth,
                needs_reauth_lately=row.lately,
                waiting=min(row.waiting, WAITING),
                now=now.get(name, Answers()),
                usual=usual.get(name, Answers()),
                incidents=tuple(each for app_id in row.app_ids for each in incidents.get(AppId(app_id), ())),
            )
        )
    return at, found


def _answers(connection: Connection, begin: timedelta, end: timedelta, part: float) -> dict[_Name, Answers]:
    """Return how attempts ended between ``begin`` and ``end`` ago, from about ``part`` of them."""
    parameters = {
        "begin": begin,
        "end": end,
        "kinds": [*SUCCEEDED, *FAILED],
        "succeeded": [*SUCCEEDED],
        "own": OWN_APPS,
    }
    statement: TextClause = _ALL
    if part < 1:
        statement = _SOME
        parameters["percent"] = part * 100
    succeeded: dict[_Name, int] = defaultdict(int)
    medians: dict[_Name, tuple[bool, int, float | None]] = {}
    failed: dict[_Name, dict[Ending, int]] = defaultdict(dict)
    accounts: dict[_Name, dict[Ending, int]] = defaultdict(dict)
    for row in connection.execute(statement, parameters):
        name = row.provider, row.environment, row.name
        is_success = row.kind in SUCCEEDED
        if is_success:
            succeeded[name] += row.attempts
        else:
            failed[name][row.kind, row.code] = row.attempts
            accounts[name][row.kind, row.code] = row.accounts
        # Of the most frequent success, or else of the most frequent failure: a middle of everything would need every
        # row twice, and compare an outage's timeouts with yesterday's answers.
        rank = (is_success, row.attempts, row.median_ms)
        if rank[:2] > medians.get(name, (False, 0, None))[:2]:
            medians[name] = rank
    return {
        name: Answers(succeeded[name], failed[name], medians[name][2], accounts[name], min(1.0, part))
        for name in succeeded.keys() | failed.keys()
    }
