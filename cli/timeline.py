"""The timeline of one account: a line for each thing that happened, and what tells the same folded into one. Pure.

Promise: nothing is left out. A line that stands for many says how many of what, over which span, and how long they
took; what changed the account's status, and what people did, always has a line of its own. The fewer lines there is
room for, the more is folded: first neighbours that tell the same, then neighbours that all failed, or all succeeded,
whatever the code; then all attempts but the newest few.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import Enum, auto
from typing import TYPE_CHECKING, Final

from cli.output import clipped, duration, plain
from cli.story import GOOD, delivery_text, is_failure, who

if TYPE_CHECKING:
    from store.details import AccountDetail
    from store.history import HistoryRow
    from store.story import Story

NEWEST: Final = 5
"""So many lines are never folded with attempts that ended otherwise: what is happening now."""
KINDS: Final = 3
"""So many ways to end are named in one line, the others counted."""
DETAIL_CHARACTERS: Final = 160
_IN_HISTORY: Final = frozenset({"accounts.pause", "accounts.resume", "accounts.revoke"})
"""Actions that the history of the account tells as well."""


class Sort(Enum):
    """What may be folded with what."""

    SUCCESS = auto()
    FAILURE = auto()
    DEED = auto()
    """Whatever is no attempt: never folded with another one."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the timeline, or a run of neighbours; ``at``, ``attempt`` and ``job`` are those of the newest."""

    at: datetime
    what: str
    code: str = ""
    status: str = ""
    by: str = ""
    attempt: str = ""
    job: str = ""
    detail: str = ""
    fastest: int | None = None
    slowest: int | None = None
    sort: Sort = Sort.DEED
    count: int = 1
    oldest: datetime | None = None
    mixed: tuple[tuple[str, int], ...] = ()
    """What the run is made of and how often, when that is not one thing."""

    @property
    def name(self) -> str:
        """What happened, with its code."""
        return f"{self.what} ({self.code})" if self.code else self.what

    @property
    def tells(self) -> tuple[str, ...]:
        """What two lines have in common that are one run."""
        return self.what, self.code, self.status, self.detail

    @property
    def told(self) -> str:
        """The line in words."""
        times = f" in {duration(self.at - self.oldest)}" if self.oldest else ""
        if self.mixed:
            named = [f"{name} x{count:,}" for name, count in self.mixed[:KINDS]]
            if left := sum(count for _, count in self.mixed[KINDS:]):
                named.append(f"others x{left:,}")
            return f"{', '.join(named)}{times}"
        by = f"by {self.by}" if self.by.startswith("operator ") else ""
        many = f" x{self.count:,}{times}" if self.oldest else ""
        return ", ".join(filter(None, (f"{self.name}{many}", self.status, by, self.detail)))

    @property
    def took(self) -> str:
        """How long the provider took, in milliseconds."""
        if self.fastest is None or self.slowest is None:
            return ""
        if self.fastest == self.slowest:
            return f"{self.fastest:,} ms"
        return f"{self.fastest:,} to {self.slowest:,} ms"


def timeline(account: AccountDetail, story: Story, *, room: int | None) -> list[Line]:
    """Return what happened to ``account``, newest first; folded further when it has more than ``room`` lines."""
    lines = sorted(_lines(account, story), key=lambda line: line.at, reverse=True)
    lines = list(_folded(lines, lambda run, line: run.tells == line.tells and not run.mixed))
    if room is not None and len(lines) > room:
        lines = list(_folded(lines, lambda run, line: run.sort is line.sort is not Sort.DEED))
    if room is not None and len(lines) > room:
        older = _folded(lines[NEWEST:], lambda run, line: Sort.DEED not in (run.sort, line.sort))
        lines = [*lines[:NEWEST], *older]
    return lines


def _lines(account: AccountDetail, story: Story) -> Iterator[Line]:
    for row in story.history:
        yield Line(
            row.at,
            row.kind,
            row.code or "",
            f"{row.status_from or ''} → {row.status_to}".strip() if row.status_to else "",
            who(row.actor),
            "" if row.epoch is None else f"{account.account_id}-{row.epoch}",
            "" if row.job_id is None else str(row.job_id)[:8],
            _details_text(row),
            row.duration_ms,
            row.duration_ms,
            Sort.SUCCESS if row.kind in GOOD else Sort.FAILURE if is_failure(row) else Sort.DEED,
        )
    begin = story.history[-1].at if story.history else None
    for action in (*story.actions, *story.app_actions):
        # The log is kept for longer than history.
        if action.action not in _IN_HISTORY or begin is None or action.at < begin:
            yield Line(action.at, action.action, by=who(action.actor), detail=_reason(action.reason))
    for incident in story.incidents:
        name = f"incident {incident.incident_id}"
        yield Line(incident.opened_at, f"{name} opened", incident.code, detail=incident.kind.value)
        if incident.resolved_at is not None and incident.resolution is not None:
            yield Line(
                incident.resolved_at,
                f"{name} {incident.resolution.value}",
                by=who(incident.actor or ""),
                detail=_reason(incident.reason),
            )
    for told in story.told:
        # Told of in the transaction of what it is about, which has begun before: it stands above that.
        at = told.at + timedelta(seconds=1) if told.finished_at is None else told.finished_at
        yield Line(at, f"told {told.event_type.partition(':')[2]}", detail=delivery_text(told))


def _reason(reason: str | None) -> str:
    return f"reason: {clipped(reason, DETAIL_CHARACTERS)}" if reason else ""


def _details_text(row: HistoryRow) -> str:
    told = {key: value for key, value in sorted((row.detail or {}).items()) if value != row.code}
    return clipped(", ".join(f"{key}: {plain(value)}" for key, value in told.items()), DETAIL_CHARACTERS)


def _folded(lines: Sequence[Line], are_one: Callable[[Line, Line], bool]) -> Iterator[Line]:
    """Yield ``lines``, newest first, neighbours that are one run as one line."""
    run: list[Line] = []
    for line in lines:
        if run and not are_one(run[0], line):
            yield _one(run)
            run = []
        run.append(line)
    if run:
        yield _one(run)


def _one(run: Sequence[Line]) -> Line:
    """Return the line for ``run``, newest first."""
    if len(run) == 1:
        return run[0]
    parts: Counter[str] = Counter()
    for line in run:
        parts.update(dict(line.mixed) or {line.name: line.count})
    times = [each for line in run for each in (line.fastest, line.slowest) if each is not None]
    return replace(
        run[0],
        count=sum(line.count for line in run),
        oldest=run[-1].oldest or run[-1].at,
        fastest=min(times, default=None),
        slowest=max(times, default=None),
        mixed=tuple(parts.most_common()) if len(parts) > 1 else (),
    )
