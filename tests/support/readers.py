"""Readers in tests: one interface to both clients, and a fleet that is as quick as the test wants it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Protocol

from sqlalchemy import Engine, text
from sqlalchemy.engine import make_url

from store.keys import Vault
from tests.support.builders import HOUR
from tokenfleet.jobs import AccountId
from tokenfleet_client import AsyncTokenClient, Token, TokenClient
from tokenfleet_client.contract import REFRESHED_CHANNEL
from tokenfleet_client.envelope import access_token_binding
from tokenfleet_client.reading import MIN_VALIDITY
from tokenfleet_client.tokens import AccountRef

PATIENT = timedelta(seconds=60)


class Reading(Protocol):
    """What a test does with either client."""

    def get_token(
        self, account: AccountRef, min_validity: timedelta = ..., *, timeout: timedelta = ...
    ) -> Token: ...

    def get_tokens(
        self, accounts: Sequence[AccountRef], *, timeout: timedelta = ...
    ) -> list[Token | BaseException]:
        """Ask for all at the same time."""
        ...

    def report_unauthorized(self, token: Token, *, timeout: timedelta = ...) -> Token: ...

    def current_tokens(self, **filters: str | None) -> list[Token]: ...

    def close(self) -> None: ...

    @property
    def hears(self) -> bool | None:
        """Whether it listens; None when it has found out that this is of no use."""
        ...


class Threads:
    """A :class:`TokenClient` and threads that use it."""

    def __init__(self, client: TokenClient) -> None:
        self.client = client

    def get_token(
        self, account: AccountRef, min_validity: timedelta = MIN_VALIDITY, *, timeout: timedelta = PATIENT
    ) -> Token:
        return self.client.get_token(account, min_validity, timeout=timeout)

    def get_tokens(
        self, accounts: Sequence[AccountRef], *, timeout: timedelta = PATIENT
    ) -> list[Token | BaseException]:
        together = threading.Barrier(len(accounts))

        def get(account: AccountRef) -> Token:
            together.wait()
            return self.client.get_token(account, timeout=timeout)

        with ThreadPoolExecutor(len(accounts)) as pool:
            futures: list[Future[Token]] = [pool.submit(get, account) for account in accounts]
            return [future.exception() or future.result() for future in futures]

    def report_unauthorized(self, token: Token, *, timeout: timedelta = PATIENT) -> Token:
        return self.client.report_unauthorized(token, timeout=timeout)

    def current_tokens(self, **filters: str | None) -> list[Token]:
        return list(self.client.current_tokens(**filters))

    def close(self) -> None:
        self.client.close()

    @property
    def hears(self) -> bool | None:
        listener = self.client._listener
        return None if listener.is_useless else listener.listens


class Tasks:
    """An :class:`AsyncTokenClient` on an event loop in a thread of its own."""

    def __init__(self, make: Callable[[], AsyncTokenClient]) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.client = make()

    def _run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def get_token(
        self, account: AccountRef, min_validity: timedelta = MIN_VALIDITY, *, timeout: timedelta = PATIENT
    ) -> Token:
        token: Token = self._run(self.client.get_token(account, min_validity, timeout=timeout))
        return token

    def get_tokens(
        self, accounts: Sequence[AccountRef], *, timeout: timedelta = PATIENT
    ) -> list[Token | BaseException]:
        async def get() -> list[Token | BaseException]:
            calls = [self.client.get_token(account, timeout=timeout) for account in accounts]
            return list(await asyncio.gather(*calls, return_exceptions=True))

        tokens: list[Token | BaseException] = self._run(get())
        return tokens

    def report_unauthorized(self, token: Token, *, timeout: timedelta = PATIENT) -> Token:
        newer: Token = self._run(self.client.report_unauthorized(token, timeout=timeout))
        return newer

    def current_tokens(self, **filters: str | None) -> list[Token]:
        async def read() -> list[Token]:
            return [token async for token in self.client.current_tokens(**filters)]

        tokens: list[Token] = self._run(read())
        return tokens

    def close(self) -> None:
        if self._thread.is_alive():
            self._run(self.client.close())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    @property
    def hears(self) -> bool | None:
        listener = self.client._listener
        return None if listener.is_useless else listener.listens


def libpq(url: str) -> str:
    """Return the URL of SQLAlchemy as one of libpq."""
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


def renew(engine: Engine, vault: Vault, account_id: AccountId, *, lives: timedelta = HOUR) -> None:
    """Replace an account's access token with that of the next generation, and say so, as the fleet does."""
    with engine.begin() as connection:
        generation: int = connection.execute(
            text("SELECT generation + 1 FROM tokenfleet.token_sets WHERE account_id = :id FOR UPDATE"),
            {"id": account_id},
        ).scalar_one()
        connection.execute(
            text(
                "UPDATE tokenfleet.token_sets SET generation = :generation, access_token = :sealed, "
                "expires_at = now() + CAST(:lives AS interval) WHERE account_id = :id"
            ),
            {
                "id": account_id,
                "generation": generation,
                "lives": lives,
                "sealed": vault.access.seal(
                    f"access-{generation}", access_token_binding(account_id, generation)
                ),
            },
        )
        connection.execute(
            text("UPDATE tokenfleet.refresh_schedule SET requested_at = NULL WHERE account_id = :id"),
            {"id": account_id},
        )
        connection.execute(
            text("SELECT pg_notify(:channel, :payload)"),
            {"channel": REFRESHED_CHANNEL, "payload": f"{account_id} {generation}"},
        )


def requested(engine: Engine) -> list[int]:
    """Return the accounts that a refresh was asked for."""
    with engine.connect() as connection:
        statement = (
            "SELECT account_id FROM tokenfleet.refresh_schedule WHERE requested_at IS NOT NULL ORDER BY 1"
        )
        return list(connection.execute(text(statement)).scalars())


@contextmanager
def obliging(engine: Engine, vault: Vault, *, lives: timedelta = HOUR) -> Iterator[list[int]]:
    """Renew whatever is asked for, soon after it is asked for; yields the accounts in the order of their renewals."""
    done, renewed = threading.Event(), list[int]()

    def oblige() -> None:
        while not done.wait(0.02):
            for account_id in requested(engine):
                renew(engine, vault, AccountId(account_id), lives=lives)
                renewed.append(account_id)

    thread = threading.Thread(target=oblige)
    thread.start()
    try:
        yield renewed
    finally:
        done.set()
        thread.join()
