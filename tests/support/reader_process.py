"""Processes that read one account's token with many tasks at once: started, ready, and let go together.

    python tests/support/reader_process.py DATABASE ACCOUNT TASKS

A process says ``ready`` when it is, reads when a line comes on its standard input, and prints as JSON how often it got
which generation, or which error, and how long the slowest call took.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from tokenfleet_client import AsyncTokenClient, TokenUnavailable

PATIENT = timedelta(seconds=60)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the readers got, all processes together."""

    got: Counter[str]
    slowest_seconds: float


async def read(database: str, account: int, tasks: int) -> dict[str, object]:
    """Read with so many tasks at once."""
    async with AsyncTokenClient(database, caller="readers") as tokens:

        async def get() -> str:
            try:
                return str((await tokens.get_token(account, timeout=PATIENT)).generation)
            except TokenUnavailable as error:
                return f"{type(error).__name__}: {error}"

        began = time.monotonic()
        got = Counter(await asyncio.gather(*(get() for _ in range(tasks))))
        return {"got": dict(got), "seconds": time.monotonic() - began}


class ReaderProcesses:
    """So many processes, begun and waiting for their start."""

    def __init__(
        self, count: int, database: str, account: int, tasks: int, environ: Mapping[str, str]
    ) -> None:
        words = [sys.executable, __file__, database, str(account), str(tasks)]
        self._processes = [
            subprocess.Popen(
                words, env=dict(environ), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
            )
            for _ in range(count)
        ]
        for process in self._processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"

    def read(self) -> Outcome:
        """Let all read at once, and return what they got."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write("read\n")
        got, slowest = Counter[str](), 0.0
        for process in self._processes:
            said = json.loads(process.communicate(timeout=120)[0])
            got.update(said["got"])
            slowest = max(slowest, said["seconds"])
        return Outcome(got, slowest)


def main() -> None:
    """Say ``ready``, wait for a line, read, and print what came of it."""
    database, account, tasks = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    sys.stdout.write(json.dumps(asyncio.run(read(database, account, tasks))))


if __name__ == "__main__":
    main()
