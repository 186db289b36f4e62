"""A Python program on a machine whose wall clock is wrong: ``python -m`` this with seconds, module and arguments.

Shifted, before anything else is imported: ``time``, ``time_ns``, ``localtime``, ``gmtime``, ``ctime``, ``strftime`` and
``clock_gettime`` of :mod:`time`, and ``now``, ``utcnow`` and ``today`` of :mod:`datetime`. That is every wall clock
that Python code can see: Celery, kombu, redis-py, logging and ours. Not shifted: the monotonic clocks, which a wrong
wall clock leaves alone, and what C libraries ask the kernel themselves (OpenSSL, when it checks a certificate).
"""

from __future__ import annotations

import datetime as dt
import runpy
import sys
import time as time_module
from typing import Any

RealDatetime = dt.datetime
RealDate = dt.date


def shift(seconds: float) -> None:
    """Put this process's wall clock ``seconds`` ahead, or behind when negative."""
    real_time, real_time_ns = time_module.time, time_module.time_ns
    real_clock, real_clock_ns = time_module.clock_gettime, time_module.clock_gettime_ns
    wall = time_module.CLOCK_REALTIME

    def time() -> float:
        return real_time() + seconds

    def time_ns() -> int:
        return real_time_ns() + int(seconds * 1_000_000_000)

    def clock_gettime(clock: int, /) -> float:
        return real_clock(clock) + (seconds if clock == wall else 0)

    def clock_gettime_ns(clock: int, /) -> int:
        return real_clock_ns(clock) + (int(seconds * 1_000_000_000) if clock == wall else 0)

    changed: dict[str, Any] = {
        "time": time,
        "time_ns": time_ns,
        "clock_gettime": clock_gettime,
        "clock_gettime_ns": clock_gettime_ns,
    }
    for name in ("localtime", "gmtime", "ctime"):
        changed[name] = _with_default(getattr(time_module, name), time)
    real_strftime, localtime = time_module.strftime, changed["localtime"]
    changed["strftime"] = lambda form, moment=None: real_strftime(form, moment or localtime())
    for name, function in changed.items():
        setattr(time_module, name, function)
    _shift_datetime(dt.timedelta(seconds=seconds))


def _with_default(function: Any, time: Any) -> Any:
    def called(seconds: float | None = None) -> Any:
        return function(time() if seconds is None else seconds)

    return called


def _shift_datetime(ahead: dt.timedelta) -> None:
    class AnyDatetime(type):
        """What C code made is a ``datetime`` too."""

        def __instancecheck__(cls, instance: object) -> bool:
            return isinstance(instance, RealDatetime)

    class AnyDate(type):
        def __instancecheck__(cls, instance: object) -> bool:
            return isinstance(instance, RealDate)

    class datetime(RealDatetime, metaclass=AnyDatetime):  # noqa: N801
        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> Any:
            return RealDatetime.now(tz) + ahead

        @classmethod
        def utcnow(cls) -> Any:
            return RealDatetime.now(dt.UTC).replace(tzinfo=None) + ahead

        @classmethod
        def today(cls) -> Any:
            return RealDatetime.now() + ahead

    class date(RealDate, metaclass=AnyDate):  # noqa: N801
        @classmethod
        def today(cls) -> Any:
            return (RealDatetime.now() + ahead).date()

    for name, shifted in (("datetime", datetime), ("date", date)):
        # The drivers look classes up by name.
        shifted.__module__, shifted.__qualname__ = "datetime", name
        setattr(dt, name, shifted)


if __name__ == "__main__":
    seconds, module, *rest = sys.argv[1:]
    shift(float(seconds))
    sys.argv = [module, *rest]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
