"""One OAuth client registration as people and programs see it; its secret is not in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from cli.output import dated

if TYPE_CHECKING:
    from store.app_secrets import Spare
    from store.apps import App


@dataclass(frozen=True, slots=True)
class AppView:
    """One app as people and programs see it. ``state`` is ``ready``, ``paused`` or ``held``.

    ``spare_secrets`` are tried in order when the one in use is refused; ``refused_secrets`` of them were already.
    """

    app_id: int
    provider: str
    environment: str
    name: str
    client_id: str
    has_client_secret: bool
    spare_secrets: int
    refused_secrets: int
    variables: Mapping[str, str]
    accounts: int
    state: str
    held_since: datetime | None
    held_code: str | None
    probe_at: datetime | None
    paused_until: datetime | None
    created_at: datetime
    updated_at: datetime


def view_of(app: App, *, accounts: int, now: datetime, spares: Sequence[Spare] = ()) -> AppView:
    """Return ``app`` as it stands at ``now``; ``accounts`` use it, ``spares`` wait in case its secret is refused."""
    paused_until = app.paused_until if app.paused_until is not None and app.paused_until > now else None
    state = "held" if app.held_since is not None else "paused" if paused_until is not None else "ready"
    return AppView(
        app_id=app.app_id,
        provider=app.provider,
        environment=app.environment,
        name=app.name,
        client_id=app.client_id,
        has_client_secret=app.client_secret is not None,
        spare_secrets=len(spares),
        refused_secrets=sum(each.refused_at is not None for each in spares),
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


def state_text(app: AppView, now: datetime) -> str:
    """Return whether the provider may be asked with ``app``, and why not."""
    if app.held_since is not None:
        return f"held since {dated(app.held_since, now)}: the provider answers {app.held_code}"
    if app.paused_until is not None:
        return f"paused until {dated(app.paused_until, now)}, as the provider asked"
    return "ready"


def spares_text(app: AppView) -> str:
    """Return how many secrets wait in case the one in use is refused; nothing when there are none."""
    if not app.spare_secrets:
        return ""
    refused = f", {app.refused_secrets} of them refused before" if app.refused_secrets else ""
    return f"{app.spare_secrets}{refused}"
