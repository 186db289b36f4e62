"""``/metrics`` and ``/healthz`` of one process.

``/healthz`` answers 200 when all is well, 207 when the process works but something hampers it, 503 when it
cannot do its job; the body names each problem in a sentence.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from socketserver import ThreadingMixIn
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import make_wsgi_app

from tokenfleet.errors import UserError

REQUEST_SECONDS: Final = 5
"""How long a client may take to send its request."""
STOP_SECONDS: Final = 0.1
"""How long :meth:`HealthServer.stop` may take to be noticed."""

_STATUS_LINES: Final = {
    "healthy": "200 OK",
    "degraded": "207 Multi-Status",
    "unhealthy": "503 Service Unavailable",
}


@dataclass(frozen=True, slots=True)
class Health:
    """What is wrong now: ``fatal`` stops the work, ``hampering`` slows it."""

    fatal: tuple[str, ...] = ()
    hampering: tuple[str, ...] = ()

    @property
    def status(self) -> str:
        """``healthy``, ``degraded`` or ``unhealthy``."""
        if self.fatal:
            return "unhealthy"
        return "degraded" if self.hampering else "healthy"


class _Handler(WSGIRequestHandler):
    timeout = REQUEST_SECONDS

    def log_message(self, format: str, *args: Any) -> None:
        """Keep probes out of the log."""


class _Server(ThreadingMixIn, WSGIServer):
    """A client that connects and says nothing keeps neither the next probe nor our own end waiting."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is nobody's problem; faults of ours are answered with a 500 before this."""


class HealthServer:
    """Serves both paths on a background thread until :meth:`stop`."""

    def __init__(self, host: str, port: int, check: Callable[[], Health]) -> None:
        """Bind ``host:port`` (0 chooses a free one). Raises :class:`UserError` when it is taken."""
        metrics = make_wsgi_app()

        def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            path = environ.get("PATH_INFO", "/")
            if path == "/metrics":
                body: Iterable[bytes] = metrics(environ, start_response)
                return body
            if path != "/healthz":
                start_response("404 Not Found", [("Content-Type", "text/plain")])
                return [b"/metrics or /healthz\n"]
            health = check()
            content = {"status": health.status, "problems": [*health.fatal, *health.hampering]}
            start_response(_STATUS_LINES[health.status], [("Content-Type", "application/json")])
            return [json.dumps(content).encode() + b"\n"]

        try:
            self._server = make_server(host, port, application, server_class=_Server, handler_class=_Handler)
        except OSError as error:
            raise UserError(
                f"cannot listen on {host}:{port} for /metrics and /healthz ({error.strerror}): set another "
                "TOKENFLEET_METRICS_PORT, or 0 to do without"
            ) from error
        self.port: int = self._server.server_port
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(STOP_SECONDS,), name="health", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
