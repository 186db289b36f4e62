"""What else stands at a provider beside its token endpoint: the API behind a probe, revocation, steps."""

from __future__ import annotations

import json
from collections import deque

from conformance.answers import fulfilled, success
from conformance.chains import Issue
from conformance.documents import Document, instance_of, with_value
from conformance.meanings import ANYTHING
from conformance.received import Received
from conformance.requests import Refused, check
from conformance.stage import Reply, Stage
from conformance.wanted import wanted_probe, wanted_revocation, wanted_step
from providers.spec_requests import Probe, ProbeRule, Revoke


class ProbeDoor:
    """Answers probes: who lives, who does not, and what else it may say."""

    def __init__(self, stage: Stage, probe: Probe) -> None:
        self.script: deque[Reply] = deque()
        """What to say to the coming probes instead."""
        self._stage = stage
        self._probe = probe
        self._ways: list[int | ProbeRule] = [*probe.dead_status, *probe.dead_when]
        self._died = 0

    @property
    def deaths(self) -> int:
        """In how many ways this API says that a token is dead."""
        return len(self._ways)

    def __call__(self, request: Received) -> Reply | None:
        """Return the answer to a probe, None for a request that is none."""
        stage, probe = self._stage, self._probe
        if not stage.is_at(probe.endpoint, request):
            return None
        try:
            presented = check(
                stage.spec, stage.client, request, wanted_probe(probe), now=stage.clock.seconds()
            )
        except Refused as refused:
            return stage.refuse(refused)
        if self.script:
            return self.script.popleft()
        if stage.chain.use(presented.access_token or ""):
            return self._alive()
        way = self._ways[self._died % len(self._ways)]
        self._died += 1
        return _dead(way) if isinstance(way, ProbeRule) else Reply(way, b"{}")

    def _alive(self) -> Reply:
        document: Document = {"id": "customer"}
        for condition in self._probe.alive_when:
            document = fulfilled(document, condition)
        return Reply(self._probe.alive_status[0], json.dumps(document).encode())


class RevocationDoor:
    """Ends the grant whose token is presented; a token that it does not know is as good as revoked (RFC 7009)."""

    def __init__(self, stage: Stage, revoke: Revoke) -> None:
        self.script: deque[Reply] = deque()
        """What to say to the coming requests instead."""
        self._stage = stage
        self._revoke = revoke

    def __call__(self, request: Received) -> Reply | None:
        """Return the answer to a revocation, None for a request that is none."""
        stage, revoke = self._stage, self._revoke
        if request.method != revoke.method or not stage.is_at(revoke.endpoint, request):
            return None
        wanted = wanted_revocation(stage.spec, revoke, stage.client.registration)
        try:
            presented = check(stage.spec, stage.client, request, wanted, now=stage.clock.seconds())
        except Refused as refused:
            if revoke.endpoint == stage.spec.refresh.endpoint:
                # One endpoint for both: what is no revocation is a token request, and judged as one.
                return None
            return stage.refuse(refused)
        if self.script:
            return self.script.popleft()
        chain = stage.chain
        by_name = not (presented.refresh_token or presented.access_token)
        is_ours = presented.refresh_token == chain.refresh_token.reveal() or chain.lives(
            presented.access_token or ""
        )
        chain.revoked = chain.revoked or by_name or is_ours
        return Reply(200, b"{}")


class StepDoor:
    """Trades the access token of one answer for the next one."""

    def __init__(self, stage: Stage, position: int) -> None:
        self.script: deque[Reply] = deque()
        """What to say to the coming requests instead."""
        self._stage = stage
        self._position = position
        self._step = stage.spec.steps[position]

    def __call__(self, request: Received) -> Reply | None:
        """Return the answer to a step, None for a request that is none."""
        stage, step = self._stage, self._step
        if not stage.is_at(step.endpoint, request):
            return None
        wanted = wanted_step(step, self._position)
        try:
            presented = check(stage.spec, stage.client, request, wanted, now=stage.clock.seconds())
        except Refused as refused:
            return stage.refuse(refused)
        if self.script:
            return self.script.popleft()
        chain = stage.chain
        if presented.access_token != chain.access_token.reveal():
            reason = "the access token is not the one that was answered last"
            return stage.refuse(Refused("request_rejected", reason, ("steps", self._position)))
        chain.renew_access_token()
        issue = Issue(chain.access_token, chain.life_seconds, None, rotated=False)
        stage.issued = issue
        document = success(stage.spec, step.answer, issue, stage.shape, now=stage.clock.seconds())
        return Reply(200, json.dumps(document).encode())


def _dead(rule: ProbeRule) -> Reply:
    status = next((each if isinstance(each, int) else int(each[0]) * 100 for each in rule.status), 200)
    value: object = (*rule.value, *map(instance_of, rule.pattern), ANYTHING)[0]
    return Reply(status, json.dumps(with_value(None, rule.path[0], value)).encode())
