"""What contradicts what in a definition about how long things live, what replaces them, and what follows an answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from providers.problems import Location
from providers.spec import MINIMUM_MARGIN_SECONDS, ProviderSpec

Finding = tuple[Location, str]

RENEWAL_KEYS: Final = (
    "earliest_refresh_seconds",
    "minimum_age_seconds",
    "margin_earliest_seconds",
    "margin_latest_seconds",
)
"""Keys of ``lifetimes`` that say when a token is renewed."""
WITHOUT_IDLE: Final = frozenset({"client_credentials", "jwt_bearer", "access_token", "none"})
"""Grants of which nothing stands in the place of a refresh token, so nothing there can die of disuse."""


def lifetime_mistakes(spec: ProviderSpec) -> Iterator[Finding]:
    """Yield every contradiction of rotation, lifetimes, answers and steps."""
    yield from _rotation(spec)
    yield from _lifetimes(spec)
    yield from _kept_token(spec)
    yield from _one_place(spec)
    if spec.refresh.grant == "none":
        yield from _never_renewed(spec)


def _rotation(spec: ProviderSpec) -> Iterator[Finding]:
    rotation, lifetimes = spec.rotation, spec.lifetimes
    if rotation.policy == "never":
        if rotation.grace_seconds:
            yield ("rotation", "grace_seconds"), "is a grace window, but refresh tokens are never rotated"
        if rotation.grace_until_first_use:
            yield ("rotation", "grace_until_first_use"), "is a grace, but refresh tokens are never rotated"
        if rotation.family_revocation:
            yield ("rotation", "family_revocation"), "punishes reuse, but refresh tokens are never rotated"
    elif spec.refresh.grant != "refresh_token":
        yield (
            ("rotation", "policy"),
            f"must be 'never': a grant of kind {spec.refresh.grant!r} presents no refresh token",
        )
    idle = lifetimes.refresh_idle_seconds
    if idle is not None and rotation.grace_seconds > idle:
        yield ("rotation", "grace_seconds"), f"is longer than a refresh token lives unused ({idle})"
    absolute = lifetimes.refresh_absolute_seconds
    if absolute is not None and rotation.grace_seconds > absolute:
        yield ("rotation", "grace_seconds"), f"is longer than a grant lives ({absolute})"
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
    yield from _minimum_age(spec)
    idle, absolute = life.refresh_idle_seconds, life.refresh_absolute_seconds
    if idle is not None and spec.refresh.grant in WITHOUT_IDLE:
        yield (
            ("lifetimes", "refresh_idle_seconds"),
            f"has no meaning: a grant of kind {spec.refresh.grant!r} presents no refresh token",
        )
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


def _minimum_age(spec: ProviderSpec) -> Iterator[Finding]:
    """Report an age at which a token, or what renews it, is as good as dead."""
    life = spec.lifetimes
    age, access, idle = life.minimum_age_seconds, life.access_seconds, life.refresh_idle_seconds
    if age is None:
        return
    location: Location = ("lifetimes", "minimum_age_seconds")
    if access is not None and access - age < MINIMUM_MARGIN_SECONDS:
        yield location, f"leaves no moment for a refresh: an access token lives {access}"
    elif access is not None:
        for key in ("margin_earliest_seconds", "margin_latest_seconds"):
            margin = getattr(life, key)
            if margin is not None and margin > access - age:
                yield (
                    ("lifetimes", key),
                    f"is earlier than the provider permits: minimum_age_seconds is {age} of {access}",
                )
    if idle is not None and age >= idle:
        yield location, f"allows no refresh before an unused refresh token dies ({idle})"


def _kept_token(spec: ProviderSpec) -> Iterator[Finding]:
    location: Location = ("answer", "keeps_access_token")
    life = spec.lifetimes
    if spec.answer.keeps_access_token:
        if spec.steps:
            yield location, "contradicts steps, which trade the access token of each answer"
        elif (
            life.access_seconds is None
            and not life.access_never_expires
            and not spec.answer.model_fields_set & {"expires_in", "expires_at"}
        ):
            yield location, "needs lifetimes.access_seconds, which says for how long the token lives on"
    for number, step in enumerate(spec.steps):
        if step.answer.keeps_access_token:
            yield (
                ("steps", number, "answer", "keeps_access_token"),
                "has no meaning in a step: what it has to bring is an access token",
            )


def _one_place(spec: ProviderSpec) -> Iterator[Finding]:
    """Report a refresh token that is read where the access token stands: it would take that one's place."""
    both = set(spec.answer.access_token) & set(spec.answer.refresh_token)
    if spec.refresh.grant == "refresh_token" and both:
        yield ("answer", "refresh_token"), f"is {min(both)}, where the access token stands"


def _never_renewed(spec: ProviderSpec) -> Iterator[Finding]:
    """Report what has no meaning where access tokens are never renewed."""
    life = spec.lifetimes
    for key in RENEWAL_KEYS:
        if getattr(life, key) is not None:
            yield ("lifetimes", key), "has no meaning when the grant is 'none': nothing is renewed"
    if spec.steps:
        yield ("steps", 0), "follows an answer, and there is none when the grant is 'none'"
    if spec.probe is None and not spec.notes:
        yield (
            ("probe",),
            (
                "is missing: without one nobody learns that a key has ended. If the provider has nothing to probe, say "
                "so in notes"
            ),
        )
