"""What a provider says to a worker of the storm, as the worker writes it down. Chance is a parameter."""

from __future__ import annotations

import random
import uuid
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final

from sqlalchemy import Connection

from store import candidates
from store.answers import SavedTokens
from store.candidates import Promotion
from store.keys import Vault
from store.rejection import Rejection
from store.revocations import CONFIRMED, UNANSWERED, RevocationMade
from store.schedule import Attempt
from store.settlement import Deferral
from tokenfleet.jobs import AccountId, Epoch
from tokenfleet.policy import ROTATION_LOST
from tokenfleet_client.contract import AccountStatus
from tokenfleet_client.envelope import access_token_binding, refresh_token_binding


class Answer(StrEnum):
    """What a provider says to a worker."""

    SUCCESS = "success"
    REJECTED = "rejected"
    LOST = "lost"
    """The grant is rejected, after an answer that got lost."""
    UNAVAILABLE = "unavailable"


ANSWERS: Final = (Answer.SUCCESS, Answer.REJECTED, Answer.LOST, Answer.UNAVAILABLE)
WEIGHTS: Final = (42, 44, 6, 8)


def saved(vault: Vault, attempt: Attempt, chance: random.Random) -> SavedTokens:
    """Return a good answer, after which the account is due at once. Half of its tokens are over already."""
    now = datetime.now(UTC)
    place = (attempt.account_id, attempt.generation + 1)
    # Some are over at once, so that what fails next has to be told of.
    life = chance.choice((timedelta(hours=1), timedelta(seconds=-1)))
    ends = now + timedelta(days=1) if chance.random() < 0.1 else None
    return SavedTokens(
        account_id=attempt.account_id,
        epoch=attempt.epoch,
        generation=attempt.generation,
        access_token=vault.access.seal(f"access-{attempt.epoch}", access_token_binding(*place)),
        refresh_token=vault.refresh.seal(f"refresh-{attempt.epoch}", refresh_token_binding(*place)),
        token_type="Bearer",
        scope=None,
        expires_at=now + life,
        obtained_at=now,
        refresh_token_expires_at=None,
        variables={},
        next_refresh_at=now,
        job_id=uuid.uuid4(),
        duration_ms=200,
        activates=attempt.status is not AccountStatus.ACTIVE,
        grant_ends_at=ends,
    )


def promotion(
    connection: Connection, vault: Vault, account_id: AccountId, epoch: Epoch, generation: int
) -> Promotion | None:
    """Return the newest candidate against ``generation``, in the place of what was rejected."""
    found = [each for each in candidates.of_account(connection, account_id) if each.generation == generation]
    if not found:
        return None
    place = (account_id, generation + 1)
    return Promotion(
        account_id,
        epoch,
        generation,
        found[0].candidate_id,
        vault.access.seal("promoted", access_token_binding(*place)),
        vault.refresh.seal(f"promoted-{found[0].candidate_id}", refresh_token_binding(*place)),
        "invalid_grant",
        None,
        None,
    )


def rejected(attempt: Attempt, answer: Answer) -> Rejection:
    """Return the provider's definite word on the grant."""
    # Explained, so that the guard lets it pass: how many may be flipped at once is another drill.
    reason = ROTATION_LOST if answer is Answer.LOST else "invalid_grant"
    return Rejection(
        attempt.account_id,
        attempt.epoch,
        attempt.generation,
        reason,
        "invalid_grant",
        uuid.uuid4(),
        200,
        explained=True,
    )


def failed(attempt: Attempt) -> Deferral:
    """Return a failure that leaves the account as it is, due at once."""
    now = datetime.now(UTC)
    return Deferral(
        account_id=attempt.account_id,
        epoch=attempt.epoch,
        generation=attempt.generation,
        next_refresh_at=now,
        code="http_503",
        kind="refresh.unavailable",
        counts=True,
        answer_lost=False,
        quarantined=False,
        job_id=uuid.uuid4(),
        duration_ms=200,
        expired=attempt.expires_at is not None and attempt.expires_at <= now,
    )


def revoked(attempt: Attempt, answer: Answer) -> RevocationMade:
    """Return what became of a request to end the grant."""
    confirmed = answer is not Answer.UNAVAILABLE
    return RevocationMade(
        attempt.account_id,
        attempt.epoch,
        attempt.generation,
        CONFIRMED if confirmed else UNANSWERED,
        "http_200" if confirmed else "http_503",
        None if confirmed else datetime.now(UTC),
        uuid.uuid4(),
        200,
    )
