"""Tokens that were read, kept in memory until they are about to expire.

Promises: a token that has expired never comes out of here, nor one older than a generation that an API has refused; a
newer generation is never replaced by an older one; what is used least goes first when there are too many. The reader's
wall clock does not count: how long a token lives is taken from the database's clock, and then measured with a monotonic
one from before the question, so that a token seems to end rather too early than too late.

A token is read again after five minutes in any case: until then an account that was paused or ended goes on here.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from tokenfleet_client.tokens import Account, AccountRef, Token

READ_AGAIN_SECONDS: Final = 300.0
ATTEMPT_SECONDS: Final = 5.0
"""How long everybody else goes on with a token of that age while one caller reads it again."""


@dataclass(slots=True)
class _Held:
    token: Token
    ends: float
    read_again: float


class TokenCache:
    """Tokens by account, at most ``size`` of them. Times are seconds of a monotonic clock. Any thread may call."""

    def __init__(self, size: int) -> None:
        self._size = size
        self.forget_locks()
        self._held: OrderedDict[int, _Held] = OrderedDict()
        self._ids: dict[Account, int] = {}

    def forget_locks(self) -> None:
        """Make the lock anew: after a fork it may be held by a thread that is not there."""
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._held)

    def fresh(self, account: AccountRef, validity: float, newer_than: int, now: float) -> Token | None:
        """Return a token that need not be read again, or None. Of many callers one is told to read an old one again."""
        with self._lock:
            held = self._find(account)
            if held is None or held.token.generation <= newer_than or held.ends - now < validity:
                return None
            if held.read_again <= now:
                held.read_again = now + ATTEMPT_SECONDS
                return None
            self._held.move_to_end(held.token.account_id)
            return held.token

    def unexpired(self, account: AccountRef, newer_than: int, now: float) -> Token | None:
        """Return whatever token is still valid: what to go on with while the database is away."""
        with self._lock:
            held = self._find(account)
            valid = held is not None and held.token.generation > newer_than and held.ends > now
            return held.token if held is not None and valid else None

    def put(self, token: Token, expires_in: float | None, asked: float) -> None:
        """Hold ``token``, which the database was asked for at ``asked`` and which lived ``expires_in`` seconds then."""
        ends = math.inf if expires_in is None else asked + expires_in
        with self._lock:
            held = self._held.get(token.account_id)
            if held is not None and held.token.generation > token.generation:
                return
            self._held[token.account_id] = _Held(token, ends, asked + READ_AGAIN_SECONDS)
            self._held.move_to_end(token.account_id)
            self._ids[token.account] = token.account_id
            if len(self._held) > self._size:
                self._forget(next(iter(self._held)))

    def drop(self, account_id: int, generation: int) -> None:
        """Forget the account's token if it is of ``generation`` or older."""
        with self._lock:
            held = self._held.get(account_id)
            if held is not None and held.token.generation <= generation:
                self._forget(account_id)

    def drop_account(self, account: AccountRef) -> None:
        """Forget whatever token of the account there is."""
        with self._lock:
            held = self._find(account)
            if held is not None:
                self._forget(held.token.account_id)

    def _find(self, account: AccountRef) -> _Held | None:
        if isinstance(account, Account):
            account_id = self._ids.get(account)
            return None if account_id is None else self._held.get(account_id)
        return self._held.get(account)

    def _forget(self, account_id: int) -> None:
        held = self._held.pop(account_id)
        # Names may have moved on to an account that was made anew.
        if self._ids.get(held.token.account) == account_id:
            del self._ids[held.token.account]
