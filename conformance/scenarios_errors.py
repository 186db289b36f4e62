"""Scenarios about errors: what the provider says, or a machine in front of it, and what section 5 makes of it."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from email.utils import format_datetime
from typing import Final

from conformance.account import Attempted
from conformance.meanings import (
    ErrorAnswer,
    by_truth,
    contested,
    every_error,
    meaning,
    saying,
    silent_rules,
    undescribed,
)
from conformance.stage import FIREWALL_PAGE, Reaction, Reply, error_reply
from conformance.trial import TOLERANCE, Trial
from tokenfleet.policy import PauseApp, Quarantine, RetryLater, Save

WAIT: Final = timedelta(seconds=120)
LONGEST_PAUSE: Final = timedelta(minutes=15)
DOUBTS: Final = 2
"""So many tries before anybody is told of an error that nobody has described."""


async def revoked_grant(trial: Trial) -> None:
    """A grant that the provider has ended is told to the customer at once, once, and nothing else changes."""
    answer = saying(trial.truth, "grant_rejected")
    trial.applies(answer, "no answer of this provider means that a grant is gone")
    assert answer is not None
    held = trial.account.tokens
    trial.stage.chain.revoked = True
    attempted = await trial.renew()
    trial.expect(trial.stage.denials, "the provider to have refused", "an answer", ("refresh",))
    trial.expect_decided(attempted, answer, held)
    trial.expect(trial.stage.requests == 1, "one request", f"{trial.stage.requests}", ("errors",))


async def client_rejected(trial: Trial) -> None:
    """A client that the provider does not accept holds the app, and no customer is bothered."""
    answer = saying(trial.truth, "client_rejected")
    trial.applies(answer, "no answer of this provider means that it rejects the client")
    assert answer is not None
    await _play(trial, answer)
    await _expect_recovery(trial)


async def throttled(trial: Trial) -> None:
    """Who asks too often waits as long as the provider says, in seconds or until a date, and for a while if it does
    not say."""
    answer = saying(trial.truth, "throttled")
    trial.applies(answer, "no answer of this provider means that it throttles")
    assert answer is not None
    for headers in ({"Retry-After": "120"}, None, {}):
        moment = (trial.now + timedelta(seconds=60) + WAIT).replace(microsecond=0)
        given = {"Retry-After": format_datetime(moment, usegmt=True)} if headers is None else headers
        attempted = await _play(trial, answer, given)
        decision = attempted.decision
        if isinstance(decision, PauseApp):
            waits_until = decision.until
        else:
            assert isinstance(decision, RetryLater)
            waits_until = decision.at
        wait = waits_until - attempted.at
        where = () if answer.rule is None else ("errors", answer.rule)
        got = f"a wait of {wait.total_seconds():.0f} s"
        if headers:
            trial.expect(
                abs(wait - WAIT) <= TOLERANCE, "the wait that Retry-After asks for, 120 s", got, where
            )
        elif headers is None:
            off = abs(waits_until - moment)
            trial.expect(
                off <= TOLERANCE, f"a wait until the date in Retry-After ({moment:%H:%M:%S})", got, where
            )
        else:
            trial.expect(
                timedelta(0) < wait <= LONGEST_PAUSE, "a pause of some seconds or minutes", got, where
            )
        trial.account.clock.go_to(waits_until)
    await _expect_recovery(trial)


async def rate_headers(trial: Trial) -> None:
    """The provider's own rate headers are read: when there will be more, and that nothing is left."""
    rate = trial.truth.rate
    trial.applies(rate.reset_header, "the definition names no rate headers")
    assert rate.reset_header is not None
    moment = (trial.now + timedelta(seconds=60) + WAIT).replace(microsecond=0)
    where = ("rate", "reset_format")
    if (answer := saying(trial.truth, "throttled")) is not None:
        trial.wait_until_due()
        reset = {rate.reset_header: _reset(trial, rate.reset_format, moment)}
        attempted = await _play(trial, answer, reset)
        decision = attempted.decision
        until = decision.until if isinstance(decision, PauseApp) else attempted.at
        off = abs(until - moment)
        trial.expect(
            off <= TOLERANCE, f"a pause until the reset at {moment:%H:%M:%S}", f"{until:%H:%M:%S}", where
        )
        trial.account.clock.go_to(moment)
    if rate.remaining_header is not None:
        trial.wait_until_due()
        moment = (trial.now + WAIT).replace(microsecond=0)
        headers = {
            rate.remaining_header: "0",
            rate.reset_header: _reset(trial, rate.reset_format, moment),
        }
        trial.stage.script.append(Reaction(headers=headers))
        attempted = await trial.refresh()
        assert attempted.exchange is not None
        pause = trial.provider.used_up_for(attempted.exchange, now=attempted.at)
        got = "none" if pause is None else f"{pause.total_seconds():.0f} s"
        right = pause is not None and abs(pause - (moment - attempted.at)) <= TOLERANCE
        trial.expect(right, "a pause when nothing is left", got, where)
        trial.expect(
            isinstance(attempted.decision, Save), "the tokens to be saved", attempted.told, ("answer",)
        )


async def server_error(trial: Trial) -> None:
    """An outage, whatever its page says, changes nothing but the time of the next try; then all goes on."""
    for status in (500, 503):
        for body in (b"<html>Bad Gateway</html>", b'{"error": "invalid_grant"}', b""):
            document = json.loads(body) if body.startswith(b"{") else None
            outcome, rule = meaning(trial.truth, status, document)
            whole_app = rule is None or trial.truth.errors[rule].affects != "connection"
            content_type = "text/html" if body.startswith(b"<") else "application/json"
            reply = Reply(status, body, content_type=content_type)
            await _play(trial, ErrorAnswer(outcome, status, document, rule, whole_app), reply=reply)
    await _expect_recovery(trial)


async def firewall(trial: Trial) -> None:
    """A page of a firewall or proxy, 403 and HTML, is nobody's word about a grant."""
    held = trial.account.tokens
    outcome, rule = meaning(trial.truth, 403, None)
    if rule is None:
        outcome = "unavailable"
    reply = Reply(403, FIREWALL_PAGE, content_type="text/html")
    await _play(trial, ErrorAnswer(outcome, 403, None, rule), reply=reply)
    trial.expect(trial.account.tokens == held, "the tokens to stay as they were", "others")
    await _expect_recovery(trial)


async def connection_refused(trial: Trial) -> None:
    """A provider that cannot be reached has seen nothing: the same refresh token is presented later, once."""
    trial.detour.lead_to(trial.origin, trial.player.closed_origin)
    held = trial.account.tokens
    attempted = await trial.renew()
    trial.expect(trial.stage.requests == 0, "no request to have arrived", f"{trial.stage.requests}")
    trial.expect(isinstance(attempted.decision, RetryLater), "another try later", attempted.told)
    trial.expect(trial.account.unanswered == 0, "no answer to be missing", f"{trial.account.unanswered}")
    trial.expect_unharmed(held)
    await _expect_recovery(trial)


async def error_rules(trial: Trial) -> None:
    """Every error rule is played, each value, pattern, path and status that it names, and comes to what it says; where
    two of them fit, the first does. And nothing is taken for the end of a grant that is none."""
    believed = trial.provider.spec
    trial.applies(trial.truth.errors or believed.errors, "the definition has no error rules")
    for position in silent_rules(trial.truth):
        where = ("errors", position)
        trial.expect(
            False, "an answer that comes to this rule", "none does: rules before it take them all", where
        )
    others = () if believed is trial.truth else by_truth(trial.truth, believed)
    for answer in (*every_error(trial.truth), *contested(trial.truth), *others):
        await _play(trial, answer)
        trial.account.needs_reauth = None
        trial.account.attempts = trial.account.doubts = trial.account.throttles = 0


async def undescribed_error(trial: Trial) -> None:
    """An error that nobody has described is tried again twice, far apart; then operators are told, and no customer."""
    answer = undescribed(trial.truth)
    trial.applies(answer, "the definition describes every error")
    assert answer is not None
    for _ in range(DOUBTS):
        await _play(trial, answer)
    held = trial.account.tokens
    trial.stage.script.append(Reaction(reply=error_reply(answer)))
    attempted = await trial.renew()
    trial.expect(
        isinstance(attempted.decision, Quarantine), "operators to be told", attempted.told, ("errors",)
    )
    trial.expect_unharmed(held)
    await _expect_recovery(trial)


async def _play(
    trial: Trial, answer: ErrorAnswer, headers: dict[str, str] | None = None, *, reply: Reply | None = None
) -> Attempted:
    """Answer the next refresh with ``answer`` and expect what it has to lead to."""
    held = trial.account.tokens
    trial.stage.script.append(Reaction(reply=reply or error_reply(answer, headers)))
    requests = trial.stage.requests
    attempted = await trial.renew()
    trial.expect(trial.stage.requests > requests, "a request", "none", ("refresh",))
    trial.expect_decided(attempted, answer, held)
    return attempted


async def _expect_recovery(trial: Trial) -> None:
    """Expect that the next refresh works, as if nothing had happened."""
    trial.expect_saved(await trial.renew())


def _reset(trial: Trial, form: str, moment: datetime) -> str:
    match form:
        case "seconds":
            return str(round((moment - trial.now).total_seconds()))
        case "iso8601":
            return moment.isoformat()
        case "epoch_milliseconds":
            return str(round(moment.timestamp() * 1000))
        case _:
            return str(round(moment.timestamp()))
