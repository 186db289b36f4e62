"""A Redis-compatible server from a wheel, owned by this process.

Invariants: nothing is kept on disk (G7: Redis is disposable, and a test of that should be honest); nothing is
evicted, since a lease that vanishes early lets two workers ask for one account.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Final

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from embedded.binaries import find_valkey
from embedded.ports import LOOPBACK
from embedded.process import Launch, StopStep
from embedded.server import EmbeddedServer, write_private

_PING_SECONDS: Final = 2.0


class EmbeddedValkey(EmbeddedServer):
    """A Valkey server with an empty keyspace; ``data_dir`` holds its password and configuration."""

    server = "Valkey"
    program = "valkey-server"
    url_variable = "TOKENFLEET_REDIS_URL"
    stop_steps: ClassVar[Sequence[StopStep]] = (StopStep(signal.SIGTERM, 10.0),)
    ready_seconds = 30.0

    def _url(self) -> str:
        return f"redis://:{self._revealed_password()}@{LOOPBACK}:{self.port}/0"

    def _probe(self) -> Sequence[str]:
        return (str(find_valkey()), "--version")

    def _prepare(self) -> None:
        self.work_dir.chmod(0o700)

    def _launch(self) -> Launch:
        # A file, because arguments can be read by everybody on the machine.
        configuration = self.data_dir / "valkey.conf"
        write_private(configuration, self._configuration())
        self._demotion.give(configuration)
        return self._launch_of((str(find_valkey()), str(configuration)), cwd=self.work_dir)

    def _is_ready(self, pid: int) -> bool:
        client = redis.Redis.from_url(
            self._url(),
            socket_connect_timeout=_PING_SECONDS,
            socket_timeout=_PING_SECONDS,
            # Its default waits seconds between tries; the caller asks again in a moment.
            retry=Retry(NoBackoff(), 0),
        )
        try:
            return bool(client.info("server")["process_id"] == pid)
        except (redis.ConnectionError, redis.TimeoutError):
            return False
        finally:
            client.close()

    def _configuration(self) -> str:
        lines = (
            f"bind {LOOPBACK}",
            f"port {self.port}",
            "protected-mode yes",
            f"requirepass {self._revealed_password()}",
            f"dir {_quoted(self.work_dir)}",
            'save ""',
            "appendonly no",
            "maxmemory-policy noeviction",
            "daemonize no",
            # The default asks for more than many systems allow and then complains.
            "tcp-backlog 128",
        )
        return "\n".join(lines) + "\n"


def _quoted(path: Path) -> str:
    return '"' + str(path).replace("\\", "\\\\").replace('"', '\\"') + '"'
