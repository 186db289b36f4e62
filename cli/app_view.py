"""One OAuth client registration as people and programs see it; its secret is not in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from cli.output import dated
from tokenfleet.app_levels import ACCOUNT_PREFIX, AppLevel, level_of

if TYPE_CHECKING:
    from store.apps import App


@dataclass(frozen=True, slots=True)
class AppView:
    """One app as people and programs see it. ``state`` is ``ready``, ``paused`` or ``held``; ``level`` is
    ``account``, ``environment`` or ``platform``."""

    app_id: int
    provider: str
    environment: str
    name: str
    level: str
    client_id: str
    has_client_secret: bool
    variables: Mapping[str, str]
    accounts: int
    state: str
    held_since: datetime | None
    held_code: str | None
    probe_at: datetime | None
    paused_until: datetime | None
    created_at: datetime
    updated_at: datetime


def view_of(app: App, *, accounts: int, now: datetime) -> AppView:
    """Return ``app`` as it stands at ``now``; ``accounts`` use it."""
    paused_until = app.paused_until if app.paused_until is not None and app.paused_until > now else None
    state = "held" if app.held_since is not None else "paused" if paused_until is not None else "ready"
    return AppView(
        app_id=app.app_id,
        provider=app.provider,
        environment=app.environment,
        name=app.name,
        level=level_of(app.environment, app.name).value,
        client_id=app.client_id,
        has_client_secret=app.client_secret is not None,
        variables=app.variables,
        accounts=accounts,
        state=state,
        held_since=app.held_since,
        held_code=app.held_code,
        probe_at=app.probe_at,
        paused_until=paused_until,
        created_at=app.created_at,
        updated_at=app.updated_at,
    )


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
    """Return whether the provider may be asked with ``app``, and why not."""
    if app.held_since is not None:
        return f"held since {dated(app.held_since, now)}: the provider answers {app.held_code}"
    if app.paused_until is not None:
        return f"paused until {dated(app.paused_until, now)}, as the provider asked"
    return "ready"
