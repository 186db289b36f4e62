"""Sentences about an account: one for everything that stands in its way, none for what does not."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest

from cli.explain import why
from store.details import AccountDetail, AppState, ScheduleFacts, TokenFacts
from tokenfleet.app_levels import AppLevel
from tokenfleet.jobs import AccountId, AppId
from tokenfleet_client.contract import AccountStatus

NOW: Final = datetime(2030, 1, 1, tzinfo=UTC)
MINUTE: Final = timedelta(minutes=1)

SCHEDULE: Final = ScheduleFacts(
    next_refresh_at=NOW + 50 * MINUTE,
    claimed_until=None,
    claim_epoch=3,
    started_epoch=3,
    attempts=0,
    unanswered=0,
    failing_since=None,
    last_error=None,
    quarantined=False,
)
TOKEN: Final = TokenFacts(
    generation=4,
    has_access_token=True,
    has_refresh_token=True,
    token_type="Bearer",
    scope=None,
    expires_at=NOW + 60 * MINUTE,
    obtained_at=NOW,
    refresh_token_expires_at=None,
    candidates=0,
)
ACCOUNT: Final = AccountDetail(
    account_id=AccountId(7),
    provider="acme",
    environment="production",
    external_id="customer-7",
    tenant=None,
    status=AccountStatus.ACTIVE,
    status_reason=None,
    status_changed_at=NOW - 5 * MINUTE,
    created_at=NOW,
    variables={},
    metadata={},
    app=AppState(AppId(1), "default", None, None, None, "production", AppLevel.ENVIRONMENT, None),
    token=TOKEN,
    schedule=SCHEDULE,
    database_now=NOW,
)


def _with(*, schedule: dict[str, Any] | None = None, token: dict[str, Any] | None = None) -> AccountDetail:
    return replace(
        ACCOUNT, schedule=replace(SCHEDULE, **(schedule or {})), token=replace(TOKEN, **(token or {}))
    )


def test_a_healthy_account_has_two_sentences() -> None:
    assert why(ACCOUNT) == [
        "The next refresh is due at 2030-01-01 00:50:00Z (in 50 min).",
        "Its access token works for another 1 h.",
    ]


@pytest.mark.parametrize(
    ("account", "words"),
    [
        (replace(ACCOUNT, status=AccountStatus.CONNECTING), "no refresh has succeeded yet"),
        (
            replace(ACCOUNT, status=AccountStatus.NEEDS_REAUTH, status_reason="invalid_grant"),
            "rejected the grant (invalid_grant)",
        ),
        (
            replace(ACCOUNT, status=AccountStatus.NEEDS_REAUTH, status_reason="rotation_lost"),
            "never reached us (rotation_lost)",
        ),
        (replace(ACCOUNT, status=AccountStatus.NEEDS_REAUTH), "An answer came in after that"),
        (replace(ACCOUNT, status=AccountStatus.PAUSED, status_reason="ticket"), "accounts resume 7"),
        (replace(ACCOUNT, status=AccountStatus.REVOKED), "Ended deliberately"),
        (
            replace(ACCOUNT, app=replace(ACCOUNT.app, held_since=NOW, held_code="invalid_client")),
            "rejects the client registration (invalid_client)",
        ),
        (replace(ACCOUNT, app=replace(ACCOUNT.app, paused_until=NOW + MINUTE)), "leave its app"),
        (replace(ACCOUNT, schedule=None), "its import did not finish"),
        (replace(ACCOUNT, token=None), "It holds no tokens."),
        (_with(schedule={"quarantined": True, "last_error": "envelope_unreadable"}), "In quarantine"),
        (
            _with(schedule={"failing_since": NOW - MINUTE, "attempts": 4, "last_error": "http_503"}),
            "4 attempts in a row; the last one ended in http_503",
        ),
        (_with(schedule={"last_error": "http_429"}), "put off (http_429)"),
        (_with(schedule={"last_error": "attempt_unsettled"}), "was never heard of again"),
        (_with(schedule={"unanswered": 1}), "1 answer to its refresh token got lost"),
        (_with(schedule={"claimed_until": NOW + MINUTE}), "A worker is asking about it now, attempt 7-3"),
        (
            _with(schedule={"claimed_until": NOW + MINUTE, "claim_epoch": 4}),
            "on its way to a worker, attempt 7-4",
        ),
        (_with(schedule={"next_refresh_at": NOW - MINUTE}), "It is due since"),
        (_with(schedule={"next_refresh_at": None}), "No refresh is planned"),
        (
            _with(schedule={"next_refresh_at": None, "incident_id": 3, "last_error": "invalid_grant"}),
            "Parked by incident 3: the provider rejected its grant (invalid_grant)",
        ),
        (
            replace(_with(schedule={"incident_id": 3}), status=AccountStatus.NEEDS_REAUTH),
            "just before incident 3 was noticed",
        ),
        (
            _with(schedule={"doubts": 1, "failing_since": NOW, "attempts": 1, "last_error": "http_400"}),
            "A suspect: repetition may not help with http_400",
        ),
        (_with(schedule={"probing": True}), "only probes whether its access token works"),
        (_with(token={"expires_at": NOW - MINUTE}), "expired 1 min ago"),
        (_with(token={"expires_at": None}), "Nobody knows when"),
        (_with(token={"has_access_token": False}), "no access token yet"),
        (_with(token={"refresh_token_expires_at": NOW + MINUTE}), "Its refresh token expires at"),
        (_with(token={"refresh_token_expires_at": NOW - MINUTE}), "Its refresh token expired at"),
        (_with(token={"candidates": 2}), "2 late answers"),
    ],
)
def test_whatever_stands_in_the_way_has_a_sentence(account: AccountDetail, words: str) -> None:
    assert [sentence for sentence in why(account) if words in sentence]


def test_a_pause_that_is_over_is_not_mentioned() -> None:
    over = replace(ACCOUNT, app=replace(ACCOUNT.app, paused_until=NOW - MINUTE))
    assert why(over) == why(ACCOUNT)
