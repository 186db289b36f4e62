"""A thread for a key service that may hang."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Final

import pytest

from workers.key_thread import on_key_thread

STOPS_WHILE_ASKED: Final = """
import asyncio, threading
from workers.key_thread import on_key_thread

async def scene():
    asked = threading.Event()
    on_key_thread(lambda: (asked.set(), threading.Event().wait()))
    await asyncio.to_thread(asked.wait)

asyncio.run(scene())
"""


def test_a_process_ends_while_a_key_service_hangs() -> None:
    ended = subprocess.run([sys.executable, "-c", STOPS_WHILE_ASKED], timeout=60, check=False)
    assert ended.returncode == 0


def test_what_comes_of_it_is_returned_or_raised_where_it_is_waited_for() -> None:
    async def scene() -> None:
        assert await on_key_thread(lambda: 7) == 7
        with pytest.raises(ZeroDivisionError):
            await on_key_thread(lambda: 1 // 0)

    asyncio.run(scene())
