"""Which token requests a fault or a hold is about, and at which moment of a request it strikes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Stage(StrEnum):
    """Moments that differ for a client: has the server acted on the refresh token or not, or is it not about one?"""

    BEFORE_DECIDING = "before_deciding"
    """The request has arrived; nothing has happened to the token yet."""
    AFTER_DECIDING = "after_deciding"
    """The token is spent and the answer is ready; nothing has been sent yet."""
    API_REQUEST = "api_request"
    """A request with an access token has arrived at the API, not at the token endpoint."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Subjects by name, or by a prefix of their names. Empty names and an empty prefix select everybody."""

    subjects: frozenset[str] = frozenset()
    prefix: str = ""

    def includes(self, subject: str) -> bool:
        """Answer whether ``subject`` is meant."""
        if self.subjects and subject not in self.subjects:
            return False
        return subject.startswith(self.prefix)
