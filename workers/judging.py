"""What is known of an account when its outcome arrives, and the decision that follows from it.

Pure but for chance: everything else is what the attempt read under its claim.
"""

from __future__ import annotations

import random
from datetime import datetime

from store.schedule import Attempt
from tokenfleet.dead_probes import weigh_dead_probe
from tokenfleet.learning import refresh_token_end
from tokenfleet.outcome import Outcome, Refreshed
from tokenfleet.policy import Decision, Known, RequireReauth, RetryLater, decide
from tokenfleet_client.secret import Secret
from workers.settling import Asking


class Judge:
    """Decides. One per worker process."""

    def __init__(self) -> None:
        self._chance = random.SystemRandom().random

    def decide(
        self,
        outcome: Outcome,
        asking: Asking,
        attempt: Attempt,
        *,
        now: datetime,
        replayed: bool = False,
        presented: Secret | None = None,
    ) -> Decision:
        """Return what ``outcome`` means for the account of ``attempt``; ``presented`` is the refresh token it had."""
        known = _known(outcome, asking, attempt, now, replayed, presented)
        return decide(outcome, known, now=now, chance=self._chance())

    def weigh_dead_probe(
        self, code: str, asking: Asking, attempt: Attempt, *, now: datetime
    ) -> RetryLater | RequireReauth:
        """Return what ``code`` means, by which a probe found an access token dead that is never renewed."""
        known = _known(None, asking, attempt, now, False, None)
        since = attempt.failing_since
        return weigh_dead_probe(code, known, now=now, chance=self._chance(), failing_since=since)


def _known(
    outcome: Outcome | None,
    asking: Asking,
    attempt: Attempt,
    now: datetime,
    replayed: bool,
    presented: Secret | None,
) -> Known:
    provider = asking.provider
    lifetime = None if attempt.expires_at is None else attempt.expires_at - attempt.obtained_at
    end, is_fixed = refresh_token_end(
        outcome.answer if isinstance(outcome, Refreshed) else None,
        presented,
        attempt.refresh_token_expires_at,
        elapsed=now - attempt.obtained_at,
        lifetimes=provider.lifetimes,
    )
    return Known(
        attempts=attempt.attempts,
        doubts=attempt.doubts,
        unanswered=attempt.unanswered + replayed,
        replayed=replayed,
        margins=provider.margins,
        last_lifetime=lifetime,
        rotates=provider.rotates,
        replay_grace=provider.replay_grace,
        expires_at=attempt.expires_at,
        throttles=asking.app.throttles,
        max_live=provider.max_live,
        lifetimes=provider.lifetimes,
        granted_at=attempt.granted_at,
        reauth_told=attempt.reauth_told,
        refresh_token_expires_at=end,
        end_is_fixed=is_fixed,
        learned_lifetime=attempt.learned_lifetime,
    )
