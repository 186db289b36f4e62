"""``tokenfleet accounts list|show``: reading about accounts, never their tokens."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final

import click

from cli.gates import circuit_text
from cli.output import (
    dated,
    duration,
    json_option,
    print_facts,
    print_json,
    print_table,
    relative,
    shown,
)
from cli.references import environment_option, find_one
from tokenfleet_client.contract import AccountStatus

if TYPE_CHECKING:
    from store.details import AccountDetail
    from store.queries import AccountSummary

_RECIPIENT: Final = re.compile(r"\b(age1[a-z0-9]{4})[a-z0-9]{44,}([a-z0-9]{6})\b")
MAX_PAGE: Final = 10_000


@dataclass(frozen=True, slots=True)
class AccountPage:
    """One page of a list. ``next_after`` is the ``--after`` of the next page, None when this is the last."""

    accounts: Sequence[AccountSummary]
    next_after: int | None


@click.command("list")
@click.option("--provider", help="Only accounts at this provider.")
@click.option("--environment", help="Only accounts of this environment.")
@click.option("--status", type=click.Choice([status.value for status in AccountStatus]), help="Only these.")
@click.option("--tenant", help="Only accounts of this tenant.")
@click.option(
    "--trouble",
    type=click.Choice(["failing", "suspect", "quarantined", "parked"]),
    help="Only accounts in this trouble, whatever their status.",
)
@click.option("--limit", type=click.IntRange(1, MAX_PAGE), default=50, show_default=True, help="How many.")
@click.option("--after", type=click.IntRange(0), help="Start after this id: the next page.")
@json_option
def list_accounts(
    provider: str | None,
    environment: str | None,
    status: str | None,
    tenant: str | None,
    trouble: str | None,
    limit: int,
    after: int | None,
    as_json: bool,
) -> None:
    """List accounts by id, a page at a time.

    Use it to find who has to sign in again, or whose refreshing fails. In trouble are those whose last attempts
    failed (failing), whose provider says what nobody has described (suspect), who are left alone because
    repetition does not help (quarantined), and who wait for the end of an incident (parked).

    \b
    Examples:
      tokenfleet accounts list --status needs_reauth
      tokenfleet accounts list --trouble quarantined
      tokenfleet accounts list --provider acme --tenant t-204 --json
    """
    from cli.references import LARGEST_ID
    from cli.session import database, load_settings
    from store import queries
    from store.engine import database_now
    from tokenfleet.jobs import AccountId

    wanted = queries.AccountFilter(
        provider=provider,
        environment=environment,
        status=AccountStatus(status) if status else None,
        tenant=tenant,
        trouble=queries.Trouble(trouble) if trouble else None,
    )
    start = None if after is None else AccountId(min(after, LARGEST_ID))
    with database(load_settings()) as engine, engine.connect() as connection:
        # One more than asked for tells whether there is a next page.
        found = queries.list_accounts(connection, wanted, after=start, limit=limit + 1)
        now = database_now(connection)
    page = AccountPage(found[:limit], found[limit - 1].account_id if len(found) > limit else None)
    if as_json:
        print_json(page)
        return
    if not page.accounts:
        click.echo("No account matches.")
        return
    _print_page(page, now)


def _print_page(page: AccountPage, now: datetime) -> None:
    print_table(
        (">id", "provider", "environment", "external id", "tenant", "status", "expires", "next", "trouble"),
        (
            (
                str(account.account_id),
                account.provider,
                account.environment,
                account.external_id,
                account.tenant or "",
                account.status.value,
                relative(account.expires_at, now),
                relative(account.next_refresh_at, now),
                _trouble(account, now),
            )
            for account in page.accounts
        ),
    )
    if page.next_after is not None:
        click.echo(f"There are more: --after {page.next_after}", err=True)


def _trouble(account: AccountSummary, now: datetime) -> str:
    if account.incident_id is not None and account.status is not AccountStatus.NEEDS_REAUTH:
        return f"parked by incident {account.incident_id}: {account.last_error}"
    if account.status is not AccountStatus.ACTIVE and account.status_reason:
        # Whole in 'accounts show' and in --json; here it would leave the other columns no room.
        return _RECIPIENT.sub(r"\1…\2", account.status_reason)
    if account.quarantined:
        return f"quarantined: {account.last_error}"
    if account.failing_since is not None:
        suspect = "suspect: " if account.doubts else ""
        return f"{suspect}{account.last_error} for {duration(now - account.failing_since)}"
    return account.last_error or ""


@click.command()
@click.argument("account")
@environment_option
@json_option
def show(account: str, environment: str, as_json: bool) -> None:
    """Show one account and say why it stands where it stands; never a token.

    ACCOUNT is an id, or PROVIDER/EXTERNAL_ID.

    \b
    Examples:
      tokenfleet accounts show 4711
      tokenfleet accounts show acme/customer-17 --json
    """
    from cli.probes import circuits
    from cli.session import database, load_settings

    settings = load_settings()
    with database(settings) as engine, engine.connect() as connection:
        found = find_one(connection, account, environment=environment)
    if as_json:
        print_json(found)
        return
    _print_account(found)
    opened = circuits(settings, [found.app.app_id], found.database_now)
    if opened is None:
        click.echo("Whether the circuit of its app is open is unknown: Redis does not answer.")
    for circuit in opened or ():
        click.echo(f"Its app's {circuit_text(circuit, found.database_now)}.")


def _print_account(account: AccountDetail) -> None:
    from cli.explain import app_choice, why

    now, token, schedule = account.database_now, account.token, account.schedule
    print_facts(
        [
            *identity(account),
            ("app", _app_text(account)),
            ("variables", ", ".join(f"{key}={value}" for key, value in sorted(account.variables.items()))),
            ("metadata", ", ".join(f"{key}={value}" for key, value in sorted(account.metadata.items()))),
            ("created", dated(account.created_at, now)),
            ("generation", str(token.generation) if token else ""),
            ("scope", (token.scope or "") if token else ""),
            ("obtained", dated(token.obtained_at, now) if token else ""),
            ("expires", dated(token.expires_at, now) if token else ""),
            ("next refresh", dated(schedule.next_refresh_at, now) if schedule else ""),
            ("last error", (schedule.last_error or "") if schedule else ""),
            ("failing since", dated(schedule.failing_since, now) if schedule else ""),
        ]
    )
    click.echo()
    for sentence in (*why(account), *app_choice(account)):
        click.echo(shown(sentence))


def _app_text(account: AccountDetail) -> str:
    app = account.app
    return f"{account.provider}/{app.environment}/{app.name} ({app.level.value} level, id {app.app_id})"


def identity(account: AccountDetail) -> Iterator[tuple[str, str]]:
    """Yield which account this is and where it stands, as facts."""
    yield "account", f"{account.account_id}: {account.provider}/{account.external_id} ({account.environment})"
    yield "tenant", account.tenant or ""
    reason = f": {account.status_reason}" if account.status_reason else ""
    since = dated(account.status_changed_at, account.database_now)
    yield "status", f"{account.status.value} since {since}{reason}"
