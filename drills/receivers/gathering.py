"""What a run left behind: in the receivers' ledger, in the database, in what the worker wrote down."""

from __future__ import annotations

import bisect
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Connection, text

from chaos.world import World
from drills.receivers.course import Course
from drills.receivers.found import Delivered, Endpoint, Evidence, Refresh, Told
from drills.receivers.roster import KINDS, PUBLIC, Kind
from store import endpoints
from tokenfleet.telemetry import Event

_TOLD: Final = text("""
    SELECT o.id, o.account_id, (o.payload ->> 'number')::int AS number
    FROM tokenfleet.outbox o, tokenfleet.webhook_endpoints e
    WHERE e.id = :id AND o.created_at >= e.created_at AND o.payload ? 'number' ORDER BY o.sequence
""")
_DELIVERIES: Final = text("""
    SELECT d.state, d.attempts, extract(epoch FROM o.created_at)::float8 AS told_at,
           extract(epoch FROM d.finished_at)::float8 AS settled_at
    FROM tokenfleet.webhook_deliveries d JOIN tokenfleet.outbox o ON o.id = d.event_id WHERE d.endpoint_id = :id
""")
_ERRORS: Final = text("""
    SELECT a.error FROM tokenfleet.webhook_attempts a JOIN tokenfleet.webhook_deliveries d ON d.id = a.delivery_id
    WHERE d.endpoint_id = :id AND a.error IS NOT NULL
""")
_SAVED: Final = text("""
    SELECT account_id, extract(epoch FROM at)::float8 AS at FROM tokenfleet.account_events
    WHERE kind = 'refresh.succeeded'
""")


def gather(world: World, course: Course, ledger: dict[str, Any], ports: dict[str, int]) -> Evidence:
    """Return what is to be judged."""
    seen = [line.rsplit(" ", 1) for line in course.connections.read_text().splitlines()]
    connections = Counter((address, int(port)) for address, port in seen)
    strayed = Counter[str]()
    kinds = {port: name for name, port in ports.items()}
    for (address, port), count in connections.items():
        if address != PUBLIC:
            # Whatever it was for, the worker had no business there.
            strayed[kinds.get(port, KINDS[0].name)] += count
    # Of most connections both are witnesses.
    strayed |= Counter({name: int(count) for name, count in ledger["sentinels"].items()})
    received = defaultdict[str, list[tuple[UUID, int, int]]](list)
    for came in ledger["came"]:
        received[came["receiver"]].append((UUID(came["webhook_id"]), came["account"], came["number"]))
    alarmed = _alarmed(course.log.read_text(errors="replace"))
    with world.engine.connect() as connection:
        found = [
            _endpoint(connection, kind, course, received[kind.name], strayed[kind.name], alarmed)
            for kind in KINDS
        ]
        refreshes = _refreshes(connection, course)
    quiet_since, began, ended = course.phases
    return Evidence(
        quiet_since=quiet_since,
        began=began,
        ended=ended,
        endpoints=found,
        refreshes=refreshes,
        presented_twice=world.provider.totals().presented_twice,
        witnessed=sum(
            count for (address, port), count in connections.items() if address == PUBLIC and port in kinds
        ),
        troubles=course.troubles,
    )


def _endpoint(
    connection: Connection,
    kind: Kind,
    course: Course,
    received: Sequence[tuple[UUID, int, int]],
    strayed: int,
    alarmed: frozenset[int],
) -> Endpoint:
    endpoint_id = course.endpoints[kind.name]
    of_it = {"id": endpoint_id}
    deliveries = connection.execute(_DELIVERIES, of_it).all()
    states = Counter(row.state for row in deliveries)
    now = endpoints.load(connection, endpoint_id)
    assert now is not None
    return Endpoint(
        kind=kind,
        told=[Told(row.id, row.account_id, row.number) for row in connection.execute(_TOLD, of_it)],
        received=received,
        delivered=[Delivered(row.told_at, row.settled_at) for row in deliveries if row.state == "delivered"],
        failed=states["failed"],
        waiting=states["pending"],
        attempts=sum(row.attempts for row in deliveries),
        errors=dict(Counter(connection.execute(_ERRORS, of_it).scalars())),
        is_spared=now.retry_at is not None,
        disabled_reason=now.disabled_reason.value if now.disabled_reason else None,
        alarmed=endpoint_id in alarmed,
        strayed=strayed,
    )


def _alarmed(log: str) -> frozenset[int]:
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    return frozenset(
        line["endpoint_id"] for line in lines if line.get("event") == Event.WEBHOOK_ENDPOINT_DISABLED.value
    )


def _refreshes(connection: Connection, course: Course) -> list[Refresh]:
    """Hold each saved refresh against the last moment at which its account was seen to be due before."""
    found: list[Refresh] = []
    for row in connection.execute(_SAVED):
        due = course.due.get(row.account_id, [])
        # In order of time: what was due is stored when the one before is saved.
        before = bisect.bisect_right(due, row.at)
        if before:
            found.append(Refresh(due[before - 1], row.at))
    return found
