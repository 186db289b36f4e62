"""Scenarios about access tokens beside the refresh: probes, revocation."""

from __future__ import annotations

from typing import Final

from conformance.doors import ProbeDoor, RevocationDoor, StepDoor
from conformance.stage import FIREWALL_PAGE, Reply
from conformance.trial import Trial
from providers.probes import ProbeReading, Verdict
from providers.revocation import Answered
from tokenfleet.outcome import RequestRejected
from tokenfleet.policy import Quarantine, RequireReauth, RetryLater

WORDS_AGAINST_A_TOKEN: Final = 3
"""So many probes have to call a token dead that nobody else can be asked about."""


async def probe(trial: Trial) -> None:
    """A probe tells a living access token from a dead one, and calls everything else unclear."""
    spec = trial.truth.probe
    trial.applies(spec, "the definition has no probe")
    assert spec is not None
    door = ProbeDoor(trial.stage, spec)
    trial.stage.doors.append(door)
    await _expect_verdict(trial, Verdict.ALIVE, "a living token")
    for page in (Reply(500, b""), Reply(429, b"{}"), Reply(403, FIREWALL_PAGE, content_type="text/html")):
        if page.status in (*spec.dead_status, *spec.alive_status):
            continue
        door.script.append(page)
        await _expect_verdict(trial, Verdict.UNCLEAR, f"an answer of {page.status}")
    if trial.truth.refresh.grant == "none":
        for status in spec.dead_status:
            door.script.append(Reply(status, FIREWALL_PAGE, content_type="text/html"))
            await _expect_verdict(trial, Verdict.UNCLEAR, f"a gateway's web page with {status}")
    trial.stage.chain.kill_access_token()
    for _ in range(door.deaths):
        await _expect_verdict(trial, Verdict.DEAD, "a token that was ended")
    trial.expect(door.deaths, "a way in which the probe calls a token dead", "none", ("probe",))


async def steps(trial: Trial) -> None:
    """A step that fails loses nothing and is no word about the grant: the next attempt begins anew."""
    trial.applies(trial.truth.steps, "no step follows an answer")
    doors = [door for door in trial.stage.doors if isinstance(door, StepDoor)]
    for position, door in enumerate(doors):
        for reply in (Reply(500, b""), Reply(401, b'{"error": "invalid_grant"}'), Reply(200, b"{}")):
            held, where = trial.account.tokens.access_token, ("steps", position)
            door.script.append(reply)
            attempted = await trial.renew()
            later = isinstance(attempted.decision, RetryLater | Quarantine)
            trial.expect(later, "another try later", attempted.told, where)
            same = trial.account.tokens.access_token == held
            trial.expect(same, "readers to keep their access token", "another", where)
            trial.expect_right_refresh_token()
            trial.expect_saved(await trial.renew())


async def _expect_verdict(trial: Trial, wanted: Verdict, what: str) -> ProbeReading:
    account = trial.account
    if trial.provider.spec.probe is None:
        trial.expect(False, "a probe", "the definition has none", ("probe",))
    request = trial.provider.probe_request(account.client, account.grant, now=trial.now)
    trial.expect(request is not None, "a probe of this account", "none can be made", ("probe", "endpoint"))
    assert request is not None
    reading = trial.provider.read_probe(await trial.detour.ask(request))
    trial.expect_accepted()
    trial.expect(reading.verdict is wanted, f"{what} to be called {wanted}", f"{reading.verdict}", ("probe",))
    return reading


async def never_renewed(trial: Trial) -> None:
    """A token that is never renewed is only probed; the customer is told after the third word against it."""
    trial.applies(trial.truth.refresh.grant == "none", "access tokens are renewed")
    account = trial.account
    attempted = await account.refresh()
    trial.expect(
        trial.stage.requests == 0, "no token request, ever", f"{trial.stage.requests}", ("refresh", "grant")
    )
    trial.expect(
        isinstance(attempted.outcome, RequestRejected), "nothing to be asked", attempted.told, ("refresh",)
    )
    spec = trial.truth.probe
    if spec is None:
        return
    trial.stage.doors.append(ProbeDoor(trial.stage, spec))
    trial.stage.chain.kill_access_token()
    account.doubts = 0
    for word in range(1, WORDS_AGAINST_A_TOKEN + 1):
        reading = await _expect_verdict(trial, Verdict.DEAD, "a token that was ended")
        decision = account.weigh_dead_probe(reading.code)
        if word < WORDS_AGAINST_A_TOKEN:
            trial.expect(isinstance(decision, RetryLater), "another look", f"{decision}", ("probe",))
            trial.expect_unharmed(account.tokens)
        account.clock.go_to(account.next_refresh_at or trial.now)
    trial.expect(
        account.needs_reauth is not None, "the customer to be asked to sign in again", "nothing", ("probe",)
    )


async def revocation(trial: Trial) -> None:
    """A revocation ends the grant at the provider, is told from an outage, and what follows is its word."""
    revoke, account = trial.truth.revoke, trial.account
    trial.applies(revoke, "the definition has no revocation")
    assert revoke is not None
    door = RevocationDoor(trial.stage, revoke)
    trial.stage.doors.append(door)
    trial.expect(trial.provider.revokes, "a revocation", "the definition has none", ("revoke",))
    outages = (500, 503) if not {500, 503} & set(revoke.gone_status) else ()
    for status in (*outages, *revoke.gone_status):
        door.script.append(Reply(status, b""))
        wanted = Answered.NOT_NOW if status in outages else Answered.REVOKED
        await _expect_revocation(trial, wanted, f"an answer of {status}")
    trial.expect(not trial.stage.chain.revoked, "the grant to live on meanwhile", "it was ended", ("revoke",))
    await _expect_revocation(trial, Answered.REVOKED, "the provider's yes")
    trial.expect(
        trial.stage.chain.revoked,
        "the grant to be ended",
        "it lives: another token came",
        ("revoke", "token"),
    )
    if trial.truth.refresh.grant == "refresh_token":
        attempted = await trial.renew()
        got = attempted.told
        trial.expect(isinstance(attempted.decision, RequireReauth), "no token any more", got, ("revoke",))
    trial.expect(account.attempts == 0, "no failure to be counted", f"{account.attempts}", ("revoke",))


async def _expect_revocation(trial: Trial, wanted: Answered, what: str) -> None:
    request = trial.provider.revocation_request(trial.account.client, trial.account.grant, now=trial.now)
    reading = trial.provider.read_revocation(await trial.detour.ask(request))
    trial.expect_accepted()
    trial.expect(reading.answered is wanted, f"{what} to mean {wanted}", f"{reading.answered}", ("revoke",))
