"""Workers and an operator at the same few accounts: whatever comes in whatever order, it is told once and in its turn.

Everybody acts through the code that does it in production, on connections and a thread of his own, released by a
barrier. What is left is judged by ``drills.transition_verdict``, which has tests of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Final

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine

from drills import transitions as drill
from drills.transition_actors import Actor, Ledger, Operator, Relay, Worker
from drills.transition_answers import Answer
from drills.transition_verdict import judge, read
from drills.transitions import Scene, prepare, rage
from store.engine import make_engine
from store.keys import Vault
from tests.support.builders import column, let_claims_expire
from tests.support.racing import race
from tokenfleet.settings import Settings

ACCOUNTS: Final = 4

_some = st.sets(st.integers(0, ACCOUNTS - 1), min_size=1)
_work = st.lists(st.sampled_from([*Answer, "keep"]), min_size=1, max_size=ACCOUNTS)
_order = st.tuples(st.sampled_from(["pause", "resume", "revoke", "forget", "sign_in", "refresh"]), _some)
_histories = st.lists(st.tuples(_work, _work, _order, st.booleans()), min_size=2, max_size=8)
"""Rounds: what the provider answers each of two workers, what the operator does meanwhile, whether claims run out."""


class History:
    """One scene, and what is done to it round by round."""

    def __init__(self, scene: Scene, vault: Vault) -> None:
        self.scene = scene
        self.engines: list[Engine] = []
        workers = [
            Worker(
                self._engine(), vault, f"worker-{each}", each, app_id=scene.app_id, claim=timedelta(minutes=1)
            )
            for each in range(2)
        ]
        self.workers = workers
        self.operator = Operator(self._engine(), vault, "operator", 2)
        self.relay = Relay(self._engine(), vault, "relay", 3)

    def _engine(self) -> Engine:
        engine = make_engine(self.scene.settings.database_url, application_name="storm", pool_size=1)
        self.engines.append(engine)
        return engine

    def work(self, worker: Worker, answers: list[str]) -> None:
        """Ask about what is due, and write the answers; who is to keep his is answered in a later round."""
        worker.begin(ACCOUNTS)
        for answer in answers:
            if answer != "keep":
                worker.settle(2, [Answer(answer)])

    def order(self, name: str, positions: set[int]) -> None:
        """Give one command."""
        ids = [self.scene.accounts[each] for each in sorted(positions)]
        match name:
            case "sign_in":
                self.operator.sign_in([self.scene.customers[each] for each in sorted(positions)], ids)
            case "forget":
                self.operator.revoke(ids, told=False)
            case _:
                getattr(self.operator, name)(ids)

    def actors(self) -> Iterator[Actor]:
        """Yield everybody who has a ledger."""
        yield from (*self.workers, self.operator, self.relay)


@pytest.fixture
def scene(settings: Settings) -> Scene:
    return prepare(settings, accounts=ACCOUNTS, seed=1)


@pytest.fixture
def history(scene: Scene, vault: Vault) -> Iterator[History]:
    history = History(scene, vault)
    yield history
    for engine in history.engines:
        engine.dispose()


@settings(
    max_examples=10,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(rounds=_histories)
def test_every_move_is_told_once_and_in_its_turn_whoever_competes(
    engine: Engine, history: History, rounds: list[tuple[list[str], list[str], tuple[str, set[int]], bool]]
) -> None:
    for first, second, command, run_out in rounds:
        acts: list[Callable[[], object]] = [
            partial(history.work, history.workers[0], first),
            partial(history.work, history.workers[1], second),
            partial(history.order, *command),
            history.relay.deliver,
        ]
        race(acts)
        if run_out:
            let_claims_expire(engine)
    for worker in history.workers:
        worker.settle(len(worker.in_hand))
        worker.look_around()
    while history.relay.deliver():
        pass
    ledger = Ledger()
    for actor in history.actors():
        ledger.add(actor.ledger)
    with engine.connect() as connection:
        verdict = judge(read(connection, ledger=ledger.moves, received=ledger.received))
    assert verdict.holds, verdict.troubles
    assert verdict.found == len(ledger.received)


def test_processes_that_compete_tell_each_move_once(settings: Settings, engine: Engine) -> None:
    """The drill in short: ``python -m drills.transitions`` does a hundred thousand moves from eight processes."""
    storm = rage(prepare(settings, accounts=200, seed=1), transitions=500, processes=3)
    assert storm.verdict.holds, list(drill.lines(storm))
    assert storm.verdict.moves >= 500
    kinds = set(column(engine, "SELECT DISTINCT kind FROM tokenfleet.account_events"))
    assert kinds >= {
        "account.grant_rejected",
        "account.paused",
        "account.reconnected",
        "account.refresh_failing",
        "account.resumed",
        "account.revoked",
        "refresh.candidate_promoted",
        "refresh.lost_race",
        "revocation.confirmed",
        "revocation.forgotten",
    }
    with engine.connect() as connection:
        evidence = read(connection)
    assert judge(replace(evidence, events=evidence.events[:-1])).missing == 1
