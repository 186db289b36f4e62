"""Fresh access tokens for tasks on an event loop: :class:`AsyncTokenClient`.

The rules are in :mod:`tokenfleet_client.reading`; this performs their steps, and has one exchange under way for callers
who want the same. An exchange is a task of its own, so a caller who is cancelled takes nothing from the others.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from datetime import timedelta
from types import TracebackType
from typing import Self, TypeVar

from tokenfleet_client.access_keys import keys_from_environ
from tokenfleet_client.async_connections import (
    AsyncConnectionPool,
    AsyncDatabase,
    AsyncLentConnections,
    AsyncOwnConnections,
)
from tokenfleet_client.async_listening import AsyncListener
from tokenfleet_client.client import CACHE_SIZE
from tokenfleet_client.connections import ConnInfo, resolver
from tokenfleet_client.envelope import KeyWrapper
from tokenfleet_client.exchange import FAILURES, Call, Exchange, Query, Result
from tokenfleet_client.reading import MIN_VALIDITY, TIMEOUT, Need, Reader
from tokenfleet_client.tokens import AccountRef, Token
from tokenfleet_client.unsealing_reports import REPORT_COUNT, REPORT_SECONDS

T = TypeVar("T")


class AsyncTokenClient:
    """As :class:`tokenfleet_client.TokenClient`, for tasks.

    One client belongs to one event loop, and does not survive a fork. Use it as an asynchronous context manager, or
    call :meth:`close`.
    """

    def __init__(
        self,
        database: ConnInfo | AsyncConnectionPool,
        *,
        keys: Iterable[KeyWrapper] | None = None,
        caller: str | None = None,
        timeout: timedelta = TIMEOUT,
        cache_size: int = CACHE_SIZE,
    ) -> None:
        """Read from ``database``, and connect when a token is wanted first. Arguments and errors as for threads."""
        self._reader = Reader(
            keys_from_environ(os.environ) if keys is None else keys,
            caller=caller or socket.gethostname(),
            cache_size=cache_size,
            clock=time.monotonic,
        )
        self._timeout = timeout
        self._database: AsyncDatabase
        if isinstance(database, str) or callable(database):
            conninfo = resolver(database)
            self._database = AsyncOwnConnections(conninfo)
            self._listener = AsyncListener(conninfo)
        else:
            self._database = AsyncLentConnections(database)
            self._listener = AsyncListener(None)
        self._closed = False
        self._home: tuple[int, asyncio.AbstractEventLoop] | None = None
        self._flights: dict[Need, asyncio.Task[Token]] = {}
        self._teller: asyncio.Task[None] | None = None
        self._tell_now = asyncio.Event()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Tell what was opened, and close every connection of the client's own. May be called again."""
        if self._closed:
            return
        self._closed = True
        under_way = [task for task in (*self._flights.values(), self._teller) if task is not None]
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
        try:
            await self._perform(self._reader.tell_unsealings())
        finally:
            await self._listener.close()
            await self._database.close()

    async def get_token(
        self, account: AccountRef, min_validity: timedelta = MIN_VALIDITY, *, timeout: timedelta | None = None
    ) -> Token:
        """Return an access token of ``account`` that lives for at least ``min_validity``.

        Promises and errors as of :meth:`tokenfleet_client.TokenClient.get_token`.
        """
        token = self._reader.held(account, min_validity)
        if token is not None:
            return token
        return await self._share(Need(account, min_validity, self._timeout if timeout is None else timeout))

    async def report_unauthorized(
        self, token: Token, min_validity: timedelta = MIN_VALIDITY, *, timeout: timedelta | None = None
    ) -> Token:
        """Tell that an API answered 401 to ``token``, and return the token that replaces it.

        Promises and errors as of :meth:`tokenfleet_client.TokenClient.report_unauthorized`.
        """
        account_id, generation = token.account_id, token.generation
        self._reader.cache.drop(account_id, generation)
        newer = self._reader.held(account_id, min_validity, generation)
        if newer is not None:
            return newer
        wanted = self._timeout if timeout is None else timeout
        return await self._share(Need(account_id, min_validity, wanted, generation))

    async def current_tokens(
        self,
        *,
        tenant: str | None = None,
        provider: str | None = None,
        environment: str | None = "production",
    ) -> AsyncIterator[Token]:
        """Yield every active account's token that has not expired, by ascending account id; ask for no refresh.

        Promises and errors as of :meth:`tokenfleet_client.TokenClient.current_tokens`.
        """
        after = 0
        while page := await self._run(self._reader.page(after, tenant, provider, environment, self._timeout)):
            for token in page:
                yield token
            after = page[-1].account_id

    async def _share(self, need: Need) -> Token:
        """Perform one exchange for all who need the same. Whoever comes while it is under way shares its end."""
        self._check_home()
        task = self._flights.get(need)
        if task is None:
            task = asyncio.create_task(self._run(self._reader.obtain(need)), name="tokenfleet-get-token")
            self._flights[need] = task
            task.add_done_callback(lambda done: self._land(need, done))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise RuntimeError("this AsyncTokenClient was closed") from None
            raise

    def _land(self, need: Need, done: asyncio.Task[Token]) -> None:
        del self._flights[need]
        if not done.cancelled():
            done.exception()  # Seen, even when every caller has been cancelled meanwhile.

    def _check_home(self) -> None:
        here = (os.getpid(), asyncio.get_running_loop())
        if self._home is None:
            self._home = here
        elif self._home != here:
            raise RuntimeError(
                "an AsyncTokenClient belongs to one event loop in one process: make one in each of them"
            )

    async def _run(self, exchange: Exchange[T]) -> T:
        if self._closed:
            raise RuntimeError("this AsyncTokenClient is closed")
        self._check_home()
        try:
            return await self._perform(exchange)
        finally:
            self._have_unsealings_told()

    async def _perform(self, exchange: Exchange[T]) -> T:
        result: Result = None
        try:
            with self._listener.waiting() as wait:
                step = next(exchange)
                while True:
                    try:
                        if isinstance(step, Query):
                            result = await self._database.fetch(step)
                        elif isinstance(step, Call):
                            result = await asyncio.to_thread(step.function)
                        else:
                            result = await wait(step)
                    except FAILURES as error:
                        step = exchange.throw(error)
                    else:
                        step = exchange.send(result)
        except StopIteration as end:
            returned: T = end.value
            return returned

    def _have_unsealings_told(self) -> None:
        untold = self._reader.unsealings.untold
        if untold >= REPORT_COUNT:
            self._tell_now.set()
        if untold and self._teller is None and not self._closed:
            self._teller = asyncio.create_task(self._tell(), name="tokenfleet-unsealings")

    async def _tell(self) -> None:
        while self._reader.unsealings.untold:
            with suppress(TimeoutError):
                async with asyncio.timeout(REPORT_SECONDS):
                    await self._tell_now.wait()
            self._tell_now.clear()
            await self._perform(self._reader.tell_unsealings())
        self._teller = None
