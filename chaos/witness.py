"""What a chaos process was doing when it died: which refresh tokens it had presented, which answers it had kept.

The ledger sees answers leave the authorization server. Only the process knows whether one arrived and was
saved, and a killed process cannot be asked; so it writes down each step as it takes it.

Promise: what is written survives SIGKILL and a disk that is full for the process (``RLIMIT_FSIZE``), because
it is a store to memory that the kernel shares with a file made large enough beforehand. It holds SHA-256
fingerprints, never a token.
"""

from __future__ import annotations

import hashlib
import inspect
import mmap
import os
import threading
import time
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs

from chaos.points import resolve

if TYPE_CHECKING:
    from collections.abc import Callable

    from providers.exchange import TokenRequest

WITNESS_BYTES: Final = 64 * 1024 * 1024
"""Room for a million lines. The file is sparse: what is not written takes no disk."""

_PORTION_BYTES: Final = 65536


class Step(StrEnum):
    """What was done. A line is written before the first effect of SENT, and after that of the others."""

    SENT = "sent"
    RECEIVED = "received"
    UNANSWERED = "unanswered"
    JOURNALLED = "journalled"
    COMMITTED = "committed"
    STRUCK = "struck"
    """The process is about to die, or to be frozen, at its point."""


@dataclass(frozen=True, slots=True)
class Line:
    """One step of one process. ``token`` is the SHA-256 of the refresh token presented, in hexadecimal."""

    at: float
    """POSIX seconds on this machine's clock."""
    step: Step
    account_id: int
    epoch: int
    token: str


class Witness:
    """The writing end, in one process. Any thread may write."""

    def __init__(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.ftruncate(descriptor, WITNESS_BYTES)
            self._memory = mmap.mmap(descriptor, WITNESS_BYTES)
        finally:
            os.close(descriptor)
        self._end = 0
        self._lock = threading.Lock()

    def note(self, step: Step, account_id: int = 0, epoch: int = 0, token: str = "-") -> None:
        """Write one line."""
        line = f"{time.time():.6f} {step} {account_id} {epoch} {token}\n".encode()
        with self._lock:
            begin, self._end = self._end, self._end + len(line)
            self._memory[begin : self._end] = line


def read(path: Path) -> Iterator[Line]:
    """Yield the whole lines of a witness; what the end of the process cut off in the middle is left out.

    A process that died before it had a witness has done nothing that counts.
    """
    if not path.exists():
        return
    rest = b""
    with path.open("rb") as file:
        while portion := file.read(_PORTION_BYTES):
            written = portion.partition(b"\0")[0]
            *lines, rest = (rest + written).split(b"\n")
            for line in lines:
                at, step, account_id, epoch, token = line.decode("ascii").split()
                yield Line(float(at), Step(step), int(account_id), int(epoch), token)
            if len(written) < len(portion):
                return


def fingerprint(request: TokenRequest) -> str:
    """Return the SHA-256 of the refresh token in a request, in hexadecimal; "-" when there is none."""
    [token] = parse_qs(request.body or b"").get(b"refresh_token", [b""])
    return hashlib.sha256(token).hexdigest() if token else "-"


def install(witness: Witness) -> None:
    """Let this worker process write down what it sends, receives and keeps.

    Raises :class:`tokenfleet.errors.UserError` when a step is not where it was.
    """
    attempt: ContextVar[tuple[int, int]] = ContextVar("attempt")
    token: ContextVar[str] = ContextVar("token")

    async def perform(original: Callable[..., Any], *args: Any, **named: Any) -> Any:
        attempt.set((args[2].account_id, args[2].epoch))
        return await original(*args, **named)

    async def ask(original: Callable[..., Any], *args: Any, **named: Any) -> Any:
        from providers.exchange import Answer, Failure, FailureKind

        token.set(fingerprint(args[1]))
        exchange = await original(*args, **named)
        if isinstance(exchange, Answer):
            witness.note(Step.RECEIVED, *attempt.get(), token.get())
        elif isinstance(exchange, Failure) and exchange.kind is FailureKind.ANSWER_LOST:
            witness.note(Step.UNANSWERED, *attempt.get(), token.get())
        return exchange

    def leave(original: Callable[..., Any], *args: Any, **named: Any) -> Any:
        original(*args, **named)
        witness.note(Step.SENT, *attempt.get(), token.get())

    def append(original: Callable[..., Any], *args: Any, **named: Any) -> Any:
        segment = original(*args, **named)
        witness.note(Step.JOURNALLED, args[1].account_id, args[1].epoch)
        return segment

    async def after_commit(original: Callable[..., Any], *args: Any, **named: Any) -> Any:
        from store.answers import SavedTokens

        for entry in args[1]:
            for result in entry.results:
                if isinstance(result, SavedTokens):
                    witness.note(Step.COMMITTED, result.account_id, result.epoch)
        return await original(*args, **named)

    for target, around in zip(SEAMS, (perform, ask, leave, append, after_commit), strict=True):
        _wrap(target, around)


SEAMS: Final = (
    "workers.attempt:Asker.perform",
    "providers.transport:Transport.ask",
    "providers.connections:Ask.leave",
    "store.journal:Journal.append",
    "workers.writer:GroupWriter._after_commit",
)
"""Where production code takes the steps that are written down."""


def _wrap(target: str, around: Callable[..., Any]) -> None:
    holder, name, original = resolve(target)
    if inspect.iscoroutinefunction(original):

        async def later(*args: Any, **named: Any) -> Any:
            return await around(original, *args, **named)

        setattr(holder, name, later)
    else:

        def at_once(*args: Any, **named: Any) -> Any:
            return around(original, *args, **named)

        setattr(holder, name, at_once)
