"""What must be there before a fleet starts: keys, a migrated database, the rings' first data keys.

Each step is what an operator does by hand with ``keys generate`` and ``db upgrade``; nothing is redone that is
there already, and no key is ever replaced.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from sqlalchemy import Connection

from cli.session import on_record
from store import audit, history, keys, migrate
from store.engine import database_now, make_engine, schema_revision
from tokenfleet.errors import UserError
from tokenfleet.settings import Settings
from tokenfleet_client.envelope import KeyEncryptionKey, Ring


def write_keys(path: Path, rings: Mapping[Ring, Sequence[KeyEncryptionKey]]) -> None:
    """Write a key file, readable by its owner only.

    Raises :class:`UserError` when the file exists: a key that was overwritten opens nothing any more.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with open(path, "x", opener=_private) as file:
            json.dump(
                {ring.value: [each.export() for each in of] for ring, of in rings.items()}, file, indent=2
            )
            file.write("\n")
            file.flush()
            # Data keys are wrapped with these at once, durably: a key file lost to a power cut takes every
            # token with it.
            os.fsync(file.fileno())
    except FileExistsError:
        raise UserError(
            f"{path} exists already and is left as it is: keep it, or give another file with --output"
        ) from None
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): choose another --output") from error


def add_keys(path: Path, rings: Mapping[Ring, KeyEncryptionKey]) -> None:
    """Put new keys before those of a key file, in one step: whoever reads it has the old file or the new one.

    Raises :class:`UserError` when the file cannot be read or written.
    """
    beside = path.with_name(f".{path.name}.new")
    try:
        content: dict[str, list[str]] = json.loads(path.read_bytes())
        for ring, key in rings.items():
            content[ring.value] = [key.export(), *content.get(ring.value, [])]
        status = path.stat()
        with open(beside, "w", opener=_private) as file:
            os.fchmod(file.fileno(), status.st_mode & 0o700)
            if os.geteuid() == 0:
                os.fchown(file.fileno(), status.st_uid, status.st_gid)
            json.dump(content, file, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a readable key file: restore it from your backup") from error
    except FileNotFoundError as error:
        raise UserError(
            f"there is no key file at {path} to add to: restore it from your backup; without --add a new "
            "installation's is made"
        ) from error
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise UserError(
            f"{path} cannot be replaced ({error.strerror}): it is as it was; run this where it may be written"
        ) from error


def prepare_database(environ: Mapping[str, str]) -> Settings:
    """Make keys if none are configured, migrate, create partitions and data keys; returns the settings.

    For ``up`` and ``demo``, which bring everything along. Raises :class:`UserError` in one sentence.
    """
    settings = Settings.from_environ(environ)
    if settings.access_ring.primary is None and settings.refresh_ring.primary is None:
        _refuse_lost_keys(settings)
        fresh = {ring: [KeyEncryptionKey.generate(f"{ring.value}-1")] for ring in Ring}
        write_keys(settings.home / "keys.json", fresh)
        settings = Settings.from_environ(environ)
    upgrade_database(settings)
    return settings


def _refuse_lost_keys(settings: Settings) -> None:
    """A new key file beside an old database would stand where the backup belongs, and open nothing."""
    upgrade_database(settings)
    engine = make_engine(settings.database_url, application_name="tokenfleet db upgrade")
    try:
        with engine.connect() as connection:
            if keys.load_wrapped(connection):
                raise UserError(
                    f"{settings.home / 'keys.json'} is missing, and this database's tokens are sealed with its "
                    "keys: put it back from your backup"
                )
    finally:
        engine.dispose()


def upgrade_database(settings: Settings, *, reason: str | None = None) -> str:
    """Migrate, create the history partitions of the coming days, and data keys if keys are configured.

    Returns the revision. Safe to repeat, and safe on several machines at once. Each step of a migration is on record in
    its own transaction, from the one on that made the audit log.
    """
    engine = make_engine(settings.database_url, application_name="tokenfleet db upgrade")
    try:
        with engine.connect() as connection:
            before = schema_revision(connection)

        def noted(connection: Connection, after: str) -> None:
            nonlocal before
            if audit.is_there(connection):
                entry = audit.Entry("database", {"before": before, "after": after})
                audit.record(connection, on_record(), audit.Action.DB_UPGRADE, [entry], reason=reason)
                before = after

        migrate.upgrade(engine, noted=noted)
        with engine.begin() as connection:
            history.maintain_partitions(
                connection,
                today=history.utc_date(database_now(connection)),
                retention_days=settings.tunables.history_retention_days,
            )
            if settings.access_ring.primary is not None and settings.refresh_ring.primary is not None:
                keys.open_vault(connection, settings)
    finally:
        engine.dispose()
    return migrate.head_revision()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
