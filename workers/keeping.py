"""What an attempt came to is kept: a good answer on disk before anything else, any other end in Postgres.

Invariant: between a good answer and the journal there is no await, no log and no metric. In that moment the new refresh
token exists in this process only.
"""

from __future__ import annotations

import asyncio
import contextlib

from providers.transport import boottime
from store.answers import SavedTokens
from store.journal import Journal, JournalUnwritable
from store.schedule import Attempt
from tokenfleet import telemetry
from tokenfleet.outcome import Refreshed
from tokenfleet.policy import Quarantine
from tokenfleet.telemetry import Event
from workers.flushing import Flusher
from workers.reputation import Reputation
from workers.results import AppAnswered, AppPaused, AppRecovered, AppUnthrottled, Result
from workers.settling import KINDS, Asking, Judged, results
from workers.writer import GroupWriter


class Keeper:
    """Keeps the ends of attempts. One per worker process."""

    def __init__(
        self, journal: Journal, writer: GroupWriter, flusher: Flusher, reputation: Reputation
    ) -> None:
        self._journal = journal
        self._writer = writer
        self._flusher = flusher
        self._reputation = reputation

    def keep(self, asking: Asking, answer: SavedTokens, *beside: Result) -> asyncio.Future[bool]:
        """Put the sealed answer on disk and hand it to the writer, before anything else can fail.

        A refusing disk stops new attempts (``Journal.trouble``), never this answer. The future is that of
        ``GroupWriter.add``.
        """
        written: tuple[Result, ...] = (answer, *beside)
        if asking.app.held_since is not None:
            written += (AppRecovered(asking.app.app_id, asking.app.generation),)
        if asking.app.throttles:
            written += (AppUnthrottled(asking.app.app_id),)
        if asking.app.is_sampled:
            written += (AppAnswered(asking.app.app_id),)
        segment = None
        with contextlib.suppress(JournalUnwritable):
            segment = self._journal.append(answer)
            self._flusher.note()
        added = self._writer.add(*written, segment=segment)
        self._reputation.succeeded(asking.app)
        return added

    def pause(self, *pause: AppPaused) -> None:
        """Write that an app pauses, whatever becomes of the account that learned of it."""
        if pause:
            self._writer.add(*pause)

    async def saved(self, answer: SavedTokens, saved: asyncio.Future[bool]) -> bool:
        """Return when ``answer`` is in Postgres; False when that refuses it for what it is."""
        if self._journal.trouble is not None:
            telemetry.alarm(Event.JOURNAL_UNWRITABLE, reason=self._journal.trouble)
        return await saved

    async def report(self, asking: Asking, answer: SavedTokens, saved: asyncio.Future[bool]) -> None:
        """Say that an account was refreshed, once it was."""
        if not await self.saved(answer, saved):
            return
        name = asking.provider.name
        telemetry.REFRESHES.labels(name, KINDS[Refreshed]).inc()
        telemetry.PROVIDER_SECONDS.labels(name).observe(answer.duration_ms / 1000)
        telemetry.logger().debug(
            Event.ACCOUNT_SETTLED.value,
            attempt=f"{answer.account_id}-{answer.epoch}",
            job_id=str(answer.job_id),
            outcome=KINDS[Refreshed],
            duration_ms=answer.duration_ms,
        )

    async def write(self, asking: Asking, attempt: Attempt, judged: Judged, *pause: AppPaused) -> None:
        """Write an attempt that brought no token."""
        weighed = self._reputation.weigh(asking.app, results(asking, attempt, judged))
        await self._writer.add(*weighed, *pause)

    async def settle(self, asking: Asking, attempt: Attempt, judged: Judged, *pause: AppPaused) -> None:
        """Write an attempt that brought no token, then say so."""
        await self.write(asking, attempt, judged, *pause)
        kind = judged.kind or KINDS[type(judged.outcome)]
        if judged.kind is None:
            telemetry.REFRESHES.labels(asking.provider.name, kind).inc()
        fields = {
            "attempt": f"{attempt.account_id}-{attempt.epoch}",
            "job_id": str(asking.job_id),
            "provider": asking.provider.name,
            "outcome": kind,
            "code": judged.outcome.code if not isinstance(judged.outcome, Refreshed) else None,
        }
        if isinstance(judged.decision, Quarantine):
            telemetry.alarm(Event.ACCOUNT_QUARANTINED, **fields)
        else:
            telemetry.logger().warning(Event.ACCOUNT_TROUBLED.value, **fields)


def milliseconds_since(began: float) -> int:
    """Return how long it is since ``began``, a moment of the claims' clock."""
    return round((boottime() - began) * 1000)
