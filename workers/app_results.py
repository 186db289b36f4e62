"""What a batch of results says about whole apps, written in its transaction and told after its commit."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from sqlalchemy import Connection

from store import apps, guard, holds, schedule
from store.holds import Effect
from store.incidents import Incident
from tokenfleet import telemetry
from tokenfleet.jobs import AccountId, AppId
from tokenfleet.telemetry import Event
from workers.results import AppAnswered, AppHeld, AppPaused, AppRecovered, AppUnthrottled, Result


@dataclass(slots=True)
class AppEffects:
    """What became of apps in one transaction."""

    paused: set[AppPaused] = field(default_factory=set)
    held: list[AppHeld] = field(default_factory=list)
    replaced: list[AppHeld] = field(default_factory=list)
    recovered: list[AppRecovered] = field(default_factory=list)
    opened: list[Incident] = field(default_factory=list)
    resolved: list[Incident] = field(default_factory=list)

    def write(
        self, connection: Connection, results: Sequence[Result], *, actor: str, probe_after: timedelta
    ) -> None:
        """Write what ``results`` say about apps; nothing when they say nothing."""
        self.paused = {result for result in results if isinstance(result, AppPaused)}
        if self.paused:
            pauses = list(self.paused)
            apps.pause_until(
                connection,
                [pause.app_id for pause in pauses],
                [pause.until for pause in pauses],
                [pause.throttles for pause in pauses],
            )
        if well_again := {result.app_id for result in results if isinstance(result, AppUnthrottled)}:
            apps.forget_throttles(connection, well_again)
        if refusals := [result for result in results if isinstance(result, AppHeld)]:
            self._refuse(connection, refusals, probe_after)
        for well in {result for result in results if isinstance(result, AppRecovered)}:
            ended, incident = holds.recovered(
                connection, well.app_id, generation=well.generation, actor=actor
            )
            if ended:
                self.recovered.append(well)
            if incident is not None:
                self.resolved.append(incident)
        if answered := {result.app_id for result in results if isinstance(result, AppAnswered)}:
            guard.note_success(connection, sorted(answered))

    def _refuse(self, connection: Connection, refusals: Sequence[AppHeld], probe_after: timedelta) -> None:
        """Use the next secret of each app, or hold it; who met a secret that is replaced by now is asked again."""
        credentials: dict[tuple[AppId, int], list[AppHeld]] = defaultdict(list)
        for refused in refusals:
            credentials[refused.app_id, refused.generation].append(refused)
        again: list[AccountId] = []
        for (app_id, generation), met in sorted(credentials.items()):
            effect = holds.client_rejected(
                connection, app_id, met[0].code, generation=generation, probe_after=probe_after
            )
            if effect in {Effect.NOTHING, Effect.REPLACED}:
                again += [each.account_id for each in met]
            if effect is Effect.REPLACED:
                self.replaced.append(met[0])
            elif effect is Effect.HELD:
                self.held.append(met[0])
        if again:
            schedule.request_refresh(connection, sorted(again))

    def tell(self) -> None:
        """Say it in logs and alarms. After the commit, or it may not be true."""
        for held in self.held:
            telemetry.alarm(Event.APP_HELD, app_id=held.app_id, code=held.code)
        for replaced in self.replaced:
            telemetry.alarm(Event.APP_SECRET_REPLACED, app_id=replaced.app_id, code=replaced.code)
        for incident in self.opened:
            telemetry.alarm(Event.INCIDENT_OPENED, **incident.log_fields())
        for incident in self.resolved:
            telemetry.logger().warning(Event.INCIDENT_RESOLVED.value, **incident.log_fields())
        for paused in self.paused:
            telemetry.logger().warning(Event.APP_PAUSED.value, app_id=paused.app_id, until=str(paused.until))
        for well in self.recovered:
            telemetry.logger().warning(Event.APP_RESUMED.value, app_id=well.app_id)
