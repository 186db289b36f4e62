"""What one app may have of a process: places among the requests in flight, and threads to wait on."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

import workers.room
from providers import load_registry
from sandbox.definition import definition_toml
from sandbox.server import SandboxServer
from store import apps
from tests.support.fleet import Fleet, eventually
from tokenfleet.jobs import AppId
from workers.room import STUCK_SECONDS, Room, Seats

R = TypeVar("R")

HANGS, ALSO_HANGS, WELL = AppId(1), AppId(2), AppId(3)


def run(scenario: Coroutine[Any, Any, R]) -> R:
    return asyncio.run(asyncio.wait_for(scenario, 20))


def test_however_many_providers_hang_some_room_is_left() -> None:
    async def scenario() -> None:
        room = Room(1000, 0.8, claim_seconds=30)
        assert await room.enter(HANGS, 2000) == 800
        assert await room.enter(ALSO_HANGS, 2000) == 160
        assert await room.enter(WELL, 20) == 20

    run(scenario())


def test_a_job_of_a_provider_that_hangs_is_told_at_once_that_there_is_no_room() -> None:
    async def scenario() -> None:
        room = Room(10, 0.8, claim_seconds=3000)
        assert await room.enter(HANGS, 8) == 8
        await asyncio.sleep(STUCK_SECONDS)
        waiting = asyncio.ensure_future(room.enter(HANGS, 5))
        for _ in range(3):
            await asyncio.sleep(0)
        assert waiting.done()
        assert waiting.result() == 0

    run(scenario())


def test_a_job_waits_for_places_that_come_free() -> None:
    async def scenario() -> None:
        room = Room(10, 0.8, claim_seconds=3000)
        assert await room.enter(WELL, 8) == 8
        waiting = asyncio.ensure_future(room.enter(WELL, 4))
        for _ in range(4):
            await asyncio.sleep(0.01)
            await room.leave(WELL, 1)
        assert await waiting == 4

    run(scenario())


def test_a_job_larger_than_the_room_enters_in_part() -> None:
    async def scenario() -> None:
        room = Room(50, 0.8, claim_seconds=30)
        assert await room.enter(WELL, 100) == 40

    run(scenario())


def test_who_waits_for_room_is_told_when_it_closes() -> None:
    async def scenario() -> None:
        room = Room(10, 0.8, claim_seconds=3000)
        await room.enter(HANGS, 8)
        waiting = asyncio.ensure_future(room.enter(HANGS, 4))
        await asyncio.sleep(0)
        await room.close()
        assert await waiting == 0

    run(scenario())


def test_of_many_jobs_that_wait_for_slow_accounts_those_that_wait_longest_give_up_their_threads() -> None:
    async def scenario() -> None:
        seats, answer = Seats(8), asyncio.Event()
        slow = asyncio.ensure_future(answer.wait())
        jobs = [asyncio.ensure_future(seats.wait([slow])) for _ in range(5)]
        done, _ = await asyncio.wait(jobs[:3])
        assert len(done) == 3
        assert [job.done() for job in jobs[3:]] == [False, False]
        answer.set()
        await asyncio.wait(jobs)
        assert all(job.exception() is None for job in jobs)

    run(scenario())


def test_a_provider_that_hangs_keeps_no_thread_from_a_healthy_one(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its jobs alone would hold every thread of this pool for as long as they wait."""
    monkeypatch.setattr(workers.room, "STRAGGLER_SECONDS", 3600.0)
    fleet.settings = replace(
        fleet.settings, tunables=fleet.settings.tunables.model_copy(update={"max_in_flight": 40})
    )
    with SandboxServer() as hanging:
        definition = definition_toml(hanging.url, hanging.config, name="hanging")
        (tmp_path / "providers" / "hanging.toml").write_text(definition)
        fleet.registry = load_registry(tmp_path / "providers", allow_http=True)
        with fleet.engine.begin() as connection:
            other = apps.register(
                connection,
                fleet.vault.refresh,
                provider="hanging",
                environment="production",
                name="default",
                client_id=hanging.config.client_id,
                client_secret=hanging.config.client_secret,
                variables={},
            )
        slow = Fleet.__new__(Fleet)
        slow.__dict__ |= fleet.__dict__ | {"server": hanging, "app": other}
        slow.connect(*(f"slow-{number}" for number in range(90)))
        with fleet.worker() as worker, hanging.hold():
            [job] = slow.claim()
            jobs = [replace(job, accounts=job.accounts[start : start + 6]) for start in range(0, 90, 6)]
            waiting = [worker.submit(job) for job in jobs]
            hanging.wait_for_held(20)
            ids = fleet.connect(*(f"quick-{number}" for number in range(6)))
            quick = [worker.submit(job) for job in fleet.claim()]
            eventually(lambda: fleet.row(ids[-1]).generation == 2, what="the healthy one is refreshed")
            for future in quick:
                future.result(20)
            eventually(lambda: sum(not future.done() for future in waiting) <= 4, what="threads are free")
        assert fleet.server.ledger().refreshes == 6
