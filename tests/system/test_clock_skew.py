"""Machines whose wall clocks are an hour apart, either way: nobody believes them.

The processes are real ones whose wall clock is shifted before they import anything (``tests/support/shifted_clock``).
The tokens live 8 s: due between 1.6 s and 2.7 s after each refresh, an hour wrong would be plain to see.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest

from sandbox.config import SandboxConfig
from tests.support.fleet import Fleet, eventually
from tests.support.processes import SCHEDULER, SHORT_LADDER, WORKER, Member, Processes

LIFETIME = 8.0
EARLIEST, LATEST = LIFETIME * 0.2, LIFETIME / 3
"""After how many seconds a token of this life is due: ``tokenfleet.tokens``."""
GENERATIONS = 4
HOUR = timedelta(hours=1)
SHIFTED = "tests.support.shifted_clock"
ACCOUNTS = tuple(f"customer-{number}" for number in range(24))


def shifted(by: timedelta, words: Sequence[str]) -> tuple[str, ...]:
    return (SHIFTED, str(by.total_seconds()), *words)


@pytest.fixture
def sandbox_config() -> SandboxConfig:
    """With a provider that takes its time, so that messages are in flight while others look at them."""
    return SandboxConfig(access_lifetime_seconds=int(LIFETIME), latency_seconds=(0.1, 0.4))


def clock_of(member: Member) -> timedelta:
    """Return how far the clock is off by which a process dates its first line."""
    first = json.loads(next(line for line in member.text().splitlines() if line.startswith("{")))
    return datetime.fromisoformat(first["timestamp"]) - datetime.now(UTC)


def test_a_process_whose_clock_is_an_hour_off_refuses_to_start(run: Processes) -> None:
    ahead, behind = run.start(*shifted(HOUR, WORKER)), run.start(*shifted(-HOUR, SCHEDULER))
    for member, side in ((ahead, "ahead of"), (behind, "behind")):
        assert member.wait() == 1, member.text()
        assert f"s {side} the database's: synchronise the clocks" in member.text()
        seconds = int(member.text().partition("clock is ")[2].split()[0])
        assert abs(seconds - 3600) <= 5
        assert "Traceback" not in member.text()


def test_clocks_that_are_two_hours_apart_cost_no_token_and_no_moment(fleet: Fleet, run: Processes) -> None:
    kinds = [shifted(by, words) for words in (SCHEDULER, WORKER) for by in (HOUR, -HOUR)]
    members = run.fleet(*kinds, max_clock_skew_seconds="7200", **SHORT_LADDER)
    for member, by in zip(members, (HOUR, -HOUR, HOUR, -HOUR), strict=True):
        assert abs(clock_of(member) - by) < timedelta(minutes=2), "the clock is wrong indeed"
    fleet.connect(*ACCOUNTS)
    shortest = LIFETIME

    def all_are_refreshed() -> bool:
        nonlocal shortest
        shortest = min(shortest, fleet.shortest_life())
        return min(fleet.generations().values()) >= GENERATIONS

    eventually(all_are_refreshed, within=60, what="each account was refreshed several times")
    [ahead, behind] = members[2:]
    assert ahead.events("job.started"), "the worker that is ahead discards nothing"
    assert behind.events("job.started")
    run.end()
    assert shortest > 0
    assert fleet.strays() == []
    ledger = fleet.server.ledger()
    assert ledger.presented_twice == 0, ledger.violations
    assert (ledger.rejected, ledger.rotations_lost, ledger.families_revoked) == (0, 0, 0)
    assert_moments_are_the_databases_own(fleet)


def assert_moments_are_the_databases_own(fleet: Fleet) -> None:
    """Expiry and due moments count from when the answer came, and nobody was asked before they were due."""
    row = "FROM tokenfleet.token_sets t JOIN tokenfleet.refresh_schedule s USING (account_id)"
    lives = fleet.column(f"SELECT EXTRACT(epoch FROM t.expires_at - t.obtained_at)::float {row}")
    assert {round(life, 1) for life in lives} == {LIFETIME}
    waits = fleet.column(f"SELECT EXTRACT(epoch FROM s.next_refresh_at - t.obtained_at)::float {row}")
    assert EARLIEST - 0.1 <= min(waits) <= max(waits) <= LATEST + 0.1
    ages = fleet.column("SELECT EXTRACT(epoch FROM now() - obtained_at)::float FROM tokenfleet.token_sets")
    assert 0 <= min(ages) <= max(ages) < 60
    spaces = fleet.column(
        "SELECT EXTRACT(epoch FROM at - lag(at) OVER (PARTITION BY account_id ORDER BY at))::float "
        "FROM tokenfleet.account_events WHERE kind = 'refresh.succeeded'"
    )
    between = [space for space in spaces if space is not None]
    assert len(between) >= len(ACCOUNTS) * (GENERATIONS - 2)
    # An event is dated at its commit, which may come a moment after the answer.
    assert min(between) > EARLIEST / 2
