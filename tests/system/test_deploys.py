"""A new release under load: processes restarted one after the other, and a migration while the old ones work.

Tokens live for a minute, as in the demo, so each is due when 40 s of it are left; customers come in all the time
whose tokens are at that moment. Readers are promised 30 s.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import text

from sandbox.config import SandboxConfig
from store.engine import SCHEMA_REVISION
from tests.support.fleet import Fleet, eventually
from tests.support.processes import SCHEDULER, WORKER, Member, Processes, processes
from tokenfleet.jobs import AccountId

ROOT = Path(__file__).resolve().parent.parent.parent
PROMISED_SECONDS = 30
LEFT_WHEN_DUE_SECONDS = 40
"""The latest margin of a token that lives for a minute."""
ARRIVALS_EVERY_SECONDS = 0.4

LATER = f"{int(SCHEMA_REVISION) + 1:04}"
LATER_MIGRATION = (
    f"""
from alembic import op

revision, down_revision, compatible_from = "{LATER}", "{SCHEMA_REVISION}", "{SCHEMA_REVISION}"
"""
    """

TABLES = "oauth_apps", "accounts", "token_sets", "refresh_schedule", "account_events", "outbox"

def upgrade():
    for table in TABLES:
        op.execute(f"ALTER TABLE tokenfleet.{table} ADD COLUMN IF NOT EXISTS later text")
    with op.get_context().autocommit_block():
        op.execute("SET lock_timeout = 0")
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS tokenfleet.ix_later")
        op.execute("CREATE INDEX CONCURRENTLY ix_later ON tokenfleet.refresh_schedule (attempts)")
"""
)


@pytest.fixture
def sandbox_config() -> SandboxConfig:
    return SandboxConfig(access_lifetime_seconds=60, latency_seconds=(0.05, 0.4))


class Load:
    """Customers that keep coming, each with a token that is just due, and a reader that looks at all of them."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._over = threading.Event()
        self.shortest_life = float(LEFT_WHEN_DUE_SECONDS)
        self.ids: list[AccountId] = []

    def arrive(self) -> None:
        """Bring customers in until the end."""
        while not self._over.wait(ARRIVALS_EVERY_SECONDS):
            ids = self._fleet.connect(*(f"customer-{len(self.ids) + each}" for each in range(5)))
            with self._fleet.engine.begin() as connection:
                connection.execute(
                    text(
                        "UPDATE tokenfleet.token_sets SET obtained_at = now() - interval '20 s', "
                        "expires_at = now() + interval '1 s' * :left WHERE account_id = ANY (:ids) AND generation = 1"
                    ),
                    {"ids": ids, "left": LEFT_WHEN_DUE_SECONDS},
                )
            self.ids += ids

    def read(self) -> None:
        """Look for the shortest life until the end."""
        while not self._over.wait(0.2):
            if self.ids:
                self.shortest_life = min(self.shortest_life, self._fleet.shortest_life())

    def end(self) -> None:
        """Let nobody come any more."""
        self._over.set()

    def goes_on(self) -> None:
        """Return when there were some more refreshes."""
        before = self._fleet.server.ledger().refreshes
        eventually(lambda: self._fleet.server.ledger().refreshes > before + 10, what="the work goes on")


@contextmanager
def under_load(fleet: Fleet) -> Iterator[Load]:
    """Let customers come and a reader look until the block ends."""
    load = Load(fleet)
    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(load.arrive), pool.submit(load.read)]
        try:
            load.goes_on()
            yield load
        finally:
            load.end()
    for each in running:
        each.result()


def judge(fleet: Fleet, load: Load, members: Sequence[Member]) -> None:
    """Fail unless everybody was kept fresh, no token was presented twice or lost, and no job failed."""
    eventually(lambda: min(fleet.generations().values()) > 1, what="everybody was refreshed")
    for member in members:
        if member.process.poll() is None:
            member.process.terminate()
    assert [member.wait() for member in members] == [0] * len(members)
    assert fleet.strays() == []
    ledger = fleet.server.ledger()
    assert (ledger.presented_twice, ledger.rejected, ledger.rotations_lost) == (0, 0, 0), ledger.violations
    assert ledger.refreshes >= len(load.ids) > 50
    assert fleet.column("SELECT DISTINCT status FROM tokenfleet.accounts") == ["active"]
    assert fleet.column("SELECT DISTINCT unanswered FROM tokenfleet.refresh_schedule") == [0]
    for member in members:
        assert "Traceback" not in member.text()
        assert not [line for line in member.text().splitlines() if '"level": "error"' in line]
        assert not [event for event in member.events("job.dropped") if "error" in event]
        assert not member.events("attempt.failed") + member.events("housekeeping.failed")
    assert load.shortest_life >= PROMISED_SECONDS


@pytest.fixture
def next_release(environ: dict[str, str], tmp_path: Path) -> Iterator[Processes]:
    """Processes of a release that needs one more migration: a copy of this checkout, but for the store."""
    checkout, logs = tmp_path / "next", tmp_path / "next-logs"
    checkout.mkdir()
    logs.mkdir()
    for package in ("cli", "embedded", "providers", "sandbox", "scheduler", "tokenfleet", "workers"):
        (checkout / package).symlink_to(ROOT / package)
    (checkout / "tokenfleet_client").symlink_to(ROOT / "client" / "src" / "tokenfleet_client")
    store = shutil.copytree(ROOT / "store", checkout / "store", ignore=shutil.ignore_patterns("__pycache__"))
    (store / "migrations" / "versions" / f"{LATER}_later.py").write_text(LATER_MIGRATION)
    engine = store / "engine.py"
    needs = "SCHEMA_REVISION: Final = "
    text_before = engine.read_text()
    assert f'{needs}"{SCHEMA_REVISION}"' in text_before
    engine.write_text(text_before.replace(f'{needs}"{SCHEMA_REVISION}"', f'{needs}"{LATER}"'))
    with processes(environ | {"PYTHONPATH": str(checkout), "PYTHONSAFEPATH": "1"}, logs) as started:
        yield started


def upgrade(release: Processes) -> str:
    """Run ``tokenfleet db upgrade`` of a release; return what it says."""
    done = subprocess.run(
        [sys.executable, "-m", "cli", "db", "upgrade"],
        env=release.environ,
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_migration_and_a_rolling_restart_of_everything_keep_every_account_fresh_and_fail_no_job(
    fleet: Fleet, run: Processes, next_release: Processes
) -> None:
    too_early = next_release.start(*WORKER)
    scheduler, first, second = run.fleet(SCHEDULER, WORKER, WORKER)
    assert too_early.wait() == 1
    assert f"is at schema {SCHEMA_REVISION}, not {LATER}: run 'tokenfleet db upgrade'" in too_early.text()
    with under_load(fleet) as load:
        assert f"The schema is now at {LATER}." in upgrade(next_release)
        # What was running goes on, on statements that it prepared before the columns came.
        load.goes_on()
        # Whoever restarts before its turn to be updated, or because the deploy is undone, works as well.
        assert first.stop() == 0, first.text()
        [first] = run.fleet(WORKER)
        assert f"newer than this release needs ({SCHEMA_REVISION}), and serves it" in upgrade(run)
        for kind, member in ((WORKER, first), (SCHEDULER, scheduler), (WORKER, second)):
            assert member.stop() == 0, member.text()
            next_release.fleet(kind)
            load.goes_on()
    judge(fleet, load, [*run.members, *next_release.members[1:]])
