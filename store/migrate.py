"""Bring the database to the schema this release needs, while the fleet goes on working.

Promise: no statement of the fleet waits longer for a migration than that may wait for a lock
(``migrations/env.py``); a migration that does not get its lock steps back and tries again later.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from store.engine import is_contention, schema_of
from tokenfleet.errors import UserError

Noted = Callable[[Connection, str], None]
"""Told in the transaction of each step which revision it led to; what it writes is there with the step, or neither."""

LOCK_TRIES: Final = 30
LOCK_PAUSE_SECONDS: Final = 5.0
"""Between tries: what queued up behind the lock that was waited for is done by then."""

_OLDEST = text("""
    SELECT pid, application_name, extract(epoch FROM clock_timestamp() - xact_start)::int AS seconds
    FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND xact_start IS NOT NULL
    ORDER BY xact_start LIMIT 1
""")


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config


def head_revision() -> str:
    """Return the revision that this release needs."""
    head = ScriptDirectory.from_config(_config()).get_current_head()
    if head is None:
        raise RuntimeError("the migrations directory is empty: the installation is incomplete")
    return head


def upgrade(engine: Engine, revision: str = "head", *, noted: Noted | None = None) -> None:
    """Migrate the database to ``revision``. Safe to call from many machines at once; only one migrates.

    A database that a newer release has migrated to a schema which serves this one is left as it is. Raises
    :class:`UserError` when it does not serve this one, and when a lock was not to be had.
    """
    for attempt in itertools.count(1):
        try:
            _upgrade(engine, revision, noted)
        except DBAPIError as error:
            if not is_contention(error):
                raise
            if attempt == LOCK_TRIES:
                raise UserError(
                    f"the schema could not be changed: {_holder(engine)} kept a lock that the migration "
                    "needs; end that, or run 'tokenfleet db upgrade' again when it is done"
                ) from error
            time.sleep(LOCK_PAUSE_SECONDS)
        else:
            return


def _upgrade(engine: Engine, revision: str, noted: Noted | None) -> None:
    if _is_newer_and_serves(engine):
        return
    config = _config()
    config.attributes["noted"] = noted
    with engine.connect() as connection:
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, revision)
        except CommandError as error:
            if _is_newer_and_serves(engine):
                # A newer release was migrating while this one waited for its turn.
                return
            raise UserError(
                f"the database cannot be migrated by this release, which knows schemas up to {head_revision()} "
                f"({error}): run the release that migrated it, or a newer one"
            ) from error


def _is_newer_and_serves(engine: Engine) -> bool:
    with engine.connect() as connection:
        schema = schema_of(connection)
    return schema.revision is not None and schema.revision > head_revision() and schema.serves


def _holder(engine: Engine) -> str:
    """Name the session that is most likely in the way: the one with the oldest transaction."""
    with engine.connect() as connection:
        oldest = connection.execute(_OLDEST).one_or_none()
    if oldest is None:
        return "another session"
    return f"a session (pid {oldest.pid}, {oldest.application_name!r}, in one transaction for {oldest.seconds} s)"
