"""Real interleavings: threads that start together, and waits for a lock that really is waited for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, TypeVar

from sqlalchemy import Engine, text

R = TypeVar("R")

PATIENCE_SECONDS: Final = 20.0


def race(runners: Sequence[Callable[[], R]]) -> list[R]:
    """Run all at once, each on a thread of its own, from one barrier; returns their results in order."""
    barrier = threading.Barrier(len(runners))

    def run(runner: Callable[[], R]) -> R:
        barrier.wait(PATIENCE_SECONDS)
        return runner()

    with ThreadPoolExecutor(len(runners)) as pool:
        futures = [pool.submit(run, runner) for runner in runners]
        return [future.result(PATIENCE_SECONDS) for future in futures]


def in_background(runner: Callable[[], R]) -> Future[R]:
    """Run on a thread of its own; ask the future for its result."""
    pool = ThreadPoolExecutor(1)
    future = pool.submit(runner)
    pool.shutdown(wait=False)
    return future


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Return as soon as ``condition`` holds; fail when it does not within :data:`PATIENCE_SECONDS`."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {PATIENCE_SECONDS:.0f} s"
        time.sleep(0.005)


def wait_until_blocked(engine: Engine, count: int = 1) -> None:
    """Return when ``count`` sessions of this database wait for a lock that another one holds."""

    def blocked() -> bool:
        with engine.connect() as connection:
            waiting: int = connection.execute(
                text(
                    "SELECT count(*) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND cardinality(pg_blocking_pids(pid)) > 0"
                )
            ).scalar_one()
        return waiting >= count

    wait_until(blocked, f"{count} sessions blocked by a lock")
