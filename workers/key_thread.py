"""A thread for a key service that may hang: nobody waits for it, not even a process that stops.

Not one of the loop's own threads, on which the journal's disk is waited for; and not one of a pool, because Python
joins the threads of all pools at its exit.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

R = TypeVar("R")


def on_key_thread(function: Callable[[], R]) -> asyncio.Future[R]:
    """Run ``function`` on a thread of its own, which ends with the process; returns what comes of it."""
    called: Future[R] = Future()
    # Whoever gives up waiting does not keep the thread from saying how it went.
    called.set_running_or_notify_cancel()

    def run() -> None:
        try:
            result = function()
        except BaseException as error:  # noqa: BLE001  # It is raised where it is waited for.
            called.set_exception(error)
        else:
            called.set_result(result)

    threading.Thread(target=run, name="keys", daemon=True).start()
    return asyncio.wrap_future(called)
