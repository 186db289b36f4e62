"""The servers of one home directory: those the environment names, else embedded ones.

Promise: the URLs found here are the ones a child process finds in its environment, so nothing downstream
knows or cares whether a server is embedded. One owner per home.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from embedded.exclusive import DirectoryLock, is_owned
from embedded.postgres import EmbeddedPostgres
from embedded.server import EmbeddedServer, write_private
from embedded.valkey import EmbeddedValkey
from tokenfleet.errors import UserError

DATABASE_VARIABLES: Final = ("TOKENFLEET_DATABASE_URL", "DATABASE_URL")
REDIS_VARIABLES: Final = ("TOKENFLEET_REDIS_URL", "REDIS_URL")
HOME_VARIABLE: Final = "TOKENFLEET_HOME"

_FORGETFUL: Final = {
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    # Nothing is recovered from the log, and where such a server lies in memory it is dear.
    "max_wal_size": "128MB",
    "min_wal_size": "32MB",
}
_RUNNING_FILE: Final = "running.env"


class Environment:
    """The servers to use, from ``with`` to its end.

    ``home`` is made if need be; ``environ`` is the environment to look into, usually ``os.environ``. A URL
    that is set there is used as it is, and no embedded server is started in its place. ``durable``
    is False for tests only: their databases need not survive the machine, and are made and dropped much faster.
    """

    def __init__(self, home: Path, environ: Mapping[str, str], *, durable: bool = True) -> None:
        self._home = home.absolute()
        self._environ = dict(environ)
        self._servers: dict[str, EmbeddedServer] = {}
        self._ends = ExitStack()
        logs = self.log_dir
        if _first_set(environ, DATABASE_VARIABLES) is None:
            self._servers[DATABASE_VARIABLES[0]] = EmbeddedPostgres(
                self._home / "postgres",
                log_file=logs / "postgres.log",
                extra_settings={} if durable else _FORGETFUL,
            )
        if _first_set(environ, REDIS_VARIABLES) is None:
            self._servers[REDIS_VARIABLES[0]] = EmbeddedValkey(
                self._home / "valkey", log_file=logs / "valkey.log"
            )

    @property
    def log_dir(self) -> Path:
        """Where servers and children write."""
        return self._home / "logs"

    @property
    def database_url(self) -> str:
        """Where Postgres is. It may hold a password: hand it on, do not print it."""
        return self._url(DATABASE_VARIABLES)

    @property
    def redis_url(self) -> str:
        """Where Redis is. It may hold a password."""
        return self._url(REDIS_VARIABLES)

    @property
    def embedded(self) -> tuple[EmbeddedServer, ...]:
        """The servers this environment owns."""
        return tuple(self._servers.values())

    def environ(self) -> dict[str, str]:
        """Return the environment for child processes: the given one, with both URLs and the home in it."""
        return {
            **self._environ,
            HOME_VARIABLE: str(self._home),
            DATABASE_VARIABLES[0]: self.database_url,
            REDIS_VARIABLES[0]: self.redis_url,
        }

    def revive(self) -> tuple[str, ...]:
        """Start embedded servers that died again, on their ports, and return their names.

        Raises :class:`UserError` when one cannot be started.
        """
        dead = [server for server in self.embedded if not server.is_running]
        for server in dead:
            server.start()
        return tuple(server.server for server in dead)

    def __enter__(self) -> Self:
        with ExitStack() as ends:
            try:
                self._home.mkdir(mode=0o700, parents=True, exist_ok=True)
                lock = DirectoryLock(
                    self._home,
                    advice="stop that `tokenfleet`, or set TOKENFLEET_HOME to another directory.",
                )
                lock.acquire()
            except OSError as error:
                raise UserError(
                    f"The home directory {self._home} cannot be used ({error.strerror}): mend that, or set "
                    f"{HOME_VARIABLE} to another directory."
                ) from error
            ends.callback(lock.release)
            for server in self.embedded:
                ends.enter_context(server)
            self._announce(ends)
            self._ends = ends.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ends.close()

    def _url(self, variables: tuple[str, ...]) -> str:
        server = self._servers.get(variables[0])
        return server.url if server is not None else _first_set(self._environ, variables) or ""

    def _announce(self, ends: ExitStack) -> None:
        # For commands in another terminal. Only what is ours: a URL from the environment, and the password in
        # it, is not for us to write down. In the spelling that psql and libpq read, and every command of ours.
        file = self._home / _RUNNING_FILE
        lines = (
            f"{name}={server.url.replace('postgresql+psycopg:', 'postgresql:', 1)}\n"
            for name, server in self._servers.items()
        )
        write_private(file, "".join(lines))
        ends.callback(file.unlink, missing_ok=True)


def running_servers(home: Path) -> dict[str, str]:
    """Return variables and URLs of the embedded servers that somebody runs in ``home`` now, none if nobody.

    With it, ``tokenfleet status`` in one terminal finds the servers of ``tokenfleet up`` in another.
    """
    if not is_owned(home):
        return {}
    with suppress(FileNotFoundError, PermissionError):
        lines = (home / _RUNNING_FILE).read_text(encoding="utf-8").splitlines()
        return dict(line.split("=", 1) for line in lines)
    return {}


def _first_set(environ: Mapping[str, str], variables: tuple[str, ...]) -> str | None:
    return next((environ[name] for name in variables if environ.get(name)), None)
