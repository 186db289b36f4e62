"""What contradicts what in a definition: mistakes that no single value shows.

:func:`contradictions` reports all of them; a definition without any can be compiled and asked.
"""

from __future__ import annotations

from collections.abc import Iterator

from providers.call_mistakes import call_mistakes
from providers.connect_mistakes import connect_mistakes
from providers.problems import Location
from providers.request_contradictions import request_mistakes
from providers.rule_mistakes import rule_mistakes
from providers.spec import MINIMUM_MARGIN_SECONDS, ProviderSpec
from providers.template_contradictions import template_mistakes

Finding = tuple[Location, str]


def contradictions(spec: ProviderSpec, *, allow_http: bool) -> list[Finding]:
    """Return every contradiction in ``spec``: where it stands, and the reason in plain words."""
    return [
        *template_mistakes(spec, allow_http=allow_http),
        *request_mistakes(spec),
        *rule_mistakes(spec.errors),
        *_rotation(spec),
        *_lifetimes(spec),
        *_rate(spec),
        *call_mistakes(spec),
        *connect_mistakes(spec),
    ]


def _rotation(spec: ProviderSpec) -> Iterator[Finding]:
    rotation, lifetimes = spec.rotation, spec.lifetimes
    if rotation.policy == "never":
        if rotation.grace_seconds:
            yield ("rotation", "grace_seconds"), "is a grace window, but refresh tokens are never rotated"
        if rotation.family_revocation:
            yield ("rotation", "family_revocation"), "punishes reuse, but refresh tokens are never rotated"
    idle = lifetimes.refresh_idle_seconds
    if idle is not None and rotation.grace_seconds > idle:
        yield ("rotation", "grace_seconds"), f"is longer than a refresh token lives unused ({idle})"
    if rotation.max_live_per and rotation.max_live is None:
        yield ("rotation", "max_live_per"), "has no meaning without max_live"


def _lifetimes(spec: ProviderSpec) -> Iterator[Finding]:
    life = spec.lifetimes
    earliest, latest, access = life.margin_earliest_seconds, life.margin_latest_seconds, life.access_seconds
    if earliest is not None and latest is not None and latest > earliest:
        yield ("lifetimes", "margin_latest_seconds"), f"is longer than margin_earliest_seconds ({earliest})"
    for key, margin in (("margin_earliest_seconds", earliest), ("margin_latest_seconds", latest)):
        if margin is not None and access is not None and margin >= access:
            yield ("lifetimes", key), f"is not shorter than the access token's life ({access})"
    soonest = life.earliest_refresh_seconds
    for key, margin in (("margin_earliest_seconds", earliest), ("margin_latest_seconds", latest)):
        if margin is not None and soonest is not None and margin > soonest:
            yield (
                ("lifetimes", key),
                f"is earlier than the provider permits: earliest_refresh_seconds is {soonest}",
            )
    yield from _never_expires(spec)
    yield from _early_refresh(spec)
    idle, absolute = life.refresh_idle_seconds, life.refresh_absolute_seconds
    if idle is not None and absolute is not None and idle > absolute:
        yield ("lifetimes", "refresh_idle_seconds"), f"is longer than refresh_absolute_seconds ({absolute})"


def _never_expires(spec: ProviderSpec) -> Iterator[Finding]:
    life = spec.lifetimes
    if not life.access_never_expires:
        return
    for key in (
        "access_seconds",
        "earliest_refresh_seconds",
        "margin_earliest_seconds",
        "margin_latest_seconds",
    ):
        if getattr(life, key) is not None:
            yield ("lifetimes", key), "contradicts access_never_expires"


def _early_refresh(spec: ProviderSpec) -> Iterator[Finding]:
    """Report what leaves no moment at which a refresh is both allowed and in time."""
    life = spec.lifetimes
    window, access, idle = life.earliest_refresh_seconds, life.access_seconds, life.refresh_idle_seconds
    if window is None:
        return
    location: Location = ("lifetimes", "earliest_refresh_seconds")
    if window < MINIMUM_MARGIN_SECONDS:
        yield location, f"is shorter than {MINIMUM_MARGIN_SECONDS}: no refresh would be in time"
    if access is not None and idle is not None and access - window > idle:
        yield location, f"allows no refresh before an unused refresh token dies ({idle})"


def _rate(spec: ProviderSpec) -> Iterator[Finding]:
    if spec.rate.burst is not None and spec.rate.requests_per_second is None:
        yield ("rate", "burst"), "has no meaning without requests_per_second"
    if spec.rate.remaining_header is not None and spec.rate.reset_header is None:
        yield (
            ("rate", "remaining_header"),
            "has no meaning without reset_header, which says how long to pause",
        )
    if "reset_format" in spec.rate.model_fields_set and spec.rate.reset_header is None:
        yield ("rate", "reset_format"), "has no meaning without reset_header"
