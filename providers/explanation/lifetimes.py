"""How long things live, when they are renewed, what becomes of a refresh token, and the pace that is kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Final

from providers.explanation.facts import Fact, duration_text, exact_duration, fact
from providers.explanation.unconfirmed import Topic
from providers.registry import DEFAULT_MAX_OUTSTANDING, burst_of, margins_of
from providers.spec import ProviderSpec
from tokenfleet.lifetimes import UNKNOWN_LIFETIME_INTERVAL, warning_period

_ROTATION: Final[Mapping[str, str]] = {
    "never": "stays the same at every refresh",
    "sometimes": "is replaced by some refreshes: whatever comes back is kept, else the old one",
    "always": "is replaced by every refresh",
}
_RESETS: Final[Mapping[str, str]] = {
    "seconds": "in seconds from then",
    "epoch_seconds": "in seconds since 1970",
    "epoch_milliseconds": "in milliseconds since 1970",
    "iso8601": "in ISO 8601",
}


def lifetime_facts(spec: ProviderSpec) -> Iterator[Fact]:
    """Yield how long tokens and grants live, and when they are renewed."""
    life = spec.lifetimes
    yield fact("Access token", _access(spec), Topic.ACCESS_LIFE)
    if life.earliest_refresh_seconds:
        window = exact_duration(life.earliest_refresh_seconds)
        yield fact(
            "Early refresh",
            f"refused longer than {window} before the access token's end, so nobody asks for one.",
            Topic.EARLY,
        )
    if life.minimum_age_seconds:
        age = exact_duration(life.minimum_age_seconds)
        yield fact(
            "Minimum age", f"a refresh is refused while the access token is younger than {age}.", Topic.AGE
        )
    if life.refresh_idle_seconds:
        idle = exact_duration(life.refresh_idle_seconds)
        yield fact(
            "Refresh token",
            f"dies after {idle} without use, and is used before, 70 to 85 % of that after its last use.",
            Topic.IDLE,
        )
    if life.refresh_absolute_seconds:
        ahead = duration_text(warning_period(timedelta(seconds=life.refresh_absolute_seconds)))
        yield fact(
            "Grant",
            f"ends {exact_duration(life.refresh_absolute_seconds)} after consent, whatever its use; the customer is "
            f"told {ahead} before.",
            Topic.ABSOLUTE,
        )


def rotation_facts(spec: ProviderSpec) -> Iterator[Fact]:
    """Yield what becomes of a refresh token when it is used, and what it means for an answer that is lost."""
    rotation = spec.rotation
    if spec.refresh.grant != "refresh_token" and rotation.policy == "never":
        yield fact("Rotation", "there is no refresh token that could be replaced.", Topic.ROTATION)
    else:
        yield fact("Rotation", f"the refresh token {_ROTATION[rotation.policy]}.", Topic.ROTATION)
    if rotation.grace_until_first_use:
        longest = f", for {exact_duration(rotation.grace_seconds)} at most" if rotation.grace_seconds else ""
        yield fact(
            "Replaced token",
            f"works until the new access token is used for the first time{longest}. Nobody can have used one whose "
            "answer was lost, so that request is made once more.",
            Topic.GRACE,
        )
    elif rotation.grace_seconds:
        yield fact(
            "Replaced token",
            f"works for another {exact_duration(rotation.grace_seconds)}; within that time a request whose answer "
            "was lost is made once more.",
            Topic.GRACE,
        )
    if rotation.policy != "never" and not (rotation.grace_seconds or rotation.grace_until_first_use):
        yield fact(
            "Replaced token",
            "is spent at once; after a lost answer the customer may have to sign in again.",
            Topic.GRACE,
        )
    if rotation.family_revocation:
        yield fact("Reuse", "presenting a replaced token again ends the whole grant.", Topic.FAMILY)
    if rotation.max_live is not None:
        per = f" for each {rotation.max_live_per}" if rotation.max_live_per else ""
        replays = (
            "" if rotation.policy == "never" else ", so one whose answers are lost is not replayed more often"
        )
        yield fact("Limit", f"{rotation.max_live} live refresh tokens{per}{replays}.", Topic.MAX_LIVE)


def pace_facts(spec: ProviderSpec) -> Iterator[Fact]:
    """Yield the pace of one app, and the headers that change it."""
    rate = spec.rate
    each = rate.requests_per_second
    limit = f"at most {each:.12g} a second in bursts of {burst_of(rate)}" if each else "no limit a second"
    outstanding = rate.max_outstanding or DEFAULT_MAX_OUTSTANDING
    yield fact("Pace", f"{limit}, at most {outstanding} under way at once, for each app.", Topic.PACE)
    if rate.reset_header:
        when = f"the header {rate.reset_header} says {_RESETS[rate.reset_format]} when there will be more"
        left = f"when {rate.remaining_header} is at 0 the app pauses, and " if rate.remaining_header else ""
        yield fact("Pace, by headers", f"{left}{when}.", Topic.PACE)


def _access(spec: ProviderSpec) -> str:
    life = spec.lifetimes
    if life.access_never_expires:
        return "lives until it is revoked, so it is not renewed."
    if spec.refresh.grant == "none":
        known = f"for {exact_duration(life.access_seconds)}" if life.access_seconds else "until it is revoked"
        return f"is never renewed; it lives as long as was said when it was imported, else {known}."
    margins = margins_of(life)
    latest, earliest = duration_text(margins.latest), duration_text(margins.earliest)
    known = exact_duration(life.access_seconds) if life.access_seconds else _unknown(spec)
    return (
        f"lives as long as the answer says, else {known}; renewed {latest} to {earliest} before its end, later for "
        "short lives."
    )


def _unknown(spec: ProviderSpec) -> str:
    """Return what is done about a token whose lifetime nobody states."""
    interval = duration_text(UNKNOWN_LIFETIME_INTERVAL)
    if spec.probe is None:
        return f"unknown, and then renewed every {interval}"
    return f"unknown, and then probed every {interval} at least until its end teaches how long it lives"
