"""Tokens of an account that were in a file once, known by their fingerprints: none of them is a new sign-in (G2).

A token is remembered when it is imported, when it leaves in an export, and when another fleet says that it was imported
there. So whatever file turns up later, it cannot put a spent token back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sqlalchemy import Connection, text

from store.import_line import FINGERPRINTS_KEPT
from tokenfleet.jobs import AccountId

_REMEMBER = text(f"""
    UPDATE tokenfleet.accounts a
    SET imported_fingerprints = (
        SELECT known[GREATEST(cardinality(known) - {FINGERPRINTS_KEPT - 1}, 1):]
        FROM (SELECT a.imported_fingerprints || ARRAY(
            SELECT decode(digits, 'hex') FROM unnest(string_to_array(i.fingerprints, ' ')) WITH ORDINALITY
                AS each (digits, position)
            WHERE decode(digits, 'hex') <> ALL (a.imported_fingerprints) ORDER BY position) AS known) AS merged)
    FROM unnest(CAST(:account_ids AS bigint[]), CAST(:fingerprints AS text[])) AS i (account_id, fingerprints)
    WHERE a.id = i.account_id
""")


def remember(connection: Connection, met: Mapping[AccountId, Iterable[bytes]]) -> None:
    """Remember fingerprints of accounts whose rows of ``token_sets`` the caller has locked."""
    if met:
        values = {
            "account_ids": list(met),
            "fingerprints": [" ".join(each.hex() for each in found) for found in met.values()],
        }
        connection.execute(_REMEMBER, values)
