"""A good answer on its way to Postgres: one row of columns, sealed, as the journal keeps it and SQL takes it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import IntEnum
from typing import Any, Final
from uuid import UUID

from tokenfleet.jobs import AccountId, Epoch

COLUMNS: Final = """
    unnest(CAST(:account_id AS bigint[]), CAST(:epoch AS bigint[]), CAST(:generation AS bigint[]),
           CAST(:access_token AS bytea[]), CAST(:refresh_token AS bytea[]), CAST(:token_type AS text[]),
           CAST(:scope AS text[]), CAST(:expires_at AS timestamptz[]), CAST(:obtained_at AS timestamptz[]),
           CAST(:refresh_token_expires_at AS timestamptz[]), CAST(:variables AS jsonb[]),
           CAST(:next_refresh_at AS timestamptz[]), CAST(:job_id AS uuid[]), CAST(:duration_ms AS int[]),
           CAST(:probing AS boolean[]), CAST(:learned_lifetime AS interval[]), CAST(:part AS smallint[]))
        AS i (account_id, epoch, generation, access_token, refresh_token, token_type, scope, expires_at,
              obtained_at, refresh_token_expires_at, variables, next_refresh_at, job_id, duration_ms, probing,
              learned_lifetime, part)
"""

_PLAIN: Final = (
    "account_id epoch generation access_token refresh_token expires_at obtained_at refresh_token_expires_at "
    "next_refresh_at job_id duration_ms probing learned_lifetime part"
)


class Part(IntEnum):
    """Which part of an attempt's result it is, where steps follow the answer that brought the refresh token."""

    WHOLE = 0
    """All of it: there are no steps, or they had nothing to wait for."""
    FIRST = 1
    """The new refresh token. Steps follow under the same claim; readers keep their token, failures are remembered."""
    SECOND = 2
    """What the steps brought, over the first part of the same attempt and over nothing else. It is never a candidate:
    its refresh token is that of the first part."""


@dataclass(frozen=True, slots=True)
class SavedTokens:
    """A good answer, sealed for ``generation + 1``. ``generation`` is the one it was asked with.

    Journals hold it, and those of the release before this one are read too: fields are added at the end, each with a
    default that says what a record without it means.
    """

    account_id: AccountId
    epoch: Epoch
    generation: int
    access_token: bytes
    refresh_token: bytes | None
    token_type: str | None
    scope: str | None
    expires_at: datetime | None
    obtained_at: datetime
    refresh_token_expires_at: datetime | None
    variables: Mapping[str, str]
    next_refresh_at: datetime
    job_id: UUID
    duration_ms: int
    activates: bool
    """The account was not active when it was asked: this answer makes it so."""
    probing: bool = False
    """What is due next is a probing visit, not a refresh."""
    grant_ends_at: datetime | None = None
    """The end of the grant, if its customer has to be told now."""
    learned_lifetime: timedelta | None = None
    """How long a token of this account was found to live, if ``expires_at`` was taken from that."""
    part: Part = Part.WHOLE


def columns(answers: Sequence[SavedTokens]) -> dict[str, Any]:
    """Return the parameters of :data:`COLUMNS` for ``answers``."""
    return lists(answers, _PLAIN) | {
        "token_type": [_storable(answer.token_type) for answer in answers],
        "scope": [_storable(answer.scope) for answer in answers],
        "variables": [_object(answer.variables) for answer in answers],
    }


def lists(rows: Sequence[object], names: str) -> dict[str, Any]:
    """Return one list for each of the attributes ``names``, for ``unnest``."""
    return {name: [getattr(row, name) for row in rows] for name in names.split()}


def _storable(value: str | None) -> str | None:
    """Postgres holds any text but U+0000, which JSON can carry: an odd scope must not cost us the tokens."""
    return value.replace("\x00", "") if value else value


def _object(variables: Mapping[str, str]) -> str:
    if not variables:
        return "{}"
    return json.dumps({_storable(name): _storable(value) for name, value in variables.items()})
