"""The account's state machine, whole, in one table.

Promise: a status changes only along :data:`TRANSITIONS`, and each entry says which event the outside world is
told (G5). ``store`` applies a transition as a guarded update that names the statuses it may start from, so
two writers cannot both perform it; a move that is not in the table is refused before any statement is sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from tokenfleet_client.contract import AccountStatus
from tokenfleet_client.webhooks import EventType

__all__ = [
    "ASKABLE",
    "EXPORTED",
    "REFRESHABLE",
    "TRANSITIONS",
    "EventType",
    "Transition",
    "Trigger",
    "sources",
    "transition",
]


class Trigger(StrEnum):
    """What happened to an account."""

    RECONNECTED = "reconnected"
    """New tokens were imported for an account that we already knew."""
    REFRESHED = "refreshed"
    """The provider answered a refresh with a token."""
    GRANT_REJECTED = "grant_rejected"
    """The provider's definite word that this grant is gone."""
    PAUSED = "paused"
    RESUMED = "resumed"
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True)
class Transition:
    """One legal move: where it leads, and the event it emits, if any."""

    target: AccountStatus
    event: EventType | None = None


_S = AccountStatus
_T = Trigger

TRANSITIONS: Final[Mapping[tuple[AccountStatus, Trigger], Transition]] = {
    (_S.CONNECTING, _T.REFRESHED): Transition(_S.ACTIVE),
    (_S.CONNECTING, _T.RECONNECTED): Transition(_S.ACTIVE),
    (_S.CONNECTING, _T.GRANT_REJECTED): Transition(_S.NEEDS_REAUTH, EventType.AUTHENTICATION_ERROR),
    (_S.CONNECTING, _T.PAUSED): Transition(_S.PAUSED),
    (_S.CONNECTING, _T.REVOKED): Transition(_S.REVOKED, EventType.REVOKED),
    (_S.ACTIVE, _T.GRANT_REJECTED): Transition(_S.NEEDS_REAUTH, EventType.AUTHENTICATION_ERROR),
    (_S.ACTIVE, _T.PAUSED): Transition(_S.PAUSED),
    (_S.ACTIVE, _T.REVOKED): Transition(_S.REVOKED, EventType.REVOKED),
    # An answer that came in after the alarm was verified by another refresh: the account is well again.
    (_S.NEEDS_REAUTH, _T.REFRESHED): Transition(_S.ACTIVE, EventType.REACTIVATED),
    (_S.NEEDS_REAUTH, _T.RECONNECTED): Transition(_S.ACTIVE, EventType.REACTIVATED),
    (_S.NEEDS_REAUTH, _T.REVOKED): Transition(_S.REVOKED, EventType.REVOKED),
    (_S.PAUSED, _T.RESUMED): Transition(_S.ACTIVE),
    (_S.PAUSED, _T.REVOKED): Transition(_S.REVOKED, EventType.REVOKED),
    (_S.REVOKED, _T.RECONNECTED): Transition(_S.ACTIVE, EventType.REACTIVATED),
}
"""Absent pairs change nothing: a refresh that lands on a paused account saves its tokens and leaves it
paused; a second rejection of a ``needs_reauth`` account tells nobody again."""

REFRESHABLE: Final = frozenset({AccountStatus.CONNECTING, AccountStatus.ACTIVE})
"""Statuses in which the fleet asks the provider."""

ASKABLE: Final = REFRESHABLE | {AccountStatus.NEEDS_REAUTH, AccountStatus.REVOKED}
"""Statuses in which the provider of an account that is due may be asked about it. One that was given up is due only
when an answer came in after that: it becomes active when a refresh with that answer has succeeded. One that was
revoked is due while it has tokens: its provider is asked to end the grant, and nothing else."""


EXPORTED: Final = "exported to "
"""How the reason of an account begins that is paused because its tokens were given to another fleet: followed by the
recipient's public key. Only one fleet may ask about an account, and this one has let go of it."""


def sources(trigger: Trigger) -> frozenset[AccountStatus]:
    """Return the statuses from which ``trigger`` is a legal move."""
    return frozenset(status for status, known in TRANSITIONS if known is trigger)


def transition(status: AccountStatus, trigger: Trigger) -> Transition | None:
    """Return the legal move for ``trigger`` from ``status``, or None when it changes nothing."""
    return TRANSITIONS.get((status, trigger))
