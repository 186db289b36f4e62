"""What to tell somebody whose command failed: one sentence that says what to do.

Only failures that a person can do something about are told; anything else is a fault of ours and keeps its
traceback.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Final

from sqlalchemy.exc import DBAPIError

from store.engine import is_outage
from tokenfleet_client.errors import TokenfleetError

_BY_STATE: Final = {
    "25006": "Postgres is read-only here: point TOKENFLEET_DATABASE_URL at the primary",
    "40P01": "Postgres ended this command in favour of another one (deadlock): run it again",
    "42501": "this database role may not do that: grant it the right, or connect as the schema's owner",
    "53300": "Postgres has no connection left: raise its max_connections, or stop something",
    "55P03": "somebody else holds a lock that this command needs: run it again when that is done",
    "57014": "Postgres took too long for this command and ended it: run it again, or look at its load",
}
_UNWRITABLE: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})
_BY_CLASS: Final = {
    "28": "Postgres does not let us in: correct user and password in TOKENFLEET_DATABASE_URL",
    "53": "Postgres has run out of disk or memory: free some",
}


def sentences_for(error: Exception) -> Sequence[str] | None:
    """Return a sentence for each problem that ``error`` reports, or None when it is a fault of ours."""
    if isinstance(error, TokenfleetError):
        return [line for line in str(error).splitlines() if line] or [type(error).__name__]
    if isinstance(error, DBAPIError):
        return _database_sentence(error)
    # One that names a file is about opening it, and its command knows what to say.
    if isinstance(error, OSError) and error.errno in _UNWRITABLE and error.filename is None:
        return [
            f"what this command prints cannot be written ({error.strerror}): free some space, or send it elsewhere"
        ]
    return None


def _database_sentence(error: DBAPIError) -> Sequence[str] | None:
    state = getattr(error.orig, "sqlstate", None) or ""
    reason = _first_line(error)
    known = _BY_STATE.get(state) or _BY_CLASS.get(state[:2])
    if known is not None:
        return [f"{known} ({reason})"]
    if is_outage(error):
        sentence = f"Postgres does not answer ({reason}): start it, or correct TOKENFLEET_DATABASE_URL"
        return [sentence]
    return None


def _first_line(error: DBAPIError) -> str:
    """Return the driver's first line, which names objects and hosts, never a password or a value."""
    lines = [line.strip() for line in str(error.orig).splitlines() if line.strip()]
    return lines[0] if lines else type(error.orig).__name__
