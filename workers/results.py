"""What a worker writes: how one attempt is settled, and what it says about its app."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from store.answers import SavedTokens
from store.candidates import Promotion
from store.settlement import Deferral, Rejection
from store.visits import Visited
from tokenfleet.jobs import AppId


@dataclass(frozen=True, slots=True)
class AppPaused:
    """The provider asked for a pause of this whole app."""

    app_id: AppId
    until: datetime


@dataclass(frozen=True, slots=True)
class AppHeld:
    """The provider rejects this app's registration, at this generation of its credentials."""

    app_id: AppId
    generation: int
    code: str


@dataclass(frozen=True, slots=True)
class AppRecovered:
    """A held app's probe succeeded."""

    app_id: AppId


Settled = SavedTokens | Deferral | Rejection | Promotion | Visited
Result = Settled | AppPaused | AppHeld | AppRecovered
