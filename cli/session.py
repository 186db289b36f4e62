"""What a command works with: the settings of this shell, a database that is ready, and who is asking."""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from tokenfleet.errors import UserError
from tokenfleet.settings import DEFAULT_HOME, Settings

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from providers import Registry
    from store.audit import Operator

_SERVERS: Final = (
    ("TOKENFLEET_DATABASE_URL", "DATABASE_URL"),
    ("TOKENFLEET_REDIS_URL", "REDIS_URL"),
)
"""Variables that name a server, the one that wins first."""

OPERATOR_CHARACTERS: Final = 100
"""Of an operator's name. The counts of openings refuse a longer caller, and whoever opened would not be on record."""

_UNUSED_SERVERS: Final = {
    "TOKENFLEET_DATABASE_URL": "postgresql://unused/unused",
    "TOKENFLEET_REDIS_URL": "redis://unused",
}


def home_of(environ: Mapping[str, str]) -> Path:
    """Return the home directory that ``environ`` names. Raises :class:`UserError` when there is none such."""
    return path_from("TOKENFLEET_HOME", environ) or expanded(DEFAULT_HOME, "TOKENFLEET_HOME")


def path_from(name: str, environ: Mapping[str, str]) -> Path | None:
    """Return the path that a variable holds. Raises :class:`UserError` when its ~user does not exist."""
    return expanded(Path(environ[name]), name) if environ.get(name) else None


def expanded(path: Path, name: str) -> Path:
    """Return ``path``, the value of ``name``, with ~ replaced. Raises :class:`UserError` when it cannot be."""
    try:
        return path.expanduser().absolute()
    except RuntimeError as error:
        raise UserError(
            f"{name} is {path}, and there is no such home directory: give an absolute path"
        ) from error


def load_settings() -> Settings:
    """Return the settings of this shell; servers that nobody names are those of a running ``tokenfleet up``.

    Raises :class:`tokenfleet.errors.SettingsError` with every problem.
    """
    environ = dict(os.environ)
    unnamed = [names[0] for names in _SERVERS if not any(environ.get(name) for name in names)]
    if unnamed:
        from embedded.environment import running_servers

        # A home that cannot be is told with all other problems, below.
        with suppress(UserError):
            running = running_servers(home_of(environ))
            environ |= {name: running[name] for name in unnamed if name in running}
    return Settings.from_environ(environ)


def load_offline_settings() -> Settings:
    """Return the settings for a command that needs no server, so none has to be named.

    Raises :class:`tokenfleet.errors.SettingsError` with every problem.
    """
    return Settings.from_environ(os.environ | _UNUSED_SERVERS)


def load_providers(settings: Settings) -> Registry:
    """Return the provider definitions. Raises :class:`tokenfleet.errors.DefinitionError`."""
    from providers import load_registry

    return load_registry(settings.providers_dir, allow_http=settings.tunables.allow_http_providers)


@contextmanager
def database(settings: Settings) -> Iterator[Engine]:
    """Yield an engine on a database that answers and has the current schema.

    This machine's clock may be off: no command depends on it, and ``doctor`` tells. Raises
    :class:`tokenfleet.errors.UserError` in one sentence.
    """
    from store.engine import check_ready

    with bare_database(settings) as engine:
        check_ready(engine, max_clock_skew=timedelta.max)
        yield engine


@contextmanager
def bare_database(settings: Settings) -> Iterator[Engine]:
    """Yield an engine on a database of which nothing is known yet."""
    from store.engine import make_engine
    from store.unsealings import counting_for

    engine = make_engine(settings.database_url, application_name="tokenfleet command")
    try:
        with counting_for(engine, operator(), lost=_say_unrecorded):
            yield engine
    finally:
        engine.dispose()


def _say_unrecorded(openings: int) -> None:
    click.echo(
        f"{openings:,} sealed values were opened and could not be put on record, because Postgres does not take it.",
        err=True,
    )


def operator() -> str:
    """Return who runs this command, as history names them: a name that Postgres takes, whatever the shell says."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError, ImportError):
        # An account without an entry in passwd, as in many containers.
        name = f"uid-{os.getuid()}"
    return f"operator:{name.encode(errors='backslashreplace').decode()[:OPERATOR_CHARACTERS]}"


def on_record() -> Operator:
    """Return who runs this command and where, as the audit log names them."""
    from store.audit import Operator

    return Operator(operator(), socket.gethostname())
