"""One screen that tells the truth about a running fleet, read from Postgres and nowhere else.

On a terminal it redraws in place; elsewhere it is a plain line every few seconds, so that a log of it reads
well. Figures come from the same view that readers use.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from sqlalchemy import Engine, text

from cli.gates import all_findings
from cli.output import shown
from cli.probes import circuits
from embedded.supervisor import ChildState
from store.engine import database_now
from store.overview import read_apps
from tokenfleet.settings import Settings

REMEMBERED_SAMPLES: Final = 60
PLAIN_EVERY_SECONDS: Final = 10.0
RATE_WINDOW_SECONDS: Final = 5
BARS: Final = "▁▂▃▄▅▆▇█"
SHOWN_TROUBLES: Final = 5
FULL_SCAN_LIMIT: Final = 50_000
"""Up to so many accounts every one is looked at each second; beyond, only those near their due time."""

_STATUSES = text("""
    SELECT status, count(*) AS accounts FROM tokenfleet.accounts GROUP BY status
""")

_SCHEDULE = text("""
    SELECT count(*) FILTER (WHERE next_refresh_at <= now()) AS due,
           count(*) FILTER (WHERE claimed_until > now()) AS claimed,
           EXTRACT(epoch FROM now() - min(next_refresh_at)) AS overdue_seconds
    FROM tokenfleet.refresh_schedule WHERE next_refresh_at <= now()
""")

_FAILING = text("SELECT count(*) FROM tokenfleet.refresh_schedule WHERE failing_since IS NOT NULL")

_RECENT = text("""
    SELECT count(*) FILTER (WHERE kind = 'refresh.succeeded') AS refreshed,
           count(*) FILTER (WHERE kind LIKE 'refresh.%' AND kind <> 'refresh.succeeded') AS failed
    FROM tokenfleet.account_events WHERE at > now() - CAST(:window AS interval)
""")

_EXPIRY = text("""
    SELECT min(seconds) AS lowest, percentile_cont(0.5) WITHIN GROUP (ORDER BY seconds) AS median,
           max(seconds) AS highest
    FROM (SELECT EXTRACT(epoch FROM expires_at - now()) AS seconds
          FROM tokenfleet_v1.access_tokens
          WHERE status = 'active' AND expires_at IS NOT NULL
            AND (:everyone OR account_id IN (
                SELECT account_id FROM tokenfleet.refresh_schedule
                WHERE next_refresh_at <= now() + interval '1 minute'))) each
""")


@dataclass(frozen=True, slots=True)
class Sample:
    """The fleet at one moment. Expiry figures are seconds; None when no active account has an expiry."""

    elapsed: float
    statuses: dict[str, int]
    due: int
    claimed: int
    overdue_seconds: float
    failing: int
    per_second: float
    failed_per_second: float
    lowest: float | None
    median: float | None
    highest: float | None
    troubles: tuple[str, ...] = ()
    """What stands between apps and their providers (``cli.gates``), the worst first."""

    @property
    def accounts(self) -> int:
        """All accounts, whatever their status."""
        return sum(self.statuses.values())

    def line(self) -> str:
        """Return the sample as one plain line."""
        lowest = "-" if self.lowest is None else f"{self.lowest:.0f} s"
        others = ", ".join(
            f"{count} {status}" for status, count in sorted(self.statuses.items()) if status != "active"
        )
        active = self.statuses.get("active", 0)
        return (
            f"{self.elapsed:5.0f} s  {active} of {self.accounts} active{f' ({others})' if others else ''}  "
            f"{self.per_second:.1f} refreshes/s  due {self.due}, oldest {self.overdue_seconds:.1f} s late  "
            f"least time to live {lowest}  failing {self.failing}"
        ) + "".join(f"\n       {trouble}" for trouble in self.troubles)


class Sampler:
    """Takes samples over one connection pool."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self._engine = engine
        self._settings = settings
        self._began = time.monotonic()

    def take(self) -> Sample:
        """Return the fleet as it is now. Raises SQLAlchemy's ``DBAPIError`` when Postgres is away."""
        with self._engine.connect() as connection:
            connection.execute(text("SET LOCAL jit = off"))
            statuses = {row.status: row.accounts for row in connection.execute(_STATUSES)}
            schedule = connection.execute(_SCHEDULE).one()
            recent = connection.execute(_RECENT, {"window": f"{RATE_WINDOW_SECONDS} s"}).one()
            expiry = connection.execute(
                _EXPIRY, {"everyone": sum(statuses.values()) <= FULL_SCAN_LIMIT}
            ).one()
            failing: int = connection.execute(_FAILING).scalar_one()
            apps = read_apps(connection)
            now = database_now(connection)
        opened = circuits(self._settings, [app.app_id for app in apps], now)
        return Sample(
            elapsed=time.monotonic() - self._began,
            statuses=statuses,
            due=schedule.due,
            claimed=schedule.claimed,
            overdue_seconds=max(0.0, float(schedule.overdue_seconds or 0)),
            failing=failing,
            per_second=recent.refreshed / RATE_WINDOW_SECONDS,
            failed_per_second=recent.failed / RATE_WINDOW_SECONDS,
            lowest=None if expiry.lowest is None else float(expiry.lowest),
            median=None if expiry.median is None else float(expiry.median),
            highest=None if expiry.highest is None else float(expiry.highest),
            troubles=tuple(
                shown(f"{name}: {finding.text}") for name, finding in all_findings(apps, opened or (), now)
            ),
        )


class LiveView:
    """Shows samples until the ``with`` block ends: redrawn on a terminal, plain lines elsewhere."""

    def __init__(self, title: str, console: Console, footer: Callable[[], str]) -> None:
        self._title = title
        self._console = console
        self._footer = footer
        self._samples: deque[Sample] = deque(maxlen=REMEMBERED_SAMPLES)
        self._next_plain = 0.0
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, sample: Sample, states: Sequence[ChildState]) -> None:
        """Draw ``sample`` and the fleet's processes."""
        self._samples.append(sample)
        if self._live is not None:
            self._live.update(self._draw(sample, states), refresh=True)
        elif sample.elapsed >= self._next_plain:
            self._next_plain = sample.elapsed + PLAIN_EVERY_SECONDS
            restarts = sum(state.restarts for state in states)
            restarted = f"  restarts {restarts}" if restarts else ""
            print(sample.line() + restarted, file=self._console.file, flush=True)

    def _draw(self, sample: Sample, states: Sequence[ChildState]) -> RenderableType:
        figures = Table.grid(padding=(0, 3))
        figures.add_column(style="dim")
        figures.add_column(justify="right")
        figures.add_column()
        rates = [each.per_second for each in self._samples]
        lowest = [each.lowest or 0.0 for each in self._samples]
        late = [each.overdue_seconds for each in self._samples]
        figures.add_row("accounts", f"{sample.accounts:,}", _statuses(sample))
        figures.add_row("refreshes/s", f"{sample.per_second:,.1f}", Text(sparkline(rates), "green"))
        figures.add_row(
            "oldest due, s late", f"{sample.overdue_seconds:.1f}", Text(sparkline(late), "yellow")
        )
        figures.add_row(
            "least time to live, s", _seconds(sample.lowest), Text(sparkline(lowest), _mood(sample))
        )
        figures.add_row(
            "time to live, s", _seconds(sample.median), f"median; at most {_seconds(sample.highest)}"
        )
        figures.add_row("due now", f"{sample.due:,}", f"{sample.claimed:,} of them being refreshed")
        failing = f"{sample.failed_per_second:.1f} failed attempts/s" if sample.failing else "none"
        figures.add_row("failing accounts", f"{sample.failing:,}", failing)
        troubles = [Text(trouble, "bold red") for trouble in sample.troubles[:SHOWN_TROUBLES]]
        if len(sample.troubles) > SHOWN_TROUBLES:
            troubles.append(Text("and more: 'tokenfleet status' shows them", "bold red"))
        processes = Table(box=None, padding=(0, 2), header_style="dim")
        for heading in ("process", "pid", "restarts", "last end"):
            processes.add_column(heading)
        for state in states:
            pid = Text("starting again", "red") if state.pid is None else Text(str(state.pid))
            processes.add_row(state.name, pid, str(state.restarts), state.last_end or "")
        minutes, seconds = divmod(int(sample.elapsed), 60)
        return Panel(
            Group(figures, *troubles, Text(), processes, Text(), Text(self._footer(), "dim")),
            title=f"{self._title}   {minutes}:{seconds:02}",
            title_align="left",
            border_style="red" if sample.lowest is not None and sample.lowest <= 0 else "green",
        )


def sparkline(values: Sequence[float]) -> str:
    """Return ``values`` as a row of bars, scaled from 0 to the largest; what is below 0 is shown as 0."""
    top = max(values, default=0.0)
    if top <= 0:
        return BARS[0] * len(values)
    return "".join(BARS[int(max(value, 0.0) / top * (len(BARS) - 1) + 0.5)] for value in values)


def _statuses(sample: Sample) -> Text:
    colours = {"active": "green", "connecting": "cyan", "needs_reauth": "red", "paused": "yellow"}
    shown = Text()
    for status, count in sorted(sample.statuses.items()):
        shown.append(f"{count:,} {status}   ", colours.get(status, "dim"))
    return shown


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _mood(sample: Sample) -> str:
    if sample.lowest is None or sample.lowest >= 30:
        return "green"
    return "yellow" if sample.lowest > 5 else "red"
