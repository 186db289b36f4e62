"""Scenarios about access tokens beside the refresh: probes, revocation."""

from __future__ import annotations

from typing import Final

from conformance.probing import Door
from conformance.stage import FIREWALL_PAGE, Reply
from conformance.trial import Trial
from providers.probes import ProbeReading, Verdict
from tokenfleet.outcome import RequestRejected
from tokenfleet.policy import RetryLater

WORDS_AGAINST_A_TOKEN: Final = 3
"""So many probes have to call a token dead that nobody else can be asked about."""


async def probe(trial: Trial) -> None:
    """A probe tells a living access token from a dead one, and calls everything else unclear."""
    spec = trial.truth.probe
    trial.applies(spec, "the definition has no probe")
    assert spec is not None
    door = Door(trial.stage, spec)
    trial.stage.doors.append(door)
    await _expect_verdict(trial, Verdict.ALIVE, "a living token")
    for page in (Reply(500, b""), Reply(429, b"{}"), Reply(403, FIREWALL_PAGE, content_type="text/html")):
        if page.status in (*spec.dead_status, *spec.alive_status):
            continue
        door.script.append(page)
        await _expect_verdict(trial, Verdict.UNCLEAR, f"an answer of {page.status}")
    trial.stage.chain.kill_access_token()
    for _ in range(door.deaths):
        await _expect_verdict(trial, Verdict.DEAD, "a token that was ended")
    trial.expect(door.deaths, "a way in which the probe calls a token dead", "none", ("probe",))


async def _expect_verdict(trial: Trial, wanted: Verdict, what: str) -> ProbeReading:
    account = trial.account
    if trial.provider.spec.probe is None:
        trial.expect(False, "a probe", "the definition has none", ("probe",))
    request = trial.provider.probe_request(
        account.client.client_id, account.tokens.access_token, account.tokens.scope, account.variables
    )
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
    trial.stage.doors.append(Door(trial.stage, spec))
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
