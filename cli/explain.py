"""Why an account stands where it stands, in sentences: what ``show``, ``history`` and refusals say.

Pure: the account carries the moment it was read at, by the database's clock.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from cli.output import counted, dated, duration, relative
from tokenfleet.account import EXPORTED
from tokenfleet.app_levels import AppLevel
from tokenfleet.policy import ROTATION_LOST, UNSETTLED
from tokenfleet.revoking import KEPT_FOR
from tokenfleet_client.contract import AccountStatus

if TYPE_CHECKING:
    from store.details import AccountDetail

BACK: Final = "An import of what that fleet has exported for this one brings it back (docs/leaving.md)."
"""What to do about an account that was exported."""


def why(account: AccountDetail) -> list[str]:
    """Return what anybody who looks at ``account`` should know, the most important first."""
    return [*_status(account), *_app(account), *_schedule(account), *_tokens(account)]


def standing(account: AccountDetail) -> list[str]:
    """Return what holds now whatever has happened: who asks next, and what the tokens still do."""
    return [*_ended(account), *_plan(account), *_tokens(account)]


def _ended(account: AccountDetail) -> Iterator[str]:
    match account.status:
        case AccountStatus.NEEDS_REAUTH:
            yield from _giving_up(account)
            yield from _doubted(account)
        case AccountStatus.REVOKED:
            yield from _revocation(account)
        case _:
            pass


def app_choice(account: AccountDetail) -> Iterator[str]:
    """Yield which registration ``account`` is refreshed with, and why that one."""
    app = account.app
    name = f"{account.provider}/{app.environment}/{app.name}"
    match app.level:
        case AppLevel.ACCOUNT:
            yield f"Its app is {name}: a client of its own."
        case _ if app.name != "default":
            yield f"Its app is {name}: its import named it."
        case AppLevel.ENVIRONMENT:
            yield f"Its app is {name}, that of its environment: it was imported without one of its own."
        case AppLevel.PLATFORM:
            yield f"Its app is {name}, that of the platform: its environment had none when it was imported."
    if app.more_specific is not None:
        yield (
            f"By now there is {account.provider}/{app.more_specific} for it, but a grant stays with the client that "
            "it was issued to: new tokens whose line names that app move the account."
        )


def only_new_tokens_help(account: AccountDetail) -> str:
    """Return the sentence that ends every attempt to bring back a dead grant by command."""
    since = relative(account.status_changed_at, account.database_now)
    return (
        f"it became {account.status.value} {since}{_because(account)}: only new tokens help, import them "
        "with 'tokenfleet accounts import' once the customer has signed in again"
    )


def _because(account: AccountDetail) -> str:
    return f" ({account.status_reason})" if account.status_reason else ""


def _revocation(account: AccountDetail) -> Iterator[str]:
    """How far the provider knows that the grant is ended."""
    token, schedule, now = account.token, account.schedule, account.database_now
    if token is None or not (token.has_access_token or token.has_refresh_token):
        yield "Its tokens are forgotten; its history says whether the provider has confirmed the revocation."
        return
    until = dated(account.status_changed_at + KEPT_FOR, now)
    told = f"; it said {schedule.last_error}" if schedule is not None and schedule.attempts else ""
    when = "as soon as nobody else asks about it"
    if schedule is not None and schedule.next_refresh_at is not None:
        when = f"at {dated(schedule.next_refresh_at, now)}"
    yield (
        f"The provider has not confirmed that yet{told}. It is asked {when}; the tokens are kept for that, sealed, "
        f"until {until} at most. 'tokenfleet accounts revoke {account.account_id} --local-only' forgets them now."
    )


def _giving_up(account: AccountDetail) -> Iterator[str]:
    if account.schedule is not None and account.schedule.next_refresh_at is not None:
        yield "An answer came in after that: the next refresh will show whether it is good."


def _doubted(account: AccountDetail) -> Iterator[str]:
    """A rejection that an incident has called into question."""
    if account.schedule is not None and account.schedule.incident_id is not None:
        number = account.schedule.incident_id
        yield (
            f"That was just before incident {number} was noticed: should it prove to have been one, the account is "
            f"asked again. 'tokenfleet incidents show {number}' says how it stands."
        )


def _status(account: AccountDetail) -> Iterator[str]:
    now = account.database_now
    since = dated(account.status_changed_at, now)
    match account.status:
        case AccountStatus.CONNECTING:
            yield f"Connecting since {since}: no refresh has succeeded yet."
        case AccountStatus.NEEDS_REAUTH if account.status_reason == ROTATION_LOST:
            yield (
                f"Since {since} the customer has to sign in again: the provider replaced the refresh token, "
                "and the answer that held the new one never reached us (rotation_lost)."
            )
            yield from _ended(account)
        case AccountStatus.NEEDS_REAUTH:
            yield (
                f"Since {since} the customer has to sign in again: the provider rejected the grant"
                f"{_because(account)}. Importing new tokens makes it active."
            )
            yield from _ended(account)
        case AccountStatus.PAUSED if (account.status_reason or "").startswith(EXPORTED):
            yield f"It was {account.status_reason} at {since}: another fleet has it now. {BACK}"
        case AccountStatus.PAUSED:
            yield (
                f"Paused by an operator since {since}{_because(account)}; 'tokenfleet accounts resume "
                f"{account.account_id}' ends that."
            )
        case AccountStatus.REVOKED:
            yield f"Ended deliberately at {since}{_because(account)}; new tokens would begin it anew."
            yield from _ended(account)
        case AccountStatus.ACTIVE:
            pass


def _app(account: AccountDetail) -> Iterator[str]:
    app, now = account.app, account.database_now
    name = f"{account.provider}/{app.environment}/{app.name}"
    if app.held_since is not None:
        yield (
            f"Its app {name} is on hold since {dated(app.held_since, now)}: the provider rejects the client "
            f"registration ({app.held_code}). 'tokenfleet apps set {account.provider} …' with the right "
            "credentials ends that."
        )
    if app.paused_until is not None and app.paused_until > now:
        yield f"The provider asked us to leave its app {name} alone until {dated(app.paused_until, now)}."


def _schedule(account: AccountDetail) -> Iterator[str]:
    schedule, now = account.schedule, account.database_now
    if account.status is AccountStatus.REVOKED:
        return
    if schedule is None:
        yield "It has no place on the schedule: its import did not finish. Import it again."
        return
    if schedule.quarantined:
        yield (
            f"In quarantine because of {schedule.last_error}: neither repetition nor the customer can mend that. "
            f"Mend it, then 'tokenfleet accounts refresh {account.account_id}'."
        )
    elif schedule.doubts and schedule.probing:
        yield (
            f"A suspect: {counted(schedule.doubts, 'probe')} in a row found its access token dead "
            f"({schedule.last_error}), which nothing renews. It is probed again; a third word like that counts."
        )
    elif schedule.doubts:
        yield (
            f"A suspect: repetition may not help with {schedule.last_error}. It is asked again twice, far apart, "
            "before it is put into quarantine; 'tokenfleet providers unknowns' lists answers that nobody has described."
        )
    if schedule.failing_since is not None and not (schedule.doubts and schedule.probing):
        yield (
            f"Refreshing fails since {dated(schedule.failing_since, now)}, "
            f"{counted(schedule.attempts, 'attempt')} in a row; the last one ended in {schedule.last_error}."
        )
    elif schedule.last_error == UNSETTLED:
        yield "Its last attempt was never heard of again: its worker died, was frozen, or lost Postgres."
    elif schedule.last_error is not None:
        yield f"The last attempt was put off ({schedule.last_error}); the account is not at fault."
    if schedule.unanswered:
        yield (
            f"{counted(schedule.unanswered, 'answer')} to its refresh token got lost: if the provider "
            "replaced it then, the next attempt will find the grant gone."
        )
    yield from _plan(account)


def _plan(account: AccountDetail) -> Iterator[str]:
    """When it is asked about next."""
    schedule, now = account.schedule, account.database_now
    if account.status is AccountStatus.REVOKED or schedule is None:
        return
    if schedule.claimed_until is not None and schedule.claimed_until > now:
        begun = schedule.started_epoch == schedule.claim_epoch
        who = "A worker is asking about it now" if begun else "It is on its way to a worker"
        yield f"{who}, attempt {account.account_id}-{schedule.claim_epoch}."
    elif schedule.next_refresh_at is not None:
        late = schedule.next_refresh_at <= now
        visit = "visit, which only probes whether its access token works," if schedule.probing else "refresh"
        yield (
            f"It is due since {dated(schedule.next_refresh_at, now)} and not claimed yet."
            if late
            else f"The next {visit} is due at {dated(schedule.next_refresh_at, now)}."
        )
    elif schedule.incident_id is not None and account.status is not AccountStatus.NEEDS_REAUTH:
        yield (
            f"Parked by incident {schedule.incident_id}: the provider rejected its grant ({schedule.last_error}), and "
            "those of more others than is believed. Nobody is told to sign in, and it is asked again when the "
            f"incident ends: 'tokenfleet incidents show {schedule.incident_id}'."
        )
    elif account.status in (AccountStatus.ACTIVE, AccountStatus.CONNECTING):
        yield "No refresh is planned for it: it has no refresh token, or its import did not finish."


def _tokens(account: AccountDetail) -> Iterator[str]:
    token, now = account.token, account.database_now
    if account.status is AccountStatus.REVOKED:
        return
    if token is None:
        yield "It holds no tokens."
        return
    if not token.has_access_token:
        yield "It holds no access token yet."
    elif token.expires_at is None:
        yield "Nobody knows when its access token expires."
    elif token.expires_at <= now:
        yield f"Its access token expired {duration(now - token.expires_at)} ago."
    else:
        yield f"Its access token works for another {duration(token.expires_at - now)}."
    if token.refresh_token_expires_at is not None:
        verb = "expires" if token.refresh_token_expires_at > now else "expired"
        yield f"Its refresh token {verb} at {dated(token.refresh_token_expires_at, now)}."
    if token.candidates:
        yield (
            f"{counted(token.candidates, 'late answer')} of the provider is kept beside its tokens, because "
            "newer ones were there already."
        )
