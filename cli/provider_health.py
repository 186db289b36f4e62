"""``tokenfleet providers health``: how each provider treats us now, against how it usually does."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import click

from cli.output import counted, duration, json_option, print_json, print_table, print_wrapped

if TYPE_CHECKING:
    from store.gates import OpenIncident
    from store.provider_health import AppHealth
    from tokenfleet.spikes import Spike


@dataclass(frozen=True, slots=True)
class Reason:
    """Why attempts brought nothing, how often, and of how many accounts."""

    outcome: str
    code: str
    attempts: int
    accounts: int | None


@dataclass(frozen=True, slots=True)
class Health:
    """One app in ``providers health --json``. Rates are parts of 1, None without attempts.

    Registrations of single accounts are one app here. ``sampled`` is the part of the attempts that was looked at: where
    it is less than all, counts are estimates. ``waiting`` accounts were due before all that.
    """

    provider: str
    environment: str
    app: str
    registrations: int
    accounts: int
    needs_reauth: int
    needs_reauth_last_day: int
    waiting: int
    attempts: int
    sampled: float
    success_rate: float | None
    usual_success_rate: float | None
    median_ms: float | None
    usual_median_ms: float | None
    reasons: Sequence[Reason]
    spikes: Sequence[Spike]
    is_slow: bool
    is_stuck: bool
    incidents: Sequence[OpenIncident]


@dataclass(frozen=True, slots=True)
class Report:
    """What ``--json`` prints. ``our_network``: so many providers are out of reach that the cause is probably here."""

    at: datetime
    minutes: int
    our_network: bool
    apps: Sequence[Health]


@click.command()
@click.argument("provider", required=False)
@click.option(
    "--minutes", type=click.IntRange(1, 1440), default=10, show_default=True, help="How far back is now."
)
@json_option
@click.pass_context
def health(ctx: click.Context, provider: str | None, minutes: int, as_json: bool) -> None:
    """Show how each app's refreshes end now and usually end, and say what is unusual about it.

    Usual is the day before. Below the table stands what happens far more often than that, and what it probably is; and
    of whom nobody was asked although accounts are due. Exit code 1 when something is unusual.

    \b
    Examples:
      tokenfleet providers health
      tokenfleet providers health acme --minutes 60 --json
    """
    from cli.session import database, load_settings
    from store.provider_health import read_health
    from tokenfleet.errors import UserError
    from tokenfleet.spikes import is_our_network

    with database(load_settings()) as engine, engine.connect() as connection:
        at, found = read_health(connection, window=timedelta(minutes=minutes), provider=provider)
    if provider is not None and not found:
        raise UserError(f"no app of {provider} is registered: 'tokenfleet apps list' shows those that are")
    apps = [_health_of(each) for each in found]
    # Registrations at one provider share its fate: each provider counts once.
    by_provider: dict[str, list[Spike]] = defaultdict(list)
    for each in apps:
        if each.attempts:
            by_provider[each.provider] += each.spikes
    ours = is_our_network(by_provider)
    if as_json:
        print_json(Report(at, minutes, ours, apps))
    elif not apps:
        click.echo("No app is registered yet: 'tokenfleet apps set PROVIDER --client-id ID' registers one.")
    else:
        _print(apps, minutes, ours=ours)
    if any(each.spikes or each.is_slow or each.is_stuck or each.incidents for each in apps):
        ctx.exit(1)


def _health_of(app: AppHealth) -> Health:
    from tokenfleet.spikes import is_slow, spikes

    reasons = sorted(app.now.failed.items(), key=lambda each: -each[1])
    return Health(
        provider=app.provider,
        environment=app.environment,
        app=app.name,
        registrations=app.registrations,
        accounts=app.accounts,
        needs_reauth=app.needs_reauth,
        needs_reauth_last_day=app.needs_reauth_lately,
        waiting=app.waiting,
        attempts=app.now.in_all(app.now.attempts),
        sampled=app.now.sampled,
        success_rate=app.now.success_rate,
        usual_success_rate=app.usual.success_rate,
        median_ms=app.now.median_ms,
        usual_median_ms=app.usual.median_ms,
        reasons=[
            Reason(kind.partition(".")[2], code, app.now.in_all(failed), app.now.accounts.get((kind, code)))
            for (kind, code), failed in reasons
        ],
        spikes=spikes(app.now, app.usual),
        is_slow=is_slow(app.now, app.usual),
        is_stuck=bool(app.waiting and not app.now.attempts and not app.incidents),
        incidents=app.incidents,
    )


def _print(apps: Sequence[Health], minutes: int, *, ours: bool) -> None:
    print_table(
        ("app", ">accounts", ">need sign-in", f">tried in {minutes} min", ">success", ">usual", "why not"),
        (
            (
                _name(app),
                f"{app.accounts:,}",
                f"{app.needs_reauth:,}"
                + (f" (+{app.needs_reauth_last_day:,})" if app.needs_reauth_last_day else ""),
                f"{'about ' if app.sampled < 1 else ''}{app.attempts:,}",
                _percent(app.success_rate),
                _percent(app.usual_success_rate),
                ", ".join(f"{each.attempts:,} {each.code or each.outcome}" for each in app.reasons[:3]),
            )
            for app in apps
        ),
    )
    unusual = list(_unusual(apps, minutes, ours=ours))
    click.echo()
    if unusual:
        print_wrapped(unusual)
    else:
        click.echo("Nothing is unusual.")


def _unusual(apps: Sequence[Health], minutes: int, *, ours: bool) -> Iterator[str]:
    from store.provider_health import WAITING

    if ours:
        yield "Several providers are out of reach at once: look at this network first (DNS, proxy, firewall)."
    for app in apps:
        for each in app.incidents:
            yield (
                f"{_name(app)}: incident {each.incident_id} is open ({each.kind.value}, {each.code}): 'tokenfleet "
                f"incidents show {each.incident_id}'."
            )
        if app.is_stuck:
            least = "at least " if app.waiting >= WAITING else ""
            yield (
                f"{_name(app)}: nobody was asked in {minutes} min, and {least}{counted(app.waiting, 'account')} due "
                "before that still wait. 'tokenfleet status' shows what schedulers and workers do."
            )
        for spike in app.spikes:
            of = f" by {counted(spike.accounts, 'account')}" if spike.accounts is not None else ""
            usual = "of its past too little is known"
            if spike.usual is not None:
                usual = f"usually {_percent(spike.usual)} at most"
            yield (
                f"{_name(app)}: {spike.failures:,} of {counted(app.attempts, 'attempt')}{of} ended in "
                f"{spike.code or spike.kind} ({_percent(spike.share)}; {usual}). Probably {spike.probably}."
            )
        if app.is_slow:
            now, before = (timedelta(milliseconds=each or 0) for each in (app.median_ms, app.usual_median_ms))
            yield f"{_name(app)}: half of its answers take {duration(now)} or more, usually {duration(before)}."


def _name(app: Health) -> str:
    many = f" ({app.registrations:,} registrations)" if app.registrations > 1 else ""
    return f"{app.provider}/{app.environment}/{app.app}{many}"


def _percent(part: float | None) -> str:
    if part is None:
        return "-"
    # 99.96 % is not 100 %.
    percent = min(part * 100, 99.9) if part < 1 else 100.0
    return f"{percent:.1f} %"
