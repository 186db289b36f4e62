"""Postgres in trouble, one kind after the other, while a worker has an answer in hand and a job before it.

The worker is a real engine in this process; a proxy stands between it and the real Postgres. What is asked is
counted by the sandbox, and what is saved is read past the proxy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace

import pytest
from sqlalchemy import Engine, create_engine, text

import store.driver
import workers.engine
import workers.surroundings
from sandbox.faults import FaultKind, FaultRule
from sandbox.selection import Stage
from store import records
from store.journal import segments
from tests.support.builders import let_claims_expire
from tests.support.fleet import Fleet, Worker, eventually
from tests.support.proxy import Proxy

ANSWERS_WAIT = "answers wait in the journal"


@pytest.fixture
def network(fleet: Fleet) -> Iterator[Proxy]:
    """The way of this fleet's workers to Postgres."""
    with Proxy.before(fleet.settings.database_url) as proxy:
        fleet.settings = replace(fleet.settings, database_url=proxy.url(fleet.settings.database_url))
        yield proxy


@pytest.fixture
def admin(servers: dict[str, str]) -> Iterator[Engine]:
    """Postgres by another database than the fleet's."""
    engine = create_engine(servers["TOKENFLEET_DATABASE_URL"], isolation_level="AUTOCOMMIT")
    yield engine
    engine.dispose()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The timeouts of production, shortened: the same mechanisms, in a test's time."""
    monkeypatch.setattr(store.engine, "STATEMENT_TIMEOUT_MS", 500)
    monkeypatch.setattr(store.engine, "TCP_USER_TIMEOUT_MS", 500)
    monkeypatch.setattr(store.engine, "CONNECT_TIMEOUT_SECONDS", 2)
    monkeypatch.setattr(store.driver, "ANSWER_SECONDS", 1.0)


@contextmanager
def refused(network: Proxy) -> Iterator[None]:
    """Nobody listens where Postgres was."""
    network.refuse()
    yield
    network.heal()


@contextmanager
def partitioned(network: Proxy) -> Iterator[None]:
    """Every packet vanishes; no connection is ever told so."""
    network.black_hole()
    yield
    network.heal()


@contextmanager
def hanging(network: Proxy) -> Iterator[None]:
    """What is sent is acknowledged and never answered, as by a server whose disk hangs."""
    network.stall()
    yield
    network.heal()


@contextmanager
def failing_with(fleet: Fleet, statement: str) -> Iterator[None]:
    """Every write to the tokens runs ``statement`` first."""
    with fleet.engine.begin() as connection:
        connection.execute(
            text(
                "CREATE FUNCTION tokenfleet.trouble() RETURNS trigger LANGUAGE plpgsql AS "
                f"$$ BEGIN {statement}; RETURN NEW; END $$"
            )
        )
        connection.execute(
            text(
                "CREATE TRIGGER trouble BEFORE UPDATE ON tokenfleet.token_sets "
                "FOR EACH STATEMENT EXECUTE FUNCTION tokenfleet.trouble()"
            )
        )
    yield
    with fleet.engine.begin() as connection:
        connection.execute(text("DROP FUNCTION tokenfleet.trouble() CASCADE"))


def disk_full(fleet: Fleet) -> AbstractContextManager[None]:
    """A stand-in: Postgres says what it says on a full disk, and the disk is not."""
    return failing_with(fleet, "RAISE EXCEPTION 'No space left on device' USING ERRCODE = 'disk_full'")


def too_slow(fleet: Fleet) -> AbstractContextManager[None]:
    """Every write takes longer than a statement may."""
    return failing_with(fleet, "PERFORM pg_sleep(60)")


Trouble = Callable[[Fleet, Proxy], AbstractContextManager[None]]

TROUBLES: dict[str, Trouble] = {
    "connections are refused": lambda _, network: refused(network),
    "every packet vanishes": lambda _, network: partitioned(network),
    "it answers nothing": lambda _, network: hanging(network),
    "its disk is full": lambda fleet, _: disk_full(fleet),
    "statements time out": lambda fleet, _: too_slow(fleet),
}


def on_disk(fleet: Fleet) -> int:
    """Return how many answers stand in the journals."""
    paths = [path for each in fleet.settings.journal_dir.iterdir() for path in segments(each)]
    return sum(1 for path in paths for _ in records.read(path, []))


def is_well(worker: Worker) -> bool:
    """Answer whether the worker's /healthz would say 200."""
    return worker.engine.problems() == ([], [])


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("trouble", TROUBLES.values(), ids=TROUBLES)
def test_the_answer_in_hand_is_kept_and_nothing_is_asked_that_could_not_be_saved(
    fleet: Fleet, network: Proxy, trouble: Trouble
) -> None:
    [in_hand], [first] = fleet.connect("in hand"), fleet.claim()
    [waiting], [second] = fleet.connect("waiting"), fleet.claim()
    with fleet.worker() as worker, ExitStack() as outage:
        with fleet.server.hold(subjects=["in hand"]):
            asking = worker.submit(first)
            fleet.server.wait_for_held(1)
            outage.enter_context(trouble(fleet, network))
        eventually(lambda: worker.engine.problems()[0] != [], what="/healthz says 503")
        worker.run([second])
        assert fleet.server.ledger().refreshes == 1
        assert (on_disk(fleet), fleet.row(in_hand).generation) == (1, 1)
        outage.close()

        eventually(lambda: fleet.row(in_hand).generation == 2, what="the answer has landed")
        eventually(lambda: is_well(worker), what="/healthz says 200")
        asking.result(30)
        let_claims_expire(fleet.engine)
        worker.run(fleet.claim())
    assert fleet.row(waiting).generation == 2
    assert fleet.strays() == []
    assert fleet.events(in_hand) == ["refresh.succeeded"]
    ledger = fleet.server.ledger()
    assert (ledger.refreshes, ledger.presented_twice) == (2, 0), ledger.violations


def test_a_worker_leaves_a_server_that_was_demoted_to_read_only(fleet: Fleet, admin: Engine) -> None:
    """Its sessions stay read-only for as long as they live, as on an old primary; new ones may write again."""
    [in_hand], [first] = fleet.connect("in hand"), fleet.claim()
    [waiting], [second] = fleet.connect("waiting"), fleet.claim()
    database = fleet.engine.url.database
    with fleet.worker() as worker, admin.connect() as operator:
        with fleet.server.hold(subjects=["in hand"]):
            asking = worker.submit(first)
            fleet.server.wait_for_held(1)
            operator.execute(text(f"ALTER DATABASE {database} SET default_transaction_read_only = on"))
            operator.execute(
                text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name"),
                {"name": database},
            )
        eventually(lambda: any(ANSWERS_WAIT in each for each in worker.engine.problems()[0]))
        worker.run([second])
        assert (on_disk(fleet), fleet.server.ledger().refreshes) == (1, 1)
        operator.execute(text(f"ALTER DATABASE {database} RESET default_transaction_read_only"))

        eventually(lambda: is_well(worker), what="/healthz says 200")
        fleet.engine.dispose()
        asking.result(30)
        let_claims_expire(fleet.engine)
        worker.run(fleet.claim())
    assert {fleet.row(each).generation for each in (in_hand, waiting)} == {2}
    assert fleet.strays() == []
    ledger = fleet.server.ledger()
    assert (ledger.refreshes, ledger.presented_twice) == (2, 0), ledger.violations


@pytest.mark.parametrize("performed", [True, False], ids=["performed", "not performed"])
def test_an_answer_whose_commit_is_unknown_is_saved_once(
    fleet: Fleet, network: Proxy, performed: bool
) -> None:
    """Postgres commits and the connection is gone before it says so; or it is gone before Postgres reads it."""
    ids = fleet.connect(*(f"customer-{number}" for number in range(5)))
    with fleet.worker() as worker:
        with fleet.server.hold(stage=Stage.AFTER_DECIDING):
            running = worker.submit(fleet.claim()[0])
            fleet.server.wait_for_held(len(ids))
            network.lose_commits(3, performed=performed)
        network.wait_for_lost_commits(3)
        running.result(30)
        eventually(lambda: is_well(worker))
    assert fleet.strays() == []
    for account_id in ids:
        assert fleet.events(account_id) == ["refresh.succeeded"]
    assert fleet.column("SELECT count(*) FROM tokenfleet.token_candidates") == [0]
    assert not list(fleet.settings.journal_dir.iterdir()), "nothing is left to replay"
    ledger = fleet.server.ledger()
    assert (ledger.refreshes, ledger.presented_twice) == (len(ids), 0), ledger.violations


def test_a_rejection_whose_commit_is_unknown_is_told_once(fleet: Fleet, network: Proxy) -> None:
    [account_id] = fleet.connect("customer")
    fleet.server.revoke("customer")
    with fleet.worker() as worker:
        with fleet.server.hold(stage=Stage.BEFORE_DECIDING):
            running = worker.submit(fleet.claim()[0])
            fleet.server.wait_for_held(1)
            network.lose_commits(2, performed=True)
        network.wait_for_lost_commits(2)
        running.result(30)
    assert fleet.row(account_id).status == "needs_reauth"
    assert fleet.told(account_id) == ["integrated_account:authentication_error"]


def test_a_failure_whose_commit_is_unknown_is_counted_once(fleet: Fleet, network: Proxy) -> None:
    [account_id] = fleet.connect("customer")
    fleet.server.add_faults(FaultRule(kind=FaultKind.STATUS_500))
    with fleet.worker() as worker:
        with fleet.server.hold(stage=Stage.BEFORE_DECIDING):
            running = worker.submit(fleet.claim()[0])
            fleet.server.wait_for_held(1)
            network.lose_commits(2, performed=True)
        network.wait_for_lost_commits(2)
        running.result(30)
    assert (fleet.row(account_id).attempts, fleet.events(account_id)) == (1, ["refresh.unavailable"])


@pytest.mark.parametrize("performed", [True, False], ids=["performed", "not performed"])
def test_a_start_whose_commit_is_unknown_is_tried_again_and_asks_once(
    fleet: Fleet, network: Proxy, performed: bool
) -> None:
    """Where it was performed, nothing is sent under it: whose it was cannot be known. The next claim is used."""
    [account_id] = fleet.connect("customer")
    with fleet.worker() as worker:
        told = "SELECT 1 FROM tokenfleet.key_holders"
        eventually(lambda: fleet.column(told) == [1], what="the worker has said which keys it holds")
        # The first transaction of a job reads its app, the second one starts its claims.
        network.lose_commits(spare=1, performed=performed)
        worker.run(fleet.claim())
        network.wait_for_lost_commits()
        assert fleet.server.ledger().refreshes == (0 if performed else 1)
        let_claims_expire(fleet.engine)
        jobs = fleet.claim()
        assert fleet.row(account_id).unanswered == (1 if performed else 0)
        worker.run(jobs)
    assert fleet.row(account_id).generation == 2
    ledger = fleet.server.ledger()
    assert (ledger.refreshes, ledger.presented_twice) == (1, 0), ledger.violations


def test_a_server_that_answers_nothing_is_noticed_long_before_a_wait_for_it_ends(
    fleet: Fleet, network: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers.engine, "HOUSEKEEPING_SECONDS", 0.1)
    monkeypatch.setattr(workers.surroundings, "POSTGRES_PROBE_SECONDS", 0.2)
    with fleet.worker() as worker, hanging(network):
        eventually(lambda: worker.engine.problems()[0] == ["Postgres does not answer; no refresh starts"])
        network.heal()
        eventually(lambda: is_well(worker), what="/healthz says 200")
