"""Scenarios about access tokens beside the refresh: probes, revocation."""

from __future__ import annotations

from conformance.probing import Door
from conformance.stage import FIREWALL_PAGE, Reply
from conformance.trial import Trial
from providers.probes import Verdict


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


async def _expect_verdict(trial: Trial, wanted: Verdict, what: str) -> None:
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
