"""The zygote forks processes of their own, says what became of each, and leaves none behind."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest

from chaos.points import Role
from chaos.processes import Processes
from tests.chaos.hops import HEIR, Hops
from tests.support.fleet import eventually


def test_a_process_that_cannot_start_says_why_and_ends(processes: Processes) -> None:
    child = processes.start(Role.SCHEDULER, {"PATH": os.environ["PATH"]})
    assert processes.wait(child) == 70
    assert "TOKENFLEET_DATABASE_URL" in processes.log.read_text()


def test_a_process_is_stopped_as_a_deploy_does(hops: Hops) -> None:
    child = hops.start(Role.WORKER, HEIR)
    name = f"tokenfleet worker %-{child.pid}-%"
    eventually(lambda: bool(working(hops, name)), what="it works")
    assert hops.processes.stop(child) == [0]


def test_a_process_that_is_frozen_and_goes_on_is_seen(hops: Hops) -> None:
    hops.processes.signal(hops.heir, signal.SIGSTOP)
    eventually(lambda: hops.heir.stopped is not None, what="it is seen to be frozen")
    hops.processes.signal(hops.heir, signal.SIGCONT)
    eventually(lambda: hops.heir.stopped is None, what="it is seen to go on")
    assert hops.heir.is_alive


def test_children_die_with_a_zygote_that_is_killed(hops: Hops, tmp_path: Path) -> None:
    processes = Processes(tmp_path / "others")
    with processes:
        child = processes.start(Role.WORKER, hops.environ)
        eventually(lambda: bool(working(hops, f"tokenfleet worker %-{child.pid}-%")), what="it works")
        orphan = psutil.Process(child.pid)
        [zygote] = [each for each in orphan.parents() if "chaos.zygote" in " ".join(each.cmdline())][-1:]
        zygote.kill()
        eventually(lambda: not orphan.is_running(), what="it died with its parent")


def working(hops: Hops, name: str) -> list[object]:
    return hops.fleet.column(
        "SELECT 1 FROM pg_stat_activity WHERE application_name LIKE :name LIMIT 1", name=name
    )


@pytest.fixture(autouse=True)
def _heir_lives(hops: Hops) -> None:
    assert hops.heir.is_alive
