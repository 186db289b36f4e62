"""What goes on around the fleet: customers sign in again when they are asked to, and a reader reads.

Each is a thread of the harness. While Postgres is away they wait, as their originals do.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from chaos.stage import Stage
from chaos.world import OPERATOR
from store import incidents
from store.incidents import Kind, Resolution
from tokenfleet.errors import UserError

SIGN_IN_EVERY_SECONDS: Final = 0.5
SIGN_INS_AT_ONCE: Final = 500
RULE_EVERY_SECONDS: Final = 1.0
SAMPLE_EVERY_SECONDS: Final = 1.0

_TO_SIGN_IN: Final = """
    SELECT external_id FROM tokenfleet.accounts WHERE status = 'needs_reauth'
    ORDER BY status_changed_at LIMIT :limit
"""
_LOWEST: Final = text("""
    SELECT min(EXTRACT(epoch FROM expires_at - clock_timestamp()))::float
    FROM tokenfleet_v1.access_tokens WHERE status = 'active'
""")
SPREAD_SECONDS: Final = 14.0
SPREAD_STEP_SECONDS: Final = 0.1


@dataclass(frozen=True, slots=True)
class Sample:
    """What a reader saw at one moment: the shortest time that an active account's token has to live.

    ``lowest`` is None when the database did not answer.
    """

    at: float
    lowest: float | None


class Repeatedly:
    """Calls a function again and again on a thread, from ``with`` to its end. Postgres may be away."""

    def __init__(self, function: Callable[[], None], every_seconds: float, name: str) -> None:
        self._function = function
        self._every = every_seconds
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.error: BaseException | None = None
        """What ended the thread, if anything but :meth:`stop` did."""

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End after the call at hand. Raises what had ended it before."""
        self._stopping.set()
        self._thread.join()
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        try:
            due = time.monotonic()
            while not self._stopping.is_set():
                self._function()
                due = max(due + self._every, time.monotonic())
                self._stopping.wait(due - time.monotonic())
        except BaseException as error:  # noqa: BLE001
            # Kept for whoever stops it.
            self.error = error


class Customers:
    """Customers who sign in again when the fleet says that they have to."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.signed_in = 0

    def __call__(self) -> None:
        """Sign in whoever needs it now."""
        try:
            subjects = [str(each) for each in self._stage.column(_TO_SIGN_IN, limit=SIGN_INS_AT_ONCE)]
            if subjects:
                self._stage.sign_in(subjects)
                self.signed_in += len(subjects)
        except (SQLAlchemyError, UserError):
            # Postgres is away. Who signed in and was not imported is asked to sign in again.
            return


class Operator:
    """An operator who knows that this provider loses answers, and confirms what the guard holds back.

    A run loses more answers on one app in ten minutes than the guard believes. The provider rejects no token that
    lives, so whoever is set apart has to sign in again; the ledger would see a false alarm.
    """

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.confirmed = 0

    def __call__(self) -> None:
        """Confirm every open incident of rejections."""
        try:
            with self._stage.engine.begin() as connection:
                for incident in incidents.listing(connection):
                    if incident.kind is Kind.MASS_REJECTION and incident.resolved_at is None:
                        incidents.resolve(
                            connection, incident.incident_id, Resolution.CONFIRMED, actor=OPERATOR
                        )
                        self.confirmed += 1
        except SQLAlchemyError:
            return


class Spread:
    """Operators who ask for the first refreshes, one account after another.

    All accounts were imported at once; so their due moments become as even as those of a fleet that has run
    for long.
    """

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._left = list(stage.ids.values())
        self._step = max(round(len(self._left) * SPREAD_STEP_SECONDS / SPREAD_SECONDS), 1)

    def __call__(self) -> None:
        """Ask for some more."""
        if self._left:
            self._stage.ask_for_refresh(self._left[-self._step :])
            del self._left[-self._step :]


class Reader:
    """A service that looks at every token, every second."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.samples: list[Sample] = []

    def __call__(self) -> None:
        """Take one sample."""
        at = time.time()
        try:
            with self._stage.engine.connect() as connection:
                lowest = connection.execute(_LOWEST).scalar_one()
        except SQLAlchemyError:
            lowest = None
        self.samples.append(Sample(at, lowest))
