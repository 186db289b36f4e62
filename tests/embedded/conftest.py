"""Scripts that own servers, run as processes of their own, and a look at who is still alive."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
DEADLINE_SECONDS = 20.0


@pytest.fixture
def start_script() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Return a function that runs Python text in a fresh interpreter which finds this checkout.

    ``prefix`` goes before the command, ``path_first`` before the module search path, ``environ`` over ours.
    """
    started: list[subprocess.Popen[str]] = []

    def start(
        text: str,
        *arguments: str | Path,
        prefix: Sequence[str] = (),
        path_first: Sequence[Path] = (),
        environ: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[str]:
        search = (*path_first, REPOSITORY, REPOSITORY / "client" / "src")
        process = subprocess.Popen(
            [*prefix, sys.executable, "-W", "error", "-c", text, *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, search)), **(environ or {})},
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=DEADLINE_SECONDS)


@pytest.fixture
def run_script(start_script: Callable[..., subprocess.Popen[str]]) -> Callable[..., str]:
    """Return a function that runs such a script to its end and returns what it printed."""

    def run(*arguments: Any, **options: Any) -> str:
        process = start_script(*arguments, **options)
        output, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        return output.strip()

    return run


@pytest.fixture
def eventually() -> Callable[[Callable[[], bool]], None]:
    """Return a check that gives a condition time to come true, and fails if it does not."""

    def check(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not condition():
            assert time.monotonic() < deadline, "did not happen in time"
            time.sleep(0.02)

    return check


@pytest.fixture
def processes_below() -> Callable[[Path], list[psutil.Process]]:
    """Return a look at the living processes that work in a directory or below it."""

    def look(directory: Path) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                if Path(process.cwd()).is_relative_to(directory) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    return look
