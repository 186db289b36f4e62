"""``tokenfleet accounts refresh|pause|resume``: acting on accounts, and saying what became of each.

Promise: every account named gets a result; what was not possible is said in a sentence, and the exit code
is 1.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from cli.account_results import Outcome, Result, report
from cli.output import json_option, progress, reason_option
from cli.references import Reference, environment_option

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

    from store.audit import Action
    from store.details import AccountDetail

F = TypeVar("F", bound=Callable[..., Any])
R = TypeVar("R")

BATCH: Final = 1000
"""Accounts acted on in one transaction."""
TRIES: Final = 5
RETRY_SECONDS: Final = 0.1
ACTED: Final = frozenset(
    {Outcome.REQUESTED, Outcome.PROBING, Outcome.PAUSED, Outcome.RESUMED, Outcome.REVOKED}
)
"""Outcomes of something done: these go into the audit log."""
Act = Callable[["Connection", dict[Reference, "AccountDetail"]], list[Result]]
"""Acts on accounts that exist, in the caller's transaction."""


def account_arguments(command: F) -> F:
    """Add the accounts to act on, ``--environment`` and ``--json``."""
    argument = click.argument("accounts", metavar="ACCOUNT...", nargs=-1, required=True)
    return argument(environment_option(json_option(command)))


@click.command()
@account_arguments
@click.option(
    "--wait", "wait_seconds", type=click.FloatRange(0), metavar="SECONDS", help="Wait for new tokens."
)
@reason_option
@click.pass_context
def refresh(
    ctx: click.Context,
    accounts: tuple[str, ...],
    environment: str,
    as_json: bool,
    wait_seconds: float | None,
    reason: str | None,
) -> None:
    """Refresh accounts now, ahead of their time.

    Use it after mending something, or when a service reports a token that does not work. It also lifts a
    quarantine. Each ACCOUNT is an id or PROVIDER/EXTERNAL_ID; - reads them from standard input, one a line.

    \b
    Examples:
      tokenfleet accounts refresh 4711 --wait 30
      tokenfleet accounts refresh acme/customer-17 acme/customer-18
    """
    from cli.accounts_refresh import RefreshRequest
    from cli.session import database, load_providers, load_settings
    from store.audit import Action
    from store.overview import read_processes

    settings = load_settings()
    request = RefreshRequest(load_providers(settings))
    with database(settings) as engine:
        results = act_on(
            engine, accounts, environment, request.make, "Requesting", Action.ACCOUNTS_REFRESH, reason
        )
        if any(result.outcome is Outcome.REQUESTED for result in results):
            with engine.connect() as connection:
                idle = not read_processes(connection).schedulers
            if idle:
                click.echo("No scheduler is connected here: refreshing begins when one runs.", err=True)
        if wait_seconds is not None:
            results = request.wait(engine, results, deadline=time.monotonic() + wait_seconds)
    report(ctx, results, as_json=as_json)


@click.command()
@account_arguments
@click.option("--reason", help="Why, for the account's history and for those who look at it.")
@click.pass_context
def pause(
    ctx: click.Context, accounts: tuple[str, ...], environment: str, as_json: bool, reason: str | None
) -> None:
    """Leave accounts alone until they are resumed: nobody asks their provider.

    Their tokens stay where they are and expire in their time. A request that is under way is finished and its answer
    saved. Nobody is told anything of a paused account, and new tokens that are imported leave it paused. Each ACCOUNT
    is an id or PROVIDER/EXTERNAL_ID; - reads them from standard input, one a line.

    \b
    Example:
      tokenfleet accounts pause 4711 --reason "customer asked, ticket 17"
    """
    from cli.account_prospects import after_pause
    from cli.session import database, load_settings, operator
    from store import transitions
    from store.audit import Action

    actor = operator()

    def act(connection: Connection, found: dict[Reference, AccountDetail]) -> list[Result]:
        ids = sorted({account.account_id for account in found.values()})
        moved = transitions.pause(connection, ids, actor=actor, reason=reason)
        return [
            Result(reference.text, account.account_id, Outcome.PAUSED, after_pause(account))
            if account.account_id in moved
            else _not_paused(reference, account, reason)
            for reference, account in found.items()
        ]

    with database(load_settings()) as engine:
        results = act_on(
            engine, accounts, environment, act, "Pausing", Action.ACCOUNTS_PAUSE, reason, moves=True
        )
    report(ctx, results, as_json=as_json)


@click.command()
@account_arguments
@click.option(
    "--exported",
    is_flag=True,
    help="Also accounts that were exported: only if nobody else refreshes them, or ever will.",
)
@reason_option
@click.pass_context
def resume(
    ctx: click.Context,
    accounts: tuple[str, ...],
    environment: str,
    as_json: bool,
    exported: bool,
    reason: str | None,
) -> None:
    """Refresh paused accounts again, at once.

    Each ACCOUNT is an id or PROVIDER/EXTERNAL_ID; - reads them from standard input, one a line. An account
    whose grant is gone cannot be resumed: only new tokens help it. One that was exported to another fleet stays
    paused, because two fleets that present one refresh token end the grant: docs/leaving.md.

    \b
    Example:
      tokenfleet accounts resume 4711 acme/customer-17
    """
    from cli.account_prospects import after_resume
    from cli.session import database, load_settings, operator
    from store import transitions
    from store.audit import Action
    from store.overview import read_processes

    actor = operator()

    def act(connection: Connection, found: dict[Reference, AccountDetail]) -> list[Result]:
        ids = sorted({account.account_id for account in found.values()})
        moved = transitions.resume(connection, ids, actor=actor, exported=exported)
        return [
            Result(reference.text, account.account_id, Outcome.RESUMED, after_resume(account))
            if account.account_id in moved
            else _not_resumed(reference, account)
            for reference, account in found.items()
        ]

    with database(load_settings()) as engine:
        results = act_on(
            engine, accounts, environment, act, "Resuming", Action.ACCOUNTS_RESUME, reason, moves=True
        )
        if any(result.outcome is Outcome.RESUMED for result in results):
            with engine.connect() as connection:
                idle = not read_processes(connection).schedulers
            if idle:
                click.echo("No scheduler is connected here: refreshing begins when one runs.", err=True)
    report(ctx, results, as_json=as_json)


def _not_paused(reference: Reference, account: AccountDetail, reason: str | None) -> Result:
    from cli.account_prospects import already_paused
    from cli.explain import only_new_tokens_help
    from tokenfleet_client.contract import AccountStatus

    if account.status is AccountStatus.PAUSED:
        return Result(reference.text, account.account_id, Outcome.UNCHANGED, already_paused(account, reason))
    message = f"nobody asks about it anyway: {only_new_tokens_help(account)}"
    return Result(reference.text, account.account_id, Outcome.REFUSED, message)


def _not_resumed(reference: Reference, account: AccountDetail) -> Result:
    from cli.account_prospects import elsewhere
    from cli.explain import only_new_tokens_help
    from tokenfleet.account import REFRESHABLE
    from tokenfleet_client.contract import AccountStatus

    if account.status in REFRESHABLE:
        return Result(reference.text, account.account_id, Outcome.UNCHANGED, "it was not paused")
    if account.status is AccountStatus.PAUSED:
        return Result(reference.text, account.account_id, Outcome.REFUSED, elsewhere(account))
    return Result(reference.text, account.account_id, Outcome.REFUSED, only_new_tokens_help(account))


def act_on(
    engine: Engine,
    texts: Sequence[str],
    environment: str,
    act: Act,
    doing: str,
    action: Action,
    reason: str | None,
    *,
    moves: bool = False,
) -> list[Result]:
    """Act on all accounts named, a thousand in a transaction, and put on record what was done in the same one.

    Returns a result for each. With ``moves`` the accounts are locked before they are looked at, so what is said of
    one is true of the account that was acted on. Whoever else locks some of them in another order is given way to.
    """
    from cli.references import missing, parse_all
    from cli.session import on_record
    from store import audit

    references, by = parse_all(texts, environment=environment), on_record()
    results: list[Result] = []

    def transact(batch: Sequence[Reference]) -> tuple[Iterable[Reference], list[Result]]:
        with engine.begin() as connection:
            found = _look(connection, batch, moves=moves)
            done = act(connection, found)
            acted = {
                account.account_id: f"{account.provider}/{account.environment}/{account.external_id}"
                for result, account in zip(done, found.values(), strict=True)
                if result.outcome in ACTED
            }
            entries = [audit.Entry(audit.account_target(each), {"name": acted[each]}) for each in acted]
            audit.record(connection, by, action, entries, reason=reason)
        return found, done

    with progress(doing, total=len(references)) as advance:
        for batch in _batches(references):
            found, done = _giving_way(partial(transact, batch))
            results += done
            results += (
                Result(reference.text, None, Outcome.NOT_FOUND, missing(reference))
                for reference in batch
                if reference not in found
            )
            advance(len(batch))
    return results


def _look(
    connection: Connection, batch: Sequence[Reference], *, moves: bool
) -> dict[Reference, AccountDetail]:
    from cli.references import find
    from store import transitions

    found = find(connection, batch)
    if not (moves and found):
        return found
    transitions.lock(connection, sorted({account.account_id for account in found.values()}))
    return find(connection, batch)


def _giving_way(act: Callable[[], R]) -> R:
    """Return what ``act`` returns; do it again when a deadlock has chosen this command to be the one that gives way."""
    from sqlalchemy.exc import DBAPIError

    from store.engine import is_contention

    for attempt in range(1, TRIES + 1):
        try:
            return act()
        except DBAPIError as error:
            if attempt == TRIES or not is_contention(error):
                raise
            time.sleep(random.random() * RETRY_SECONDS * attempt)
    raise AssertionError("the last try returns or raises")


def _batches(references: Sequence[Reference]) -> Iterator[Sequence[Reference]]:
    for start in range(0, len(references), BATCH):
        yield references[start : start + BATCH]
