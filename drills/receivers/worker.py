"""A worker of webhooks as production has it, in a world where names resolve as the drill says.

Production has no door for this: a resolver is given to the engine of webhooks where it is built, one loopback address
is declared public, and the waits between attempts are divided by the drill's factor, all of it from outside, in this
process only. What is refused, and how, is production's own. Every address that this process connects to is written
down as an audit hook of the interpreter hears of it.

    python -m drills.receivers.worker HOUR_SECONDS FILE
"""

from __future__ import annotations

import functools
import itertools
import os
import socket
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from drills.receivers.roster import KINDS, PUBLIC, Pace
from tokenfleet import delivery_policy, receiver_urls

_WAITS: Final = ("SHORTEST_REST", "LONGEST_REST", "DISABLED_AFTER", "LONGEST_PAUSE")


class Names:
    """The name servers of the drill."""

    def __init__(self) -> None:
        self._answers = {kind.host: itertools.cycle(kind.resolves) for kind in KINDS if kind.resolves}

    def __call__(self, host: str, port: int) -> list[tuple[socket.AddressFamily, str]]:
        """Answer the next answer of ``host``. Raises ``OSError`` for a name that is none of the drill's."""
        answers = self._answers.get(host)
        if answers is None:
            raise socket.gaierror(socket.EAI_NONAME, "no such name in the drill")
        # Each name is asked for by one thread at a time.
        return [(socket.AF_INET, address) for address in next(answers)]


def note_connections(path: Path) -> None:
    """Write down ``address port`` for every connection that Python code of this process begins from now on."""
    notes = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "socket.connect" and isinstance(arguments[1], tuple):
            os.write(notes, f"{arguments[1][0]} {arguments[1][1]}\n".encode())

    sys.addaudithook(hear)


def hasten(factor: float) -> None:
    """Divide the waits of the policy. Before ``store.endpoint_health`` is imported, whose statement holds them."""
    assert "store.endpoint_health" not in sys.modules
    delays = tuple(delay / factor for delay in delivery_policy.RETRY_DELAYS)
    setattr(delivery_policy, "RETRY_DELAYS", delays)  # noqa: B010
    for name in _WAITS:
        wait: timedelta = getattr(delivery_policy, name)
        setattr(delivery_policy, name, wait / factor)


def main() -> None:
    """Be the worker."""
    pace = Pace(float(sys.argv[1]))
    note_connections(Path(sys.argv[2]))
    hasten(pace.factor)

    from cli.worker import worker
    from workers import bootstrap, receivers
    from workers.webhook_engine import WebhookEngine

    def is_public(address: str) -> bool:
        return address == PUBLIC or receiver_urls.is_public(address)

    setattr(receivers, "is_public", is_public)  # noqa: B010
    # Each connection asks anew, which is the worst case.
    setattr(receivers, "RESOLVED_FOR_SECONDS", 0.0)  # noqa: B010
    setattr(bootstrap, "WebhookEngine", functools.partial(WebhookEngine, lookup=Names()))  # noqa: B010
    worker.main(args=["--queues", "webhooks"], prog_name="tokenfleet worker")


if __name__ == "__main__":
    main()
