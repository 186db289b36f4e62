"""A provider on loopback of which a test writes every answer, and a ledger of what it was asked."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit


@dataclass(frozen=True, slots=True)
class Asked:
    """One request as it came in: its headers by lower-case names, its query or form read."""

    method: str
    path: str
    headers: Mapping[str, str]
    parameters: Mapping[str, str]


Answer = Callable[[Asked], tuple[int, dict[str, Any]]]


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Who went away in between was meant to."""


class ScriptedServer:
    """``answers`` holds what each path answers and may be changed at any moment; ``asked`` is the ledger."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.asked: list[Asked] = []
        script = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                self.reply(self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode())

            def do_GET(self) -> None:
                self.reply("")

            def reply(self, body: str) -> None:
                url = urlsplit(self.path)
                read = {name: values[0] for name, values in parse_qs(body or url.query).items()}
                headers = {name.lower(): value for name, value in self.headers.items()}
                asked = Asked(self.command, url.path, headers, read)
                script.asked.append(asked)
                status, document = script.answers[url.path](asked)
                content = json.dumps(document).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: object) -> None:
                """Tests look at the ledger."""

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def always(self, path: str, status: int, **document: Any) -> None:
        """Let ``path`` answer the same from now on."""
        self.answers[path] = lambda _: (status, document)

    def asked_at(self, path: str) -> list[Asked]:
        """Return what was asked at ``path``, in order."""
        return [each for each in self.asked if each.path == path]

    def __enter__(self) -> Self:
        self._thread = Thread(target=self._server.serve_forever, args=(0.05,), name="scripted server")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
