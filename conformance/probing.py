"""The API behind a probe, as a definition describes it: who lives, who does not, and what else it may say."""

from __future__ import annotations

import json
from collections import deque

from conformance.answers import fulfilled
from conformance.documents import Document, instance_of, with_value
from conformance.meanings import ANYTHING
from conformance.received import Received
from conformance.requests import Refused, check_templates
from conformance.stage import Reply, Stage
from providers.spec_requests import Probe, ProbeRule


class Door:
    """Answers probes at a stage."""

    def __init__(self, stage: Stage, probe: Probe) -> None:
        self.stage = stage
        self.probe = probe
        self.script: deque[Reply] = deque()
        """What to say to the coming probes instead."""
        self._ways: list[int | ProbeRule] = [*probe.dead_status, *probe.dead_when]
        self._died = 0

    @property
    def deaths(self) -> int:
        """In how many ways this API says that a token is dead."""
        return len(self._ways)

    def __call__(self, request: Received) -> Reply | None:
        """Return the answer to a probe, None for a request that is none."""
        probe, stage = self.probe, self.stage
        if not stage.is_at(probe.endpoint, request):
            return None
        headers = dict(probe.headers)
        if probe.authorization:
            headers["Authorization"] = probe.authorization
        try:
            credentials = check_templates(
                stage.spec,
                stage.client,
                request,
                text=probe.endpoint,
                method=probe.method,
                place=probe.body if probe.parameters else "none",
                parameters=probe.parameters,
                headers=headers,
                at=("probe",),
                now=stage.clock.seconds(),
            )
        except Refused as refused:
            return stage.refuse(refused)
        if self.script:
            return self.script.popleft()
        if stage.chain.use(credentials.access_token or ""):
            return self._alive()
        way = self._ways[self._died % len(self._ways)]
        self._died += 1
        if isinstance(way, ProbeRule):
            return _dead(way)
        return Reply(way, b"{}")

    def _alive(self) -> Reply:
        document: Document = {"id": "customer"}
        for condition in self.probe.alive_when:
            document = fulfilled(document, condition)
        return Reply(self.probe.alive_status[0], json.dumps(document).encode())


def _dead(rule: ProbeRule) -> Reply:
    status = next((each if isinstance(each, int) else int(each[0]) * 100 for each in rule.status), 200)
    value: object = (*rule.value, *map(instance_of, rule.pattern), ANYTHING)[0]
    return Reply(status, json.dumps(with_value(None, rule.path[0], value)).encode())
