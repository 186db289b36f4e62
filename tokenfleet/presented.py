"""What of an account a renewal of its access token presents to the provider."""

from __future__ import annotations

from enum import StrEnum


class Presented(StrEnum):
    """What is presented, and so what an account has to bring."""

    REFRESH_TOKEN = "refresh_token"
    """A refresh token (RFC 6749 section 6), which may be replaced by the answer."""
    SUBJECT_TOKEN = "subject_token"
    """A token of another kind that is exchanged (RFC 8693) and kept; it has the place of the refresh token."""
    ACCESS_TOKEN = "access_token"
    """The access token itself, while it lives."""
    NOTHING = "nothing"
    """Nothing: the client alone, or an assertion that it signs, is enough; or nothing is ever renewed."""
