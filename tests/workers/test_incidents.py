"""A provider's bad minute, a refused client and a dead worker; the server's ledger is the judge."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import text

from sandbox.faults import FaultKind, FaultRule
from scheduler.publisher import make_jobs
from store import apps, schedule
from tests.support.builders import let_claims_expire
from tests.support.fleet import CLAIM, Fleet
from tests.support.incidents import (
    ALARM,
    OPENED,
    RESOLVED,
    WELL,
    set_apart,
    statuses,
    take_samples,
    told,
)
from tokenfleet.guard import SAMPLES
from tokenfleet.jobs import AccountId, RefreshJob
from tokenfleet_client.secret import Secret
from workers.reputation import DIFFERENT_ACCOUNTS

LIMIT = 20


def connect(fleet: Fleet, count: int, prefix: str = "customer") -> list[AccountId]:
    return fleet.connect(*(f"{prefix}-{number}" for number in range(count)))


def later(fleet: Fleet, *ids: AccountId) -> None:
    """Let accounts be due in an hour."""
    with fleet.engine.begin() as connection:
        connection.execute(
            text(
                "UPDATE tokenfleet.refresh_schedule SET next_refresh_at = now() + interval '1 hour' "
                "WHERE account_id = ANY (CAST(:ids AS bigint[]))"
            ),
            {"ids": list(ids)},
        )


def sample(fleet: Fleet) -> list[RefreshJob]:
    """Return the jobs about an incident's next samples."""
    return [job for app_id, claims in take_samples(fleet.engine).items() for job in make_jobs(app_id, claims)]


def put_secret(fleet: Fleet, secret: Secret) -> None:
    """Register another secret of the same client and keep the one there is."""
    with fleet.engine.begin() as connection:
        apps.register(
            connection,
            fleet.vault.refresh,
            provider="sandbox",
            environment="production",
            name="default",
            client_id=fleet.server.config.client_id,
            client_secret=secret,
            variables={},
            keep_previous=True,
        )


def requests(fleet: Fleet) -> int:
    """Return how many refresh tokens were presented, whatever became of the requests."""
    subjects = fleet.column("SELECT external_id FROM tokenfleet.accounts")
    return sum(fleet.server.subject(subject).presented for subject in subjects)


def generations(fleet: Fleet, ids: Sequence[AccountId]) -> set[int]:
    return {fleet.row(account_id).generation for account_id in ids}


def test_a_false_alarm_about_everybody_costs_each_one_request_and_flips_only_who_is_really_gone(
    fleet: Fleet,
) -> None:
    ids = connect(fleet, 60)
    revoked = [f"customer-{number}" for number in range(3)]
    gone, kept = ids[:3], ids[3:]
    fleet.server.add_faults(FaultRule(kind=FaultKind.INVALID_GRANT))
    with fleet.worker() as worker:
        worker.run(fleet.claim(count=10))
        worker.run(fleet.claim())
        flipped = statuses(fleet.engine, fleet.app.app_id)["needs_reauth"]
        assert 10 <= flipped <= LIMIT
        assert fleet.claim() == []
        rounds = 2
        for _ in range(rounds):
            worker.run(sample(fleet))
        assert requests(fleet) <= len(ids) + rounds * SAMPLES
        [incident_id] = fleet.column("SELECT id FROM tokenfleet.provider_incidents")
        assert set_apart(fleet.engine, incident_id) == ids
        assert told(fleet.engine) == {ALARM: flipped, OPENED: 1}
        fleet.server.clear_faults()
        fleet.server.revoke(*revoked)
        while fleet.column("SELECT resolved_at FROM tokenfleet.provider_incidents") == [None]:
            worker.run(sample(fleet))
        worker.run(sample(fleet))
        assert set_apart(fleet.engine, incident_id) == []
        worker.run(fleet.claim())
    assert [fleet.row(account_id).status for account_id in gone] == ["needs_reauth"] * len(gone)
    assert generations(fleet, kept) == {2}
    assert {fleet.row(account_id).status for account_id in kept} == {"active"}
    counts = told(fleet.engine)
    assert (counts[OPENED], counts[RESOLVED]) == (1, 1)
    assert counts[ALARM] - counts[WELL] == len(gone)
    assert all(fleet.told(account_id) in ([], [ALARM, WELL]) for account_id in kept)
    assert all(fleet.told(account_id) == [ALARM] for account_id in gone)
    assert fleet.strays() == []
    assert fleet.server.ledger().presented_twice == 0


def test_jobs_that_were_published_before_an_app_fell_silent_are_given_back(fleet: Fleet) -> None:
    ids = connect(fleet, 40)
    fleet.server.add_faults(FaultRule(kind=FaultKind.INVALID_GRANT))
    with fleet.worker() as worker:
        worker.run(fleet.claim(count=25))
        asked = requests(fleet)
        rest = fleet.claim()
        assert sum(len(job.accounts) for job in rest) == 15
        worker.run(rest)
        assert requests(fleet) == asked == 25
        assert not any(fleet.row(account_id).claimed for account_id in ids)
        fleet.server.clear_faults()
        # A few of the others are asked beside the samples; one that succeeds is enough for all of them.
        worker.run(fleet.claim(count=SAMPLES))
        assert not fleet.current_app().is_sampled
        worker.run(fleet.claim())
    assert generations(fleet, ids[25:]) == {2}
    assert fleet.column("SELECT resolved_at FROM tokenfleet.provider_incidents") == [None]


def test_what_a_killed_worker_lost_flips_and_opens_no_incident(fleet: Fleet) -> None:
    ids = connect(fleet, LIMIT + 5)
    with fleet.engine.begin() as connection:
        for job in fleet.claim():
            assert len(schedule.start(connection, job, claim=CLAIM)) == len(ids)
    # It died with all requests on the wire; the provider had rotated, and takes a repetition for reuse.
    fleet.server.revoke(*(f"customer-{number}" for number in range(len(ids))))
    let_claims_expire(fleet.engine)
    with fleet.worker() as worker:
        worker.run(fleet.claim())
    assert {fleet.row(account_id).status_reason for account_id in ids} == {"rotation_lost"}
    assert told(fleet.engine) == {ALARM: len(ids)}


def test_a_storm_of_rejections_after_answers_that_the_provider_lost_is_guarded(fleet: Fleet) -> None:
    ids = connect(fleet, LIMIT + 5)
    with fleet.engine.begin() as connection:
        # As an outage leaves them: asked, settled, and no answer.
        connection.execute(
            text("UPDATE tokenfleet.refresh_schedule SET unanswered = 1, last_error = 'connection_lost'")
        )
    fleet.server.add_faults(FaultRule(kind=FaultKind.INVALID_GRANT))
    with fleet.worker() as worker:
        worker.run(fleet.claim())
    assert {fleet.row(account_id).status_reason for account_id in ids} <= {None, "rotation_lost"}
    assert {fleet.row(account_id).last_error for account_id in ids} <= {"rotation_lost", "connection_lost"}
    assert statuses(fleet.engine, fleet.app.app_id)["needs_reauth"] <= LIMIT
    assert told(fleet.engine)[OPENED] == 1


def test_a_refused_client_is_one_incident_until_a_probe_succeeds_and_the_rest_follow(fleet: Fleet) -> None:
    ids = connect(fleet, 30)
    fleet.server.add_faults(FaultRule(kind=FaultKind.INVALID_CLIENT))
    with fleet.worker() as worker:
        worker.run(fleet.claim(count=5))
        worker.run(fleet.claim())
        assert fleet.current_app().held_code == "invalid_client"
        worker.run(fleet.claim(count=1))
        assert told(fleet.engine) == {OPENED: 1}
        fleet.server.clear_faults()
        worker.run(fleet.claim(count=1))
        assert fleet.current_app().held_since is None
        worker.run(fleet.claim())
    assert told(fleet.engine) == {OPENED: 1, RESOLVED: 1}
    assert generations(fleet, ids[6:]) == {2}
    assert statuses(fleet.engine, fleet.app.app_id) == {"active": 30}
    assert not any(fleet.told(account_id) for account_id in ids)


def test_a_client_that_works_is_not_held_because_one_tenant_refuses_it(fleet: Fleet) -> None:
    [well, *others] = [*connect(fleet, 1), *connect(fleet, DIFFERENT_ACCOUNTS, "tenant")]
    with fleet.worker() as worker:
        worker.run(fleet.claim(count=1))
        assert fleet.row(well).generation == 2
        fleet.server.add_faults(FaultRule(kind=FaultKind.INVALID_CLIENT, prefix="tenant"))
        for _ in range(DIFFERENT_ACCOUNTS + 1):
            later(fleet, *others[1:])
            fleet.make_due(others[0])
            worker.run(fleet.claim())
        assert fleet.row(others[0]).attempts == DIFFERENT_ACCOUNTS + 1
        assert fleet.current_app().held_since is None
        fleet.make_due(*others)
        worker.run(fleet.claim())
        assert fleet.current_app().held_since is not None
    assert told(fleet.engine) == {OPENED: 1}


def test_a_secret_that_the_provider_does_not_know_yet_gives_way_to_the_one_before_it(fleet: Fleet) -> None:
    ids = connect(fleet, 10)
    put_secret(fleet, Secret("not-at-the-provider-yet"))
    with fleet.worker() as worker:
        worker.run(fleet.claim())
        assert generations(fleet, ids) == {1}
        worker.run(fleet.claim())
    assert generations(fleet, ids) == {2}
    assert fleet.current_app().held_since is None
    assert told(fleet.engine) == {}
