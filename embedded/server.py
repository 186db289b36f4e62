"""The life of an embedded server: one directory, one owner, one port, a password, start and stop.

Invariants: it listens on 127.0.0.1 only and demands a password; the password is in a file only its owner may
read, never in a process argument (G6); a directory has one owner at a time; a server that was killed starts
again on the same directory and, from the same object, on the same port.
"""

from __future__ import annotations

import os
import secrets
import signal
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Final, Self

from embedded.exclusive import DirectoryLock
from embedded.leftovers import end_leftovers
from embedded.ports import free_port, is_free
from embedded.privileges import Demotion, demotion_for, server_environ
from embedded.process import Launch, OwnedProcess, StopStep, fresh_log, wait_until
from tokenfleet.errors import UserError
from tokenfleet_client.secret import Secret

_PASSWORD_BYTES: Final = 24
_PORT_ATTEMPTS: Final = 5


class EmbeddedServer(ABC):
    """A server in ``data_dir``, which may hold one of an earlier start. Also a context manager.

    Without ``port`` a free one is chosen at the first start. ``log_file`` defaults to one in ``data_dir``.
    """

    server: ClassVar[str]
    """Its name in messages."""
    program: ClassVar[str]
    """Its process name."""
    url_variable: ClassVar[str]
    """The setting that makes an embedded one unnecessary."""
    stop_steps: ClassVar[Sequence[StopStep]]
    ready_seconds: ClassVar[float]

    def __init__(self, data_dir: Path, *, port: int | None = None, log_file: Path | None = None) -> None:
        self.data_dir: Final = data_dir.resolve()
        self.work_dir: Final = self.data_dir / "data"
        """The server's own part of ``data_dir``, and its working directory."""
        self._log_file = log_file or self.data_dir / "server.log"
        self._port = port
        self._keeps_port = port is not None
        self._process: OwnedProcess | None = None
        self._password: Secret | None = None
        self._demotion = Demotion()
        self._lock = DirectoryLock(
            self.data_dir, advice="stop that process, or choose another directory (TOKENFLEET_HOME)."
        )

    @abstractmethod
    def _probe(self) -> Sequence[str]:
        """Return a harmless command of the installation; raise :class:`UserError` if there is none."""

    @abstractmethod
    def _prepare(self) -> None:
        """Make the working directory fit for a start. The lock is held, and no old process is left."""

    @abstractmethod
    def _launch(self) -> Launch:
        """Return the command for the current port."""

    @abstractmethod
    def _is_ready(self, pid: int) -> bool:
        """Tell whether the server with this process id takes connections."""

    @abstractmethod
    def _url(self) -> str:
        """Return where it is reached, password included."""

    def start(self) -> Self:
        """Start, and return when connections are taken. Starting a running server changes nothing.

        Raises :class:`UserError` when it cannot be started; then nothing is left running.
        """
        if self.is_running:
            return self
        try:
            self._start()
        except OSError as error:
            self.stop()
            where = f" {error.filename}" if error.filename else ""
            raise UserError(
                f"The embedded {self.server} could not be started:{where} {error.strerror or error}. Make "
                f"{self.data_dir} usable for this account, or set {self.url_variable}."
            ) from error
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End the server and give its directory back. Stopping a stopped server changes nothing."""
        if self._process is not None:
            self._process.stop(self.stop_steps)
            self._process = None
        self._release()
        self._lock.release()

    @property
    def is_running(self) -> bool:
        """Whether the process started last is alive."""
        return self._process is not None and self._process.exit_code is None

    @property
    def pid(self) -> int:
        """The server's process id."""
        return self._started().pid

    @property
    def port(self) -> int:
        """The port on 127.0.0.1."""
        if self._port is None:
            raise RuntimeError(f"{self.server} has no port before its first start")
        return self._port

    @property
    def url(self) -> str:
        """The URL to connect to. It holds the password: hand it on, do not print it."""
        self._started()
        return self._url()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.data_dir)!r}, port={self._port})"

    def _furnish(self) -> None:
        """Make what clients expect to find. The server takes connections."""

    def _release(self) -> None:
        """Remove what only a running server needs."""

    def _started(self) -> OwnedProcess:
        if self._process is None:
            raise RuntimeError(f"{self.server} is not started")
        return self._process

    def _revealed_password(self) -> str:
        if self._password is None:
            raise RuntimeError(f"{self.server} has no password before its first start")
        return self._password.reveal()

    def _start(self) -> None:
        probe = self._probe()
        self.data_dir.mkdir(parents=True, exist_ok=True)
        # Root's is open for passing through, not for listing: an account without setpriv's help has to get to
        # `data`, which is its own.
        self.data_dir.chmod(0o711 if os.geteuid() == 0 else 0o700)
        self._lock.acquire()
        end_leftovers(self.work_dir, self.program)
        self._password = read_or_make_password(self.data_dir / "password")
        self.work_dir.mkdir(mode=0o700, exist_ok=True)
        self._demotion = demotion_for(self.work_dir, probe=probe)
        fresh_log(self._log_file)
        self._prepare()
        self._start_on_a_port()
        self._furnish()

    def _start_on_a_port(self) -> None:
        for _ in range(_PORT_ATTEMPTS):
            if self._port is None:
                self._port = free_port()
            elif not is_free(self._port):
                raise UserError(
                    f"Port {self._port} on 127.0.0.1 is taken: choose another one for the embedded "
                    f"{self.server}, or set {self.url_variable}."
                )
            process = self._process = OwnedProcess(self._launch())
            if self._comes_up(process):
                self._keeps_port = True
                return
            died, last_words = process.exit_code is not None, process.log_tail()
            process.stop(self.stop_steps)
            if died and not self._keeps_port and not is_free(self._port):
                # Somebody took the port between our look at it and the server's bind.
                self._port = None
                continue
            raise UserError(
                f"The embedded {self.server} "
                + ("ended at once" if died else f"did not answer within {self.ready_seconds:.0f} s")
                + f"; its last words ({self._log_file}):\n{last_words}"
            )
        raise UserError(f"Every port tried for the embedded {self.server} was taken: start again.")

    def _comes_up(self, process: OwnedProcess) -> bool:
        ready = False

        def ready_or_dead() -> bool:
            nonlocal ready
            ready = process.exit_code is None and self._is_ready(process.pid)
            return ready or process.exit_code is not None

        wait_until(ready_or_dead, deadline_seconds=self.ready_seconds)
        return ready

    def _launch_of(
        self, program: Sequence[str], *, cwd: Path, death_signal: signal.Signals = signal.SIGKILL
    ) -> Launch:
        """Return how to run ``program`` as the server's account, its output in the server's log."""
        return Launch(
            argv=self._demotion.argv(program, death_signal=death_signal),
            environ=server_environ(),
            log_file=self._log_file,
            cwd=cwd,
            death_signal=death_signal,
            uid=self._demotion.uid,
            gid=self._demotion.gid,
        )


def read_or_make_password(path: Path) -> Secret:
    """Return the password in ``path``; the first time, make one and write it for the owner's eyes only."""
    try:
        return Secret(path.read_text(encoding="ascii").strip())
    except FileNotFoundError:
        password = secrets.token_urlsafe(_PASSWORD_BYTES)
    write_private(path, password + "\n")
    return Secret(password)


def write_private(path: Path, text: str) -> None:
    """Write ``text`` to ``path``, readable by its owner only, whole or not at all."""
    draft = path.with_name(path.name + ".new")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
