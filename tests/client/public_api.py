"""What users of the client write, type-checked with everything else (``make types``). Never run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, assert_type

import httpx
import psycopg
import requests

from tokenfleet_client import (
    Account,
    AsyncTokenClient,
    KeyEncryptionKey,
    NeedsReauth,
    Secret,
    StaleToken,
    Token,
    TokenClient,
)
from tokenfleet_client.httpx import AsyncTokenAuth
from tokenfleet_client.httpx import TokenAuth as HttpxTokenAuth
from tokenfleet_client.requests import TokenAuth as RequestsTokenAuth

if TYPE_CHECKING:

    class Pool:
        def connection(
            self, timeout: float | None = None
        ) -> AbstractContextManager[psycopg.Connection[dict[str, Any]]]: ...

    class AsyncPool:
        def connection(
            self, timeout: float | None = None
        ) -> AbstractAsyncContextManager[psycopg.AsyncConnection[tuple[Any, ...]]]: ...


def with_threads(key: KeyEncryptionKey, password: str) -> None:
    TokenClient(lambda: f"host=db password={password}", keys=[key], caller="billing", cache_size=10)
    TokenClient(Pool(), timeout=timedelta(seconds=3))
    with TokenClient("host=db") as tokens:
        token = assert_type(tokens.get_token(Account("acme", "c-1")), Token)
        tokens.get_token(7, timedelta(minutes=5), timeout=timedelta(seconds=1))
        assert_type(token.value, Secret)
        assert_type(token.expires_at, datetime | None)
        assert_type(token.authorization(), str)
        assert_type(tokens.report_unauthorized(token), Token)
        assert_type(tokens.current_tokens(tenant="t-1", provider="acme"), Iterator[Token])
        httpx.get("https://api.example", auth=HttpxTokenAuth(tokens, 7))
        requests.get("https://api.example", auth=RequestsTokenAuth(tokens, token.account), timeout=10)


async def with_tasks() -> None:
    AsyncTokenClient(AsyncPool())
    async with AsyncTokenClient("host=db") as tokens:
        token = assert_type(await tokens.get_token(Account("acme", "c-1", "sandbox")), Token)
        assert_type(await tokens.report_unauthorized(token), Token)
        assert_type(tokens.current_tokens(environment=None), AsyncIterator[Token])
        async with httpx.AsyncClient(auth=AsyncTokenAuth(tokens, 7, scheme="Example")) as client:
            await client.get("https://api.example")


def refusals(tokens: TokenClient) -> None:
    try:
        tokens.get_token(7)
    except NeedsReauth as refusal:
        assert_type(refusal.reason, str | None)
    except StaleToken as refusal:
        assert_type(refusal.retry_at, datetime | None)
