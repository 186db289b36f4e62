"""The steps between a reader and the database, without the I/O.

What a client does is written once, as a generator that yields steps and is sent their results, or thrown their
failures; :mod:`tokenfleet_client.client` performs them with threads and :mod:`tokenfleet_client.async_client` on an
event loop. So the rules cannot differ between the two, and are tested with neither.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, TypeVar

import psycopg

from tokenfleet_client.errors import ContractError, DatabaseUnavailable, TokenfleetError

T = TypeVar("T")
Rows: TypeAlias = Sequence[tuple[Any, ...]]

AWAY: Final = (psycopg.OperationalError, psycopg.InterfaceError, OSError)
"""What says that the database, or the way to it, is not there now."""
UNFIT: Final = (psycopg.ProgrammingError, psycopg.errors.ReadOnlySqlTransaction)
"""What says that this database does not have what we ask for, or not for us."""
FAILURES: Final = (psycopg.Error, OSError, TokenfleetError)
"""What a driver throws into an exchange; anything else is a bug, and goes straight up."""

FIRST_PAUSE_SECONDS: Final = 0.05
LONGEST_PAUSE_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Query:
    """Run a statement in a transaction of its own and send its rows. It is given up at ``deadline`` (monotonic)."""

    statement: str
    parameters: Sequence[object]
    deadline: float


@dataclass(frozen=True, slots=True)
class Wait:
    """Let ``seconds`` pass, or less when the account is refreshed; send whether it was."""

    seconds: float
    account_id: int | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """Call what may block on something other than the database; send nothing."""

    function: Callable[[], None]


Step: TypeAlias = Query | Wait | Call
Result: TypeAlias = Rows | bool | None
Exchange: TypeAlias = Generator[Step, Result, T]


def query(
    statement: str, parameters: Sequence[object], deadline: float, clock: Callable[[], float]
) -> Exchange[Rows]:
    """Return the rows of an idempotent statement, asked again until ``deadline`` while the database is away.

    A connection that died while it lay idle is found dead by the first attempt only, so the second follows at once.
    Raises :class:`DatabaseUnavailable` and :class:`ContractError`.
    """
    pause = 0.0
    while True:
        try:
            rows = yield Query(statement, parameters, deadline)
        except AWAY as error:
            if clock() + pause >= deadline:
                raise DatabaseUnavailable(f"the database does not answer: {_first_line(error)}") from error
        except UNFIT as error:
            raise ContractError(
                f"this database role cannot read tokens: {_first_line(error)} (an operator upgrades the database with "
                "'tokenfleet db upgrade', or grants the role what deploy/postgres/reader.sql grants)"
            ) from error
        else:
            assert isinstance(rows, Sequence)
            return rows
        if pause:
            yield from wait(pause)
        pause = min(2 * pause or FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS)


def wait(seconds: float, account_id: int | None = None) -> Exchange[bool]:
    """Return True as soon as the account is said to be refreshed, False when the time is over."""
    woken = yield Wait(seconds, account_id)
    return woken is True


def _first_line(error: BaseException) -> str:
    return (str(error) or "no answer within the time that was given").partition("\n")[0]
