"""``tokenfleet accounts revoke``: ending grants for good, and saying what the providers made of it.

The accounts are revoked at once, in this process. The providers are told by the workers, which alone can do that
beside no refresh, at the app's pace and again when a provider does not answer; here it is waited for, and told.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

import click

from cli.account_results import Outcome, Result, report
from cli.accounts_act import account_arguments, act_on
from cli.output import counted, progress, shown
from cli.references import STANDARD_INPUT, Reference

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy import Connection, Engine

    from providers import Registry
    from store.details import AccountDetail
    from store.revocations import Begun, News
    from tokenfleet.jobs import AccountId

POLL_SECONDS: Final = 0.2
BATCH: Final = 1000
"""Accounts looked at in one statement."""
LOCAL_ONLY: Final = "local_only"
NOT_SUPPORTED: Final = "not_supported"
UNTOLD: Final[Mapping[str, str]] = {
    LOCAL_ONLY: "The provider was not told, as you asked: there the grant may live on",
    NOT_SUPPORTED: (
        "The provider was not told, because its definition has no revocation: end the grant there, or let the customer"
    ),
    "token_missing": "The provider was not told, because the account had no token that it takes",
    "never_confirmed": "The provider never confirmed",
}
"""Why tokens were forgotten unconfirmed, by the code in the history."""

ELSEWHERE: Final = (
    "it was {}: ending its grant would end it there too; --local-only only forgets the tokens here"
)


@click.command()
@account_arguments
@click.option("--reason", help="Why, for the account's history and for those who are told.")
@click.option("--yes", is_flag=True, help="Do not ask whether you are sure.")
@click.option(
    "--local-only", is_flag=True, help="Forget the tokens at once, and leave the grant at the provider alone."
)
@click.option(
    "--wait",
    "wait_seconds",
    type=click.FloatRange(0),
    default=15.0,
    show_default=True,
    metavar="SECONDS",
    help="Wait for what the providers answer.",
)
@click.pass_context
def revoke(
    ctx: click.Context,
    accounts: tuple[str, ...],
    environment: str,
    as_json: bool,
    reason: str | None,
    yes: bool,
    local_only: bool,
    wait_seconds: float,
) -> None:
    """End the grants of accounts for good: their providers are told, their tokens are forgotten.

    An account is revoked at once, and whoever depends on it is told. Its tokens are forgotten as soon as the provider
    has confirmed; while it does not answer or refuses, workers ask it again, for seven days at most. Only new tokens
    bring the account back. An installation with several token sets is several accounts: name each. Doing it again
    does no harm, and asks a provider again that has not confirmed.

    Each ACCOUNT is an id or PROVIDER/EXTERNAL_ID; - reads them from standard input, one a line.

    \b
    Examples:
      tokenfleet accounts revoke acme/customer-17 --reason "contract ended"
      tokenfleet accounts revoke - --yes < leaving.txt
    """
    from cli.session import database, load_providers, load_settings, operator
    from store.audit import Action
    from store.overview import read_processes

    if not yes:
        _confirm(accounts)
    settings = load_settings()
    revocation = Revocation(load_providers(settings), operator(), reason, local_only=local_only)
    with database(settings) as engine:
        results = act_on(
            engine,
            accounts,
            environment,
            revocation.make,
            "Revoking",
            Action.ACCOUNTS_REVOKE,
            reason,
            moves=True,
        )
        if any(result.outcome is Outcome.REQUESTED for result in results):
            with engine.connect() as connection:
                processes = read_processes(connection)
            if not processes.schedulers:
                click.echo("No scheduler is connected here: the providers are told when one runs.", err=True)
            elif wait_seconds:
                results = revocation.wait(engine, results, deadline=time.monotonic() + wait_seconds)
    report(ctx, results, as_json=as_json)


def _confirm(accounts: Sequence[str]) -> None:
    from tokenfleet.errors import UserError

    if STANDARD_INPUT in accounts or not sys.stdin.isatty():
        raise click.UsageError("revoking cannot be undone, and nobody can be asked here: say --yes.")
    named = list(dict.fromkeys(accounts))
    which = named[0] if "/" in named[0] else f"account {named[0]}"
    what = f"the grant of {shown(which)}" if len(named) == 1 else counted(len(named), "grant")
    if not click.confirm(f"End {what} for good? Only a new sign-in of the customer brings it back", err=True):
        raise UserError("nothing was revoked, as you answered")


@dataclass(slots=True)
class Revocation:
    """Revokes any number of accounts, and waits for the answers of their providers."""

    registry: Registry
    actor: str
    reason: str | None
    local_only: bool
    _since: dict[AccountId, datetime] = field(default_factory=dict)

    def make(self, connection: Connection, found: dict[Reference, AccountDetail]) -> list[Result]:
        """Revoke accounts in the caller's transaction; says of each what is to be expected."""
        from store import revocations

        known = {account.account_id: account for account in found.values() if not self._is_elsewhere(account)}
        self._since |= {account_id: account.database_now for account_id, account in known.items()}
        begun = revocations.begin(
            connection,
            known,
            untold={account_id for account_id, account in known.items() if not self._can_tell(account)},
            showing_access={
                account_id for account_id, account in known.items() if self._needs_access_token(account)
            },
            code=LOCAL_ONLY if self.local_only else NOT_SUPPORTED,
            actor=self.actor,
            reason=self.reason,
        )
        return [
            self._result(reference, account, begun)
            if account.account_id in known
            else Result(
                reference.text, account.account_id, Outcome.REFUSED, ELSEWHERE.format(account.status_reason)
            )
            for reference, account in found.items()
        ]

    def _is_elsewhere(self, account: AccountDetail) -> bool:
        """Answer whether another fleet lives by this grant, and would lose it."""
        from tokenfleet.account import EXPORTED
        from tokenfleet_client.contract import AccountStatus

        is_paused = account.status is AccountStatus.PAUSED
        return is_paused and not self.local_only and (account.status_reason or "").startswith(EXPORTED)

    def _can_tell(self, account: AccountDetail) -> bool:
        if self.local_only:
            return False
        # A definition that is not here may be where the workers run.
        return account.provider not in self.registry or self.registry.get(account.provider).revokes

    def _needs_access_token(self, account: AccountDetail) -> bool:
        if account.provider not in self.registry:
            return True
        return self.registry.get(account.provider).revocation_shows_access_token

    def _result(self, reference: Reference, account: AccountDetail, begun: Begun) -> Result:
        account_id = account.account_id
        revoked = "revoked" if account_id in begun.moved else "it was revoked already"
        if account_id in begun.asked:
            message = f"{revoked}; the provider is told, and its tokens are forgotten then"
            return Result(reference.text, account_id, Outcome.REQUESTED, message)
        if account_id in begun.forgotten:
            code = LOCAL_ONLY if self.local_only else NOT_SUPPORTED
            message = f"{revoked}, and its tokens are forgotten. {UNTOLD[code]}"
            return Result(reference.text, account_id, Outcome.REVOKED, message)
        if account_id in begun.moved:
            return Result(reference.text, account_id, Outcome.REVOKED, "revoked; it had no tokens")
        return Result(reference.text, account_id, Outcome.UNCHANGED, "it was revoked already")

    def wait(self, engine: Engine, results: Sequence[Result], *, deadline: float) -> list[Result]:
        """Return ``results`` as they are when every provider has answered, or at ``deadline`` (monotonic clock)."""
        from store import revocations

        waiting = [
            result.account_id
            for result in results
            if result.outcome is Outcome.REQUESTED and result.account_id is not None
        ]
        waiting = list(dict.fromkeys(waiting))
        told: dict[AccountId, News] = {}
        with progress("Waiting for providers", total=len(waiting)) as advance:
            while waiting:
                # Looked at once more after the deadline, so that nothing that is in goes unseen.
                last_look = time.monotonic() >= deadline
                with engine.connect() as connection:
                    for start in range(0, len(waiting), BATCH):
                        part = waiting[start : start + BATCH]
                        since = min(self._since[account_id] for account_id in part)
                        told |= revocations.news(connection, part, since=since)
                advance(sum(account_id in told for account_id in waiting))
                waiting = [account_id for account_id in waiting if account_id not in told]
                if last_look:
                    break
                if waiting:
                    time.sleep(POLL_SECONDS)
        return [
            _answered(result, told.get(result.account_id))
            if result.outcome is Outcome.REQUESTED and result.account_id is not None
            else result
            for result in results
        ]


def _answered(result: Result, news: News | None) -> Result:
    """Return what is to be said of a revocation after ``news`` of it, or none in the time given."""
    from store.revocations import CONFIRMED, FORGOTTEN, REFUSED

    again = (
        f"it is asked again, for seven days at most. 'tokenfleet accounts history {result.account_id}' says what it "
        "answers; --local-only forgets the tokens now"
    )
    if news is None:
        message = f"revoked, but the provider was not asked in the time given: {again}"
        return replace(result, outcome=Outcome.WAITING, message=message)
    if news.kind == CONFIRMED:
        message = f"revoked; the provider has confirmed it ({news.code}), and its tokens are forgotten"
        return replace(result, outcome=Outcome.REVOKED, message=message)
    if news.kind == FORGOTTEN:
        message = f"revoked, and its tokens are forgotten. {UNTOLD.get(news.code or '', 'The provider was not told')}"
        return replace(result, outcome=Outcome.REVOKED, message=message)
    verb = "refuses to end its grant" if news.kind == REFUSED else "did not answer as hoped"
    return replace(
        result, outcome=Outcome.WAITING, message=f"revoked, but the provider {verb} ({news.code}): {again}"
    )
