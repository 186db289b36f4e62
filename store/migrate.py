"""Bring the database to the schema this release needs, and say which one it has."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Engine

from tokenfleet.errors import UserError


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


def upgrade(engine: Engine, revision: str = "head") -> None:
    """Migrate the database to ``revision``. Safe to call from many machines at once; only one migrates.

    Raises :class:`UserError` when a newer release has migrated it further than this one knows.
    """
    config = _config()
    with engine.connect() as connection:
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, revision)
        except CommandError as error:
            raise UserError(
                f"the database cannot be migrated by this release, which knows schemas up to {head_revision()} "
                f"({error}): run the release that migrated it, or a newer one"
            ) from error
