"""Fresh access tokens for threads: :class:`TokenClient`.

The rules are in :mod:`tokenfleet_client.reading`; this performs their steps, has one exchange under way for callers who
want the same, and survives a fork.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future
from datetime import timedelta
from types import TracebackType
from typing import Final, Self, TypeVar

from tokenfleet_client.access_keys import keys_from_environ
from tokenfleet_client.connections import (
    ConnectionPool,
    ConnInfo,
    Database,
    LentConnections,
    OwnConnections,
    resolver,
)
from tokenfleet_client.envelope import KeyWrapper
from tokenfleet_client.exchange import FAILURES, Call, Exchange, Query, Result
from tokenfleet_client.listening import Listener
from tokenfleet_client.reading import MIN_VALIDITY, TIMEOUT, Need, Reader
from tokenfleet_client.tokens import AccountRef, Token
from tokenfleet_client.unsealing_reports import REPORT_COUNT, REPORT_SECONDS

T = TypeVar("T")
CACHE_SIZE: Final = 10_000


class TokenClient:
    """Access tokens that are valid, read from the database that a Tokenfleet keeps them in.

    One client serves all threads of a process. Use it as a context manager, or call :meth:`close`: what was opened is
    told to the fleet's audit log then at the latest. A forked child may go on with it: what its parent holds in memory
    is there, connections are opened anew.
    """

    def __init__(
        self,
        database: ConnInfo | ConnectionPool,
        *,
        keys: Iterable[KeyWrapper] | None = None,
        caller: str | None = None,
        timeout: timedelta = TIMEOUT,
        cache_size: int = CACHE_SIZE,
    ) -> None:
        """Read from ``database``, and connect when a token is wanted first.

        :param database: a connection URL or string of libpq, a function that returns one (asked for each connection,
            so a password may be short-lived), or a pool such as ``psycopg_pool.ConnectionPool``. With the first two the
            client keeps up to four connections and one more to listen on while it waits; with a pool it waits by
            looking, and how long a statement may take is the pool's matter.
        :param keys: the key-encryption keys that the operator gave you; those in the environment unless given
            (``TOKENFLEET_ACCESS_KEYS``: ``id:base64``, several with commas between; or the file
            ``TOKENFLEET_KEYS_FILE``).
        :param caller: the name of this service in the fleet's audit log, the host's unless given.
        :param timeout: how long to wait in all for a token that has to be refreshed, unless a call says otherwise.
        :param cache_size: how many tokens are kept in memory.

        Raises :class:`ValueError` for a ``database`` that is none and :class:`KeyMaterialError` for keys that are none.
        """
        self._reader = Reader(
            keys_from_environ(os.environ) if keys is None else keys,
            caller=caller or socket.gethostname(),
            cache_size=cache_size,
            clock=time.monotonic,
        )
        self._timeout = timeout
        self._conninfo: Callable[[], str] | None = None
        self._pool: ConnectionPool | None = None
        if isinstance(database, str) or callable(database):
            self._conninfo = resolver(database)
        else:
            self._pool = database
        self._closed = False
        self._begin()
        _clients.add(self)

    def _begin(self) -> None:
        """Have nothing open and nothing under way, as at first and in a forked child."""
        self._database: Database
        if self._pool is not None:
            self._database = LentConnections(self._pool)
        elif self._conninfo is not None:
            self._database = OwnConnections(self._conninfo)
        self._listener = Listener(self._conninfo)
        self._lock = threading.Lock()
        self._flights: dict[Need, Future[Token]] = {}
        self._teller: threading.Thread | None = None
        self._tell_now = threading.Event()

    def begin_anew_in_child(self) -> None:
        """Forget what belongs to the parent of this process. Called after a fork."""
        # Their sockets are the parent's. Nothing may be sent on them, not even a farewell, so they are not closed.
        _inherited.append((self._database, self._listener))
        self._reader.begin_anew_in_child()
        self._begin()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Tell what was opened, and close every connection of the client's own. May be called again."""
        if self._closed:
            return
        self._closed = True
        self._tell_now.set()
        try:
            self._perform(self._reader.tell_unsealings())
        finally:
            self._listener.close()
            self._database.close()

    def get_token(
        self, account: AccountRef, min_validity: timedelta = MIN_VALIDITY, *, timeout: timedelta | None = None
    ) -> Token:
        """Return an access token of ``account`` that lives for at least ``min_validity``.

        From memory if it can, else from the database; if that has none either, the fleet is asked to refresh it, which
        is waited for. While the database is away, a token in memory that is still valid is returned, even if it does
        not live that long.

        Raises, within ``timeout`` and a second or two, the kinds of :class:`TokenUnavailable`, each of which says what
        to do: :class:`UnknownAccount`, :class:`NeedsReauth`, :class:`Paused`, :class:`Revoked`, :class:`Connecting`,
        :class:`StaleToken`, :class:`MinValidityUnreachable`, :class:`DatabaseUnavailable`. And, for an operator to
        mend: :class:`ContractError`, :class:`EnvelopeError`, :class:`KeyServiceUnavailable`.
        """
        token = self._reader.held(account, min_validity)
        if token is not None:
            return token
        return self._share(Need(account, min_validity, self._timeout if timeout is None else timeout))

    def report_unauthorized(
        self, token: Token, min_validity: timedelta = MIN_VALIDITY, *, timeout: timedelta | None = None
    ) -> Token:
        """Tell that an API answered 401 to ``token``, and return the token that replaces it.

        Nobody gets ``token`` from this client's memory any more. Use it once per request and try again with what it
        returns once: an API that refuses that as well means something else by its 401. Raises as :meth:`get_token`
        does, :class:`StaleToken` when no newer token came in time.
        """
        account_id, generation = token.account_id, token.generation
        self._reader.cache.drop(account_id, generation)
        newer = self._reader.held(account_id, min_validity, generation)
        if newer is not None:
            return newer
        wanted = self._timeout if timeout is None else timeout
        return self._share(Need(account_id, min_validity, wanted, generation))

    def current_tokens(
        self,
        *,
        tenant: str | None = None,
        provider: str | None = None,
        environment: str | None = "production",
    ) -> Iterator[Token]:
        """Yield every active account's token that has not expired, by ascending account id; ask for no refresh.

        Read in pages of 500, each in a transaction of its own. None leaves a filter out. Raises
        :class:`DatabaseUnavailable` and what opening a token raises.
        """
        after = 0
        while page := self._run(self._reader.page(after, tenant, provider, environment, self._timeout)):
            yield from page
            after = page[-1].account_id

    def _share(self, need: Need) -> Token:
        """Perform one exchange for all who need the same. Whoever comes while it is under way shares its end."""
        while True:
            with self._lock:
                flight = self._flights.get(need)
                if flight is None:
                    own = self._flights[need] = Future[Token]()
                    break
            try:
                return flight.result()
            except CancelledError:
                continue  # It was interrupted, which is nothing to us.
        try:
            token = self._run(self._reader.obtain(need))
        except Exception as error:
            self._land(need)
            own.set_exception(error)
            raise
        except BaseException:
            self._land(need)
            own.cancel()
            raise
        self._land(need)
        own.set_result(token)
        return token

    def _land(self, need: Need) -> None:
        with self._lock:
            self._flights.pop(need, None)

    def _run(self, exchange: Exchange[T]) -> T:
        if self._closed:
            raise RuntimeError("this TokenClient is closed")
        try:
            return self._perform(exchange)
        finally:
            self._have_unsealings_told()

    def _perform(self, exchange: Exchange[T]) -> T:
        result: Result = None
        try:
            with self._listener.waiting() as wait:
                step = next(exchange)
                while True:
                    try:
                        if isinstance(step, Query):
                            result = self._database.fetch(step)
                        elif isinstance(step, Call):
                            step.function()
                            result = None
                        else:
                            result = wait(step)
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
        if not untold:
            return
        with self._lock:
            if self._teller is None and not self._closed:
                self._teller = threading.Thread(target=self._tell, name="tokenfleet-unsealings", daemon=True)
                self._teller.start()

    def _tell(self) -> None:
        while not self._closed:
            self._tell_now.wait(REPORT_SECONDS)
            self._tell_now.clear()
            if not self._closed:
                self._perform(self._reader.tell_unsealings())
            with self._lock:
                if not self._reader.unsealings.untold:
                    self._teller = None
                    return


_clients: weakref.WeakSet[TokenClient] = weakref.WeakSet()
_inherited: list[object] = []


def _begin_anew_in_child() -> None:
    for client in _clients:
        client.begin_anew_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew_in_child)
