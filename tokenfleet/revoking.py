"""How long a revoked account's tokens are kept, and when its provider is asked again to end the grant.

A customer who leaves wants the grant to end at the provider; only the token can end it. So it is kept, sealed and
served to nobody, until the provider has confirmed, and at most for :data:`KEPT_FOR`: after that it is forgotten
although nobody confirmed. Whatever the provider answers but yes counts the same: a refusal for a wrong client secret
ends when that is mended, and one that lasts costs a request now and then.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

KEPT_FOR: Final = timedelta(days=7)
FIRST_PAUSE: Final = timedelta(seconds=30)
LONGEST_PAUSE: Final = timedelta(hours=6)


def ask_again_at(attempts: int, *, now: datetime, chance: Callable[[], float]) -> datetime:
    """Return when to ask once more after ``attempts`` requests that were not confirmed, this one not counted.

    Exponential with half of it by ``chance`` (0 to 1), so that a tenant's thousand accounts do not come back at once.
    """
    pause = min(FIRST_PAUSE * (1 << min(attempts, 16)), LONGEST_PAUSE)
    return now + pause * (0.5 + chance() / 2)
