"""What is said between the harness and the zygote: orders one way, notices the other, a line of JSON each."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Self

from chaos.points import Role


class Deed(StrEnum):
    """What a process does to itself at its point."""

    DIE = "die"
    FREEZE = "freeze"


class State(StrEnum):
    """What a notice says of a process. READY is the zygote's own."""

    READY = "ready"
    STARTED = "started"
    STOPPED = "stopped"
    CONTINUED = "continued"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Order:
    """A process to start: what it is, its environment, and where it meets its end, if anywhere."""

    number: int
    role: Role
    environ: dict[str, str]
    log: str
    witness: str | None
    """Where it writes down what it does, if it does."""
    point: str | None = None
    nth: int = 1
    deed: Deed = Deed.DIE

    def line(self) -> bytes:
        """Return the order as it is sent."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def parse(cls, line: bytes) -> Self:
        """Read what :meth:`line` wrote."""
        members = json.loads(line)
        members["role"], members["deed"] = Role(members["role"]), Deed(members["deed"])
        return cls(**members)


@dataclass(frozen=True, slots=True)
class Notice:
    """What became of a process. ``code`` is its exit code, negative for the signal that ended it."""

    pid: int
    state: State
    number: int | None = None
    code: int | None = None

    def line(self) -> bytes:
        """Return the notice as it is sent."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def parse(cls, line: bytes) -> Self:
        """Read what :meth:`line` wrote."""
        members = json.loads(line)
        members["state"] = State(members["state"])
        return cls(**members)
