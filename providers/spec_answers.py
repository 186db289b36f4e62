"""What a definition says of answers: where their fields are, when they are a success, what an error means."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator

from providers.fields import (
    Code,
    Paths,
    PathText,
    Patterns,
    Scalars,
    Statuses,
    Text,
    from_path,
    listed,
)
from providers.spec_part import Part

RefreshOutcome = Literal[
    "grant_rejected", "client_rejected", "throttled", "unavailable", "request_rejected", "undescribed"
]


class Duration(Part):
    """A lifetime in the answer, counted from when we received it."""

    path: Paths
    """Where it stands; the first of several that leads to a value counts."""
    unit: Literal["seconds", "milliseconds", "minutes", "hours", "days"] = "seconds"
    """What it counts, where it is a number."""
    format: Literal["number", "days_hours_minutes", "hours_minutes_seconds"] = "number"
    """A number of units, or three numbers between colons, of which the last two stay below the next larger unit."""
    zero_is_never: bool = False
    """Whether 0 means that the token lives until it is revoked, where the answer states no end of it elsewhere."""


class Moment(Part):
    """An absolute expiry in the answer."""

    path: Paths
    """Where it stands; the first of several that leads to a value counts."""
    format: Literal["epoch_seconds", "epoch_milliseconds", "iso8601", "http_date"]
    """How it is written."""


class Condition(Part):
    """Something that must hold of an answer.

    It holds when a value at ``path`` is one of ``value``, or fits one of ``pattern``, or when ``absent`` is
    set and nothing stands there (no member, null, empty text). With none of the three, anything will do.
    """

    path: Paths
    """Where to look: names joined by dots, ``[0]`` an element, ``[]`` every element."""
    value: Scalars = ()
    """Exactly one of these; numbers and numeric text are the same."""
    pattern: Patterns = ()
    """Or one of these, ``*`` for any run of characters."""
    absent: bool = False
    """Or nothing at all."""


Conditions = Annotated[
    tuple[Condition, ...], BeforeValidator(listed, json_schema_input_type=Condition | list[Condition])
]
DurationField = Annotated[
    Duration, BeforeValidator(from_path, json_schema_input_type=PathText | list[PathText] | Duration)
]


class AnswerFields(Part):
    """Where a token response (RFC 6749 section 5.1) has what, as paths; several are tried in order."""

    access_token: Paths = ("access_token",)
    """Where the access token stands."""
    keeps_access_token: bool = False
    """Whether a success may state no access token, and the one that we have goes on living from then. Such an answer
    has to be whole, hold what ``success`` asks for and be nothing that a rule of ``errors`` knows."""
    refresh_token: Paths = ("refresh_token",)
    """Where a new refresh token stands, if one comes."""
    token_type: Paths = ("token_type",)
    """Where the token type stands."""
    scope: Paths = ("scope",)
    """Where the granted scope stands."""
    expires_in: DurationField = Duration(path=("expires_in",))
    """How long the access token lives, counted from when we received the answer."""
    expires_at: Moment | None = None
    """When the access token ends, if the answer tells a moment."""
    refresh_token_expires_in: DurationField = Duration(path=("refresh_token_expires_in",))
    """How long the refresh token lives, counted from when we received the answer."""
    refresh_token_expires_at: Moment | None = None
    """When the refresh token ends, if the answer tells a moment."""
    success: Conditions = (Condition(path=("error",), value=(False, 0), absent=True),)
    """What makes a 2xx answer a success, besides an access token. All must hold."""


class ErrorRule(Part):
    """An error of this provider and what it means. Rules are tried in order, the first that fits counts."""

    outcome: RefreshOutcome
    """What it means: the names of the table in docs/judgement.md."""
    status: Statuses = ()
    """Statuses or classes of statuses; none means 2xx and 4xx. 429 only counts where it is named."""
    path: Paths = ()
    """Where to look: names joined by dots, ``[0]`` an element, ``[]`` every element."""
    value: Scalars = ()
    """Exactly one of these; numbers and numeric text are the same. Without value and pattern, anything there."""
    pattern: Patterns = ()
    """Or one of these, ``*`` for any run of characters."""
    code: Code | None = None
    """Machine word for history and metrics; without one, the value that matched."""
    meaning: Text | None = None
    """What it means, for people."""
    affects: Literal["connection", "app"] | None = None
    """Whom it concerns: this connection alone, or everybody of the app. Without it, as the outcome says: a rejected
    client and throttling concern the app, all else the connection. An outage (5xx) that concerns one connection, on a
    host of its own say, does not count as the provider's."""
