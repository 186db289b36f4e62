"""Leases in Redis: politeness between workers, never the authority.

A lease keeps a second worker from even trying while the first one asks; what makes a second presentation
impossible is the fence in Postgres (``store.schedule.start``). So Redis may be slow, wiped or away: then
leases are granted without it, and that is counted.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from redis.asyncio import Redis
from redis.exceptions import RedisError

from tokenfleet.jobs import AccountId

KEY_PREFIX: Final = "tokenfleet:lease:"
NO_ANSWER: Final = (RedisError, OSError, RuntimeError)
"""What a Redis that is away raises. RuntimeError is uvloop's word for a connection that was reset while it was idle,
and redis-py lets it through."""
SILENCE_SECONDS: Final = 5.0
"""For so long after Redis did not answer, nobody waits for it to give a lease back."""
_TAKE: Final = (Path(__file__).parent / "leases.lua").read_text()
_GIVE_BACK: Final = (Path(__file__).parent / "release.lua").read_text()


class Leases:
    """Leases of one worker process, taken under the owner it names: its own random name.

    Within the process the caller keeps apart what it is already busy with (``workers.refresh``).
    """

    def __init__(self, redis: Redis, *, life_seconds: float, prefix: str = "") -> None:
        self._prefix = prefix + KEY_PREFIX
        self._life_ms = int(life_seconds * 1000)
        self._silent_until = 0.0
        self._take = redis.register_script(_TAKE)
        self._give_back = redis.register_script(_GIVE_BACK)

    async def take(self, account_ids: Sequence[AccountId], owner: str) -> frozenset[AccountId] | None:
        """Return the accounts whose lease is now ``owner``'s, or None when Redis does not answer."""
        try:
            answer = await self._take(keys=self._keys(account_ids), args=[owner, self._life_ms])
        except NO_ANSWER:
            self._silent_until = time.monotonic() + SILENCE_SECONDS
            return None
        self._silent_until = 0.0
        return frozenset(
            account_id for account_id, taken in zip(account_ids, answer, strict=True) if int(taken)
        )

    async def give_back(self, account_ids: Sequence[AccountId], owner: str) -> None:
        """Give leases back. Failure is harmless: they expire by themselves.

        The writer waits here between two commits, so it must not wait for a Redis that is known to be cut off.
        """
        if not account_ids or time.monotonic() < self._silent_until:
            return
        try:
            await self._give_back(keys=self._keys(account_ids), args=[owner])
        except NO_ANSWER:
            self._silent_until = time.monotonic() + SILENCE_SECONDS

    def _keys(self, account_ids: Sequence[AccountId]) -> list[str]:
        return [f"{self._prefix}{account_id}" for account_id in account_ids]
