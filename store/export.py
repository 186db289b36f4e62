"""Accounts that leave for another fleet: let go of here in the transaction in which their tokens are read.

Two fleets must never refresh one grant: a provider that rotates would see a token twice (G2). Invariants kept here:

* An account that is exported is paused in the same transaction, with a reason that begins with
  :data:`tokenfleet.account.EXPORTED`. The rows of its tokens and its schedule are locked by then, so nobody starts an
  attempt between the two (``store.schedule.start`` waits for the row, and then finds the account paused).
* An account whose tokens may not be its newest ones is left out: an attempt was started and is not settled, an answer
  is missing, or another answer waits among the candidates. What such an attempt brings is saved here first.
* Who was exported to one recipient is given to no other.
* What has left is remembered like an imported token, and only an export that another fleet made later brings an account
  back (``store.import_judgement``): no file of this fleet's own ever starts anybody here.

Locks are taken in everybody's order: token set, account, schedule. With ``keep_running`` nobody is paused; that is for
backups, and for providers that never replace what is presented to them. Such a file does not say ``exported_at``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final
from uuid import UUID, uuid4

import msgspec
from sqlalchemy import Connection, Engine, Row, text
from sqlalchemy.exc import DBAPIError

from store import audit, fingerprints, transitions
from store.engine import is_contention
from store.import_line import fingerprint
from store.keys import Vault
from tokenfleet.account import EXPORTED, Trigger
from tokenfleet.jobs import AccountId
from tokenfleet_client.contract import AccountStatus
from tokenfleet_client.envelope import access_token_binding, refresh_token_binding
from tokenfleet_client.errors import EnvelopeError
from tokenfleet_client.secret import Secret
from tokenfleet_client.unsealings import Purpose

_ATTEMPTS: Final = 5
_RETRY_SECONDS: Final = 0.1
_KEPT: Final = frozenset({AccountStatus.CONNECTING, AccountStatus.ACTIVE, AccountStatus.PAUSED})
"""Statuses in which an account has something to bring."""

_PAUSED_BEFORE: Final = ", paused before"

_LOCK_ACCOUNTS = text("""
    SELECT id FROM tokenfleet.accounts WHERE id = ANY (CAST(:account_ids AS bigint[]))
    ORDER BY id FOR NO KEY UPDATE
""")

_LOCK_SCHEDULE = text("""
    SELECT account_id FROM tokenfleet.refresh_schedule WHERE account_id = ANY (CAST(:account_ids AS bigint[]))
    ORDER BY account_id FOR UPDATE
""")

_READ = text("""
    SELECT a.id, a.provider, a.environment, a.external_id, a.tenant, a.status, a.status_reason, a.variables,
           a.metadata, a.granted_at, a.imported_fingerprints, o.name AS app, o.client_id,
           t.generation, t.access_token, t.refresh_token, t.token_type, t.scope, t.expires_at, t.obtained_at,
           t.refresh_token_expires_at, t.variables AS answer_variables, t.learned_lifetime,
           s.claimed_until IS NOT NULL AND s.started_epoch = s.claim_epoch AS is_started,
           s.claimed_until <= clock_timestamp() AS is_overdue,
           s.unanswered > 0 OR COALESCE(s.last_error, '') LIKE 'answer_refused%' OR EXISTS (
               SELECT FROM tokenfleet.token_candidates c
               WHERE c.account_id = a.id AND c.generation = t.generation AND t.epoch > 0) AS is_unsure,
           s.incident_id IS NOT NULL AS is_parked, now() AS exported_at
    FROM tokenfleet.accounts a
    JOIN tokenfleet.oauth_apps o ON o.id = a.app_id
    JOIN tokenfleet.token_sets t ON t.account_id = a.id
    JOIN tokenfleet.refresh_schedule s ON s.account_id = a.id
    WHERE a.id = ANY (CAST(:account_ids AS bigint[]))
    ORDER BY a.id
""")

_MARK = text("""
    UPDATE tokenfleet.accounts
    SET status_reason = CASE WHEN starts_with(status_reason, :prefix) THEN status_reason ELSE :reason END,
        -- When it left last. Of two exports at once the one that commits later may have begun earlier.
        status_changed_at = GREATEST(now(), CASE WHEN starts_with(status_reason, :prefix) THEN status_changed_at END)
    WHERE id = ANY (CAST(:account_ids AS bigint[])) AND status = 'paused'
""")

_NOTE = text("""
    INSERT INTO tokenfleet.account_events (account_id, kind, generation, job_id, actor, detail)
    SELECT account_id, 'account.exported', generation, CAST(:export_id AS uuid), CAST(:actor AS text),
           CAST(:detail AS jsonb)
    FROM unnest(CAST(:account_ids AS bigint[]), CAST(:generations AS bigint[])) AS i (account_id, generation)
""")


class LeftOut(StrEnum):
    """Why an account stays."""

    ENDED = "ended"
    """It needs a sign-in or was revoked: there is no token that anybody could use."""
    STARTED = "started"
    """Its provider is being asked: it can go when that is settled."""
    UNSURE = "unsure"
    """An answer is missing, or there are two: its next refresh tells which token lives."""
    PARKED = "parked"
    """An incident has set it apart: its token was rejected, and nobody knows yet whether to believe that."""
    ELSEWHERE = "elsewhere"
    """It was exported to another recipient."""
    UNREADABLE = "unreadable"
    """Our keys do not open its tokens."""


@dataclass(frozen=True, slots=True)
class Departure:
    """What became of a page of accounts: a line of JSON for each that goes, a reason for each that stays."""

    lines: tuple[bytes, ...]
    left_out: Mapping[AccountId, LeftOut]
    names: Mapping[AccountId, str]
    """What each that stays is called: provider and external id."""


class Exporter:
    """One export to ``recipient``, a public key by its spelling.

    ``presents_refresh_token`` answers for provider names: what is never presented is not exported, because an import
    takes it for a mistake. ``reason`` stands in the audit log and in the history of each.
    """

    def __init__(
        self,
        engine: Engine,
        vault: Vault,
        presents_refresh_token: Callable[[str], bool],
        *,
        recipient: str,
        by: audit.Operator,
        reason: str | None = None,
        keep_running: bool = False,
    ) -> None:
        self._engine = engine
        self._vault = vault
        self._presents_refresh_token = presents_refresh_token
        self._recipient = recipient
        self._by = by
        self._reason = reason
        self._keep_running = keep_running
        self.export_id: Final[UUID] = uuid4()
        """The ``job_id`` of this export's rows in the history."""

    def take(self, account_ids: Sequence[AccountId]) -> Departure:
        """Let go of accounts and return what another fleet needs of them. Commits.

        Ids that do not exist are passed over. Lines are to be written after this: an account whose line got lost is
        exported to the same recipient again by another call. Raises SQLAlchemy's ``DBAPIError``.
        """
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                with self._engine.begin() as connection:
                    return self._take(connection, sorted(account_ids))
            except DBAPIError as error:
                if attempt == _ATTEMPTS or not is_contention(error):
                    raise
                time.sleep(_RETRY_SECONDS * attempt)
        raise AssertionError("the last attempt returns or raises")

    def _take(self, connection: Connection, account_ids: list[AccountId]) -> Departure:
        parameters = {"account_ids": account_ids}
        transitions.lock(connection, account_ids)
        connection.execute(_LOCK_ACCOUNTS, parameters)
        connection.execute(_LOCK_SCHEDULE, parameters)
        lines: list[bytes] = []
        credentials: dict[AccountId, list[bytes]] = {}
        left_out: dict[AccountId, LeftOut] = {}
        names: dict[AccountId, str] = {}
        leaving: list[Row[Any]] = []
        # In a snapshot of its own, which sees what was committed while the locks were waited for.
        for row in connection.execute(_READ, parameters):
            account_id = AccountId(row.id)
            names[account_id] = f"{row.provider}/{row.external_id}"
            if (why := self._stays(row)) is not None:
                left_out[account_id] = why
                continue
            try:
                line, credential = self._line(row)
            except EnvelopeError:
                left_out[account_id] = LeftOut.UNREADABLE
            else:
                lines.append(line)
                leaving.append(row)
                if credential:
                    credentials[account_id] = [fingerprint(Secret(credential))]
        if leaving:
            self._let_go(connection, leaving)
            if not self._keep_running:
                fingerprints.remember(connection, credentials)
        return Departure(tuple(lines), left_out, {each: names[each] for each in left_out})

    def _stays(self, row: Row[Any]) -> LeftOut | None:
        if row.status not in _KEPT:
            return LeftOut.ENDED
        is_exported = row.status == AccountStatus.PAUSED and (row.status_reason or "").startswith(EXPORTED)
        if is_exported and row.status_reason not in (self._mark, self._mark + _PAUSED_BEFORE):
            return LeftOut.ELSEWHERE
        if row.is_started:
            # Of a paused account nobody takes up what was left lying.
            is_left = row.is_overdue and row.status == AccountStatus.PAUSED
            return LeftOut.UNSURE if is_left else LeftOut.STARTED
        if row.is_parked:
            return LeftOut.PARKED
        return LeftOut.UNSURE if row.is_unsure else None

    @property
    def _mark(self) -> str:
        return f"{EXPORTED}{self._recipient}"

    def _let_go(self, connection: Connection, leaving: Sequence[Row[Any]]) -> None:
        ids = [AccountId(row.id) for row in leaving]
        if not self._keep_running:
            moved = transitions.apply(
                connection,
                Trigger.PAUSED,
                ids,
                actor=self._by.actor,
                reason=self._mark,
                job_id=self.export_id,
            )
            # Those that were paused: who resumes them has to learn that they are elsewhere now, and since when.
            paused = [each for each in ids if each not in moved]
            mark = {"prefix": EXPORTED, "reason": self._mark + _PAUSED_BEFORE}
            connection.execute(_MARK, mark | {"account_ids": paused})
            transitions.unschedule(connection, ids)
        told = {"recipient": self._recipient, "kept_running": self._keep_running}
        connection.execute(
            _NOTE,
            {
                "account_ids": ids,
                "generations": [row.generation for row in leaving],
                "export_id": self.export_id,
                "actor": self._by.actor,
                "detail": msgspec.json.encode(
                    told | ({"reason": self._reason} if self._reason else {})
                ).decode(),
            },
        )
        # One row for a page, not for an account: the history of each account names the export.
        entry = audit.Entry(f"export/{self.export_id}", {"accounts": len(ids), **told})
        audit.record(connection, self._by, audit.Action.ACCOUNTS_EXPORT, [entry], reason=self._reason)

    def _line(self, row: Row[Any]) -> tuple[bytes, str | None]:
        """Return a line as an import takes it, and what the account lives by. Raises :class:`EnvelopeError`."""
        place = (row.id, row.generation)
        refresh_token = access_token = None
        if row.refresh_token is not None and self._presents_refresh_token(row.provider):
            refresh_token = self._vault.refresh.open(
                row.refresh_token, refresh_token_binding(*place), Purpose.EXPORT
            )
        if row.access_token is not None:
            access_token = self._vault.access.open(
                row.access_token, access_token_binding(*place), Purpose.EXPORT
            )
        was_paused = row.status == AccountStatus.PAUSED and row.status_reason != self._mark
        status = AccountStatus.ACTIVE if access_token else AccountStatus.CONNECTING
        line = {
            "provider": row.provider,
            "external_id": row.external_id,
            "refresh_token": refresh_token,
            "access_token": access_token,
            "token_type": row.token_type,
            "scope": row.scope,
            "expires_at": row.expires_at if access_token else None,
            "refresh_token_expires_at": row.refresh_token_expires_at,
            "tenant": row.tenant,
            "environment": row.environment,
            "app": row.app,
            "variables": row.variables,
            "metadata": row.metadata,
            "received_at": row.obtained_at,
            "granted_at": row.granted_at,
            "learned_lifetime": None
            if row.learned_lifetime is None
            else row.learned_lifetime.total_seconds(),
            "answer_variables": row.answer_variables,
            "client_id": row.client_id,
            "status": (AccountStatus.PAUSED if was_paused else status).value,
            # Whoever goes on has not let go, and nobody takes the account over from it.
            "exported_at": None if self._keep_running else row.exported_at,
            "fingerprints": [bytes(each).hex() for each in row.imported_fingerprints],
        }
        encoded = msgspec.json.encode({name: value for name, value in line.items() if value}) + b"\n"
        return encoded, refresh_token or access_token
