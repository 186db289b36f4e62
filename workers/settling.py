"""An attempt that brought no token, as the rows it becomes.

Pure but for the clock that :class:`Asking` carries: one decision in, one settlement out.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, assert_never
from uuid import UUID

from providers import Provider
from providers.oauth2 import ClientCredentials
from providers.transport import boottime
from store.apps import App
from store.rejection import Rejection
from store.schedule import Attempt
from store.settlement import Deferral
from store.unknowns import UnknownAnswer
from tokenfleet.outcome import (
    ClientRejected,
    GrantRejected,
    Outcome,
    OutcomeUnknown,
    Refreshed,
    RequestRejected,
    Throttled,
    Unavailable,
    Undescribed,
)
from tokenfleet.policy import (
    ROTATION_LOST,
    Decision,
    HoldApp,
    PauseApp,
    Quarantine,
    Replay,
    RequireReauth,
    RetryLater,
    Save,
    backoff,
)
from workers.results import AppHeld, AppPaused, Result

HELD_RETRY: Final = timedelta(seconds=30)
"""How soon at least an account is due again that met a rejected registration; the hold decides who is asked.
It waits longer each time: a provider may reject the client for one tenant only."""

KINDS: Final[dict[type[Outcome], str]] = {
    Refreshed: "refresh.succeeded",
    GrantRejected: "refresh.grant_rejected",
    ClientRejected: "refresh.client_rejected",
    Throttled: "refresh.throttled",
    Unavailable: "refresh.unavailable",
    OutcomeUnknown: "refresh.unknown",
    RequestRejected: "refresh.our_fault",
    Undescribed: "refresh.undescribed",
}
"""How each outcome is called in history and metrics."""


@dataclass(frozen=True, slots=True)
class Asking:
    """What the attempts of one job share. ``read_at`` is our monotonic moment of ``database_now``."""

    job_id: UUID
    app: App
    provider: Provider
    client: ClientCredentials
    read_at: float
    send_before: float

    def now(self, attempt: Attempt) -> datetime:
        """Return the database's time, carried forward by our monotonic clock."""
        return attempt.database_now + timedelta(seconds=boottime() - self.read_at)


@dataclass(frozen=True, slots=True)
class Judged:
    """The last exchange of an attempt, and what it means."""

    outcome: Outcome
    decision: Decision
    replayed: bool
    duration_ms: int
    kind: str | None = None
    """How the history calls it, if not by its outcome: a probe's word, say."""


def results(asking: Asking, attempt: Attempt, judged: Judged) -> tuple[Result, ...]:
    """Return what to write for an attempt that brought no token: exactly one settlement, and the app's share."""
    decision, app = judged.decision, asking.app
    match decision:
        case RequireReauth(reason, code):
            return (
                Rejection(
                    account_id=attempt.account_id,
                    epoch=attempt.epoch,
                    generation=attempt.generation,
                    reason=reason,
                    code=code,
                    job_id=asking.job_id,
                    duration_ms=judged.duration_ms,
                    explained=reason == ROTATION_LOST and attempt.is_unsettled,
                ),
            )
        case RetryLater(at, code, counts, answer_lost, in_doubt):
            lost = answer_lost or judged.replayed
            deferral = _deferral(
                asking, attempt, judged, at, code, counts=counts, lost=lost, in_doubt=in_doubt
            )
            return (deferral, *unknown_answers(asking, attempt, judged.outcome))
        case Quarantine(at, code):
            lost = judged.replayed
            deferral = _deferral(
                asking, attempt, judged, at, code, quarantined=True, lost=lost, in_doubt=True
            )
            return (deferral, *unknown_answers(asking, attempt, judged.outcome))
        case PauseApp(until, code, throttles):
            deferral = _deferral(asking, attempt, judged, until, code, counts=False, lost=judged.replayed)
            return (deferral, AppPaused(app.app_id, until, throttles))
        case HoldApp(code):
            at = asking.now(attempt) + max(HELD_RETRY, backoff(attempt.attempts, chance=1.0))
            deferral = _deferral(asking, attempt, judged, at, code, lost=judged.replayed)
            return (deferral, AppHeld(app.app_id, app.generation, code, attempt.account_id))
        case Save() | Replay():
            raise AssertionError(f"{type(decision).__name__} is acted on before settling")
        case _:
            assert_never(decision)


def unknown_answers(asking: Asking, attempt: Attempt, outcome: Outcome) -> tuple[UnknownAnswer, ...]:
    """Return what is to be remembered of an answer that no rule describes; nothing for any other."""
    if not isinstance(outcome, Undescribed):
        return ()
    return (UnknownAnswer(asking.provider.name, outcome.code, outcome.shape, attempt.account_id),)


def _deferral(
    asking: Asking,
    attempt: Attempt,
    judged: Judged,
    at: datetime,
    code: str,
    *,
    counts: bool = True,
    lost: bool,
    quarantined: bool = False,
    in_doubt: bool = False,
) -> Deferral:
    outcome = judged.outcome
    detail = json.dumps({"shape": outcome.shape}) if isinstance(outcome, Undescribed) else None
    return Deferral(
        account_id=attempt.account_id,
        epoch=attempt.epoch,
        generation=attempt.generation,
        next_refresh_at=at,
        code=code,
        kind=judged.kind or KINDS[type(outcome)],
        counts=counts,
        answer_lost=lost,
        quarantined=quarantined,
        # Where nothing is renewed only probes are doubts: a fault of ours is no word against a token (G4).
        in_doubt=in_doubt and (asking.provider.renews or judged.kind is not None),
        job_id=asking.job_id,
        duration_ms=judged.duration_ms,
        detail=detail,
        # Where nothing is renewed, nothing fails to be renewed.
        expired=asking.provider.renews
        and attempt.expires_at is not None
        and attempt.expires_at <= asking.now(attempt),
        probing=not asking.provider.renews,
    )
