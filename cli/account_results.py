"""What became of each account that a command acted on, and how that is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

import click

from cli.output import counted, print_json, shown

if TYPE_CHECKING:
    from tokenfleet.jobs import AccountId

MANY: Final = 20
"""From how many accounts on those where all went well are counted instead of listed."""


class Outcome(StrEnum):
    """What became of one account."""

    REQUESTED = "requested"
    PROBING = "probing"
    """Its access token is never renewed: it is tried out instead."""
    REFRESHED = "refreshed"
    PAUSED = "paused"
    RESUMED = "resumed"
    REVOKED = "revoked"
    UNCHANGED = "unchanged"
    """It was as wanted before."""
    WAITING = "waiting"
    """What was requested did not come in the time given: new tokens, or a provider's word that a grant is ended."""
    REFUSED = "refused"
    NOT_FOUND = "not_found"


_FAILED: Final = frozenset({Outcome.WAITING, Outcome.REFUSED, Outcome.NOT_FOUND})


@dataclass(frozen=True, slots=True)
class Result:
    """One account as it was named, what became of it, and a sentence about it."""

    account: str
    account_id: AccountId | None
    outcome: Outcome
    message: str

    @property
    def failed(self) -> bool:
        """Whether it is not as wanted."""
        return self.outcome in _FAILED


def report(ctx: click.Context, results: Sequence[Result], *, as_json: bool) -> None:
    """Print what became of every account; ends with exit code 1 when one is not as wanted."""
    failed = [result for result in results if result.failed]
    if as_json:
        print_json(results)
    else:
        if not results:
            click.echo("No account was named: there is nothing to do.", err=True)
        _print([result for result in results if not result.failed])
        for result in failed:
            click.echo(shown(f"tokenfleet: {result.account}: {result.message}"), err=True)
    if failed:
        ctx.exit(1)


def _print(results: Sequence[Result]) -> None:
    if len(results) <= MANY:
        for result in results:
            click.echo(shown(f"{result.account}: {result.message}"))
        return
    for outcome in Outcome:
        if count := sum(result.outcome is outcome for result in results):
            click.echo(f"{counted(count, 'account')} {outcome.value}")
