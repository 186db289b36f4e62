"""What stands between an app and its provider, in words: the same ones in every command.

A command shows what is not as it should be and nothing else; an app that may be asked has no line.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from cli.output import counted, dated
from store.incidents import Kind

if TYPE_CHECKING:
    from store.gates import OpenIncident


class Word(StrEnum):
    """What may be wrong, the worst first; each is explained in docs/operations.md."""

    HELD = "held"
    INCIDENT = "incident"
    OVERBOOKED = "overbooked"
    CIRCUIT = "circuit"
    PAUSED = "paused"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong with an app. ``text`` begins in lower case and says what to do, if anything."""

    word: Word
    text: str


@dataclass(frozen=True, slots=True)
class CircuitStatus:
    """One app's circuit, which is not closed. ``until`` is when the next try begins, None while one is under way."""

    app_id: int
    state: str
    until: datetime | None


class Gated(Protocol):
    """What Postgres says of an app, in whatever record a command has it."""

    @property
    def provider(self) -> str: ...
    @property
    def paused_until(self) -> datetime | None: ...
    @property
    def held_since(self) -> datetime | None: ...
    @property
    def held_code(self) -> str | None: ...
    @property
    def probe_at(self) -> datetime | None: ...
    @property
    def incidents(self) -> Sequence[OpenIncident]: ...
    @property
    def slack(self) -> float | None: ...


class Named(Gated, Protocol):
    """The same of an app that says which one it is."""

    @property
    def app_id(self) -> int: ...
    @property
    def environment(self) -> str: ...
    @property
    def name(self) -> str: ...


def findings(app: Gated, circuit: CircuitStatus | None, now: datetime) -> list[Finding]:
    """Return what is wrong with ``app`` at ``now``, the worst first; nothing when all is well."""
    found = [
        *_hold(app, now),
        *_incidents(app, now),
        *_slack(app),
        *_circuit(circuit, now),
        *_pause(app, now),
    ]
    return sorted(found, key=lambda each: list(Word).index(each.word))


def all_findings(
    apps: Iterable[Named], circuits: Iterable[CircuitStatus], now: datetime
) -> list[tuple[str, Finding]]:
    """Return what is wrong with any of ``apps``, with the name of the app, the worst first."""
    by_app = {circuit.app_id: circuit for circuit in circuits}
    found = [
        (f"{app.provider}/{app.environment}/{app.name}", finding)
        for app in apps
        for finding in findings(app, by_app.get(app.app_id), now)
    ]
    return sorted(found, key=lambda each: list(Word).index(each[1].word))


def percent(share: float) -> str:
    """Return a share in whole percent, rounded down so that nothing looks better than it is."""
    return f"{math.floor(round(share * 100, 6)):,} %"


def _hold(app: Gated, now: datetime) -> Iterator[Finding]:
    if app.held_since is None:
        return
    incident = next((each for each in app.incidents if each.kind is Kind.CLIENT_REJECTED), None)
    numbered = f", incident {incident.incident_id}" if incident else ""
    yield Finding(
        Word.HELD,
        f"held since {dated(app.held_since, now)}{numbered}: the provider rejects the registration "
        f"({app.held_code}), so only one account asks from time to time; 'tokenfleet apps set {app.provider} …' "
        "with the right secret ends that",
    )


def _incidents(app: Gated, now: datetime) -> Iterator[Finding]:
    for incident in app.incidents:
        if incident.kind is Kind.CLIENT_REJECTED and app.held_since is not None:
            continue
        parked = f"{counted(incident.parked, 'account')} parked"
        flipped = f", {incident.flipped:,} told to sign in before that" if incident.flipped else ""
        others = ", and nobody else is asked, for nobody succeeds" if incident.only_samples else ""
        yield Finding(
            Word.INCIDENT,
            f"incident {incident.incident_id} since {dated(incident.opened_at, now)}: {incident.code} for more "
            f"accounts than is believed, {parked}{flipped}{others}; it ends when they succeed again, or with "
            f"'tokenfleet incidents resolve {incident.incident_id}'",
        )


def _slack(app: Gated) -> Iterator[Finding]:
    if app.slack is not None and app.slack < 0:
        demand = math.ceil(round((1 - app.slack) * 100, 6))
        yield Finding(
            Word.OVERBOOKED,
            f"overbooked: the coming hour asks for {demand:,} % of the rate, so tokens will be late; ask the provider "
            "for more, or spread accounts over several apps",
        )


def circuit_text(circuit: CircuitStatus, now: datetime) -> str:
    """Return why nobody is asked, and when somebody will be."""
    then = (
        "one account is trying"
        if circuit.until is None
        else f"one account tries at {dated(circuit.until, now)}"
    )
    return f"circuit is {circuit.state.replace('_', ' ')}: the provider does not answer; {then}"


def _circuit(circuit: CircuitStatus | None, now: datetime) -> Iterator[Finding]:
    if circuit is not None:
        yield Finding(Word.CIRCUIT, circuit_text(circuit, now))


def _pause(app: Gated, now: datetime) -> Iterator[Finding]:
    if app.paused_until is not None and app.paused_until > now:
        yield Finding(Word.PAUSED, f"paused until {dated(app.paused_until, now)}, as the provider asked")
