"""The answer to "why did this stop working, when, and what did the provider say": pure, from rows that were read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, takewhile
from typing import TYPE_CHECKING, Final

from cli.explain import BACK
from cli.output import clipped, counted, dated, duration
from tokenfleet.account import EXPORTED
from tokenfleet.policy import ROTATION_LOST
from tokenfleet_client.contract import AccountStatus

if TYPE_CHECKING:
    from datetime import datetime

    from store.details import AccountDetail
    from store.history import HistoryRow
    from store.story import Story, Told

Meaning = Callable[[str], "str | None"]
"""Returns what a code says at the account's provider."""

SUCCEEDED: Final = frozenset({"refresh.succeeded", "probe.alive", "refresh.candidate_promoted"})
GOOD: Final = SUCCEEDED | {"steps.begun"}
"""What a refresh leaves that goes well: one of several requests has more than one row."""
_LATE: Final = frozenset({"refresh.lost_race", "refresh.dropped"})
"""Good answers that came when there was a newer one, or nothing to keep them for."""
_FAILED: Final = frozenset({"probe.dead", "probe.unclear"})
_DEEDS: Final = {
    "account.paused": "paused it",
    "account.resumed": "resumed it",
    "account.revoked": "revoked it",
    "account.imported": "imported tokens for it",
    "account.reconnected": "imported new tokens for it",
    "account.described": "changed its description",
    "account.exported": "exported its tokens",
    "accounts.refresh": "asked for a refresh",
    "apps.set": "replaced its app's registration",
}
NEAR_SECONDS: Final = 60
REASON_CHARACTERS: Final = 160
DELIVERIES: Final = 4
"""What became of so many deliveries is told, of the others below."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer in parts; an empty part has nothing to say. ``code`` is what the provider, or our worker, said."""

    what: str
    code: str | None = None
    means: str = ""
    before: str = ""
    others: str = ""
    told: str = ""
    to_do: str = ""


def answer(account: AccountDetail, story: Story, meaning: Meaning) -> Answer:
    """Return why ``account`` stands where it stands."""
    # Whoever counts successes counts refreshes, not their requests.
    story = replace(story, history=[row for row in story.history if row.kind != "steps.begun"])
    cause = _cause(account, story.history)
    code = _code(account, cause)
    return Answer(
        what=_what(account, story, cause, code),
        code=code,
        means=_sentence((meaning(code) or "nobody has described this code") if code else ""),
        before=_sentence("; ".join(_before(account, story, cause))),
        others=_sentence("; ".join(_others(account, story, cause))),
        told="; ".join(_told(story, cause)),
        to_do=_to_do(account, code),
    )


def is_failure(row: HistoryRow) -> bool:
    """Answer whether ``row`` tells of an attempt that brought nothing."""
    return row.kind in _FAILED or (row.kind.startswith("refresh.") and row.kind not in SUCCEEDED | _LATE)


def who(actor: str) -> str:
    """Return how people call whoever did something."""
    kind, _, name = actor.partition(":")
    return f"operator {name}" if kind == "operator" else actor


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:].rstrip('.')}." if text else ""


def _cause(account: AccountDetail, rows: Sequence[HistoryRow]) -> HistoryRow | None:
    """Return the row that put the account where it stands; for one that fails, the first failure of those."""
    if account.status not in (AccountStatus.ACTIVE, AccountStatus.CONNECTING):
        return next((row for row in rows if row.status_to == account.status.value), None)
    recent = takewhile(lambda row: row.kind not in SUCCEEDED, rows)
    failures = [row for row in recent if is_failure(row)]
    return failures[-1] if failures and _is_in_trouble(account) else None


def _is_in_trouble(account: AccountDetail) -> bool:
    schedule = account.schedule
    return schedule is not None and (schedule.failing_since is not None or schedule.incident_id is not None)


def _code(account: AccountDetail, cause: HistoryRow | None) -> str | None:
    if account.status is AccountStatus.NEEDS_REAUTH:
        return cause.code if cause is not None and cause.code else account.status_reason
    if account.status in (AccountStatus.PAUSED, AccountStatus.REVOKED):
        return None
    if account.app.held_code is not None:
        return account.app.held_code
    return account.schedule.last_error if account.schedule is not None else None


def _what(account: AccountDetail, story: Story, cause: HistoryRow | None, code: str | None) -> str:
    now = account.database_now
    at = dated(account.status_changed_at, now)
    said = f": {code}" if code else ""
    match account.status:
        case AccountStatus.NEEDS_REAUTH if account.status_reason == ROTATION_LOST:
            return (
                f"It stopped at {at}: {account.provider} had replaced the refresh token in an answer that never "
                f"reached us, and rejected the old one{f' ({code})' if code else ''}."
            )
        case AccountStatus.NEEDS_REAUTH:
            return f"It stopped at {at}: {account.provider} rejected the grant{said}."
        case AccountStatus.PAUSED | AccountStatus.REVOKED:
            by = _by(account, story, cause)
            reason = clipped(account.status_reason or "", REASON_CHARACTERS)
            why = f': "{reason}"' if reason else ""
            return f"{by[0].upper()}{by[1:]} {account.status.value} it at {at}{why}."
        case _:
            return _running(account, story, cause)


def _by(account: AccountDetail, story: Story, cause: HistoryRow | None) -> str:
    """Return who paused or revoked it: the audit log knows when history is no longer kept."""
    if cause is not None:
        return who(cause.actor)
    deed = "accounts.pause" if account.status is AccountStatus.PAUSED else "accounts.revoke"
    return next((who(each.actor) for each in story.actions if each.action == deed), "an operator")


def _running(account: AccountDetail, story: Story, cause: HistoryRow | None) -> str:
    now, schedule, app = account.database_now, account.schedule, account.app
    if app.held_since is not None:
        return (
            f"{account.provider} rejects our client itself since {dated(app.held_since, now)} ({app.held_code}): "
            "nobody of its app is asked about, and this account is not at fault."
        )
    if schedule is not None and schedule.incident_id is not None:
        return (
            f"{account.provider} rejected its grant{f' at {dated(cause.at, now)}' if cause else ''} "
            f"({schedule.last_error}), and those of more others than is believed: incident {schedule.incident_id} has "
            "set it apart, and nobody is told to sign in."
        )
    last = next((row for row in story.history if row.kind in SUCCEEDED), None)
    success = f"; the last success was at {dated(last.at, now)}" if last else ""
    if schedule is not None and schedule.failing_since is not None:
        state = "It is in quarantine, failing" if schedule.quarantined else "It fails"
        return (
            f"{state} since {dated(schedule.failing_since, now)}: {counted(schedule.attempts, 'attempt')} in a row, "
            f"the last of which ended in {schedule.last_error}{success}."
        )
    if account.status is AccountStatus.CONNECTING:
        return "It has not worked yet: no refresh has succeeded so far."
    works = f"It works{success}."
    if schedule is not None and schedule.last_error is not None:
        return f"{works} Its last attempt was put off ({schedule.last_error}), for which it is not at fault."
    trouble = _last_trouble(account, story.history)
    return f"{works} {trouble}" if trouble else works


def _last_trouble(account: AccountDetail, rows: Sequence[HistoryRow]) -> str:
    """Return what was wrong the last time, of an account that works."""
    now = account.database_now
    back_at = next((at for at, row in enumerate(rows) if row.status_from and row.status_to == "active"), None)
    failed = next((at for at, row in enumerate(rows) if is_failure(row)), None)
    if (
        back_at is not None
        and rows[back_at].status_from != "connecting"
        and (failed is None or back_at < failed)
    ):
        back = rows[back_at]
        began = next((row for row in rows[back_at:] if row.status_to == back.status_from), None)
        since = f" from {dated(began.at, now)}" if began else ""
        why = f" ({began.code})" if began and began.code else ""
        deed = _DEEDS.get(back.kind)
        how = f", when {who(back.actor)} {deed}" if deed and back.actor.startswith("operator:") else ""
        return f"It was {back.status_from}{why}{since} to {dated(back.at, now)}{how}."
    if failed is None:
        return ""
    stretch = list(takewhile(lambda row: row.kind not in SUCCEEDED, rows[failed:]))
    failures = [row for row in stretch if is_failure(row)]
    begin, end = dated(failures[-1].at, now), dated(rows[failed].at, now)
    when = f"at {end}" if len(failures) == 1 else f"between {begin} and {end}"
    return f"The last trouble: {', '.join(_kinds(failures))}, {when}."


def _kinds(failures: Sequence[HistoryRow]) -> Iterator[str]:
    """Yield ``2 attempts ended in http_503``, in the order of time."""
    for code, run in groupby(reversed(failures), key=lambda row: row.code or row.kind):
        yield f"{counted(len(list(run)), 'attempt')} ended in {code}"


def _before(account: AccountDetail, story: Story, cause: HistoryRow | None) -> Iterator[str]:
    """What had happened just before the cause: success, failures in between, what operators did meanwhile."""
    if cause is None:
        return
    older = [row for row in story.history if row.at < cause.at]
    between = list(takewhile(lambda row: row.kind not in SUCCEEDED, older))
    good = list(takewhile(lambda row: row.kind in SUCCEEDED, older[len(between) :]))
    if good:
        span = duration(cause.at - good[0].at)
        at_least = "" if story.is_whole or len(between) + len(good) < len(older) else "at least "
        many = f"{at_least}{counted(len(good), 'success').replace('successs', 'successes')} in a row"
        yield f"{many}, the last one {span} before"
    elif story.is_whole:
        yield "it had never succeeded before, as far as history goes back"
    failures = [row for row in between if is_failure(row)]
    if failures:
        yield "then " + ", ".join(_kinds(failures))
    since = good[0].at if good else None
    for at, actor, kind, reason in sorted(_deeds(story)):
        if at < cause.at and (since is None or at > since):
            why = f' ("{clipped(reason, REASON_CHARACTERS)}")' if reason else ""
            yield f"{who(actor)} {_DEEDS[kind]} {duration(cause.at - at)} before{why}"


def _deeds(story: Story) -> Iterator[tuple[datetime, str, str, str]]:
    for row in story.history:
        if row.kind in _DEEDS and row.actor.startswith("operator:"):
            yield row.at, row.actor, row.kind, str((row.detail or {}).get("reason", ""))
    for each in (*story.actions, *story.app_actions):
        if each.action in _DEEDS:
            yield each.at, each.actor, each.action, each.reason or ""


def _others(account: AccountDetail, story: Story, cause: HistoryRow | None) -> Iterator[str]:
    if story.beside is not None:
        yield (
            f"{counted(story.beside, 'other account')} of its app lost the grant within 10 minutes of it"
            if story.beside
            else "no other account of its app lost its grant within 10 minutes of it: this is about this customer"
        )
    for each in story.incidents:
        open_then = cause is not None and each.opened_at <= cause.at
        if each.resolved_at is None:
            yield f"incident {each.incident_id} ({each.kind.value}, {each.code}) of its app is open"
        elif open_then and cause is not None and cause.at <= each.resolved_at:
            yield f"incident {each.incident_id} ({each.kind.value}, {each.code}) of its app was open then"


def _told(story: Story, cause: HistoryRow | None) -> Iterator[str]:
    """Who was told of the cause."""
    if cause is None:
        return
    near = [each for each in story.told if (each.at - cause.at).total_seconds() >= -NEAR_SECONDS]
    # Those who do not have it first: there may be many endpoints.
    near.sort(key=lambda each: (each.state == "delivered", each.at))
    for each in near[:DELIVERIES]:
        yield f"{each.event_type.partition(':')[2]}: {delivery_text(each)}"
    if len(near) > DELIVERIES:
        yield f"{len(near) - DELIVERIES} more, below"


def delivery_text(told: Told) -> str:
    """Return what became of one event at one endpoint."""
    if told.endpoint_id is None:
        return (
            "no endpoint asks for it"
            if told.is_relayed
            else "not sent yet: a scheduler hands it to the endpoints"
        )
    answered = f"answered {told.last_status}" if told.last_status is not None else told.last_error or ""
    match told.state:
        case "delivered" if told.finished_at is not None:
            return f"endpoint {told.endpoint_id} had it after {duration(told.finished_at - told.at)}"
        case "pending":
            tries = f" after {counted(told.attempts or 0, 'attempt')}, {answered}" if told.attempts else ""
            return f"endpoint {told.endpoint_id} does not have it yet{tries}"
        case _:
            tries = counted(told.attempts or 0, "attempt")
            return f"endpoint {told.endpoint_id} never took it: {tries}, the last {answered}"


def _to_do(account: AccountDetail, code: str | None) -> str:
    schedule, number = account.schedule, account.account_id
    match account.status:
        case AccountStatus.NEEDS_REAUTH:
            return "The customer has to sign in again; 'tokenfleet accounts import' with new tokens makes it active."
        case AccountStatus.PAUSED if (account.status_reason or "").startswith(EXPORTED):
            return BACK
        case AccountStatus.PAUSED:
            return f"'tokenfleet accounts resume {number}' ends that."
        case AccountStatus.REVOKED:
            return "Nothing, if that was meant. A new sign-in and an import of its tokens begin it anew."
        case _ if account.app.held_since is not None:
            return (
                f"Mend the registration: 'tokenfleet apps set {account.provider} …'. The rest goes by itself."
            )
        case _ if schedule is None:
            return "Import it again: its import did not finish."
        case _ if schedule.incident_id is not None:
            return f"Find out whether the rejections are real: 'tokenfleet incidents show {schedule.incident_id}'."
        case _ if schedule.quarantined:
            return f"Mend what {code} says, then 'tokenfleet accounts refresh {number}'."
        case _ if schedule.failing_since is not None:
            return "Nothing yet: it is asked again by itself, and nobody was told to sign in."
        case _:
            return ""
