"""Definitions and values of variables are untrusted: where requests go, what they carry, and what they cost."""

from __future__ import annotations

import tomllib
from datetime import UTC, datetime
from pathlib import Path

import pytest

from providers.contradictions import contradictions
from providers.credentials import ClientCredentials, Grant, RequestBuildError
from providers.exchange import Answer
from providers.loading import read_definition
from providers.problems import key_text
from providers.spec import ProviderSpec
from tests.providers.clients import client_of
from tests.providers.definitions import provider, toml
from tokenfleet.outcome import Refreshed
from tokenfleet_client.secret import Secret

NOW = datetime.now(UTC)
CLIENT = ClientCredentials("the-client", Secret("s3cret"))
REFRESH = 'endpoint = "https://auth.example.com/token"\n'
STEP = '[[steps]]\nendpoint = "https://api.example.com/login"\n'
TRADES = 'parameters = { token = "{access_token}" }\n'
PROBE = '[probe]\nendpoint = "https://api.example.com/me"\nmethod = "POST"\nalive_status = 200\n'
REVOKE = '[revoke]\nendpoint = "https://auth.example.com/revoke"\n'
DOTTED = 'parameters = { user = "x", "user.name" = "y" }\n'
SIGNED = '[assertion]\nalgorithm = "RS256"\naudience = "https://auth.example.com"\n'
RULE = '[[errors]]\noutcome = "grant_rejected"\n'
BASE = '[variables.base]\ndescription = "API base"\nkind = "url"\nfrom_answer = "base"\n'


def mistakes(extra: str, **parts: str) -> list[str]:
    """Return what authors are told of a definition."""
    spec = ProviderSpec.model_validate(tomllib.loads(toml(extra, **parts)))
    return [f"{key_text(location)} {reason}" for location, reason in contradictions(spec, allow_http=False)]


MISTAKES: dict[str, tuple[dict[str, str], str, str]] = {
    "a step names another host than its URL": (
        {},
        STEP + TRADES + 'headers = { Host = "other.example.com" }',
        "steps[1].headers.Host is set by the request itself and cannot be set here",
    ),
    "a step carries no token": (
        {},
        STEP,
        "steps[1] carries the {access_token} of the answer before it nowhere: it would ask for nobody",
    ),
    "a step has parameters and no place for them": (
        {},
        STEP + TRADES + 'body = "none"',
        "steps[1].parameters have no place, because body is 'none'",
    ),
    "more steps than a claim has time for": (
        {},
        (STEP + TRADES) * 4,
        "steps[4] is one too many: at most 3 steps follow an answer",
    ),
    "a step's JSON is a text and an object": (
        {},
        STEP + 'headers = { X-Token = "{access_token}" }\nbody = "json"\n' + DOTTED,
        "steps[1].parameters.\"user.name\" is inside 'user', which is sent as text",
    ),
    "a probe's JSON is a text and an object": (
        {},
        PROBE + 'body = "json"\n' + DOTTED,
        "probe.parameters.\"user.name\" is inside 'user', which is sent as text",
    ),
    "a revocation's JSON is a text and an object": (
        {},
        REVOKE + 'body = "json"\nparameters = { "token.hint" = "y" }',
        "revoke.parameters.\"token.hint\" is inside 'token', which is sent as text",
    ),
    "a revocation without a body would put the inherited secret into its URL": (
        {},
        REVOKE + 'body = "none"\nparameter = ""\nheaders = { X-Token = "{refresh_token}" }',
        (
            "revoke.authentication is client_secret_post, which has no place because body is 'none': "
            "say how this request authenticates"
        ),
    ),
    "a revocation would send the private key": (
        {"client": 'authentication = "private_key_jwt"'},
        SIGNED + REVOKE + 'authentication = "client_secret_basic"',
        "revoke.authentication would send the app's secret, which is the signing key here",
    ),
    "a probe would send the private key": (
        {"client": 'authentication = "private_key_jwt"'},
        SIGNED + PROBE + 'headers = { X-Key = "{client_secret}" }',
        "assertion.algorithm makes the app's secret a signing key, and a template sends it",
    ),
    "an endpoint in our own network": (
        {"refresh": 'endpoint = "https://169.254.169.254/token"'},
        "",
        (
            "refresh.endpoint must have a host of the public internet (for a sandbox, "
            "TOKENFLEET_ALLOW_HTTP_PROVIDERS=true allows others)"
        ),
    ),
    "a list of URLs that ends in anything": (
        {},
        BASE + 'pattern = "https://*.example.com*"',
        (
            "variables.base.pattern[1] lets the host end in anything: write the end of the permitted hosts, and a / "
            "before what may follow"
        ),
    ),
    "a list of URLs that names no host": (
        {},
        BASE + 'pattern = "*.example.com"',
        "variables.base.pattern[1] must name scheme and host, as URLs do: https://*.example.com",
    ),
    "a grant given up by an outage": (
        {},
        RULE + 'status = [400, 503]\npath = "error"\nvalue = "invalid_grant"',
        "errors[1].status has 503, which asks us to come again: no grant is given up by it",
    ),
    "a grant given up by a word for an outage": (
        {},
        RULE + 'path = "error"\nvalue = ["gone", "server_error"]',
        "errors[1].value has 'server_error', which asks us to come again: no grant is given up by it",
    ),
    "a grace that outlives the grant": (
        {"rotation": 'policy = "always"\ngrace_seconds = 7200'},
        "[lifetimes]\nrefresh_absolute_seconds = 3600",
        "rotation.grace_seconds is longer than a grant lives (3600)",
    ),
    "a probe that an outage passes": (
        {},
        PROBE.replace("200", "[200, 503]"),
        "probe.alive_status has 503, which says nothing of a token",
    ),
    "a probe that finds nobody dead": (
        {},
        PROBE + "dead_status = []",
        "probe.dead_status is empty, and so is dead_when: no token would ever be found dead",
    ),
    "too many rules": (
        {},
        '[[errors]]\noutcome = "unavailable"\npath = "error"\nvalue = "busy"\n' * 65,
        "errors has 65 entries: 64 are the most",
    ),
    "rules that take too long": (
        {},
        '[[errors]]\noutcome = "unavailable"\npath = ["a[].b[]", "c[].d[]", "e[].f[]"]\n'
        + f"pattern = {[f'{number}*' for number in range(60)]}\n" * 1
        + '[[errors]]\noutcome = "throttled"\npath = ["a[].b[]", "c[].d[]", "e[].f[]", "g", "h", "i"]\n'
        + f"pattern = {[f'*{number}' for number in range(60)]}\n",
        "errors compares each answer 540 times: 512 are the most",
    ),
    "a header of many tokens": (
        {},
        PROBE + 'body = "json"\n[probe.parameters]\nx = "' + "{access_token}" * 65 + '"',
        "probe is made of 66 values: 64 are the most",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_what_a_definition_must_not_ask_for_is_told(case: str) -> None:
    parts, extra, expected = MISTAKES[case]
    assert mistakes(extra, **parts) == [expected]


def test_computed_values_cannot_multiply() -> None:
    names = [chr(ord("a") + index) for index in range(12)]
    chain = "".join(
        f'[computed.{name}]\nkind = "base64"\nof = "{("{" + before + "}") * 60}"\n'
        for before, name in zip(["client_id", *names], names, strict=False)
    )
    told = mistakes(chain, refresh=REFRESH + 'parameters = { x = "{l}" }')
    assert len(told) == len(names)
    assert told[0] == "computed.b is made of 3600 values: 64 are the most"


OUR_OWN = [
    "localhost",
    "LOCALHOST",
    "api.localhost",
    "127.0.0.1",
    "127.1",
    "2130706433",
    "0x7f000001",
    "0177.0.0.1",
    "169.254.169.254",
    "10.0.0.1",
    "192.168.1.1",
    "100.64.0.1",
    "0.0.0.0",
]
AUTHORITIES = [
    *OUR_OWN,
    "[::1]",
    "[::ffff:169.254.169.254]",
    "[fd00:ec2::254]",
    "127.0.0.1:8443",
    "localhost.",
]


@pytest.mark.parametrize("host", OUR_OWN)
def test_a_customer_cannot_name_a_host_of_our_own_network(host: str) -> None:
    compiled = provider(
        '[variables.host]\ndescription = "host"\nkind = "host"', refresh='endpoint = "https://{host}/token"'
    )
    grant = Grant(Secret("refresh-1"), variables={"host": host})
    with pytest.raises(RequestBuildError, match="host of the public internet"):
        compiled.refresh_request(CLIENT, grant)


@pytest.mark.parametrize("authority", AUTHORITIES)
def test_an_answer_cannot_send_us_to_a_host_of_our_own_network(authority: str) -> None:
    compiled = provider(BASE, refresh='endpoint = "{base}/token"')
    body = f'{{"access_token": "a", "base": "https://{authority}/x"}}'.encode()
    outcome = compiled.read(Answer(200, {}, body), now=NOW)
    assert isinstance(outcome, Refreshed)
    assert outcome.answer.variables == {}


@pytest.mark.parametrize(
    "host", ["8.8.8.8", "api.example.com", "xn--bcher-kva.example", "gitlab.corp.internal"]
)
def test_other_hosts_are_asked(host: str) -> None:
    compiled = provider(
        '[variables.host]\ndescription = "host"\nkind = "host"', refresh='endpoint = "https://{host}/token"'
    )
    request = compiled.refresh_request(CLIENT, Grant(Secret("refresh-1"), variables={"host": host}))
    assert request.url == f"https://{host}/token"


@pytest.mark.parametrize(
    ("url", "is_permitted"),
    [
        ("https://rest9.example.com/rest/", True),
        ("https://evil.example/.example.com/rest/", False),
        ("https://evil.example/x?.example.com/", False),
        ("https://evil.example?.example.com/", False),
        ("https://rest9.example.com.evil.example/", False),
        ("https://rest9.example.com:444/", False),
    ],
)
def test_a_star_for_a_host_does_not_reach_into_the_path(url: str, is_permitted: bool) -> None:
    compiled = provider(BASE + 'pattern = "https://*.example.com/*"', refresh='endpoint = "{base}/token"')
    body = f'{{"access_token": "a", "base": "{url}"}}'.encode()
    outcome = compiled.read(Answer(200, {}, body), now=NOW)
    assert isinstance(outcome, Refreshed)
    assert outcome.answer.variables == ({"base": url} if is_permitted else {})


def test_a_step_presents_the_certificate_too() -> None:
    compiled = provider(STEP + TRADES, client='authentication = "none"\ncertificate = true')
    client = client_of(compiled)
    request = compiled.steps[0].build(client, Grant(None, access_token=Secret("access-1")), now=NOW)
    assert client.certificate is not None
    assert request.certificate == client.certificate


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("checked = " + "9" * 5000, "holds a number that is too long"),
        ("\n" + ".".join(["a"] * 30_000) + " = 1", "has a key of more than 100 parts"),
        ("a = " + "[" * 30_000 + "]" * 30_000, "is nested too deeply"),
        ("# " + "x" * 70_000, "is larger than 64 KiB"),
    ],
)
def test_a_file_that_costs_too_much_to_read_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    file = tmp_path / "huge.toml"
    file.write_text(text)
    spec, problems = read_definition(file, allow_http=False)
    assert spec is None
    assert [problem.reason for problem in problems] == [expected]
