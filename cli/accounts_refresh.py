"""Asking for a refresh, and waiting until the new tokens are in."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from cli.account_prospects import elsewhere
from cli.account_results import Outcome, Result
from cli.explain import only_new_tokens_help
from cli.output import moment, progress
from cli.references import Reference
from store import queries, schedule
from tokenfleet.account import EXPORTED, REFRESHABLE
from tokenfleet.jobs import AccountId
from tokenfleet.lifetimes import refresh_opens
from tokenfleet_client.contract import AccountStatus

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy import Connection, Engine

    from providers import Registry
    from store.details import AccountDetail
    from store.queries import Progress

BATCH: Final = 1000
"""Accounts looked at in one statement."""
POLL_SECONDS: Final = 0.2


class RefreshRequest:
    """Requests for any number of accounts, and the generation each of them had before."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._generations: dict[AccountId, int] = {}

    def make(self, connection: Connection, found: dict[Reference, AccountDetail]) -> list[Result]:
        """Make accounts due now; says of each whether that was possible, and what stands in the way."""
        for account in found.values():
            if account.status in REFRESHABLE and account.token is not None:
                # Read before the request: tokens that come in at once count as its answer.
                self._generations.setdefault(account.account_id, account.token.generation)
        # Nobody is asked before the provider allows it, and the operator hears when that will be.
        opens = {account.account_id: self._opens(account) for account in found.values()}
        wanted = [
            account.account_id
            for account in found.values()
            if account.status in REFRESHABLE
            and opens[account.account_id] is None
            and not self._is_left_alone(account)
        ]
        requested = set(schedule.request_refresh(connection, sorted(wanted)))
        return [
            self._accepted(reference, account)
            if account.account_id in requested
            else Result(
                reference.text,
                account.account_id,
                Outcome.REFUSED,
                _left_alone(account)
                if account.status in REFRESHABLE and self._is_left_alone(account)
                else _refusal(account, opens[account.account_id]),
            )
            for reference, account in found.items()
        ]

    def _accepted(self, reference: Reference, account: AccountDetail) -> Result:
        if account.provider not in self._registry or self._registry.get(account.provider).renews:
            return Result(reference.text, account.account_id, Outcome.REQUESTED, _prospect(account))
        message = (
            f"access tokens of {account.provider} are never renewed: this one is tried out now, and 'tokenfleet "
            f"accounts show {account.account_id}' says what came of it"
        )
        return Result(reference.text, account.account_id, Outcome.PROBING, message)

    def _is_left_alone(self, account: AccountDetail) -> bool:
        """Answer whether there is nothing to ask about: no renewal, and no probe."""
        if account.provider not in self._registry:
            return False
        lifetimes = self._registry.get(account.provider).lifetimes
        return not lifetimes.renews and lifetimes.probe_every is None

    def _opens(self, account: AccountDetail) -> datetime | None:
        """Return when the provider will allow a refresh that it would refuse now, None when it is allowed."""
        if (
            account.provider not in self._registry
            or account.token is None
            or not account.token.has_access_token
        ):
            return None
        if account.schedule is not None and account.schedule.attempts:
            # A probe found the token dead, and its refresh is tried until it succeeds.
            return None
        token, lifetimes = account.token, self._registry.get(account.provider).lifetimes
        opens = refresh_opens(token.obtained_at, token.expires_at, lifetimes)
        return opens if opens is not None and opens > account.database_now else None

    def wait(self, engine: Engine, results: Sequence[Result], *, deadline: float) -> list[Result]:
        """Return ``results`` as they are when all tokens are in, or at ``deadline`` (monotonic clock)."""
        waiting = {
            result.account_id: result
            for result in results
            if result.outcome is Outcome.REQUESTED and result.account_id is not None
        }
        ended: dict[AccountId, Result] = {}
        with progress("Refreshing", total=len(waiting)) as advance:
            while waiting:
                # Looked at once more after the deadline, so that nothing that is in goes unseen.
                last_look = time.monotonic() >= deadline
                now = _progress(engine, list(waiting))
                for account_id, result in list(waiting.items()):
                    before = self._generations.get(account_id, 0)
                    if (end := _end(result, before, now.get(account_id))) is not None:
                        ended[account_id] = end
                        del waiting[account_id]
                        advance(1)
                if last_look:
                    ended |= {each: _unanswered(result, now[each]) for each, result in waiting.items()}
                    break
                if waiting:
                    time.sleep(POLL_SECONDS)
        return [
            replace(ended[result.account_id], account=result.account)
            if result.account_id in ended
            else result
            for result in results
        ]


def _prospect(account: AccountDetail) -> str:
    """Return what is to be expected of a request that was accepted."""
    app, now = account.app, account.database_now
    if app.held_since is not None:
        return (
            f"requested, but its app is on hold ({app.held_code}): nobody is asked until "
            f"'tokenfleet apps set {account.provider} …' mends the registration"
        )
    if app.paused_until is not None and app.paused_until > now:
        return f"requested, but the provider asked us to wait until {moment(app.paused_until)}"
    return "requested"


def _left_alone(account: AccountDetail) -> str:
    return (
        f"access tokens of {account.provider} are never renewed, and its definition has no probe: there is nothing to "
        "ask. A new token comes by an import"
    )


def _refusal(account: AccountDetail, opens: datetime | None) -> str:
    if opens is not None and account.status in REFRESHABLE:
        return (
            f"{account.provider} refuses a refresh before {moment(opens)}, while the access token is young: "
            "it is refreshed in time by itself"
        )
    schedule = account.schedule
    if schedule is not None and schedule.incident_id is not None and account.status in REFRESHABLE:
        return (
            f"incident {schedule.incident_id} has parked it, and it is asked again when that ends: "
            f"'tokenfleet incidents show {schedule.incident_id}' says what you can do"
        )
    match account.status:
        case AccountStatus.PAUSED if (account.status_reason or "").startswith(EXPORTED):
            return elsewhere(account)
        case AccountStatus.PAUSED:
            return f"it is paused: 'tokenfleet accounts resume {account.account_id}' refreshes it"
        case AccountStatus.NEEDS_REAUTH | AccountStatus.REVOKED:
            return only_new_tokens_help(account)
        case _:
            return "no refresh is planned for it, because it has no refresh token: import it with one"


def _progress(engine: Engine, ids: Sequence[AccountId]) -> Mapping[AccountId, Progress]:
    found: dict[AccountId, Progress] = {}
    with engine.connect() as connection:
        for start in range(0, len(ids), BATCH):
            found |= queries.progress(connection, ids[start : start + BATCH])
    return found


def _end(result: Result, before: int, now: Progress | None) -> Result | None:
    """Return how one account's refresh ended, None while it goes on."""
    if now is None:
        return replace(result, outcome=Outcome.NOT_FOUND, message="it was removed meanwhile")
    if now.generation > before:
        expiry = f", its access token expires at {moment(now.expires_at)}" if now.expires_at else ""
        return replace(
            result, outcome=Outcome.REFRESHED, message=f"refreshed: generation {now.generation}{expiry}"
        )
    if now.status not in REFRESHABLE:
        message = f"it became {now.status.value}: 'tokenfleet accounts history {now.account_id}' says why"
        return replace(result, outcome=Outcome.REFUSED, message=message)
    return None


def _unanswered(result: Result, now: Progress) -> Result:
    reason = f"; the last attempt ended in {now.last_error}" if now.last_error else ""
    message = f"{result.message}; no new tokens in the time given{reason}"
    return replace(result, outcome=Outcome.WAITING, message=message)
