"""``auth=`` for httpx and requests: a token in each request, once more after a 401, and to nobody else's server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import httpx
import pytest
import requests
from sqlalchemy import Engine

from store.keys import Vault
from tests.support.api_server import Api
from tests.support.builders import make_account, make_app
from tests.support.readers import renew, requested
from tokenfleet.jobs import AccountId
from tokenfleet_client import AsyncTokenClient, KeyEncryptionKey, NeedsReauth, TokenClient
from tokenfleet_client.contract import AccountStatus
from tokenfleet_client.httpx import AsyncTokenAuth
from tokenfleet_client.httpx import TokenAuth as HttpxTokenAuth
from tokenfleet_client.requests import TokenAuth as RequestsTokenAuth


class Caller(Protocol):
    """Posts with an account's tokens and returns the status of what came back in the end."""

    def post(self, url: str, *, body: bytes = b"", streamed: bool = False) -> int: ...


class WithHttpx:
    def __init__(self, database: str, keys: list[KeyEncryptionKey], account: int) -> None:
        self.tokens = TokenClient(database, keys=keys)
        self.auth = HttpxTokenAuth(self.tokens, account)

    def post(self, url: str, *, body: bytes = b"", streamed: bool = False) -> int:
        with httpx.Client(auth=self.auth, follow_redirects=True) as client:
            return client.post(url, content=iter([body]) if streamed else body).status_code

    def close(self) -> None:
        self.tokens.close()


class WithAsyncHttpx:
    def __init__(self, database: str, keys: list[KeyEncryptionKey], account: int) -> None:
        self._runner = asyncio.Runner()
        self.tokens = AsyncTokenClient(database, keys=keys)
        self.auth = AsyncTokenAuth(self.tokens, account)

    def post(self, url: str, *, body: bytes = b"", streamed: bool = False) -> int:
        async def pieces() -> object:
            yield body

        async def post() -> int:
            async with httpx.AsyncClient(auth=self.auth, follow_redirects=True) as client:
                return (await client.post(url, content=pieces() if streamed else body)).status_code  # type: ignore[arg-type]

        return self._runner.run(post())

    def close(self) -> None:
        self._runner.run(self.tokens.close())
        self._runner.close()


class WithRequests:
    def __init__(self, database: str, keys: list[KeyEncryptionKey], account: int) -> None:
        self.tokens = TokenClient(database, keys=keys)
        self.auth = RequestsTokenAuth(self.tokens, account)

    def post(self, url: str, *, body: bytes = b"", streamed: bool = False) -> int:
        with requests.Session() as session:
            session.trust_env = False
            data = iter([body]) if streamed else body
            return session.post(url, data=data, auth=self.auth, timeout=30).status_code

    def close(self) -> None:
        self.tokens.close()


Connect = Callable[[int], Caller]


@pytest.fixture(params=[WithHttpx, WithAsyncHttpx, WithRequests])
def connect(request: pytest.FixtureRequest, readable: str, keys: list[KeyEncryptionKey]) -> Iterator[Connect]:
    made = []

    def connect(account: int) -> Caller:
        made.append(request.param(readable, keys, account))
        caller: Caller = made[-1]
        return caller

    yield connect
    for caller in made:
        caller.close()


@pytest.fixture
def account(engine: Engine, vault: Vault) -> AccountId:
    return make_account(engine, vault, make_app(engine, vault))


@contextmanager
def api(*accepted: str) -> Iterator[Api]:
    with Api(*accepted) as server:
        yield server


def test_a_request_carries_the_token(account: AccountId, connect: Connect) -> None:
    with api("access-1") as server:
        assert connect(account).post(server.url, body=b"example") == 200
    assert server.tokens == ["Bearer access-1"]


def test_after_a_401_the_request_is_sent_once_more_with_the_token_that_replaced_it(
    engine: Engine, vault: Vault, account: AccountId, connect: Connect
) -> None:
    with api("access-1", "access-2") as server:
        caller = connect(account)
        caller.post(server.url)
        renew(engine, vault, account)
        server.accepted = {"access-2"}

        assert caller.post(server.url, body=b"example") == 200
        assert caller.post(server.url) == 200
    assert server.tokens == ["Bearer access-1"] * 2 + ["Bearer access-2"] * 2
    assert [each.body for each in server.seen] == [b"", b"example", b"example", b""]


def test_an_api_that_answers_401_to_everything_is_asked_twice_and_no_more(
    engine: Engine, vault: Vault, account: AccountId, connect: Connect
) -> None:
    with api("access-1") as server:
        caller = connect(account)
        caller.post(server.url)
        renew(engine, vault, account)
        server.accepted = set()

        assert caller.post(server.url) == 401
    assert server.tokens[1:] == ["Bearer access-1", "Bearer access-2"]


def test_without_a_newer_token_the_caller_gets_the_apis_own_answer(
    engine: Engine, account: AccountId, connect: Connect
) -> None:
    with api("access-1") as server:
        caller = connect(account)
        caller.post(server.url)
        server.accepted = set()
        with engine.begin() as connection:
            connection.exec_driver_sql("UPDATE tokenfleet.accounts SET status = 'paused'")

        assert caller.post(server.url) == 401
    assert server.tokens == ["Bearer access-1"] * 2


def test_a_body_that_is_gone_once_it_was_sent_is_not_sent_again(
    engine: Engine, vault: Vault, account: AccountId, connect: Connect
) -> None:
    with api("access-1") as server:
        caller = connect(account)
        caller.post(server.url)
        renew(engine, vault, account)
        server.accepted = set()

        assert caller.post(server.url, body=b"example", streamed=True) == 401
    assert [each.body for each in server.seen] == [b"", b"example"]


def test_a_redirect_to_another_host_goes_without_the_token_and_its_401_is_not_ours(
    engine: Engine, vault: Vault, account: AccountId, connect: Connect
) -> None:
    with api("access-1") as server, api() as foreign:
        caller = connect(account)
        renew(engine, vault, account)

        assert caller.post(f"{server.url}/to/{foreign.port}") == 401
    assert server.tokens == ["Bearer access-2"]
    assert foreign.tokens == [None]
    assert requested(engine) == []


def test_an_account_that_needs_reauth_is_refused_before_anything_is_sent(
    engine: Engine, vault: Vault, connect: Connect
) -> None:
    app = make_app(engine, vault)
    ended = make_account(engine, vault, app, status=AccountStatus.NEEDS_REAUTH)
    with api() as server, pytest.raises(NeedsReauth):
        connect(ended).post(server.url)
    assert server.seen == []


def test_each_client_of_httpx_refuses_the_tokens_of_the_other_kind(keys: list[KeyEncryptionKey]) -> None:
    request = httpx.Request("GET", "http://localhost")
    blocking = HttpxTokenAuth(TokenClient("host=localhost", keys=keys), 1)
    waiting = AsyncTokenAuth(AsyncTokenClient("host=localhost", keys=keys), 1)

    with pytest.raises(TypeError, match="AsyncTokenAuth"):
        blocking.async_auth_flow(request)
    with pytest.raises(TypeError, match="TokenAuth"):
        waiting.sync_auth_flow(request)
