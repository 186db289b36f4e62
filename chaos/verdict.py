"""What a run proved: three witnesses held side by side, and every answer that is missing accounted for.

The authorization server's ledger says what was presented and what was answered. The processes' own witnesses
say which answers they held when they died. The database says what was saved, and what customers were told.

Pure: values in, a verdict out. The rule that everything rests on: an answer that nobody had saved when its
process died was taken by physics, and presenting its refresh token once more is all that anybody could do.
Whatever else is presented again is *presented twice*; whatever else is not in the database is *lost*; whoever
else has to sign in again has been *bothered for nothing*.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

PROMISED_SECONDS: Final = 30.0
"""G1: an active account's token always has at least so long to live."""
STORIES: Final = 8
ENOUGH_SECONDS: Final = 10.0
"""A row that had so long to itself must have been done at least once, ..."""
ENOUGH_REFRESHES: Final = 1_000
"""... if so much was going on meanwhile."""


@dataclass(slots=True)
class Presentation:
    """One request of one process. Moments are POSIX seconds."""

    account_id: int
    process: int
    """Which process, in the order of their starts."""
    at: float
    saved: float | None = None
    """When its answer was in the journal or in the database."""
    gone: float | None = None
    """When the process died, was frozen or was told by the network that there is no answer, with none saved."""
    refused: float | None = None
    """When it was answered without tokens: then it held nothing that could be saved or lost."""


@dataclass(frozen=True, slots=True)
class Window:
    """One row's time: what was done, and what the ledger counted meanwhile. Windows may overlap."""

    name: str
    title: str
    began: float
    ended: float
    injected: int
    refreshes: int


@dataclass(frozen=True, slots=True)
class Flip:
    """An account that was told to sign in again."""

    subject: str
    at: float
    reason: str
    story: str = ""


@dataclass(frozen=True, slots=True)
class Loss:
    """A refresh token of which something is to be said: ``at`` is when it was first presented.

    ``row`` is the row whose victim held it, None when no victim did; ``story`` tells who did what, for people.
    """

    subject: str
    at: float
    row: str | None = None
    story: str = ""


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything that is judged."""

    windows: Sequence[Window]
    refreshes: int
    """All of the run."""
    violations: Sequence[Loss]
    """Presentations that the ledger holds against us; ``at`` as of a loss."""
    strays: Sequence[Loss]
    """Active accounts whose tokens in the database are not the live ones; ``at`` is their last request's."""
    losses: Sequence[Loss]
    """Answers that physics took, as the ledger has them."""
    flips: Sequence[Flip]
    revocations: Sequence[tuple[str, float]]
    """Customers who ended their grants themselves, and when."""
    samples: Sequence[tuple[float, float | None]]
    """When a reader looked, and the shortest life it saw; None when it could not look."""
    ill_told: Sequence[str] = ()
    """Transitions without exactly one event, a sentence each."""
    unsettled: int = 0
    """Accounts about which the fleet had not finished when the run ended."""


@dataclass(slots=True)
class Row:
    """One line of the table."""

    name: str
    title: str
    injected: int
    refreshes: int
    presented_twice: int = 0
    lost: int = 0
    lost_by_physics: int = 0
    false_reauths: int = 0
    under_promise_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """The table, its sum, and every reason why the run failed."""

    rows: Sequence[Row]
    total: Row
    problems: Sequence[str] = ()
    stories: Sequence[str] = ()
    """What happened to some of those that make it fail."""

    @property
    def held(self) -> bool:
        """Whether every promise held."""
        return not self.problems


def taken_by_physics(presentations: Sequence[Presentation], *, held_against_us: bool) -> bool:
    """Answer whether the answers to one refresh token were gone each time that it was presented again.

    ``presentations`` are all of this token, in order of time. ``held_against_us`` says that the ledger has seen
    it presented after an answer that, for all it knows, arrived.
    """
    for number, later in enumerate(presentations):
        for earlier in presentations[:number]:
            if earlier.refused is not None and earlier.refused <= later.at:
                continue
            if earlier.saved is not None and earlier.saved <= later.at:
                return False
            if earlier.gone is None or earlier.gone > later.at:
                return False
    holders = [each for each in presentations if each.refused is None]
    if held_against_us:
        return len(presentations) > 1 and bool(holders)
    return bool(holders) and all(each.saved is None and each.gone is not None for each in holders)


def judge(evidence: Evidence) -> Verdict:
    """Return the table and what is wrong. The last window is the time without faults."""
    rows = {each.name: Row(each.name, each.title, each.injected, each.refreshes) for each in evidence.windows}

    def row_of(at: float, name: str | None = None) -> Row:
        if name in rows:
            return rows[name]
        begun = [window for window in evidence.windows if window.began <= at]
        return rows[max(begun or evidence.windows[:1], key=lambda window: window.began).name]

    for violation in evidence.violations:
        row_of(violation.at, violation.row).presented_twice += 1
    for stray in evidence.strays:
        row_of(stray.at, stray.row).lost += 1
    for loss in evidence.losses:
        row_of(loss.at, loss.row).lost_by_physics += 1
    false, unrecorded, misnamed = _match(evidence)
    for flip in false:
        row_of(flip.at).false_reauths += 1
    for window in evidence.windows:
        under = longest_under(evidence.samples, window.began, window.ended)
        rows[window.name].under_promise_seconds = under
    everything = list(rows.values())
    total = Row(
        "total",
        "all",
        sum(row.injected for row in everything),
        evidence.refreshes,
        sum(row.presented_twice for row in everything),
        sum(row.lost for row in everything),
        sum(row.lost_by_physics for row in everything),
        sum(row.false_reauths for row in everything),
        max((row.under_promise_seconds for row in everything), default=0.0),
    )
    stories = [loss.story for loss in (*evidence.violations, *evidence.strays) if loss.story]
    stories += [f"{flip.subject}: told to sign in again ({flip.reason}){flip.story}" for flip in false]
    stories += [loss.story for loss in unrecorded if loss.story]
    stories += [f"{flip.subject}: a loss recorded as {flip.reason}{flip.story}" for flip in misnamed]
    problems = tuple(_problems(evidence, total, unrecorded))
    return Verdict(everything, total, problems, tuple(stories[:STORIES]))


def longest_under(samples: Iterable[tuple[float, float | None]], began: float, ended: float) -> float:
    """Return the longest time within the window in which a reader saw less life than is promised, in seconds.

    Moments at which nobody could look count as the ones before them.
    """
    longest, since, was_under = 0.0, began, False
    for at, lowest in samples:
        is_under = was_under if lowest is None else lowest < PROMISED_SECONDS
        if is_under and not was_under:
            since = at
        was_under = is_under
        if is_under and began <= at <= ended:
            longest = max(longest, at - max(since, began))
    return longest


def _match(evidence: Evidence) -> tuple[list[Flip], list[Loss], list[Flip]]:
    """Return the flips that nothing explains, the losses that no flip recorded, and those recorded as something else.

    Each loss explains one later flip of its customer, and so does each revocation. A customer's revocation may
    hide a loss of the same grant, so theirs are not missed.
    """
    causes: dict[str, list[tuple[float, Loss | None]]] = defaultdict(list)
    for loss in evidence.losses:
        causes[loss.subject].append((loss.at, loss))
    for subject, at in evidence.revocations:
        causes[subject].append((at, None))
    for each in causes.values():
        each.sort(key=lambda cause: cause[0])
    false: list[Flip] = []
    misnamed: list[Flip] = []
    leavers = {subject for subject, _ in evidence.revocations}
    for flip in sorted(evidence.flips, key=lambda each: each.at):
        waiting = causes.get(flip.subject, [])
        if waiting and waiting[0][0] <= flip.at:
            waiting.pop(0)
            if flip.reason != "rotation_lost" and flip.subject not in leavers:
                misnamed.append(flip)
        else:
            false.append(flip)
    unrecorded = [
        loss
        for subject, waiting in causes.items()
        for _, loss in waiting
        if loss is not None and subject not in leavers
    ]
    return false, unrecorded, misnamed


def _problems(evidence: Evidence, total: Row, unrecorded: Sequence[Loss]) -> Iterable[str]:
    for count, one, many, what in (
        (total.presented_twice, "refresh token was", "refresh tokens were", "presented twice"),
        (total.lost, "account does", "accounts do", "not hold what the provider would accept"),
        (total.false_reauths, "customer was", "customers were", "asked to sign in again for nothing"),
        (evidence.unsettled, "account was", "accounts were", "not settled when the run ended"),
    ):
        if count:
            yield f"{counted(count, one, many)} {what}"
    leavers = {subject for subject, _ in evidence.revocations}
    ledger = sum(loss.subject not in leavers for loss in evidence.losses)
    fleet = sum(flip.subject not in leavers and flip.reason == "rotation_lost" for flip in evidence.flips)
    if ledger != fleet or unrecorded:
        yield (
            f"lost by physics: the ledger counts {ledger}, the fleet recorded {fleet} as rotation_lost"
            f"{_names(unrecorded)}"
        )
    yield from evidence.ill_told
    yield from _too_little(evidence)


def _too_little(evidence: Evidence) -> Iterable[str]:
    """Yield why the run proves nothing. The last window is the time without faults."""
    faults = evidence.windows[:-1]
    if not any(window.injected for window in faults):
        yield "too little happened: no fault was done; give it more --seconds or --accounts"
        return
    if not evidence.refreshes:
        yield "too little happened: no token was refreshed"
    beside = Counter((window.began, window.ended) for window in faults)
    for window in faults:
        # Rows that are performed side by side share the machine, and in a short run one goes without by chance.
        seconds = (window.ended - window.began) / beside[window.began, window.ended]
        if not window.injected and seconds >= ENOUGH_SECONDS and window.refreshes >= ENOUGH_REFRESHES:
            yield f"too little happened: {window.name} was not done once in {seconds:.0f} s"


def counted(number: int, one: str, many: str) -> str:
    """Return the number with its noun, or with what it does."""
    return f"{number:,} {one if number == 1 else many}"


def _names(losses: Sequence[Loss]) -> str:
    if not losses:
        return ""
    return f"; not recorded: {', '.join(sorted({loss.subject for loss in losses})[:10])}"


def ill_told(due: Mapping[tuple[str, str], int], told: Mapping[tuple[str, str], int]) -> list[str]:
    """Return a sentence for each customer and event type whose events are not as many as the transitions.

    Both map (subject, event type) to a count: ``due`` of transitions in the history, ``told`` of rows in the
    outbox.
    """
    differences = Counter(due)
    differences.subtract(told)
    return [
        f"{subject}: {counted(told.get((subject, event), 0), 'event', 'events')} {event} "
        f"for {counted(due.get((subject, event), 0), 'transition', 'transitions')}"
        for (subject, event), difference in sorted(differences.items())
        if difference
    ]
