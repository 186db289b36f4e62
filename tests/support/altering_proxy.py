"""A proxy in front of a sandbox that alters its answers: the server acts as always, what arrives is another matter."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

Alter = Callable[[dict[str, Any]], bytes]
"""From the document of a token response to the body that arrives in its place."""


Answer = Callable[[bytes], tuple[int, bytes]]
"""From the body of a request to the status and body of an answer, without asking the sandbox."""


def unaltered(document: dict[str, Any]) -> bytes:
    return json.dumps(document).encode()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A sandbox that breaks off breaks off here, too: the connection is closed, and that is all."""


class AlteringProxy:
    """Passes on what is posted to it. ``alter`` may be set anew at any moment; ``answer`` goes before it.

    ``seen`` holds every body that went through, either way; ``headers`` go with every answer.
    """

    def __init__(self, target: str) -> None:
        self.alter: Alter = unaltered
        self.answer: Answer | None = None
        self.seen: list[bytes] = []
        self.headers: dict[str, str] = {}
        proxy, host = self, urlsplit(target).netloc

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                proxy.seen.append(body)
                status, content = proxy.answer(body) if proxy.answer else self.pass_on(body)
                proxy.seen.append(content)
                self.send_response(status)
                for name, value in proxy.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def pass_on(self, body: bytes) -> tuple[int, bytes]:
                names = [name for name in ("Content-Type", "Authorization") if name in self.headers]
                with closing(http.client.HTTPConnection(host, timeout=30)) as connection:
                    connection.request("POST", self.path, body, {name: self.headers[name] for name in names})
                    with connection.getresponse() as response:
                        content = response.read()
                if response.status == 200 and self.path == "/token" and proxy.alter is not unaltered:
                    content = proxy.alter(json.loads(content))
                return response.status, content

            def log_message(self, format: str, *args: object) -> None:
                """Tests look at the ledger."""

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread = Thread(target=self._server.serve_forever, args=(0.05,), name="altering proxy")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
