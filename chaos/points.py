"""Where a process can be made to die: one table of seams in production code, which knows nothing of it.

Promise: production has no fault points, so they cost it nothing. A point is an attribute of the code as its
caller looks it up, reached before or after a durable step. In a chaos process :func:`install` wraps the one
attribute that is armed; an attribute that is gone is an error, never a point that silently does nothing.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final

from tokenfleet.errors import UserError

LOOP_TURNS: Final = 3
"""uvloop writes to a socket at the end of a turn of its loop: a request is on the wire only after that."""


class Role(StrEnum):
    """Which process has the point."""

    WORKER = "worker"
    SCHEDULER = "scheduler"


class When(StrEnum):
    """On which side of its attribute a point lies."""

    BEFORE = "before"
    AFTER = "after"
    WITHIN = "within"
    """After the first half of a sequence was handled. The attribute takes a sequence, and returns one."""
    ON_THE_WIRE = "on the wire"
    """After a coroutine that writes to a socket, once its bytes have left."""


@dataclass(frozen=True, slots=True)
class Point:
    """One moment at which a process may die.

    ``target`` is ``module:attribute`` or ``module:class.attribute``. ``loses_answer`` says that the answer of
    the account at hand dies with the process, which no software can prevent. ``counts`` tells which calls are
    meant, all of them by default. ``depth`` is how many hits a busy process may let pass before it dies.
    """

    name: str
    role: Role
    target: str
    when: When
    meaning: str
    loses_answer: bool = False
    depth: int = 8
    counts: Callable[..., bool] | None = None


def _something(_self: object, items: Sequence[object], *_: object) -> bool:
    return bool(items)


def _several(_self: object, items: Sequence[object]) -> bool:
    return len(items) > 1


_S, _W = Role.SCHEDULER, Role.WORKER
_BEFORE, _AFTER = When.BEFORE, When.AFTER

_TABLE: Final = (
    # Hop 2 and 3, in the scheduler.
    Point("claim.before", _S, "store.claiming:claim_due", _AFTER, "claimed, not committed", depth=3),
    Point("claim.after", _S, "scheduler.loop:Scheduler._publish", _BEFORE, "claimed, no jobs yet", depth=3),
    Point("publish.before", _S, "scheduler.publisher:Publisher.publish", _BEFORE, "nothing published",
          depth=2, counts=_something),
    Point("publish.within", _S, "scheduler.publisher:Publisher.publish", When.WITHIN, "half of them published",
          depth=1, counts=_several),
    Point("publish.after", _S, "scheduler.publisher:Publisher.publish", _AFTER, "all published",
          depth=2, counts=_something),
    # Hop 4.
    Point("lease.before", _W, "store.leases:Leases.take", _BEFORE, "no lease taken", depth=2),
    Point("lease.after", _W, "store.leases:Leases.take", _AFTER, "leases taken, not started", depth=2),
    Point("start.before", _W, "store.schedule:start", _AFTER, "started, not committed", depth=2),
    Point("start.after", _W, "workers.refresh:Refresher._perform", _BEFORE, "start committed"),
    # Hop 5.
    Point("request.before", _W, "providers.connections:Ask.leave", _BEFORE, "nothing on the wire"),
    Point("request.after", _W, "providers.connections:Body.write_with_length", When.ON_THE_WIRE,
          "request on the wire", loses_answer=True),
    Point("answer.before", _W, "aiohttp.client_proto:ResponseHandler.data_received", _BEFORE,
          "answer not read", loses_answer=True),
    Point("answer.after", _W, "providers.transport:Transport.ask", _AFTER, "answer read", loses_answer=True),
    # Hop 6.
    Point("seal.before", _W, "workers.sealing:Sealer.seal", _BEFORE, "judged, not sealed", loses_answer=True),
    Point("seal.after", _W, "workers.sealing:Sealer.seal", _AFTER, "sealed", loses_answer=True),
    Point("journal.before", _W, "store.journal:Journal.append", _BEFORE, "not journalled", loses_answer=True),
    Point("journal.after", _W, "store.journal:Journal.append", _AFTER, "journalled"),
    Point("sync.before", _W, "store.journal:Journal.sync", _BEFORE, "journal not synced", depth=3),
    Point("sync.after", _W, "store.journal:Journal.sync", _AFTER, "journal synced", depth=3),
    # Hop 7 and 8.
    Point("commit.before", _W, "workers.writer:GroupWriter._apply", _AFTER, "written, not committed", depth=3),
    Point("commit.after", _W, "workers.writer:GroupWriter._after_commit", _BEFORE, "committed", depth=3),
    Point("outbox.before", _W, "store.transitions:apply_each", _BEFORE, "status not moved", depth=1),
    Point("outbox.after", _W, "store.transitions:apply_each", _AFTER, "event not committed", depth=1),
    # What follows.
    Point("release.before", _W, "store.leases:Leases.give_back", _BEFORE, "lease not given back",
          depth=3, counts=_something),
    Point("release.after", _W, "store.leases:Leases.give_back", _AFTER, "lease given back",
          depth=3, counts=_something),
    Point("task.returned", _W, "workers.engine:Engine.run", _AFTER, "task returned", depth=2),
    Point("ack.before", _W, "kombu.transport.redis:QoS.ack", _BEFORE, "not acknowledged", depth=2),
    Point("ack.after", _W, "kombu.transport.redis:QoS.ack", _AFTER, "acknowledged", depth=2),
)  # fmt: skip

POINTS: Final[Mapping[str, Point]] = MappingProxyType({point.name: point for point in _TABLE})
"""Every point by its name."""


def of(role: Role) -> list[Point]:
    """Return the points of one kind of process, in the order of the hops."""
    return [point for point in _TABLE if point.role is role]


def resolve(target: str) -> tuple[Any, str, Callable[..., Any]]:
    """Return what holds the attribute, its name, and what it is now.

    Raises :class:`UserError` when there is no such attribute any more.
    """
    module_name, _, path = target.partition(":")
    *owners, name = path.split(".")
    try:
        holder: Any = importlib.import_module(module_name)
        for owner in owners:
            holder = getattr(holder, owner)
        found = vars(holder)[name]
    except (ImportError, AttributeError, KeyError) as error:
        raise UserError(
            f"the seam {target} is gone ({error}): say in chaos/points.py where that step is now"
        ) from error
    if not inspect.isfunction(found):
        raise UserError(f"the seam {target} is no function any more: correct chaos/points.py")
    return holder, name, found


def install(point: Point, strike: Callable[[], None], *, nth: int = 1) -> None:
    """Wrap the attribute of ``point`` in this process, so that its ``nth`` hit calls ``strike``.

    Raises :class:`UserError` when the attribute is gone.
    """
    holder, name, original = resolve(point.target)
    # next() on a count is one step for all threads.
    hits = itertools.count(1)

    def is_it(*args: Any) -> bool:
        return (point.counts is None or point.counts(*args)) and next(hits) == nth

    setattr(holder, name, _wrapped(point.when, original, is_it, strike))


def _wrapped(
    when: When, original: Callable[..., Any], is_it: Callable[..., bool], strike: Callable[[], None]
) -> Callable[..., Any]:
    if when is When.WITHIN:

        @functools.wraps(original)
        def in_two(self: Any, items: Sequence[Any]) -> list[Any]:
            if not is_it(self, items):
                return list(original(self, items))
            middle = len(items) // 2
            first = list(original(self, items[:middle]))
            strike()
            return first + list(original(self, items[middle:]))

        return in_two
    if inspect.iscoroutinefunction(original):

        @functools.wraps(original)
        async def later(*args: Any, **named: Any) -> Any:
            now = is_it(*args)
            if now and when is When.BEFORE:
                strike()
            result = await original(*args, **named)
            if now and when is When.ON_THE_WIRE:
                for _ in range(LOOP_TURNS):
                    await asyncio.sleep(0)
            if now and when is not When.BEFORE:
                strike()
            return result

        return later

    @functools.wraps(original)
    def at_once(*args: Any, **named: Any) -> Any:
        now = is_it(*args)
        if now and when is When.BEFORE:
            strike()
        result = original(*args, **named)
        if now and when is not When.BEFORE:
            strike()
        return result

    return at_once
