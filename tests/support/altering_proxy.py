"""A proxy in front of a sandbox that alters its answers: the server acts as always, what arrives is another matter."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

Alter = Callable[[dict[str, Any]], bytes]
"""From the document of a token response to the body that arrives in its place."""


def unaltered(document: dict[str, Any]) -> bytes:
    return json.dumps(document).encode()


class AlteringProxy:
    """Passes on what is posted to it. ``alter`` may be set anew at any moment."""

    def __init__(self, target: str) -> None:
        self.alter: Alter = unaltered
        proxy, host = self, urlsplit(target).netloc

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                connection = http.client.HTTPConnection(host, timeout=30)
                kept = {
                    name: self.headers[name]
                    for name in ("Content-Type", "Authorization")
                    if name in self.headers
                }
                connection.request("POST", self.path, body, kept)
                response = connection.getresponse()
                content = response.read()
                connection.close()
                if response.status == 200 and self.path == "/token":
                    content = proxy.alter(json.loads(content))
                self.send_response(response.status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: object) -> None:
                """Tests look at the ledger."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
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
