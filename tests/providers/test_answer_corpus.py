"""Every answer of the corpus, over a real socket: what it means, what is saved of it, and that nobody flips for it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

import pytest

from providers import Answer, Failure, Provider, load_registry
from providers.exchange import TokenRequest
from providers.transport import Transport
from tests.providers.answer_corpus import OUTCOMES, Case, cases
from tests.providers.definitions import provider
from tests.providers.raw_server import Exchange, RawServer
from tokenfleet.outcome import GrantRejected, OutcomeUnknown, Refreshed, Throttled, Unavailable, Undescribed
from tokenfleet.policy import Known, RequireReauth, decide
from tokenfleet.presented import Presented
from tokenfleet.tokens import Margins
from tokenfleet_client.secret import Secret

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
PLAIN = provider()
CATALOG = {one.name: one for one in load_registry()}
FLAT = [
    one
    for one in CATALOG.values()
    if one.presents is Presented.REFRESH_TOKEN and "refresh_token" in one.spec.answer.refresh_token
]
"""Definitions that find tokens where the standard puts them: an answer without a provider is for these."""
READERS = 12
"""How many definitions read an answer: with more than 200 answers, each definition reads many."""
CASES = {case.name: case for case in cases()}
AT_ONCE = 20

SITUATIONS = [
    Known(attempts=attempts, unanswered=unanswered, replayed=bool(unanswered), margins=Margins(), last_lifetime=life)
    for attempts, unanswered, life in [(0, 0, None), (0, 1, timedelta(hours=1)), (9, 3, timedelta(seconds=-5))]
]  # fmt: skip


@pytest.fixture(scope="module")
def exchanges() -> Mapping[str, Answer | Failure]:
    """What the transport made of each answer."""

    async def serve(exchange: Exchange) -> None:
        while True:
            request = await exchange.request()
            case = CASES[request.split(b" ")[1].removeprefix(b"/").decode()]
            await exchange.send(case.on_the_wire())

    async def ask_all() -> Mapping[str, Answer | Failure]:
        transport = Transport(timeout_seconds=60, max_connections=AT_ONCE)
        room = asyncio.Semaphore(AT_ONCE)

        async def ask(name: str) -> Answer | Failure:
            async with room:
                url = f"http://127.0.0.1:{server.port}/{name}"
                return await transport.ask(TokenRequest("POST", url, {}, b"refresh_token=rt-1"))

        async with RawServer(serve) as server:
            answers = await asyncio.gather(*map(ask, CASES))
            await transport.aclose()
        return dict(zip(CASES, answers, strict=True))

    return asyncio.run(ask_all())


def reader(case: Case) -> Provider:
    if case.definition is not None:
        tables = dict(case.definition)
        return provider(tables.pop("extra", ""), allow_http=False, **tables)
    return CATALOG[case.provider] if case.provider else PLAIN


def some(definitions: Sequence[Provider], name: str) -> list[Provider]:
    """Return the plain definition and others of ``definitions``, others for the next case."""
    stride = max(1, len(definitions) // READERS)
    return [PLAIN, *definitions[list(CASES).index(name) % stride :: stride]]


@pytest.mark.parametrize("name", CASES)
def test_an_answer_of_the_corpus_means_what_it_has_to(
    name: str, exchanges: Mapping[str, Answer | Failure]
) -> None:
    case = CASES[name]
    expect = dict(case.expect)
    outcome = reader(case).read(exchanges[name], now=NOW)
    assert isinstance(outcome, case.outcome), (case.about, outcome)
    expect.pop("outcome")
    if isinstance(outcome, Refreshed):
        answer = outcome.answer
        access_token = expect.pop("access_token", None)
        assert answer.access_token == (Secret(access_token) if access_token else None)
        refresh_token = expect.pop("refresh_token", None)
        assert answer.refresh_token == (Secret(refresh_token) if refresh_token else None)
        if life := expect.pop("expires_in", None):
            unknown = life in {"unknown", "never"}
            assert answer.expires_at == (None if unknown else NOW + timedelta(seconds=life))
            assert answer.never_expires == (life == "never")
    else:
        assert outcome.code == expect.pop("code", outcome.code)
    outage = isinstance(outcome, Unavailable | OutcomeUnknown) and outcome.outage
    assert outage == expect.pop("outage", False), case.about
    if isinstance(outcome, Undescribed):
        assert outcome.shape == expect.pop("shape", outcome.shape)
        successor = expect.pop("refresh_token", None)
        assert outcome.refresh_token == (Secret(successor) if successor else None)
    if isinstance(outcome, Throttled):
        wait = expect.pop("retry_after", None)
        assert outcome.retry_after == (None if wait is None else timedelta(seconds=wait))
    assert expect == {}, "all that the case expects was looked at"


@pytest.mark.parametrize("name", CASES)
def test_an_answer_of_the_corpus_asks_nobody_to_sign_in_again_but_for_a_definite_word(
    name: str, exchanges: Mapping[str, Answer | Failure]
) -> None:
    case = CASES[name]
    readers = [reader(case)] if case.provider or case.definition else some(FLAT, name)
    for one in readers:
        outcome = one.read(exchanges[name], now=NOW)
        for known in SITUATIONS:
            decision = decide(outcome, known, now=NOW, chance=0.5)
            assert isinstance(decision, RequireReauth) == (case.outcome is GrantRejected), (
                one.name,
                case.about,
            )


@pytest.mark.parametrize("name", CASES)
def test_an_answer_of_the_corpus_is_told_without_anything_secret_in_it(
    name: str, exchanges: Mapping[str, Answer | Failure]
) -> None:
    for one in [reader(CASES[name]), *some(list(CATALOG.values()), name)]:
        outcome = one.read(exchanges[name], now=NOW)
        told = repr(outcome)
        for secret in ("s3ntinel", "at-2", "rt-2", "rt-1", "12345"):
            assert secret not in told, one.name
        if not isinstance(outcome, Refreshed):
            assert len(told) < 600


def test_the_corpus_has_every_outcome() -> None:
    assert {case.outcome for case in CASES.values()} == set(OUTCOMES.values())
    assert len(CASES) > 200
    assert {case.provider for case in CASES.values()} >= {None, "microsoft", "github_app_user", "hubspot"}
