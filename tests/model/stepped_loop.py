"""An event loop of one simulated process, advanced one callback at a time.

The loop of :mod:`asyncio` runs until it is told to stop; this one does nothing unless :meth:`SteppedLoop.step` is
called, which runs exactly one callback: what a task does between two awaits. So a test can stop a process at
every await, leave it frozen there for as long as it likes, or never go on.

Time is the caller's: a timer is due when ``clock`` says so. Answers that arrived are run before timers, as the
loops do that read their sockets first.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple

R = TypeVar("R")
_Ts = TypeVarTuple("_Ts")

if TYPE_CHECKING:
    # Of all that a loop could be asked for, nothing here needs more than what stands below.
    from asyncio import SelectorEventLoop as _Loop
else:
    from asyncio import AbstractEventLoop as _Loop


class SteppedLoop(_Loop):
    """One process's event loop. Everything that :mod:`asyncio` asks of a loop without sockets."""

    def __init__(self, clock: Callable[[], float], on_error: Callable[[dict[str, Any]], None]) -> None:
        self._clock = clock
        self._on_error = on_error
        self._ready: deque[asyncio.Handle] = deque()
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._numbers = itertools.count()

    def step(self) -> bool:
        """Run one callback; False when nothing can run before time passes or something arrives."""
        while self._timers and self._timers[0][0] <= self._clock():
            self._ready.append(heapq.heappop(self._timers)[2])
        while self._ready:
            handle = self._ready.popleft()
            if handle.cancelled():
                continue
            asyncio._set_running_loop(self)
            try:
                handle._run()
            finally:
                asyncio._set_running_loop(None)
            return True
        return False

    def next_timer(self) -> float | None:
        """Return when the next timer is due, None when there is none."""
        while self._timers and self._timers[0][2].cancelled():
            heapq.heappop(self._timers)
        return self._timers[0][0] if self._timers else None

    def time(self) -> float:
        return self._clock()

    def call_soon(
        self, callback: Callable[[*_Ts], object], *args: *_Ts, context: Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_later(
        self, delay: float, callback: Callable[[*_Ts], object], *args: *_Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self._clock() + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[[*_Ts], object], *args: *_Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._timers, (when, next(self._numbers), handle))
        return handle

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, **options: Any) -> asyncio.Task[Any]:
        return asyncio.Task(coro, loop=self, **options)

    def start(self, coroutine: Coroutine[Any, Any, R]) -> asyncio.Task[R]:
        """Return a task that runs ``coroutine`` when the loop is stepped."""
        return asyncio.Task(coroutine, loop=self)

    def run_in_executor(  # type: ignore[override]
        self, executor: ThreadPoolExecutor | None, func: Callable[..., R], *args: Any
    ) -> asyncio.Future[R]:
        """Run ``func`` now: a thread of a simulated process takes no time."""
        future: asyncio.Future[R] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001
            future.set_exception(error)
        return future

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self._on_error(context)

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Cancelled timers are dropped when they are met."""
