"""A pooler between clients and Postgres that gives every transaction whatever connection is free, as PgBouncer does in
its mode ``transaction``.

What clients find out by it is the same: what they set, listen to or prepare in one transaction is not there in the
next, a notification reaches nobody, and the process id that they are greeted with is made up.
"""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import struct
import threading
from types import TracebackType
from typing import Self

import psycopg
from sqlalchemy.engine import make_url

FAKE_PID = 999_999_999
_PARAMETERS = (
    b"server_version\x0017.0\x00",
    b"client_encoding\x00UTF8\x00",
    b"standard_conforming_strings\x00on\x00",
    b"TimeZone\x00UTC\x00",
)
_GREETED = b"".join(b"S" + struct.pack("!I", 4 + len(each)) + each for each in _PARAMETERS)


class Pooler:
    """Lends two connections of its own to any number of clients, a transaction at a time."""

    def __init__(self, conninfo: str, connections: int = 2) -> None:
        self._servers: queue.Queue[socket.socket] = queue.Queue()
        self._owned = [psycopg.connect(conninfo, autocommit=True) for _ in range(connections)]
        for each in self._owned:
            server = socket.socket(fileno=os.dup(each.fileno()))
            server.setblocking(True)
            self._servers.put(server)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        self.unsupported: list[str] = []
        """Startup parameters that a pooler refuses."""

    def url(self, url: str) -> str:
        """Return ``url`` through here."""
        there = make_url(url).set(drivername="postgresql", host="127.0.0.1", port=self.port, query={})
        return there.render_as_string(hide_password=False)

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # Closing alone would leave the thread that accepts waiting.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        while not self._servers.empty():
            self._servers.get().close()
        for each in self._owned:
            each.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError, struct.error):
            self._greet(client)
            while request := self._request(client):
                server = self._servers.get()
                try:
                    server.sendall(request)
                    # Until the server is ready for another transaction. In the middle of one it stays with its client.
                    while self._answer(server, client) != b"I":
                        server.sendall(self._request(client))
                finally:
                    self._servers.put(server)

    def _greet(self, client: socket.socket) -> None:
        while True:
            (length,) = struct.unpack("!I", _exactly(client, 4))
            body = _exactly(client, length - 4)
            if struct.unpack("!I", body[:4]) == (196608,):
                break
            client.sendall(b"N")  # Neither TLS nor GSS here.
        words = body[4:].split(b"\0")
        self.unsupported += [each.decode() for each in words[:-2:2] if each == b"options"]
        key = b"K" + struct.pack("!III", 12, FAKE_PID, 1)
        client.sendall(b"R" + struct.pack("!II", 8, 0) + _GREETED + key + b"Z" + struct.pack("!Ic", 5, b"I"))

    def _request(self, client: socket.socket) -> bytes:
        """Return the messages up to one that the server answers with being ready; nothing when the client has gone."""
        messages = b""
        while True:
            kind = client.recv(1)
            if kind in {b"", b"X"}:
                return b""
            head = _exactly(client, 4)
            messages += kind + head + _exactly(client, struct.unpack("!I", head)[0] - 4)
            if kind in {b"Q", b"S"}:
                return messages

    def _answer(self, server: socket.socket, client: socket.socket) -> bytes:
        """Pass messages on until the server is ready; returns its state. What it says unasked is for nobody."""
        while True:
            kind = _exactly(server, 1)
            head = _exactly(server, 4)
            body = _exactly(server, struct.unpack("!I", head)[0] - 4)
            if kind != b"A":
                client.sendall(kind + head + body)
            if kind == b"Z":
                return body


def _exactly(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = connection.recv(count - len(data))
        if not piece:
            raise ConnectionResetError
        data += piece
    return data
