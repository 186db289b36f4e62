"""A provider as data: the models of the definition language (DESIGN section 6).

Promise: what is accepted here can be compiled and asked; a definition that says more than this language knows
is refused, never half understood. Later versions add keys with defaults and values to closed sets; they never
change what an existing key means, so a definition written for this version stays valid.

These models check one value at a time. What contradicts what is checked in ``providers.contradictions``; how
a mistake is told is ``providers.problems``.
"""

from __future__ import annotations

from datetime import date
from typing import Annotated, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from providers.fields import (
    TEN_YEARS_SECONDS,
    Code,
    HeaderName,
    HeaderValue,
    Link,
    Name,
    ParameterName,
    Paths,
    PathText,
    Patterns,
    Scalars,
    Seconds,
    Statuses,
    StatusNumbers,
    Template,
    Text,
    Texts,
    VariableName,
    from_path,
    listed,
)
from providers.patterns import Pattern
from providers.templates import CLIENT_ID, VariableKind, VariableRule

MINIMUM_MARGIN_SECONDS: Final = 30
"""A token in the database always has this long to live (DESIGN section 1, G1)."""

RefreshOutcome = Literal[
    "grant_rejected", "client_rejected", "throttled", "unavailable", "request_rejected", "undescribed"
]


class Part(BaseModel):
    """A table of a definition: strict types, no unknown keys, immutable."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, use_attribute_docstrings=True)


class Variable(Part):
    """A value that differs between accounts or apps: a subdomain, a tenant, an API base."""

    description: Text
    """What it is and where its value comes from."""
    kind: VariableKind = "text"
    """Which characters it may have, and so where it may stand: a host name takes only a label or a host."""
    default: Text | None = None
    """Its value where an account says nothing. Without one, every account has to say it."""
    pattern: Patterns = ()
    """What its values look like, * for any run of characters; any one of several suffices."""
    from_answer: Paths = ()
    """Where each answer states it, if it is captured from answers."""


class Client(Part):
    """How our client authenticates to the token endpoint, by registered names (RFC 7591 section 2)."""

    authentication: Literal["client_secret_basic", "client_secret_post", "none"]


class ParameterNames(Part):
    """What this provider calls the parameters of RFC 6749 section 6."""

    grant_type: ParameterName = "grant_type"
    refresh_token: ParameterName = "refresh_token"
    scope: ParameterName = "scope"
    client_id: ParameterName = "client_id"
    client_secret: ParameterName = "client_secret"


class Refresh(Part):
    """The refresh request (RFC 6749 section 6)."""

    endpoint: Template
    """Token endpoint: an https URL over declared variables."""
    grant: Literal["refresh_token"] = "refresh_token"
    grant_type: Annotated[str, Field(min_length=1, max_length=200)] = "refresh_token"
    """What is sent as grant type."""
    method: Literal["POST", "GET"] = "POST"
    body: Literal["form", "json"] = "form"
    """Format of the body; a GET request has its parameters in the query instead."""
    names: ParameterNames = ParameterNames()
    parameters: dict[ParameterName, Annotated[str, Field(max_length=1000)]] = {}
    """Further parameters, templates over variables."""
    headers: dict[HeaderName, HeaderValue] = {}
    """Further headers, templates over variables."""
    send_scope: bool = False
    """Whether the scope that was granted is asked for again."""


class Duration(Part):
    """A lifetime in the answer, counted from when we received it."""

    path: Paths
    unit: Literal["seconds", "milliseconds", "minutes", "hours", "days"] = "seconds"


class Moment(Part):
    """An absolute expiry in the answer."""

    path: Paths
    format: Literal["epoch_seconds", "epoch_milliseconds", "iso8601"]


class Condition(Part):
    """Something that must hold of an answer.

    It holds when a value at ``path`` is one of ``value``, or fits one of ``pattern``, or when ``absent`` is
    set and nothing stands there (no member, null, empty text). With none of the three, anything will do.
    """

    path: Paths
    value: Scalars = ()
    pattern: Patterns = ()
    absent: bool = False


Conditions = Annotated[
    tuple[Condition, ...], BeforeValidator(listed, json_schema_input_type=Condition | list[Condition])
]
DurationField = Annotated[
    Duration, BeforeValidator(from_path, json_schema_input_type=PathText | list[PathText] | Duration)
]


class AnswerFields(Part):
    """Where a token response (RFC 6749 section 5.1) has what, as paths; several are tried in order."""

    access_token: Paths = ("access_token",)
    refresh_token: Paths = ("refresh_token",)
    token_type: Paths = ("token_type",)
    scope: Paths = ("scope",)
    expires_in: DurationField = Duration(path=("expires_in",))
    expires_at: Moment | None = None
    refresh_token_expires_in: DurationField = Duration(path=("refresh_token_expires_in",))
    refresh_token_expires_at: Moment | None = None
    success: Conditions = (Condition(path=("error",), value=(False, 0), absent=True),)
    """What makes a 2xx answer a success, besides an access token. All must hold."""


class ErrorRule(Part):
    """An error of this provider and what it means. Rules are tried in order, the first that fits counts."""

    outcome: RefreshOutcome
    status: Statuses = ()
    """Statuses or classes of statuses; none means 2xx and 4xx. 429 only counts where it is named."""
    path: Paths = ()
    value: Scalars = ()
    pattern: Patterns = ()
    code: Code | None = None
    """Machine word for history and metrics; without one, the value that matched."""
    meaning: Text | None = None
    """What it means, for people."""
    affects: Literal["connection", "app"] | None = None
    """Whom it concerns: this connection alone, or everybody of the app. Without it, as the outcome says: a rejected
    client and throttling concern the app, all else the connection. An outage (5xx) that concerns one connection, on a
    host of its own say, does not count as the provider's."""


class Rotation(Part):
    """What becomes of a refresh token when it is used (RFC 9700 section 4.14)."""

    policy: Literal["never", "sometimes", "always"]
    """Whether an answer carries a new refresh token that replaces the one presented."""
    grace_seconds: Annotated[int, Field(ge=0, le=TEN_YEARS_SECONDS)] = 0
    """How long the replaced one still works; 0 when it is spent at once."""
    family_revocation: bool = False
    """Whether presenting a replaced one ends the whole grant."""
    max_live: Annotated[int, Field(ge=1)] | None = None
    """How many refresh tokens can be alive at once before the oldest dies."""
    max_live_per: Text | None = None
    """For whom that many: the user, the app and user, the client."""


class Lifetimes(Part):
    """How long things live where the answer does not say, and how early a token is renewed."""

    access_seconds: Seconds | None = None
    refresh_idle_seconds: Seconds | None = None
    """A refresh token that is not used for this long dies."""
    refresh_absolute_seconds: Seconds | None = None
    """A grant dies this long after consent, however often it is used."""
    access_never_expires: bool = False
    """Access tokens live until they are revoked: they are only kept alive and probed."""
    earliest_refresh_seconds: Seconds | None = None
    """A refresh longer than this before the access token expires is refused."""
    margin_earliest_seconds: Seconds | None = None
    margin_latest_seconds: Annotated[int, Field(ge=MINIMUM_MARGIN_SECONDS, le=TEN_YEARS_SECONDS)] | None = (
        None
    )


class Rate(Part):
    """The pace that one client of this provider keeps."""

    requests_per_second: Annotated[float, Field(gt=0, le=100_000, allow_inf_nan=False)] | None = None
    burst: Annotated[int, Field(ge=1, le=100_000)] | None = None
    max_outstanding: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    remaining_header: HeaderName | None = None
    """Header of an answer that says how many requests are left; at 0 the app pauses until the reset."""
    reset_header: HeaderName | None = None
    """Header that says when there will be more."""
    reset_format: Literal["seconds", "epoch_seconds", "epoch_milliseconds", "iso8601"] = "seconds"


class Probe(Part):
    """A cheap request with the access token that tells whether it works."""

    endpoint: Template
    method: Literal["GET", "POST"] = "GET"
    alive_status: StatusNumbers
    """Statuses that mean: the token works."""
    dead_status: StatusNumbers = (401,)
    """Statuses that mean: it does not; a refresh follows, and only its outcome decides."""
    every_seconds: Seconds = 21_600
    """How often a token is probed that is not refreshed sooner."""
    needs_scope: Text | None = None


class Revoke(Part):
    """The revocation request (RFC 7009)."""

    endpoint: Template
    method: Literal["POST", "DELETE"] = "POST"
    body: Literal["form", "json"] = "form"
    parameter: ParameterName = "token"
    token: Literal["refresh_token", "access_token"] = "refresh_token"
    """Which token is presented; the grant ends with it."""
    authentication: Literal["client_secret_basic", "client_secret_post", "none"] | None = None
    """How the client authenticates there, if not as to the token endpoint."""


class ProviderSpec(Part):
    """A provider definition of Tokenfleet."""

    name: Name
    display_name: Text
    category: Name
    documentation: Link
    confidence: Literal["high", "medium", "low"]
    checked: date
    """When somebody last compared this definition with its sources."""
    unverified: Texts = ()
    """What nobody has confirmed."""
    notes: Text | None = None
    variables: dict[VariableName, Variable] = {}
    client: Client
    refresh: Refresh
    answer: AnswerFields = AnswerFields()
    errors: Annotated[
        tuple[ErrorRule, ...], BeforeValidator(listed, json_schema_input_type=list[ErrorRule])
    ] = ()
    rotation: Rotation
    lifetimes: Lifetimes = Lifetimes()
    rate: Rate = Rate()
    probe: Probe | None = None
    revoke: Revoke | None = None

    def variable_rules(self) -> dict[str, VariableRule]:
        """Return the rule of every variable that templates of this definition may use."""
        rules = {
            name: VariableRule(
                name, variable.kind, variable.default, tuple(map(Pattern.compile, variable.pattern))
            )
            for name, variable in self.variables.items()
        }
        rules[CLIENT_ID] = VariableRule(CLIENT_ID, "text")
        return rules
