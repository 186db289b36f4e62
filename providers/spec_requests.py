"""What a definition says of requests: how a client authenticates, what is presented, probed and revoked."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from providers.fields import (
    HeaderName,
    HeaderValue,
    ParameterName,
    Paths,
    Patterns,
    Scalars,
    Seconds,
    Statuses,
    StatusNumbers,
    Template,
    Text,
    VariableName,
    listed,
)
from providers.spec_answers import AnswerFields, Conditions
from providers.spec_part import Part

Method = Literal["POST", "GET", "PUT", "PATCH", "DELETE"]
ParametersIn = Literal["form", "json", "query", "none"]
"""Where parameters go: in a body of that format, in the query, or nowhere."""
ParameterText = Annotated[str, Field(max_length=1000)]

Grant = Literal["refresh_token", "client_credentials", "jwt_bearer", "token_exchange", "access_token", "none"]


class Client(Part):
    """How our client authenticates to the token endpoint, by registered names (RFC 7591 section 2) where there are."""

    authentication: Literal[
        "client_secret_basic",
        "client_secret_post",
        "client_secret_as_user",
        "private_key_jwt",
        "signed_secret",
        "bearer_assertion",
        "none",
    ]
    """``client_secret_as_user`` is Basic with the secret as user name and no password. ``private_key_jwt`` sends a
    signed assertion (RFC 7523 section 2.2), ``signed_secret`` sends one as client secret, ``bearer_assertion`` as
    bearer token; for these the app's secret is the signing key."""
    certificate: bool = False
    """Whether the connection carries the app's own certificate (RFC 8705), whatever else authenticates."""
    send_id: bool | None = None
    """Whether the client id is sent as a parameter. Without it, it is where nothing else says who asks: not with Basic
    or a bearer assertion, and without authentication not for the grants jwt_bearer and access_token."""


class ParameterNames(Part):
    """What this provider calls the parameters of RFC 6749, 7523 and 8693. In JSON, a dot leads into an object."""

    grant_type: ParameterName = "grant_type"
    """Which grant is meant."""
    refresh_token: ParameterName = "refresh_token"
    """The refresh token."""
    access_token: ParameterName = "access_token"
    """The access token, where it is what is presented."""
    subject_token: ParameterName = "subject_token"
    """The token that is exchanged."""
    assertion: ParameterName = "assertion"
    """The signed assertion, where it is the grant."""
    scope: ParameterName = "scope"
    """What is asked for."""
    client_id: ParameterName = "client_id"
    """Our client id."""
    client_secret: ParameterName = "client_secret"
    """Our client secret, or the assertion in its place."""
    client_assertion: ParameterName = "client_assertion"
    """The signed assertion, where it authenticates the client."""
    client_assertion_type: ParameterName = "client_assertion_type"
    """What kind of assertion that is."""


class Assertion(Part):
    """A JSON Web Token that the app signs with its private key for each request (RFC 7523 section 3)."""

    algorithm: Literal["RS256", "PS256", "ES256", "HS256"]
    """How it is signed (RFC 7518 section 3.1)."""
    issuer: Template = "{client_id}"
    """Who signs (``iss``), a template over variables."""
    subject: Annotated[str, Field(max_length=1000)] = "{client_id}"
    """For whom it asks; empty for nobody in particular."""
    audience: Template
    """For which server (``aud``), a template over variables."""
    lifetime_seconds: Annotated[int, Field(ge=1, le=15_777_000)] = 300
    """How long it is good for (``exp`` less ``iat``)."""
    backdate_seconds: Annotated[int, Field(ge=0, le=300)] = 0
    """How long before now it says that it was issued, for servers whose clock is behind."""
    key_id: Template | None = None
    """Which of the keys has signed it, in its head."""
    claims: dict[ParameterName, ParameterText | int | bool] = {}
    """Further claims, templates over variables."""
    head: dict[ParameterName, ParameterText] = {}
    """Further members of its head, templates over variables: the thumbprint of a certificate, say."""


class Computed(Part):
    """A value that is computed for each request, for templates of parameters and headers.

    ``of`` and ``key`` are templates over variables, ``client_secret``, ``refresh_token``, ``access_token`` and the
    values computed before it; text is taken as UTF-8. A ``random`` one has 16 bytes.
    """

    kind: Literal["sha256", "hmac_sha256", "base64", "timestamp", "random"]
    """How it is computed."""
    of: Template | None = None
    """What is hashed or encoded."""
    key: Template | None = None
    """What ``hmac_sha256`` is keyed with."""
    encoding: Literal["hex", "upper_hex", "base64", "base64url"] = "hex"
    """How bytes are written; base64url without padding. ``base64`` is base64, or base64url where this says so."""
    unit: Literal["seconds", "milliseconds"] = "seconds"
    """Of a ``timestamp``."""


class Refresh(Part):
    """The request that brings the next access token.

    A credential that a template of ``parameters`` or ``headers`` places ({client_secret}, {refresh_token},
    {access_token}, {assertion}) is not sent under its own name too, and the client's secret neither where a digest
    covers it.
    """

    endpoint: Template | None = None
    """Token endpoint: an https URL over declared variables."""
    grant: Grant = "refresh_token"
    """What is presented: the refresh token (RFC 6749 section 6), the client alone (4.4), an assertion (RFC 7523), a
    token of another kind that is kept (RFC 8693), the access token itself, or nothing at all, ever."""
    grant_type: Annotated[str, Field(max_length=200)] | None = None
    """What is sent as grant type, if not what the RFC says; empty for none."""
    method: Literal["POST", "GET", "PUT", "PATCH"] = "POST"
    """The HTTP method."""
    body: ParametersIn = "form"
    """Where the parameters go; those of a GET request are in the query."""
    names: ParameterNames = ParameterNames()
    """What the provider calls the parameters, where it has names of its own."""
    parameters: dict[ParameterName, ParameterText] = {}
    """Further parameters, templates over variables."""
    headers: dict[HeaderName, HeaderValue] = {}
    """Further headers, templates over variables."""
    send_scope: bool = False
    """Whether the scope that was granted is asked for again."""


class Step(Part):
    """A request that follows a good answer, to trade its access token for the one that readers are to have."""

    endpoint: Template
    """Where it is asked: an https URL over declared variables."""
    method: Method = "POST"
    """The HTTP method."""
    body: ParametersIn = "form"
    """Where the parameters go."""
    parameters: dict[ParameterName, ParameterText] = {}
    """Templates over variables and ``access_token``, the one that the request before has brought."""
    headers: dict[HeaderName, HeaderValue] = {}
    """Further headers, templates over the same."""
    answer: AnswerFields = AnswerFields()
    """Where its answer has what. The access token that readers get is the last step's."""


class ProbeRule(Part):
    """An answer to a probe that says: the token does not work. Without status, 2xx and 4xx."""

    status: Statuses = ()
    """Statuses or classes of statuses that it is for."""
    path: Paths
    """Where to look in the answer."""
    value: Scalars = ()
    """Exactly one of these."""
    pattern: Patterns = ()
    """Or one of these, ``*`` for any run of characters."""


class Probe(Part):
    """A cheap request with the access token that tells whether it works."""

    endpoint: Template
    """What is asked: an https URL over declared variables."""
    method: Literal["GET", "POST"] = "GET"
    """The HTTP method."""
    authorization: Annotated[str, Field(max_length=512)] = "Bearer {access_token}"
    """The Authorization header, a template over variables, ``access_token`` and computed values; empty for none."""
    headers: dict[HeaderName, HeaderValue] = {}
    """Further headers, templates over the same."""
    parameters: dict[ParameterName, ParameterText] = {}
    """Parameters, templates over the same."""
    body: ParametersIn = "query"
    """Where the parameters go."""
    alive_status: StatusNumbers
    """Statuses that mean: the token works."""
    alive_when: Conditions = ()
    """What must hold of such an answer too, all of it."""
    dead_status: StatusNumbers = (401,)
    """Statuses that mean: it does not; a refresh follows, and only its outcome decides."""
    dead_when: Annotated[
        tuple[ProbeRule, ...], BeforeValidator(listed, json_schema_input_type=list[ProbeRule])
    ] = ()
    """What means it by its body, unless all of ``alive_when`` holds as well: then nothing is certain."""
    every_seconds: Seconds = 21_600
    """How often a token is probed that is not refreshed sooner."""
    needs_scope: Text | None = None
    """Scopes, separated by spaces, without which it cannot be asked; accounts that lack one are not probed."""


class Revoke(Part):
    """The revocation request (RFC 7009)."""

    endpoint: Template
    """Where it is asked: an https URL over declared variables."""
    method: Literal["POST", "DELETE", "GET"] = "POST"
    """The HTTP method."""
    body: ParametersIn = "form"
    """Where the parameters go."""
    parameter: ParameterName | Literal[""] = "token"
    """What the token is called; empty where a header alone carries it."""
    token: Literal["refresh_token", "access_token"] = "refresh_token"
    """Which token is presented; the grant ends with it."""
    authentication: Literal["client_secret_basic", "client_secret_post", "bearer", "none"] | None = None
    """How the request authenticates, if not as at the token endpoint; ``bearer`` by the access token."""
    parameters: dict[ParameterName, ParameterText] = {}
    """Further parameters, templates over variables, ``client_secret`` and ``access_token``."""
    headers: dict[HeaderName, HeaderValue] = {}
    """Further headers, templates over the same."""
    gone_status: StatusNumbers = ()
    """Statuses besides 2xx that mean: it is revoked, or was already."""


Computations = dict[VariableName, Computed]
