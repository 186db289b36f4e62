"""Section 5 of the design as a whole: any definition, any answer or failure, whatever is known of the account.

Definitions are made of random rules, without those that ``providers validate`` refuses. The judge of "a definite word"
reads the rules anew, without the code under test.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any, get_args

from hypothesis import given, settings
from hypothesis import strategies as st

from providers import Answer, Failure, FailureKind, Provider
from providers.rule_mistakes import rule_mistakes
from providers.spec_answers import ErrorRule, RefreshOutcome
from tests.providers.definitions import provider
from tokenfleet.lifetimes import UNKNOWN_LIFETIME_INTERVAL
from tokenfleet.outcome import (
    ClientRejected,
    GrantRejected,
    Outcome,
    OutcomeUnknown,
    Refreshed,
    Throttled,
    Unavailable,
)
from tokenfleet.policy import (
    BACKOFF_FLOOR,
    QUARANTINE_DELAY,
    THROTTLE_CAP,
    Decision,
    HoldApp,
    Known,
    PauseApp,
    Quarantine,
    Replay,
    RequireReauth,
    RetryLater,
    Save,
    decide,
)
from tokenfleet.tokens import Margins

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
PLAIN = provider()

words = st.sampled_from(["invalid_grant", "slow", "gone", "invalid_client", "account gone for good"])
rules = st.builds(
    ErrorRule,
    outcome=st.sampled_from(get_args(RefreshOutcome)),
    status=st.lists(st.sampled_from([200, 400, 401, "4xx", "5xx", 429, 503]), max_size=2).map(tuple),
    path=st.lists(st.sampled_from(["error", "error", "code", "errors[].code"]), max_size=2).map(tuple),
    value=st.lists(words | st.sampled_from([7, 1002]), max_size=2).map(tuple),
    pattern=st.lists(st.sampled_from(["*gone*", "slow*"]), max_size=1).map(tuple),
    affects=st.sampled_from([None, "connection", "app"]),
)


def accepted(wanted: list[ErrorRule]) -> tuple[ErrorRule, ...]:
    """Return ``wanted`` without the rules that no definition may have."""
    kept: list[ErrorRule] = []
    for rule in wanted:
        if not any(location[1] == len(kept) for location, _ in rule_mistakes([*kept, rule])):
            kept.append(rule)
    return tuple(kept)


definitions = st.lists(rules, max_size=5).map(accepted)

scalars: st.SearchStrategy[object] = words | st.sampled_from([7, 1002, None, "", {}, []])
documents = st.fixed_dictionaries(
    {},
    optional={
        "error": scalars,
        "code": scalars,
        "errors": st.lists(st.fixed_dictionaries({}, optional={"code": scalars}), max_size=2),
        "access_token": st.sampled_from(["at-2", "", None]),
        "refresh_token": st.sampled_from(["rt-2", None]),
        "expires_in": st.sampled_from([3600, 0, -1, 10**9, "soon", None]),
    },
)
bodies = documents.map(lambda document: json.dumps(document).encode()) | st.sampled_from(
    [b"", b"<html>blocked</html>", b"[", b"error=invalid_grant", b"null"]
)
headers = st.fixed_dictionaries(
    {},
    optional={"retry-after": st.sampled_from(["0", "5", "999999999", "Sun, 01 Mar 2026 12:00:30 GMT", "x"])},
)
statuses = st.sampled_from([200, 201, 302, 400, 401, 403, 404, 408, 429, 500, 503]) | st.integers(-1, 1000)
flaws = st.sampled_from([None, None, None, "answer_cut", "timeout", "answer_too_large"])
answers = st.builds(
    lambda status, headers, body, flaw: Answer(status, headers, b"" if flaw else body, flaw),
    statuses,
    headers,
    bodies,
    flaws,
)
failures = st.builds(
    Failure,
    st.sampled_from(FailureKind),
    st.sampled_from(["timeout", "connect_refused", "connection_lost", "claim_expired", "dns_failed"]),
)
counts = st.sampled_from([0, 1, 2, 3, 10**9])
situations = st.builds(
    Known,
    attempts=counts,
    unanswered=counts,
    replayed=st.booleans(),
    margins=st.just(Margins()),
    last_lifetime=st.none() | st.timedeltas(),
    rotates=st.booleans(),
    replay_grace=st.none() | st.timedeltas(timedelta(seconds=1), timedelta(days=90)),
    doubts=counts,
    throttles=counts,
    expires_at=st.none() | st.timedeltas(timedelta(days=-9), timedelta(days=9)).map(lambda left: NOW + left),
)


def reader(ordered: tuple[ErrorRule, ...]) -> Provider:
    spec = PLAIN.spec.model_copy(update={"errors": ordered})
    return Provider.compile(spec, origin="example.toml", allow_http=False)


def is_definite(answer: Answer, ordered: tuple[ErrorRule, ...]) -> bool:
    """Answer whether the standard's own word or one of a rule for rejected grants stands whole in ``answer``."""
    try:
        document: Any = json.loads(answer.body)
    except ValueError:
        return answer.body == b"error=invalid_grant"
    if not isinstance(document, dict) or answer.flaw:
        return False
    errors = [each.get("code") for each in document.get("errors", [])]
    said = {str(each) for each in (document.get("error"), document.get("code"), *errors) if each}
    meant = {str(value) for rule in ordered if rule.outcome == "grant_rejected" for value in rule.value}
    by_pattern = any(rule.pattern and rule.outcome == "grant_rejected" for rule in ordered)
    return bool(said & (meant | {"invalid_grant"})) or (by_pattern and bool(said))


def moment_of(decision: Decision) -> datetime | None:
    match decision:
        case Save(moment, _) | RetryLater(moment) | Quarantine(moment) | PauseApp(moment):
            return moment
    return None


def latest(decision: Decision, outcome: Outcome) -> datetime:
    """Return the moment after which nobody may be put off."""
    if isinstance(decision, Save):
        assert isinstance(outcome, Refreshed)
        return max(decision.expires_at or NOW, NOW) + UNKNOWN_LIFETIME_INTERVAL
    return NOW + (QUARANTINE_DELAY if isinstance(decision, Quarantine) else THROTTLE_CAP)


@settings(max_examples=250, deadline=None)
@given(definitions, answers | failures, situations, st.floats(0, 1, exclude_max=True))
def test_any_answer_under_any_definition_has_a_decision_that_keeps_the_promises(
    ordered: tuple[ErrorRule, ...], exchange: Answer | Failure, known: Known, chance: float
) -> None:
    outcome = reader(ordered).read(exchange, now=NOW)
    decision = decide(outcome, known, now=NOW, chance=chance)
    assert isinstance(decision, get_args(Decision))
    moment = moment_of(decision)
    assert moment is None or NOW + BACKOFF_FLOOR <= moment <= latest(decision, outcome)
    if isinstance(decision, RequireReauth):
        assert isinstance(outcome, GrantRejected)
        assert isinstance(exchange, Answer)
        assert is_definite(exchange, ordered)
    if isinstance(decision, Replay):
        assert isinstance(outcome, OutcomeUnknown)
        assert not known.replayed
    if isinstance(decision, HoldApp | PauseApp):
        assert isinstance(outcome, ClientRejected | Throttled)
        assert outcome.whole_app, "what concerns one connection costs nobody else"
    if isinstance(outcome, Unavailable | OutcomeUnknown) and outcome.outage:
        assert isinstance(exchange, Failure) or exchange.flaw or 500 <= exchange.status <= 599


@settings(max_examples=100, deadline=None)
@given(definitions, answers)
def test_a_new_refresh_token_in_a_readable_success_is_never_thrown_away_for_want_of_a_rule(
    ordered: tuple[ErrorRule, ...], answer: Answer
) -> None:
    """A definition's rule goes before it, and the standard's own words; nothing that nobody has described does."""
    if not 200 <= answer.status < 300 or b'"rt-2"' not in answer.body:
        return
    outcome = reader(ordered).read(answer, now=NOW)
    unruled = reader(()).read(answer, now=NOW)
    if isinstance(unruled, Refreshed):
        assert isinstance(outcome, Refreshed)
        assert outcome.answer.refresh_token is not None


def test_whom_an_error_concerns_is_what_the_rule_says() -> None:
    tenant = provider(
        '[[errors]]\noutcome = "throttled"\nstatus = 429\npath = "scope"\nvalue = "tenant"\naffects = "connection"\n'
        '[[errors]]\noutcome = "client_rejected"\npath = "error"\nvalue = "app_disabled"\naffects = "connection"\n'
        '[[errors]]\noutcome = "unavailable"\nstatus = 503\npath = "error"\nvalue = "shop_frozen"\n'
        'affects = "connection"\n'
        '[[errors]]\noutcome = "client_rejected"\npath = "error"\nvalue = "bad_app"\n'
    )

    def read(status: int, **document: str) -> Outcome:
        return tenant.read(Answer(status, {"retry-after": "9"}, json.dumps(document).encode()), now=NOW)

    nine = timedelta(seconds=9)
    assert read(429, scope="tenant") == Throttled("tenant", nine, whole_app=False)
    assert read(429, scope="app") == Throttled("http_429", nine, whole_app=True)
    assert read(400, error="app_disabled") == ClientRejected("app_disabled", whole_app=False)
    assert read(400, error="bad_app") == ClientRejected("bad_app", whole_app=True)
    assert read(400, error="invalid_client") == ClientRejected("invalid_client", whole_app=True)
    assert read(503, error="shop_frozen") == Unavailable("shop_frozen", outage=False)
