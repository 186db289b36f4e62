"""The second chance of an answer that lost a race: it is tried before a rejection is believed.

Rare by nature, so nothing here is on the way of an ordinary refresh: one query for each rejection, and one for
each round of housekeeping.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final
from uuid import UUID

from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from store import candidates
from store.candidates import Candidate, Promotion
from store.engine import is_outage
from store.keys import Vault
from tokenfleet import telemetry
from tokenfleet.jobs import AccountId, Epoch
from tokenfleet.telemetry import Event
from tokenfleet_client.envelope import access_token_binding, refresh_token_binding
from tokenfleet_client.errors import EnvelopeError
from tokenfleet_client.secret import Secret
from tokenfleet_client.unsealings import Purpose
from workers.writer import GroupWriter

RETRY_SECONDS: Final = 0.5


class Candidates:
    """Brings candidates back. One per worker process."""

    def __init__(self, engine: AsyncEngine, vault: Vault, writer: GroupWriter) -> None:
        self._engine = engine
        self._vault = vault
        self._writer = writer
        self._unreadable: set[int] = set()

    async def succeed(
        self,
        account_id: AccountId,
        epoch: Epoch,
        generation: int,
        *,
        rejected: Secret,
        code: str | None,
        job_id: UUID | None,
        duration_ms: int | None,
    ) -> bool:
        """Let the newest candidate succeed the ``rejected`` token of ``generation``.

        That is the refresh token, where there are some, else the access token.

        Returns when it is written, or False when there is none: then the rejection stands. Waits while Postgres
        is away, since nobody can be told meanwhile either.
        """
        for candidate in await self._look(account_id):
            opened = self._open(account_id, candidate)
            if opened is None:
                continue
            access_token, refresh_token = opened
            if (access_token if refresh_token is None else refresh_token) == rejected:
                await self._discard(candidate)
                continue
            following = generation + 1
            promotion = Promotion(
                account_id=account_id,
                epoch=epoch,
                generation=generation,
                candidate_id=candidate.candidate_id,
                access_token=self._vault.access.seal(
                    access_token.reveal(), access_token_binding(account_id, following)
                ),
                refresh_token=None
                if refresh_token is None
                else self._vault.refresh.seal(
                    refresh_token.reveal(), refresh_token_binding(account_id, following)
                ),
                code=code,
                job_id=job_id,
                duration_ms=duration_ms,
            )
            await self._writer.add(promotion)
            return True
        return False

    async def restore_deposed(self) -> None:
        """Bring back accounts whose candidate came in after they were told to sign in again.

        Raises SQLAlchemy's ``SQLAlchemyError`` when Postgres is away.
        """
        async with self._engine.connect() as connection:
            accounts = await connection.run_sync(candidates.deposed)
        for account in accounts:
            try:
                place = (account.account_id, account.generation)
                if account.refresh_token is not None:
                    opened = self._vault.refresh.open(
                        account.refresh_token, refresh_token_binding(*place), Purpose.CANDIDATE
                    )
                else:
                    opened = self._vault.access.open(
                        account.access_token or b"", access_token_binding(*place), Purpose.CANDIDATE
                    )
                rejected = Secret(opened)
            except EnvelopeError:
                continue
            await self.succeed(
                account.account_id,
                account.epoch,
                account.generation,
                rejected=rejected,
                code=None,
                job_id=None,
                duration_ms=None,
            )

    async def _look(self, account_id: AccountId) -> list[Candidate]:
        while True:
            try:
                async with self._engine.connect() as connection:
                    return await connection.run_sync(candidates.of_account, account_id)
            except DBAPIError as error:
                if not is_outage(error):
                    raise
            except OSError:
                pass
            await asyncio.sleep(RETRY_SECONDS)

    async def _discard(self, candidate: Candidate) -> None:
        # It stays where it is when Postgres goes away now, and is passed over again.
        with contextlib.suppress(SQLAlchemyError, OSError):
            async with self._engine.begin() as connection:
                await connection.run_sync(candidates.discard, candidate.candidate_id)

    def _open(self, account_id: AccountId, candidate: Candidate) -> tuple[Secret, Secret | None] | None:
        generation = candidate.generation
        try:
            access = self._vault.access.open(
                candidate.access_token, access_token_binding(account_id, generation), Purpose.CANDIDATE
            )
            refresh = (
                None
                if candidate.refresh_token is None
                else Secret(
                    self._vault.refresh.open(
                        candidate.refresh_token,
                        refresh_token_binding(account_id, generation),
                        Purpose.CANDIDATE,
                    )
                )
            )
        except EnvelopeError:
            # Kept, since its key may come back; said once, since every round of housekeeping meets it.
            if candidate.candidate_id not in self._unreadable:
                self._unreadable.add(candidate.candidate_id)
                telemetry.alarm(Event.CANDIDATE_UNREADABLE, account_id=account_id)
            return None
        return Secret(access), refresh
