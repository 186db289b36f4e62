"""The statements of the contract, version 1.

Each is one statement in a transaction of its own: nothing is expected of a session, so they work through a pooler that
gives every transaction another connection.

How long something still lives is computed by the database, in the statement that reads it: the reader's clock may be
wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, NamedTuple

from tokenfleet_client.contract import (
    ACCESS_KEYS_VIEW,
    ACCESS_TOKENS_VIEW,
    CONTRACT_SCHEMA,
    REFRESHED_CHANNEL,
    REPORT_UNAUTHORIZED,
    REPORT_UNSEALINGS,
    REQUEST_REFRESH,
)


class TokenRow(NamedTuple):
    """A row of the view ``access_tokens``, and how many seconds its token had to live when it was read."""

    account_id: int
    provider: str
    environment: str
    external_id: str
    tenant: str | None
    status: str
    status_reason: str | None
    access_token: bytes | None
    token_type: str | None
    scope: str | None
    expires_at: datetime | None
    generation: int
    variables: Mapping[str, Any]
    failing_since: datetime | None
    last_error: str | None
    expires_in: float | None


class Reply(NamedTuple):
    """What the fleet answers to a request, and in how many seconds it tries again itself."""

    answer: str
    status: str
    status_reason: str | None
    generation: int
    expires_at: datetime | None
    retry_at: datetime | None
    last_error: str | None
    retry_in: float | None


_TOKENS: Final = f"""
    SELECT {", ".join(TokenRow._fields[:-1])},
           CAST(EXTRACT(epoch FROM expires_at - clock_timestamp()) AS double precision)
    FROM {CONTRACT_SCHEMA}.{ACCESS_TOKENS_VIEW}
"""
_REPLY: Final = f"""
    SELECT {", ".join(Reply._fields[:-1])},
           CAST(EXTRACT(epoch FROM retry_at - clock_timestamp()) AS double precision)
    FROM {CONTRACT_SCHEMA}.
"""

READ_BY_ID: Final = f"{_TOKENS} WHERE account_id = %s"
READ_BY_NAMES: Final = f"{_TOKENS} WHERE provider = %s AND external_id = %s AND environment = %s"
READ_PAGE: Final = f"""{_TOKENS}
    WHERE account_id > %s AND status = 'active' AND access_token IS NOT NULL
      AND (expires_at IS NULL OR expires_at > clock_timestamp())
      AND (CAST(%s AS text) IS NULL OR tenant = %s) AND (CAST(%s AS text) IS NULL OR provider = %s)
      AND (CAST(%s AS text) IS NULL OR environment = %s)
    ORDER BY account_id LIMIT %s
"""
READ_KEYS: Final = (
    f"SELECT data_key_id, kek_id, wrapped, is_primary FROM {CONTRACT_SCHEMA}.{ACCESS_KEYS_VIEW}"
)
ASK_FOR_REFRESH: Final = f"{_REPLY.rstrip()}{REQUEST_REFRESH}(%s, %s)"
SAY_UNAUTHORIZED: Final = f"{_REPLY.rstrip()}{REPORT_UNAUTHORIZED}(%s, %s)"
SAY_OPENED: Final = f"SELECT {CONTRACT_SCHEMA}.{REPORT_UNSEALINGS}(%s, %s, %s)"
LISTEN: Final = f"LISTEN {REFRESHED_CHANNEL}"
BACKEND_PID: Final = "SELECT pg_backend_pid()"
"""Another process than the one that the connection was greeted by: there is a pooler between."""
