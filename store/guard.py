"""The blast-radius guard: how many of the rejections that arrive now may flip accounts.

Ten thousand customers are not told to sign in again because a provider had a bad minute. Invariants kept here:

* The decision is taken in the transaction that flips, under a lock on the app's row: of all writers together at most
  the limit of a window (``tokenfleet.guard``) is let pass.
* When it would be exceeded nobody of that batch is let pass: an incident opens, once, and has those as well who were
  flipped in the same window before it was noticed.
* While it is open, nobody of the app is flipped.

**Losses of our own.** After ``kill -9`` of a worker with 500 requests on the wire, a strict provider rejects up to 500
tokens that it had rotated meanwhile (``rotation_lost``). These say nothing of the provider: each is explained by a
claim of that account which was started and never settled, there are never more of them than our dead processes had in
flight, and those customers must be told. So they are not counted and open no incident. A ``rotation_lost`` after an
answer that the *provider* lost (a timeout, a reset) is counted like any other: during an outage thousands lose answers,
and what is rejected right after it is what this guard is for. And once an incident is open, explained ones are set
apart too: the provider's word is worth nothing then, whatever happened before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, text

from store import incidents, parking
from store.incidents import Incident, Kind
from tokenfleet.guard import SAMPLE_EVERY, Window
from tokenfleet.jobs import AppId

_LOCK_APPS = text("""
    SELECT id, rejections, rejections_since, rejection_limit, usual_rejections, rejections_in_row,
           clock_timestamp() AS now
    FROM tokenfleet.oauth_apps WHERE id = ANY (CAST(:app_ids AS bigint[]))
    ORDER BY id
    -- Not FOR UPDATE: imports refer to this row, and need not wait.
    FOR NO KEY UPDATE
""")

_COUNT_ACCOUNTS = text("SELECT count(*) FROM tokenfleet.accounts WHERE app_id = :app_id")

_NOTE = text("""
    UPDATE tokenfleet.oauth_apps
    SET rejections = :rejections, rejections_since = :since, rejection_limit = :limit, usual_rejections = :usual,
        rejections_in_row = :in_row
    WHERE id = :app_id
""")

_NOTE_SUCCESS = text("""
    UPDATE tokenfleet.oauth_apps SET rejections_in_row = 0
    WHERE id = ANY (CAST(:app_ids AS bigint[])) AND rejections_in_row > 0
""")


@dataclass(slots=True)
class Heard:
    """What one batch has to say about an app.

    ``counted`` rejections would flip somebody and are not explained; ``rejected`` is how many definite rejections
    there were in a row at its end, whomever they met. ``after_success`` says that these do not follow the app's
    earlier ones.
    """

    counted: int = 0
    rejected: int = 0
    after_success: bool = False
    codes: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Verdict:
    """``incident_id`` is what keeps everybody of this batch from being flipped, None when all may be.

    ``opened`` is that incident when it was this batch that opened it.
    """

    incident_id: int | None
    opened: Incident | None = None


def admit(connection: Connection, heard: Mapping[AppId, Heard]) -> dict[AppId, Verdict]:
    """Decide for each app whether its rejections flip accounts, and keep the apps locked until the commit.

    The caller has locked the accounts' rows of ``token_sets``, and nothing behind the apps in the order of locks.
    """
    rows = connection.execute(_LOCK_APPS, {"app_ids": sorted(heard)}).all()
    return {AppId(row.id): _admit(connection, row, heard[AppId(row.id)]) for row in rows}


def note_success(connection: Connection, app_ids: Sequence[AppId]) -> None:
    """Note that apps have had a success, so that their next rejections are none in a row."""
    connection.execute(_NOTE_SUCCESS, {"app_ids": sorted(app_ids)})


def _admit(connection: Connection, row: Any, heard: Heard) -> Verdict:
    app_id, now = AppId(row.id), row.now
    window = Window(row.rejections_since, row.rejections, row.rejection_limit, row.usual_rejections)
    in_row = (0 if heard.after_success else row.rejections_in_row) + heard.rejected
    # Read after the lock, so that an incident which another writer has opened meanwhile is seen.
    incident_id = incidents.open_of_app(connection, app_id, Kind.MASS_REJECTION)
    opened = None
    if incident_id is None and heard.counted:
        if window.is_over(now):
            window = window.following(now, accounts=_accounts(connection, app_id))
        admitted = window.admitting(heard.counted)
        if admitted is None:
            opened = _open(connection, app_id, window, heard)
            incident_id = opened.incident_id
        else:
            window = admitted
    _note(connection, app_id, window, in_row)
    return Verdict(incident_id, opened)


def _open(connection: Connection, app_id: AppId, window: Window, heard: Heard) -> Incident:
    [(code, _)] = heard.codes.most_common(1)
    opened = incidents.open_incident(
        connection,
        app_id,
        Kind.MASS_REJECTION,
        code=code,
        detail={"limit": window.limit, "flipped": window.rejections, "rejected_at_once": heard.counted},
        sample_after=SAMPLE_EVERY,
    )
    assert opened is not None, "the app is locked and has none"
    assert isinstance(window.since, datetime)
    parking.adopt_flipped(connection, opened, window.since)
    return opened


def _accounts(connection: Connection, app_id: AppId) -> int:
    """Count the app's accounts: once in a window, on an index (60 ms for a million)."""
    count: int = connection.execute(_COUNT_ACCOUNTS, {"app_id": app_id}).scalar_one()
    return count


def _note(connection: Connection, app_id: AppId, window: Window, in_row: int) -> None:
    connection.execute(
        _NOTE,
        {
            "app_id": app_id,
            "rejections": window.rejections,
            "since": window.since,
            "limit": window.limit,
            "usual": window.usual,
            "in_row": in_row,
        },
    )
