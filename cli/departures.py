"""Accounts on their way into a sealed file: page by page, those that are being refreshed last; and what is said of it.

Who is paused here and why somebody stayed is told on standard error.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from cli.output import counted, shown

if TYPE_CHECKING:
    from store.export import Exporter, LeftOut
    from tokenfleet.jobs import AccountId
    from tokenfleet.sealed_files import Recipient

SHOWN: Final = 20
"""Accounts that stayed and are told one by one."""
POLL_SECONDS: Final = 0.5

WHY: Final = {
    "ended": "has no token that works: it comes back with the customer's next sign-in, wherever that is",
    "started": "its provider is being asked just now: run the same command again",
    "unsure": "an answer of its provider is missing: run the same command again after its next refresh, for which one "
    "that is paused has to be resumed",
    "parked": "an incident has set it apart: rule on that first ('tokenfleet incidents list')",
    "elsewhere": "it was exported to another recipient: 'tokenfleet accounts show' says to whom",
    "unreadable": "our keys do not open its tokens: if keys were rotated just now, run the same command again; "
    "'tokenfleet keys status' shows which are missing",
}
KEPT_RUNNING: Final = (
    "These accounts stay here as they are, and those that are active are refreshed on. Whoever refreshes them "
    "elsewhere as well presents tokens that this fleet has spent, or spends those that it has: a provider that rotates "
    "then ends the grant, and the customer has to sign in again. Use the file as a backup, or for providers that never "
    "replace what is presented to them."
)


@dataclass(slots=True)
class Departures:
    """The lines of all accounts that go. Those that were being refreshed come last, if they can within the time."""

    exporter: Exporter
    pages: Iterable[list[AccountId]]
    advance: Callable[[int], None]
    wait_seconds: float
    gone: int = 0
    under_way: int = 0
    """Accounts that an interrupted transaction may have let go, or not."""
    left_out: Counter[LeftOut] = field(default_factory=Counter)
    examples: list[tuple[str, LeftOut]] = field(default_factory=list)

    def __iter__(self) -> Iterator[bytes]:
        from store.export import LeftOut
        from store.export_selection import PAGE

        started: dict[AccountId, str] = {}
        for page in self.pages:
            yield from self._take(page, started)
            self.advance(len(page))
        deadline = time.monotonic() + self.wait_seconds
        while started and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
            again, started = list(started), {}
            for begin in range(0, len(again), PAGE):
                yield from self._take(again[begin : begin + PAGE], started)
        for account_id, name in started.items():
            self._note(account_id, name, LeftOut.STARTED)

    def _take(self, page: list[AccountId], started: dict[AccountId, str]) -> Iterator[bytes]:
        from store.export import LeftOut

        self.under_way = len(page)
        departure = self.exporter.take(page)
        self.gone += len(departure.lines)
        self.under_way = 0
        for account_id, why in departure.left_out.items():
            name = departure.names[account_id]
            if why is LeftOut.STARTED:
                started[account_id] = name
            else:
                self._note(account_id, name, why)
        if departure.lines:
            yield b"".join(departure.lines)

    def _note(self, account_id: AccountId, name: str, why: LeftOut) -> None:
        self.left_out[why] += 1
        if len(self.examples) < SHOWN:
            self.examples.append((f"account {account_id} ({name})", why))

    def tell(self, recipient: Recipient, output: Path | None, *, keep_running: bool, named: bool) -> bool:
        """Say what went and who stayed and why; answer whether somebody stayed who should not have.

        ``named`` is whether accounts were asked for one by one.
        """
        from store.export import LeftOut

        if not self.gone:
            matched = "no account was sealed" if self.left_out else "no account matches"
            click.echo(f"tokenfleet: {matched}: nothing was written", err=True)
            self._tell_who_stayed()
            return True
        where = "" if output is None else f" in {output}"
        paused = "" if keep_running else ", and paused here"
        click.echo(f"{counted(self.gone, 'account')} sealed to {recipient}{where}{paused}.", err=True)
        if keep_running:
            click.echo(KEPT_RUNNING, err=True)
        self._tell_who_stayed()
        # Who has nothing to bring is not missed, unless somebody named it.
        stayed = self.left_out.total() - (0 if named else self.left_out[LeftOut.ENDED])
        return bool(stayed)

    def tell_unfinished(self, *, keep_running: bool) -> None:
        """Say who was paused here for a file that was not finished, and what to do about them."""
        if keep_running or not (self.gone or self.under_way):
            click.echo("No file was finished, and nobody was paused.", err=True)
            return
        count = counted(self.gone + self.under_way, "account")
        click.echo(
            f"No file was finished, and {'up to ' if self.under_way else ''}{count} paused here already: run the "
            "same command again, to the same recipient; or refresh them here again: 'tokenfleet accounts "
            "resume --exported'.",
            err=True,
        )

    def _tell_who_stayed(self) -> None:
        for account, why in self.examples:
            click.echo(shown(f"{account} stays: {WHY[why.value]}"), err=True)
        for why, count in self.left_out.items():
            told = sum(each is why for _, each in self.examples)
            if count > told:
                click.echo(f"{counted(count - told, 'more account')} stay: {WHY[why.value]}", err=True)
