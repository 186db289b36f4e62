"""The time that a trial takes place in: it stands still until it is moved, so a year costs nothing."""

from __future__ import annotations

from datetime import datetime, timedelta


class Clock:
    """A moment that both sides agree on."""

    def __init__(self, now: datetime) -> None:
        self.now = now

    def seconds(self) -> float:
        """Return the moment in POSIX seconds."""
        return self.now.timestamp()

    def pass_by(self, time: timedelta) -> None:
        """Let ``time`` go by."""
        self.now += time

    def go_to(self, moment: datetime) -> None:
        """Let time go by until ``moment``; a moment that is past changes nothing."""
        self.now = max(self.now, moment)
