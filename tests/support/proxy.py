"""A network between a process and its server that fails on command, in the ways networks and servers do.

    with Proxy(host, port) as proxy:
        url = proxy.url(url)      # the same server, through here

* :meth:`Proxy.refuse`: nobody listens any more, and every connection is reset (the server's process is gone).
* :meth:`Proxy.black_hole`: packets vanish without an answer, not even an acknowledgement (a partition, a machine
  without power). A filter on the sockets drops them in the kernel, so the other end sees what it would see then:
  retransmissions, and ``tcp_user_timeout`` at work.
* :meth:`Proxy.stall`: what is sent is taken and acknowledged, and nothing ever comes back (a server whose disk
  hangs, a pooler that is stuck).
* :meth:`Proxy.slow`: every piece of data is so many seconds late, in both directions.
* :meth:`Proxy.lose_commits`: the next commits are cut off, before the server reads them or after it has performed
  them. Who sent one cannot tell which.

:meth:`Proxy.heal` ends each of these.
"""

from __future__ import annotations

import contextlib
import ctypes
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self

from sqlalchemy.engine import make_url

LOOPBACK: Final = "127.0.0.1"
CHUNK: Final = 65536
COMMIT: Final = b"COMMIT\0"
"""How a commit looks on the wire, in a simple query as in a parsed one."""

_SO_ATTACH_FILTER: Final = 26
_SO_DETACH_FILTER: Final = 27
_DROP_EVERYTHING: Final = struct.pack("HBBI", 0x06, 0, 0, 0)
"""One instruction of a classic BPF program: return 0, so keep 0 bytes of the packet."""


@dataclass(slots=True, eq=False)
class _Link:
    """One connection of a client, and ours to the server for it."""

    client: socket.socket
    server: socket.socket
    loses_answer: bool = False
    """A commit went to the server; its answer ends this link instead of being forwarded."""

    def reset(self) -> None:
        """End both with RST, and wake their threads."""
        for each in (self.client, self.server):
            with contextlib.suppress(OSError):
                each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RD)
            with contextlib.suppress(OSError):
                each.close()


@dataclass(slots=True)
class _CommitLoss:
    """How many commits are still to be lost, and when."""

    count: int
    spare: int
    performed: bool
    lost: int = 0
    changed: threading.Condition = field(default_factory=threading.Condition)


class Proxy:
    """Forwards connections to one server. Every method may be called from any thread."""

    def __init__(self, host: str, port: int) -> None:
        """Prepare a proxy in front of ``host:port``; it listens within ``with``."""
        self._target = (host, port)
        self._links: set[_Link] = set()
        self._guard = threading.Lock()
        self._flowing = threading.Event()
        self._flowing.set()
        self._delay_seconds = 0.0
        self._loss: _CommitLoss | None = None
        self._listener: socket.socket | None = None
        self.port = 0
        self.accepted = 0
        """How many connections were accepted so far."""

    def url(self, url: str) -> str:
        """Return ``url`` with this proxy in place of its server."""
        through = make_url(url).set(host=LOOPBACK, port=self.port)
        return through.render_as_string(hide_password=False)

    @classmethod
    def before(cls, url: str) -> Self:
        """Return a proxy for the server that ``url`` names."""
        target = make_url(url)
        assert target.host is not None
        assert target.port is not None
        return cls(target.host, target.port)

    def __enter__(self) -> Self:
        self._listen()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.refuse()
        self._flowing.set()

    def refuse(self) -> None:
        """Refuse new connections and reset all that are open."""
        if self._listener is not None:
            listener, self._listener = self._listener, None
            # Wakes the thread that accepts; closing alone would leave it, and the port, waiting.
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        self.cut()

    def cut(self) -> None:
        """Reset every connection; new ones are welcome."""
        with self._guard:
            links, self._links = self._links, set()
        for link in links:
            link.reset()

    def black_hole(self) -> None:
        """Let everything that clients send vanish, and everything that is sent to them."""
        self._flowing.clear()
        for each in self._client_side():
            _drop_everything(each)

    def stall(self) -> None:
        """Accept and acknowledge, and forward nothing."""
        self._flowing.clear()

    def slow(self, seconds: float) -> None:
        """Forward every piece of data so much later."""
        self._delay_seconds = seconds

    def lose_commits(self, count: int = 1, *, performed: bool, spare: int = 0) -> None:
        """Reset ``count`` connections that commit: after the server has done so, or before it reads it.

        The next ``spare`` commits go through first.
        """
        self._loss = _CommitLoss(count, spare, performed)

    def wait_for_lost_commits(self, count: int = 1, within: float = 10.0) -> None:
        """Return when so many commits were lost. Raises :class:`TimeoutError`."""
        loss = self._loss
        assert loss is not None
        with loss.changed:
            if not loss.changed.wait_for(lambda: loss.lost >= count, within):
                raise TimeoutError(f"{loss.lost} of {count} commits were lost within {within:g} s")

    def heal(self) -> None:
        """Forward everything at once again, also what waited."""
        self._delay_seconds = 0.0
        for each in self._client_side():
            with contextlib.suppress(OSError):
                each.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)
        self._flowing.set()
        if self._listener is None:
            self._listen()

    def _client_side(self) -> list[socket.socket]:
        with self._guard:
            sockets = [link.client for link in self._links]
        return sockets if self._listener is None else [self._listener, *sockets]

    def _listen(self) -> None:
        listener = socket.create_server((LOOPBACK, self.port), backlog=256)
        self.port = listener.getsockname()[1]
        self._listener = listener
        _in_thread(self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            self.accepted += 1
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                server = socket.create_connection(self._target)
            except OSError:
                client.close()
                continue
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            link = _Link(client, server)
            with self._guard:
                self._links.add(link)
            if self._listener is not listener:
                self._end(link)
                continue
            _in_thread(self._forward_requests, link)
            _in_thread(self._forward_answers, link)

    def _forward_requests(self, link: _Link) -> None:
        with contextlib.suppress(OSError):
            while data := link.client.recv(CHUNK):
                self._pass()
                if COMMIT in data and self._loses(link):
                    break
                link.server.sendall(data)
        if not link.loses_answer:
            self._flowing.wait()
            self._end(link)

    def _forward_answers(self, link: _Link) -> None:
        with contextlib.suppress(OSError):
            while data := link.server.recv(CHUNK):
                self._pass()
                if link.loses_answer:
                    # The server answers a commit when it is done: so it is, and nobody will hear of it.
                    break
                link.client.sendall(data)
        # Nor does an end come through a black hole.
        self._flowing.wait()
        self._end(link)
        if link.loses_answer:
            self._count_lost()

    def _pass(self) -> None:
        """Return when data may go on."""
        self._flowing.wait()
        if self._delay_seconds:
            time.sleep(self._delay_seconds)

    def _loses(self, link: _Link) -> bool:
        """Take part in losing commits. True when this one must not reach the server."""
        loss = self._loss
        if loss is None:
            return False
        with loss.changed:
            if loss.spare:
                loss.spare -= 1
                return False
            if loss.count == 0:
                return False
            loss.count -= 1
        if loss.performed:
            link.loses_answer = True
            return False
        self._count_lost()
        return True

    def _count_lost(self) -> None:
        assert self._loss is not None
        with self._loss.changed:
            self._loss.lost += 1
            self._loss.changed.notify_all()

    def _end(self, link: _Link) -> None:
        with self._guard:
            self._links.discard(link)
        link.reset()


def _drop_everything(each: socket.socket) -> None:
    """Let the kernel drop whatever arrives at a socket, before TCP sees it (Linux)."""
    instruction = ctypes.create_string_buffer(_DROP_EVERYTHING, len(_DROP_EVERYTHING))
    program = struct.pack("HL", 1, ctypes.addressof(instruction))
    with contextlib.suppress(OSError):
        each.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


def _in_thread(target: object, *arguments: object) -> None:
    assert callable(target)
    threading.Thread(target=target, args=arguments, name="proxy", daemon=True).start()
