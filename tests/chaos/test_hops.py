"""A process dies exactly at each hop, proven by its exit code, and another one goes on.

Judged by the authorization server's ledger and the database. Where the answer dies with its process, the
customer is told once, with the reason that says so; everywhere else nothing happens but a refresh.
"""

from __future__ import annotations

import signal
from contextlib import nullcontext

import pytest

from chaos.points import Point, Role, When, of
from tests.chaos.hops import HEIR, Hops, has_struck
from tests.support.fleet import eventually

MOVING = frozenset({"outbox.before", "outbox.after"})
"""Points that only an account that changes its status comes to."""
ALARM = "integrated_account:authentication_error"

WORKER_POINTS = [point for point in of(Role.WORKER) if point.name not in MOVING]


def name_of(point: Point) -> str:
    return point.name


@pytest.mark.parametrize("point", WORKER_POINTS, ids=name_of)
def test_a_worker_that_dies_at_any_hop_loses_only_what_physics_takes(hops: Hops, point: Point) -> None:
    subject = point.name
    [account_id] = hops.fleet.connect(subject)
    # A quick answer would end the sending of the request, and the point would not be reached.
    keep_back = hops.fleet.server.hold(subjects=[subject])

    with keep_back if point.when is When.ON_THE_WIRE else nullcontext():
        victim = hops.victim(point.name, hops.fleet.claim())

    assert victim.exit_code == -signal.SIGKILL
    assert has_struck(victim)
    hops.let_time_pass()
    hops.publish(hops.fleet.claim())
    hops.wait_until_settled(account_id)
    lost = hops.tell_the_ledger(subject, victim)
    ledger, row = hops.fleet.server.subject(subject), hops.fleet.row(account_id)
    assert ledger.presented_twice == 0
    if lost:
        assert point.loses_answer
        assert (row.status, row.status_reason) == ("needs_reauth", "rotation_lost")
        assert hops.fleet.told(account_id) == [ALARM]
        assert (ledger.presented, ledger.replays_after_loss, ledger.rotations_lost) == (2, 1, 1)
    else:
        # The server may see the end of the connection before it has read the request.
        assert not point.loses_answer or point.name == "request.after"
        assert (row.status, row.generation) == ("active", 2)
        assert hops.fleet.told(account_id) == []
        assert subject not in hops.fleet.strays()
        assert (ledger.presented, ledger.refreshes, ledger.rotations_lost) == (1, 1, 0)


@pytest.mark.parametrize("name", sorted(MOVING))
def test_a_worker_that_dies_while_an_account_moves_tells_the_customer_once(hops: Hops, name: str) -> None:
    [account_id] = hops.fleet.connect(name)
    hops.fleet.server.revoke(name)

    victim = hops.victim(name, hops.fleet.claim())

    assert victim.exit_code == -signal.SIGKILL
    assert has_struck(victim)
    assert (hops.fleet.row(account_id).status, hops.fleet.told(account_id)) == ("active", [])
    hops.let_time_pass()
    hops.publish(hops.fleet.claim())
    hops.wait_until_settled(account_id)
    assert hops.fleet.row(account_id).status == "needs_reauth"
    assert hops.fleet.told(account_id) == [ALARM]
    assert hops.fleet.events(account_id).count("account.grant_rejected") == 1


@pytest.mark.parametrize("point", of(Role.SCHEDULER), ids=name_of)
def test_a_scheduler_that_dies_at_any_hop_delays_its_claims_and_nothing_else(
    hops: Hops, point: Point
) -> None:
    # More than one job takes.
    subjects = [f"{point.name}-{number}" for number in range(102)]
    ids = hops.fleet.connect(*subjects)

    victim = hops.start(Role.SCHEDULER, HEIR, point=point.name)

    assert hops.processes.wait(victim) == -signal.SIGKILL
    assert has_struck(victim)
    heir = hops.start(Role.SCHEDULER, HEIR)
    hops.let_unstarted_claims_expire()
    generations = hops.fleet.generations
    eventually(lambda: {generations()[subject] for subject in subjects} == {2}, what="all are refreshed")
    hops.processes.stop(heir)
    assert {hops.fleet.row(account_id).status for account_id in ids[:3]} == {"active"}
    assert not set(subjects).intersection(hops.fleet.strays())
    reports = [hops.fleet.server.subject(subject) for subject in subjects]
    assert {(report.presented, report.presented_twice) for report in reports} == {(1, 0)}
