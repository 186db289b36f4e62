"""What a service sees that reads the view ``tokenfleet_v1.access_tokens`` every second."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from sqlalchemy import Engine, text
from sqlalchemy.exc import SQLAlchemyError

from chaos.verdict import PROMISED_SECONDS

_LOOK: Final = text("""
    SELECT provider,
           count(*) FILTER (WHERE external_id <> ALL (CAST(:leavers AS text[])) AND NOT (
               status = 'active' AND expires_at >= clock_timestamp() + CAST(:promised AS interval))) AS stale,
           array_agg(external_id) FILTER (WHERE status = 'needs_reauth') AS flipped
    FROM tokenfleet_v1.access_tokens GROUP BY provider
""")


@dataclass(slots=True)
class Seen:
    """What was seen of one provider's accounts."""

    stale: list[tuple[float, int]] = field(default_factory=list)
    """When, and how many that stayed had no active account with a token of 30 s at least."""
    flipped: dict[str, float] = field(default_factory=dict)
    """Who had to sign in again, and when that was first seen."""
    flipped_now: frozenset[str] = frozenset()

    def is_fresh_since(self, at: float) -> bool:
        """Answer whether the last look was after that moment and found nobody stale."""
        return bool(self.stale) and self.stale[-1][0] >= at and not self.stale[-1][1]


class Reader:
    """Looks once each time it is called. ``leavers`` are those who will end their grants: nobody promised them."""

    def __init__(self, engine: Engine, providers: Iterable[str], leavers: Iterable[str]) -> None:
        self._engine = engine
        self._leavers = sorted(leavers)
        self.seen = {provider: Seen() for provider in providers}

    def __call__(self) -> None:
        """Look. While Postgres is away nobody sees anything."""
        at = time.time()
        parameters = {"leavers": self._leavers, "promised": f"{PROMISED_SECONDS} seconds"}
        try:
            with self._engine.connect() as connection:
                rows = connection.execute(_LOOK, parameters).all()
        except SQLAlchemyError:
            return
        for row in rows:
            seen = self.seen[row.provider]
            seen.stale.append((at, row.stale))
            seen.flipped_now = frozenset(row.flipped or ())
            for subject in seen.flipped_now:
                seen.flipped.setdefault(subject, at)
