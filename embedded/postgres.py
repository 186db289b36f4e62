"""Postgres 18 from a wheel, owned by this process.

Invariants: every commit is durable (fsync stays on unless the caller turns it off); nobody gets in without
the password, neither by TCP nor by socket (SCRAM, RFC 7677); a cluster is made whole or not at all.
"""

from __future__ import annotations

import shutil
import signal
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar, Final
from urllib.parse import quote

import psycopg
from psycopg import sql

from embedded.binaries import PostgresBinaries, find_postgres
from embedded.leftovers import is_working_in
from embedded.ports import LOOPBACK
from embedded.process import Launch, OwnedProcess, StopStep
from embedded.server import EmbeddedServer, write_private
from tokenfleet.errors import UserError

DATABASE: Final = "tokenfleet"
ROLE: Final = "tokenfleet"

INITDB_SECONDS: Final = 180.0
_SOCKET_DIR_PREFIX: Final = "tokenfleet-"
_LONGEST_SOCKET_PARENT: Final = 60
"""sun_path holds 104 bytes on some systems; ``/tokenfleet-xxxxxxxx/.s.PGSQL.nnnnn.lock`` takes 40 of them."""

SETTINGS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "max_connections": "200",
        "shared_buffers": "256MB",
        "effective_cache_size": "1GB",
        # Refreshing is all writes: fewer checkpoints mean fewer full-page images, and kept segments are
        # recycled instead of made anew.
        "max_wal_size": "2GB",
        "min_wal_size": "512MB",
        "wal_buffers": "16MB",
        "checkpoint_timeout": "15min",
        # Claim and token rows are rewritten all the time; a minute between looks is too long for them.
        "autovacuum_naptime": "10s",
        "random_page_cost": "1.1",
        # Statements here are short, and the second core belongs to the workers.
        "jit": "off",
        "max_parallel_workers_per_gather": "0",
        "timezone": "UTC",
        "log_timezone": "UTC",
        "log_line_prefix": "%m [%p] ",
    }
)


class EmbeddedPostgres(EmbeddedServer):
    """A Postgres cluster below ``data_dir`` with the database ``tokenfleet``.

    ``extra_settings`` are server settings that win over :data:`SETTINGS`, for instance ``{"fsync": "off"}``
    where losing everything is fine.
    """

    server = "Postgres"
    program = "postgres"
    url_variable = "TOKENFLEET_DATABASE_URL"
    # SIGINT is the fast shutdown, with a checkpoint; SIGQUIT leaves recovery to the next start.
    stop_steps: ClassVar[Sequence[StopStep]] = (StopStep(signal.SIGINT, 60.0), StopStep(signal.SIGQUIT, 10.0))
    # Recovery after a crash comes before the first connection: up to max_wal_size to read.
    ready_seconds = 180.0

    def __init__(
        self,
        data_dir: Path,
        *,
        port: int | None = None,
        log_file: Path | None = None,
        extra_settings: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        super().__init__(data_dir, port=port, log_file=log_file)
        self._extra_settings = dict(extra_settings)
        self._socket_link = self.data_dir / "socket"
        self._socket_dir: Path | None = None
        self._binaries: PostgresBinaries | None = None

    @property
    def socket_url(self) -> str:
        """The URL by Unix socket, for clients on this machine: 15 % less CPU per round trip, on both ends."""
        self._started()
        host = quote(str(self._socket_dir), safe="")
        return f"postgresql+psycopg://{ROLE}:{self._revealed_password()}@/{DATABASE}?host={host}&port={self.port}"

    def _url(self) -> str:
        return f"postgresql+psycopg://{ROLE}:{self._revealed_password()}@{LOOPBACK}:{self.port}/{DATABASE}"

    def _probe(self) -> Sequence[str]:
        self._binaries = find_postgres()
        # Fails, as the server would, when it may not look at its own file.
        return (str(self._binaries.pg_config), "--bindir")

    def _installed(self) -> PostgresBinaries:
        if self._binaries is None:
            self._binaries = find_postgres()
        return self._binaries

    def _prepare(self) -> None:
        version_file = self.work_dir / "PG_VERSION"
        if version_file.exists():
            self._check_version(version_file.read_text(encoding="ascii").strip())
        else:
            self._make_cluster()
        self._drop_misleading_pid_file()
        self._make_socket_dir()

    def _launch(self) -> Launch:
        settings = {**SETTINGS}
        if self._installed().has_library("pg_stat_statements"):
            settings["shared_preload_libraries"] = "pg_stat_statements"
        settings |= self._extra_settings
        settings |= {
            "listen_addresses": LOOPBACK,
            "port": str(self.port),
            "unix_socket_directories": str(self._socket_dir),
            "unix_socket_permissions": "0700",
        }
        argv = [str(self._installed().postgres), "-D", str(self.work_dir)]
        for name, value in settings.items():
            argv += ["-c", f"{name}={value}"]
        # Owner killed: the immediate shutdown ends all processes within moments.
        return self._launch_of(argv, cwd=self.work_dir, death_signal=signal.SIGQUIT)

    def _is_ready(self, pid: int) -> bool:
        # The eighth line is the server's word on itself; connecting to ask would fill the log with refusals.
        try:
            lines = (self.work_dir / "postmaster.pid").read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[0] == str(pid) and lines[7].strip() == "ready"

    def _furnish(self) -> None:
        try:
            with psycopg.connect(
                host=LOOPBACK,
                port=self.port,
                user=ROLE,
                password=self._revealed_password(),
                dbname="postgres",
                connect_timeout=10,
                autocommit=True,
            ) as connection:
                known = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE])
                if known.fetchone() is None:
                    connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DATABASE)))
        except psycopg.OperationalError as error:
            raise UserError(
                f"The embedded Postgres does not let us in: if {self.data_dir / 'password'} was changed, "
                f"restore it, or delete {self.data_dir} to begin empty ({_last_line(error)})"
            ) from error

    def _release(self) -> None:
        if self._socket_dir is not None:
            _remove_socket_dir(self._socket_link)
            self._socket_dir = None

    def _check_version(self, cluster: str) -> None:
        asked = self._demotion.run([str(self._installed().pg_config), "--version"], timeout_seconds=20)
        # "PostgreSQL 18.6"
        installed = asked.stdout.split()[-1].split(".")[0]
        if cluster != installed:
            raise UserError(
                f"{self.work_dir} was written by Postgres {cluster}, and the embedded one is {installed}: "
                "install the release of the `embedded` extra that wrote it and pg_dump, or delete "
                f"{self.data_dir} to begin empty."
            )

    def _make_cluster(self) -> None:
        draft = self.data_dir / "data.new"
        password_file = self.data_dir / "initdb.password"
        if draft.exists():
            shutil.rmtree(draft)
        draft.mkdir(mode=0o700)
        self._demotion.give(draft)
        write_private(password_file, self._revealed_password() + "\n")
        try:
            self._demotion.give(password_file)
            self._run_initdb(draft, password_file)
        finally:
            password_file.unlink(missing_ok=True)
        draft.replace(self.work_dir)

    def _run_initdb(self, directory: Path, password_file: Path) -> None:
        argv = [
            str(self._installed().initdb),
            f"--pgdata={directory}",
            f"--username={ROLE}",
            f"--pwfile={password_file}",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            # The same order and case rules on every machine, whatever locales it has.
            "--locale=C",
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
        ]
        if self._extra_settings.get("fsync") == "off":
            # Whoever may lose the data may lose the empty cluster: 0.2 s less, seconds on a busy disk.
            argv.append("--no-sync")
        process = OwnedProcess(self._launch_of(argv, cwd=self.data_dir))
        try:
            process.wait(INITDB_SECONDS)
            exit_code = process.exit_code
        finally:
            process.stop(())
        if exit_code != 0:
            raise UserError(
                f"The embedded Postgres could not make its cluster; initdb's last words ({self._log_file}):\n"
                f"{process.log_tail()}"
            )

    def _drop_misleading_pid_file(self) -> None:
        # After a crash and a reboot the pid in the file may be another process' by now, often so in a
        # container, and Postgres would refuse to start. No server works here: the lock is ours and leftovers
        # are gone.
        pid_file = self.work_dir / "postmaster.pid"
        with suppress(FileNotFoundError, ValueError, IndexError):
            pid = int(pid_file.read_text(encoding="utf-8").splitlines()[0])
            if not is_working_in(pid, self.work_dir, self.program):
                pid_file.unlink()

    def _make_socket_dir(self) -> None:
        if self._socket_dir is not None:
            # Revived after a crash: clients know this place already.
            _remove_sockets(self._socket_dir)
            return
        _remove_socket_dir(self._socket_link)
        parent = tempfile.gettempdir()
        if len(parent) > _LONGEST_SOCKET_PARENT:
            # mkdtemp makes a directory in it that is nobody else's.
            parent = "/tmp"  # noqa: S108
        self._socket_dir = Path(tempfile.mkdtemp(prefix=_SOCKET_DIR_PREFIX, dir=parent))
        self._demotion.give(self._socket_dir)
        # The link finds the directory again after its owner was killed.
        self._socket_link.symlink_to(self._socket_dir)


def _last_line(error: Exception) -> str:
    return str(error).strip().rpartition("\n")[2]


def _remove_sockets(socket_dir: Path) -> None:
    for file in socket_dir.glob(".s.PGSQL.*"):
        file.unlink(missing_ok=True)


def _remove_socket_dir(link: Path) -> None:
    if not link.is_symlink():
        return
    socket_dir = link.readlink()
    link.unlink()
    # Gone already after a reboot, or no longer ours.
    with suppress(OSError):
        _remove_sockets(socket_dir)
        socket_dir.rmdir()
