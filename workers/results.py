"""What a worker writes: how one attempt is settled, and what it says about its app."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from store.answers import SavedTokens
from store.candidates import Promotion
from store.rejection import Rejection
from store.revocations import RevocationMade
from store.settlement import Deferral
from store.unknowns import UnknownAnswer
from store.visits import Visited
from tokenfleet.jobs import AccountId, AppId, Epoch


@dataclass(frozen=True, slots=True)
class AppPaused:
    """The provider asked for a pause of this whole app."""

    app_id: AppId
    until: datetime
    throttles: int = 0
    """How many times in a row it did not say for how long; 0 when it did."""


@dataclass(frozen=True, slots=True)
class AppHeld:
    """The provider rejects this app's registration, at this generation of its credentials.

    ``account_id`` is whom it was asked about.
    """

    app_id: AppId
    generation: int
    code: str
    account_id: AccountId


@dataclass(frozen=True, slots=True)
class AppRecovered:
    """A held app's probe succeeded, with the credentials of ``generation``."""

    app_id: AppId
    generation: int


@dataclass(frozen=True, slots=True)
class AppAnswered:
    """Somebody of an app that was only sampled has succeeded."""

    app_id: AppId


@dataclass(frozen=True, slots=True)
class AppUnthrottled:
    """An app that had been throttled without being told for how long answers well again."""

    app_id: AppId


@dataclass(frozen=True, slots=True)
class Unasked:
    """Nothing was sent: the claim is given back, and the account is not claimed again for ``wait_seconds``."""

    account_id: AccountId
    epoch: Epoch
    wait_seconds: float


Settled = SavedTokens | Deferral | Rejection | Promotion | Visited | RevocationMade | Unasked
Result = Settled | AppPaused | AppUnthrottled | AppHeld | AppRecovered | AppAnswered | UnknownAnswer
