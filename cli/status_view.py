"""How ``tokenfleet status`` looks to people."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from rich.console import Group
from rich.text import Text

from cli.gates import Word, all_findings, percent
from cli.output import counted, dated, duration, make_table, moment, shown
from store.overview import SUCCEEDED
from tokenfleet_client.contract import AccountStatus

if TYPE_CHECKING:
    from cli.gates import CircuitStatus
    from cli.probes import FleetStatus
    from store.overview import Overview

_GOOD, _BAD, _QUIET = "green", "bold red", "dim"
_STYLES: Final = {
    Word.HELD: _BAD,
    Word.INCIDENT: _BAD,
    Word.OVERBOOKED: _BAD,
    Word.CIRCUIT: "yellow",
    Word.PAUSED: "yellow",
}
SHOWN_FINDINGS: Final = 12
"""A provider that fails as a whole has one for each of its apps; this is one screen."""


def render(status: FleetStatus) -> Group:
    """Return the whole screen."""
    parts: list[Any] = []
    if status.fleet is not None:
        parts += [_heading(status.fleet), Text(), _accounts(status.fleet), Text(), _numbers(status.fleet)]
        parts += _trouble(status.fleet, status.circuits)
    parts += _unsealings(status)
    parts += _journals(status)
    parts += [Text(shown(problem), style=_BAD) for problem in status.problems]
    if not status.problems:
        parts.append(Text("Postgres, its schema, the keys and Redis are fine.", style=_GOOD))
    return Group(*parts)


def _heading(fleet: Overview) -> Text:
    running = fleet.processes
    text = Text(f"{moment(fleet.at)}   ")
    for count, noun, silent_since in (
        (running.schedulers, "scheduler", running.schedulers_silent_since),
        (running.workers, "worker", running.workers_silent_since),
    ):
        text.append(counted(count, noun) if count else f"no {noun}", style=_GOOD if count else _BAD)
        if silent_since is not None:
            text.append(
                f" (not heard of for {duration(fleet.at - silent_since)}: frozen or cut off)", style=_BAD
            )
        text.append("   ")
    return text


def _accounts(fleet: Overview) -> Any:
    """Accounts by provider and status, with a line of totals."""
    counts: dict[str, Counter[AccountStatus]] = defaultdict(Counter)
    for each in fleet.counts:
        counts[each.provider][each.status] = each.accounts
    table = make_table("provider", *(f">{status.value}" for status in AccountStatus), ">due", ">claimed")
    load = _load_by_provider(fleet)
    for provider in sorted(counts.keys() | load.keys()):
        due, claimed = load.get(provider, (0, 0))
        table.add_row(
            shown(provider),
            *(_number(counts[provider][each]) for each in AccountStatus),
            _number(due),
            _number(claimed),
        )
    if len(counts) != 1:
        totals = [sum(count[status] for count in counts.values()) for status in AccountStatus]
        due, claimed = sum(app.due for app in fleet.apps), sum(app.claimed for app in fleet.apps)
        table.add_row("all", *(_number(total) for total in (*totals, due, claimed)), style="bold")
    return table


def _number(count: int) -> Text:
    return Text(f"{count:,}", style="" if count else _QUIET)


def _load_by_provider(fleet: Overview) -> dict[str, tuple[int, int]]:
    load: dict[str, tuple[int, int]] = {}
    for app in fleet.apps:
        due, claimed = load.get(app.provider, (0, 0))
        load[app.provider] = (due + app.due, claimed + app.claimed)
    return load


def _numbers(fleet: Overview) -> Text:
    """The lines that say whether tokens are fresh."""
    lines = [_lateness(fleet), _expiry(fleet), _recent(fleet), *_slack(fleet)]
    failing = fleet.failing
    if failing.accounts:
        since = f", the first since {dated(failing.since, fleet.at)}" if failing.since else ""
        suspects = f"; {counted(failing.suspects, 'suspect')}" if failing.suspects else ""
        quarantined = f"; {failing.quarantined:,} in quarantine" if failing.quarantined else ""
        line = f"Failing: {counted(failing.accounts, 'account')}{since}{suspects}{quarantined}"
        lines.append(Text(line, style=_BAD))
    else:
        lines.append(Text("Failing: none"))
    lines += _webhooks(fleet)
    return Text("\n").join(lines)


def _lateness(fleet: Overview) -> Text:
    oldest = min((app.oldest_due_at for app in fleet.apps if app.oldest_due_at is not None), default=None)
    if oldest is None:
        return Text("Due: nothing waits to be claimed")
    due = sum(app.due for app in fleet.apps)
    probes = sum(app.probes for app in fleet.apps)
    only = f"; {counted(probes, 'visit')} only to probe a token" if probes else ""
    return Text(f"Due: {counted(due, 'account')}, the first since {duration(fleet.at - oldest)}{only}")


def _expiry(fleet: Overview) -> Text:
    lowest = fleet.expiry.lowest
    if lowest is None:
        return Text("Expiry: no active account has a token that expires")
    if fleet.expiry.expired:
        return Text(
            f"Expiry: at least {counted(fleet.expiry.expired, 'active account')} with an expired token, the "
            f"first for {duration(fleet.at - lowest)}",
            style=_BAD,
        )
    return Text(f"Expiry: the first token expires in {duration(lowest - fleet.at)}", style=_GOOD)


def _recent(fleet: Overview) -> Text:
    text = Text(f"Last minute: {fleet.refreshed_last_minute:,} refreshed")
    others = [each for each in fleet.last_minute if each.kind != SUCCEEDED]
    if others:
        told = ", ".join(f"{each.attempts:,} {each.code or each.kind}" for each in others)
        text.append(f"; {shown(told)}", style=_BAD)
    return text


def _slack(fleet: Overview) -> Iterator[Text]:
    """How much of the scarcest rate is left over, where a rate is stated; below 0 it is told as trouble."""
    apps = [(app.slack, app) for app in fleet.apps if app.slack is not None]
    if not apps:
        return
    least, app = min(apps, key=lambda each: each[0])
    if least >= 0:
        name = shown(f"{app.provider}/{app.environment}/{app.name}")
        yield Text(f"Rate: at least {percent(least)} of it is left in the coming hour ({name})")


def _webhooks(fleet: Overview) -> Iterator[Text]:
    """One line, where there are endpoints at all."""
    found = fleet.webhooks
    if not found.endpoints:
        return
    parts = [counted(found.endpoints, "endpoint")]
    if found.failing:
        since = min((each.failing_since for each in found.failing if each.failing_since), default=None)
        parts.append(
            f"{len(found.failing):,} failing" + (f" since {dated(since, fleet.at)}" if since else "")
        )
    if found.disabled:
        parts.append(f"{found.disabled:,} disabled")
    least = "at least " if found.is_more else ""
    waiting = f"{least}{counted(found.waiting, 'event')} waiting" if found.waiting else "nothing waits"
    yield Text(f"Webhooks: {', '.join(parts)}; {waiting}", style=_BAD if found.troubled else "")


def _trouble(fleet: Overview, circuits: Sequence[CircuitStatus] | None) -> Iterator[Text]:
    """What stands between apps and their providers, the worst first; nothing when nothing does."""
    found = all_findings(fleet.apps, circuits or (), fleet.at)
    if found:
        yield Text()
    for name, finding in found[:SHOWN_FINDINGS]:
        yield Text(shown(f"{name}: {finding.text}"), style=_STYLES[finding.word])
    if len(found) > SHOWN_FINDINGS:
        more = len(found) - SHOWN_FINDINGS
        yield Text(f"and {more:,} more: 'tokenfleet apps list' shows them", style=_BAD)
    if circuits is None:
        yield Text("Circuits: unknown without Redis", style=_BAD)


def _unsealings(status: FleetStatus) -> Iterator[Text]:
    for spike in status.unsealing_spikes:
        yield Text(
            shown(f"Far more opened than usual: {spike.sentence}: 'tokenfleet audit unsealings'"), style=_BAD
        )


def _journals(status: FleetStatus) -> Iterator[Text]:
    if status.journals is None:
        yield Text("Journals: not readable by this user")
        return
    live = [journal for journal in status.journals if not journal.abandoned and not journal.damaged]
    abandoned = [journal for journal in status.journals if journal.abandoned]
    damaged = [journal for journal in status.journals if journal.damaged]
    if live:
        size = sum(journal.bytes for journal in live)
        yield Text(f"Journals: {counted(len(live), 'worker')} here, {_size(size)} not yet dropped")
    for journal in abandoned:
        yield Text(
            f"Journal of a dead worker: {journal.name}, {_size(journal.bytes)}; a worker here saves it",
            style=_BAD,
        )
    for journal in damaged:
        yield Text(f"Damaged journal segments: {_size(journal.bytes)}, kept for you to look at", style=_BAD)


def _size(size: int) -> str:
    return f"{size:,} B" if size < 1024 else f"{size / 1024:,.0f} KiB"
