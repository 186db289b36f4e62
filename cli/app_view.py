"""One OAuth client registration as people and programs see it; its secret is not in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING

import click

from cli.app_credentials import CertificateView, certificates_of
from cli.gates import Finding, findings, percent
from tokenfleet.app_levels import ACCOUNT_PREFIX, AppLevel, level_of

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from cli.gates import CircuitStatus
    from store.app_secrets import Spare
    from store.apps import App
    from store.gates import OpenIncident
    from tokenfleet.jobs import AppId
    from tokenfleet.settings import Settings


@dataclass(frozen=True, slots=True)
class AppFacts:
    """What is known of an app beside its registration. ``circuit`` is None while it is closed."""

    slack: float | None = None
    incidents: Sequence[OpenIncident] = ()
    circuit: CircuitStatus | None = None
    spares: Sequence[Spare] = ()
    certificate: CertificateView | None = None


@dataclass(frozen=True, slots=True)
class AppView:
    """One app as people and programs see it. ``state`` is ``ready`` or the worst of what is wrong with it:
    ``held``, ``incident``, ``overbooked``, ``circuit`` (it is not closed) or ``paused``. ``level`` is ``account``,
    ``environment`` or ``platform``. ``spare_secrets`` are tried in order when the one in use is refused;
    ``refused_secrets`` of them were already. ``client_certificate`` says whose it is and until when it is valid.
    """

    app_id: int
    provider: str
    environment: str
    name: str
    level: str
    client_id: str
    has_client_secret: bool
    spare_secrets: int
    refused_secrets: int
    client_certificate: CertificateView | None
    variables: Mapping[str, str]
    accounts: int
    state: str
    held_since: datetime | None
    held_code: str | None
    probe_at: datetime | None
    paused_until: datetime | None
    slack: float | None
    incidents: Sequence[OpenIncident]
    circuit: CircuitStatus | None
    created_at: datetime
    updated_at: datetime


def view_of(app: App, *, accounts: int, now: datetime, facts: AppFacts) -> AppView:
    """Return ``app`` as it stands at ``now``; ``accounts`` use it."""
    view = AppView(
        app_id=app.app_id,
        provider=app.provider,
        environment=app.environment,
        name=app.name,
        level=level_of(app.environment, app.name).value,
        client_id=app.client_id,
        has_client_secret=app.client_secret is not None,
        spare_secrets=len(facts.spares),
        refused_secrets=sum(each.refused_at is not None for each in facts.spares),
        client_certificate=facts.certificate,
        variables=app.variables,
        accounts=accounts,
        state="ready",
        held_since=app.held_since,
        held_code=app.held_code,
        probe_at=app.probe_at,
        paused_until=app.paused_until if app.paused_until is not None and app.paused_until > now else None,
        slack=facts.slack,
        incidents=facts.incidents,
        circuit=facts.circuit,
        created_at=app.created_at,
        updated_at=app.updated_at,
    )
    found = wrong_with(view, now)
    return replace(view, state=found[0].word.value) if found else view


def wrong_with(app: AppView, now: datetime) -> list[Finding]:
    """Return what is wrong with ``app``, the worst first; nothing when its provider may be asked."""
    return findings(app, app.circuit, now)


def level_text(app: AppView) -> str:
    """Return for whom ``app`` is."""
    match AppLevel(app.level):
        case AppLevel.ACCOUNT:
            return f"account: for {app.provider}/{app.name.removeprefix(ACCOUNT_PREFIX)} in {app.environment} alone"
        case AppLevel.ENVIRONMENT:
            return f"environment: for accounts of {app.environment} that have none of their own"
        case AppLevel.PLATFORM:
            return "platform: for every environment that has none of that name"


def state_text(app: AppView, now: datetime) -> str:
    """Return in a few words whether the provider may be asked with ``app``."""
    return ", ".join(finding.word.value for finding in wrong_with(app, now)) or "ready"


def spares_text(app: AppView) -> str:
    """Return how many secrets wait in case the one in use is refused; nothing when there are none."""
    if not app.spare_secrets:
        return ""
    refused = f", {app.refused_secrets} of them refused before" if app.refused_secrets else ""
    return f"{app.spare_secrets}{refused}"


def rate_left_text(app: AppView) -> str:
    """Return how much of its rate is left over; nothing where none is stated, or too little, which is told apart."""
    return "" if app.slack is None or app.slack < 0 else f"{percent(app.slack)} or more in the coming hour"


def facts_of(
    connection: Connection, settings: Settings, apps: Sequence[App], now: datetime
) -> dict[AppId, AppFacts]:
    """Return what is known of these apps beside their registrations; circuits that nobody can read are told of."""
    from cli.probes import circuits
    from store import app_secrets
    from store.gates import open_incidents, slacks

    app_ids = [app.app_id for app in apps]
    opened = circuits(settings, app_ids, now)
    if opened is None:
        click.echo("Whether circuits are open is unknown: Redis does not answer.", err=True)
    by_app = {each.app_id: each for each in opened or ()}
    slack, incidents = slacks(connection), open_incidents(connection)
    certificates = certificates_of(connection, settings, apps)
    return {
        app_id: AppFacts(
            slack.get(app_id),
            incidents.get(app_id, ()),
            by_app.get(app_id),
            app_secrets.spares(connection, app_id),
            certificates.get(app_id),
        )
        for app_id in app_ids
    }
