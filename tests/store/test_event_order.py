"""Of one account the events come in the order in which they happened, and none holds up those behind it."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import Engine

from store import announcements, deliveries, endpoints, outbox, settlement, transitions
from store.deliveries import Result
from store.keys import Vault
from tests.support.builders import (
    ACTOR,
    CLAIM,
    begin_attempt,
    deferral,
    make_account,
    make_app,
    now,
    told_about,
)
from tests.support.incidents import ALARM
from tests.support.racing import in_background, wait_until_blocked
from tokenfleet.account import Trigger
from tokenfleet.delivery_policy import DeliveryState, Verdict
from tokenfleet.jobs import AppId, DeliveryJob

FAILING = "integrated_account:refresh_failing"
EXPIRED = timedelta(minutes=-1)


@pytest.fixture
def app_id(engine: Engine, vault: Vault) -> AppId:
    return make_app(engine, vault)


def deliver(engine: Engine) -> list[str]:
    """Relay what waits and deliver what is due, until nothing is; returns the events in the order they went out."""
    told: list[str] = []
    while True:
        with engine.begin() as connection:
            outbox.relay(connection)
        with engine.begin() as connection:
            claims = deliveries.claim_due(connection, claim=CLAIM)
        if not claims:
            return told
        with engine.begin() as connection:
            started = deliveries.start(connection, DeliveryJob("job", tuple(claims)), claim=CLAIM)
        verdict = Verdict(DeliveryState.DELIVERED)
        with engine.begin() as connection:
            deliveries.settle(
                connection,
                [Result(d.delivery_id, d.epoch, d.endpoint_id, verdict, 200, 1, now()) for d in started],
            )
        told += [each.event_type for each in started]


def test_the_sweep_tells_nothing_of_an_account_that_is_being_moved(
    engine: Engine, vault: Vault, app_id: AppId
) -> None:
    moving = make_account(engine, vault, app_id, expires_in=EXPIRED)
    quiet = make_account(engine, vault, app_id, expires_in=EXPIRED)
    with engine.begin() as mover:
        # A rejection that has written its move, and has not come to the schedule.
        transitions.lock(mover, [moving])
        transitions.apply(mover, Trigger.GRANT_REJECTED, [moving], actor=ACTOR, reason="invalid_grant")
        with engine.begin() as connection:
            assert announcements.sweep_refresh_failing(connection, [app_id], actor=ACTOR) == {quiet}
    with engine.begin() as connection:
        assert announcements.sweep_refresh_failing(connection, [app_id], actor=ACTOR) == frozenset()

    assert told_about(engine, moving) == [ALARM]


def test_a_failure_waits_for_the_move_of_its_account_and_nobody_waits_behind_it_for_ever(
    engine: Engine, vault: Vault, app_id: AppId
) -> None:
    """Numbered behind the move and seen before it, it would be delivered first, and the move never."""
    with engine.begin() as connection:
        endpoints.add(connection, vault.refresh, url="https://example.com/hook")
    account_id = make_account(engine, vault, app_id, expires_in=EXPIRED)
    failure = replace(deferral(begin_attempt(engine, app_id, account_id)), expired=True)

    def fail() -> None:
        with engine.begin() as connection:
            settlement.defer(connection, [failure], actor=ACTOR)
        with engine.begin() as connection:
            outbox.relay(connection)

    with engine.begin() as mover:
        transitions.lock(mover, [account_id])
        transitions.apply(mover, Trigger.GRANT_REJECTED, [account_id], actor=ACTOR, reason="invalid_grant")
        failing = in_background(fail)
        wait_until_blocked(engine)
        transitions.unschedule(mover, [account_id])
    failing.result()

    assert deliver(engine) == told_about(engine, account_id) == [ALARM]
