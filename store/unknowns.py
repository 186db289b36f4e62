"""Answers that no rule describes, remembered by their shape, so that somebody can complete the definition.

A row is a provider, a code and a shape (``providers.shapes``): never a value of an answer (G6). Counted, not logged:
a provider that answers a thousand accounts oddly is one row. ``times`` may count an answer twice whose commit was in
doubt; nothing is decided by it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import Connection, text

from tokenfleet.jobs import AccountId

MAX_PER_PROVIDER: Final = 200
"""How many shapes of one provider are kept. One that invents a new shape each time pushes out the oldest ones."""

_COUNT = text("""
    WITH i AS MATERIALIZED (
        SELECT i.provider, i.code, i.shape, i.times, i.account_id
        FROM unnest(CAST(:providers AS text[]), CAST(:codes AS text[]), CAST(:shapes AS text[]),
                    CAST(:times AS bigint[]), CAST(:account_ids AS bigint[]))
            AS i (provider, code, shape, times, account_id)
        JOIN tokenfleet.unknown_answers u USING (provider, code, shape)
        ORDER BY i.provider, i.code, i.shape
        FOR UPDATE OF u
    )
    UPDATE tokenfleet.unknown_answers u
    SET times = u.times + i.times, last_seen_at = now(), account_id = i.account_id
    FROM i WHERE (u.provider, u.code, u.shape) = (i.provider, i.code, i.shape)
    RETURNING u.provider, u.code, u.shape
""")

_LOCK = text("SELECT pg_advisory_xact_lock(hashtext('tokenfleet.unknown_answers'))")

_ADD = text("""
    INSERT INTO tokenfleet.unknown_answers (provider, code, shape, times, account_id)
    SELECT * FROM unnest(CAST(:providers AS text[]), CAST(:codes AS text[]), CAST(:shapes AS text[]),
                         CAST(:times AS bigint[]), CAST(:account_ids AS bigint[]))
    ON CONFLICT (provider, code, shape) DO UPDATE
    SET times = unknown_answers.times + excluded.times, last_seen_at = now(), account_id = excluded.account_id
""")

_PRUNE = text("""
    DELETE FROM tokenfleet.unknown_answers u
    USING (
        SELECT provider, code, shape FROM tokenfleet.unknown_answers
        WHERE provider = CAST(:provider AS text)
        ORDER BY last_seen_at DESC, times DESC, code, shape
        OFFSET :kept
        -- One that somebody counts at this moment is in use: it stays until the next time.
        FOR UPDATE SKIP LOCKED
    ) oldest
    WHERE (u.provider, u.code, u.shape) = (oldest.provider, oldest.code, oldest.shape)
""")

_READ = text("""
    SELECT provider, code, shape, times, account_id, first_seen_at, last_seen_at
    FROM tokenfleet.unknown_answers
    WHERE CAST(:provider AS text) IS NULL OR provider = CAST(:provider AS text)
    ORDER BY provider, last_seen_at DESC, code, shape
""")


@dataclass(frozen=True, slots=True)
class UnknownAnswer:
    """An answer to ``account_id`` that no rule of ``provider`` describes."""

    provider: str
    code: str
    shape: str
    account_id: AccountId


@dataclass(frozen=True, slots=True)
class UnknownShape:
    """What is remembered of such answers: the last account that got one, how often, since when."""

    provider: str
    code: str
    shape: str
    times: int
    account_id: AccountId | None
    first_seen_at: datetime
    last_seen_at: datetime


def record(connection: Connection, answers: Sequence[UnknownAnswer]) -> None:
    """Count ``answers``: one statement while their shapes are known; :data:`MAX_PER_PROVIDER` are kept."""
    times = Counter((answer.provider, answer.code, answer.shape) for answer in answers)
    last = {(answer.provider, answer.code, answer.shape): answer.account_id for answer in answers}
    counted = {tuple(row) for row in connection.execute(_COUNT, _columns(sorted(times), times, last))}
    new = sorted(times.keys() - counted)
    if not new:
        return
    # New ones are rare. One transaction at a time adds and removes them, so that the bound holds.
    connection.execute(_LOCK)
    connection.execute(_ADD, _columns(new, times, last))
    for provider in sorted({provider for provider, _, _ in new}):
        connection.execute(_PRUNE, {"provider": provider, "kept": MAX_PER_PROVIDER})


def remembered(connection: Connection, provider: str | None = None) -> list[UnknownShape]:
    """Return what is remembered of one provider, or of all: by provider, the newest first."""
    rows = connection.execute(_READ, {"provider": provider})
    return [UnknownShape(**row._mapping) for row in rows]


_Key = tuple[str, str, str]


def _columns(
    keys: Sequence[_Key], times: Counter[_Key], last: dict[_Key, AccountId]
) -> dict[str, Sequence[str] | Sequence[int]]:
    return {
        "providers": [provider for provider, _, _ in keys],
        "codes": [code for _, code, _ in keys],
        "shapes": [shape for _, _, shape in keys],
        "times": [times[key] for key in keys],
        "account_ids": [last[key] for key in keys],
    }
