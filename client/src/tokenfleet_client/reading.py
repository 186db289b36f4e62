"""How a token is had: from memory, from the database, or from the fleet, which is asked to refresh it and waited for.

Promises: a token that is returned lives for at least ``min_validity`` by the database's clock. The one exception: while
the database is away, whatever token is held and still valid is better than none. Whoever gets no token gets an error
that tells what to do, and gets it in bounded time. One question is under way for an account at a time, and its keys
are loaded anew when the fleet has rotated them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from types import MappingProxyType
from typing import Final

import psycopg

from tokenfleet_client import queries
from tokenfleet_client.access_keys import AccessKeys
from tokenfleet_client.contract import AccountStatus, Answer
from tokenfleet_client.envelope import KeyWrapper, access_token_binding
from tokenfleet_client.errors import (
    DatabaseUnavailable,
    MinValidityUnreachable,
    NeedsReauth,
    Paused,
    Revoked,
    UnknownAccount,
)
from tokenfleet_client.exchange import AWAY, Call, Exchange, Query, query, wait
from tokenfleet_client.queries import Reply, TokenRow
from tokenfleet_client.refusals import late, name_of, refuse, unknown, utc
from tokenfleet_client.secret import Secret
from tokenfleet_client.token_cache import TokenCache
from tokenfleet_client.tokens import Account, AccountRef, Token
from tokenfleet_client.unsealing_reports import UnsealingReports
from tokenfleet_client.unsealings import Purpose

MIN_VALIDITY: Final = timedelta(seconds=30)
TIMEOUT: Final = timedelta(seconds=10)
PAGE: Final = 500

HOLDERS_PATIENCE_SECONDS: Final = 1.0
"""Who holds a token that is still valid does not wait longer than this for a database that is away."""
AWAY_SECONDS: Final = 5.0
"""And for so long afterwards nobody who holds one asks it at all."""
SAY_SECONDS: Final = 2.0
KEYS_LOOK_SECONDS: Final = 0.01
FIRST_POLL_SECONDS: Final = 0.025
LONGEST_POLL_SECONDS: Final = 1.0
POLL_FACTOR: Final = 1.5


@dataclass(frozen=True, slots=True)
class Need:
    """What one caller wants. Callers whose needs are equal share one exchange."""

    account: AccountRef
    min_validity: timedelta
    timeout: timedelta
    newer_than: int = 0
    """The generation that an API has refused; generations count from 1."""


class Reader:
    """What all callers of one client share. Has no I/O of its own; ``clock`` is monotonic, in seconds."""

    def __init__(
        self, keys: Iterable[KeyWrapper], *, caller: str, cache_size: int, clock: Callable[[], float]
    ) -> None:
        self.unsealings = UnsealingReports(caller)
        self.cache = TokenCache(cache_size)
        self._keys = AccessKeys(keys)
        self._clock = clock
        self._away_until = -math.inf

    def begin_anew_in_child(self) -> None:
        """After a fork: forget locks that the parent's threads may hold, and what the parent is going to tell."""
        self.cache.forget_locks()
        self.unsealings.start_anew()
        self._keys.start_anew()

    def held(self, account: AccountRef, min_validity: timedelta, newer_than: int = 0) -> Token | None:
        """Return a token from memory, or None when the database has to be asked."""
        return self.cache.fresh(account, min_validity.total_seconds(), newer_than, self._clock())

    def obtain(self, need: Need) -> Exchange[Token]:
        """Return a token that meets ``need``. Raises the kinds of :class:`TokenUnavailable` and what opening raises."""
        if not isinstance(need.account, int | Account):
            raise TypeError("an account is given by its id, or as Account(provider, external_id)")
        now = self._clock()
        held = self.cache.unexpired(need.account, need.newer_than, now)
        if held is not None and now < self._away_until:
            return held
        deadline = now + need.timeout.total_seconds()
        patience = deadline if held is None else min(deadline, now + HOLDERS_PATIENCE_SECONDS)
        try:
            return (yield from self._obtain(need, deadline, patience))
        except DatabaseUnavailable:
            now = self._clock()
            self._away_until = now + AWAY_SECONDS
            held = self.cache.unexpired(need.account, need.newer_than, now)
            if held is None:
                raise
            return held
        except (NeedsReauth, Paused, Revoked, UnknownAccount):
            # One caller was told, so nobody goes on with what is in memory.
            self.cache.drop_account(need.account)
            raise

    def page(
        self,
        after: int,
        tenant: str | None,
        provider: str | None,
        environment: str | None,
        timeout: timedelta,
    ) -> Exchange[list[Token]]:
        """Return the next tokens that are current, by ascending account id."""
        asked = self._clock()
        deadline = asked + timeout.total_seconds()
        filters = (tenant, tenant, provider, provider, environment, environment)
        rows = yield from query(queries.READ_PAGE, (after, *filters, PAGE), deadline, self._clock)
        tokens: list[Token] = []
        for row in rows:
            token = yield from self._open(TokenRow(*row), deadline)
            tokens.append(token)
        return tokens

    def tell_unsealings(self) -> Exchange[None]:
        """Tell the database how many tokens were opened. Never fails: what it does not want is dropped."""
        opened = self.unsealings.take(self._clock())
        if not opened:
            return
        try:
            said = (self.unsealings.caller, Purpose.READ.value, opened)
            yield Query(queries.SAY_OPENED, said, self._clock() + SAY_SECONDS)
        except AWAY:
            self.unsealings.put_back(opened)
        except psycopg.Error:
            self.unsealings.refused(self._clock())

    def _obtain(self, need: Need, deadline: float, patience: float) -> Exchange[Token]:
        asked = self._clock()
        row = yield from self._read(need.account, patience)
        pause, asks = FIRST_POLL_SECONDS, True
        reply: Reply | None = None
        again = math.inf
        while True:
            if meets(row, need):
                token = yield from self._open(row, patience)
                self.cache.put(token, row.expires_in, asked)
                return token
            refuse(row.status, row.status_reason, need.account)
            if asks:
                reply = yield from self._ask(row, need, patience)
                self._judge(reply, row, need, deadline)
                again = math.inf if reply.retry_in is None else self._clock() + reply.retry_in
            left = deadline - self._clock()
            if left <= 0:
                raise late(row, reply, need.account, need.min_validity, need.newer_than)
            woken = False
            # The fleet holds a better one already: look at once, but only once in a row.
            if reply is None or reply.answer != Answer.FRESH or not asks:
                woken = yield from wait(min(pause, left), row.account_id)
                pause = min(pause * POLL_FACTOR, LONGEST_POLL_SECONDS)
            before, asked = row, self._clock()
            patience = max(patience, asked + HOLDERS_PATIENCE_SECONDS)
            row = yield from self._read(row.account_id, patience)
            # A refresh has ended, well or not: what does the fleet say now?
            asks = woken or _moved(before, row) or self._clock() >= again

    def _read(self, account: AccountRef, deadline: float) -> Exchange[TokenRow]:
        if isinstance(account, Account):
            names = (account.provider, account.external_id, account.environment)
            rows = yield from query(queries.READ_BY_NAMES, names, deadline, self._clock)
        else:
            rows = yield from query(queries.READ_BY_ID, (account,), deadline, self._clock)
        if not rows:
            raise unknown(account)
        return TokenRow(*rows[0])

    def _ask(self, row: TokenRow, need: Need, deadline: float) -> Exchange[Reply]:
        if need.newer_than >= row.generation:
            refused = (row.account_id, need.newer_than)
            rows = yield from query(queries.SAY_UNAUTHORIZED, refused, deadline, self._clock)
        else:
            wanted = (row.account_id, need.min_validity)
            rows = yield from query(queries.ASK_FOR_REFRESH, wanted, deadline, self._clock)
        if not rows:
            raise unknown(need.account)
        return Reply(*rows[0])

    def _judge(self, reply: Reply, row: TokenRow, need: Need, deadline: float) -> None:
        """Return when waiting makes sense."""
        if reply.answer == Answer.REFUSED:
            refuse(reply.status, reply.status_reason, need.account)
            raise late(row, reply, need.account, need.min_validity, need.newer_than)
        if reply.answer == Answer.UNREACHABLE:
            raise MinValidityUnreachable(
                f"the tokens of {name_of(need.account)} do not live for {need.min_validity}: ask for less min_validity",
                expires_at=utc(reply.expires_at),
            )
        in_time = reply.retry_in is not None and self._clock() + reply.retry_in < deadline
        untrue = reply.answer == Answer.FRESH and reply.generation <= need.newer_than
        if untrue or (reply.answer == Answer.WAITING and not in_time):
            raise late(row, reply, need.account, need.min_validity, need.newer_than)

    def _open(self, row: TokenRow, deadline: float) -> Exchange[Token]:
        assert row.access_token is not None
        envelope = bytes(row.access_token)
        if not self._keys.can_open(envelope):
            yield from self._load_keys(envelope, deadline)
        ring = self._keys.ring
        value = ring.open(envelope, access_token_binding(row.account_id, row.generation), Purpose.READ)
        self.unsealings.count(ring.openings)
        return Token(
            value=Secret(value),
            token_type=row.token_type,
            scope=row.scope,
            expires_at=utc(row.expires_at),
            generation=row.generation,
            account_id=row.account_id,
            provider=row.provider,
            environment=row.environment,
            external_id=row.external_id,
            tenant=row.tenant,
            variables=MappingProxyType(dict(row.variables)),
        )

    def _load_keys(self, envelope: bytes, deadline: float) -> Exchange[None]:
        # Somebody else may be loading them just now.
        while pause := self._keys.seconds_until_loading(self._clock()):
            yield from wait(min(pause, KEYS_LOOK_SECONDS))
            if self._keys.can_open(envelope):
                return
        self._keys.begin_loading(self._clock())
        rows = yield from query(queries.READ_KEYS, (), deadline, self._clock)
        yield Call(lambda: self._keys.unwrap((row[0], row[1], row[2], row[3]) for row in rows))
        if self._keys.can_open(envelope):
            self._keys.loading_helped()


def meets(row: TokenRow, need: Need) -> bool:
    """Answer whether the token of ``row`` is what is needed."""
    return (
        row.status == AccountStatus.ACTIVE
        and row.access_token is not None
        and row.generation > need.newer_than
        and (row.expires_in is None or row.expires_in >= max(0.0, need.min_validity.total_seconds()))
    )


def _moved(before: TokenRow, after: TokenRow) -> bool:
    def seen(row: TokenRow) -> tuple[object, ...]:
        return row.generation, row.status, row.failing_since, row.last_error

    return seen(before) != seen(after)
