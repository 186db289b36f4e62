"""Mistakes in definitions: all of them at once, each with file, line, key and a reason in plain words."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from providers import load_registry
from providers.describe import validate_paths
from providers.loading import read_directory
from providers.spec_answers import RefreshOutcome
from providers.spec_requests import Refresh
from tests.providers.definitions import toml
from tests.providers.mistaken_requests import REQUESTS
from tokenfleet.errors import DefinitionError

AUTHENTICATIONS = (
    "client_secret_basic, client_secret_post, client_secret_as_user, private_key_jwt, signed_secret, "
    "bearer_assertion, none"
)
STATUS = "must be a status such as 400, or a class such as '4xx'"
PATH = "write names joined by dots, [0] for an element, [] for every element"


def mistakes(tmp_path: Path, text: str) -> list[str]:
    """Return the problems of one definition, without the folder they are in."""
    file = tmp_path / "example.toml"
    file.write_text(text, "utf-8")
    return [str(problem).removeprefix(f"{tmp_path}/") for problem in validate_paths([file])]


def test_a_good_definition_has_no_mistakes(tmp_path: Path) -> None:
    assert mistakes(tmp_path, toml()) == []


def test_every_mistake_of_a_file_is_told_with_its_line(tmp_path: Path) -> None:
    text = """\
nmae = "example"
display_name = 5
category = "CRM"
documentation = "http://docs.example.com"
confidence = "hihg"
checked = "2026-01-31"

[client]
authentication = "client_secret_pots"

[refresh]
endpoint = "https://auth.example.com/token"
metod = "POST"
zzz = '''
[not a table]
key = "not a key"
'''

[rotation]
policy = "sometimes"
grace_seconds = -1

[rate]
requests_per_second = 0

[[errors]]
outcome = "gone"

[[errors]]
outcome = "throttled"
status = ["4x", 700, "5xx"]
path = "a..b"
"""
    told = mistakes(tmp_path, text)
    assert [line.removeprefix("example.toml") for line in told] == [
        ": name is missing",
        ":1: nmae is not a known key: did you mean 'name'?",
        ":2: display_name must be text in quotes",
        ":3: category must be 2 to 63 lower-case letters, digits and underscores",
        ":4: documentation must be an https link",
        ":5: confidence must be one of high, medium, low: did you mean 'high'?",
        ":6: checked must be a date such as 2026-01-31, without quotes",
        f":9: client.authentication must be one of {AUTHENTICATIONS}: did you mean 'client_secret_post'?",
        ":13: refresh.metod is not a known key: did you mean 'method'?",
        ":14: refresh.zzz is not a known key here: known are " + ", ".join(Refresh.model_fields),
        ":21: rotation.grace_seconds must be at least 0",
        ":24: rate.requests_per_second must be more than 0",
        ":27: errors[1].outcome must be one of " + ", ".join(get_args(RefreshOutcome)),
        f":31: errors[2].status[1] must be a whole number or {STATUS}",
        ":31: errors[2].status[2] must be at most 599 or must be text in quotes",
        f":32: errors[2].path[1] is not a path: {PATH}",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name = ?", "example.toml:1: is not TOML: Invalid value"),
        ("name = ", "example.toml: is not TOML: Invalid value"),
        ('name = "a"\nname = "b"\n', "example.toml:2: is not TOML: a key is there twice"),
        ("[a.b]\n[a.b]\n", "example.toml:2: is not TOML: [a.b] is there twice"),
        ("\na" + ".a" * 20_000 + " = 1", "example.toml:2: has a key of more than 100 parts"),
        (
            "[rotation]\ngrace_seconds = 99999999999",
            "example.toml:2: rotation.grace_seconds must be at most 315360000",
        ),
        ("", "example.toml: rotation is missing: without refresh tokens, its policy is 'never'"),
        ('[rotation]\n"a[b" = 1', 'example.toml:2: rotation."a[b" is not a known key here'),
        ("", "example.toml: name is missing"),
        ("a = " + "[" * 5000, "example.toml: is nested too deeply"),
    ],
)
def test_what_is_no_toml_is_told_with_its_line(tmp_path: Path, text: str, expected: str) -> None:
    assert any(mistake.startswith(expected) for mistake in mistakes(tmp_path, text))


def test_a_file_as_windows_saves_it_is_read(tmp_path: Path) -> None:
    assert mistakes(tmp_path, "\ufeff" + toml().replace("\n", "\r\n")) == []


def test_what_never_ends_is_not_read_to_its_end() -> None:
    [problem] = validate_paths([Path("/dev/zero")])
    assert str(problem) == "/dev/zero: is larger than 64 KiB"


PROBE = '[probe]\nendpoint = "https://api.example.com/me"\nalive_status = 200\n'
REVOKE = '[revoke]\nendpoint = "https://auth.example.com/revoke"\n'

CONTRADICTIONS = {
    "grace without rotation": (
        {"rotation": 'policy = "never"\ngrace_seconds = 60'},
        "",
        "rotation.grace_seconds is a grace window, but refresh tokens are never rotated",
    ),
    "family without rotation": (
        {"rotation": 'policy = "never"\nfamily_revocation = true'},
        "",
        "rotation.family_revocation punishes reuse, but refresh tokens are never rotated",
    ),
    "grace longer than the token lives": (
        {"rotation": 'policy = "always"\ngrace_seconds = 61'},
        "[lifetimes]\nrefresh_idle_seconds = 60",
        "rotation.grace_seconds is longer than a refresh token lives unused (60)",
    ),
    "margin longer than the lifetime": (
        {},
        "[lifetimes]\naccess_seconds = 300\nmargin_earliest_seconds = 300",
        "lifetimes.margin_earliest_seconds is not shorter than the access token's life (300)",
    ),
    "margins the wrong way round": (
        {},
        "[lifetimes]\nmargin_earliest_seconds = 60\nmargin_latest_seconds = 90",
        "lifetimes.margin_latest_seconds is longer than margin_earliest_seconds (60)",
    ),
    "margin under the promise": (
        {},
        "[lifetimes]\nmargin_latest_seconds = 29",
        "lifetimes.margin_latest_seconds must be at least 30",
    ),
    "idle longer than absolute": (
        {},
        "[lifetimes]\nrefresh_idle_seconds = 20\nrefresh_absolute_seconds = 10",
        "lifetimes.refresh_idle_seconds is longer than refresh_absolute_seconds (10)",
    ),
    "burst without rate": ({}, "[rate]\nburst = 5", "rate.burst has no meaning without requests_per_second"),
    "rate of nothing": ({}, "[rate]\nmax_outstanding = 0", "rate.max_outstanding must be at least 1"),
    "rate of zero": (
        {},
        "[rate]\nrequests_per_second = 0",
        "rate.requests_per_second must be more than 0",
    ),
    "remaining requests without a moment": (
        {},
        '[rate]\nremaining_header = "X-Left"',
        "rate.remaining_header has no meaning without reset_header, which says how long to pause",
    ),
    "form of a moment that nobody tells": (
        {},
        '[rate]\nreset_format = "iso8601"',
        "rate.reset_format has no meaning without reset_header",
    ),
    "probe that says both": (
        {},
        '[probe]\nendpoint = "https://api.example.com/me"\nalive_status = [200, 401]',
        "probe.dead_status has 401, which means by alive_status that the token works",
    ),
    "margin before the provider permits": (
        {},
        "[lifetimes]\nearliest_refresh_seconds = 30\nmargin_earliest_seconds = 60",
        "lifetimes.margin_earliest_seconds is earlier than the provider permits: earliest_refresh_seconds is 30",
    ),
    "a life of tokens that live for ever": (
        {},
        "[lifetimes]\naccess_never_expires = true\naccess_seconds = 60",
        "lifetimes.access_seconds contradicts access_never_expires",
    ),
    "pattern that is a regular expression": (
        {},
        '[[errors]]\noutcome = "unavailable"\npath = "error"\npattern = "(a+)+$"',
        (
            "errors[1].pattern[1] looks like a regular expression (')+'), which patterns are not: * alone stands for "
            "any run of characters, everything else for itself"
        ),
    ),
    "infinite rate": (
        {},
        "[rate]\nrequests_per_second = inf",
        "rate.requests_per_second must be a finite number",
    ),
    "undeclared variable": (
        {"refresh": 'endpoint = "https://auth.example.com/{tenat}"'},
        '[variables.tenant]\ndescription = "directory"',
        "refresh.endpoint uses {tenat}, which is not declared under [variables]: did you mean 'tenant'?",
    ),
    "unused variable": (
        {},
        '[variables.tenant]\ndescription = "directory"',
        "variables.tenant is declared but no template uses it and no answer states it",
    ),
    "default of another kind": (
        {"refresh": 'endpoint = "https://{host}/token"'},
        '[variables.host]\ndescription = "host"\nkind = "host"\ndefault = "a/b"',
        "variables.host.default must be a host name, without scheme, port or path",
    ),
    "declared client id": (
        {},
        '[variables.client_id]\ndescription = "ours"',
        "variables.client_id is the app's own client id and needs no declaration",
    ),
    "plain http": (
        {"refresh": 'endpoint = "http://auth.example.com/token"'},
        "",
        (
            "refresh.endpoint must begin with https://: tokens never travel in the clear (for a sandbox, "
            "TOKENFLEET_ALLOW_HTTP_PROVIDERS=true allows http)"
        ),
    ),
    "body of a GET": (
        {"refresh": 'endpoint = "https://auth.example.com/token"\nmethod = "GET"\nbody = "json"'},
        "",
        "refresh.body has no meaning for a GET request, whose parameters are in its query",
    ),
    "parameter sent twice": (
        {},
        '[refresh.parameters]\nclient_id = "x"',
        "refresh.parameters.client_id is sent as client_id already",
    ),
    "two names alike": (
        {},
        '[refresh.names]\nclient_secret = "client_id"',
        "refresh.names.client_secret is 'client_id', which is the name of client_id too",
    ),
    "header of our own": (
        {},
        '[refresh.headers]\nHost = "x"',
        "refresh.headers.Host is set by the request itself and cannot be set here",
    ),
    "header over two lines": (
        {},
        '[refresh.headers]\nX-A = "a\\r\\nX-B: c"',
        "refresh.headers.X-A must be printable ASCII on one line",
    ),
    "rule that a proxy can trigger": (
        {},
        '[[errors]]\noutcome = "grant_rejected"\nstatus = 403',
        "errors[1] would give up a grant by the status alone, which any proxy can send: add a path",
    ),
    "rule for everything": (
        {},
        '[[errors]]\noutcome = "unavailable"',
        "errors[1] would fit every answer: add a status or a path",
    ),
    "value without a path": (
        {},
        '[[errors]]\noutcome = "unavailable"\nstatus = 400\nvalue = "x"',
        "errors[1].value needs a path that says where in the answer to look",
    ),
    "rule that can never fit": (
        {},
        (
            '[[errors]]\noutcome = "unavailable"\nstatus = "4xx"\npath = "error"\n'
            '[[errors]]\noutcome = "throttled"\nstatus = [400, 401]\npath = "error"\nvalue = "slow"'
        ),
        "errors[2] can never fit: errors[1] fits everything that it would",
    ),
    "pattern for everything": (
        {},
        '[[errors]]\noutcome = "unavailable"\npath = "error"\npattern = "*"',
        "errors[1].pattern[1] matches everything: write some of the text that is expected",
    ),
    "probe without a meaning": (
        {},
        '[probe]\nendpoint = "https://api.example.com/me"',
        "probe.alive_status is missing",
    ),
    "grace until first use without rotation": (
        {"rotation": 'policy = "never"\ngrace_until_first_use = true'},
        "",
        "rotation.grace_until_first_use is a grace, but refresh tokens are never rotated",
    ),
    "rotation of nothing": (
        {
            "refresh": 'endpoint = "https://auth.example.com/token"\ngrant = "access_token"',
            "rotation": 'policy = "always"',
        },
        "",
        "rotation.policy must be 'never': a grant of kind 'access_token' presents no refresh token",
    ),
    "disuse of nothing": (
        {
            "refresh": 'endpoint = "https://auth.example.com/token"\ngrant = "client_credentials"',
            "rotation": 'policy = "never"',
        },
        "[lifetimes]\nrefresh_idle_seconds = 60",
        (
            "lifetimes.refresh_idle_seconds has no meaning: a grant of kind 'client_credentials' presents no refresh "
            "token"
        ),
    ),
    "token that is never old enough": (
        {},
        "[lifetimes]\naccess_seconds = 3600\nminimum_age_seconds = 3580",
        "lifetimes.minimum_age_seconds leaves no moment for a refresh: an access token lives 3600",
    ),
    "margin before the token is old enough": (
        {},
        "[lifetimes]\naccess_seconds = 3600\nminimum_age_seconds = 3000\nmargin_earliest_seconds = 601",
        (
            "lifetimes.margin_earliest_seconds is earlier than the provider permits: minimum_age_seconds is 3000 of "
            "3600"
        ),
    ),
    "age at which the refresh token is dead": (
        {},
        "[lifetimes]\nrefresh_idle_seconds = 60\nminimum_age_seconds = 60",
        "lifetimes.minimum_age_seconds allows no refresh before an unused refresh token dies (60)",
    ),
    "token that lives on for nobody knows how long": (
        {},
        "[answer]\nkeeps_access_token = true",
        "answer.keeps_access_token needs lifetimes.access_seconds, which says for how long the token lives on",
    ),
    "token that lives on and is traded": (
        {},
        (
            "[answer]\nkeeps_access_token = true\n[lifetimes]\naccess_seconds = 60\n"
            '[[steps]]\nendpoint = "https://auth.example.com/step"\n'
            'headers = { X-Token = "{access_token}" }'
        ),
        "answer.keeps_access_token contradicts steps, which trade the access token of each answer",
    ),
    "step that brings nothing": (
        {},
        (
            '[[steps]]\nendpoint = "https://auth.example.com/step"\n'
            'headers = { X-Token = "{access_token}" }\nanswer = { keeps_access_token = true }'
        ),
        (
            "steps[1].answer.keeps_access_token has no meaning in a step: what it has to bring is an access token"
        ),
    ),
    "steps behind nothing": (
        {"refresh": 'grant = "none"', "rotation": 'policy = "never"'},
        (
            '[[steps]]\nendpoint = "https://auth.example.com/step"\n'
            'headers = { X-Token = "{access_token}" }\n'
            '[probe]\nendpoint = "https://api.example.com/me"\nalive_status = 200'
        ),
        "steps[1] follows an answer, and there is none when the grant is 'none'",
    ),
    "renewal of what is never renewed": (
        {"refresh": 'grant = "none"', "rotation": 'policy = "never"'},
        (
            "[lifetimes]\nmargin_latest_seconds = 60\n"
            '[probe]\nendpoint = "https://api.example.com/me"\nalive_status = 200'
        ),
        "lifetimes.margin_latest_seconds has no meaning when the grant is 'none': nothing is renewed",
    ),
    "limit for nobody": (
        {"rotation": 'policy = "always"\nmax_live_per = "user"'},
        "",
        "rotation.max_live_per has no meaning without max_live",
    ),
    "parameters of a probe without a place": (
        {},
        f'{PROBE}body = "none"\nparameters = {{ a = "b" }}',
        "probe.parameters have no place, because body is 'none'",
    ),
    "body of a probe by GET": (
        {},
        f'{PROBE}body = "json"',
        "probe.body has no meaning for a GET request, whose parameters are in its query",
    ),
    "probe without its token": (
        {},
        f'{PROBE}authorization = ""\nheaders = {{ X-Key = "{{client_secret}}" }}',
        (
            "probe.authorization is empty, and nothing else has the {access_token}: such a probe says nothing of it"
        ),
    ),
    "probe of the app alone": (
        {},
        f'{PROBE}authorization = "Basic {{pair}}"\n[computed.pair]\nkind = "base64"\nof = "{{client_id}}:"',
        "probe.authorization has no {access_token}, and nothing else has: such a probe says nothing of it",
    ),
    "probe that presents the refresh token": (
        {},
        f'{PROBE}parameters = {{ t = "{{digest}}" }}\n[computed.digest]\nkind = "sha256"\nof = "{{refresh_token}}"',
        (
            "probe.parameters.t uses {refresh_token}, which only a refresh presents: a probe tries out the access "
            "token"
        ),
    ),
    "probe with an assertion that nobody makes": (
        {},
        f'{PROBE}parameters = {{ a = "{{assertion}}" }}',
        "probe.parameters.a uses {assertion}, but the definition has no [assertion]",
    ),
    "authorization in two places": (
        {},
        f'{PROBE}headers = {{ authorization = "x" }}',
        "probe.headers.authorization is set by authorization already",
    ),
    "header of the transport in a probe": (
        {},
        f'{PROBE}headers = {{ Host = "x" }}',
        "probe.headers.Host is set by the request itself and cannot be set here",
    ),
    "secret in a URL": (
        {},
        '[probe]\nendpoint = "https://api.example.com/{access_token}"\nalive_status = 200',
        "probe.endpoint places {access_token} in a URL, which is logged: put it into a parameter or a header",
    ),
    "computed value in a URL": (
        {},
        (
            '[revoke]\nendpoint = "https://api.example.com/{digest}"\n[computed.digest]\nkind = "sha256"\n'
            'of = "{access_token}"'
        ),
        "revoke.endpoint places {digest} in a URL, which is logged: put it into a parameter or a header",
    ),
    "undeclared name in a probe": (
        {},
        f'{PROBE}headers = {{ X-T = "{{acess_token}}" }}',
        "probe.headers.X-T uses {acess_token}, which is not declared under [variables]: did you mean 'access_token'?",
    ),
    "token dead by anything": (
        {},
        f'{PROBE}dead_when = {{ path = "error" }}',
        "probe.dead_when[1] would call a token dead whatever stands there: add the values that mean it",
    ),
    "token dead without a path": (
        {},
        f'{PROBE}dead_when = {{ path = [], value = "x" }}',
        "probe.dead_when[1].path is empty: say where in the answer to look",
    ),
    "token dead by a body that never comes": (
        {},
        f'{PROBE}dead_when = {{ status = 204, path = "error", value = "x" }}',
        "probe.dead_when[1].path can never fit: an answer of 204 has no body",
    ),
    "token dead and alive by one value": (
        {},
        f'{PROBE}alive_when = {{ path = "ok", value = true }}\ndead_when = {{ path = "ok", value = "true" }}',
        "probe.dead_when[1].value[1] is 'true', which means by alive_when that the token works",
    ),
    "token dead and alive by one pattern": (
        {},
        f'{PROBE}alive_when = {{ path = "s", value = "okay" }}\ndead_when = {{ path = "s", pattern = "ok*" }}',
        "probe.dead_when[1].pattern[1] fits what means by alive_when that the token works",
    ),
    "life in a body that never comes": (
        {},
        '[probe]\nendpoint = "https://api.example.com/me"\nalive_status = 204\nalive_when = { path = "id" }',
        "probe.alive_when[1] can never hold: an answer of 204 has no body",
    ),
    "revocation of a token that there is not": (
        {"refresh": 'endpoint = "https://auth.example.com/token"\ngrant = "client_credentials"'},
        REVOKE,
        "revoke.token is 'refresh_token', but accounts of the grant client_credentials have none",
    ),
    "revocation of nothing": (
        {},
        f'{REVOKE}parameter = ""\nauthentication = "none"',
        "revoke.parameter is empty, and nothing else carries the token: nothing would be revoked",
    ),
    "revocation of another token": (
        {},
        f'{REVOKE}parameter = ""\nauthentication = "bearer"',
        "revoke.token is 'refresh_token', but parameter is empty and nothing else carries that token",
    ),
    "token without a place": (
        {},
        f'{REVOKE}body = "none"',
        "revoke.parameter is 'token', which has no place because body is 'none': leave it empty",
    ),
    "token sent twice": (
        {},
        f'{REVOKE}parameters = {{ token = "x" }}',
        "revoke.parameters.token is sent as the token already",
    ),
    "header that authenticates twice": (
        {"client": 'authentication = "client_secret_basic"'},
        f'{REVOKE}headers = {{ Authorization = "Bearer {{access_token}}" }}',
        "revoke.headers.Authorization is set by authentication already",
    ),
    "gone by a success": (
        {},
        f"{REVOKE}gone_status = 204",
        "revoke.gone_status[1] is 204, and every 2xx means it anyway",
    ),
    "gone by an outage": (
        {},
        f"{REVOKE}gone_status = [404, 503]",
        "revoke.gone_status[2] is 503, which asks us to come again and says nothing of a grant",
    ),
    "a probe that never finds life": (
        {},
        '[probe]\nendpoint = "https://api.example.com/me"\nalive_status = []',
        "probe.alive_status is empty: no answer would ever say that the token works",
    ),
    "both tokens in one place": (
        {},
        '[answer]\naccess_token = "token"\nrefresh_token = "token"',
        "answer.refresh_token is token, where the access token stands",
    ),
    "port that there is not": (
        {"refresh": 'endpoint = "https://auth.example.com:99999/token"'},
        "",
        "refresh.endpoint has a port that is not between 1 and 65535",
    ),
    "grant we cannot do": (
        {"refresh": 'endpoint = "https://auth.example.com/token"\ngrant = "password"'},
        "",
        (
            "refresh.grant must be one of refresh_token, client_credentials, jwt_bearer, token_exchange, access_token, "
            "none"
        ),
    ),
}


@pytest.mark.parametrize("name", [*CONTRADICTIONS, *REQUESTS])
def test_contradictions_are_mistakes(tmp_path: Path, name: str) -> None:
    parts, extra, expected = (CONTRADICTIONS | REQUESTS)[name]
    [mistake] = mistakes(tmp_path, toml(extra, **parts))
    place, _, reason = mistake.partition(": ")
    assert reason == expected
    assert place.startswith("example.toml:") or "missing" in reason


def test_a_key_has_a_probe_or_a_note_that_says_why_there_is_none(tmp_path: Path) -> None:
    text = toml(refresh='grant = "none"')
    assert mistakes(tmp_path, text) == []
    without = "".join(line for line in text.splitlines(keepends=True) if not line.startswith("notes"))
    [mistake] = mistakes(tmp_path, without)
    assert mistake == (
        "example.toml: probe is missing: without one nobody learns that a key has ended. If the provider has nothing "
        "to probe, say so in notes"
    )
    assert (
        mistakes(tmp_path, f"{without}[probe]\nendpoint = 'https://a.example/me'\nalive_status = 200") == []
    )


def test_rules_that_only_overlap_are_no_mistake(tmp_path: Path) -> None:
    rules = (
        '[[errors]]\noutcome = "unavailable"\nstatus = 400\npath = "error"\nvalue = "slow"\n'
        '[[errors]]\noutcome = "throttled"\nstatus = "4xx"\npath = "error"\nvalue = ["slow", "down"]\n'
        '[[errors]]\noutcome = "unavailable"\nstatus = "4xx"\n'
        '[[errors]]\noutcome = "throttled"\nstatus = 429\npath = "error"\n'
    )
    assert mistakes(tmp_path, toml(rules)) == []


def test_files_that_cannot_be_read_are_mistakes(tmp_path: Path) -> None:
    latin, huge, missing = tmp_path / "latin.toml", tmp_path / "huge.toml", tmp_path / "missing.toml"
    latin.write_bytes(b'name = "\xe9"')
    huge.write_text("#" * 300_000)
    empty = tmp_path / "empty"
    empty.mkdir()
    problems = [str(problem) for problem in validate_paths([latin, huge, missing, empty])]
    assert problems == [
        f"{empty}: holds no .toml file",
        f"{latin}: is not UTF-8 text",
        f"{huge}: is larger than 64 KiB",
        f"{missing}: cannot be read: No such file or directory",
    ]


def test_two_definitions_of_one_name_are_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(toml())
    (tmp_path / "b.toml").write_text(toml())
    [problem] = validate_paths([tmp_path, tmp_path / "a.toml"])
    assert str(problem) == f"{tmp_path}/b.toml: name is 'example', as in {tmp_path}/a.toml"


def test_the_registry_lists_every_mistake_of_every_file(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(toml("[rate]\nburst = 0"))
    (tmp_path / "b.toml").write_text(toml(rotation='policy = "perhaps"'))
    with pytest.raises(DefinitionError) as caught:
        load_registry(tmp_path)
    assert len(caught.value.problems) == 2
    assert f"{tmp_path}/a.toml:" in str(caught.value)
    assert f"{tmp_path}/b.toml:" in str(caught.value)


def test_a_folder_that_cannot_be_read_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(DefinitionError, match="cannot be read"):
        load_registry(tmp_path / "missing")


def test_http_is_a_mistake_unless_allowed(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(toml(refresh='endpoint = "http://127.0.0.1:9/token"'))
    assert len(validate_paths([tmp_path])) == 1
    assert validate_paths([tmp_path], allow_http=True) == []
    assert read_directory(tmp_path, allow_http=True)[1] == []


def test_lines_are_found_behind_values_of_several_lines(tmp_path: Path) -> None:
    text = toml(
        'rates = { a = "[rate]" }',
        client='authentication = "none" # [rate]\nextra = 1',
        refresh='parameters = { "a.b" = "}" } # {\nendpoint = "https://a.example/t"',
        rotation='policy = [\n  "never", \'[x]\',\n  """\n  [rate]\n  """,\n]\nmax_live = 0',
    )
    lines = text.splitlines()
    for key, start in (
        ("client.extra", "extra"),
        ("rotation.policy", "policy"),
        ("rotation.max_live", "max_live"),
    ):
        [line] = [number for number, line in enumerate(lines, 1) if line.startswith(start)]
        assert any(told.startswith(f"example.toml:{line}: {key}") for told in mistakes(tmp_path, text)), key
