"""How many claims one app may have out at once, and what the definitions say that Postgres has to know. Pure.

The window of a paced app is what a few seconds of its rate can take, so that what is claimed is asked about before its
claim ends, and the most urgent go first. What readers ask for has a share of it (``store.claiming.REQUESTED_SHARE``),
taken before the others and, between two ticks, on top of what these have out.
"""

from __future__ import annotations

from datetime import datetime

from providers import Provider
from store.apps import App
from store.traits import Traits
from tokenfleet.circuit import CircuitState, Standing
from tokenfleet.pace import claim_window, ramp


def window_of(app: App, provider: Provider, standing: Standing, now: datetime) -> int:
    """Return how many claims of an app may be out at once."""
    window = claim_window(provider.rate_per_second, provider.burst, provider.max_outstanding)
    match standing.state:
        case CircuitState.OPEN:
            return 0
        case CircuitState.HALF_OPEN:
            # The trial. While it is out there is nobody else.
            return 1
    if standing.closed_for_ms is not None:
        window = min(window, ramp(standing.closed_for_ms / 1000))
    if app.paused_until is not None and provider.rate_per_second is None:
        # Nobody said how fast it may go on.
        window = min(window, ramp((now - app.paused_until).total_seconds()))
    return window


def traits_of(provider: Provider) -> Traits:
    """Return what readers' functions have to know of a provider."""
    lifetimes = provider.lifetimes
    return Traits(
        renews=provider.renews,
        probes=lifetimes.probe_every is not None,
        earliest_refresh=lifetimes.earliest_refresh,
        minimum_age=lifetimes.minimum_age,
    )
