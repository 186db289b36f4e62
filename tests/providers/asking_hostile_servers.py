"""A process that asks hostile servers and says what that cost it: ``python -m`` this with ``name=port`` arguments.

Memory is the peak of the resident set, which Linux lets a process reset; time is the processor's own, so that a busy
machine does not count.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import uvloop

from providers import Answer
from providers.exchange import TokenRequest
from providers.transport import Transport
from tests.providers.definitions import provider

AT_ONCE = 10
TIMEOUT_SECONDS = 1.0
KNOWN_BYTES = 64 * 1024 * 1024


def peak_bytes() -> int:
    """Return the most memory that was resident since the last call of :func:`reset_peak`."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    [line] = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def known() -> dict[str, int]:
    """Return what the measure says of an amount that is known."""
    reset_peak()
    before, taken = peak_bytes(), b"x" * KNOWN_BYTES
    del taken
    return {"bytes": peak_bytes() - before}


async def main(ports: dict[str, int]) -> None:
    sys.stdout.write(json.dumps({"known": known()}) + "\n")
    reader = provider()
    transport = Transport(timeout_seconds=TIMEOUT_SECONDS, max_connections=AT_ONCE)
    for name, port in ports.items():
        request = TokenRequest("POST", f"http://127.0.0.1:{port}/token", {}, b"refresh_token=rt-1")
        reset_peak()
        before, began = peak_bytes(), time.process_time()
        exchanges = await asyncio.gather(*(transport.ask(request) for _ in range(AT_ONCE)))
        outcomes = [reader.read(exchange, now=datetime.now(UTC)) for exchange in exchanges]
        told = {
            "bytes": peak_bytes() - before,
            "cpu_seconds": time.process_time() - began,
            "outcomes": sorted({type(outcome).__name__ for outcome in outcomes}),
            "kept": max(len(exchange.body) for exchange in exchanges if isinstance(exchange, Answer))
            if any(isinstance(exchange, Answer) for exchange in exchanges)
            else 0,
        }
        sys.stdout.write(json.dumps({name: told}) + "\n")
    await transport.aclose()


if __name__ == "__main__":
    arguments = dict(argument.split("=") for argument in sys.argv[1:])
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main({name: int(port) for name, port in arguments.items()}))
