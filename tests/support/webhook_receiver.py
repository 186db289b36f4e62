"""A receiver of webhooks that keeps a ledger, answers as it is told, and can hold an answer until it is let go.

It verifies every message with the library of the Standard Webhooks project, not with ours.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Final, Self

from standardwebhooks.webhooks import Webhook

LOOPBACK: Final = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Received:
    """One request as it came in, its headers in lower case."""

    headers: dict[str, str]
    body: bytes

    @property
    def webhook_id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def document(self) -> Any:
        return json.loads(self.body)

    @property
    def account(self) -> Any:
        """Whom it is about."""
        return self.document["payload"].get("id")

    def is_signed_with(self, secret: str) -> bool:
        """Answer what the project's own library says."""
        try:
            Webhook(secret).verify(self.body, self.headers)
        except Exception:  # noqa: BLE001
            return False
        return True


@dataclass(frozen=True, slots=True)
class Answer:
    """What the receiver says to one request."""

    status: int = 204
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    hang_up: bool = False


class Receiver:
    """A listening receiver, from ``with`` to its end."""

    def __init__(self) -> None:
        self.received: list[Received] = []
        self.answer: Callable[[Received], Answer] = lambda _: Answer()
        self.gate = threading.Event()
        """Nothing is answered while it is not set."""
        self.gate.set()
        self.most_at_once = 0
        self._now = 0
        self._lock = threading.Lock()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                receiver._handle(self)

            def do_GET(self) -> None:
                receiver._handle(self)

            def log_message(self, format: str, *args: object) -> None:
                """Keep quiet."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 256

        self._server = Server((LOOPBACK, 0), Handler)
        self.port = self._server.server_port
        self.url = f"http://{LOOPBACK}:{self.port}/hook"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.gate.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def ids(self) -> list[str]:
        """Return the webhook ids as they came, copies included."""
        return [each.webhook_id for each in self.received]

    def of(self, account: int) -> list[str]:
        """Return the event types that came about one account, in order."""
        return [each.document["event_type"] for each in self.received if each.account == account]

    def copies(self) -> dict[str, int]:
        """Return the ids that came more than once."""
        return {each: count for each, count in Counter(self.ids()).items() if count > 1}

    def _handle(self, handler: BaseHTTPRequestHandler) -> None:
        length = int(handler.headers.get("content-length", 0))
        request = Received(
            {name.lower(): value for name, value in handler.headers.items()}, handler.rfile.read(length)
        )
        with self._lock:
            self.received.append(request)
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        try:
            self.gate.wait(30)
            answer = self.answer(request)
        finally:
            with self._lock:
                self._now -= 1
        if answer.hang_up:
            handler.close_connection = True
            return
        handler.send_response(answer.status)
        for name, value in answer.headers:
            handler.send_header(name, value)
        if answer.status != 204:
            handler.send_header("content-length", str(len(answer.body)))
        handler.end_headers()
        if answer.body:
            handler.wfile.write(answer.body)
