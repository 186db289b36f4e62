"""One frozen Settings, read once from the environment and passed down.

Promise: every mistake is reported at once, each in a sentence that names the variable and says what to do;
a printed Settings shows no password and no key. No other module reads ``os.environ``.
"""

from __future__ import annotations

import difflib
import itertools
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tokenfleet.errors import SettingsError
from tokenfleet.key_rings import KeyRing, read_key_rings
from tokenfleet_client.secret import PLACEHOLDER

PREFIX: Final = "TOKENFLEET_"
DEFAULT_HOME: Final = Path("~/.tokenfleet")
_EXPECTED: Final = {"bool_parsing": "must be true or false"}
_NAMES: Final = frozenset(
    PREFIX + name
    for name in (
        "DATABASE_URL REDIS_URL BROKER_URL HOME JOURNAL_DIR PROVIDERS_DIR KEYS_FILE ACCESS_KEYS REFRESH_KEYS "
        "VAULT_TOKEN VAULT_TOKEN_FILE VAULT_NAMESPACE VAULT_CA_FILE"
    ).split()
)
LAST_PORT: Final = 65_535

# What follows "://". Stricter than the drivers, which take a raw "#" or "/" in a password each in its own
# way: what cannot be taken apart for certain could not be redacted for certain either.
_ADDRESS: Final = re.compile(
    r"(?P<login>(?P<user>[^:@/?#]*)(?P<password>:[^@/?#]*)?@)?"
    r"(?P<host>\[[^\]@/?#]+\]|[^:@/?#\[\]]*)(:(?P<port>[0-9]*))?"
    r"(?P<path>/[^@?#]*)?(\?[^@#]*)?"
)


class Tunables(BaseModel):
    """Numbers and words with defaults. The field name in capitals, prefixed, is the variable."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    http_timeout_seconds: float = Field(default=12.0, gt=0, le=300)
    """One provider call in total, from connecting to the last byte."""
    lease_seconds: float = Field(default=26.0, gt=0, le=900)
    claim_seconds: float = Field(default=30.0, gt=0, le=3600)
    """How long a claim keeps others away, from the claim to the start and again from the start on."""
    redis_prefix: str = Field(default="", pattern=r"^[A-Za-z0-9:._-]{0,64}$")
    """Put before every Redis key, so that several fleets can share one Redis."""
    visibility_timeout_seconds: float = Field(default=300.0, gt=0, le=43200)
    """When the Redis broker delivers an unacknowledged message again."""
    tick_seconds: float = Field(default=0.25, gt=0, le=60)
    """How often the scheduler looks for due accounts when nothing wakes it."""
    worker_threads: int = Field(default=16, ge=1, le=256)
    """Jobs at once in one worker process."""
    max_in_flight: int = Field(default=1000, ge=1, le=20_000)
    """Provider calls at once in one worker process."""
    group_commit_seconds: float = Field(default=0.005, ge=0, le=1)
    """How long a result waits for company before it is written."""
    history_retention_days: int = Field(default=90, ge=1, le=3650)
    webhook_timeout_seconds: float = Field(default=15.0, gt=0, le=60)
    """One webhook in total, from resolving the receiver's name to the last byte of its answer."""
    webhook_retention_days: int = Field(default=30, ge=4, le=3650)
    """How long deliveries, their log and the events themselves are kept: longer than the last retry takes."""
    allow_private_webhooks: bool = False
    """Send webhooks to private addresses and over plain http: for the sandbox and tests, never for production."""
    max_clock_skew_seconds: float = Field(default=300.0, gt=0, le=86_400)
    """How far this machine's clock may be from the database's before a process refuses to start."""
    metrics_host: str = "127.0.0.1"
    metrics_port: int = Field(default=0, ge=0, le=65535)
    """Port of /metrics and /healthz; 0 turns them off."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "console"] = "json"
    allow_http_providers: bool = False
    """Allow definitions with plain http endpoints: for the sandbox and tests, never for production."""

    @property
    def webhook_claim(self) -> timedelta:
        """How long a claim on a delivery keeps others away, from the claim and again from the start on.

        It outlives the longest request by far: a job may lie in the queue for a while before it is started, and its
        results wait for company and for Postgres.
        """
        return timedelta(seconds=3 * self.webhook_timeout_seconds)


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that a process is told. Build it with :meth:`from_environ`."""

    database_url: str = field(repr=False)
    redis_url: str = field(repr=False)
    broker_url: str = field(repr=False)
    home: Path
    journal_dir: Path
    providers_dir: Path | None
    access_ring: KeyRing
    refresh_ring: KeyRing
    tunables: Tunables

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Settings:
        """Read ``environ``. Raises :class:`SettingsError` with one sentence for each mistake."""
        problems: list[str] = []
        home = _path("TOKENFLEET_HOME", environ, DEFAULT_HOME, problems)
        database_url = environ.get("TOKENFLEET_DATABASE_URL") or environ.get("DATABASE_URL") or ""
        redis_url = environ.get("TOKENFLEET_REDIS_URL") or environ.get("REDIS_URL") or ""
        broker_url = environ.get("TOKENFLEET_BROKER_URL") or redis_url
        database_url = _check_database(database_url, problems)
        _check_url("TOKENFLEET_REDIS_URL", redis_url, ("redis", "rediss", "unix"), problems)
        if environ.get("TOKENFLEET_BROKER_URL"):
            schemes = ("redis", "rediss", "amqp", "amqps")
            _check_url("TOKENFLEET_BROKER_URL", broker_url, schemes, problems)
        elif redis_url.startswith("unix://"):
            problems.append(
                "TOKENFLEET_BROKER_URL is not set, and jobs cannot travel by a unix:// URL: give the "
                "broker's redis:// or amqp:// URL"
            )
        journal_dir = _path("TOKENFLEET_JOURNAL_DIR", environ, home / "journal", problems)
        providers_dir = _directory("TOKENFLEET_PROVIDERS_DIR", environ, problems)
        keys_file = _path("TOKENFLEET_KEYS_FILE", environ, home / "keys.json", problems)
        access, refresh = read_key_rings(environ, keys_file, problems)
        tunables = _tunables(environ, problems)
        _check_names(environ, problems)
        if problems:
            raise SettingsError(problems)
        return cls(
            database_url=database_url,
            redis_url=redis_url,
            broker_url=broker_url,
            home=home,
            journal_dir=journal_dir,
            providers_dir=providers_dir,
            access_ring=access,
            refresh_ring=refresh,
            tunables=tunables,
        )

    def describe(self) -> dict[str, str]:
        """Return every setting as printable text, passwords and keys left out."""
        shown = {
            "database": redact_url(self.database_url),
            "redis": redact_url(self.redis_url),
            "broker": redact_url(self.broker_url),
            "home": str(self.home),
            "journal": str(self.journal_dir),
            "providers": str(self.providers_dir or "built-in only"),
            "access ring": ", ".join(self.access_ring.keys) or "none",
            "refresh ring": ", ".join(self.refresh_ring.keys) or "none",
        }
        return shown | {name: str(value) for name, value in self.tunables.model_dump().items()}


def redact_url(url: str) -> str:
    """Return ``url`` without its password and query, for people to read; nothing of it when in doubt."""
    scheme, separator, rest = url.partition("://")
    address = _ADDRESS.fullmatch(rest)
    if not separator or address is None:
        return PLACEHOLDER
    password = f":{PLACEHOLDER}" if address["password"] else ""
    login = f"{address['user']}{password}@" if address["login"] else ""
    port = f":{address['port']}" if address["port"] else ""
    return f"{scheme.removesuffix('+psycopg')}://{login}{address['host']}{port}{address['path'] or ''}"


def process_name() -> str:
    """Return ``host-pid``, the name under which this process appears in logs and history."""
    return f"{socket.gethostname()}-{os.getpid()}"


def _check_database(url: str, problems: list[str]) -> str:
    if not url:
        problems.append(
            "TOKENFLEET_DATABASE_URL is not set: give the Postgres URL (postgresql://user@host/name), "
            "or run 'tokenfleet up', which brings its own"
        )
        return ""
    rest = _check_url(
        "TOKENFLEET_DATABASE_URL", url, ("postgresql", "postgres", "postgresql+psycopg"), problems
    )
    return f"postgresql+psycopg://{rest}"


def _check_url(name: str, url: str, schemes: tuple[str, ...], problems: list[str]) -> str:
    """Return what follows ``://``."""
    scheme, separator, rest = url.partition("://")
    address = _ADDRESS.fullmatch(rest)
    if not url:
        problems.append(f"{name} is not set: give the Redis URL (redis://host:6379/0)")
    elif not separator or scheme not in schemes:
        problems.append(f"{name} must start with {' or '.join(f'{known}://' for known in schemes)}")
    elif address is None or int(address["port"] or 0) > LAST_PORT:
        problems.append(
            f"{name} cannot be read after {scheme}://: write user:password@host:port/name, the port as a "
            f"number up to {LAST_PORT}, special characters percent-encoded (# as %23, / as %2F, @ as %40)"
        )
    return rest


def _path(name: str, environ: Mapping[str, str], default: Path, problems: list[str]) -> Path:
    path = Path(environ.get(name) or default)
    try:
        return path.expanduser().absolute()
    except RuntimeError:
        problems.append(f"{name} is {path}, and there is no such home directory: give an absolute path")
        return path.absolute()


def _directory(name: str, environ: Mapping[str, str], problems: list[str]) -> Path | None:
    if not environ.get(name):
        return None
    path = _path(name, environ, Path(), problems)
    if not path.is_dir():
        problems.append(f"{name} is {path}, which is not a directory: create it or unset the variable")
    return path


def _tunables(environ: Mapping[str, str], problems: list[str]) -> Tunables:
    given: dict[str, Any] = {}
    for name in Tunables.model_fields:
        value = environ.get(PREFIX + name.upper())
        if value:
            given[name] = value
    try:
        tunables = Tunables.model_validate(given)
    except ValidationError as error:
        for detail in error.errors():
            variable = PREFIX + str(detail["loc"][0]).upper()
            expected = _EXPECTED.get(detail["type"]) or detail["msg"][:1].lower() + detail["msg"][1:]
            problems.append(f"{variable}: {expected}")
        return Tunables()
    _check_ladder(tunables, problems)
    return tunables


def _check_names(environ: Mapping[str, str], problems: list[str]) -> None:
    """A mistyped name would silently leave its setting at the default."""
    known = _NAMES | {PREFIX + name.upper() for name in Tunables.model_fields}
    for name in sorted(name for name in environ if name.startswith(PREFIX) and name not in known):
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]}?" if close else "unset it"
        problems.append(f"{name} is not a setting: {hint}")


def _check_ladder(tunables: Tunables, problems: list[str]) -> None:
    """A provider call and its one replay end before the lease, the lease before the claim, and so on."""
    ladder = (
        ("twice TOKENFLEET_HTTP_TIMEOUT_SECONDS", 2 * tunables.http_timeout_seconds),
        ("TOKENFLEET_LEASE_SECONDS", tunables.lease_seconds),
        ("TOKENFLEET_CLAIM_SECONDS", tunables.claim_seconds),
        ("TOKENFLEET_VISIBILITY_TIMEOUT_SECONDS", tunables.visibility_timeout_seconds),
    )
    for (lower, low), (upper, high) in itertools.pairwise(ladder):
        if low >= high:
            problems.append(
                f"{lower} ({low:g} s) must be less than {upper} ({high:g} s): lower one or raise the other"
            )
