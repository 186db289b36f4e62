"""Histories of one app, drawn at random: whatever comes in whatever order, nobody is lost, and nobody is told twice."""

from __future__ import annotations

from typing import Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine

from store import incidents, settlement, transitions
from store.claiming import Claim
from store.incidents import Resolution
from store.keys import Vault
from tests.support.builders import (
    ACTOR,
    answer,
    column,
    let_claims_expire,
    make_account,
    make_app,
    state_of,
    told_about,
)
from tests.support.incidents import ALARM, OPENED, RESOLVED, WELL, place_of, reject, resolve, take_samples
from tokenfleet import guard
from tokenfleet.jobs import AccountId, AppId
from tokenfleet_client.contract import AccountStatus

ACCOUNTS: Final = 8
SMALL_LIMIT: Final = 2

_some = st.sets(st.integers(0, ACCOUNTS - 1), min_size=1, max_size=5)
_steps = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["reject", "reject_explained", "succeed", "pause", "resume"]), _some),
        st.tuples(st.sampled_from(["sample_rejected", "sample_succeeds", "dismiss", "confirm"]), st.none()),
    ),
    max_size=14,
)


class History:
    """One app's accounts, and what happens to them one step after the other."""

    def __init__(self, engine: Engine, vault: Vault) -> None:
        self.engine = engine
        self.vault = vault
        self.app_id: AppId = make_app(engine, vault)
        self.ids = [make_account(engine, vault, self.app_id) for _ in range(ACCOUNTS)]
        self.epochs = dict.fromkeys(self.ids, 1_000)
        self.flips = 0

    def step(self, name: str, positions: set[int] | None) -> None:
        """Perform one step."""
        some = sorted(self.ids[position] for position in positions or ())
        match name:
            case "reject" | "reject_explained":
                for generation in {self.generation(each) for each in some}:
                    same = [each for each in some if self.generation(each) == generation]
                    explained = name == "reject_explained"
                    result = reject(self.engine, same, epoch=1, generation=generation, explained=explained)
                    self.flips += 0 if explained else len(result.flipped)
                    if result.opened:
                        assert result.flipped == frozenset()
                    assert self.flips <= SMALL_LIMIT * (1 + self.resolved())
            case "succeed":
                for each in some:
                    self.succeed(each)
            case "sample_rejected" | "sample_succeeds":
                self.sample(succeeds=name == "sample_succeeds")
            case "pause":
                with self.engine.begin() as connection:
                    transitions.pause(connection, some, actor=ACTOR, reason=None)
            case "resume":
                with self.engine.begin() as connection:
                    transitions.resume(connection, some, actor=ACTOR)
            case _:
                verdict = Resolution.DISMISSED if name == "dismiss" else Resolution.CONFIRMED
                for incident_id in self.open():
                    assert resolve(self.engine, incident_id, verdict) is not None
                    assert resolve(self.engine, incident_id, verdict) is None

    def generation(self, account_id: AccountId) -> int:
        return state_of(self.engine, self.vault, account_id).generation

    def open(self) -> list[int]:
        with self.engine.connect() as connection:
            mine = [each for each in incidents.listing(connection) if each.app_id == self.app_id]
        assert len(mine) <= 1
        return [each.incident_id for each in mine]

    def resolved(self) -> int:
        statement = (
            "SELECT id FROM tokenfleet.provider_incidents WHERE app_id = :id AND resolved_at IS NOT NULL"
        )
        return len(column(self.engine, statement, id=self.app_id))

    def succeed(self, account_id: AccountId, claim: Claim | None = None) -> None:
        """Save a good answer: to the newest question, or one that comes late."""
        self.epochs[account_id] += 1
        state = state_of(self.engine, self.vault, account_id)
        tokens = answer(
            self.vault,
            account_id,
            epoch=self.epochs[account_id] if claim is None else claim.epoch,
            generation=state.generation,
            # Whoever was given up, and is asked, was asked as such.
            activates=state.status is AccountStatus.NEEDS_REAUTH and state.next_refresh_at is not None,
        )
        with self.engine.begin() as connection:
            settlement.save_refreshed(connection, [tokens], actor=ACTOR)

    def sample(self, *, succeeds: bool) -> None:
        before = self.open()
        claims = take_samples(self.engine).get(self.app_id, [])
        for claim in claims:
            if succeeds:
                self.succeed(claim.account_id, claim)
            else:
                reject(self.engine, [claim.account_id], generation=self.generation(claim.account_id))
        assert not (claims and succeeds and set(self.open()) & set(before)), "a sample that succeeds is proof"
        let_claims_expire(self.engine)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guard that trips after two."""
    monkeypatch.setattr(guard, "LEAST_LIMIT", SMALL_LIMIT)


@pytest.mark.usefixtures("small")
@settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(steps=_steps)
def test_nobody_is_lost_in_an_incident_or_told_twice(
    engine: Engine, vault: Vault, steps: list[tuple[str, set[int] | None]]
) -> None:
    history = History(engine, vault)
    for name, positions in steps:
        history.step(name, positions)
    history.step("dismiss", None)
    take_samples(engine)
    for account_id in history.ids:
        place, state = place_of(engine, account_id), state_of(engine, vault, account_id)
        assert place.incident_id is None, "given back"
        asked = state.status in {AccountStatus.ACTIVE, AccountStatus.CONNECTING}
        assert place.is_scheduled or not asked, "whoever is well is refreshed"
        assert not (place.is_scheduled and state.status is AccountStatus.PAUSED)
        told = told_about(engine, account_id)
        assert told == [ALARM, WELL] * (len(told) // 2) + [ALARM] * (len(told) % 2)
        assert (state.status is AccountStatus.NEEDS_REAUTH) == (len(told) % 2 == 1)
    events = column(engine, "SELECT event_type FROM tokenfleet.outbox WHERE account_id IS NULL")
    rows = column(engine, "SELECT resolved_at FROM tokenfleet.provider_incidents")
    assert events.count(OPENED) == events.count(RESOLVED) == len(rows)
    assert None not in rows
