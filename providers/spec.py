"""A provider as data: the models of the definition language (DESIGN section 6).

Promise: what is accepted here can be compiled and asked; a definition that says more than this language knows
is refused, never half understood. Later versions add keys with defaults and values to closed sets; they never
change what an existing key means, so a definition written for this version stays valid.

These models check one value at a time. What contradicts what is checked in ``providers.contradictions``; how
a mistake is told is ``providers.problems``.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from functools import cached_property
from types import MappingProxyType
from typing import Annotated, Final, Literal

from pydantic import BeforeValidator, Field

from providers.fields import (
    TEN_YEARS_SECONDS,
    HeaderName,
    Link,
    Name,
    Paths,
    PathText,
    Patterns,
    Seconds,
    Text,
    Texts,
    VariableName,
    listed,
)
from providers.patterns import Pattern
from providers.spec_answers import AnswerFields, ErrorRule
from providers.spec_part import Part
from providers.spec_requests import Assertion, Client, Computations, Probe, Refresh, Revoke, Step
from providers.templates import CLIENT_ID, VariableKind, VariableRule

MINIMUM_MARGIN_SECONDS: Final = 30
"""A token in the database always has this long to live (DESIGN section 1, G1)."""


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


class Rotation(Part):
    """What becomes of a refresh token when it is used (RFC 9700 section 4.14)."""

    policy: Literal["never", "sometimes", "always"]
    """Whether an answer carries a new refresh token that replaces the one presented."""
    grace_seconds: Annotated[int, Field(ge=0, le=TEN_YEARS_SECONDS)] = 0
    """How long the replaced one still works; 0 when it is spent at once."""
    family_revocation: bool = False
    """Whether presenting a replaced one ends the whole grant."""
    grace_until_first_use: bool = False
    """Whether the replaced one works until the new access token is used for the first time; with ``grace_seconds``, no
    longer than those."""
    max_live: Annotated[int, Field(ge=1)] | None = None
    """How many refresh tokens can be alive at once before the oldest dies."""
    max_live_per: Text | None = None
    """For whom that many: the user, the app and user, the client."""


class Lifetimes(Part):
    """How long things live where the answer does not say, and how early a token is renewed."""

    access_seconds: Seconds | None = None
    """How long an access token lives where the answer does not say."""
    refresh_idle_seconds: Seconds | None = None
    """A refresh token that is not used for this long dies."""
    refresh_absolute_seconds: Seconds | None = None
    """A grant dies this long after consent, however often it is used."""
    access_never_expires: bool = False
    """Access tokens live until they are revoked: they are only kept alive and probed."""
    earliest_refresh_seconds: Seconds | None = None
    """A refresh longer than this before the access token expires is refused."""
    minimum_age_seconds: Seconds | None = None
    """A refresh of an access token that is younger than this is refused."""
    margin_earliest_seconds: Seconds | None = None
    """A token is renewed this long before its end at the earliest: 180 where nothing is said, less for short lives."""
    margin_latest_seconds: Annotated[int, Field(ge=MINIMUM_MARGIN_SECONDS, le=TEN_YEARS_SECONDS)] | None = (
        None
    )
    """And this long before its end at the latest: 60 where nothing is said, less for short lives."""


class Rate(Part):
    """The pace that one client of this provider keeps."""

    requests_per_second: Annotated[float, Field(gt=0, le=100_000, allow_inf_nan=False)] | None = None
    """How many requests may leave each second, fleet-wide; none means: as many as are due."""
    burst: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """How many may leave at once; a second's worth where nothing is said."""
    max_outstanding: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """How many may be under way at once; 2000 where nothing is said."""
    remaining_header: HeaderName | None = None
    """Header of an answer that says how many requests are left; at 0 the app pauses until the reset."""
    reset_header: HeaderName | None = None
    """Header that says when there will be more."""
    reset_format: Literal["seconds", "epoch_seconds", "epoch_milliseconds", "iso8601"] = "seconds"
    """How ``reset_header`` says when."""


class TokenSet(Part):
    """One of the token sets that an installation brings; each is an account of its own, with a chain of its own."""

    at: PathText | None = None
    """Under which member of the answer it stands, in the shape of ``answer``; without it, at the top."""
    external_id: PathText | None = None
    """Where, from the top, the answer says whose it is; added to the installation's external id after a /."""


class ProviderSpec(Part):
    """A provider definition of Tokenfleet."""

    name: Name
    """What commands, imports and events call this provider; the file has the same name."""
    display_name: Text
    """What the provider calls itself, and which of its modes this is."""
    category: Name
    """What kind of product it is, in one word or several joined by underscores: crm, hr_payroll."""
    documentation: Link
    """The page of the provider's documentation that says how tokens are renewed."""
    confidence: Literal["high", "medium", "low"]
    """How sure all of this is: ``high`` stands in the provider's documentation or in two independent sources,
    ``medium`` is in use elsewhere and partly inferred, ``low`` has one source for the endpoints, none for the rest."""
    checked: date
    """When somebody last compared this definition with its sources."""
    unverified: Texts = ()
    """What nobody has confirmed."""
    notes: Text | None = None
    """What whoever looks after such accounts should know, in prose."""
    variables: dict[VariableName, Variable] = {}
    """Values that differ between accounts or apps, by name; templates use them as ``{name}``."""
    client: Client
    """How our client authenticates to the token endpoint."""
    refresh: Refresh = Refresh()
    """The request that brings the next access token."""
    assertion: Assertion | None = None
    """The token that the app signs for each request, if it signs one."""
    computed: Computations = {}
    """Values that are computed for each request, by name, in the order in which they may use each other."""
    answer: AnswerFields = AnswerFields()
    """Where an answer has what, and what makes it a success."""
    steps: Annotated[tuple[Step, ...], BeforeValidator(listed, json_schema_input_type=list[Step])] = ()
    """What follows a good answer, in order, before readers have their token."""
    connect: dict[Name, TokenSet] = {}
    """The token sets of the answer that connects an account, by name, if it brings more than one."""
    errors: Annotated[
        tuple[ErrorRule, ...], BeforeValidator(listed, json_schema_input_type=list[ErrorRule])
    ] = ()
    """What errors mean, in the order in which the rules are tried; after them count the codes of RFC 6749."""
    rotation: Rotation
    """What becomes of a refresh token when it is used."""
    lifetimes: Lifetimes = Lifetimes()
    """How long things live, and how early a token is renewed."""
    rate: Rate = Rate()
    """The pace that one client keeps."""
    probe: Probe | None = None
    """A cheap request that tells whether an access token works."""
    revoke: Revoke | None = None
    """The request that ends a grant."""

    @cached_property
    def rules(self) -> Mapping[str, VariableRule]:
        """The rule of every variable that templates of this definition may use, by name."""
        rules = {
            name: VariableRule(
                name, variable.kind, variable.default, tuple(map(Pattern.compile, variable.pattern))
            )
            for name, variable in self.variables.items()
        }
        return MappingProxyType({**rules, CLIENT_ID: VariableRule(CLIENT_ID, "text")})

    def variable_rules(self) -> dict[str, VariableRule]:
        """Return the rule of every variable that templates of this definition may use."""
        return dict(self.rules)
