"""The kit can fail: a provider does one thing, the fleet believes another, and the scenario that is to notice does.

Each case is a truth, what is believed in its place, and the scenario that fails for it. With the truth believed, the
same scenario passes, so it is the difference that is noticed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from conformance import Report, Verdict
from providers import Provider
from tests.conformance.conftest import Run
from tests.providers.definitions import provider


def define(extra: str, tables: Mapping[str, str]) -> Provider:
    """Return a small definition: ``tables`` in place of the usual ones, ``extra`` at its end."""
    return provider(extra, allow_http=False, **tables)


@dataclass(frozen=True)
class Case:
    """``truth`` and ``believed`` are tables of a definition, ``extra`` stands at the end of both."""

    scenario: str
    truth: dict[str, str] = field(default_factory=dict)
    believed: dict[str, str] = field(default_factory=dict)
    extra: str = ""
    extra_truth: str = ""
    extra_believed: str = ""

    def played(self) -> Provider:
        """Return what the provider does."""
        return define(self.extra + self.extra_truth, self.truth)

    def wrong(self) -> Provider:
        """Return what the fleet believes."""
        return define(self.extra + self.extra_believed, {**self.truth, **self.believed})


ENDPOINT = 'endpoint = "https://auth.example.com/token"'
ALWAYS = {"rotation": 'policy = "always"'}
PROBE = '[probe]\nendpoint = "https://api.example.com/me"\nalive_status = 200\n'
SIGNED = {"client": 'authentication = "private_key_jwt"'}
ASSERTION = '[assertion]\nalgorithm = "{}"\naudience = "{}"\nlifetime_seconds = {}\n'
GOOD_ASSERTION = ASSERTION.format("ES256", "https://auth.example.com", 300)

BUSY = '[[errors]]\noutcome = "throttled"\nstatus = 400\npath = "code"\nvalue = 1\n'
GONE = '[[errors]]\noutcome = "grant_rejected"\nstatus = 400\npath = "error"\nvalue = "gone"\n'

CASES: dict[str, Case] = {
    "another path of the token endpoint": Case(
        "refresh", believed={"refresh": 'endpoint = "https://auth.example.com/oauth/token"'}
    ),
    "another host": Case("refresh", believed={"refresh": 'endpoint = "https://login.example.com/token"'}),
    "another method": Case("refresh", believed={"refresh": f'{ENDPOINT}\nmethod = "GET"'}),
    "JSON for a form": Case("refresh", believed={"refresh": f'{ENDPOINT}\nbody = "json"'}),
    "Basic for post": Case("refresh", believed={"client": 'authentication = "client_secret_basic"'}),
    "post for Basic": Case(
        "refresh",
        truth={"client": 'authentication = "client_secret_basic"'},
        believed={"client": 'authentication = "client_secret_post"'},
    ),
    "the secret as user for Basic": Case(
        "refresh",
        truth={"client": 'authentication = "client_secret_as_user"'},
        believed={"client": 'authentication = "client_secret_basic"'},
    ),
    "a certificate that is not presented": Case(
        "refresh",
        truth={"client": 'authentication = "none"\ncertificate = true'},
        believed={"client": 'authentication = "none"'},
    ),
    "a parameter by its usual name": Case(
        "refresh", extra_truth='[refresh.names]\nclient_id = "appid"\nclient_secret = "secret"\n'
    ),
    "a parameter that is left out": Case("refresh", extra_truth='[refresh.parameters]\naction = "renew"\n'),
    "a header with a variable that is left out": Case(
        "refresh",
        extra='[variables.version]\ndescription = "of the API"\ndefault = "3"\n[variables.version_probe]\n'
        'description = "keeps it used"\nfrom_answer = "v"\n',
        extra_truth='[refresh.headers]\nX-Version = "{version}"\n',
        extra_believed='[refresh.headers]\nX-Revision = "{version}"\n',
    ),
    "the scope is not sent": Case(
        "refresh", truth={"refresh": f"{ENDPOINT}\nsend_scope = true"}, believed={"refresh": ENDPOINT}
    ),
    "another grant type": Case("refresh", believed={"refresh": f'{ENDPOINT}\ngrant_type = "renew"'}),
    "another algorithm": Case(
        "refresh",
        truth=SIGNED,
        extra_truth=GOOD_ASSERTION,
        extra_believed=ASSERTION.format("HS256", "https://auth.example.com", 300),
    ),
    "another audience": Case(
        "refresh",
        truth=SIGNED,
        extra_truth=GOOD_ASSERTION,
        extra_believed=ASSERTION.format("ES256", "https://auth.example.com/token", 300),
    ),
    "an assertion that lives too long": Case(
        "refresh",
        truth=SIGNED,
        extra_truth=GOOD_ASSERTION,
        extra_believed=ASSERTION.format("ES256", "https://auth.example.com", 3600),
    ),
    "an unsigned hash of something else": Case(
        "refresh",
        extra='[refresh.parameters]\nhash = "{hash}"\n',
        extra_truth='[computed.hash]\nkind = "sha256"\nof = "{client_secret}|{refresh_token}"\n',
        extra_believed='[computed.hash]\nkind = "sha256"\nof = "{refresh_token}|{client_secret}"\n',
    ),
    "a lifetime in milliseconds": Case(
        "refresh",
        extra_truth='[answer]\nexpires_in = { path = "expires_in", unit = "milliseconds" }\n',
    ),
    "a lifetime in minutes": Case(
        "refresh", extra_truth='[answer]\nexpires_in = { path = "expires_in", unit = "minutes" }\n'
    ),
    "a lifetime that stands elsewhere": Case(
        "refresh",
        extra_truth='[answer]\nexpires_in = "data.expires_in"\n[lifetimes]\naccess_seconds = 900\n',
        extra_believed="[lifetimes]\naccess_seconds = 86400\n",
    ),
    "an access token that stands elsewhere": Case(
        "refresh", extra_truth='[answer]\naccess_token = "data.access_token"\n'
    ),
    "a refresh token that stands elsewhere": Case(
        "rotation", truth=ALWAYS, extra_truth='[answer]\nrefresh_token = "data.refresh_token"\n'
    ),
    "a scope that stands elsewhere": Case("refresh", extra_truth='[answer]\nscope = "data.scope"\n'),
    "an end of the refresh token that nobody reads": Case(
        "refresh", truth=ALWAYS, extra_truth='[answer]\nrefresh_token_expires_in = "refresh.expires_in"\n'
    ),
    "an end of the refresh token in another unit": Case(
        "refresh",
        truth=ALWAYS,
        extra_truth='[answer]\nrefresh_token_expires_in = { path = "ends", unit = "minutes" }\n',
        extra_believed='[answer]\nrefresh_token_expires_in = { path = "ends", unit = "seconds" }\n',
    ),
    "an access token that lives on, and nobody knows": Case(
        "no_access_token",
        extra="[lifetimes]\naccess_seconds = 3600\n",
        extra_truth="[answer]\nkeeps_access_token = true\n",
    ),
    "a subject that nobody asked for": Case(
        "refresh",
        truth=SIGNED,
        extra_truth=f'{GOOD_ASSERTION}subject = ""\n',
        extra_believed=GOOD_ASSERTION,
    ),
    "rules in another order": Case(
        "error_rules",
        extra_truth=f"{BUSY}{GONE}",
        extra_believed=f"{GONE}{BUSY}",
    ),
    "a rejected grant at one status too many": Case(
        "error_rules", extra_truth=GONE, extra_believed=GONE.replace("400", "[400, 403]")
    ),
    "a rejected grant by a word that is the app's fault": Case(
        "error_rules", extra_truth=GONE, extra_believed=GONE.replace('"gone"', '["gone", "invalid_request"]')
    ),
    "a rejected grant by a pattern that is too wide": Case(
        "error_rules",
        extra_truth=GONE.replace('value = "gone"', 'pattern = "*refresh token*"'),
        extra_believed=GONE.replace('value = "gone"', 'pattern = "*token*"'),
    ),
    "an alternate path that nobody knows": Case(
        "answer_shapes", extra_truth='[answer]\naccess_token = ["access_token", "bearer.access_token"]\n'
    ),
    "no success test": Case(
        "error_in_200",
        extra_truth='[answer]\nsuccess = [{ path = "ok", value = true }]\n',
        extra_believed="[answer]\nsuccess = []\n",
    ),
    "a captured variable that is not captured": Case(
        "captured_variables",
        extra_truth='[variables.api_base]\ndescription = "base"\nkind = "url"\nfrom_answer = "api_base"\n',
        extra_believed='[variables.api_base]\ndescription = "base"\nkind = "url"\nfrom_answer = "api"\n',
    ),
    "a rejected grant read as a rejected client": Case(
        "revoked_grant",
        extra_truth='[[errors]]\noutcome = "grant_rejected"\nstatus = 400\npath = "error"\nvalue = "gone"\n',
        extra_believed='[[errors]]\noutcome = "client_rejected"\nstatus = 400\npath = "error"\nvalue = "gone"\n',
    ),
    "a rejected client read as a rejected grant": Case(
        "client_rejected",
        extra_truth='[[errors]]\noutcome = "client_rejected"\nstatus = 400\npath = "error"\nvalue = "bad"\n',
        extra_believed='[[errors]]\noutcome = "grant_rejected"\nstatus = 400\npath = "error"\nvalue = "bad"\n',
    ),
    "a rule that is missing": Case(
        "error_rules",
        extra_truth='[[errors]]\noutcome = "unavailable"\nstatus = 400\npath = "code"\nvalue = 9\n',
    ),
    "one value of a rule that is missing": Case(
        "error_rules",
        extra_truth='[[errors]]\noutcome = "throttled"\nstatus = 403\npath = "code"\nvalue = [8, 9]\n',
        extra_believed='[[errors]]\noutcome = "throttled"\nstatus = 403\npath = "code"\nvalue = 8\n',
    ),
    "a limit of one connection read as the app's": Case(
        "error_rules",
        extra='[[errors]]\noutcome = "throttled"\nstatus = 429\n',
        extra_truth='affects = "connection"\n',
    ),
    "throttling read as an outage": Case(
        "throttled",
        extra_truth='[[errors]]\noutcome = "throttled"\nstatus = 403\npath = "code"\nvalue = 8\n',
        extra_believed='[[errors]]\noutcome = "unavailable"\nstatus = 403\npath = "code"\nvalue = 8\n',
    ),
    "a reset in another format": Case(
        "rate_headers",
        extra='[rate]\nremaining_header = "X-Left"\nreset_header = "X-Reset"\n',
        extra_truth='reset_format = "epoch_milliseconds"\n',
        extra_believed='reset_format = "seconds"\n',
    ),
    "rotation that nobody knows of": Case(
        "lost_answer", truth=ALWAYS, believed={"rotation": 'policy = "never"'}
    ),
    "a grace that there is not": Case(
        "lost_twice", truth=ALWAYS, believed={"rotation": 'policy = "always"\ngrace_seconds = 60'}
    ),
    "a grace that is shorter": Case(
        "lost_twice",
        truth={"rotation": 'policy = "always"\ngrace_seconds = 60'},
        believed={"rotation": 'policy = "always"\ngrace_seconds = 86400'},
    ),
    "a replay too many for the live tokens": Case(
        "lost_answer",
        truth={"rotation": 'policy = "always"\nmax_live = 1'},
        believed={"rotation": 'policy = "always"'},
    ),
    "an idle limit that is shorter": Case(
        "idle_expiry",
        extra_truth="[lifetimes]\naccess_never_expires = true\nrefresh_idle_seconds = 86400\n",
        extra_believed="[lifetimes]\naccess_never_expires = true\nrefresh_idle_seconds = 864000\n",
    ),
    "an end of the grant that nobody knows of": Case(
        "absolute_expiry", extra_truth="[lifetimes]\nrefresh_absolute_seconds = 2592000\n"
    ),
    "a life without end that has one": Case(
        "refresh",
        extra_truth='[answer]\nexpires_in = "data.expires_in"\n[lifetimes]\naccess_seconds = 3600\n',
        extra_believed="[lifetimes]\naccess_never_expires = true\n",
    ),
    "a margin beyond the life": Case(
        "in_time",
        extra_truth="[lifetimes]\naccess_seconds = 3600\nearliest_refresh_seconds = 600\n",
        extra_believed="[lifetimes]\nmargin_earliest_seconds = 7200\n",
    ),
    "a window of refreshes that nobody knows of": Case(
        "in_time",
        extra_truth="[lifetimes]\naccess_seconds = 3600\nearliest_refresh_seconds = 60\n",
        extra_believed="[lifetimes]\naccess_seconds = 3600\nmargin_earliest_seconds = 900\n",
    ),
    "a minimum age that nobody knows of": Case(
        "in_time",
        truth={"refresh": f'{ENDPOINT}\ngrant = "access_token"', "rotation": 'policy = "never"'},
        extra_truth="[lifetimes]\naccess_seconds = 5184000\nminimum_age_seconds = 2000000\n",
        extra_believed="[lifetimes]\naccess_seconds = 5184000\nmargin_earliest_seconds = 5183000\n",
    ),
    "a probe that calls a dead token alive": Case(
        "probe",
        extra_truth=f'{PROBE}dead_when = [{{ status = 200, path = "error", value = "dead" }}]\n',
        extra_believed=PROBE,
    ),
    "a probe that takes a refusal for death": Case(
        "probe", extra_truth=PROBE, extra_believed=f"{PROBE}dead_status = [401, 403]\n"
    ),
    "a probe with another scheme": Case(
        "probe", extra_truth=f'{PROBE}authorization = "Token {{access_token}}"\n', extra_believed=PROBE
    ),
    "a revocation of the wrong token": Case(
        "revocation",
        extra='[revoke]\nendpoint = "https://auth.example.com/revoke"\n',
        extra_truth='parameter = "key"\n',
    ),
    "an absence that is read as an outage": Case(
        "revocation",
        extra='[revoke]\nendpoint = "https://auth.example.com/revoke"\n',
        extra_truth="gone_status = 404\n",
    ),
}


def failed(report: Report) -> set[str]:
    """The names of the scenarios that failed."""
    return {result.scenario for result in report.failures}


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_definition_fails_in_the_scenario_that_is_to_notice(name: str, run: Run) -> None:
    case = CASES[name]
    [truth] = run(case.played(), only=case.scenario).results
    assert truth.verdict is Verdict.PASSED, f"believing the truth: {truth}"

    [result] = run(case.wrong(), case.played().spec, case.scenario).results

    assert result.verdict is Verdict.FAILED
    assert "expected" in result.reason or "did not accept" in result.reason


SELF_CONTRADICTING: dict[str, tuple[str, str, dict[str, str], str]] = {
    "a rule that success shadows": (
        "error_rules",
        "errors[1]",
        {},
        '[[errors]]\noutcome = "grant_rejected"\nstatus = 200\npath = "access_token"\nvalue = "revoked"\n',
    ),
    "a rule that takes an answer with a new refresh token for a rejection": (
        "no_access_token",
        "errors",
        ALWAYS,
        '[[errors]]\noutcome = "grant_rejected"\nstatus = 200\npath = "token_type"\npattern = "bear*"\n',
    ),
    "a success test that not every success passes": (
        "rotation",
        "answer",
        {"rotation": 'policy = "never"'},
        '[answer]\nsuccess = [{ path = "refresh_token" }]\n',
    ),
    "a probe whose token never arrives": (
        "probe",
        "probe.parameters",
        {},
        """
        [computed.proof]
        kind = "sha256"
        of = "{access_token}"
        [probe]
        endpoint = "https://api.example.com/me"
        authorization = ""
        alive_status = 200
        headers = { X-Proof = "{proof}" }
        """,
    ),
    "a digest over a token that is not sent": (
        "refresh",
        "refresh.parameters",
        {},
        """
        [computed.hash]
        kind = "sha256"
        of = "{client_secret}|{access_token}"
        [refresh.parameters]
        hash = "{hash}"
        """,
    ),
}


@pytest.mark.parametrize("name", SELF_CONTRADICTING)
def test_a_definition_that_contradicts_itself_fails_alone(name: str, run: Run) -> None:
    scenario, key, parts, extra = SELF_CONTRADICTING[name]

    report = run(define(extra, parts))

    assert scenario in failed(report), f"failed were {sorted(failed(report))}"
    [failure] = [each for each in report.failures if each.scenario == scenario]
    assert failure.key.startswith(key), failure
