"""What was found in a run, for :mod:`drills.receivers.verdict` to judge. Values only; moments are POSIX seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from drills.receivers.roster import Kind


@dataclass(frozen=True, slots=True)
class Told:
    """One event that was told: the ``number``-th one, of ``account``."""

    event_id: UUID
    account: int
    number: int


@dataclass(frozen=True, slots=True)
class Delivered:
    """One delivery that succeeded: when its event was written, and when it was settled."""

    told_at: float
    settled_at: float

    @property
    def delay(self) -> float:
        """From the event to the delivery."""
        return self.settled_at - self.told_at


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What became of one endpoint."""

    kind: Kind
    told: Sequence[Told]
    """Since it was added, in order."""
    received: Sequence[tuple[UUID, int, int]]
    """Id, account and number of each message that reached its receiver, copies included, in order."""
    delivered: Sequence[Delivered]
    failed: int
    waiting: int
    attempts: int
    errors: Mapping[str, int]
    """How often each word stands in the log."""
    is_spared: bool
    disabled_reason: str | None
    alarmed: bool
    """Whether an alarm named it."""
    strayed: int
    """Connections to its port anywhere but at the public address: as the worker or a sentinel saw them."""


@dataclass(frozen=True, slots=True)
class Refresh:
    """One refresh: when it was due, and when its tokens were saved."""

    due: float
    saved: float

    @property
    def late(self) -> float:
        """From due to saved."""
        return self.saved - self.due


@dataclass(frozen=True, slots=True)
class Evidence:
    """All of one run. The trouble lasts from ``began`` to ``ended``; the quiet before it as long, up to ``began``."""

    quiet_since: float
    began: float
    ended: float
    endpoints: Sequence[Endpoint]
    refreshes: Sequence[Refresh]
    presented_twice: int
    witnessed: int
    """Connections to the public address that the worker wrote down: none, and it has written down nothing."""
    troubles: Sequence[str]
    """The fleet's own."""
