"""Ports on 127.0.0.1 for servers that must keep theirs over a restart."""

from __future__ import annotations

import random
import socket
from typing import Final

LOOPBACK: Final = "127.0.0.1"

# Below the range from which systems draw the source ports of outgoing connections (Linux 32768, others
# 49152). Inside it, a client that keeps connecting to a server which is down for a moment may be given that
# very port, reach itself (TCP simultaneous open) and keep the server from coming back.
_CANDIDATES: Final = range(15000, 32000)
_ATTEMPTS: Final = 200


def is_free(port: int) -> bool:
    """Tell whether a server could listen on ``port`` now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As servers do it: connections in TIME_WAIT do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


def free_port() -> int:
    """Return a port that was free a moment ago; whoever uses it must be ready to ask again."""
    for port in random.sample(_CANDIDATES, _ATTEMPTS):
        if is_free(port):
            return port
    raise OSError(f"no free port among {_ATTEMPTS} between {_CANDIDATES.start} and {_CANDIDATES.stop}")
