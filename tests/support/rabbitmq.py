"""A RabbitMQ of the test's own, from the system's package: its own node, files, ports on loopback, and epmd.

Invariants: nothing of a broker that the machine runs anyway is touched; both processes end with the test, and with
the test run when that is killed (``embedded.process``).
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from kombu.connection import Connection

from embedded.ports import LOOPBACK, free_port
from embedded.process import Launch, OwnedProcess, StopStep
from tests.support.fleet import eventually

START_SECONDS: Final = 120.0
_PACKAGED: Final = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
"""What Debian's ``rabbitmq-server`` runs as another account, with files in places of its own."""


def missing() -> str | None:
    """Return why there can be no RabbitMQ here, or None when there can."""
    for program in ("rabbitmq-server", "epmd"):
        if shutil.which(program) is None:
            return f"{program} is not on PATH: apt-get install rabbitmq-server"
    return None


class RabbitMQ:
    """One node: ``with RabbitMQ(directory) as broker: broker.url``."""

    def __init__(self, directory: Path) -> None:
        """Prepare a node that keeps its files below ``directory``."""
        self._directory = directory
        self._port = free_port()
        self._password = secrets.token_urlsafe(12)
        self.url = f"amqp://tokenfleet:{self._password}@{LOOPBACK}:{self._port}//"
        self._epmd_port = free_port()
        self._distribution_port = free_port()
        self._running: list[OwnedProcess] = []

    def __enter__(self) -> Self:
        self._directory.mkdir(mode=0o700)
        (self._directory / "enabled_plugins").write_text("[].\n")
        configuration = self._directory / "rabbitmq.conf"
        configuration.touch(mode=0o600)
        configuration.write_text(f"default_user = tokenfleet\ndefault_pass = {self._password}\n")
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def start(self) -> None:
        """Start, with the queues and messages of the last time, and return when it takes connections."""
        epmd = ["epmd", "-port", str(self._epmd_port), "-address", LOOPBACK]
        server = str(_PACKAGED if _PACKAGED.exists() else shutil.which("rabbitmq-server"))
        for argv in (epmd, [server]):
            self._running.append(
                OwnedProcess(
                    Launch(
                        argv=tuple(argv),
                        environ=self._environ(),
                        log_file=self._directory / "log",
                        cwd=self._directory,
                    )
                )
            )
        eventually(self._answers, within=START_SECONDS, what="RabbitMQ takes connections")

    def kill(self) -> None:
        """End it as a power cut would."""
        while self._running:
            self._running.pop().stop((StopStep(signal.SIGKILL, 10.0),))

    def wipe(self) -> None:
        """Forget every queue and message. It does not run."""
        shutil.rmtree(self._directory / "mnesia")

    def connect(self) -> Connection:
        """Return a new connection, to look into it."""
        return Connection(self.url, connect_timeout=5)  # type: ignore[no-untyped-call]

    def _answers(self) -> bool:
        server = self._running[-1]
        assert server.exit_code is None, f"RabbitMQ ended at once:\n{server.log_tail()}"
        with contextlib.suppress(OSError), self.connect() as connection:
            connection.connect()
            return True
        return False

    def _environ(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            # Where Erlang keeps the cookie of its nodes.
            "HOME": str(self._directory),
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": LOOPBACK,
            "RABBITMQ_NODENAME": f"tokenfleet-{self._port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": LOOPBACK,
            "RABBITMQ_NODE_PORT": str(self._port),
            "RABBITMQ_DIST_PORT": str(self._distribution_port),
            "RABBITMQ_MNESIA_BASE": str(self._directory / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self._directory / "logs"),
            "RABBITMQ_CONFIG_FILE": str(self._directory / "rabbitmq.conf"),
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self._directory / "enabled_plugins"),
            # One scheduler thread that does not spin: there is other work on this machine.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 +sbwt none -kernel inet_dist_use_interface {127,0,0,1}",
            # The script becomes the server, instead of a parent that outlives a kill.
            "RUNNING_UNDER_SYSTEMD": "true",
        }
