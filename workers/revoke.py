"""A visit to a revoked account: its provider is told to end the grant (RFC 7009), and its tokens are forgotten.

Promises:

* It comes by a claim and a lease like any refresh, so never beside one: what is presented is what the last refresh has
  left. It keeps the app's pace and pause (``workers.governor``), and its circuit counts nothing of it.
* Tokens are forgotten when the provider has confirmed, or when there is nobody to tell and nothing to tell it with.
  After any other answer they are kept, and the provider is asked again (``tokenfleet.revoking``).
* Good answers that lost a race are tokens too: they are revoked after the account's own.
"""

from __future__ import annotations

import random

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from providers.credentials import Grant, RequestBuildError
from providers.revocation import REVOCATION_TIMEOUT_SECONDS, Answered
from providers.transport import boottime
from store import candidates
from store.keys import Vault
from store.revocations import CONFIRMED, FORGOTTEN, REFUSED, UNANSWERED, RevocationMade
from store.schedule import Attempt
from tokenfleet import telemetry
from tokenfleet.revoking import ask_again_at
from tokenfleet_client.envelope import access_token_binding, refresh_token_binding
from tokenfleet_client.errors import EnvelopeError
from tokenfleet_client.secret import Secret
from tokenfleet_client.unsealings import Purpose
from workers.governor import Governor
from workers.pacing import POSTPONE_SECONDS, NotNow
from workers.settling import Asking
from workers.writer import GroupWriter

Tokens = tuple[bytes | None, bytes | None, int]
"""An access token and a refresh token, sealed for a generation."""


class Revoker:
    """Ends grants. One per worker process."""

    def __init__(self, engine: AsyncEngine, governor: Governor, vault: Vault, writer: GroupWriter) -> None:
        self._engine = engine
        self._governor = governor
        self._vault = vault
        self._writer = writer
        self._chance = random.SystemRandom().random

    async def visit(self, asking: Asking, attempt: Attempt) -> NotNow | None:
        """End the grant of a revoked account and settle; returns when it is worth another try if nothing was asked."""
        if not asking.provider.revokes:
            await self._settle(asking, attempt, FORGOTTEN, "not_supported")
            return None
        began, code = boottime(), None
        held: list[Tokens] = [(attempt.access_token, attempt.refresh_token, attempt.generation)]
        try:
            async with self._engine.connect() as connection:
                late = await connection.run_sync(candidates.of_account, attempt.account_id)
        except (SQLAlchemyError, OSError):
            return NotNow(POSTPONE_SECONDS)
        held += [(each.access_token, each.refresh_token, each.generation) for each in late]
        for tokens in held:
            try:
                grant = self._grant(asking, attempt, tokens)
                request = asking.provider.revocation_request(asking.client, grant, now=asking.now(attempt))
            except EnvelopeError:
                await self._settle(asking, attempt, UNANSWERED, "envelope_unreadable", again=True)
                return None
            except RequestBuildError as error:
                if error.code.endswith("_token_missing"):
                    continue
                await self._settle(asking, attempt, UNANSWERED, error.code, again=True)
                return None
            exchange = await self._governor.probe(
                request, asking, attempt, timeout_seconds=REVOCATION_TIMEOUT_SECONDS
            )
            if isinstance(exchange, NotNow):
                return exchange
            reading = asking.provider.read_revocation(exchange)
            telemetry.REVOCATIONS.labels(asking.provider.name, reading.answered.value).inc()
            if reading.answered is not Answered.REVOKED:
                kind = REFUSED if reading.answered is Answered.REFUSED else UNANSWERED
                await self._settle(asking, attempt, kind, reading.code, again=True, began=began)
                return None
            code = code or reading.code
        if code is None:
            await self._settle(asking, attempt, FORGOTTEN, "token_missing")
        else:
            await self._settle(asking, attempt, CONFIRMED, code, began=began)
        return None

    def _grant(self, asking: Asking, attempt: Attempt, tokens: Tokens) -> Grant:
        """Open tokens. Raises :class:`EnvelopeError` when their keys are not here, or they were altered."""
        access, refresh, generation = tokens
        account_id = attempt.account_id
        access_token = refresh_token = None
        if access is not None:
            opened = self._vault.access.open(
                access, access_token_binding(account_id, generation), Purpose.REVOKE
            )
            access_token = Secret(opened)
        if refresh is not None:
            opened = self._vault.refresh.open(
                refresh, refresh_token_binding(account_id, generation), Purpose.REVOKE
            )
            refresh_token = Secret(opened)
        variables = {**asking.app.variables, **attempt.variables}
        return Grant(refresh_token, attempt.scope, variables, access_token)

    async def _settle(
        self,
        asking: Asking,
        attempt: Attempt,
        kind: str,
        code: str,
        *,
        again: bool = False,
        began: float | None = None,
    ) -> None:
        now = asking.now(attempt)
        await self._writer.add(
            RevocationMade(
                account_id=attempt.account_id,
                epoch=attempt.epoch,
                generation=attempt.generation,
                kind=kind,
                code=code,
                next_refresh_at=ask_again_at(attempt.attempts, now=now, chance=self._chance)
                if again
                else None,
                job_id=asking.job_id,
                duration_ms=0 if began is None else round((boottime() - began) * 1000),
            )
        )
