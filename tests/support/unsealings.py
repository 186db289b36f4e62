"""Counts of openings, put where a test wants them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta

from sqlalchemy import Connection, Engine, text

from tokenfleet_client.contract import CONTRACT_SCHEMA, REPORT_UNSEALINGS
from tokenfleet_client.unsealings import Purpose


def remember(
    engine: Engine, purpose: Purpose, opened_by_age: Mapping[timedelta, int], *, caller: str = "w"
) -> None:
    """Let ``caller`` have opened so many so long ago."""
    with _as_nobody_else_can(engine) as connection:
        for age, opened in opened_by_age.items():
            connection.execute(
                text("""
                    INSERT INTO tokenfleet.unsealings (minute, purpose, caller, opened)
                    VALUES (date_trunc('minute', now() - :age), :purpose, :caller, :opened)
                """),
                {"age": age, "purpose": purpose.value, "caller": caller, "opened": opened},
            )


def let_pass(engine: Engine, time: timedelta) -> None:
    """Make every count older."""
    with _as_nobody_else_can(engine) as connection:
        connection.execute(text("UPDATE tokenfleet.unsealings SET minute = minute - :time"), {"time": time})


def report(engine: Engine, caller: str | None, opened: int | None, purpose: str | None = "read") -> None:
    """Say, as a reader does, what was opened."""
    with engine.begin() as connection:
        connection.execute(
            text(
                f"SELECT {CONTRACT_SCHEMA}.{REPORT_UNSEALINGS}"
                "(CAST(:caller AS text), CAST(:purpose AS text), CAST(:opened AS int))"
            ),
            {"caller": caller, "purpose": purpose, "opened": opened},
        )


@contextmanager
def _as_nobody_else_can(engine: Engine) -> Iterator[Connection]:
    """Yield a connection of the table's owner, the guard being asleep."""
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE tokenfleet.unsealings DISABLE TRIGGER unsealings_guard"))
        yield connection
        connection.execute(text("ALTER TABLE tokenfleet.unsealings ENABLE ALWAYS TRIGGER unsealings_guard"))
